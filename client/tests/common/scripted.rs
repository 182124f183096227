//! Servers and proxies that do what a script says, one request at a time, on real sockets.

#![allow(dead_code)] // each test binary uses a part of it

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use client::config::{Config, Flags};
use client::fetch::{FetchError, Objects, Want};
use client::stats::Stats;
use cvmfs::hash::{Algorithm, ObjectId, ObjectKind};
use cvmfs::object::{Codec, Compression, Encoder};

/// What a server does with a request.
#[derive(Debug, Clone)]
pub enum Act {
    /// Gives what it has under the path.
    Serve,
    /// The same after a while.
    ServeAfter(Duration),
    /// Answers with a status and further header lines.
    Status(u16, &'static str),
    /// Sends the client elsewhere.
    Redirect(String),
    /// Closes the connection without a word.
    Close,
    /// Never answers.
    HangBeforeHead,
    /// Sends the head, half of the body, and no more.
    HangInBody,
    /// Ends the connection in the middle of the body.
    Truncate,
    /// Says that the body is shorter than it is.
    TooShortLength,
    /// Flips a bit in the middle.
    Wrong,
    /// Gives these bytes instead.
    Instead(Bytes),
    /// Gives these bytes, then again and again without end.
    Endless(Bytes),
    /// Header lines without end.
    EndlessHead,
    /// One byte of the head every tenth of a second.
    SlowHead,
    /// One byte of the body every tenth of a second.
    SlowBody,
}

/// Bytes that messages do not show.
#[derive(Clone)]
pub struct Bytes(Arc<Vec<u8>>);

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Bytes {
        Bytes(Arc::new(bytes))
    }
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// What a server was asked.
#[derive(Debug, Clone)]
pub struct Request {
    /// The target; an absolute URL when the server is used as a proxy.
    pub target: String,
    /// Its path.
    pub path: String,
    /// Header lines in lower case.
    pub headers: Vec<String>,
    /// When it came.
    pub at: Instant,
}

impl Request {
    /// Whether a header line is there.
    pub fn has(&self, line: &str) -> bool {
        self.headers.iter().any(|header| header == line)
    }
}

type Script = Box<dyn FnMut(&Request) -> Act + Send>;

struct Shared {
    content: Mutex<BTreeMap<String, Arc<Vec<u8>>>>,
    script: Mutex<Script>,
    requests: Mutex<Vec<Request>>,
    sent: AtomicUsize,
    busy: AtomicUsize,
    busiest: AtomicUsize,
    stopped: AtomicBool,
    open: Mutex<Vec<TcpStream>>,
    tls: Option<Arc<rustls::ServerConfig>>,
}

/// A server or proxy with a script.
pub struct Scripted {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    accepting: Option<std::thread::JoinHandle<()>>,
}

impl Scripted {
    /// Listens on a free port; does `act` with each request.
    pub fn new(act: Act) -> Scripted {
        Scripted::with(move |_| act.clone())
    }

    /// Listens on a free port; does what `script` says of each request.
    pub fn with(script: impl FnMut(&Request) -> Act + Send + 'static) -> Scripted {
        Scripted::listen(TcpListener::bind("127.0.0.1:0").unwrap(), Box::new(script), None)
    }

    /// Serves with TLS.
    pub fn tls(config: rustls::ServerConfig) -> Scripted {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        Scripted::listen(listener, Box::new(|_| Act::Serve), Some(Arc::new(config)))
    }

    /// Listens on this port of the loopback interface.
    pub fn on(address: SocketAddr, act: Act) -> Scripted {
        Scripted::listen(TcpListener::bind(address).unwrap(), Box::new(move |_| act.clone()), None)
    }

    fn listen(listener: TcpListener, script: Script, tls: Option<Arc<rustls::ServerConfig>>) -> Scripted {
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            content: Mutex::default(),
            script: Mutex::new(script),
            requests: Mutex::default(),
            sent: AtomicUsize::new(0),
            busy: AtomicUsize::new(0),
            busiest: AtomicUsize::new(0),
            stopped: AtomicBool::new(false),
            open: Mutex::default(),
            tls,
        });
        let accepted = shared.clone();
        let accepting = std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if accepted.stopped.load(Ordering::SeqCst) {
                    break;
                }
                accepted.open.lock().unwrap().push(stream.try_clone().unwrap());
                let shared = accepted.clone();
                std::thread::spawn(move || {
                    let _ = match &shared.tls {
                        Some(config) => {
                            let session = rustls::ServerConnection::new(config.clone()).unwrap();
                            converse(rustls::StreamOwned::new(session, stream.try_clone().unwrap()), &shared)
                        }
                        None => converse(stream.try_clone().unwrap(), &shared),
                    };
                    let _ = stream.shutdown(Shutdown::Both);
                });
            }
        });
        Scripted { address, shared, accepting: Some(accepting) }
    }

    /// Puts something under a path (without leading slash, below `/repo`).
    pub fn put(&self, path: &str, bytes: Vec<u8>) {
        self.shared.content.lock().unwrap().insert(format!("/repo/{path}"), Arc::new(bytes));
    }

    /// Puts an object where it belongs.
    pub fn put_object(&self, object: &Object) {
        self.put(&object.id.path(), object.stored.clone());
    }

    /// The same server with an object in it.
    pub fn having(self, object: &Object) -> Scripted {
        self.put_object(object);
        self
    }

    /// From now on.
    pub fn act(&self, act: Act) {
        *self.shared.script.lock().unwrap() = Box::new(move |_| act.clone());
    }

    /// URL of the server; that of the proxy is the same.
    pub fn url(&self) -> String {
        let scheme = if self.shared.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// URL of the repository on it.
    pub fn repository(&self) -> String {
        self.url() + "/repo"
    }

    pub fn requests(&self) -> Vec<Request> {
        self.shared.requests.lock().unwrap().clone()
    }

    pub fn count(&self) -> usize {
        self.requests().len()
    }

    /// Bytes of bodies and heads that got into the sockets.
    pub fn sent(&self) -> usize {
        self.shared.sent.load(Ordering::SeqCst)
    }

    /// Most requests that were being answered at the same time.
    pub fn busiest(&self) -> usize {
        self.shared.busiest.load(Ordering::SeqCst)
    }

    /// Stops; connections are cut, new ones refused.
    pub fn stop(&mut self) {
        if let Some(accepting) = self.accepting.take() {
            self.shared.stopped.store(true, Ordering::SeqCst);
            let _ = TcpStream::connect(self.address);
            accepting.join().unwrap();
            self.shared.open.lock().unwrap().drain(..).for_each(|stream| drop(stream.shutdown(Shutdown::Both)));
        }
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.stop();
    }
}

/// An address where nobody listens.
pub fn refused() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn converse(stream: impl std::io::Read + Write, shared: &Shared) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if stream.by_ref().take(65536).read_line(&mut line)? == 0 {
            return Ok(());
        }
        let target = line.split(' ').nth(1).unwrap_or("/").to_owned();
        let mut headers = Vec::new();
        loop {
            let mut header = String::new();
            if stream.by_ref().take(65536).read_line(&mut header)? == 0 || header.trim().is_empty() {
                break;
            }
            headers.push(header.trim().to_ascii_lowercase());
        }
        let path = match target.strip_prefix("http://") {
            Some(absolute) => absolute[absolute.find('/').unwrap_or(absolute.len())..].to_owned(),
            None => target.clone(),
        };
        let request = Request { target, path, headers, at: Instant::now() };
        shared.requests.lock().unwrap().push(request.clone());
        let act = (shared.script.lock().unwrap())(&request);
        shared.busiest.fetch_max(shared.busy.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        let goes_on = answer(stream.get_mut(), shared, &request.path, act);
        shared.busy.fetch_sub(1, Ordering::SeqCst);
        if !goes_on? {
            return Ok(());
        }
    }
}

/// Does what the script says; tells whether the connection can be used again.
fn answer(stream: &mut impl Write, shared: &Shared, path: &str, act: Act) -> std::io::Result<bool> {
    let mut send = |bytes: &[u8]| -> std::io::Result<()> {
        stream.write_all(bytes)?;
        stream.flush()?;
        shared.sent.fetch_add(bytes.len(), Ordering::SeqCst);
        Ok(())
    };
    let nap = || {
        std::thread::sleep(Duration::from_millis(100));
        let stopped = shared.stopped.load(Ordering::SeqCst);
        if stopped { Err(std::io::Error::from(std::io::ErrorKind::ConnectionAborted)) } else { Ok(()) }
    };
    let body = shared.content.lock().unwrap().get(path).cloned();
    let (status, body) = body.map_or((404, Arc::default()), |body| (200, body));
    let head =
        |status: u16, length: usize| format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\n\r\n").into_bytes();
    let all = |body: &[u8]| [&head(status, body.len())[..], body].concat();
    match act {
        Act::Serve => send(&all(&body))?,
        Act::ServeAfter(time) => {
            std::thread::sleep(time);
            send(&all(&body))?;
        }
        Act::Status(status, lines) => {
            send(format!("HTTP/1.1 {status} X\r\n{lines}Content-Length: 4\r\n\r\nsays").as_bytes())?;
        }
        Act::Redirect(to) => {
            send(format!("HTTP/1.1 302 X\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n").as_bytes())?;
        }
        Act::Close => return Ok(false),
        Act::HangBeforeHead => loop {
            nap()?;
        },
        Act::HangInBody => {
            send(&head(200, body.len()))?;
            send(&body[..body.len() / 2])?;
            loop {
                nap()?;
            }
        }
        Act::Truncate => {
            send(&head(200, body.len()))?;
            send(&body[..body.len() / 2])?;
            return Ok(false);
        }
        Act::TooShortLength => {
            send(&head(200, body.len() - 1))?;
            send(&body)?;
        }
        Act::Wrong => {
            let mut wrong = body.to_vec();
            let middle = wrong.len() / 2;
            wrong[middle] ^= 0x10;
            send(&all(&wrong))?;
        }
        Act::Instead(bytes) => send(&[&head(200, bytes.0.len())[..], &bytes.0].concat())?,
        Act::Endless(bytes) => {
            send(b"HTTP/1.1 200 X\r\n\r\n")?;
            loop {
                send(&bytes.0)?;
            }
        }
        Act::EndlessHead => {
            send(b"HTTP/1.1 200 X\r\n")?;
            for i in 0.. {
                send(format!("X-{i}: {}\r\n", "x".repeat(1000)).as_bytes())?;
            }
        }
        Act::SlowHead => {
            for byte in b"HTTP/1.1 200 X\r\nX-Long: ".iter().chain(std::iter::repeat(&b'x')) {
                send(&[*byte])?;
                nap()?;
            }
        }
        Act::SlowBody => {
            send(&head(200, body.len()))?;
            for byte in body.iter() {
                send(&[*byte])?;
                nap()?;
            }
        }
    }
    Ok(true)
}

/// An object as it is stored, and what is in it.
#[derive(Debug, Clone)]
pub struct Object {
    pub id: ObjectId,
    pub plain: Vec<u8>,
    pub stored: Vec<u8>,
}

impl Object {
    /// An object that does not get small by compression, distinct for each seed.
    pub fn new(seed: u64, size: usize) -> Object {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let plain = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        });
        Object::of(plain.take(size).collect())
    }

    /// An object with this content.
    pub fn of(plain: Vec<u8>) -> Object {
        let mut encoder = Encoder::new(Algorithm::Sha1, Codec::default());
        let (hash, stored) = encoder.encode(&plain);
        Object { id: hash.object(ObjectKind::File), stored: stored.to_vec(), plain }
    }

    pub fn want(&self) -> Want {
        Want::sized(self.id, Compression::Zlib, self.plain.len() as u64)
    }
}

/// Bytes as objects store them.
pub fn compressed(plain: &[u8]) -> Vec<u8> {
    Encoder::new(Algorithm::Sha1, Codec::default()).encode(plain).1.to_vec()
}

/// Objects from servers and proxies, with an empty cache.
pub struct Getter {
    pub objects: Objects,
    pub stats: Arc<Stats>,
    pub cache: tempfile::TempDir,
    _runtime: tokio::runtime::Runtime,
}

/// Seconds are short and pauses none, so that failures don't take long.
const QUICK: [&str; 4] = ["CVMFS_TIMEOUT=1", "CVMFS_TIMEOUT_DIRECT=1", "CVMFS_BACKOFF_INIT=0", "CVMFS_DNS_TIMEOUT=1"];

impl Getter {
    pub fn new(servers: &str, proxies: &str, options: &[&str]) -> Getter {
        let cache = tempfile::tempdir().unwrap();
        let flags = Flags {
            server_url: Some(servers.into()),
            public_keys: vec!["/nonexistent.pub".into()],
            cache: Some(cache.path().join("cache")),
            proxy: Some(proxies.into()),
            options: QUICK.iter().chain(options).map(|option| (*option).to_owned()).collect(),
            ..Flags::default()
        };
        let config = Config::load("network.example.org", Path::new("/nonexistent"), &flags).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let stats = Arc::new(Stats::default());
        let objects = Objects::new(&config, runtime.handle(), &stats).unwrap();
        Getter { objects, stats, cache, _runtime: runtime }
    }

    /// Content of an object.
    pub fn get(&self, object: &Object) -> Result<Vec<u8>, Arc<FetchError>> {
        let file = self.objects.fetch(&object.want())?;
        let mut content = vec![0; object.plain.len()];
        std::os::unix::fs::FileExt::read_exact_at(&*file, &mut content, 0).unwrap();
        Ok(content)
    }

    /// Gets an object and compares it.
    pub fn gets(&self, object: &Object) {
        assert!(self.get(object).unwrap() == object.plain, "other content than was served");
    }

    /// What is said when an object cannot be had. Nothing of it is left in the cache.
    pub fn refuses(&self, object: &Object) -> String {
        let said = self.get(object).unwrap_err().to_string();
        assert!(self.objects.cached(&object.want()).is_none());
        assert_eq!(self.unfinished(), 0);
        said
    }

    /// Files that downloads have left behind.
    pub fn unfinished(&self) -> usize {
        let entries = |path: &Path| std::fs::read_dir(path).into_iter().flatten().map(|entry| entry.unwrap());
        let buckets = entries(&self.cache.path().join("cache")).filter(|entry| entry.file_name().len() == 2);
        let files = buckets.flat_map(|bucket| entries(&bucket.path()));
        files.filter(|file| file.file_name().to_string_lossy().starts_with(".object")).count()
    }

    /// Server that the next request goes to.
    pub fn host(&self) -> String {
        self.objects.transport().routes().current(Instant::now()).host.to_string()
    }

    /// Proxy that the next request goes to.
    pub fn proxy(&self) -> String {
        self.objects.transport().routes().current(Instant::now()).proxy_name().to_owned()
    }
}
