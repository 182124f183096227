//! containerd as we use it: its content store, its unpacker, its leases, its images and snapshots.
//!
//! A request names the namespace in a header, and the lease that keeps what it makes from being collected.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use containerd_client::services::v1::{
    ApplyRequest, CreateRequest, DeleteRequest, InfoRequest, ReadContentRequest, WriteAction, WriteContentRequest,
};
use containerd_client::types;
use futures_util::StreamExt as _;
use image::digest::{DiffId, Digest};
use image::manifest::LayerCompression;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tonic::{Code, Request};

use crate::overlay::Mount;

/// Bytes sent to the content store at a time; below the 16 MiB that it takes in one message.
const PART: usize = 1 << 20;
/// Seconds after which a lease ends that nobody ended, for instance because its owner was killed.
const LEASE_SECONDS: i64 = 24 * 3600;

/// A connection to containerd in one namespace.
pub struct Engine {
    client: containerd_client::Client,
    namespace: String,
    lease: Option<String>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("namespace", &self.namespace).field("lease", &self.lease).finish_non_exhaustive()
    }
}

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

impl Engine {
    /// Connects to containerd's socket.
    pub async fn connect(socket: &Path, namespace: &str) -> anyhow::Result<Self> {
        let place: PathBuf = socket.to_owned();
        let client = containerd_client::Client::from_path(socket).await.with_context(|| {
            format!("containerd does not answer on {}; is it running, and may this user talk to it?", place.display())
        })?;
        Ok(Self { client, namespace: namespace.to_owned(), lease: None })
    }

    /// The generated clients.
    pub fn client(&self) -> &containerd_client::Client {
        &self.client
    }

    /// The namespace of all requests.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// A request with its headers.
    pub fn request<T>(&self, message: T) -> anyhow::Result<Request<T>> {
        let mut request = Request::new(message);
        let headers = request.metadata_mut();
        headers.insert("containerd-namespace", self.namespace.parse().context("the namespace can't be a header")?);
        if let Some(lease) = &self.lease {
            headers.insert("containerd-lease", lease.parse().context("the lease can't be a header")?);
        }
        Ok(request)
    }

    /// Takes a lease for all that is made from now on.
    pub async fn lease(&mut self, what: &str) -> anyhow::Result<()> {
        let expires = time::OffsetDateTime::now_utc() + time::Duration::seconds(LEASE_SECONDS);
        let expires = expires.format(&time::format_description::well_known::Rfc3339)?;
        let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_nanos();
        let id = format!("cvmfs-snapshotter-{what}-{}-{nanos}", std::process::id());
        let labels = HashMap::from([("containerd.io/gc.expire".to_owned(), expires)]);
        let request = self.request(CreateRequest { id: id.clone(), labels })?;
        self.client.leases().create(request).await.context("containerd gives no lease")?;
        self.lease = Some(id);
        Ok(())
    }

    /// Gives the lease back; what it kept and nothing else refers to is collected.
    pub async fn end_lease(&mut self) -> anyhow::Result<()> {
        if let Some(id) = self.lease.take() {
            let request = self.request(DeleteRequest { id, sync: false })?;
            self.client.leases().delete(request).await.context("containerd does not end a lease")?;
        }
        Ok(())
    }

    /// The size of a blob; nothing if it is not in the content store.
    pub async fn size(&self, digest: Digest) -> anyhow::Result<Option<u64>> {
        let request = self.request(InfoRequest { digest: digest.to_string() })?;
        match self.client.content().info(request).await {
            Ok(answer) => Ok(answer.into_inner().info.and_then(|info| u64::try_from(info.size).ok())),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(status).with_context(|| format!("containerd does not say whether it has {digest}")),
        }
    }

    /// A part of a blob, at most `limit` bytes from the start.
    pub async fn read(&self, digest: Digest, limit: u64) -> anyhow::Result<Vec<u8>> {
        let size = i64::try_from(limit).unwrap_or(i64::MAX);
        let request = self.request(ReadContentRequest { digest: digest.to_string(), offset: 0, size })?;
        let mut answers = self.client.content().read(request).await?.into_inner();
        let mut bytes = Vec::new();
        while let Some(answer) = answers.next().await {
            bytes.extend(answer?.data);
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

    /// Writes a blob into the content store; containerd verifies its digest. One that is there already is left alone.
    pub async fn write(
        &self,
        digest: Digest,
        size: u64,
        mut content: impl AsyncRead + Unpin + Send + 'static,
        labels: HashMap<String, String>,
    ) -> anyhow::Result<()> {
        let total = i64::try_from(size)?;
        let reference = format!("cvmfs-{digest}");
        let (sender, receiver) = tokio::sync::mpsc::channel(4);
        let failed = std::sync::Arc::new(parking_lot::Mutex::new(None));
        let failure = std::sync::Arc::clone(&failed);
        let expected = digest.to_string();
        let send = async move {
            let part = |action: WriteAction, offset: i64, data: Vec<u8>| WriteContentRequest {
                action: action as i32,
                r#ref: reference.clone(),
                total,
                expected: expected.clone(),
                offset,
                data,
                labels: HashMap::new(),
            };
            let mut offset = 0;
            let mut buffer = vec![0; PART];
            loop {
                let mut filled = 0;
                while filled < buffer.len() {
                    match content.read(&mut buffer[filled..]).await {
                        Ok(0) => break,
                        Ok(read) => filled += read,
                        Err(error) => {
                            *failure.lock() = Some(error);
                            return;
                        }
                    }
                }
                let last = filled < buffer.len();
                let action = if last { WriteAction::Commit } else { WriteAction::Write };
                let mut message = part(action, offset, buffer[..filled].to_vec());
                if last {
                    message.labels.clone_from(&labels);
                }
                offset += i64::try_from(filled).expect("a part is small");
                if sender.send(message).await.is_err() || last {
                    return;
                }
            }
        };
        let task = tokio::spawn(send);
        let mut request = self.request(())?.map(|()| tokio_stream::wrappers::ReceiverStream::new(receiver));
        request.set_timeout(std::time::Duration::from_secs(24 * 3600));
        let receive = async {
            let mut answers = self.client.content().write(request).await?.into_inner();
            while let Some(answer) = answers.next().await {
                answer?;
            }
            Ok::<(), tonic::Status>(())
        };
        let result = receive.await;
        let _ = task.await;
        if let Some(error) = failed.lock().take() {
            return Err(error).with_context(|| format!("{digest} did not arrive"));
        }
        match result {
            Err(status) if status.code() == Code::AlreadyExists => Ok(()),
            done => done.with_context(|| format!("containerd does not take {digest}")),
        }
    }

    /// Unpacks a layer from the content store into mounts; returns the digest of its tar.
    pub async fn apply(&self, blob: &Blob, mounts: &[Mount]) -> anyhow::Result<DiffId> {
        let mounts = mounts.iter().map(|mount| types::Mount {
            r#type: mount.kind.clone(),
            source: mount.source.clone(),
            target: String::new(),
            options: mount.options.clone(),
        });
        let message =
            ApplyRequest { diff: Some(blob.descriptor()), mounts: mounts.collect(), ..ApplyRequest::default() };
        let answer = self.client.diff().apply(self.request(message)?).await;
        let applied = answer.with_context(|| format!("containerd can't unpack {}", blob.digest))?.into_inner().applied;
        let applied = applied.context("containerd does not say what it unpacked")?;
        Ok(DiffId::parse(&applied.digest)?)
    }
}
