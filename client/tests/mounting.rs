//! What a user of mounts sees through the kernel: snapshots, variables, information, one cache for several mounts,
//! other users.

mod common;

use std::os::unix::fs::{MetadataExt as _, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use client::remount::Outcome;
use common::listing::{actual, difference, expected};
use common::{Mount, Server, World, client, has_fuse, read, wait_for};

fn attribute(path: &Path, name: &str) -> Option<String> {
    xattr::get(path, name).unwrap().map(|value| String::from_utf8(value).unwrap())
}

/// Paths of a mounted tree, its root included.
fn count(path: &Path) -> usize {
    let metadata = std::fs::symlink_metadata(path).unwrap();
    let below =
        if metadata.is_dir() { std::fs::read_dir(path).unwrap().map(|e| count(&e.unwrap().path())).sum() } else { 0 };
    1 + below
}

fn says(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout)
}

/// Tags of `basic`: name, revision, paths below it (from the fixtures' README).
const TAGS: [(&str, u64, usize); 8] = [
    ("generic-2026-11-21T20:12:10Z", 1, 2),
    ("v1", 2, 284),
    ("generic-2026-11-21T20:14:38Z", 3, 912),
    ("v2", 4, 940),
    ("trunk-previous", 5, 958),
    ("v3/rc-1", 5, 958),
    ("generic-2026-11-21T20:14:45Z", 6, 953),
    ("trunk", 6, 953),
];

#[test]
fn every_tag_can_be_mounted() {
    if !has_fuse() {
        return;
    }
    let world = World::new("basic");
    for (tag, revision, paths) in TAGS {
        let mount = world.mount(&[&format!("CVMFS_REPOSITORY_TAG={tag}")]);
        assert_eq!(count(&mount.path), paths, "{tag}");
        for (name, value) in [
            ("user.tag", tag),
            ("user.expires", "never (fixed root catalog)"),
            ("user.revision", &revision.to_string()),
        ] {
            assert_eq!(attribute(&mount.path, name).as_deref(), Some(value), "{tag}");
        }
        assert_eq!(mount.remount(), Outcome::Fixed { revision });
        assert_eq!((mount.status().next_check, mount.status().tag.as_deref()), (None, Some(tag)));
        let output = client().arg("status").arg(&mount.path).output().unwrap();
        assert!(says(&output).contains(&format!("\nsnapshot    {tag}\n")), "{output:?}");
        mount.unmount();
    }
    let output = world.try_mount(&["CVMFS_REPOSITORY_TAG=v4"]).err().unwrap();
    assert_eq!(output.status.code(), Some(4));
    assert!(
        says(&output).contains("basic.fixture.example.org has no tag \"v4\"; the nearest of 8 are v1, v2"),
        "{output:?}"
    );
}

#[test]
fn a_date_means_the_newest_revision_before_it() {
    if !has_fuse() {
        return;
    }
    let world = World::new("basic");
    let info: serde_json::Value =
        serde_json::from_slice(&std::fs::read(common::about("basic", "info.json")).unwrap()).unwrap();
    for tag in info["tags"].as_array().unwrap() {
        let (at, revision) = (tag["timestamp"].as_i64().unwrap(), tag["revision"].as_u64().unwrap());
        let at = time::UtcDateTime::from_unix_timestamp(at).unwrap();
        let date = at.format(&time::format_description::well_known::Rfc3339).unwrap();
        let mount = world.mount(&[&format!("CVMFS_REPOSITORY_DATE={date}")]);
        assert_eq!(mount.status().revision, revision, "{date}");
        assert!(attribute(&mount.path, "user.tag").is_some_and(|tag| !tag.is_empty()));
        mount.unmount();
    }
    let output = world.try_mount(&["CVMFS_REPOSITORY_DATE=2020-01-01T00:00:00Z"]).err().unwrap();
    assert!(says(&output).contains("the oldest is generic-2026-11-21T20:12:10Z"), "{output:?}");
}

#[test]
fn root_hash_tag_and_date_count_in_this_order() {
    if !has_fuse() {
        return;
    }
    let world = World::new("basic");
    // The root catalog of v1.
    let root = "CVMFS_ROOT_HASH=e29829bf9d55faed04482f7b244486e227e1ce4b";
    let (tag, date) = ("CVMFS_REPOSITORY_TAG=v2", "CVMFS_REPOSITORY_DATE=2026-11-21T20:14:39Z");
    for (options, revision) in [(&[date][..], 3), (&[date, tag], 4), (&[tag, root], 2), (&[root], 2)] {
        let mount = world.mount(options);
        assert_eq!(mount.status().revision, revision, "{options:?}");
        mount.unmount();
    }
}

#[test]
fn a_snapshot_mounted_before_can_be_mounted_without_servers() {
    if !has_fuse() {
        return;
    }
    let mut world = World::new("basic");
    let option = "CVMFS_REPOSITORY_TAG=v2";
    let mount = world.mount(&[option]);
    let content = read(&mount.join("sizes/text-65536")).unwrap();
    mount.unmount();
    world.server.stop();
    let mount = world.mount(&[option]);
    assert_eq!(attribute(&mount.path, "user.tag").as_deref(), Some("v2"));
    assert_eq!(read(&mount.join("sizes/text-65536")).unwrap(), content);
    assert!(mount.status().offline.is_some());
    mount.unmount();
    assert!(world.try_mount(&["CVMFS_REPOSITORY_TAG=v1"]).is_err(), "never mounted before");
}

#[test]
fn without_servers_the_cache_is_shown_and_the_rest_is_an_error() {
    if !has_fuse() {
        return;
    }
    let mut world = World::new("basic");
    let mount = world.mount(&[]);
    let content = read(&mount.join("sizes/text-65536")).unwrap();
    std::fs::read_dir(mount.join("many")).unwrap().for_each(drop);
    mount.unmount();
    world.server.stop();
    let mount = world.mount(&[]);
    let status = mount.status();
    assert_eq!((status.revision, status.offline.is_some()), (6, true));
    assert_eq!(read(&mount.join("sizes/text-65536")).unwrap(), content);
    assert_eq!(read(&mount.join("sizes/random-65536")), Err(libc::EIO));
    assert_eq!(read(&mount.join("sizes/no-such-file")), Err(libc::ENOENT));
    assert_eq!(read(&mount.join("many/no-such-file")), Err(libc::ENOENT));
    assert_eq!(read(&mount.join("nested/sibling/no-such-file")), Err(libc::EIO), "its catalog is not there");
    assert!(matches!(mount.remount(), Outcome::Failed { revision: 6, .. }));
    assert!(status.next_check.is_some_and(|seconds| seconds <= 180));
}

#[test]
fn link_variables_can_be_set_and_unset() {
    if !has_fuse() {
        return;
    }
    let world = World::new("basic");
    let fqrn = world.fqrn();
    let target = |options: &[&str], link: &str| {
        let mount = world.mount(options);
        let target = std::fs::read_link(mount.join(link)).unwrap();
        let size = std::fs::symlink_metadata(mount.join(link)).unwrap().size();
        mount.unmount();
        let target = target.into_os_string().into_string().unwrap();
        assert_eq!(size, target.len() as u64);
        target
    };
    let link = "links/var-fqrn";
    assert_eq!(target(&[], link), format!("/cvmfs/{fqrn}/links/target"), "as started by name");
    assert_eq!(target(&["unset=CVMFS_FQRN"], link), "/cvmfs//links/target", "as in the listing");
    assert_eq!(target(&["CVMFS_FQRN=a.b"], link), "/cvmfs/a.b/links/target");
    // The listing as a whole, without patching it.
    let mount = world.mount(&["CVMFS_MAGIC_XATTRS_VISIBILITY=never", "FIXTURE_VAR=target", "unset=CVMFS_FQRN"]);
    assert_eq!(difference(&expected("basic"), &actual(&mount.path)), "");
}

#[test]
fn every_information_attribute_has_a_sensible_value() {
    if !has_fuse() {
        return;
    }
    let world = World::new("basic");
    let mount = world.mount(&["CVMFS_TIMEOUT=7", "CVMFS_TIMEOUT_DIRECT=8", "CVMFS_EXTERNAL_TIMEOUT=9"]);
    let status = mount.status();
    let file = mount.join("sizes/text-65536");
    assert_eq!(attribute(&file, "user.lhash").as_deref(), Some("Not in cache"));
    let listing = expected("basic");
    let object = listing[&b"/sizes/text-65536"[..]]["object"].as_str().unwrap().to_owned();
    read(&file).unwrap();
    read(&file).unwrap();
    let host = world.server.repository().replace("@fqrn@", &world.fqrn());
    let number = |value: &str| value.parse::<u64>().is_ok();
    let pid = status.pid.to_string();
    type Check<'a> = Box<dyn Fn(&str) -> bool + 'a>;
    let is = |expected: &str| -> Check<'_> {
        let expected = expected.to_owned();
        Box::new(move |value| value == expected)
    };
    let above = |least: u64| -> Check<'_> { Box::new(move |value| value.parse::<u64>().is_ok_and(|v| v >= least)) };
    let checks: Vec<(&str, Check<'_>)> = vec![
        ("user.fqrn", is("basic.fixture.example.org")),
        ("user.revision", is("6")),
        ("user.root_hash", is("e99b7612f31606a2c64e48982da260cd18e3628c")),
        ("user.tag", is("")),
        ("user.version", Box::new(|v| v.split('.').count() == 4 && v.split('.').all(number))),
        ("user.expires", Box::new(|v| v == "3" || v == "4")),
        ("user.pid", is(&pid)),
        ("user.uptime", Box::new(number)),
        ("user.maxfd", above(1024)),
        ("user.usedfd", Box::new(number)),
        ("user.useddirp", Box::new(number)),
        ("user.inode_max", above(2)),
        ("user.nclg", above(1)),
        ("user.host", is(&host)),
        ("user.host_list", is(&host)),
        ("user.proxy", is("DIRECT")),
        ("user.proxy_list", is("DIRECT")),
        ("user.proxy_list_external", is("")),
        ("user.external_host", is("")),
        ("user.timeout", is("7")),
        ("user.timeout_direct", is("8")),
        ("user.external_timeout", is("9")),
        ("user.nopen", above(1)),
        ("user.ndiropen", Box::new(number)),
        ("user.ndownload", above(2)),
        ("user.hitrate", Box::new(|v| v.parse::<f64>().is_ok_and(|v| (0.0..=1.0).contains(&v)))),
        ("user.nioerr", is("0")),
        ("user.timestamp_last_ioerr", is("0")),
        ("user.ncleanup24", is("0")),
        ("user.rx", above(1)),
        ("user.speed", Box::new(number)),
        ("user.logbuffer", Box::new(|v| v.contains("mounted"))),
        ("user.pubkeys", Box::new(|v| v.starts_with("-----BEGIN PUBLIC KEY-----"))),
        ("user.repo_metainfo", Box::new(|v| serde_json::from_str::<serde_json::Value>(v).is_ok_and(|v| v.is_object()))),
        ("user.repo_counters", Box::new(|v| v.contains("regular,814\n") && v.contains("special,10\n"))),
        (
            "user.catalog_counters",
            Box::new(|v| v.starts_with("catalog_hash: e99b7612") && v.contains("\ncatalog_mountpoint: ")),
        ),
    ];
    // Nothing that listings show is left out, and the other way round.
    let listed: Vec<String> = xattr::list(&mount.path).unwrap().map(|n| n.into_string().unwrap()).collect();
    let mut names: Vec<&str> = checks.iter().map(|(name, _)| *name).collect();
    names.sort_unstable();
    assert_eq!(listed, names);
    assert_eq!(names.len(), client::xattr::GENERAL.len());
    for (name, check) in &checks {
        for path in [&mount.path, &mount.join("sizes"), &file] {
            let value = attribute(path, name).unwrap_or_else(|| panic!("{name} of {}", path.display()));
            assert!(check(&value), "{name} of {} is {value:?}", path.display());
        }
    }
    for (name, value) in [
        ("user.hash", Some(object.as_str())),
        ("user.lhash", Some(object.as_str())),
        ("user.chunks", Some("1")),
        ("user.chunk_list", Some(&*format!("hash,offset,size\n{object},0,65536\n"))),
        ("user.compression", Some("zlib")),
        ("user.external_file", Some("0")),
        ("user.direct_io", Some("0")),
        ("user.bundle_trigger", Some("0")),
        ("user.external_url", None),
        ("user.rawlink", None),
        ("user.authz", None),
        ("user.nonsense", None),
    ] {
        assert_eq!(attribute(&file, name).as_deref(), value, "{name}");
        assert!(name == "user.nonsense" || attribute(&mount.path, name).is_none(), "{name} of a directory");
    }
    let link = mount.join("links/var-fqrn");
    assert_eq!(attribute(&link, "xfsroot.rawlink").as_deref(), Some("/cvmfs/$(CVMFS_FQRN)/links/target"));
    // Pages.
    assert_eq!(attribute(&mount.path, "user.pubkeys~?").as_deref(), Some("num_pages, 1"));
    assert_eq!(attribute(&mount.path, "user.pubkeys~0"), attribute(&mount.path, "user.pubkeys"));
    assert!(attribute(&mount.path, "user.pubkeys@0").is_some_and(|v| v.starts_with("# page 0 of 1\n-----BEGIN")));
    assert_eq!(attribute(&mount.path, "user.pubkeys~1"), None);
    assert_eq!(attribute(&mount.path, "user.pubkeys~x"), None);
}

#[test]
fn who_sees_information_is_configured() {
    if !has_fuse() {
        return;
    }
    let world = World::new("basic");
    let names = |path: PathBuf| xattr::list(path).unwrap().count();
    for (option, root, directory, file) in [
        ("CVMFS_MAGIC_XATTRS_VISIBILITY=rootonly", true, false, false),
        ("CVMFS_MAGIC_XATTRS_VISIBILITY=never", false, false, false),
        ("CVMFS_MAGIC_XATTRS_VISIBILITY=always", true, true, true),
        ("CVMFS_HIDE_MAGIC_XATTRS=yes", false, false, false),
        ("CVMFS_HIDE_MAGIC_XATTRS=no", true, true, true),
    ] {
        let mount = world.mount(&[option]);
        for (path, shown) in [("", root), ("sizes", directory), ("sizes/text-65536", file)] {
            assert_eq!(names(mount.join(path)) > 0, shown, "{option} {path}");
        }
        assert!(attribute(&mount.join("sizes"), "user.revision").is_some(), "asked for by name it is always there");
        mount.unmount();
    }
    let mount =
        world.mount(&["CVMFS_XATTR_PROTECTED_XATTRS=user.pubkeys,user.pid", "CVMFS_XATTR_PRIVILEGED_GIDS=4242"]);
    let open = PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(world.directory.path(), open).unwrap();
    let asked_by = |gid: u32, name: &str| {
        let (path, name) = (mount.path.clone(), name.to_owned());
        let ask = move || {
            // Of this thread only.
            nix::unistd::setfsgid(nix::unistd::Gid::from_raw(gid));
            nix::unistd::setfsuid(nix::unistd::Uid::from_raw(65534));
            attribute(&path, &name)
        };
        std::thread::spawn(ask).join().unwrap()
    };
    assert_eq!(asked_by(65534, "user.pid"), None);
    assert_eq!(asked_by(65534, "user.pid~0"), None, "a page is no way around it");
    assert_eq!(asked_by(4242, "user.pid"), Some(mount.status().pid.to_string()));
    assert_eq!(asked_by(65534, "user.revision").as_deref(), Some("6"));
    assert!(attribute(&mount.path, "user.pid").is_some(), "root");
}

#[test]
fn probe_reads_what_is_configured_or_named() {
    if !has_fuse() {
        return;
    }
    let world = World::new("basic");
    let (mounts, config) = (world.directory.path().join("cvmfs"), world.directory.path().join("etc"));
    let (here, absent) = (mounts.join(world.fqrn()), mounts.join("absent.example.org"));
    for directory in [&here, &absent, &config] {
        std::fs::create_dir_all(directory).unwrap();
    }
    let text =
        |repositories: &str| format!("CVMFS_MOUNT_DIR={}\nCVMFS_REPOSITORIES={repositories}\n", mounts.display());
    let probe = |arguments: &[&str]| {
        let output = client().arg("probe").args(arguments).arg("--config-dir").arg(&config).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let output = client().args(world.mount_arguments(&here, &[])).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let mount = Mount { path: here.clone() };
    let line = |path: &Path, result: &str| format!("Probing {}... {result}\n", path.display());
    let (good, bad) = (line(&here, "OK"), line(&absent, "Failed!"));
    std::fs::write(config.join("default.local"), text("basic.fixture.example.org,absent.example.org")).unwrap();
    assert_eq!(probe(&[]), (Some(1), format!("{good}{bad}")));
    std::fs::write(config.join("default.local"), text("basic.fixture.example.org")).unwrap();
    assert_eq!(probe(&[]), (Some(0), good.clone()));
    assert_eq!(probe(&["absent.example.org"]), (Some(1), bad));
    assert_eq!(probe(&[&world.fqrn(), here.to_str().unwrap()]), (Some(0), format!("{good}{good}")));
    drop(mount);
    wait_for("the end of the mount", || probe(&[]).0 == Some(1));
}

/// Mounts a world with another cache than its own.
fn mount_with_cache(world: &World, cache: &Path, options: &[&str]) -> Mount {
    let path = world.directory.path().join("mnt");
    let _ = std::fs::create_dir(&path);
    let mut arguments = world.mount_arguments(&path, options);
    let at = arguments.iter().position(|argument| argument == "--cache").unwrap();
    arguments[at + 1] = cache.into();
    let output = client().args(arguments).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    Mount { path }
}

#[test]
fn mounts_of_several_repositories_share_a_cache_and_its_limit() {
    if !has_fuse() {
        return;
    }
    let cache = tempfile::tempdir().unwrap();
    let cache = cache.path().join("shared");
    const LIMIT: u64 = 96 << 20;
    let options =
        ["CVMFS_QUOTA_LIMIT=96", "CVMFS_MAGIC_XATTRS_VISIBILITY=never", "FIXTURE_VAR=target", "unset=CVMFS_FQRN"];
    let fixtures = ["basic", "chunked", "shake", "plain", "hardlinks"];
    let worlds: Vec<World> = fixtures.iter().map(|fixture| World::new(fixture)).collect();
    let mounts: Vec<Mount> = worlds.iter().map(|world| mount_with_cache(world, &cache, &options)).collect();
    std::thread::scope(|scope| {
        let readers: Vec<_> = fixtures
            .iter()
            .zip(&mounts)
            .map(|(fixture, mount)| {
                scope.spawn(move || {
                    let difference = difference(&expected(fixture), &actual(&mount.path));
                    assert_eq!(difference, "", "{fixture}");
                })
            })
            .collect();
        readers.into_iter().for_each(|reader| reader.join().unwrap());
    });
    let on_disk = || -> u64 {
        let buckets = std::fs::read_dir(&cache).unwrap().flatten().filter(|e| e.file_name().len() == 2);
        let files = buckets.flat_map(|bucket| std::fs::read_dir(bucket.path()).unwrap().flatten());
        files.map(|file| file.metadata().map_or(0, |m| m.len())).sum()
    };
    assert!(on_disk() <= LIMIT, "{}", on_disk());
    let states: Vec<_> = mounts.iter().map(Mount::status).collect();
    assert!(states.iter().all(|status| status.cache_used == states[0].cache_used), "one account for all");
    assert!(states.iter().any(|status| status.cache_evictions > 0), "the limit was never reached");
    assert!(states.iter().all(|status| status.cache_used <= LIMIT));
}

#[test]
fn a_second_mount_of_one_repository_downloads_nothing() {
    if !has_fuse() {
        return;
    }
    let world = World::new("hardlinks");
    // What tells of the current revision is asked for each time.
    let objects = || {
        let named = [".cvmfspublished", ".cvmfswhitelist"].map(|name| world.server.requests(name));
        world.server.requests("") - named.iter().sum::<usize>()
    };
    let first = world.mount(&["CVMFS_MAGIC_XATTRS_VISIBILITY=never"]);
    assert_eq!(difference(&expected("hardlinks"), &actual(&first.path)), "");
    let before = objects();
    let path = world.directory.path().join("second");
    std::fs::create_dir(&path).unwrap();
    let output =
        client().args(world.mount_arguments(&path, &["CVMFS_MAGIC_XATTRS_VISIBILITY=never"])).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let second = Mount { path };
    assert_eq!(difference(&expected("hardlinks"), &actual(&second.path)), "");
    assert_eq!((second.status().downloads, objects()), (0, before));
    assert!(before > 5, "{before}");
}

#[test]
fn objects_land_in_a_directory_of_the_repository_below_the_configured_base() {
    if !has_fuse() {
        return;
    }
    let world = World::new("hardlinks");
    let base = world.directory.path().join("base");
    let path = world.directory.path().join("mnt");
    std::fs::create_dir(&path).unwrap();
    let base_option = format!("CVMFS_CACHE_BASE={}", base.display());
    let mut arguments = world.mount_arguments(&path, &[&base_option, "CVMFS_SHARED_CACHE=no"]);
    let at = arguments.iter().position(|argument| argument == "--cache").unwrap();
    arguments.drain(at..at + 2);
    let output = client().args(arguments).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let mount = Mount { path };
    read(&mount.join("hl/single")).unwrap();
    let own = base.join("cvmfs-client").join(world.fqrn());
    assert_eq!(mount.status().cache, own.display().to_string());
    let object = expected("hardlinks")[&b"/hl/single"[..]]["object"].as_str().unwrap().to_owned();
    assert!(own.join(&object[..2]).join(&object[2..]).is_file(), "{object}");
    assert!(!base.join("cvmfs-client/shared").exists() && !world.cache().exists());
}

#[test]
fn the_kernel_asks_again_each_time_when_it_may_keep_nothing() {
    if !has_fuse() {
        return;
    }
    let world = World::new("hardlinks");
    for (timeout, keeps) in [("0", false), ("60", true)] {
        let mount = world.mount(&[&format!("CVMFS_KCACHE_TIMEOUT={timeout}")]);
        let file = mount.join("hl/single");
        let look = || std::fs::symlink_metadata(&file).map(drop).unwrap();
        look();
        let before = mount.status().lookups;
        (0..10).for_each(|_| look());
        let asked = mount.status().lookups - before;
        // Two names on the way.
        assert!(if keeps { asked == 0 } else { asked >= 20 }, "{asked} lookups with {timeout} s");
        mount.unmount();
    }
}

#[test]
fn a_group_shares_an_alien_cache() {
    if !has_fuse() {
        return;
    }
    let world = World::new("hardlinks");
    let alien = world.directory.path().join("alien");
    let option = format!("CVMFS_ALIEN_CACHE={}", alien.display());
    let mount = world.mount(&[&option, "CVMFS_QUOTA_LIMIT=1"]);
    assert!(count(&mount.path) > 10);
    let status = mount.status();
    assert_eq!((status.cache, status.cache_limit), (alien.display().to_string(), None));
    let catalog = alien.join(&status.root_hash[..2]).join(&status.root_hash[2..]);
    assert_eq!(std::fs::metadata(&catalog).unwrap().permissions().mode() & 0o777, 0o660);
    assert!(
        world.cache().join("inodes").is_dir()
            && world.cache().join("breadcrumb.hardlinks.fixture.example.org").is_file()
    );
}

#[test]
fn open_files_have_a_limit() {
    if !has_fuse() {
        return;
    }
    let world = World::new("basic");
    // 512 are kept for the client itself.
    let mount = world.mount(&["CVMFS_NFILES=532", "passthrough=auto"]);
    if mount.status().passthrough != "on" {
        println!("skipped: no passthrough ({})", mount.status().passthrough);
        return;
    }
    let files: Vec<PathBuf> =
        std::fs::read_dir(mount.join("many")).unwrap().map(|e| e.unwrap().path()).take(40).collect();
    let results: Vec<_> = files.iter().map(std::fs::File::open).collect();
    let open = results.iter().filter(|result| result.is_ok()).count();
    assert_eq!(open, 20);
    let error = results.iter().find_map(|result| result.as_ref().err()).unwrap();
    assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
    drop(results);
    wait_for("the files to be closed", || std::fs::File::open(&files[0]).is_ok());
}

#[test]
fn an_ordinary_user_can_mount() {
    if !has_fuse() {
        return;
    }
    if Command::new("fusermount3").arg("--version").output().is_err() {
        println!("skipped: fusermount3 is not installed");
        assert!(std::env::var_os("ALL_TESTS").is_none(), "ALL_TESTS is set, and this one cannot run");
        return;
    }
    let world = World::new("basic");
    const USER: u32 = 65534;
    let home = world.directory.path().join("home");
    let mountpoint = home.join("mnt");
    std::fs::create_dir_all(&mountpoint).unwrap();
    std::fs::set_permissions(world.directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
    for path in [&home, &mountpoint] {
        std::os::unix::fs::chown(path, Some(USER), Some(USER)).unwrap();
    }
    // The place where it was built may not be open to others.
    let program = world.directory.path().join("cvmfs-client");
    std::fs::copy(env!("CARGO_BIN_EXE_cvmfs-client"), &program).unwrap();
    let key = world.directory.path().join("key.pub");
    std::fs::copy(world.key(), &key).unwrap();
    // Everybody may use /dev/fuse on an ordinary machine; here it is made so for this test alone.
    let script = r#"
        set -e
        cd "$1"
        mknod fuse c 10 229; chmod 666 fuse; mount --bind fuse /dev/fuse
        # So is the table of mounts that fusermount3 looks at: a minimal system has none.
        if [ ! -e /etc/mtab ]; then
            mkdir etc; mount -t tmpfs etc etc; mkdir etc/upper etc/work
            mount -t overlay -o "lowerdir=/etc,upperdir=$PWD/etc/upper,workdir=$PWD/etc/work" etc /etc
            ln -s /proc/self/mounts /etc/mtab
        fi
        user() { setpriv --reuid=65534 --regid=65534 --clear-groups env HOME="$PWD/home" XDG_RUNTIME_DIR="$PWD/home" "$@"; }
        m="$PWD/home/mnt"
        user ./cvmfs-client mount "$2" "$m" --server-url "$3" --public-key key.pub -o CVMFS_MAX_RETRIES=0 --config-dir /nonexistent
        grep " $m " /proc/self/mountinfo
        user ./cvmfs-client status "$m"
        user ./cvmfs-client probe "$m"
        echo "bytes $(user cat "$m/sizes/text-65536" | wc -c)"
        user ./cvmfs-client umount "$m"
        echo "left $(ls -A "$m" | wc -l)"
    "#;
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", script, "sh"])
        .arg(world.directory.path())
        .args([world.fqrn(), world.server.repository()])
        .env_remove("XDG_CACHE_HOME")
        .output()
        .unwrap();
    let text = says(&output);
    assert!(output.status.success(), "{text}");
    for expected in ["revision    6 (", "... OK\n", "bytes 65536\n", "left 0\n"] {
        assert!(text.contains(expected), "{expected}\n{text}");
    }
    let line = text.lines().find(|line| line.contains(" - fuse")).unwrap();
    for option in ["ro", "nosuid", "nodev", "user_id=65534", "default_permissions"] {
        assert!(line.split([' ', ',']).any(|word| word == option), "{option} in {line}");
    }
    assert!(home.join(".cache/cvmfs-client/shared/format").is_file());
}

#[test]
fn whoever_may_not_use_fuse_is_told() {
    if !has_fuse() {
        return;
    }
    let world = World::new("hardlinks");
    let mountpoint = world.directory.path().join("mnt");
    std::fs::create_dir(&mountpoint).unwrap();
    std::fs::set_permissions(world.directory.path(), PermissionsExt::from_mode(0o777)).unwrap();
    let program = world.directory.path().join("cvmfs-client");
    std::fs::copy(env!("CARGO_BIN_EXE_cvmfs-client"), &program).unwrap();
    let key = world.directory.path().join("key.pub");
    std::fs::copy(world.key(), &key).unwrap();
    let device = world.directory.path().join("fuse");
    let script = "mknod \"$0\" c 10 229; chmod 600 \"$0\"; mount --bind \"$0\" /dev/fuse; \
                  exec setpriv --reuid=65534 --regid=65534 --clear-groups \"$@\"";
    let mut arguments = world.mount_arguments(&mountpoint, &[]);
    let at = arguments.iter().position(|argument| argument == "--public-key").unwrap();
    arguments[at + 1] = key.into();
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", script])
        .args([device, program])
        .args(arguments)
        .env("XDG_RUNTIME_DIR", world.directory.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    assert!(says(&output).contains("cannot use /dev/fuse"), "{output:?}");
}

#[test]
fn the_process_obeys_its_parameters() {
    if !has_fuse() {
        return;
    }
    let world = World::new("hardlinks");
    let log = world.directory.path().join("client.log");
    let log_option = format!("CVMFS_USYSLOG={}", log.display());
    let options = ["CVMFS_OOM_SCORE_ADJ=321", "CVMFS_CPU_AFFINITY=0", "CVMFS_NFILES=4321", "CVMFS_FUSE3_MAX_THREADS=3"];
    let mount = world.mount(&[&options[..], &[&log_option, "CVMFS_QUOTALIMIT=9"]].concat());
    let about = |name: &str| {
        let pid = mount.status().pid;
        std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap()
    };
    assert_eq!(about("oom_score_adj").trim(), "321");
    assert!(about("status").lines().any(|line| line == "Cpus_allowed_list:\t0"));
    let limits = about("limits");
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let soft: u64 = files.split_whitespace().nth(3).unwrap().parse().unwrap();
    assert!(soft >= 4321, "{files}");
    assert_eq!(attribute(&mount.path, "user.maxfd"), Some(soft.to_string()));
    let text = std::fs::read_to_string(&log).unwrap();
    assert!(text.contains("mounted") && text.contains("did you mean CVMFS_QUOTA_LIMIT?"), "{text}");
}

#[test]
fn a_damaged_file_of_the_cache_shows_in_its_hash() {
    if !has_fuse() {
        return;
    }
    // zlib, not compressed, and the two other algorithms.
    for fixture in ["basic", "plain", "rmd", "shake"] {
        let world = World::new(fixture);
        let mount = world.mount(&[]);
        let wanted = |facts: &common::listing::Facts| {
            facts["type"] == "file" && facts.contains_key("object") && facts["size"].as_u64() > Some(100)
        };
        let path = expected(fixture).into_iter().find(|(_, facts)| wanted(facts)).unwrap().0;
        let path = String::from_utf8(path).unwrap();
        let file = mount.join(&path);
        read(&file).unwrap();
        let (hash, again) = (attribute(&file, "user.hash"), attribute(&file, "user.lhash"));
        assert_eq!(hash, again, "{fixture} {path}");
        let hash = hash.unwrap();
        let bucket = std::fs::read_dir(world.cache().join(&hash[..2])).unwrap();
        let object = bucket.map(|e| e.unwrap().path()).find(|p| p.to_str().unwrap().contains(&hash[2..])).unwrap();
        let mut bytes = std::fs::read(&object).unwrap();
        bytes[50] ^= 1;
        std::fs::write(&object, bytes).unwrap();
        assert_ne!(attribute(&file, "user.lhash").as_deref(), Some(hash.as_str()), "{fixture} {path}");
    }
}

#[test]
fn a_strict_machine_mounts_only_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let text = "CVMFS_STRICT_MOUNT=yes\nCVMFS_REPOSITORIES=a.example.org\nCVMFS_SERVER_URL=http://127.0.0.1:1/\n";
    std::fs::write(directory.path().join("default.local"), text).unwrap();
    let output = client()
        .args(["mount", "b.example.org", "/nonexistent", "--config-dir"])
        .arg(directory.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(says(&output).contains("b.example.org is not in CVMFS_REPOSITORIES=a.example.org"), "{output:?}");
}

#[test]
fn a_server_for_nobody_is_not_asked() {
    // A fixed root catalog in the cache needs no server at all.
    if !has_fuse() {
        return;
    }
    let world = World::new("basic");
    let option = "CVMFS_ROOT_HASH=e29829bf9d55faed04482f7b244486e227e1ce4b";
    world.mount(&[option]).unmount();
    let (before, _other) = (world.server.requests(""), Server::start(world.directory.path()));
    world.mount(&[option]).unmount();
    assert_eq!(world.server.requests(""), before);
}
