//! The scripts are run by /bin/sh; what arrives is compared with what the config says.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::process::{Command, Output};

use super::*;
use crate::rootfs::as_layer;

/// Values that quoting has to survive.
const NASTY: [&str; 18] = [
    "plain",
    "",
    " ",
    "two words",
    "x$HOME y",
    "$(echo no)",
    "`echo no`",
    "it's",
    "'",
    "''\"\"''",
    "say \"no\"",
    "back\\slash\\n",
    "line\nbreak\n",
    "-n",
    "--",
    "*",
    "!!;&|<>#~%{a,b}",
    "\u{fffd}é\t\u{1b}",
];

fn config(entrypoint: &[&str], cmd: &[&str], env: &[&str]) -> Config {
    let owned = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
    let mut config = Config::parse(b"{}").unwrap();
    (config.entrypoint, config.cmd, config.env) = (owned(entrypoint), owned(cmd), owned(env));
    config
}

fn sh<A: AsRef<OsStr>>(script: &str, arguments: &[A], environment: &[(&str, &OsStr)]) -> Output {
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg(script).arg("script").args(arguments).env_clear();
    command.env("PATH", "/usr/local/bin:/usr/bin:/bin").envs(environment.iter().copied());
    command.output().unwrap()
}

fn split(output: &Output) -> Vec<Vec<u8>> {
    assert!(output.status.success(), "{output:?}");
    let mut parts: Vec<Vec<u8>> = output.stdout.split(|&b| b == 0).map(<[u8]>::to_vec).collect();
    parts.pop();
    parts
}

#[test]
fn words_of_the_config_arrive_unchanged() {
    for has_shell in [true, false] {
        words_arrive_unchanged(has_shell);
    }
}

fn words_arrive_unchanged(has_shell: bool) {
    let runscript = |config: &Config| runscript(config, has_shell);
    let print = ["printf", "%s\\0"];
    let bytes = |words: &[&str]| words.iter().map(|word| word.as_bytes().to_vec()).collect::<Vec<_>>();
    let script = runscript(&config(&print, &NASTY, &[]));
    let none: [&str; 0] = [];
    assert_eq!(split(&sh(&script, &none, &[])), bytes(&NASTY), "the words of the config");
    assert_eq!(split(&sh(&script, &NASTY, &[])), bytes(&NASTY), "the words of the user instead");
    let raw = OsStr::from_bytes(b"\xff\xfe'$x");
    assert_eq!(split(&sh(&script, &[raw], &[])), [raw.as_bytes()]);
    // all words in the entry point, those of the user behind
    let entrypoint = [&print[..], &NASTY[..]].concat();
    let script = runscript(&config(&entrypoint, &["not used"], &[]));
    assert_eq!(split(&sh(&script, &["more"], &[])), bytes(&[&NASTY[..], &["more"]].concat()));
    let script = runscript(&config(&[], &["printf", "%s\\0", "x"], &[]));
    assert_eq!(split(&sh(&script, &none, &[])), bytes(&["x"]));
    assert_eq!(split(&sh(&script, &["printf", "%s\\0", "y"], &[])), bytes(&["y"]));
}

#[test]
fn apptainer_interprets_the_script_where_there_is_no_shell() {
    // as Apptainer looks for it: a whole line, and none before it is longer than its reader takes
    let interpreted = |tree: &[(&str, Node<u32>)]| {
        let tree = as_layer(tree.iter().map(|(name, node)| (path(name), node.clone())));
        let list = additions(&config(&["/x", &"x".repeat(100_000)], &[], &[]), &tree, &[]).unwrap();
        let (_, script) = list.into_iter().find(|(name, _)| *name == path(".singularity.d/runscript")).unwrap();
        let NodeKind::Regular { content, .. } = script.kind else { panic!("a file") };
        let text = String::from_utf8(content).unwrap();
        text.lines().take_while(|line| line.len() < 1000).any(|line| line == "eval \"set ${SINGULARITY_OCI_RUN}\"")
    };
    let link = |target: &str| Node::new(NodeKind::Symlink { target: target.as_bytes().to_vec() }, 0o777);
    let file = || Node::new(NodeKind::Regular { content: 1, size: 5 }, 0o755);
    assert!(interpreted(&[]) && interpreted(&[("bin/other", file())]));
    assert!(!interpreted(&[("bin/sh", link("busybox"))]));
    assert!(!interpreted(&[("bin", link("usr/bin")), ("usr/bin/sh", file())]));
}

#[test]
fn a_single_quote_is_quoted_without_a_backslash() {
    assert_eq!(quoted("it's"), r#"'it'"'"'s'"#);
}

#[test]
fn says_so_when_there_is_nothing_to_run() {
    let none: [&str; 0] = [];
    let output = sh(&runscript(&config(&[], &[], &[]), true), &none, &[("SECRET", OsStr::new("x"))]);
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty(), "variables are not printed");
    let output = sh(&runscript(&config(&["-x"], &[], &[]), true), &none, &[]);
    assert!(!output.status.success(), "a dash is no option for set");
}

/// The variables that a script leaves, given others before.
fn variables(config: &Config, before: &[(&str, &OsStr)]) -> BTreeMap<String, Vec<u8>> {
    let none: [&str; 0] = [];
    let script = format!("set -eu\n{}\n/usr/bin/env -0", environment(config));
    split(&sh(&script, &none, before))
        .into_iter()
        .map(|variable| {
            let at = variable.iter().position(|&b| b == b'=').unwrap();
            (String::from_utf8(variable[..at].to_vec()).unwrap(), variable[at + 1..].to_vec())
        })
        .collect()
}

#[test]
fn variables_of_the_config_arrive_unchanged() {
    let env: Vec<String> = NASTY.iter().enumerate().map(|(i, value)| format!("V{i}={value}")).collect();
    let env: Vec<&str> = env.iter().map(String::as_str).collect();
    let found = variables(&config(&[], &[], &env), &[]);
    for (i, value) in NASTY.iter().enumerate() {
        assert_eq!(found[&format!("V{i}")], value.as_bytes(), "{value:?}");
    }
}

#[test]
fn variables_of_the_user_win_but_for_the_search_path() {
    let env = [
        "A=image",
        "B=image",
        "C=image",
        "PATH=/opt/bin:/bin",
        "D",
        "E",
        "F=1",
        "F=2=3",
        "no-name=1",
        "1x=1",
        "=x",
        "",
        "a b=1",
        "UID=7",
    ];
    let raw = OsStr::from_bytes(b"\xff$x'");
    let before = [("A", OsStr::new("user")), ("B", OsStr::new("")), ("E", OsStr::new("user")), ("G", raw)];
    let found = variables(&config(&[], &[], &env), &before);
    let text = |name: &str| found.get(name).map(|value| String::from_utf8_lossy(value).into_owned());
    assert_eq!(text("A").as_deref(), Some("user"));
    assert_eq!((text("B").as_deref(), text("C").as_deref()), (Some("image"), Some("image")));
    assert_eq!(text("PATH").as_deref(), Some("/opt/bin:/bin"));
    assert_eq!((text("D").as_deref(), text("E").as_deref()), (None, Some("user")), "a name without a value");
    assert_eq!(text("F").as_deref(), Some("2=3"));
    assert_eq!(found["G"], raw.as_bytes());
    assert!(!found.contains_key("no-name") && !found.contains_key("1x") && !found.contains_key("a b"));
    assert!(found.contains_key("UID"), "a variable that some shells don't let change");
}

#[test]
fn every_script_is_well_formed() {
    for (name, text) in scripts::ALL {
        let output = Command::new("/bin/sh").args(["-n", "-c", text]).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{name}: {output:?}");
        assert!(text.starts_with("#!/bin/sh\n#") && text.ends_with('\n'), "{name}");
    }
}

#[test]
fn the_environment_scripts_work() {
    let none: [&str; 0] = [];
    let run = |script: &str, before: &[(&str, &OsStr)], show: &str| {
        let output = sh(&format!("set -eu\n{script}\nprintf '%s' \"{show}\""), &none, before);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let text = |name: &str| scripts::ALL.iter().find(|(path, _)| path.ends_with(name)).unwrap().1;
    let libraries = text("99-base.sh");
    assert_eq!(run(libraries, &[], "$LD_LIBRARY_PATH"), "/.singularity.d/libs");
    assert_eq!(run(libraries, &[("LD_LIBRARY_PATH", OsStr::new("/x"))], "$LD_LIBRARY_PATH"), "/x:/.singularity.d/libs");
    let wanted = [
        ("PATH", OsStr::new("/b")),
        ("SING_USER_DEFINED_PREPEND_PATH", OsStr::new("/a")),
        ("SING_USER_DEFINED_APPEND_PATH", OsStr::new("/c")),
    ];
    assert_eq!(run(text("99-runtimevars.sh"), &wanted, "$PATH${SING_USER_DEFINED_APPEND_PATH:-}"), "/a:/b:/c");
    let replaced = [("SING_USER_DEFINED_PATH", OsStr::new("/only"))];
    assert_eq!(run(text("99-runtimevars.sh"), &replaced, "$PATH"), "/only");
    assert_eq!(run(text("95-apps.sh"), &[], "${SCIF_APPROOT:-none}"), "none");
    let missing = sh(text("95-apps.sh"), &none, &[("SINGULARITY_APPNAME", OsStr::new("none-such"))]);
    assert_eq!(missing.status.code(), Some(1));
}

/// What is added to a tree, by path; `mode` or `>target`, content left out.
fn added(tree: &[(&str, Node<u32>)]) -> BTreeMap<String, String> {
    let tree = as_layer(tree.iter().map(|(name, node)| (path(name), node.clone())));
    let mounts = MOUNT_POINTS.map(path);
    let describe = |(path, node): Addition| {
        let text = match &node.kind {
            NodeKind::Symlink { target } => format!(">{}", String::from_utf8_lossy(target)),
            NodeKind::Directory { .. } => format!("d{:o}", node.mode),
            NodeKind::Regular { content, .. } => format!("f{:o} {}", node.mode, content.len().min(1)),
            other => format!("{other:?}"),
        };
        (path.to_string(), text)
    };
    let list = additions(&config(&[], &[], &[]), &tree, &mounts).unwrap();
    let count = list.len();
    let map: BTreeMap<_, _> = list.into_iter().map(describe).collect();
    assert_eq!(map.len(), count, "nothing twice");
    map
}

#[test]
fn completes_an_empty_image() {
    let found = added(&[]);
    let expected: BTreeMap<String, String> = [
        (".exec", ">.singularity.d/actions/exec"),
        (".run", ">.singularity.d/actions/run"),
        (".shell", ">.singularity.d/actions/shell"),
        (".singularity.d", "d755"),
        (".singularity.d/actions", "d755"),
        (".singularity.d/actions/exec", "f755 1"),
        (".singularity.d/actions/run", "f755 1"),
        (".singularity.d/actions/shell", "f755 1"),
        (".singularity.d/actions/start", "f755 1"),
        (".singularity.d/actions/test", "f755 1"),
        (".singularity.d/env", "d755"),
        (".singularity.d/env/01-base.sh", "f755 1"),
        (".singularity.d/env/10-docker2singularity.sh", "f755 1"),
        (".singularity.d/env/90-environment.sh", "f755 1"),
        (".singularity.d/env/95-apps.sh", "f755 1"),
        (".singularity.d/env/99-base.sh", "f755 1"),
        (".singularity.d/env/99-runtimevars.sh", "f755 1"),
        (".singularity.d/labels.json", "f644 1"),
        (".singularity.d/libs", "d755"),
        (".singularity.d/runscript", "f755 1"),
        (".singularity.d/startscript", "f755 1"),
        (".test", ">.singularity.d/actions/test"),
        ("cvmfs", "d755"),
        ("dev", "d755"),
        ("environment", ">.singularity.d/env/90-environment.sh"),
        ("etc", "d755"),
        ("etc/hosts", "f644 0"),
        ("etc/resolv.conf", "f644 0"),
        ("home", "d755"),
        ("proc", "d755"),
        ("root", "d755"),
        ("singularity", ">.singularity.d/runscript"),
        ("srv", "d755"),
        ("sys", "d755"),
        ("tmp", "d1777"),
        ("var", "d755"),
        ("var/tmp", "d1777"),
    ]
    .map(|(path, what)| (path.to_owned(), what.to_owned()))
    .into();
    assert_eq!(found, expected);
}

#[test]
fn leaves_what_the_image_has() {
    let link = |target: &str| Node::new(NodeKind::Symlink { target: target.as_bytes().to_vec() }, 0o777);
    let directory = || Node::new(NodeKind::Directory { opaque: false, implicit: false }, 0o700);
    let file = || Node::new(NodeKind::Regular { content: 1, size: 5 }, 0o644);
    let found = added(&[
        ("home", link("/nowhere")),
        ("root", directory()),
        ("singularity", file()),
        ("etc/hosts", file()),
        ("etc/resolv.conf", link("/run/resolv.conf")),
        ("var", link("data/var")),
        ("cvmfs", file()),
        (".singularity.d", link("/etc")),
        (".singularity.d.other", file()),
    ]);
    for path in ["home", "root", "singularity", "etc", "etc/hosts", "var", "var/tmp", "cvmfs"] {
        assert_eq!(found.get(path), None, "{path}");
    }
    assert_eq!(found["etc/resolv.conf"], "f644 0", "a link is replaced by a file");
    assert_eq!(found[".singularity.d"], "d755", "our own tree is a directory");
    assert_eq!(found["srv"], "d755");
    let found = added(&[("etc", link("usr/etc")), (".singularity.d/env", directory())]);
    assert!(found.keys().all(|path| !path.starts_with("etc")), "nothing below a link");
    assert!(!found.contains_key(".singularity.d/env") && found.contains_key(".singularity.d/env/01-base.sh"));
}

#[test]
fn records_labels_directory_and_user() {
    let text = r#"{"created":"2026-01-02T03:04:05.678Z","config":{"Labels":{"b":"2","a":"it's \"1\""},"WorkingDir":"/w","User":"1000:100"}}"#;
    let config = Config::parse(text.as_bytes()).unwrap();
    let labels: Value = serde_json::from_slice(&labels(&config)).unwrap();
    assert_eq!(
        labels,
        serde_json::json!({"a": "it's \"1\"", "b": "2", USER_LABEL: "1000:100", WORKING_DIR_LABEL: "/w"})
    );
    let tree = as_layer::<u32>([]);
    let list = additions(&config, &tree, &[]).unwrap();
    assert!(list.iter().all(|(_, node)| node.mtime == 1_767_323_045), "the time of the build");
    assert!(list.iter().all(|(path, _)| path.as_bytes() != b"cvmfs"), "mount points are the caller's choice");
}
