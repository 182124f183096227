//! Every parameter of the table does what the table says, and `showconfig` tells it.

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use client::config::table::{Effect, Kind, Parameter, TABLE, remarks};
use client::config::{Config, ConfigError, Flags, Parameters, Sharing, Snapshot};
use common::client;

const FQRN: &str = "images.example.org";

/// A directory of configuration files with all that a mount needs.
fn directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in [
        (
            "default.local",
            "CVMFS_SERVER_URL='http://a/@fqrn@;http://b/@org@'\nCVMFS_EXTERNAL_URL='http://x;http://y'\n",
        ),
        ("keys/one.pub", ""),
        ("other-keys/two.pub", ""),
        ("map", "1 2\n"),
    ] {
        let path = directory.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    directory
}

fn load(directory: &Path, options: &[String]) -> Result<Config, ConfigError> {
    Config::load(FQRN, directory, &Flags { options: options.to_vec(), ..Flags::default() })
}

/// Everything a mount does differently for: not the parameters themselves, nor the variables of their names.
fn effect(directory: &Path, options: &[String]) -> String {
    let config = load(directory, options).unwrap_or_else(|e| panic!("{options:?}: {e}"));
    let own = |name: &Vec<u8>| name == b"CVMFS_FQRN" || name == b"CVMFS_ARCH";
    let variables: BTreeMap<_, _> = config.variables.into_iter().filter(|(name, _)| own(name)).collect();
    format!("{:?}", Config { parameters: Parameters::default(), variables, ..config })
}

/// What takes effect before there is a configuration; tests of their own below.
const ELSEWHERE: [&str; 6] = [
    "CVMFS_DEFAULT_DOMAIN",
    "CVMFS_REPOSITORIES",
    "CVMFS_STRICT_MOUNT",
    "CVMFS_CONFIG_REPOSITORY",
    "CVMFS_CONFIG_REPO_REQUIRED",
    "CVMFS_MOUNT_DIR",
];

/// Another value than the default, and what has to be set for it to matter.
fn sample(parameter: &Parameter, directory: &Path) -> (String, &'static [&'static str]) {
    let inside = |name: &str| directory.join(name).display().to_string();
    let value = match parameter.name {
        "CVMFS_EXTERNAL_FALLBACK_PROXY" => return ("http://f".into(), &["CVMFS_EXTERNAL_HTTP_PROXY=http://e"]),
        "CVMFS_EXTERNAL_MAX_SERVERS" => "1".into(),
        "CVMFS_SERVER_URL" | "CVMFS_EXTERNAL_URL" => "http://c".into(),
        "CVMFS_HTTP_PROXY" | "CVMFS_FALLBACK_PROXY" | "CVMFS_EXTERNAL_HTTP_PROXY" => "http://p:3128".into(),
        "CVMFS_IPFAMILY_PREFER" => "6".into(),
        "CVMFS_DNS_MAX_TTL" => "100".into(),
        "CVMFS_KEYS_DIR" => inside("other-keys"),
        "CVMFS_PUBLIC_KEY" | "CVMFS_BLACKLIST" | "CVMFS_UID_MAP" | "CVMFS_GID_MAP" => inside("map"),
        "CVMFS_CACHE_BASE" | "CVMFS_CACHE_DIR" | "CVMFS_ALIEN_CACHE" | "CVMFS_WORKSPACE" | "CVMFS_USYSLOG"
        | "X509_CERT_BUNDLE" | "X509_CERT_DIR" => inside("place"),
        "CVMFS_ROOT_HASH" => "e8ec3d88b62ebf526e4e5a4ff6162a3aa48a6b78".into(),
        "CVMFS_REPOSITORY_TAG" => "v1".into(),
        "CVMFS_REPOSITORY_DATE" => "2026-11-21T20:12:10Z".into(),
        "CVMFS_MAGIC_XATTRS_VISIBILITY" => "always".into(),
        "CVMFS_PASSTHROUGH" => "auto".into(),
        "CVMFS_HIDE_MAGIC_XATTRS" => "yes".into(),
        "CVMFS_XATTR_PROTECTED_XATTRS" => "user.proxy,user.host".into(),
        "CVMFS_XATTR_PRIVILEGED_GIDS" => "100,101".into(),
        "CVMFS_FQRN" | "CVMFS_ARCH" => "other".into(),
        "CVMFS_CPU_AFFINITY" => "0".into(),
        name => match parameter.kind {
            Kind::Text => panic!("no sample of {name}"),
            Kind::Flag => if parameter.default == "yes" { "no" } else { "yes" }.into(),
            Kind::Number | Kind::Signed => (parameter.default.parse().unwrap_or(0) + 1).to_string(),
        },
    };
    (value, &[])
}

#[test]
fn every_honoured_parameter_changes_the_mount_and_no_other_does() {
    let directory = directory();
    let mut walked = 0;
    for parameter in TABLE.iter().filter(|p| !ELSEWHERE.contains(&p.name)) {
        let name = parameter.name.replace('*', "x");
        let honoured = parameter.effect == Effect::Honoured;
        let (value, needs) = if honoured { sample(parameter, directory.path()) } else { ("1".into(), &[][..]) };
        let mut options: Vec<String> = needs.iter().map(|o| o.to_string()).collect();
        let before = effect(directory.path(), &options);
        options.push(format!("{name}={value}"));
        let after = effect(directory.path(), &options);
        assert_eq!(before != after, honoured, "{name}={value}\n{before}\n{after}");
        walked += 1;
    }
    assert_eq!(walked + ELSEWHERE.len(), TABLE.len());
}

#[test]
fn every_wrong_value_is_refused_with_its_name() {
    let directory = directory();
    for parameter in TABLE.iter().filter(|p| p.effect == Effect::Honoured && p.kind != Kind::Text) {
        let error = load(directory.path(), &[format!("{}=perhaps", parameter.name)]);
        let error = error.err().unwrap_or_else(|| panic!("{} takes anything", parameter.name)).to_string();
        assert!(error.contains(parameter.name) && error.contains("expected"), "{}: {error}", parameter.name);
    }
    for (option, says) in [
        ("CVMFS_ROOT_HASH=xyz", "hash of a root catalog"),
        ("CVMFS_REPOSITORY_DATE=yesterday", "2026-11-21T20:12:10Z"),
        ("CVMFS_MAGIC_XATTRS_VISIBILITY=some", "rootonly, never or always"),
        ("CVMFS_HTTP_PROXY=auto", "automatic discovery"),
        ("CVMFS_XATTR_PRIVILEGED_GIDS=wheel", "numbers of groups"),
        ("CVMFS_CPU_AFFINITY=all", "numbers of cores"),
        ("CVMFS_UID_MAP=/nonexistent", "/nonexistent"),
        ("CVMFS_QUOTA_LIMIT=9999999999999999999999", "a number"),
        ("CVMFS_TIMEOUT=-1", "a number"),
    ] {
        let error = load(directory.path(), &[option.to_owned()]).unwrap_err().to_string();
        assert!(error.contains(says), "{option}: {error}");
    }
}

#[test]
fn whoever_sets_what_has_no_effect_is_told() {
    for parameter in TABLE {
        let name = parameter.name.replace('*', "x");
        let mut parameters = Parameters::default();
        parameters.set(&name, "yes", client::config::Origin::Option);
        let told = !remarks(&parameters).is_empty();
        assert_eq!(told, matches!(parameter.effect, Effect::Missing(_)), "{name}");
    }
}

#[test]
fn snapshots_have_an_order_and_stop_updates() {
    let directory = directory();
    let all = [
        "CVMFS_REPOSITORY_DATE=2026-11-21T20:12:10Z",
        "CVMFS_REPOSITORY_TAG=v1",
        "CVMFS_ROOT_HASH=e8ec3d88b62ebf526e4e5a4ff6162a3aa48a6b78",
    ];
    let snapshot = |count: usize| {
        let config = load(directory.path(), &all[..count].iter().map(|o| o.to_string()).collect::<Vec<_>>()).unwrap();
        assert_eq!(config.auto_update, count == 0);
        config.snapshot
    };
    assert_eq!(snapshot(0), Snapshot::Newest);
    assert!(matches!(snapshot(1), Snapshot::Date(date) if date.unix_timestamp() == 1_795_291_930));
    assert_eq!(snapshot(2), Snapshot::Tag("v1".into()));
    assert!(matches!(snapshot(3), Snapshot::Root(_)));
}

#[test]
fn a_shared_directory_has_no_limit_and_leaves_private_files_elsewhere() {
    let directory = directory();
    let options = ["CVMFS_ALIEN_CACHE=/alien", "CVMFS_CACHE_BASE=/base", "CVMFS_QUOTA_LIMIT=5"].map(String::from);
    let config = load(directory.path(), &options).unwrap();
    assert_eq!((config.cache.as_path(), config.cache_limit), (Path::new("/alien"), None));
    assert_eq!(config.cache_sharing, Sharing::Group);
    assert_eq!(config.workspace, Path::new("/base/cvmfs-client/shared"));
    let options = ["CVMFS_SHARED_CACHE=no", "CVMFS_CACHE_BASE=/base", "CVMFS_WORKSPACE=/space"].map(String::from);
    let config = load(directory.path(), &options).unwrap();
    assert_eq!(config.cache, Path::new("/base/cvmfs-client/images.example.org"));
    assert_eq!(config.workspace, Path::new("/space"));
}

#[test]
fn keys_and_blacklists_have_their_places() {
    let directory = directory();
    let inside = |name: &str| directory.path().join(name);
    let config = load(directory.path(), &[]).unwrap();
    assert_eq!(config.master_keys, [inside("keys/one.pub")]);
    assert_eq!(config.blacklists, [inside("blacklist")]);
    let keys_dir = format!("CVMFS_KEYS_DIR={}", inside("other-keys").display());
    let config = load(directory.path(), std::slice::from_ref(&keys_dir)).unwrap();
    assert_eq!(config.master_keys, [inside("other-keys/two.pub")]);
    // The single key wins over the directory.
    let config = load(directory.path(), &[keys_dir, "CVMFS_PUBLIC_KEY=/k1.pub:/@fqrn@.pub".into()]).unwrap();
    assert_eq!(config.master_keys, [Path::new("/k1.pub"), Path::new("/images.example.org.pub")]);
    let shared = ["CVMFS_CONFIG_REPOSITORY=config.example.org", "CVMFS_MOUNT_DIR=/m"].join("\n");
    std::fs::write(inside("default.conf"), shared).unwrap();
    let config = load(directory.path(), &["CVMFS_BLACKLIST=/b".into()]).unwrap();
    assert_eq!(config.blacklists, [Path::new("/b"), Path::new("/m/config.example.org/etc/cvmfs/blacklist")]);
}

#[test]
fn strict_mounts_and_required_configuration_are_enforced() {
    let directory = directory();
    let load = |options: &[&str]| load(directory.path(), &options.iter().map(|o| o.to_string()).collect::<Vec<_>>());
    assert!(load(&["CVMFS_REPOSITORIES=other.example.org"]).is_ok());
    for (repositories, allowed) in
        [("a.b,images.example.org", true), ("images", true), ("a.b", false), ("", false), ("images.example", false)]
    {
        let list = format!("CVMFS_REPOSITORIES={repositories}");
        let result = load(&["CVMFS_STRICT_MOUNT=yes", "CVMFS_DEFAULT_DOMAIN=example.org", &list]);
        match result {
            Ok(_) => assert!(allowed, "{repositories}"),
            Err(error) => {
                assert!(!allowed && matches!(error, ConfigError::NotListed { .. }), "{repositories}: {error}");
            }
        }
    }
    let text = "CVMFS_CONFIG_REPOSITORY=config.example.org\nCVMFS_CONFIG_REPO_REQUIRED=yes\nCVMFS_MOUNT_DIR=";
    let mounts = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("default.conf"), format!("{text}{}\n", mounts.path().display())).unwrap();
    assert!(matches!(load(&[]), Err(ConfigError::ConfigRepository { .. })));
    std::fs::create_dir_all(mounts.path().join("config.example.org/etc/cvmfs")).unwrap();
    assert!(load(&[]).is_ok());
}

#[test]
fn showconfig_prints_every_honoured_parameter_with_its_origin() {
    let directory = directory();
    let run = |extra: &[&str]| {
        let output = client()
            .args(["showconfig", "images", "-o", "CVMFS_TIMEOUT=9,CVMFS_SUID=yes,CVMFS_TIMEOT=1,SITE=x"])
            .args(["-o", "CVMFS_DEFAULT_DOMAIN=example.org", "--proxy", "http://p:3128", "--config-dir"])
            .arg(directory.path())
            .args(extra)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (text, warnings) = run(&[]);
    for parameter in TABLE.iter().filter(|p| p.effect == Effect::Honoured) {
        let start = format!("{}=", parameter.name);
        assert_eq!(text.lines().filter(|line| line.starts_with(&start)).count(), 1, "{start}\n{text}");
    }
    let file = directory.path().join("default.local");
    for line in [
        "CVMFS_REPOSITORY_NAME=images.example.org".to_owned(),
        format!("CVMFS_SERVER_URL=http://a/@fqrn@;http://b/@org@    # from {}", file.display()),
        "CVMFS_TIMEOUT=9    # from -o".to_owned(),
        "CVMFS_HTTP_PROXY=http://p:3128    # from the command line".to_owned(),
        "CVMFS_QUOTA_LIMIT=4000    # built-in default".to_owned(),
        "CVMFS_REPOSITORY_TAG=    # not set".to_owned(),
        "CVMFS_SUID=yes    # from -o; no effect: the mount is always nosuid; an overlay on top honours them".to_owned(),
        "CVMFS_TIMEOT=1    # from -o; unknown".to_owned(),
        "SITE=x    # from -o; symlink variable".to_owned(),
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    assert!(warnings.contains("did you mean CVMFS_TIMEOUT?") && warnings.contains("CVMFS_SUID=yes"), "{warnings}");
    let (json, _) = run(&["--json"]);
    let json: Vec<serde_json::Value> = serde_json::from_str(&json).unwrap();
    let find = |name: &str| json.iter().find(|line| line["name"] == name).unwrap();
    assert_eq!(find("CVMFS_TIMEOUT")["value"], "9");
    assert_eq!(find("CVMFS_TIMEOUT")["origin"], "from -o");
    assert_eq!(find("CVMFS_SUID")["honoured"], false);
    assert_eq!(find("CVMFS_MAX_RETRIES")["origin"], "built-in default");
}
