//! File bundles made of start-up lists.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use cvmfs::bundle;
use cvmfs::path::RepoPath;
use image::layout::StatusRecord;
use image::reference::Wish;
use publisher::cli::FlatPermissions;
use publisher::convert::Request;
use publisher::progress::Silent;
use publisher::report::Outcome::{Added, Unchanged, Updated};
use publisher::report::Report;
use publisher::startup::{GivenList, publish_list};
use publisher::target::Target;
use publisher::verify::{Options, Verifier};
use publisher::wishlist::ImageOptions;
use registry::testing::TestRegistry;
use scenarios::image_builder::{Image, Member, Pushed, dir, file, hardlink, symlink};
use scenarios::mounted::{self, Mounted};
use scenarios::naive;
use scenarios::repository::{Site, assert_covered, cover, flat_path, options_of_tests, outcomes, public, wish};
use scenarios::tree::{Published, What};

use crate::content;

/// A file of two names, the program, one that is read in part, and one that is read whole.
const LIST: &str = r#"{"schema":1,"files":[{"path":"/opt/app/bin/sh"},{"path":"/opt/app/bin/run"},
    {"path":"/opt/data","size":5000,"parts":[[0,100]]},{"path":"/opt/lib"},{"path":"/gone"}]}"#;

fn members(run: &str) -> [Vec<Member>; 2] {
    [
        vec![dir("opt").mode(0o711).owner(3, 4).xattr("user.x", "1"), dir("opt/app"), dir("opt/app/bin").mode(0o750)],
        vec![
            file("opt/app/bin/sh", "shell"),
            hardlink("opt/app/bin/ash", "opt/app/bin/sh"),
            file("opt/app/bin/run", run),
            file("opt/data", "d".repeat(5000)),
            file("opt/lib", "library"),
            dir("etc"),
            symlink("etc/resolv.conf", "../run/resolv.conf"),
        ],
    ]
}

fn image(run: &str) -> Image {
    let [lower, upper] = members(run);
    Image::of(&[&lower, &upper])
}

fn pass(site: &Site, wish: &str, list: Option<&str>, bundles: Option<bool>) -> Report {
    let startup = list.map(|text| Arc::new(GivenList::parse(text.as_bytes()).unwrap()));
    let options = Arc::new(ImageOptions { bundles, ..ImageOptions::default() });
    let request = Request { startup, options, ..Request::new(wish, Wish::parse(wish).unwrap()) };
    let converter = site.converter();
    converter.apply(&converter.plan(&[request]).unwrap()).unwrap()
}

fn published(site: &Site) -> Published {
    site.published("").unwrap()
}

/// Fails unless exactly these files of flats have bundles, and each is marked.
#[track_caller]
fn assert_triggers(site: &Site, expected: &[(&Pushed, &str)]) {
    let Published { bundles, triggers, .. } = published(site);
    let path = |(image, file): &(&Pushed, &str)| format!("{}/{file}", flat_path(image.config));
    assert_eq!(triggers, expected.iter().map(path).collect::<BTreeSet<_>>());
    let bundle = |trigger: &String| bundle::of(&RepoPath::parse(format!("/{trigger}")).unwrap()).unwrap().to_string();
    let paths: BTreeSet<String> = bundles.keys().map(|path| format!("/{path}")).collect();
    assert_eq!(paths, triggers.iter().map(bundle).collect::<BTreeSet<_>>());
}

/// What the bundle of an image asks for, without the path of the flat.
fn dependencies(site: &Site, image: &Pushed, bundle: &str) -> Vec<String> {
    let (flat, Published { tree, bundles, .. }) = (flat_path(image.config), published(site));
    let path = format!("{flat}/{bundle}");
    let What::File(text) = &bundles[&path].what else { panic!("{path} is no file") };
    let paths = bundle::parse(&RepoPath::parse(format!("/{path}")).unwrap(), text).unwrap();
    let below = |path: RepoPath| {
        let path = path.to_string();
        assert!(tree.contains_key(&path.as_bytes()[1..]), "{path} is not there");
        path.strip_prefix(&format!("/{flat}/")).unwrap().to_owned()
    };
    paths.into_iter().map(below).collect()
}

fn has_cover(site: &Site, image: &Pushed, path: &str) -> bool {
    cover(site, image.config).unwrap().contains_key(path.as_bytes())
}

#[test]
fn a_bundle_comes_and_goes_and_is_no_part_of_the_image() {
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    let pushed = image("first").push(&registry, "lab/x", "1");
    let wish = wish(&registry, "lab/x:1");
    assert_eq!(outcomes(&pass(&site, &wish, Some(LIST), None)), [Added]);
    assert_triggers(&site, &[]);
    let (plain, plain_cover) = (site.tree(&flat_path(pushed.config)), cover(&site, pushed.config).unwrap());

    assert_eq!(outcomes(&pass(&site, &wish, Some(LIST), Some(true))), [Updated]);
    assert_triggers(&site, &[(&pushed, "opt/app/bin/run")]);
    let expected = ["opt/app/bin/sh", "opt/lib"];
    assert_eq!(
        dependencies(&site, &pushed, "opt/app/bin/.cvmfsbundle-run"),
        expected,
        "whole files, without the trigger"
    );
    assert_eq!(site.tree(&flat_path(pushed.config)), plain, "listings show what they showed");
    let covered = cover(&site, pushed.config).unwrap();
    assert_eq!(covered[&b"opt/app/bin/.cvmfsbundle-run"[..]].what, What::Char(0), "no container finds it");
    for directory in ["opt", "opt/app", "opt/app/bin"] {
        assert_eq!(covered[directory.as_bytes()], plain[directory.as_bytes()], "{directory}");
    }
    assert_covered(&site, pushed.config, &naive::unpack(members("first").iter().map(Vec::as_slice)), "the image");
    site.assert_sound();
    let verifier = Verifier::new(Target::open(&site.target.fqrn, site.target.paths.clone()).unwrap()).unwrap();
    for offline in [false, true] {
        let limits = options_of_tests().limits;
        let options = Options { data: true, offline, from: None, show: 20, limits, credentials: None };
        let report = verifier.verify(&wish, &site.converter().sources, &options, &Silent).unwrap().0;
        assert!(report.same, "{}", report.to_text());
    }

    for bundles in [Some(true), None] {
        assert_eq!(outcomes(&pass(&site, &wish, Some(LIST), bundles)), [Unchanged]);
    }
    let other = r#"{"schema":1,"files":[{"path":"/opt/lib"},{"path":"/opt/data"}]}"#;
    assert_eq!(outcomes(&pass(&site, &wish, Some(other), None)), [Updated]);
    assert_triggers(&site, &[(&pushed, "opt/lib")]);
    assert_eq!(dependencies(&site, &pushed, "opt/.cvmfsbundle-lib"), ["opt/data"]);
    assert!(has_cover(&site, &pushed, "opt/.cvmfsbundle-lib") && !has_cover(&site, &pushed, "opt/app"));
    site.assert_sound();

    assert_eq!(outcomes(&pass(&site, &wish, None, Some(false))), [Updated]);
    assert_triggers(&site, &[]);
    assert_eq!(cover(&site, pushed.config).unwrap(), plain_cover);
    assert_eq!(outcomes(&pass(&site, &wish, None, Some(false))), [Unchanged]);
    site.assert_sound();
}

#[test]
fn what_a_cover_hides_stays_hidden_when_a_bundle_goes() {
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    let pushed = image("first").push(&registry, "lab/x", "1");
    let wish = wish(&registry, "lab/x:1");
    pass(&site, &wish, None, None);
    let plain = cover(&site, pushed.config).unwrap();
    assert_eq!(plain[&b".singularity.d"[..]].what, What::Char(0));
    // A list that was recorded with Apptainer begins with a file that the image has not.
    let list = r#"{"schema":1,"files":[{"path":"/.singularity.d/actions/exec"},{"path":"/opt/lib"}]}"#;
    pass(&site, &wish, Some(list), Some(true));
    assert_triggers(&site, &[(&pushed, ".singularity.d/actions/exec")]);
    assert_eq!(cover(&site, pushed.config).unwrap(), plain, "hidden with its directory");
    pass(&site, &wish, None, Some(false));
    assert_triggers(&site, &[]);
    assert_eq!(cover(&site, pushed.config).unwrap(), plain);
    site.assert_sound();
}

#[test]
fn a_bundle_follows_the_name_and_goes_with_the_list() {
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    let old = image("first").push(&registry, "lab/x", "1");
    let (wish, link) = (wish(&registry, "lab/x:1"), public(&registry, "lab/x:1"));
    let list = GivenList::parse(LIST.as_bytes()).unwrap();
    // A wish for bundles of a list that does not exist yet.
    assert_eq!(outcomes(&pass(&site, &wish, None, Some(true))), [Added]);
    assert_eq!(outcomes(&pass(&site, &wish, None, Some(true))), [Unchanged]);
    assert_triggers(&site, &[]);
    let listed = publish_list(&site.target, &wish, Some(&list), None).unwrap();
    assert_eq!(publish_list(&site.target, &wish, Some(&list), Some(true)).unwrap().revision, listed.revision);
    assert_triggers(&site, &[(&old, "opt/app/bin/run")]);

    let new = image("second run").push(&registry, "lab/x", "1");
    assert_eq!(outcomes(&pass(&site, &wish, None, None)), [Updated]);
    assert_triggers(&site, &[(&old, "opt/app/bin/run"), (&new, "opt/app/bin/run")]);
    let status = StatusRecord::parse(content(&site.tree(""), &format!(".metadata/{link}/status.json"))).unwrap();
    assert!(status.bundles);
    // The same flat under a second name, whose list is the last word.
    assert_eq!(outcomes(&site.convert_as(&[(&wish, Some("lab/second:1"))])), [Added]);
    assert!(has_cover(&site, &new, "opt/app/bin/.cvmfsbundle-run"));
    publish_list(&site.target, &wish, None, None).unwrap();
    assert_triggers(&site, &[(&old, "opt/app/bin/run")]);
    assert_eq!(publish_list(&site.target, &wish, Some(&list), Some(false)).unwrap().startup.files, 4);
    assert_triggers(&site, &[(&old, "opt/app/bin/run")]);
    site.assert_sound();
}

#[test]
fn what_an_image_has_in_the_place_of_a_bundle_stays() {
    let (registry, mut site) = (TestRegistry::spawn(), Site::new());
    let own = file("opt/.cvmfsbundle-run", "the image's own");
    let image = Image::of(&[&[dir("opt"), file("opt/run", "r"), own, file("opt/next", "n"), file("opt/last", "l")]]);
    let pushed = image.push(&registry, "lab/x", "1");
    let list = r#"{"schema":1,"files":[{"path":"/opt/run"},{"path":"/opt/next"},{"path":"/opt/last"}]}"#;
    let wish = wish(&registry, "lab/x:1");
    // Without a cover there is nothing to hide behind, and nobody who looks there.
    site.options.permissions = FlatPermissions::Readable;
    pass(&site, &wish, Some(list), Some(true));
    assert_eq!(cover(&site, pushed.config), None);
    assert_triggers(&site, &[(&pushed, "opt/next")]);
    assert_eq!(dependencies(&site, &pushed, "opt/.cvmfsbundle-next"), ["opt/run", "opt/last"]);
    let tree = site.tree(&flat_path(pushed.config));
    assert_eq!(content(&tree, "opt/.cvmfsbundle-run"), b"the image's own");
    publish_list(&site.target, &wish, None, None).unwrap();
    assert_eq!(site.tree(&flat_path(pushed.config)), tree);
    assert_triggers(&site, &[]);
    site.assert_sound();
}

#[test]
fn through_the_kernel_a_bundle_is_found_by_name_in_the_flat_and_not_in_a_container() {
    if !mounted::is_possible() {
        return;
    }
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    let pushed = image("first").push(&registry, "lab/x", "1");
    pass(&site, &wish(&registry, "lab/x:1"), Some(LIST), Some(true));
    let mounted = Mounted::new(&site);
    let flat = mounted.path(flat_path(pushed.config));
    let names = |directory: &Path| {
        let entries = std::fs::read_dir(directory.join("opt/app/bin")).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<BTreeSet<_>>()
    };
    let listed = ["ash", "run", "sh"].map(str::to_owned).into();
    assert_eq!(names(&flat), listed);
    let bundle = "opt/app/bin/.cvmfsbundle-run";
    assert!(std::fs::read_to_string(flat.join(bundle)).unwrap().contains("CVMFS_BUNDLE"));
    for (name, marked) in [("run", "1"), ("sh", "0")] {
        let said = xattr::get(flat.join("opt/app/bin").join(name), "user.bundle_trigger").unwrap();
        assert_eq!(said.as_deref(), Some(marked.as_bytes()), "{name}");
    }

    let (cover, place) = (flat.with_file_name(format!(".cover-{}", pushed.config.hex())), tempfile::tempdir().unwrap());
    let options = format!("ro,lowerdir={}:{}", cover.display(), flat.display());
    let run = |program: &str, arguments: &[&OsStr]| {
        let status = Command::new(program).args(arguments).status().unwrap();
        assert!(status.success(), "{program}: {status}");
    };
    let target = place.path().as_os_str();
    run(
        "mount",
        &["-t", "overlay", "-o", &options, "overlay"].map(OsStr::new).into_iter().chain([target]).collect::<Vec<_>>(),
    );
    let seen = (names(place.path()), std::fs::read(place.path().join("opt/app/bin/run")).unwrap());
    let metadata = ["opt", "opt/app/bin"].map(|path| {
        let of =
            |top: &Path| std::fs::metadata(top.join(path)).map(|m| (m.mode(), m.uid(), m.gid(), m.mtime())).unwrap();
        (of(place.path()), of(&flat))
    });
    let found = std::fs::symlink_metadata(place.path().join(bundle)).map(drop).map_err(|error| error.kind());
    run("umount", &[target]);
    assert_eq!(seen, (listed, b"first".to_vec()));
    assert_eq!(found, Err(std::io::ErrorKind::NotFound));
    metadata.iter().for_each(|(container, flat)| assert_eq!(container, flat));
}
