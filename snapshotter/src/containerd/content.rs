//! The content store: blobs by their digests, with labels that say what refers to what.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use anyhow::{Context as _, bail};
use containerd_client::services::v1::{
    Info, InfoRequest, ReadContentRequest, UpdateRequest, WriteAction, WriteContentRequest, WriteContentResponse,
};
use containerd_client::types;
use futures_util::StreamExt as _;
use image::digest::Digest;
use image::manifest::LayerCompression;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::mpsc;
use tonic::{Code, Status, Streaming};

use super::{Engine, said};

/// Bytes sent to the content store at a time; below the 16 MiB that it takes in one message.
const PART: usize = 1 << 20;
/// How long a blob may take.
const LIMIT: Duration = Duration::from_secs(24 * 3600);
/// How long to wait before a blob is tried again that somebody else is writing.
const PAUSE: Duration = Duration::from_millis(200);
/// Names the repositories that a blob is in, by registry.
const SOURCE: &str = "containerd.io/distribution.source.";

/// A blob in the content store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// its digest
    pub digest: Digest,
    /// its size in bytes
    pub size: u64,
    /// its media type
    pub media_type: String,
}

impl Blob {
    /// As containerd's API has it.
    pub fn descriptor(&self) -> types::Descriptor {
        types::Descriptor {
            media_type: self.media_type.clone(),
            digest: self.digest.to_string(),
            size: i64::try_from(self.size).unwrap_or(i64::MAX),
            annotations: HashMap::new(),
        }
    }
}

/// An open write.
struct Writer {
    sender: mpsc::Sender<WriteContentRequest>,
    answers: Streaming<WriteContentResponse>,
    /// what is there already
    offset: i64,
}

impl Engine {
    async fn info(&self, digest: Digest) -> anyhow::Result<Option<Info>> {
        let request = self.request(InfoRequest { digest: digest.to_string() })?;
        match self.client().content().info(request).await {
            Ok(answer) => Ok(answer.into_inner().info),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => {
                Err(said(status)).with_context(|| format!("containerd does not say whether it has {digest}"))
            }
        }
    }

    /// The size of a blob; nothing if it is not in the content store.
    pub async fn size(&self, digest: Digest) -> anyhow::Result<Option<u64>> {
        Ok(self.info(digest).await?.and_then(|info| u64::try_from(info.size).ok()))
    }

    /// Makes the lease keep a blob; returns its size, nothing if it is not there.
    pub async fn keep_blob(&self, digest: Digest) -> anyhow::Result<Option<u64>> {
        if self.size(digest).await?.is_none() {
            return Ok(None);
        }
        self.keep(&digest.to_string(), "content".to_owned()).await?;
        // It may have been collected in between.
        self.size(digest).await
    }

    /// A part of a blob, at most `limit` bytes from the start.
    pub async fn read(&self, digest: Digest, limit: u64) -> anyhow::Result<Vec<u8>> {
        let size = i64::try_from(limit).unwrap_or(i64::MAX);
        let request = self.request(ReadContentRequest { digest: digest.to_string(), offset: 0, size })?;
        let failed = || format!("containerd does not give {digest}");
        let mut answers = self.client().content().read(request).await.map_err(said).with_context(failed)?.into_inner();
        let mut bytes = Vec::new();
        while let Some(answer) = answers.next().await {
            bytes.extend(answer.map_err(said).with_context(failed)?.data);
            if bytes.len() as u64 > limit {
                bail!("containerd gives more than the {limit} bytes of {digest} that were asked for");
            }
        }
        Ok(bytes)
    }

    /// What the first bytes of a layer say that it is.
    pub async fn media_type(&self, digest: Digest, size: u64) -> anyhow::Result<&'static str> {
        let start = self.read(digest, size.min(512)).await?;
        Ok(match LayerCompression::sniff(&start) {
            Some(LayerCompression::Gzip) => "application/vnd.oci.image.layer.v1.tar+gzip",
            Some(LayerCompression::Zstd) => "application/vnd.oci.image.layer.v1.tar+zstd",
            Some(LayerCompression::Plain) => "application/vnd.oci.image.layer.v1.tar",
            _ => bail!("{digest} is no layer"),
        })
    }

    /// Adds labels to a blob. Repositories that it is known to be in are kept.
    pub async fn label(&self, digest: Digest, labels: &HashMap<String, String>) -> anyhow::Result<()> {
        let info = self.info(digest).await?.with_context(|| format!("containerd has lost {digest}"))?;
        let changed = changed(&info.labels, labels);
        if changed.is_empty() {
            return Ok(());
        }
        let paths = changed.keys().map(|key| format!("labels.{key}")).collect();
        let info = Info { digest: digest.to_string(), labels: changed.into_iter().collect(), ..Info::default() };
        let update_mask = Some(prost_types::FieldMask { paths });
        let request = self.request(UpdateRequest { info: Some(info), update_mask })?;
        let done = self.client().content().update(request).await.map_err(said);
        done.with_context(|| format!("containerd does not label {digest}"))?;
        Ok(())
    }

    /// Writes a blob into the content store; containerd verifies its digest. One that is there already is only labelled, and
    /// `content` is not asked for it. Returns whether it was.
    pub async fn write<R: AsyncRead + Unpin>(
        &self,
        digest: Digest,
        size: u64,
        content: impl Future<Output = anyhow::Result<R>>,
        labels: &HashMap<String, String>,
    ) -> anyhow::Result<bool> {
        let total = i64::try_from(size)?;
        let part = |action: WriteAction, offset, data| message(action, digest, total, offset, data);
        let commit =
            |offset| WriteContentRequest { labels: labels.clone(), ..part(WriteAction::Commit, offset, Vec::new()) };
        let Some(mut writer) = self.open(digest, total).await? else {
            self.label(digest, labels).await?;
            return Ok(false);
        };
        if size > 0 && writer.offset == total {
            // Another namespace has it, or somebody wrote it and was killed: containerd only wants to hear that it is the same.
            let _ = writer.sender.send(commit(total)).await;
            drop(writer.sender);
            if ended(writer.answers, digest).await.is_ok() {
                self.label(digest, labels).await?;
                return Ok(false);
            }
            let Some(again) = self.open(digest, total).await? else { return Ok(false) };
            writer = again;
        }
        let Writer { sender, answers, .. } = writer;
        let send = async {
            let mut content = content.await?;
            let mut buffer = vec![0; PART];
            let mut offset = 0;
            loop {
                let filled =
                    fill(&mut content, &mut buffer).await.with_context(|| format!("{digest} did not arrive"))?;
                let data = buffer[..filled].to_vec();
                if filled > 0 && sender.send(part(WriteAction::Write, offset, data)).await.is_err() {
                    break;
                }
                offset += i64::try_from(filled).expect("a part is small");
                if filled < buffer.len() {
                    break;
                }
            }
            // That containerd does not listen any more is in its answer.
            let _ = sender.send(commit(offset)).await;
            drop(sender);
            Ok(())
        };
        tokio::try_join!(send, ended(answers, digest))?;
        Ok(true)
    }

    /// Opens a blob for writing; nothing if it is there. Only one may write it at a time; others wait, and find it there.
    async fn open(&self, digest: Digest, total: i64) -> anyhow::Result<Option<Writer>> {
        let deadline = tokio::time::Instant::now() + LIMIT;
        loop {
            match self.try_open(digest, total).await? {
                Ok(writer) => return Ok(Some(writer)),
                Err(status) if status.code() == Code::AlreadyExists => return Ok(None),
                Err(status)
                    if status.code() == Code::Unavailable
                        && status.message().contains("locked")
                        && tokio::time::Instant::now() < deadline =>
                {
                    tokio::time::sleep(PAUSE).await;
                }
                Err(status) => return Err(said(status)).with_context(|| format!("containerd does not take {digest}")),
            }
        }
    }

    async fn try_open(&self, digest: Digest, total: i64) -> anyhow::Result<Result<Writer, Status>> {
        let (sender, receiver) = mpsc::channel(4);
        sender.try_send(message(WriteAction::Stat, digest, total, 0, Vec::new())).expect("the channel is empty");
        let mut request = self.request(())?.map(|()| tokio_stream::wrappers::ReceiverStream::new(receiver));
        request.set_timeout(LIMIT);
        let mut answers = match self.client().content().write(request).await {
            Ok(answers) => answers.into_inner(),
            Err(status) => return Ok(Err(status)),
        };
        Ok(match answers.next().await {
            Some(Ok(answer)) => Ok(Writer { sender, answers, offset: answer.offset }),
            Some(Err(status)) => Err(status),
            None => Err(Status::unknown("it ended without an answer")),
        })
    }
}

fn message(action: WriteAction, digest: Digest, total: i64, offset: i64, data: Vec<u8>) -> WriteContentRequest {
    WriteContentRequest {
        action: action as i32,
        r#ref: format!("cvmfs-{digest}"),
        total,
        expected: digest.to_string(),
        offset,
        data,
        labels: HashMap::new(),
    }
}

/// Waits for the end of a write.
async fn ended(mut answers: Streaming<WriteContentResponse>, digest: Digest) -> anyhow::Result<()> {
    while let Some(answer) = answers.next().await {
        match answer {
            Ok(_) => {}
            Err(status) if status.code() == Code::AlreadyExists => break,
            Err(status) => return Err(said(status)).with_context(|| format!("containerd does not take {digest}")),
        }
    }
    Ok(())
}

/// Fills the buffer as far as there is something.
async fn fill(content: &mut (impl AsyncRead + Unpin), buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match content.read(&mut buffer[filled..]).await? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(filled)
}

/// The labels that have to be written so that all of `wanted` are there.
fn changed(there: &HashMap<String, String>, wanted: &HashMap<String, String>) -> BTreeMap<String, String> {
    let mut changed = BTreeMap::new();
    for (key, value) in wanted {
        let old = there.get(key).map_or("", String::as_str);
        let new = match key.strip_prefix(SOURCE) {
            Some(_) if old.split(',').any(|name| name == value) => continue,
            Some(_) if !old.is_empty() => format!("{old},{value}"),
            _ => value.clone(),
        };
        if new != old && key.len() + new.len() <= 4096 {
            changed.insert(key.clone(), new);
        }
    }
    changed
}

/// The label that names the repository a blob is in.
pub fn source_label(registry: &str, repository: &str) -> (String, String) {
    (format!("{SOURCE}{registry}"), repository.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn only_what_is_new_is_written_and_repositories_add_up() {
        let (key, value) = source_label("docker.io", "library/x");
        let source = [(key.as_str(), value.as_str())];
        let other = [(key.as_str(), "a/b")];
        for (there, wanted, expected) in [
            (&[][..], &[("a", "1")][..], &[("a", "1")][..]),
            (&[("a", "1")], &[("a", "1")], &[]),
            (&[("a", "1")], &[("a", "2")], &[("a", "2")]),
            (&source, &source, &[]),
            (&other, &source, &[(key.as_str(), "a/b,library/x")]),
        ] {
            let found: HashMap<_, _> = changed(&labels(there), &labels(wanted)).into_iter().collect();
            assert_eq!(found, labels(expected), "{there:?} {wanted:?}");
        }
    }
}
