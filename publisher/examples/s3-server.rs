//! The S3 server of the tests, for scenarios: `s3-server PORT DIRECTORY ACCESS_KEY SECRET_KEY`. Each directory in
//! DIRECTORY is a bucket.

#[allow(missing_docs, reason = "a part of a test")]
#[path = "../tests/s3/server.rs"]
mod server;

use std::path::Path;
use std::sync::Arc;

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [port, root, access_key, secret_key] = &arguments[..] else {
        eprintln!("usage: s3-server PORT DIRECTORY ACCESS_KEY SECRET_KEY");
        std::process::exit(2);
    };
    let router = server::router(Path::new(root), access_key, secret_key, Arc::default());
    let listener = tokio::net::TcpListener::bind(format!("127.0.0.1:{port}")).await.expect("a free port");
    server::serve(listener, router).await;
}
