//! The S3 server of the tests, for scenarios: `s3-server PORT DIRECTORY ACCESS_KEY SECRET_KEY`. Each directory in
//! DIRECTORY is a bucket. Writes whose condition did not hold are lines of its output. While DIRECTORY has a file `slow`,
//! manifests are written a second late: time for somebody else.

#[allow(missing_docs, reason = "a part of a test")]
#[path = "../tests/s3/server.rs"]
mod server;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::{self, Next};
use axum::response::Response;

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [port, root, access_key, secret_key] = &arguments[..] else {
        eprintln!("usage: s3-server PORT DIRECTORY ACCESS_KEY SECRET_KEY");
        std::process::exit(2);
    };
    let router = server::router(Path::new(root), access_key, secret_key, Arc::default());
    let slow = Path::new(root).join("slow");
    let listener = tokio::net::TcpListener::bind(format!("127.0.0.1:{port}")).await.expect("a free port");
    server::serve(listener, router.layer(middleware::from_fn_with_state(slow, late))).await;
}

async fn late(State(slow): State<PathBuf>, request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    if request.method() == Method::PUT && path.ends_with(".cvmfspublished") && slow.exists() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let answer = next.run(request).await;
    if answer.status() == StatusCode::PRECONDITION_FAILED {
        println!("overtaken {path}");
    }
    answer
}
