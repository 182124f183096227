//! Wish lists as operators write them, rightly and wrongly.

use super::*;

fn parse(text: &str) -> Result<WishList, WishListError> {
    WishList::parse(Path::new("w.yaml"), text.as_bytes())
}

/// A list with these entries, the first of them in line 4.
fn with_entries(entries: &[&str]) -> WishList {
    let mut text = "version: 1\ncvmfs_repo: images.example.org\ninput:\n".to_owned();
    for entry in entries {
        text.push_str(&format!("  - {entry}\n"));
    }
    parse(&text).unwrap()
}

fn shown(problems: &[Problem]) -> Vec<String> {
    problems.iter().map(ToString::to_string).collect()
}

#[test]
fn reads_a_list_of_the_existing_tool() {
    let digest = format!("sha256:{}", "0123".repeat(16));
    let text = format!(
        "version: 1\n\
         user: robot-publisher\n\
         cvmfs_repo: images.example.org\n\
         output_format: '$(scheme)://harbor.example.org/thin/$(image)'\n\
         # comments and blank lines are fine\n\
         \n\
         input:\n\
         \x20 - https://registry.hub.docker.com/library/almalinux:9\n\
         \x20 - 'https://quay.io/example/tool:1.4*'\n\
         \n\
         \x20 - https://ghcr.io/example/app:v3@{digest}   # pinned\n"
    );
    let list = parse(&text).unwrap();
    assert_eq!(list.repository, "images.example.org");
    assert_eq!(list.user, "robot-publisher");
    assert_eq!(list.output_format.as_deref(), Some("$(scheme)://harbor.example.org/thin/$(image)"));
    assert_eq!(list.problems, []);
    let wishes: Vec<(u64, &str)> = list.wishes.iter().map(|wish| (wish.line, wish.text.as_str())).collect();
    assert_eq!(
        wishes,
        [
            (8, "https://registry.hub.docker.com/library/almalinux:9"),
            (9, "https://quay.io/example/tool:1.4*"),
            (11, format!("https://ghcr.io/example/app:v3@{digest}").as_str()),
        ]
    );
    assert!(matches!(list.wishes[1].source, Source::Wildcard(_)));
}

#[test]
fn unknown_keys_are_warnings_with_the_nearest_known_name() {
    let list = parse("version: 1\ncvmfs_repo: a.b\nInputs: []\nschedule: daily\ninput: []\n").unwrap();
    assert_eq!(
        shown(&list.problems),
        [
            "w.yaml:3: warning: Inputs: unknown key, ignored; did you mean input?",
            "w.yaml:4: warning: schedule: unknown key, ignored",
        ]
    );
    assert!(list.strict().is_ok(), "warnings are no obstacle");
}

#[test]
fn every_bad_entry_is_a_failed_wish_and_the_others_proceed() {
    let list = with_entries(&[
        "debian:12",
        "https://quay.io/a/../b:1",
        "{image: debian:12}",
        "~",
        "''",
        "[a]",
        "https://quay.io/ok:1",
        "ftp://quay.io/a:1",
        "12",
    ]);
    let wishes: Vec<u64> = list.wishes.iter().map(|wish| wish.line).collect();
    assert_eq!(wishes, [4, 10]);
    let failed: Vec<WishOutcome> = list.failed_wishes().collect();
    let lines: Vec<Option<u64>> = failed.iter().map(|outcome| outcome.line).collect();
    assert_eq!(lines, [5, 6, 7, 8, 9, 11, 12].map(Some));
    assert_eq!(failed[0].wish, "https://quay.io/a/../b:1");
    assert!(failed[0].error.as_ref().unwrap().starts_with("w.yaml:5: input[1]: "), "{:?}", failed[0].error);
    assert!(failed[1].error.as_ref().unwrap().contains("found a mapping"), "{:?}", failed[1].error);

    let Err(WishListError::Strict { problems }) = list.strict() else { panic!("accepted") };
    assert_eq!(problems.len(), 7);
}

#[test]
fn a_duplicate_is_reported_and_done_once() {
    let list = with_entries(&["debian:12", "https://registry.hub.docker.com/library/debian:12", "quay.io/a:1"]);
    assert_eq!(list.wishes.iter().map(|wish| wish.line).collect::<Vec<_>>(), [4, 6]);
    assert_eq!(
        shown(&list.problems),
        [
            "w.yaml:5: warning: input[1]: \"https://registry.hub.docker.com/library/debian:12\" is wished for in line 4 already"
        ]
    );
}

#[test]
fn two_wishes_for_one_public_name_conflict() {
    let pinned = format!("quay.io/a:1@sha256:{}", "ab".repeat(32));
    let list = with_entries(&["quay.io/a:1", &pinned, "http://quay.io/a:1"]);
    assert_eq!(list.wishes.len(), 1);
    assert_eq!(list.problems.len(), 2);
    for problem in &list.problems {
        assert_eq!(problem.severity, Severity::Error);
        assert!(problem.message.ends_with("would be published as quay.io/a:1, as would be line 4"), "{problem}");
    }
}

#[test]
fn nothing_lands_in_internal_trees() {
    let list = with_entries(&[
        "https://.flat/a:1",
        "https://.layers/x/y:1",
        "https://.metadata/x:*",
        "https://podmanstore/a:1",
        "http://podmanstore/a:1*",
        "oci:/tmp/.hidden",
        "docker-archive:/tmp/UPPER.tar",
        "https://quay.io/../.flat/a:1",
    ]);
    assert_eq!(list.wishes, []);
    assert_eq!(list.failed_wishes().count(), 8);
}

#[test]
fn an_unusable_header_lists_everything_that_is_wrong() {
    let text = "version: 3\nuser: [a]\ncvmfs_repo: images\ninput:\n- debian:12\n- de bian\ninptu: 1\n";
    let error = parse(text).unwrap_err();
    let WishListError::Header { problems } = &error else { panic!("{error:?}") };
    let lines: Vec<(u64, &str)> = problems.iter().map(|problem| (problem.line, problem.field.as_str())).collect();
    assert_eq!(lines, [(1, "version"), (2, "user"), (3, "cvmfs_repo"), (6, "input[1]"), (7, "inptu")]);
    let error = CommandError::from(error);
    assert_eq!(error.exit_status().code(), 3);
}

#[test]
fn header_mistakes_have_a_position() {
    let cases = [
        ("input: []\n", 1, "cvmfs_repo"),
        ("version: 1\ncvmfs_repo:\ninput: []\n", 2, "cvmfs_repo"),
        ("version: 1\n\ncvmfs_repo: {a: b}\n", 3, "cvmfs_repo"),
        ("cvmfs_repo: a.b\nversion: one\n", 2, "version"),
        ("cvmfs_repo: a.b\nversion: [1]\n", 2, "version"),
        ("cvmfs_repo: a.b\nversion: 1\ninput: debian:12\n", 3, "input"),
        ("cvmfs_repo: a.b\nversion: 1\noutput_format: []\n", 3, "output_format"),
        ("- debian:12\n", 1, "wish list"),
        ("just text\n", 1, "wish list"),
    ];
    for (text, line, field) in cases {
        let error = parse(text).unwrap_err();
        let WishListError::Header { problems } = &error else { panic!("{text:?}: {error:?}") };
        let found = problems
            .iter()
            .any(|problem| (problem.line, problem.field.as_str(), problem.severity) == (line, field, Severity::Error));
        assert!(found, "{text:?}: {problems:?}");
    }
}

#[test]
fn a_file_that_is_no_yaml_has_a_position() {
    let cases: [(&[u8], &str); 4] = [
        (b"version: 1\ninput: [\n", "w.yaml:2:8: unclosed bracket"),
        (b"version: 1\nversion: 1\n", "w.yaml:2:"),
        (b"version: 1\nuser: \xff\n", "w.yaml:2: not UTF-8 text"),
        (b"a: &x [*x]\n", "w.yaml:1:"),
    ];
    for (bytes, start) in cases {
        let error = WishList::parse(Path::new("w.yaml"), bytes).unwrap_err();
        assert!(error.to_string().starts_with(start), "{error}");
        assert_eq!(CommandError::from(error).exit_status().code(), 3);
    }
}

#[test]
fn a_list_may_be_empty_or_lack_what_has_a_default() {
    let list = parse("cvmfs_repo: a.b\ninput:\n").unwrap();
    assert_eq!((list.wishes.len(), list.user.as_str(), list.output_format), (0, "", None));
    assert_eq!(shown(&list.problems), ["w.yaml:1: warning: version: missing; 1 is assumed"]);
    let list = parse("version: 1\ncvmfs_repo: a.b\n").unwrap();
    assert_eq!(shown(&list.problems), ["w.yaml:1: warning: input: missing; the list wishes for nothing"]);
}

#[test]
fn failures_of_ignored_images_are_marked() {
    let list = parse(
        "version: 1\ncvmfs_repo: a.b\nignoreErrors: ['https://quay.io/unsteady/*', [x]]\n\
         input: ['https://quay.io/unsteady/a b:1', 'https://quay.io/steady/a b:1']\n",
    )
    .unwrap();
    assert!(list.ignores_errors("https://quay.io/unsteady/a:1"));
    assert!(!list.ignores_errors("https://quay.io/steady/a:1"));
    let ignored: Vec<bool> = list.failed_wishes().map(|outcome| outcome.ignored).collect();
    assert_eq!(ignored, [true, false]);
    assert!(shown(&list.problems)[0].starts_with("w.yaml:3: warning: ignoreErrors[1]: "), "{:?}", list.problems);
}

#[test]
fn an_unknown_variable_of_the_output_format_is_a_warning() {
    let list = parse("version: 1\ncvmfs_repo: a.b\noutput_format: 'x/$(name)'\ninput: []\n").unwrap();
    assert!(shown(&list.problems)[0].starts_with("w.yaml:3: warning: output_format: unknown variable $(name); "));
}

#[test]
fn files_are_read_up_to_a_limit() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("w.yaml");
    let missing = WishList::read(&path).unwrap_err();
    assert!(matches!(missing, WishListError::Read { .. }) && missing.to_string().contains("w.yaml"), "{missing}");

    let head = "version: 1\ncvmfs_repo: a.b\ninput: []\n#";
    let fill = |length: u64| format!("{head}{}", "x".repeat(length as usize - head.len()));
    std::fs::write(&path, fill(MAX_BYTES)).unwrap();
    assert!(WishList::read(&path).is_ok());
    std::fs::write(&path, fill(MAX_BYTES + 1)).unwrap();
    assert!(matches!(WishList::read(&path), Err(WishListError::TooLarge { .. })));
}

#[test]
fn a_list_of_twenty_thousand_wishes_is_read() {
    let mut text = "version: 1\ncvmfs_repo: a.b\ninput:\n".to_owned();
    for number in 0..20_000 {
        text.push_str(&format!("- https://quay.io/tools/app{number}:1\n"));
    }
    let list = parse(&text).unwrap();
    assert_eq!((list.wishes.len(), list.problems.len()), (20_000, 0));
    assert_eq!(list.wishes[19_999].line, 20_003);
}

#[test]
fn the_store_for_podman_is_all_none_or_what_patterns_take() {
    let list = |podman: &str| parse_podman(podman);
    assert_eq!(list("").unwrap().podman, InStore::Follow);
    assert_eq!(list("podman: true\n").unwrap().podman, InStore::All);
    assert_eq!(list("podman: false\n").unwrap().podman, InStore::Nothing);
    let patterns = vec!["https://quay.io/*".to_owned()];
    assert_eq!(list("podman: ['https://quay.io/*']\n").unwrap().podman, InStore::Matching(patterns));
    let error = list("podman: some\n").unwrap_err().to_string();
    assert!(error.contains("podman: expected true, false or a list of patterns"), "{error}");
}

fn parse_podman(line: &str) -> Result<WishList, WishListError> {
    let text = format!("version: 1\ncvmfs_repo: images.example.org\n{line}input:\n  - https://quay.io/x:1\n");
    WishList::parse(Path::new("w.yaml"), text.as_bytes())
}
