//! A web server for a directory that does as it is told: it delays, cuts, lies, and notes what it sent.

use std::fs;
use std::io::{BufRead as _, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// How a request is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// With the file, or 404.
    Serve,
    /// With this status.
    Status(u16),
    /// With other bytes of the same length.
    Flip,
    /// With these bytes.
    Send(Vec<u8>),
    /// The length is promised, half of it comes.
    Cut,
    /// Half of the length is promised and comes.
    Short,
    /// The file, and then more of the same without end.
    Endless,
    /// Not at all, until the server stops.
    Hang,
}

type Rule = dyn Fn(&str, usize) -> Act + Send + Sync;

struct Shared {
    root: PathBuf,
    rule: Mutex<Box<Rule>>,
    requests: AtomicUsize,
    log: Mutex<Vec<(String, u64)>>,
    stop: AtomicBool,
}

/// A running server; stops when dropped.
pub struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Server {
    /// Serves the files below `root` as `/cvmfs/…`.
    pub fn start(root: &Path) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            root: root.to_owned(),
            rule: Mutex::new(Box::new(|_, _| Act::Serve)),
            requests: AtomicUsize::new(0),
            log: Mutex::default(),
            stop: AtomicBool::new(false),
        });
        let server = Server { address, shared: shared.clone() };
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if shared.stop.load(Ordering::SeqCst) {
                    break;
                }
                let shared = shared.clone();
                // Whoever hangs up in the middle ends the thread.
                thread::spawn(move || drop(connection(&shared, stream)));
            }
        });
        server
    }

    pub fn url(&self, fqrn: &str) -> String {
        format!("http://{}/cvmfs/{fqrn}", self.address)
    }

    /// From now on requests (path below the repository, number since this call) are answered as `rule` says.
    pub fn rule(&self, rule: impl Fn(&str, usize) -> Act + Send + Sync + 'static) {
        *self.shared.rule.lock().unwrap() = Box::new(rule);
        self.shared.requests.store(0, Ordering::SeqCst);
        self.shared.log.lock().unwrap().clear();
    }

    /// Requests since the last rule.
    pub fn requests(&self) -> usize {
        self.shared.requests.load(Ordering::SeqCst)
    }

    /// Paths below the repository that were asked for since the last rule, with the bytes that were sent.
    pub fn log(&self) -> Vec<(String, u64)> {
        self.shared.log.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
    }
}

fn connection(shared: &Shared, stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut out = stream.try_clone()?;
    let mut lines = BufReader::new(stream).lines();
    loop {
        let Some(first) = lines.next().transpose()? else { return Ok(()) };
        while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
        let path = first.split(' ').nth(1).unwrap_or_default();
        let path = path.strip_prefix("/cvmfs/").unwrap_or(path).to_owned();
        let below = path.split_once('/').map_or("", |(_, below)| below).to_owned();
        let number = shared.requests.fetch_add(1, Ordering::SeqCst) + 1;
        let act = shared.rule.lock().unwrap()(&below, number);
        let file = fs::read(shared.root.join(&path));
        let mut head = |status: u16, length: Option<usize>| {
            let length = length.map(|l| format!("Content-Length: {l}\r\n")).unwrap_or_default();
            write!(out, "HTTP/1.1 {status} X\r\n{length}\r\n")
        };
        let body = match (act.clone(), file) {
            (Act::Status(status), _) => {
                head(status, Some(0))?;
                Vec::new()
            }
            (Act::Hang, _) => {
                while !shared.stop.load(Ordering::SeqCst) {
                    thread::sleep(Duration::from_millis(5));
                }
                return Ok(());
            }
            (Act::Send(bytes), _) => {
                head(200, Some(bytes.len()))?;
                bytes
            }
            (_, Err(_)) => {
                head(404, Some(0))?;
                Vec::new()
            }
            (Act::Serve, Ok(bytes)) => {
                head(200, Some(bytes.len()))?;
                bytes
            }
            (Act::Flip, Ok(mut bytes)) => {
                head(200, Some(bytes.len()))?;
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
                bytes
            }
            (Act::Cut, Ok(bytes)) => {
                head(200, Some(bytes.len()))?;
                bytes[..bytes.len() / 2].to_vec()
            }
            (Act::Short, Ok(bytes)) => {
                head(200, Some(bytes.len() / 2))?;
                bytes[..bytes.len() / 2].to_vec()
            }
            (Act::Endless, Ok(bytes)) => {
                head(200, None)?;
                bytes
            }
        };
        shared.log.lock().unwrap().push((below, body.len() as u64));
        out.write_all(&body)?;
        match act {
            Act::Cut => return Ok(()),
            Act::Endless => loop {
                out.write_all(&[0x5a; 65536])?;
            },
            _ => {}
        }
    }
}
