//! A stratum 0 whose storage is in a bucket, as `mkfs -w … -s s3.conf` makes it.

use std::fs;

use cvmfs::hash::ContentHash;
use cvmfs::manifest::Manifest;
use cvmfs::store::names;

use super::s3::{ACCESS_KEY, BUCKET, PREFIX, SECRET_KEY, World};
use super::stock::{CLIENT_LOCAL, Stock};

#[test]
fn a_stratum_0_in_a_bucket_is_published_into_and_its_spool_kept_up() {
    let (server, stock) = (World::new(), Stock::new("updates-r4", ""));
    for (path, content) in stock.files() {
        let file = server.file(&path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, content).unwrap();
    }
    // Nothing may be found but in the bucket.
    fs::remove_dir_all(&stock.storage).unwrap();
    let s3 = stock.etc.join("s3.conf");
    let (host, port) = (server.address.ip(), server.address.port());
    let access =
        format!("CVMFS_S3_ACCESS_KEY={ACCESS_KEY}\nCVMFS_S3_SECRET_KEY='{SECRET_KEY}'\nCVMFS_S3_BUCKET={BUCKET}\n");
    let place =
        format!("CVMFS_S3_HOST={host}\nCVMFS_S3_PORT={port}\nCVMFS_S3_REGION=us-east-1\nCVMFS_S3_DNS_BUCKETS=false\n");
    fs::write(&s3, access + &place).unwrap();
    stock.configure(&format!("CVMFS_UPSTREAM_STORAGE=S3,/tmp,{PREFIX}@{}", s3.display()));

    stock.ingest("new", &[("a", b"new content")]).ok();
    let manifest = Manifest::parse(&fs::read(server.file(names::MANIFEST)).unwrap()).unwrap();
    assert_eq!(manifest.revision, 5);
    let reflog = fs::read(server.file(names::REFLOG)).unwrap();
    let hash = ContentHash::of(manifest.root_catalog.algorithm, &reflog);
    assert_eq!(manifest.reflog, Some(hash));
    let spool = stock.spool_files();
    assert_eq!(spool["reflog.chksum"], hash.to_string());
    assert_eq!(spool["client.local"], format!("CVMFS_ROOT_HASH={}\n{CLIENT_LOCAL}", manifest.root_catalog));
    stock.assert_sound();

    fs::write(stock.spool.join("in_transaction.lock"), "").unwrap();
    stock.ingest("more", &[("a", b"more content")]).refused(4, "cvmfs_server abort");
    let message = stock.run(&["serve", &stock.fqrn]).stderr;
    assert!(!message.contains(SECRET_KEY), "{message}");
}
