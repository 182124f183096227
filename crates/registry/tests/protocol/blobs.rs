//! Streams of blobs over lines that fail.

use std::time::Duration;

use image::digest::Digest;
use image::reference::Repository;
use registry::testing::{Fault, TestRegistry};
use registry::{Client, ClientConfig, Error, RetryPolicy};
use tokio::io::AsyncReadExt;

use super::{client, noise, quick};

/// A registry with one blob.
fn with_blob(bytes: &[u8]) -> (TestRegistry, Repository, Digest) {
    let server = TestRegistry::spawn();
    let digest = server.put_blob(bytes.to_vec());
    let repository = server.reference("lab/x:1").repository().clone();
    (server, repository, digest)
}

/// All that the reader hands out, and how it ends.
async fn read(client: &Client, repository: &Repository, digest: Digest, size: u64) -> (Vec<u8>, Result<(), Error>) {
    let mut bytes = Vec::new();
    match client.blob(repository, digest, size).await {
        Err(error) => (bytes, Err(error)),
        Ok(mut reader) => match reader.read_to_end(&mut bytes).await {
            Ok(_) => (bytes, Ok(())),
            Err(error) => {
                assert!(Error::from_io(&error).is_some(), "{error}");
                // never an end after an error
                assert!(reader.read(&mut [0; 8]).await.is_err());
                (bytes, Err(*error.into_inner().unwrap().downcast().unwrap()))
            }
        },
    }
}

#[tokio::test]
async fn hands_out_exactly_the_blob() {
    for size in [0, 1, 100_000] {
        let content = noise(size);
        let (server, repository, digest) = with_blob(&content);
        let (bytes, result) = read(&client(), &repository, digest, size as u64).await;
        result.unwrap();
        assert_eq!(bytes, content);
        assert_eq!(server.requests().len(), usize::from(size > 0));
    }
}

#[tokio::test]
async fn goes_on_where_the_line_was_cut() {
    let content = noise(100_000);
    let (server, repository, digest) = with_blob(&content);
    server.fault(Fault::cut_after(30_000).times(3));
    let (bytes, result) = read(&client(), &repository, digest, 100_000).await;
    result.unwrap();
    assert_eq!(bytes, content);
    let ranges: Vec<_> = server.requests().iter().map(|r| r.header("range").map(str::to_owned)).collect();
    assert_eq!(
        ranges,
        [None, Some("bytes=30000-"), Some("bytes=60000-"), Some("bytes=90000-")].map(|r| r.map(str::to_owned))
    );
}

#[tokio::test]
async fn starts_again_and_skips_where_ranges_are_not_honoured() {
    let content = noise(100_000);
    for fault in [
        Fault::ignore_range().always(),
        Fault::header("content-range", "bytes 7-99999/100000").always(),
        Fault::without_header("content-range").always(),
    ] {
        let (server, repository, digest) = with_blob(&content);
        server.fault(Fault::cut_after(30_000));
        server.fault(fault.clone());
        let (bytes, result) = read(&client(), &repository, digest, 100_000).await;
        result.unwrap();
        assert!(bytes == content, "{fault:?}");
    }
    // 416 for a range that is fine
    let (server, repository, digest) = with_blob(&content);
    server.fault(Fault::cut_after(30_000));
    let client = client();
    let mut reader = client.blob(&repository, digest, 100_000).await.unwrap();
    server.fault(Fault::status(416));
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).await.unwrap();
    assert!(bytes == content);
}

#[tokio::test]
async fn gives_up_after_attempts_without_progress() {
    let content = noise(100_000);
    let (server, repository, digest) = with_blob(&content);
    server.fault(Fault::cut_after(0).always());
    let (bytes, result) = read(&client(), &repository, digest, 100_000).await;
    assert!(matches!(result, Err(Error::Transport { .. })));
    assert!(bytes.is_empty());
    assert_eq!(server.requests().len(), 3);

    // a trickle is no progress
    server.heal();
    server.forget_requests();
    server.fault(Fault::cut_after(10).always());
    let (bytes, result) = read(&client(), &repository, digest, 100_000).await;
    assert!(matches!(result, Err(Error::Transport { .. })));
    assert_eq!((bytes.len(), server.requests().len()), (30, 3));
}

#[tokio::test]
async fn survives_any_number_of_cuts_with_progress() {
    let content = noise(100_000);
    let (server, repository, digest) = with_blob(&content);
    server.fault(Fault::cut_after(5000).always());
    let (bytes, result) = read(&client(), &repository, digest, 100_000).await;
    result.unwrap();
    assert!(bytes == content);
    assert_eq!(server.requests().len(), 20);
}

#[tokio::test]
async fn never_ends_well_with_wrong_content() {
    let content = noise(100_000);
    let (server, repository, digest) = with_blob(&content);
    server.fault(Fault::corrupt());
    let (bytes, result) = read(&client(), &repository, digest, 100_000).await;
    assert!(matches!(result, Err(Error::DigestMismatch { expected, .. }) if expected == digest));
    assert!(bytes.len() < content.len(), "the last part is held back until all is verified");
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn notices_content_that_changes_between_two_attempts() {
    for ignore in [true, false] {
        let content = noise(100_000);
        let (server, repository, digest) = with_blob(&content);
        if ignore {
            server.fault(Fault::ignore_range().always());
        }
        server.fault(Fault::cut_after(60_000));
        let mut reader = client().blob(&repository, digest, 100_000).await.unwrap();
        let mut part = vec![0; 50_000];
        reader.read_exact(&mut part).await.unwrap();
        let mut changed = content.clone();
        changed[80_000] ^= 1;
        server.put_false_blob(digest, changed);
        let error = reader.read_to_end(&mut part).await.unwrap_err();
        assert!(matches!(Error::from_io(&error), Some(Error::DigestMismatch { .. })), "{error}");
    }
}

#[tokio::test]
async fn refuses_a_blob_of_another_length() {
    let content = noise(1000);
    let (server, repository, digest) = with_blob(&content);
    for (size, fault) in [
        (1001, None),
        (999, None),
        (1000, Some(Fault::shorten(1))),
        (999, Some(Fault::without_header("content-length"))),
    ] {
        server.heal();
        server.fault(fault.clone().unwrap_or(Fault::header("x", "y")));
        let (_, result) = read(&client(), &repository, digest, size).await;
        let text = format!("{size} {fault:?}: {result:?}");
        assert!(matches!(result, Err(Error::SizeMismatch { expected, .. }) if expected == size), "{text}");
    }
    assert!(read(&client(), &repository, digest, 0).await.1.is_err());
    assert!(read(&client(), &repository, digest, u64::MAX).await.1.is_err());
}

#[tokio::test]
async fn refuses_content_that_was_encoded_on_the_way() {
    let content = noise(1000);
    let (server, repository, digest) = with_blob(&content);
    server.fault(Fault::header("content-encoding", "gzip"));
    assert!(matches!(read(&client(), &repository, digest, 1000).await.1, Err(Error::Protocol { .. })));
}

#[tokio::test]
async fn resumes_after_busy_answers_and_silence() {
    let content = noise(100_000);
    let (server, repository, digest) = with_blob(&content);
    let config = ClientConfig {
        idle_timeout: Duration::from_millis(300),
        retry: RetryPolicy { attempts: 6, ..quick().retry },
        ..quick()
    };
    let client = Client::new(config).unwrap();
    server.fault(Fault::cut_after(30_000));
    let mut reader = client.blob(&repository, digest, 100_000).await.unwrap();
    server.fault(Fault::status(503));
    let mut bytes = vec![0; 30_000];
    reader.read_exact(&mut bytes).await.unwrap();
    // the rest comes too slowly once
    server.fault(Fault::slow(20_000, Duration::from_millis(600)));
    reader.read_to_end(&mut bytes).await.unwrap();
    assert!(bytes == content);
    assert!(server.requests().len() >= 4, "{}", server.requests().len());
}

#[tokio::test]
async fn a_slow_line_is_not_a_dead_one() {
    let content = noise(1000);
    let (server, repository, digest) = with_blob(&content);
    // two seconds in all, but never silent for long
    server.fault(Fault::slow(50, Duration::from_millis(100)).always());
    let client = Client::new(ClientConfig { idle_timeout: Duration::from_millis(1500), ..quick() }).unwrap();
    let (bytes, result) = read(&client, &repository, digest, 1000).await;
    result.unwrap();
    assert!(bytes == content);
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn resumes_through_a_redirect() {
    let content = noise(100_000);
    let (server, repository, digest) = with_blob(&content);
    let storage = TestRegistry::spawn();
    storage.put_blob(content.clone());
    server.fault(Fault::redirect_to(storage.url()).always());
    storage.fault(Fault::cut_after(40_000));
    let (bytes, result) = read(&client(), &repository, digest, 100_000).await;
    result.unwrap();
    assert!(bytes == content);
    assert_eq!((server.requests().len(), storage.requests().len()), (2, 2));
    assert_eq!(storage.requests()[1].header("range"), Some("bytes=40000-"));
}

#[tokio::test]
async fn many_blobs_stream_while_documents_are_asked_for() {
    let content = noise(300_000);
    let (server, repository, digest) = with_blob(&content);
    let client = Client::new(ClientConfig { requests_per_registry: 2, ..quick() }).unwrap();
    let mut readers = Vec::new();
    for _ in 0..6 {
        readers.push(client.blob(&repository, digest, 300_000).await.unwrap());
    }
    let small = server.put_blob("small");
    assert_eq!(client.blob_bytes(&repository, small).await.unwrap(), "small");
    for reader in &mut readers {
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).await.unwrap();
        assert!(bytes == content);
    }
}
