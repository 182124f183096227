//! Images converted into a stratum 0 of the reference tools, as a conversion finds it by its `server.conf`.

use std::sync::Arc;

use cvmfs::check::{Identity, Options, check};
use cvmfs::hash::{ObjectId, ObjectKind};
use cvmfs::object::Codec;
use cvmfs::scrub::scrub;
use cvmfs::trust::Anchor;
use image::reference::Wish;
use publisher::cli::{Environment, PathOptions, Paths};
use publisher::convert::{Converter, Request};
use publisher::progress::{Event, Progress};
use publisher::report::{Outcome, Report};
use publisher::source::Sources;
use publisher::target::Target;
use registry::testing::TestRegistry;
use registry::{Client, ClientConfig};
use scenarios::image_builder::{Image, dir, file, opaque, whiteout};
use scenarios::naive;
use scenarios::repository::{flat_path, options_of_tests, wish};
use scenarios::stock::{Stock, assert_only_added};
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
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let client = Client::new(ClientConfig::default()).expect("a client");
    let converter = Converter {
        target,
        sources: Sources::new(client, runtime.handle().clone(), target.scratch()),
        options: options_of_tests(),
        progress: Arc::new(Silent),
    };
    let request = |(line, text): (usize, &String)| Request {
        text: text.clone(),
        line: Some(line as u64 + 1),
        source: Wish::parse(text).expect("a wish"),
        name: None,
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
    let plan = converter.plan(&[Request { text, line: None, source, name: None }]).expect("a plan is no work");
    let error = converter.apply(&plan).expect_err("a transaction is open").to_string();
    assert!(error.contains("cvmfs_server abort"), "{error}");
    assert_eq!(stock.files().len(), before.len());
    assert!(flag.exists());
}
