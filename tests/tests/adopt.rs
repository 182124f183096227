//! Images converted into a stratum 0 of the reference tools, as a conversion finds it by its `server.conf`.

use std::sync::Arc;

use cvmfs::check::{Identity, Options, check};
use cvmfs::hash::{ContentHash, ObjectId, ObjectKind};
use cvmfs::object::Codec;
use cvmfs::scrub::scrub;
use cvmfs::store::names;
use cvmfs::trust::Anchor;
use image::reference::{PublicName, Wish};
use publisher::cli::{Check, Environment, PathOptions, Paths};
use publisher::convert::{Converter, Request};
use publisher::error::ExitStatus;
use publisher::images;
use publisher::progress::{Event, Progress};
use publisher::repair;
use publisher::report::{Outcome, Report};
use publisher::source::Sources;
use publisher::target::Target;
use registry::testing::TestRegistry;
use registry::{Client, ClientConfig};
use scenarios::image_builder::{Image, dir, file, opaque, whiteout};
use scenarios::naive;
use scenarios::repository::{downloads, flat_path, options_of_tests, outcomes, wish};
use scenarios::stock::{CLIENT_LOCAL, Stock, assert_only_added};
use scenarios::takeover;
use scenarios::tree::{self, Tree};
use time::UtcDateTime;

#[derive(Debug)]
struct Silent;

impl Progress for Silent {
    fn event(&self, _: Event<'_>) {}
}

fn open(stock: &Stock) -> Target {
    let environment = Environment { stock: Some(stock.etc.clone()), ..Environment::default() };
    let options = PathOptions { state: Some(stock.state.clone()), ..PathOptions::default() };
    Target::open(&stock.fqrn, Paths::resolve(&stock.fqrn, &options, &environment).expect("its paths"))
        .expect("it opens")
}

fn convert(target: &Target, wishes: &[String]) -> Report {
    convert_as(target, &wishes.iter().map(|text| (text.clone(), None)).collect::<Vec<_>>())
}

/// The same, some with names of the operator's choice.
fn convert_as(target: &Target, wishes: &[(String, Option<PublicName>)]) -> Report {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let client = Client::new(ClientConfig::default()).expect("a client");
    let converter = Converter {
        target,
        sources: Sources::new(client, runtime.handle().clone(), target.scratch()),
        options: options_of_tests(),
        progress: Arc::new(Silent),
    };
    let request = |(line, (text, name)): (usize, &(String, Option<PublicName>))| Request {
        line: Some(line as u64 + 1),
        name: name.clone(),
        ..Request::new(text, Wish::parse(text).expect("a wish"))
    };
    let requests: Vec<Request> = wishes.iter().enumerate().map(request).collect();
    converter.apply(&converter.plan(&requests).expect("a plan")).expect("a pass")
}

fn tree_of(target: &Target, top: &str) -> Tree {
    tree::read(&target.repository().expect("trust"), target.scratch(), top).map(|p| p.tree).unwrap_or_default()
}

#[track_caller]
fn assert_sound(target: &Target) {
    let scratch = tempfile::tempdir().expect("a directory");
    let master_keys = [target.master.clone()];
    let anchor = Anchor { name: &target.fqrn, master_keys: &master_keys, blacklist: &[], now: UtcDateTime::now() };
    let mut options = Options::new(scratch.path());
    options.identity = Identity::Trusted(&anchor);
    let mut report = check(&*target.store, &options).expect("a readable repository");
    report.merge(scrub(&*target.store, 2).expect("a readable storage"));
    let findings: Vec<String> = report.findings.iter().map(ToString::to_string).collect();
    assert!(report.is_sound(), "check finds:\n{}", findings.join("\n"));
}

fn count(objects: &[ObjectId], kind: ObjectKind) -> usize {
    objects.iter().filter(|id| id.kind == kind).count()
}

#[test]
fn images_go_beside_what_is_there_and_share_its_content() {
    for (fixture, settings, codec) in [
        ("shake", "CVMFS_HASH_ALGORITHM=shake128", Codec::REFERENCE),
        ("rmd", "CVMFS_HASH_ALGORITHM=rmd160", Codec::REFERENCE),
        ("plain", "CVMFS_COMPRESSION_ALGORITHM=none", Codec::Store),
        ("basic", "", Codec::REFERENCE),
    ] {
        let (registry, stock) = (TestRegistry::spawn(), Stock::new(fixture, settings));
        let contents = stock.contents();
        // The largest ones are in chunks.
        let mut known: Vec<&Vec<u8>> = contents.values().collect();
        known.sort_by_key(|content| std::cmp::Reverse(content.len()));
        let lower = [
            dir("opt"),
            file("opt/large", known[0]),
            file("opt/small", known[5]),
            dir("opt/gone"),
            file("opt/gone/x", known[6]),
            file("etc-release", known[4]).mode(0o4755).owner(1000, 100),
        ];
        let upper =
            [dir("opt"), whiteout("opt/small"), dir("opt/gone"), opaque("opt/gone"), file("opt/new", "new here")];
        let image = Image::of(&[&lower, &upper]).push(&registry, "lab/x", "1");

        let target = open(&stock);
        let (before, old, old_tree) = (stock.files(), stock.manifest(), tree_of(&target, ""));
        let report = convert(&target, &[wish(&registry, "lab/x:1")]);
        assert_eq!(report.wishes[0].outcome, Outcome::Added, "{fixture}: {:?}", report.wishes[0].error);
        assert_eq!(stock.manifest().revision, old.revision + 1, "one publish for everything");
        assert_sound(&target);

        let added = assert_only_added(&before, &stock.files(), codec);
        assert_eq!(count(&added, ObjectKind::Chunk), 0, "{fixture}: the large file is there");
        assert!(count(&added, ObjectKind::File) >= 1 && count(&added, ObjectKind::Catalog) > 5, "{fixture}");
        let mut flat = tree_of(&target, &flat_path(image.config));
        let expected = naive::unpack([&lower[..], &upper]);
        flat.retain(|path, _| expected.contains_key(path));
        tree::assert_same(&flat, &expected, fixture);
        // But for the root, which has more directories now, all is as it was.
        let mut new_tree = tree_of(&target, "");
        new_tree.retain(|path, _| old_tree.contains_key(path) && !path.is_empty());
        let old_tree: Tree = old_tree.into_iter().filter(|(path, _)| !path.is_empty()).collect();
        tree::assert_same(&new_tree, &old_tree, fixture);

        let names: Vec<String> = stock.spool_files().into_keys().collect();
        assert_eq!(names, ["client.local", "reflog.chksum"], "{fixture}");
        let report = convert(&target, &[wish(&registry, "lab/x:1")]);
        assert_eq!(report.wishes[0].outcome, Outcome::Unchanged);
        assert_eq!(stock.manifest().revision, old.revision + 1);
    }
}

#[test]
fn a_conversion_is_refused_before_it_fetches_anything_while_a_transaction_is_open() {
    let (registry, stock) = (TestRegistry::spawn(), Stock::new("updates-r4", ""));
    Image::of(&[&[file("a", "new content")]]).push(&registry, "lab/x", "1");
    let target = open(&stock);
    let flag = stock.spool.join("in_transaction.lock");
    std::fs::write(&flag, "").expect("the flag");
    let before = stock.files();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let client = Client::new(ClientConfig::default()).expect("a client");
    let converter = Converter {
        target: &target,
        sources: Sources::new(client, runtime.handle().clone(), target.scratch()),
        options: options_of_tests(),
        progress: Arc::new(Silent),
    };
    let text = wish(&registry, "lab/x:1");
    let source = Wish::parse(&text).expect("a wish");
    let plan = converter.plan(&[Request::new(text, source)]).expect("a plan is no work");
    let error = converter.apply(&plan).expect_err("a transaction is open").to_string();
    assert!(error.contains("cvmfs_server abort"), "{error}");
    assert_eq!(stock.files().len(), before.len());
    assert!(flag.exists());
}

/// Names of the automatic tags.
fn automatic_tags(target: &Target) -> Vec<String> {
    let history = target.repository().expect("trust").history(target.scratch()).expect("tags");
    history.tags.into_iter().map(|tag| tag.name).filter(|name| name.starts_with("generic")).collect()
}

/// Fails unless all that stands beside the storage fits the published revision.
#[track_caller]
fn assert_spool(stock: &Stock) {
    let manifest = stock.manifest();
    let reflog = ContentHash::of(manifest.root_catalog.algorithm, &stock.files()[names::REFLOG]);
    assert_eq!(manifest.reflog, Some(reflog));
    let files = stock.spool_files();
    assert_eq!(files.keys().collect::<Vec<_>>(), ["client.local", "reflog.chksum"], "no lock, no flag, nothing else");
    assert_eq!(files["reflog.chksum"], reflog.to_string());
    assert_eq!(files["client.local"], format!("CVMFS_ROOT_HASH={}\n{CLIENT_LOCAL}", manifest.root_catalog));
}

#[test]
fn what_the_existing_publisher_has_filled_is_repaired_and_converted_where_the_reference_tools_have_it() {
    if !takeover::available() {
        return;
    }
    let (registry, stock) = (TestRegistry::spawn(), Stock::new("ducc", ""));
    takeover::Images::read().push_all(&registry);
    let target = open(&stock);
    let published = images::list(&target).expect("images");
    assert!(published.len() == 4 && published.iter().all(|i| i.legacy), "{published:?}");
    let (revision, tags) = (stock.manifest().revision, automatic_tags(&target));

    let fqrn = stock.fqrn.clone();
    let check = Check { fqrn, data: true, fix: true, dry_run: false, yes_change_live_layers: false };
    assert_eq!(repair::fix(&check, &target, true).expect("a repair"), ExitStatus::Success);
    assert_eq!(stock.manifest().revision, revision + 1, "one publish for all repairs");
    assert_spool(&stock);
    let after_repair = automatic_tags(&target);
    assert_eq!(after_repair.len(), tags.len() + 1, "{after_repair:?}");

    let wishes: Vec<(String, Option<PublicName>)> = takeover::wishes(&registry)
        .into_iter()
        .map(|(text, name)| (text, Some(PublicName::parse(&name).expect("a name of the fixture"))))
        .collect();
    let report = convert_as(&target, &wishes);
    assert_eq!(outcomes(&report), [Outcome::Unchanged; 4], "{report:?}");
    assert!(downloads(&registry).1 <= 4, "configs, and no blob of a layer: {:?}", downloads(&registry));
    assert_eq!(report.wishes.iter().map(|w| w.layers.fetched).sum::<u64>(), 0);
    assert_eq!(stock.manifest().revision, revision + 2, "records come in one publish");
    assert_spool(&stock);
    let after_conversion = automatic_tags(&target);
    assert_eq!(after_conversion.len(), tags.len() + 2, "{after_conversion:?}");
    assert_sound(&target);

    registry.forget_requests();
    assert_eq!(outcomes(&convert_as(&target, &wishes)), [Outcome::Unchanged; 4]);
    assert_eq!((downloads(&registry), stock.manifest().revision), ((0, 0), revision + 2));
    assert!(images::list(&target).expect("images").iter().all(|i| !i.legacy));
}
