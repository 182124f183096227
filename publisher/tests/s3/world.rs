//! A server of its own for each test, and stores that use it.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use cvmfs::hash::{Algorithm, ContentHash, ObjectId, ObjectKind};
use publisher::storage::s3::S3Store;
use publisher::storage::{S3Access, S3Settings, Secret};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::server::{self, Controls};

pub const BUCKET: &str = "cvmfs";
pub const PREFIX: &str = "images.example.org";
pub const ACCESS_KEY: &str = "publisher";
pub const SECRET_KEY: &str = "only for tests";

/// A running server.
pub struct World {
    pub controls: Arc<Controls>,
    pub address: SocketAddr,
    // Stopped before its directory goes.
    _runtime: Runtime,
    directory: TempDir,
}

impl World {
    pub fn new() -> World {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join(BUCKET)).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let controls = Arc::<Controls>::default();
        let router = server::router(directory.path(), ACCESS_KEY, SECRET_KEY, controls.clone());
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(server::serve(listener, router));
        World { controls, address, _runtime: runtime, directory }
    }

    /// Settings with which everything works; quick to give up.
    pub fn settings(&self) -> S3Settings {
        S3Settings {
            bucket: BUCKET.to_owned(),
            prefix: PREFIX.to_owned(),
            access: S3Access::Configured {
                endpoint: format!("http://{}", self.address),
                virtual_hosted: false,
                region: "us-east-1".to_owned(),
                access_key: ACCESS_KEY.to_owned(),
                secret_key: Secret::new(SECRET_KEY),
            },
            connections: 16,
            retries: 3,
            timeout: Duration::from_secs(10),
            peek: true,
            acl: None,
            proxy: None,
        }
    }

    pub fn store(&self) -> S3Store {
        S3Store::open(&self.settings()).unwrap()
    }

    /// The file of the server behind a path below the root of the repository.
    pub fn file(&self, path: &str) -> PathBuf {
        self.directory.path().join(BUCKET).join(PREFIX).join(path)
    }

    /// Leaves the server without a bucket.
    pub fn remove_bucket(&self) {
        fs::remove_dir(self.directory.path().join(BUCKET)).unwrap();
    }

    /// Runs the publisher's program against the server, as an operator would.
    pub fn program(&self, home: &Path, arguments: &[&str]) -> Output {
        program(self.address, home, arguments)
    }
}

/// The same where only the server's address is at hand.
pub fn program(address: SocketAddr, home: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cvmfs-publisher"))
        .args(["--storage", &format!("s3://{BUCKET}/{PREFIX}")])
        .args(["--keys", "keys", "--state", "state"])
        .args(arguments)
        .current_dir(home)
        .env("AWS_ENDPOINT_URL", format!("http://{address}"))
        .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        .env("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
        .output()
        .unwrap()
}

/// Content that does not repeat, and the name of its object.
pub fn object(seed: u64, size: usize) -> (ObjectId, Vec<u8>) {
    let mut random = fastrand::Rng::with_seed(seed);
    let bytes: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(size).collect();
    (ContentHash::of(Algorithm::Sha1, &bytes).object(ObjectKind::File), bytes)
}
