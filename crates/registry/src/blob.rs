//! A blob as a stream of bytes, whatever happens to the connection.
//!
//! ```text
//! open ──► read ──► cut ──► pause ──► open at the offset reached (Range) ──► read ──► … ──► verified ──► end
//! ```
//!
//! Invariants
//! - The reader reports its end only after exactly `size` bytes with the right digest. The last part is handed out
//!   after the check, so a consumer that knows the size and stops there is safe, too.
//! - No byte is handed out twice: a server that ignores `Range` starts again, and what was delivered is skipped. Should
//!   its content have changed in between, the digest over all that was handed out tells.
//! - A mirror that fails for good is left for the next one, or the registry, at the offset reached. Whoever gave a part, it is the whole
//!   that has to have the digest; if it has not, every mirror that gave a part is passed over from then on.
//! - An announced length that isn't the descriptor's is an error before the first byte.
//! - Memory: one part of the body as it comes from the network.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use futures_util::stream::{BoxStream, StreamExt, try_unfold};
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, RANGE};
use http::{HeaderMap, HeaderValue};
use image::digest::Digest;
use reqwest::Response;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncBufRead, AsyncRead, ReadBuf};
use tokio_util::io::StreamReader;

use crate::client::{Client, verify};
use crate::endpoints::{Endpoints, blame};
use crate::error::Error;
use crate::retry::Attempts;
use crate::transport::{Call, Failure, Target};

/// A verified byte stream. Errors are `io::Error`s with an [`Error`] inside, see [`Error::from_io`].
///
/// After an error it returns errors for ever, and what it returned before must not be used.
pub struct BlobReader {
    inner: StreamReader<BoxStream<'static, io::Result<Bytes>>, Bytes>,
    failed: bool,
    size: u64,
    digest: Digest,
}

impl BlobReader {
    pub(crate) async fn open(client: Client, from: Endpoints, digest: Digest, size: u64) -> Result<Self, Error> {
        let what = format!("blob {digest}");
        let mut others: VecDeque<Target> = from.mirrors.into_iter().chain([from.origin]).collect();
        let target = others.pop_front().expect("the registry itself is asked at last");
        let attempts = Attempts::new(&target.retry);
        let mut download = Download {
            client,
            target,
            others,
            mirrors: Vec::new(),
            what,
            digest,
            size,
            offset: 0,
            hasher: Sha256::new(),
            source: None,
            ranges: true,
            attempts,
        };
        if size == 0 {
            download.check()?;
        } else {
            while let Err(error) = Box::pin(download.connect()).await {
                download.go_elsewhere(error)?;
            }
        }
        let stream = try_unfold(download, |mut download| async move {
            let part = Box::pin(download.next()).await.map_err(Error::into_io)?;
            Ok(part.map(|part| (part, download)))
        });
        Ok(Self { inner: StreamReader::new(stream.boxed()), failed: false, size, digest })
    }

    /// Length of the whole blob in bytes.
    pub const fn size(&self) -> u64 {
        self.size
    }
}

impl fmt::Debug for BlobReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlobReader").field("digest", &self.digest).field("size", &self.size).finish_non_exhaustive()
    }
}

impl AsyncRead for BlobReader {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let part = ready!(self.as_mut().poll_fill_buf(cx))?;
        let length = part.len().min(buf.remaining());
        buf.put_slice(&part[..length]);
        self.consume(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncBufRead for BlobReader {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let this = self.get_mut();
        if this.failed {
            // the stream below would report an end here
            return Poll::Ready(Err(io::Error::other("this blob has failed before")));
        }
        let part = ready!(Pin::new(&mut this.inner).poll_fill_buf(cx));
        this.failed = part.is_err();
        Poll::Ready(part)
    }

    fn consume(mut self: Pin<&mut Self>, amount: usize) {
        Pin::new(&mut self.inner).consume(amount);
    }
}

/// The body that is being read.
struct Source {
    response: Response,
    /// bytes at its start that were delivered from an earlier one
    skip: u64,
}

struct Download {
    client: Client,
    target: Target,
    /// who is asked if that fails, in this order
    others: VecDeque<Target>,
    /// mirrors that gave a part
    mirrors: Vec<Target>,
    what: String,
    digest: Digest,
    size: u64,
    /// bytes handed out
    offset: u64,
    /// over the bytes handed out
    hasher: Sha256,
    source: Option<Source>,
    /// does the server honour `Range`, as far as we know?
    ranges: bool,
    attempts: Attempts,
}

impl Download {
    /// The next part; `None` after the last one.
    async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        if self.offset == self.size {
            return Ok(None);
        }
        loop {
            let Some(source) = &mut self.source else {
                if let Err(error) = self.connect().await {
                    self.go_elsewhere(error)?;
                }
                continue;
            };
            let failure = match self.client.chunk(&mut source.response, &self.target.place, &self.what).await {
                Ok(Some(mut part)) => {
                    let skipped = source.skip.min(part.len() as u64);
                    source.skip -= skipped;
                    part.advance(skipped as usize);
                    if part.is_empty() {
                        continue;
                    }
                    let length = part.len() as u64;
                    if length > self.size - self.offset {
                        let error = self.wrong_size(self.offset.saturating_add(length));
                        if self.target.is_mirror() {
                            blame(&self.target, &error);
                        }
                        return Err(error);
                    }
                    if self.target.is_mirror() && self.mirrors.last().is_none_or(|last| last.base != self.target.base) {
                        self.mirrors.push(self.target.clone());
                    }
                    self.hasher.update(&part);
                    self.offset += length;
                    self.attempts.progress(length);
                    if self.offset == self.size {
                        self.source = None;
                        self.check()?;
                    }
                    return Ok(Some(part));
                }
                Ok(None) => {
                    let why = format!("the answer ends after {} of {} bytes", self.offset, self.size);
                    Failure::line(&self.target.place, &self.what, self.target.host(), why)
                }
                Err(failure) => failure,
            };
            self.source = None;
            if let Err(error) = self.client.pause(&mut self.attempts, failure, &self.target.session).await {
                self.go_elsewhere(error)?;
            }
        }
    }

    /// A mirror failed for good: goes on with the next one.
    fn go_elsewhere(&mut self, error: Error) -> Result<(), Error> {
        let Some(next) = self.others.pop_front() else { return Err(error) };
        blame(&self.target, &error);
        self.target = next;
        self.attempts = Attempts::new(&self.target.retry);
        self.ranges = true;
        Ok(())
    }

    /// Opens the blob at the offset reached.
    async fn connect(&mut self) -> Result<(), Error> {
        loop {
            let mut call = Call::get(&self.target, self.target.url(&format!("blobs/{}", self.digest)), &self.what);
            let ranged = self.offset > 0 && self.ranges;
            if ranged {
                let range = format!("bytes={}-", self.offset);
                call.headers.insert(RANGE, HeaderValue::from_str(&range).expect("digits are a header value"));
            }
            let response = match self.client.call(&call, &mut self.attempts).await {
                Ok(response) => response,
                Err(Error::Status { status: 416, .. }) if ranged => {
                    self.ranges = false;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let headers = response.headers();
            if headers.get(CONTENT_ENCODING).is_some_and(|value| value.as_bytes() != b"identity") {
                return Err(self.protocol("the content is encoded on the way (Content-Encoding), so can't be verified"));
            }
            let announced = number(headers.get(CONTENT_LENGTH));
            match response.status().as_u16() {
                200 => {
                    if announced.is_some_and(|announced| announced != self.size) {
                        return Err(self.wrong_size(announced.unwrap_or_default()));
                    }
                    if ranged {
                        self.ranges = false;
                    }
                    self.source = Some(Source { response, skip: self.offset });
                    return Ok(());
                }
                206 if ranged => match content_range(headers) {
                    Some((start, total)) if start == self.offset => {
                        if total.is_some_and(|total| total != self.size) {
                            return Err(self.wrong_size(total.unwrap_or_default()));
                        }
                        self.source = Some(Source { response, skip: 0 });
                        return Ok(());
                    }
                    // some other part than the one asked for: start again from the beginning
                    _ => self.ranges = false,
                },
                status => return Err(self.protocol(&format!("the answer has status {status}"))),
            }
        }
    }

    fn check(&mut self) -> Result<(), Error> {
        let actual = Digest::from_bytes(std::mem::take(&mut self.hasher).finalize().into());
        let checked = verify(&self.target, &self.what, Some(self.digest), actual);
        for mirror in &self.mirrors {
            match &checked {
                Ok(()) if mirror.base == self.target.base => mirror.session.budget.recovered(),
                Ok(()) => {}
                Err(error) => blame(mirror, error),
            }
        }
        checked
    }

    fn wrong_size(&self, actual: u64) -> Error {
        let (place, what) = (self.target.place.clone(), self.what.clone());
        Error::SizeMismatch { place, what, expected: self.size, actual }
    }

    fn protocol(&self, reason: &str) -> Error {
        let (place, what) = (self.target.place.clone(), self.what.clone());
        Error::Protocol { place, what, reason: reason.to_owned() }
    }
}

fn number(value: Option<&HeaderValue>) -> Option<u64> {
    value?.to_str().ok()?.trim().parse().ok()
}

/// `Content-Range: bytes START-END/TOTAL` (RFC 9110, 14.4): start and total; the total may be `*`.
fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let value = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    let (range, total) = value.trim().strip_prefix("bytes")?.trim().split_once('/')?;
    let (start, _) = range.split_once('-')?;
    let total = match total.trim() {
        "*" => None,
        total => Some(total.parse().ok()?),
    };
    Some((start.trim().parse().ok()?, total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_content_ranges() {
        for (value, expected) in [
            ("bytes 5-9/10", Some((5, Some(10)))),
            ("bytes 0-0/*", Some((0, None))),
            ("bytes */10", None),
            ("bytes 5-9", None),
            ("items 5-9/10", None),
            ("bytes 5-9/-1", None),
            ("bytes 99999999999999999999-1/2", None),
        ] {
            let headers = HeaderMap::from_iter([(CONTENT_RANGE, HeaderValue::from_str(value).unwrap())]);
            assert_eq!(content_range(&headers), expected, "{value}");
        }
    }
}
