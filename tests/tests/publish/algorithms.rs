//! Repositories of every hash algorithm.

use cvmfs::hash::Algorithm;
use publisher::report::Outcome::{Added, Unchanged};
use registry::testing::TestRegistry;
use scenarios::image_builder::{Image, Kind, dir, file, hardlink, noise, special, symlink, whiteout};
use scenarios::mounted::{self, Mounted};
use scenarios::naive;
use scenarios::repository::{Site, assert_flat, assert_outcome, outcomes, wish};
use scenarios::tree::assert_same;

#[test]
fn a_sha1_repository_is_sound_and_mounts_as_published() {
    publish_and_mount(Algorithm::Sha1);
}

#[test]
fn a_ripemd160_repository_is_sound_and_mounts_as_published() {
    publish_and_mount(Algorithm::Rmd160);
}

#[test]
fn a_shake128_repository_is_sound_and_mounts_as_published() {
    publish_and_mount(Algorithm::Shake128);
}

fn publish_and_mount(algorithm: Algorithm) {
    if !mounted::is_possible() {
        return;
    }
    let base = [
        dir("bin"),
        file("bin/sh", "shell").mode(0o4755).xattr("user.note", "kept"),
        hardlink("bin/ash", "bin/sh"),
        file("empty", ""),
        file("large", noise(3, 17 << 20)).owner(1000, 100),
        symlink("link", "bin/sh"),
        special("pipe", Kind::Fifo),
        dir("gone"),
        file("gone/x", "x"),
    ];
    let upper = [whiteout("gone"), file("bin/new", "new")];
    let (registry, site) = (TestRegistry::spawn(), Site::with_algorithm(algorithm));
    let pushed = Image::of(&[&base, &upper]).push(&registry, "lab/x", "1");
    let wishes = [wish(&registry, "lab/x:1")];
    assert_outcome(&site.convert(&wishes).wishes[0], Added);
    site.assert_sound();
    assert_flat(&site, pushed.config, &naive::unpack([&base[..], &upper]), algorithm.name());

    let objects = site.stored_objects();
    // The letter of its kind is the last thing in the name of an object.
    let named = |name: &&String| name[40..].trim_end_matches(['C', 'H', 'X', 'M', 'P']) == algorithm.id();
    assert_eq!(objects.iter().filter(named).count(), objects.len(), "{objects:?}");
    assert!(objects.iter().filter(|name| name.ends_with('P')).count() > 1, "there are chunks");

    let mount = Mounted::new(&site);
    assert_same(&mount.tree(), &site.tree(""), algorithm.name());
    drop(mount);
    // The next run finds its way in names of this kind too.
    let site = site.reopened();
    assert_eq!(outcomes(&site.convert(&wishes)), [Unchanged]);
}
