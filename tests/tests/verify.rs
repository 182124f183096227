//! `verify` finds every way in which a published image can differ from the image, and nothing else.

use std::collections::BTreeSet;
use std::sync::Arc;

use clap::Parser as _;
use cvmfs::entry::{Entry, FileType};
use cvmfs::hash::ObjectKind;
use cvmfs::object::{Codec, Encoder};
use cvmfs::path::RepoPath;
use cvmfs::store::put_content;
use cvmfs::transaction::Transaction;
use image::digest::ChainId;
use publisher::cli::{Cli, Command};
use publisher::config::Config;
use publisher::error::{CommandError, ExitStatus};
use publisher::podman::InStore;
use publisher::progress::Silent;
use publisher::report::Outcome::Added;
use publisher::target::Target;
use publisher::verify::{Kind, Options, Origin, Report, Verifier, run};
use registry::testing::TestRegistry;
use scenarios::image_builder::{
    Format, Image, Kind as Special, Layer, Packing, Pushed, dir, file, hardlink, index_entry, media, noise, opaque,
    push_index, special, symlink, whiteout,
};
use scenarios::repository::{Site, assert_outcome, flat_path, layer_path, public, wish};
use time::UtcDateTime;

/// Everything that rows can hold, in layers that depend on each other.
fn eventful() -> Image {
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let long = "n".repeat(255);
    let deep = vec!["directory-of-a-long-path"; 100].join("/");
    Image::of(&[
        &[
            dir("etc").mode(0o755),
            file("etc/kept", "kept"),
            file("etc/old", "old"),
            file("etc/secret", "s").mode(0o600).owner(0, 42),
            dir("bin"),
            file("bin/su", "su").mode(0o4755),
            file("bin/ping", "ping").xattr("security.capability", capability),
            file("bin/one", "linked"),
            hardlink("bin/two", "bin/one"),
            hardlink("three", "bin/one"),
            dir("covered"),
            file("covered/old", "x"),
            symlink("lib", "usr/lib"),
            special("dev/null", Special::Char(1, 3)),
            special("dev/pipe", Special::Fifo),
            file(long, "long"),
            file(format!("{deep}/leaf"), "deep"),
        ],
        &[
            whiteout("etc/old"),
            opaque("covered"),
            file("covered/new", "new").mtime(-7),
            hardlink("etc/link-below", "etc/kept"),
            file("unlisted/parent", "implicit directory"),
        ],
    ])
}

fn options() -> Options {
    let limits = scenarios::repository::options_of_tests().limits;
    Options { data: false, offline: false, from: None, credentials: None, show: 20, limits }
}

#[track_caller]
fn verify(site: &Site, name: &str, options: &Options) -> Report {
    let target = Target::open(&site.target.fqrn, site.target.paths.clone()).unwrap();
    let verifier = Verifier::new(target).unwrap();
    verifier.verify(name, &site.converter().sources, options, &Silent).unwrap().0
}

#[track_caller]
fn assert_same(report: &Report) {
    assert!(report.same, "{}", report.to_text());
}

fn kinds(report: &Report) -> BTreeSet<Kind> {
    report.images.iter().flat_map(|image| image.counts.keys().copied()).collect()
}

fn edit(site: &Site, edit: impl FnOnce(&mut Transaction)) {
    let target = &site.target;
    let lock = target.lock().unwrap();
    let mut transaction = target.begin(&lock, UtcDateTime::now()).unwrap();
    edit(&mut transaction);
    target.commit(transaction).unwrap();
}

fn path(text: &str) -> RepoPath {
    RepoPath::parse(format!("/{}", text.trim_start_matches('/'))).unwrap()
}

#[test]
fn a_sound_image_has_no_differences() {
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    let mut image = eventful();
    image.layers.push(Layer::new(&[file("big", noise(3, 20 << 20)), hardlink("same", "big")], Packing::Gzip));
    image.push(&registry, "lab/x", "1");
    let wish = wish(&registry, "lab/x:1");
    assert_outcome(&site.convert(std::slice::from_ref(&wish)).wishes[0], Added);
    let (revision, objects) = (site.revision(), site.stored_objects());
    registry.forget_requests();
    let report = verify(&site, &wish, &options());
    assert_same(&report);
    assert_eq!(report.images[0].origin, Origin::Registry);
    assert!(report.images[0].notes.is_empty(), "{:?}", report.images[0].notes);
    assert!(report.images[0].rows > 200, "{}", report.images[0].rows);
    assert_eq!(registry.count("GET", "/blobs/"), 3, "each layer is fetched once, the config is in the repository");
    let data = verify(&site, &public(&registry, "lab/x:1"), &Options { data: true, ..options() });
    assert_same(&data);
    assert!(data.images[0].bytes > 20 << 20, "{}", data.images[0].bytes);
    registry.forget_requests();
    let offline = verify(&site, &wish, &Options { offline: true, data: true, ..options() });
    assert_same(&offline);
    assert_eq!(offline.images[0].origin, Origin::Repository);
    assert!(registry.requests().is_empty());
    assert_eq!((site.revision(), site.stored_objects()), (revision, objects), "nothing is written");
}

#[test]
fn the_published_image_is_verified_when_its_tag_has_moved_or_its_registry_is_gone() {
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    Image::of(&[&[file("f", "old")]]).push(&registry, "lab/x", "1");
    let wish = wish(&registry, "lab/x:1");
    site.convert(std::slice::from_ref(&wish));
    let new = Image::of(&[&[file("f", "new")]]).push(&registry, "lab/x", "1");
    let report = verify(&site, &wish, &options());
    assert_same(&report);
    assert!(report.images[0].notes[0].ends_with(&format!("leads to {} now", new.manifest)), "{report:?}");
    drop(registry);
    let report = verify(&site, &wish, &options());
    assert_same(&report);
    assert_eq!((report.images[0].origin, report.images[0].notes.len()), (Origin::Repository, 2), "{report:?}");
}

#[test]
fn permissions_opened_for_everybody_are_a_policy_and_no_difference() {
    let (registry, mut site) = (TestRegistry::spawn(), Site::new());
    eventful().push(&registry, "lab/x", "1");
    site.options.permissions = publisher::cli::FlatPermissions::Readable;
    let wish = wish(&registry, "lab/x:1");
    site.convert(std::slice::from_ref(&wish));
    assert_same(&verify(&site, &wish, &options()));
}

#[test]
fn objects_of_another_compressor_are_no_difference() {
    let (registry, mut site) = (TestRegistry::spawn(), Site::new());
    eventful().push(&registry, "lab/x", "1");
    site.target.codec = Codec::Zlib { level: 1 };
    let wish = wish(&registry, "lab/x:1");
    site.convert(std::slice::from_ref(&wish));
    assert_same(&verify(&site, &wish, &options()));
}

#[test]
fn a_layer_that_stands_on_other_layers_is_compared_where_it_belongs() {
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    let upper = &[hardlink("copy", "f")][..];
    Image::of(&[&[file("f", "one")], upper]).push(&registry, "lab/x", "1");
    Image::of(&[&[file("f", "two")], upper]).push(&registry, "lab/x", "2");
    let wishes = ["lab/x:1", "lab/x:2"].map(|name| wish(&registry, name));
    // Published side by side either could be ready first, and the layer is that of the first.
    site.convert(&wishes[..1]);
    site.convert(&wishes);
    let reports = wishes.each_ref().map(|wish| verify(&site, wish, &options()));
    reports.iter().for_each(assert_same);
    assert_eq!(reports.map(|r| r.images[0].notes.len()), [0, 1]);
}

#[test]
fn an_image_that_is_not_published_is_an_error() {
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    let verifier = Verifier::new(Target::open(&site.target.fqrn, site.target.paths.clone()).unwrap()).unwrap();
    let wish = wish(&registry, "lab/x:1");
    let error = verifier.verify(&wish, &site.converter().sources, &options(), &Silent).unwrap_err();
    assert!(error.to_string().contains("no published image"), "{error}");
}

/// A published image, and what belongs to it.
struct World {
    registry: TestRegistry,
    site: Site,
    pushed: Pushed,
    layer: String,
    flat: String,
    records: String,
    link: String,
}

impl World {
    fn new() -> World {
        let (registry, mut site) = (TestRegistry::spawn(), Site::new());
        site.options.in_store = InStore::All;
        let amd = eventful().push_untagged(&registry, "lab/x");
        push_index(&registry, "lab/x", "1", Format::Oci, &[index_entry(&amd, media::OCI_MANIFEST, "linux/amd64")]);
        assert_outcome(&site.convert(&[wish(&registry, "lab/x:1")]).wishes[0], Added);
        let link = public(&registry, "lab/x:1");
        World {
            layer: format!("{}/layerfs", layer_path(amd.layers[0])),
            flat: flat_path(amd.config),
            records: format!(".metadata/{link}"),
            registry,
            site,
            pushed: amd,
            link,
        }
    }
}

type Change<'a> = Box<dyn Fn(&Site, &mut Transaction) + 'a>;

/// Changes the entry at a path.
fn change<'a>(at: String, how: impl Fn(&mut Entry) + 'a) -> Change<'a> {
    Box::new(move |_, transaction| {
        let at = path(&at);
        let mut entry = transaction.lookup(&at).unwrap().unwrap_or_else(|| panic!("no {at}"));
        let chunks = transaction.chunks(&at).unwrap();
        how(&mut entry);
        transaction.put(&at, entry, &chunks).unwrap();
    })
}

/// Replaces the bytes of a file.
fn rewrite<'a>(at: String, bytes: &'a [u8]) -> Change<'a> {
    Box::new(move |site, transaction| {
        let at = path(&at);
        let mut encoder = Encoder::new(cvmfs::hash::Algorithm::Sha1, Codec::default());
        let (hash, _) = put_content(&*site.target.store, &mut encoder, ObjectKind::File, bytes).unwrap();
        let entry = transaction.lookup(&at).unwrap().unwrap_or_else(|| panic!("no {at}"));
        let changed = Entry { content: Some(hash), size: bytes.len() as u64, ..entry };
        transaction.put(&at, changed, &[]).unwrap();
    })
}

fn remove<'a>(at: String) -> Change<'a> {
    Box::new(move |_, transaction| {
        assert!(transaction.lookup(&path(&at)).unwrap().is_some(), "no {at}");
        transaction.remove(&path(&at)).unwrap();
    })
}

type Damage<'a> = (&'a str, Vec<Kind>, Change<'a>);

/// Does each damage to a copy, and fails unless it is found by its name alone and then converted again.
#[track_caller]
fn assert_found(world: &World, damages: Vec<Damage<'_>>) {
    assert_same(&verify(&world.site, &world.link, &options()));
    for (name, expected, change) in damages {
        let site = world.site.fork();
        edit(&site, |transaction| change(&site, transaction));
        let report = verify(&site, &world.link, &options());
        assert_eq!(kinds(&report), expected.into_iter().collect(), "{name}:\n{}", report.to_text());
        mend(&site, world, name);
    }
}

fn at(tree: &str, name: &str) -> String {
    format!("{tree}/{name}")
}

#[test]
fn every_damage_of_rows_is_found_by_its_name_and_converted_again() {
    let world = World::new();
    let mut damages: Vec<Damage<'_>> = Vec::new();
    for tree in [&world.layer, &world.flat] {
        damages.extend([
            ("mode", vec![Kind::Mode], change(at(tree, "bin/su"), |e| e.mode &= !0o4000)),
            ("owner", vec![Kind::Owner], change(at(tree, "etc/secret"), |e| e.gid = 0)),
            ("time", vec![Kind::Mtime], change(at(tree, "etc"), |e| e.mtime += 1)),
            ("xattr", vec![Kind::Xattr], change(at(tree, "bin/ping"), |e| e.xattrs = None)),
            ("link", vec![Kind::LinkTarget], change(at(tree, "lib"), |e| e.symlink = b"usr/lib64".to_vec())),
            ("device", vec![Kind::Device], change(at(tree, "dev/null"), |e| e.size += 1)),
            (
                "type",
                vec![Kind::Type],
                change(at(tree, "dev/pipe"), |e| e.mode = FileType::Socket.mode_bits() | e.mode & 0o7777),
            ),
            ("size", vec![Kind::Size], rewrite(at(tree, "etc/kept"), b"kept longer")),
            ("content", vec![Kind::Content], rewrite(at(tree, "etc/kept"), b"KEPT")),
            ("missing", vec![Kind::Missing], remove(at(tree, "etc/secret"))),
            (
                "extra",
                vec![Kind::Extra],
                Box::new(move |_, t| {
                    let entry = t.lookup(&path(&at(tree, "etc/kept"))).unwrap().unwrap();
                    t.put(&path(&at(tree, "etc/more")), entry, &[]).unwrap();
                }),
            ),
            (
                "no hard link",
                vec![Kind::HardLink],
                Box::new(move |_, t| {
                    for name in ["bin/one", "bin/two"] {
                        let entry = t.lookup(&path(&at(tree, name))).unwrap().unwrap();
                        t.put(&path(&at(tree, name)), Entry { links: 1, link_group: 0, ..entry }, &[]).unwrap();
                    }
                }),
            ),
        ]);
    }
    assert_found(&world, damages);
}

#[test]
fn every_damage_of_records_is_found_by_its_name_and_converted_again() {
    let world = World::new();
    let World { layer: _, flat, records, link, pushed, .. } = &world;
    let bucketed = |top: &str, hex: &str| format!("{top}/{}/{hex}", &hex[..2]);
    let diff_id = bucketed(".index/diff-id", &pushed.diff_ids[0].hex());
    let chain_id = bucketed(".index/chain-id", &ChainId::stack(&pushed.diff_ids)[1].hex());
    let config = bucketed(".index/config", &pushed.config.hex());
    let document = bucketed(".index/manifest", &pushed.manifest.hex());
    let lower = layer_path(pushed.layers[0]);
    let damages: Vec<Damage<'_>> = vec![
        ("no flat", vec![Kind::Flat], remove(flat.clone())),
        ("no layer", vec![Kind::Index, Kind::Layer], remove(lower.clone())),
        ("layers.json", vec![Kind::Index, Kind::Record], rewrite(at(&lower, ".metadata/layers.json"), b"[]")),
        ("format.json", vec![Kind::Record], rewrite(at(&lower, ".metadata/format.json"), b"{\"schema\":1}")),
        ("no link", vec![Kind::PublicLink], remove(link.clone())),
        (
            "other link",
            vec![Kind::PublicLink],
            change(link.clone(), |e| e.symlink = format!("../../.flat/00/{}", "0".repeat(64)).into_bytes()),
        ),
        ("manifest.json", vec![Kind::Record], rewrite(at(records, "manifest.json"), b"{}")),
        ("image-manifest.json", vec![Kind::Record], rewrite(at(records, "image-manifest.json"), b"{}")),
        ("config.json", vec![Kind::Record], remove(at(records, "config.json"))),
        ("status.json", vec![Kind::Record], rewrite(at(records, "status.json"), b"{}")),
        ("no diff ID", vec![Kind::Index], remove(diff_id)),
        (
            "other chain",
            vec![Kind::Index],
            change(chain_id, |e| e.symlink = format!("../../../{}", layer_path(pushed.layers[0])).into_bytes()),
        ),
        ("config in the index", vec![Kind::Index], rewrite(config, b"{}")),
        ("manifest in the index", vec![Kind::Index], remove(document)),
        (
            "podman",
            vec![Kind::Podman],
            rewrite(format!("podmanStore/overlay-images/{}/manifest", pushed.config.hex()), b"{}"),
        ),
    ];
    assert_found(&world, damages);
}

/// Runs `verify --fix`.
#[track_caller]
fn mend(site: &Site, world: &World, what: &str) {
    let platform = ["--platform", "linux/amd64"];
    let line = [
        "cvmfs-publisher",
        "--progress",
        "none",
        "verify",
        &wish(&world.registry, "lab/x:1"),
        &site.target.fqrn,
        "--fix",
    ];
    let cli = Cli::try_parse_from(line.into_iter().chain(platform)).unwrap();
    let Command::Verify(arguments) = cli.command else { panic!("not verify") };
    let before = site.revision();
    let open = || Target::open(&site.target.fqrn, site.target.paths.clone()).map_err(CommandError::repository);
    let status = run(&arguments, &open, &Config::default(), true, Arc::new(Silent)).unwrap();
    assert_eq!(status, ExitStatus::Success, "{what}");
    assert_eq!(site.revision(), before + 1, "{what}: one publish");
    site.assert_sound();
}

#[test]
fn damaged_bytes_are_found_when_they_are_read() {
    let world = World::new();
    let World { site, layer, link, .. } = &world;
    let mut view = site.target.view(UtcDateTime::now()).unwrap();
    let entry = view.lookup(&path(&format!("{layer}/etc/secret"))).unwrap().unwrap();
    let object = site.storage().join(entry.content.unwrap().object(ObjectKind::File).path());
    for bytes in [Some(&b"damaged"[..]), None] {
        match bytes {
            Some(bytes) => std::fs::write(&object, bytes).unwrap(),
            None => std::fs::remove_file(&object).unwrap(),
        }
        assert_same(&verify(site, link, &options()));
        for offline in [false, true] {
            let report = verify(site, link, &Options { data: true, offline, ..options() });
            assert_eq!(kinds(&report), [Kind::Object].into(), "{}", report.to_text());
            assert!(report.images[0].differences[0].place.ends_with("etc/secret"));
        }
    }
}

#[test]
fn offline_the_flat_is_compared_with_the_layers() {
    let world = World::new();
    let offline = Options { offline: true, ..options() };
    for (tree, name) in [(&world.layer, "layer"), (&world.flat, "flat")] {
        let site = world.site.fork();
        edit(&site, |t| change(format!("{tree}/bin/su"), |e| e.mode = FileType::Regular.mode_bits() | 0o600)(&site, t));
        let report = verify(&site, &world.link, &offline);
        assert!(!report.same, "{name}: {}", report.to_text());
    }
}
