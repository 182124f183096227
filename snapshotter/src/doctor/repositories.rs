//! Repositories: can they be read, what is in them, and how are they mounted?

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use futures_util::future::join_all;
use mountinfo::{MountPoint, MountTable};

use super::Check;
use crate::config::{Config, RepositoryConfig};

/// Layers that are looked into.
const SAMPLE: usize = 3;
/// Files that belong to no user or group 0 in images of common distributions.
const FOREIGN: [&str; 10] = [
    "etc/shadow",
    "etc/gshadow",
    "var/mail",
    "var/spool/mail",
    "var/local",
    "var/cache/man",
    "usr/bin/wall",
    "usr/bin/chage",
    "usr/bin/crontab",
    "home/user",
];

/// What was seen in a repository.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// `.layers`
    pub layers: bool,
    /// `.index/chain-id`
    pub index: bool,
    /// layers that were looked into
    pub sampled: usize,
    /// how many of them have no record of their format: the existing tool wrote them
    pub legacy: usize,
    /// owners of the roots of their trees
    pub roots: Vec<(u32, u32)>,
    /// owners of files that usually belong to somebody else
    pub others: Vec<(u32, u32)>,
    /// one of them is of Debian, where such files certainly belong to somebody else
    pub debian_shadow: Option<u32>,
}

/// Looks at all of them.
pub async fn examine(config: &Config) -> Vec<Check> {
    let mounts = MountTable::own().unwrap_or_default();
    let looks = config.repositories.iter().zip(config.repositories()).map(|(settings, repository)| async move {
        (settings, repository.look(|mountpoint| look(mountpoint).map(Some)).await.map(Option::unwrap_or_default))
    });
    let mut checks = Vec::new();
    for (settings, seen) in join_all(looks).await {
        checks.extend(judge(settings, seen.map_err(|down| down.why), &mounts));
    }
    checks
}

/// Looks into a repository. Blocks.
fn look(mountpoint: &Path) -> io::Result<Seen> {
    let mut seen = Seen {
        layers: mountpoint.join(".layers").is_dir(),
        index: mountpoint.join(".index/chain-id").is_dir(),
        ..Seen::default()
    };
    if !seen.layers {
        // Nothing there at all is not the same as no layers.
        if fs::read_dir(mountpoint)?.next().is_none() {
            return Err(io::Error::new(
                io::ErrorKind::NotConnected,
                "the directory is empty; nothing is mounted there",
            ));
        }
        return Ok(seen);
    }
    let buckets = fs::read_dir(mountpoint.join(".layers"))?.flatten();
    let layers = buckets.filter_map(|bucket| fs::read_dir(bucket.path()).ok()?.flatten().next());
    for layer in layers.map(|entry| entry.path()).filter(|path| path.join("layerfs").is_dir()).take(SAMPLE) {
        seen.sampled += 1;
        seen.legacy += usize::from(!layer.join(".metadata/format.json").is_file());
        let root = layer.join("layerfs");
        let owner = |path: &Path| path.symlink_metadata().ok().map(|metadata| (metadata.uid(), metadata.gid()));
        seen.roots.extend(owner(&root));
        seen.others.extend(FOREIGN.iter().filter_map(|name| owner(&root.join(name))));
        if root.join("etc/debian_version").is_file() {
            seen.debian_shadow = seen.debian_shadow.or(owner(&root.join("etc/shadow")).map(|(_, group)| group));
        }
    }
    Ok(seen)
}

/// What that means.
fn judge(settings: &RepositoryConfig, seen: Result<Seen, String>, mounts: &MountTable) -> Vec<Check> {
    let (name, mountpoint) = (&settings.name, settings.mountpoint());
    let place = mountpoint.display();
    let title = format!("repository {name}");
    let mut checks = Vec::new();
    let seen = match seen {
        Ok(seen) => seen,
        Err(why) => {
            checks.push(Check::fail(
                title,
                why,
                format!("mount {name} on {place} as root, and make sure that its servers can be reached"),
            ));
            return checks;
        }
    };
    checks.push(match (seen.layers, seen.index) {
        (true, true) => Check::ok(title, format!("on {place}, with layers and an index of chains")),
        (true, false) => Check::warn(
            title,
            format!("on {place}, with layers but without .index: it was written by the existing tool"),
            "layers are found by their digests only: set disable_snapshot_annotations = false for CRI, or publish once with cvmfs-publisher",
        ),
        (false, _) => Check::warn(
            title,
            format!("on {place}, but without .layers: no image is published in it"),
            "publish one, or take the repository out of the configuration",
        ),
    });
    checks.extend(owners(&seen).map(|check| Check { name: format!("owners in {name}"), ..check }));
    if let Some(mount) = mounts.at(&mountpoint).next_back().filter(|mount| mount.is_fuse()) {
        let title = format!("mount of {name}");
        checks.push(if mount.has("nosuid") {
            Check::ok(title, "nosuid: set-id programs of images work in containers and nowhere else")
        } else {
            Check::warn(
                title,
                "without nosuid: every user of this machine can run set-id programs of every published image as root",
                "take CVMFS_SUID out of the client's configuration and mount again; containers don't need it",
            )
        });
    }
    let is_automounter = |mount: &&MountPoint| mount.kind == "autofs" && mountpoint.starts_with(&mount.place);
    if let Some(automounter) = mounts.mounts.iter().find(is_automounter) {
        checks.push(Check::warn(
            format!("automounter of {name}"),
            format!("{} is autofs, which unmounts repositories that seem idle", automounter.place.display()),
            "mount the repositories that containers use statically (/etc/fstab, or a mount unit)",
        ));
    }
    if seen.sampled > 0 {
        let title = format!("deletions in {name}");
        checks.push(match seen.legacy {
            0 => Check::ok(title, format!("{} layers looked into: overlayfs understands them as they are", seen.sampled)),
            some => Check::ok(
                title,
                format!(
                    "{some} of {} layers looked into are the existing tool's: their .wh. files are translated, at the first use of each",
                    seen.sampled
                ),
            ),
        });
    }
    checks
}

/// Do files have the owners that they have in the image?
fn owners(seen: &Seen) -> Option<Check> {
    const ADVICE: &str = "set CVMFS_CLAIM_OWNERSHIP=no for this repository and mount it again";
    let root = seen.roots.first()?;
    let nobody = (0, 0);
    if seen.roots.iter().all(|owner| owner.0 != 0 && owner == root) && seen.others.iter().all(|owner| owner == root) {
        let found = format!("everything belongs to user {}: containers would run with wrong owners", root.0);
        return Some(Check::fail("", found, ADVICE));
    }
    if seen.others.iter().any(|owner| *owner != nobody) {
        return Some(Check::ok("", "those of the images"));
    }
    if seen.debian_shadow == Some(0) {
        let found = "/etc/shadow of a Debian image belongs to group 0: the client changes owners";
        return Some(Check::warn("", found, ADVICE));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::State;

    fn seen() -> Seen {
        Seen { layers: true, index: true, sampled: 1, roots: vec![(0, 0)], others: vec![(0, 42)], ..Seen::default() }
    }

    fn states(seen: Result<Seen, String>, table: &str) -> Vec<(String, State)> {
        let checks = judge(&RepositoryConfig::usual("a.b"), seen, &MountTable::parse(table.as_bytes()));
        assert!(checks.iter().all(|check| (check.state == State::Ok) == check.advice.is_none()), "{checks:?}");
        checks.into_iter().map(|check| (check.name.replace("a.b", "X"), check.state)).collect()
    }

    #[test]
    fn a_repository_is_judged_by_what_is_in_it_and_how_it_is_mounted() {
        use State::{Fail, Ok, Warn};
        let fuse = "1 0 0:1 / /cvmfs/a.b ro,nosuid,nodev - fuse cvmfs ro\n";
        let suid = "1 0 0:1 / /cvmfs/a.b ro,nodev - fuse cvmfs ro\n";
        let autofs = "1 0 0:1 / /cvmfs rw - autofs x rw\n";
        let all = ["repository X", "owners in X", "mount of X", "deletions in X"];
        let named = |states: [State; 4]| all.map(str::to_owned).into_iter().zip(states).collect::<Vec<_>>();
        assert_eq!(states(Result::Ok(seen()), fuse), named([Ok, Ok, Ok, Ok]));
        assert_eq!(states(Result::Ok(seen()), suid), named([Ok, Ok, Warn, Ok]));
        let old = Seen { index: false, legacy: 1, ..seen() };
        assert_eq!(states(Result::Ok(old), fuse), named([Warn, Ok, Ok, Ok]));
        assert_eq!(states(Err("down".into()), fuse), [("repository X".to_owned(), Fail)]);
        assert_eq!(states(Result::Ok(Seen::default()), ""), [("repository X".to_owned(), Warn)]);
        let found = states(Result::Ok(seen()), autofs);
        assert_eq!(found[2], ("automounter of X".to_owned(), Warn));
        let elsewhere = states(Result::Ok(seen()), "1 0 0:1 / /cvm rw - autofs x rw\n");
        assert!(elsewhere.iter().all(|(_, state)| *state == Ok), "{elsewhere:?}");
    }

    #[test]
    fn changed_owners_are_noticed_where_they_can_be() {
        for (roots, others, shadow, expected) in [
            (&[(0, 0)][..], &[(0, 42)][..], Some(42), Some(State::Ok)),
            (&[(0, 0)], &[(0, 0)], Some(0), Some(State::Warn)),
            (&[(0, 0)], &[(0, 0)], None, None),
            (&[(0, 0)], &[], None, None),
            (&[(998, 996), (998, 996)], &[(998, 996)], None, Some(State::Fail)),
            (&[(1000, 1000), (0, 0)], &[(0, 0)], None, None),
            (&[], &[], None, None),
        ] {
            let seen =
                Seen { roots: roots.to_vec(), others: others.to_vec(), debian_shadow: shadow, ..Seen::default() };
            assert_eq!(owners(&seen).map(|check| check.state), expected, "{seen:?}");
        }
    }

    #[test]
    fn a_look_samples_layers() {
        let directory = tempfile::tempdir().unwrap();
        let layer = directory.path().join(".layers/ab/abc");
        fs::create_dir_all(layer.join("layerfs/etc")).unwrap();
        fs::write(layer.join("layerfs/etc/shadow"), "").unwrap();
        let seen = look(directory.path()).unwrap();
        assert_eq!((seen.layers, seen.index, seen.sampled, seen.legacy), (true, false, 1, 1));
        assert_eq!((seen.roots.len(), seen.others.len()), (1, 1));
        fs::create_dir_all(layer.join(".metadata")).unwrap();
        fs::write(layer.join(".metadata/format.json"), "").unwrap();
        assert_eq!(look(directory.path()).unwrap().legacy, 0);
        assert!(look(&layer.join(".metadata/none")).is_err());
    }
}
