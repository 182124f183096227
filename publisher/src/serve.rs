//! An HTTP server for one repository: the files that clients and replicas read, and nothing else.
//!
//! ```text
//! GET, HEAD /cvmfs/FQRN/.cvmfspublished …     the files at the top that the format knows
//!           /cvmfs/FQRN/data/xx/…             objects
//!           /cvmfs/info/v1/repositories.json  which repository this is
//! ```
//!
//! Invariants
//! - A request never becomes a path by itself: its path has to be one of the names above, letter by letter. There is
//!   nothing to decode, so nothing can be smuggled in (`..`, `%2e`, `data/txn`).
//! - Memory is bounded a request: small files are read whole, large ones streamed in pieces.
//! - What the kernel has in memory is read in place, everything else on blocking threads.
//! - `TCP_NODELAY` is on, or small answers would wait for delayed acknowledgements.
//! - No validators (`ETag`, `Last-Modified`) are sent, as in the stock Apache configuration, so caches go by age alone.
//!
//! Types and ages follow the format's serving hints: 61 s for what changes (Squid does not cache 60 s and less), three
//! days for objects, which never change.

mod names;
mod range;

use std::fs::File;
use std::future::{Future, IntoFuture};
use std::io::{self, IoSliceMut, Seek, SeekFrom};
use std::net::SocketAddr;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::serve::ListenerExt;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::{ReadWriteFlags, preadv2};
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::io::ReaderStream;

use self::names::Resource;
use self::range::Part;
use crate::cli::print_result;
use crate::error::CommandError;

/// Up to this size a file is read in one go.
const SMALL: u64 = 512 << 10;
/// Piece of a larger file.
const PIECE: usize = 128 << 10;
/// How long transfers under way may go on after the signal to stop.
const GRACE: Duration = Duration::from_secs(10);
/// Threads for file I/O.
const IO_THREADS: usize = 64;

/// Why the server can't start or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The directory holds no repository.
    #[error("{} is no repository: it has no readable .cvmfspublished", root.display())]
    NoRepository {
        /// The directory.
        root: PathBuf,
        /// Why the manifest can't be opened.
        source: io::Error,
    },
    /// The address can't be used.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The runtime or the accepting socket failed.
    #[error("the server stopped")]
    Run(#[source] io::Error),
}

impl From<ServeError> for CommandError {
    fn from(error: ServeError) -> Self {
        match error {
            ServeError::NoRepository { .. } => Self::repository(error)
                .hint("create it with: cvmfs-publisher init FQRN; or name its directory with --storage"),
            ServeError::Listen { .. } => Self::failed(error).hint("choose another address with --listen"),
            ServeError::Run(_) => Self::failed(error),
        }
    }
}

/// A server that listens already.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    site: Arc<Site>,
}

/// What is served.
#[derive(Debug)]
struct Site {
    fqrn: String,
    root: PathBuf,
}

impl Server {
    /// Listens on `address` for requests to the repository `fqrn` in the directory `root`. Port 0 takes a free one.
    pub async fn bind(fqrn: &str, root: &Path, address: SocketAddr) -> Result<Self, ServeError> {
        File::open(root.join(".cvmfspublished"))
            .map_err(|source| ServeError::NoRepository { root: root.to_owned(), source })?;
        let failed = |source| ServeError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address, site: Arc::new(Site { fqrn: fqrn.to_owned(), root: root.to_owned() }) })
    }

    /// The address that connections are accepted on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL of the repository.
    pub fn url(&self) -> String {
        format!("http://{}/cvmfs/{}", self.address, self.site.fqrn)
    }

    /// Serves until `stop` is ready, then lets transfers under way finish for ten seconds.
    pub async fn run(self, stop: impl Future<Output = ()> + Send + 'static) -> Result<(), ServeError> {
        let listener = self.listener.tap_io(|stream| {
            if let Err(error) = stream.set_nodelay(true) {
                tracing::warn!(%error, "no TCP_NODELAY: answers may be slow");
            }
        });
        let app = Router::new().fallback(answer).with_state(self.site);
        let (stopping, stopped) = tokio::sync::oneshot::channel();
        let server = axum::serve(listener, app).with_graceful_shutdown(async move {
            stop.await;
            // The receiver is gone only if the server has ended already.
            let _ = stopping.send(());
        });
        let deadline = async {
            match stopped.await {
                Ok(()) => tokio::time::sleep(GRACE).await,
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            ended = server.into_future() => ended.map_err(ServeError::Run),
            () = deadline => Ok(()),
        }
    }
}

/// The command: serves until SIGTERM or SIGINT. Prints the address as soon as connections are accepted.
pub fn serve(fqrn: &str, root: &Path, address: SocketAddr, json: bool) -> Result<(), CommandError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(IO_THREADS)
        .build()
        .map_err(ServeError::Run)?;
    let result = runtime.block_on(async {
        // Before anybody knows the address, so that no signal is missed.
        let mut terminate = signal(SignalKind::terminate()).map_err(ServeError::Run)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(ServeError::Run)?;
        let server = Server::bind(fqrn, root, address).await?;
        print_result(&started(&server, json))?;
        server
            .run(async move {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
            })
            .await?;
        Ok(())
    });
    // A transfer that outlived the grace period must not hold the program.
    runtime.shutdown_background();
    result
}

fn started(server: &Server, json: bool) -> String {
    if json {
        let (url, address) = (server.url(), server.address());
        format!("{}\n", serde_json::json!({"url": url, "address": address.to_string(), "port": address.port()}))
    } else {
        format!("listening on {}\n", server.url())
    }
}

async fn answer(State(site): State<Arc<Site>>, request: Request) -> Response {
    let path = request.uri().path();
    let response = match *request.method() {
        Method::GET | Method::HEAD => match Resource::parse(path, &site.fqrn) {
            Some(resource) => site.send(resource, request.method(), request.headers()).await,
            None => refuse(StatusCode::NOT_FOUND),
        },
        _ => (StatusCode::METHOD_NOT_ALLOWED, [(header::ALLOW, "GET, HEAD")]).into_response(),
    };
    tracing::debug!(method = %request.method(), path, status = response.status().as_u16(), "request");
    response
}

fn refuse(status: StatusCode) -> Response {
    status.into_response()
}

/// What reading a file came to.
enum Content {
    /// A small file, or the wanted part of it.
    Bytes(Vec<u8>),
    /// A large file, positioned at the wanted part.
    Stream(File),
    /// Nobody wants the content.
    Head,
}

/// A file that is ready to be sent.
struct Opened {
    length: u64,
    part: Part,
    content: Content,
}

impl Site {
    async fn send(&self, resource: Resource<'_>, method: &Method, headers: &HeaderMap) -> Response {
        let (kind, path) = match resource {
            Resource::Repositories => return self.repositories().await,
            Resource::File { kind, path } => (kind, self.root.join(path)),
        };
        let with_content = method == Method::GET;
        // Without validators nothing can match an If-Range: the whole file is sent.
        let wanted = (with_content && !headers.contains_key(header::IF_RANGE))
            .then(|| headers.get(header::RANGE)?.to_str().ok().map(str::to_owned))
            .flatten();
        let shown = path.clone();
        let opened = match open_in_memory(&path, wanted.as_deref(), with_content) {
            Some(opened) => Ok(opened),
            None => tokio::task::spawn_blocking(move || open(&path, wanted.as_deref(), with_content))
                .await
                .unwrap_or_else(|panic| Err(panic.into())),
        };
        let opened = match opened {
            Ok(opened) => opened,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return refuse(StatusCode::NOT_FOUND),
            Err(error) => {
                tracing::error!(path = %shown.display(), %error, "cannot read");
                return refuse(StatusCode::INTERNAL_SERVER_ERROR);
            }
        };
        let (status, span) = match opened.part {
            Part::Whole => (StatusCode::OK, 0..opened.length),
            Part::Of(span) => (StatusCode::PARTIAL_CONTENT, span),
            Part::Nowhere => {
                let length = format!("bytes */{}", opened.length);
                return (StatusCode::RANGE_NOT_SATISFIABLE, [(header::CONTENT_RANGE, length)]).into_response();
            }
        };
        let mut response = Response::builder()
            .status(status)
            .header(header::CONTENT_TYPE, kind.content_type())
            .header(header::CACHE_CONTROL, kind.cache_control())
            .header(header::ACCEPT_RANGES, "bytes")
            .header(header::CONTENT_LENGTH, size(&span));
        if status == StatusCode::PARTIAL_CONTENT {
            let last = span.end.saturating_sub(1);
            response = response.header(header::CONTENT_RANGE, format!("bytes {}-{last}/{}", span.start, opened.length));
        }
        let body = match opened.content {
            Content::Bytes(bytes) => Body::from(bytes),
            Content::Stream(file) => {
                // A file that shrinks meanwhile ends the connection early: the length was promised.
                let reader = tokio::fs::File::from_std(file).take(size(&span));
                Body::from_stream(ReaderStream::with_capacity(reader, PIECE))
            }
            Content::Head => Body::empty(),
        };
        response.body(body).expect("all header values are made of digits and constants")
    }

    /// The list of repositories on this server: one, published here or copied.
    async fn repositories(&self) -> Response {
        let Self { fqrn, root } = self;
        let this = serde_json::json!([{"name": fqrn, "url": format!("/cvmfs/{fqrn}")}]);
        let is_copy = tokio::fs::try_exists(root.join(".cvmfs_last_snapshot")).await.unwrap_or(false);
        let (repositories, replicas) =
            if is_copy { (serde_json::json!([]), this) } else { (this, serde_json::json!([])) };
        let list = serde_json::json!({"schema": 1, "repositories": repositories, "replicas": replicas});
        let kind = names::Kind::Json;
        let headers = [(header::CONTENT_TYPE, kind.content_type()), (header::CACHE_CONTROL, kind.cache_control())];
        (headers, list.to_string()).into_response()
    }
}

fn size(span: &Range<u64>) -> u64 {
    span.end.saturating_sub(span.start)
}

/// Opens a file and reads the wanted part if it is small.
fn open(path: &Path, wanted: Option<&str>, with_content: bool) -> io::Result<Opened> {
    let read = |file: &File, bytes: &mut [u8], at: u64| {
        file.read_exact_at(bytes, at).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => io::Error::new(error.kind(), "the file became shorter while it was read"),
            _ => error,
        })
    };
    opened(File::open(path)?, wanted, with_content, read)
}

/// The same where nothing has to come from a disk, so that a thread that serves others as well may do it.
fn open_in_memory(path: &Path, wanted: Option<&str>, with_content: bool) -> Option<Opened> {
    let file =
        openat2(CWD, path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::CACHED)
            .ok()?;
    let read = |file: &File, bytes: &mut [u8], at: u64| {
        let length = bytes.len();
        match preadv2(file, &mut [IoSliceMut::new(bytes)], at, ReadWriteFlags::NOWAIT)? {
            count if count == length => Ok(()),
            _ => Err(io::ErrorKind::WouldBlock.into()),
        }
    };
    // Whatever fails is tried again on a thread that may wait, and fails there for good.
    opened(file.into(), wanted, with_content, read).ok()
}

fn opened(
    mut file: File,
    wanted: Option<&str>,
    with_content: bool,
    read: impl Fn(&File, &mut [u8], u64) -> io::Result<()>,
) -> io::Result<Opened> {
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::from(io::ErrorKind::NotFound));
    }
    let length = metadata.len();
    let part = wanted.map_or(Part::Whole, |wanted| range::parse(wanted, length));
    let span = match &part {
        Part::Whole => 0..length,
        Part::Of(span) => span.clone(),
        Part::Nowhere => 0..0,
    };
    if !with_content {
        return Ok(Opened { length, part, content: Content::Head });
    }
    if size(&span) > SMALL {
        file.seek(SeekFrom::Start(span.start))?;
        return Ok(Opened { length, part, content: Content::Stream(file) });
    }
    let mut bytes = vec![0; size(&span) as usize];
    if !bytes.is_empty() {
        read(&file, &mut bytes, span.start)?;
    }
    Ok(Opened { length, part, content: Content::Bytes(bytes) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(opened: Opened) -> (u64, Option<Vec<u8>>) {
        let content = match opened.content {
            Content::Bytes(bytes) => Some(bytes),
            Content::Stream(_) | Content::Head => None,
        };
        (opened.length, content)
    }

    #[test]
    fn what_is_in_memory_is_read_there_like_everything_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, "content").unwrap();
        for (wanted, with_content, expected) in [
            (None, true, Some(&b"content"[..])),
            (Some("bytes=1-3"), true, Some(&b"ont"[..])),
            (Some("bytes=9-"), true, Some(&b""[..])),
            (None, false, None),
        ] {
            let at_once = open_in_memory(&path, wanted, with_content).expect("it was just written");
            let (at_once, waited) = (bytes(at_once), bytes(open(&path, wanted, with_content).unwrap()));
            assert_eq!((at_once.0, at_once.1.as_deref()), (7, expected), "{wanted:?}");
            assert_eq!(at_once, waited);
        }
        assert!(open_in_memory(&directory.path().join("absent"), None, true).is_none());
        assert!(open_in_memory(directory.path(), None, true).is_none(), "no file");
    }
}
