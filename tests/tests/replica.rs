//! A copy made by `replicate` is the repository: it mounts with the same tree, and follows it.

use std::net::SocketAddr;

use publisher::progress::Silent;
use publisher::replicate::{Options, Patience, Replicated, replicate};
use publisher::serve::Server;
use registry::testing::TestRegistry;
use scenarios::image_builder::{Image, dir, file, hardlink, noise, symlink};
use scenarios::mounted::{self, Mounted};
use scenarios::repository::{FQRN, Site, wish};
use scenarios::tree::assert_same;

/// Copies the repository of `site` into `copy`.
fn copied(site: &Site, copy: &std::path::Path) -> Replicated {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let server = runtime.block_on(Server::bind(FQRN, &site.storage(), any)).unwrap();
    let url = format!("http://{}/cvmfs/{FQRN}", server.address());
    runtime.spawn(server.run(std::future::pending()));
    let options = Options {
        url: url.parse().unwrap(),
        directory: copy.join("repository"),
        fqrn: FQRN.to_owned(),
        master_keys: vec![site.target.master.clone()],
        blacklist: Default::default(),
        reflog_checksum: copy.join("state/reflog.chksum"),
        connections: 4,
        proxy: None,
        patience: Patience::default(),
    };
    replicate(&options, &Silent).unwrap()
}

#[test]
fn a_copy_mounts_as_the_repository_does_and_follows_it() {
    if !mounted::is_possible() {
        return;
    }
    let (registry, site, home) = (TestRegistry::spawn(), Site::new(), tempfile::tempdir().unwrap());
    let key = site.target.paths.keys.join(format!("{FQRN}.pub"));
    let storage = home.path().join("repository");
    let first = [
        dir("bin"),
        file("bin/sh", "shell").mode(0o4755),
        hardlink("bin/ash", "bin/sh"),
        symlink("link", "bin/sh"),
        file("large", noise(5, 17 << 20)),
    ];
    Image::of(&[&first]).push(&registry, "lab/x", "1");
    site.convert(&[wish(&registry, "lab/x:1")]);
    let all = copied(&site, home.path());
    assert_same(&Mounted::at(&storage, &key).tree(), &site.tree(""), "the first copy");

    Image::of(&[&first, &[file("added", "more")]]).push(&registry, "lab/x", "2");
    site.convert(&[wish(&registry, "lab/x:2")]);
    let more = copied(&site, home.path());
    assert_same(&Mounted::at(&storage, &key).tree(), &site.tree(""), "after one more image");
    assert!(more.received * 10 < all.received, "{} after {}", more.received, all.received);
    let nothing = copied(&site, home.path());
    assert_eq!((nothing.stored.objects, nothing.revision), (0, more.revision));
}
