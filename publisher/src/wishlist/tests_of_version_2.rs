//! Options, includes, aliases and the choice of tags; the schema and the reader agree.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use image::platform::Platform;
use tempfile::TempDir;

use super::*;
use crate::cli::FlatPermissions;

const HEAD: &str = "version: 2\ncvmfs_repo: images.example.org\n";

fn parse(text: &str) -> Result<WishList, WishListError> {
    WishList::parse(Path::new("lists/w.yaml"), format!("{HEAD}{text}").as_bytes())
}

/// Line, field and beginning of everything that is wrong.
fn problems(list: &Result<WishList, WishListError>) -> Vec<String> {
    let problems = match list {
        Ok(list) => &list.problems,
        Err(WishListError::Header { problems }) => problems,
        Err(error) => panic!("{error}"),
    };
    problems.iter().map(ToString::to_string).collect()
}

#[track_caller]
fn assert_problems(text: &str, expected: &[&str]) {
    let found = problems(&parse(text));
    assert_eq!(found.len(), expected.len(), "{text}: {found:#?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.contains(expected), "{text}: expected {expected:?} in {found:?}");
    }
}

fn files(files: &[(&str, &str)]) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = directory.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    directory
}

#[test]
fn every_option_has_its_type_and_an_entry_wins_over_the_defaults() {
    let list = parse(
        "output_format: 'thin.example.org/$(image)'
defaults:
  platforms: [linux/amd64, linux/aarch64]
  plain_path: variant
  products: [flat, layers]
  owner: physics
  priority: 5
  retention: {versions: 2}
  quota: {image: 20G, owner: 1T}
  signature: {keys: [keys/a.pub, /etc/b.pub]}
input:
- debian:12
- image: https://quay.io/a/b:1
  platforms: linux/arm64/v8
  products: [flat, layers, podman, thin]
  priority: -1
  contact: a@example.org
  schedule: 1h
  retention: {days: 90}
  credentials: quay-robot
  permissions: readable
  quota: {image: 1Gi}
  public: true
  signature: none
  startup: starts/b.json
  bundles: true
",
    )
    .unwrap();
    assert_eq!(problems(&Ok(list.clone())), Vec::<String>::new());
    let plain = &list.wishes[0].options;
    let platforms: Vec<Platform> = ["linux/amd64", "linux/arm64"].map(|p| Platform::parse(p).unwrap()).into();
    assert_eq!((&plain.platforms, plain.plain_path), (&platforms, Some(PlainPath::Variant)));
    let keys = ["lists/keys/a.pub", "/etc/b.pub"].map(PathBuf::from).into();
    assert_eq!(plain.signature, Some(SignatureRequirement::By(keys)));
    assert_eq!((plain.owner.as_deref(), plain.priority), (Some("physics"), Some(5)));
    let full = &list.wishes[1].options;
    let expected = ImageOptions {
        platforms: vec![Platform::parse("linux/arm64/v8").unwrap()],
        plain_path: Some(PlainPath::Variant),
        products: Some(Products { flat: true, layers: true, podman: true, thin: true }),
        priority: Some(-1),
        owner: Some("physics".into()),
        contact: Some("a@example.org".into()),
        schedule: Some(Duration::from_secs(3600)),
        retention: Retention { versions: Some(2), days: Some(90) },
        credentials: Some("quay-robot".into()),
        permissions: Some(FlatPermissions::Readable),
        quota: Quota { image: Some(1 << 30), owner: Some(1_000_000_000_000) },
        public: Some(true),
        signature: Some(SignatureRequirement::Nobody),
        startup: Some("lists/starts/b.json".into()),
        bundles: Some(true),
    };
    assert_eq!(**full, expected);
    let request = list.wishes[1].request(list.wishes[1].source.clone());
    assert_eq!((request.owner.as_deref(), request.priority, request.line), (Some("physics"), -1, Some(15)));
}

#[test]
fn mistakes_are_found_all_at_once_with_their_places() {
    assert_problems(
        "input:\n- image: debian:12\n  platfroms: linux/amd64\n  priority: high\n  quota: {image: 20X}\n- image: debian:13\n  schedule: 5s\n",
        &[
            "lists/w.yaml:5: input[0].platfroms: unknown key; did you mean platforms?",
            "lists/w.yaml:6: input[0].priority: expected a whole number",
            "lists/w.yaml:7: input[0].quota.image: write a number of bytes",
            "lists/w.yaml:9: input[1].schedule: 5s: nothing is looked at more often",
        ],
    );
    let list = parse("input:\n- image: debian:12\n  priority: high\n  owner: []\n- debian:13\n").unwrap();
    assert_eq!((list.failed_wishes().count(), list.wishes.len()), (1, 1), "one entry is one failed wish");
    assert_problems("defaults: {owner: '', x: 1}\ninput: []\n", &["defaults.x: unknown key", "defaults.owner"]);
    assert!(parse("defaults: {owner: ''}\ninput: []\n").is_err());
    assert_problems("inputs: []\ninput: []\n", &["lists/w.yaml:3: inputs: unknown key; did you mean input?"]);
    assert!(parse("inputs: []\ninput: []\n").is_err(), "nothing is guessed in version 2");
    let secret = "robot:hunter2";
    let found = problems(&parse(&format!("input: [{{image: 'debian:12', credentials: '{secret}'}}]\n")));
    assert!(found.len() == 1 && !found[0].contains("hunter2"), "{found:?}");
}

#[test]
fn the_same_image_twice_is_a_repetition_or_a_contradiction() {
    let text = "aliases: {mirror.example.org: docker.io}\ninput:\n- debian:12\n- docker.io/library/debian:12\n\
                - image: mirror.example.org/debian:12\n- image: debian:12\n  priority: 3\n  owner: x\n";
    assert_problems(
        text,
        &[
            ":6: warning: input[1]: \"docker.io/library/debian:12\" is wished for in line 5 already",
            ":7: warning: input[2]: \"mirror.example.org/debian:12\" is wished for in line 5 already",
            ":8: input[3]: \"debian:12\" is wished for in line 5 already, with another priority, owner; one of them has to go",
        ],
    );
    assert_problems(
        "input:\n- {image: 'a:1', owner: x, quota: {owner: 5G}}\n- {image: 'a:2', owner: x, quota: {owner: 6G}}\n",
        &["warning: quota.owner: x may have 6000000000 bytes here and 5000000000 in line 4; the smaller number counts"],
    );
}

#[test]
fn files_are_included_with_their_own_defaults() {
    let directory = files(&[
        (
            "top.yaml",
            "version: 2\ncvmfs_repo: a.b\ninclude: [teams/x.yaml, old.yaml]\ndefaults: {owner: all, priority: 1}\ninput: ['app:1']\n",
        ),
        (
            "teams/x.yaml",
            "version: 2\ndefaults: {owner: x}\ninclude: ../common.yaml\ninput: ['app:2', {image: 'app:1'}]\n",
        ),
        ("common.yaml", "version: 2\ninput: ['app:3', 'bad name']\n"),
        ("old.yaml", "version: 1\ncvmfs_repo: a.b\nuser: robot\ninput: ['app:4']\n"),
    ]);
    let path = |name: &str| directory.path().join(name);
    let list = WishList::read(&path("top.yaml")).unwrap();
    let wishes: Vec<_> = list
        .wishes
        .iter()
        .map(|w| (w.text.as_str(), w.options.owner.as_deref().unwrap(), w.options.priority.unwrap(), w.line))
        .collect();
    assert_eq!(wishes, [("app:3", "x", 1, 2), ("app:2", "x", 1, 4), ("app:1", "x", 1, 4), ("app:4", "all", 1, 4)]);
    let found = problems(&Ok(list.clone()));
    for (found, expected) in found.iter().zip([
        "top.yaml:5: input[0]: \"app:1\" is wished for in ",
        "common.yaml:2: input[1]: ",
        "old.yaml:3: warning: user: has no effect in an included file",
    ]) {
        assert!(found.contains(expected), "{found} / {expected}");
    }
    assert!(found[0].contains("teams/x.yaml:4 already, with another owner"), "{found:?}");
    assert_eq!(list.files.len(), 4);
    assert_eq!(list.failed_wishes().count(), 2);
}

#[test]
fn includes_stay_in_the_directory_and_end() {
    let outside = files(&[("o.yaml", "version: 2\ninput: ['app:9']\n")]);
    let o = outside.path().join("o.yaml");
    let deep: Vec<(String, String)> =
        (0..10).map(|n| (format!("deep{n}.yaml"), format!("version: 2\ninclude: deep{}.yaml\n", n + 1))).collect();
    let directory = files(&[
        ("loop.yaml", "version: 2\ninclude: top.yaml\n"),
        ("broken.yaml", "version: 2\ninput: [\n"),
        ("other.yaml", "version: 2\ncvmfs_repo: c.d\n"),
        ("header.yaml", "version: 2\nuser: me\naliases: {a: b}\n"),
        ("fine.yaml", "version: 2\ninput: ['app:1']\n"),
    ]);
    for (name, text) in &deep {
        fs::write(directory.path().join(name), text).unwrap();
    }
    std::os::unix::fs::symlink(&o, directory.path().join("link.yaml")).unwrap();
    let read = |include: &str| {
        let top = directory.path().join("top.yaml");
        fs::write(&top, format!("version: 2\ncvmfs_repo: a.b\ninclude: {include}\n")).unwrap();
        WishList::reading(&top)
    };
    for (include, expected) in [
        ("missing.yaml", "top.yaml:3: include: \"missing.yaml\": cannot be read"),
        ("link.yaml", "leads out of the directory of the list"),
        (&format!("../{}/o.yaml", outside.path().file_name().unwrap().to_str().unwrap()), "leads out of the directory"),
        ("loop.yaml", "loop.yaml:2: include: \"top.yaml\": includes itself"),
        ("top.yaml", "includes itself"),
        ("[fine.yaml, ./fine.yaml]", "is included already"),
        ("broken.yaml", "broken.yaml:2:"),
        ("other.yaml", "other.yaml:2: cvmfs_repo: \"c.d\": the list that includes this file is for a.b"),
        ("header.yaml", "header.yaml:2: user: belongs into the list that includes this file"),
        ("deep0.yaml", "8 deep"),
        ("[]", "include: the list is empty"),
    ] {
        let reading = read(include);
        let found = problems(&reading.list);
        assert!(reading.list.is_err() && found.iter().any(|f| f.contains(expected)), "{include}: {found:#?}");
    }
    assert!(read("missing.yaml").files.iter().any(|file| file.ends_with("missing.yaml")), "it may come");
    let list = read(o.to_str().unwrap()).list.unwrap();
    assert_eq!(list.wishes[0].text, "app:9", "an absolute path is the operator's word");
}

/// Entries, whether they are good. What a schema can't know (duplicates, grammar of names) is not among them.
const ENTRIES: &[(&str, bool)] = &[
    ("debian:12", true),
    ("{image: 'debian:12'}", true),
    ("{}", false),
    ("{image: ''}", false),
    ("{image: debian}", false),
    ("{owner: x}", false),
    ("[debian:12]", false),
    ("{image: 'a:1', platforms: linux/amd64}", true),
    ("{image: 'a:1', platforms: [linux/amd64, linux/arm/v7]}", true),
    ("{image: 'a:1', platforms: []}", false),
    ("{image: 'a:1', platforms: [amd64]}", false),
    ("{image: 'a:1', platforms: [windows/amd64]}", false),
    ("{image: 'a:1', platforms: [linux/amd64, linux/amd64]}", false),
    ("{image: 'a:1', plain_path: variant}", true),
    ("{image: 'a:1', plain_path: both}", false),
    ("{image: 'a:1', products: flat}", true),
    ("{image: 'a:1', products: [layers]}", true),
    ("{image: 'a:1', products: [flat, layers, podman, thin]}", true),
    ("{image: 'a:1', products: [layers, podman]}", false),
    ("{image: 'a:1', products: [flat, thin]}", false),
    ("{image: 'a:1', products: [podman]}", false),
    ("{image: 'a:1', products: [flat, flat]}", false),
    ("{image: 'a:1', products: [flat, squash]}", false),
    ("{image: 'a:1', products: []}", false),
    ("{image: 'a:1', priority: 7}", true),
    ("{image: 'a:1', priority: -7}", true),
    ("{image: 'a:1', priority: 1.5}", false),
    ("{image: 'a:1', priority: 99999999999}", false),
    ("{image: 'a:1', owner: physics, contact: 'Some One <a@b.c>'}", true),
    ("{image: 'a:1', owner: ~}", false),
    ("{image: 'a:1', owner: [x]}", false),
    ("{image: 'a:1', schedule: 1h}", true),
    ("{image: 'a:1', schedule: 10s}", true),
    ("{image: 'a:1', schedule: 5s}", false),
    ("{image: 'a:1', schedule: 0}", false),
    ("{image: 'a:1', schedule: hourly}", false),
    ("{image: 'a:1', retention: {versions: 0}}", true),
    ("{image: 'a:1', retention: {versions: 3, days: 90}}", true),
    ("{image: 'a:1', retention: {}}", false),
    ("{image: 'a:1', retention: {versions: -1}}", false),
    ("{image: 'a:1', retention: {weeks: 3}}", false),
    ("{image: 'a:1', retention: 3}", false),
    ("{image: 'a:1', credentials: quay-robot}", true),
    ("{image: 'a:1', credentials: 'user:password'}", false),
    ("{image: 'a:1', permissions: keep}", true),
    ("{image: 'a:1', permissions: all}", false),
    ("{image: 'a:1', quota: {image: 20G, owner: 5Ti}}", true),
    ("{image: 'a:1', quota: {image: 1048576}}", true),
    ("{image: 'a:1', quota: {image: big}}", false),
    ("{image: 'a:1', quota: 20G}", false),
    ("{image: 'a:1', public: true}", true),
    ("{image: 'a:1', public: maybe}", false),
    ("{image: 'a:1', signature: none}", true),
    ("{image: 'a:1', signature: {keys: a.pub}}", true),
    ("{image: 'a:1', signature: {keys: [a.pub, /etc/b.pub]}}", true),
    ("{image: 'a:1', signature: {identity: x}}", false),
    ("{image: 'a:1', signature: {}}", false),
    ("{image: 'a:1', signature: {keys: []}}", false),
    ("{image: 'a:1', signature: {keys: [../a.pub]}}", false),
    ("{image: 'a:1', signature: maybe}", false),
    ("{image: 'a:1', startup: starts/a.json}", true),
    ("{image: 'a:1', startup: /etc/starts/a..json}", true),
    ("{image: 'a:1', startup: starts/../../a.json}", false),
    ("{image: 'a:1', startup: ''}", false),
    ("{image: 'a:1', colour: blue}", false),
    ("{image: 'a:*', tags: {exclude: '*-rc*'}}", true),
    ("{image: 'a:*', tags: {exclude: ['*-rc*', latest], semver: '>=1.2, <2', newest: 3}}", true),
    ("{image: 'a:*', tags: {semver: '^1'}}", true),
    ("{image: 'a:*', tags: {semver: ~1.2}}", true),
    ("{image: 'a:*', tags: {semver: newest}}", false),
    ("{image: 'a:*', tags: {newest: {count: 2, by: name}, not_older_than: 90d}}", true),
    ("{image: 'a:*', tags: {newest: 0}}", false),
    ("{image: 'a:*', tags: {newest: {by: name}}}", false),
    ("{image: 'a:*', tags: {newest: {count: 2, by: age}}}", false),
    ("{image: 'a:*', tags: {not_older_than: last year}}", false),
    ("{image: 'a:*', tags: {}}", false),
    ("{image: 'a:*', tags: {only: x}}", false),
    ("{image: 'a:1', tags: {newest: 3}}", false),
];

/// Whole lists.
const LISTS: &[(&str, bool)] = &[
    ("cvmfs_repo: a.b\ninput: []\n", true),
    ("version: 1\ncvmfs_repo: a.b\ninput: ['debian:12']\n", true),
    ("version: 1\ncvmfs_repo: a.b\nsomething: else\n", true),
    ("version: 1\ncvmfs_repo: a.b\npodman: true\nignoreErrors: ['*']\nuser: me\noutput_format: ''\n", true),
    ("version: 1\ncvmfs_repo: a.b\ninput: [{image: 'debian:12'}]\n", false),
    ("version: 1\ncvmfs_repo: a.b\ninput: debian:12\n", false),
    ("version: 1\ncvmfs_repo: a.b\npodman: some\n", false),
    ("version: 1\nuser: me\n", false),
    ("version: 3\ncvmfs_repo: a.b\n", false),
    ("version: 2\ncvmfs_repo: ab\n", false),
    ("version: 2\ninput: []\n", false),
    ("version: 2\ncvmfs_repo: a.b\n", true),
    ("version: 2\ncvmfs_repo: a.b\nsomething: else\n", false),
    ("version: 2\ncvmfs_repo: a.b\naliases: {m.example.org: docker.io, 'lab:5000': 'http://127.0.0.1:5000'}\n", true),
    ("version: 2\ncvmfs_repo: a.b\naliases: {m.example.org: 'ftp://x'}\n", false),
    ("version: 2\ncvmfs_repo: a.b\naliases: [x]\n", false),
    ("version: 2\ncvmfs_repo: a.b\ndefaults: {owner: x, platforms: [linux/amd64]}\n", true),
    ("version: 2\ncvmfs_repo: a.b\ndefaults: {startup: x.json}\n", false),
    ("version: 2\ncvmfs_repo: a.b\ndefaults: {image: 'a:1'}\n", false),
    ("version: 2\ncvmfs_repo: a.b\ndefaults: {}\n", false),
    ("version: 2\ncvmfs_repo: a.b\ndefaults: []\n", false),
    ("version: 2\ncvmfs_repo: a.b\ninclude: []\n", false),
    ("- debian:12\n", false),
];

#[test]
fn the_schema_and_the_reader_accept_and_refuse_the_same() {
    let schema = jsonschema::validator_for(&serde_json::from_str(SCHEMA).unwrap()).unwrap();
    let head = format!("{HEAD}output_format: 'thin.example.org/$(image)'\n");
    let entries = ENTRIES.iter().map(|(entry, good)| (format!("{head}input:\n- {entry}\n"), *good));
    let lists = LISTS.iter().map(|(list, good)| ((*list).to_owned(), *good));
    for (text, good) in entries.chain(lists) {
        let document: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
        let errors: Vec<String> = schema.iter_errors(&document).map(|error| error.to_string()).collect();
        let list = WishList::parse(Path::new("w.yaml"), text.as_bytes());
        let refused = problems(&list).into_iter().filter(|p| !p.contains(" warning: ")).collect::<Vec<_>>();
        assert_eq!(refused.is_empty(), good, "reader: {text}{refused:#?}");
        assert_eq!(errors.is_empty(), good, "schema: {text}{errors:#?}");
    }
}

#[test]
fn every_option_is_in_the_schema_and_the_other_way_round() {
    let schema: serde_json::Value = serde_json::from_str(SCHEMA).unwrap();
    let mut described: Vec<&str> =
        schema["$defs"]["options"]["properties"].as_object().unwrap().keys().map(String::as_str).collect();
    described.push("startup");
    described.sort_unstable();
    let mut known = fields::OPTIONS.to_vec();
    known.sort_unstable();
    assert_eq!(described, known);
}
