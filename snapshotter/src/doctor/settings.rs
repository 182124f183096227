//! containerd's configuration, as `containerd config dump` prints it: with all files that it imports.

use toml::{Table, Value};

use super::Check;
use crate::install::Version;

/// What has to be known to judge a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// the version of containerd
    pub version: Version,
    /// the name of our snapshotter
    pub snapshotter: String,
    /// CRI is running
    pub cri: bool,
    /// all repositories have an index of chains
    pub index: bool,
}

/// Is CRI's snapshotter this one?
pub fn is_default(dump: &Table, snapshotter: &str) -> bool {
    cri(dump).and_then(|images| images.get("snapshotter")?.as_str()) == Some(snapshotter)
}

/// The section of CRI that is about images.
fn cri(dump: &Table) -> Option<&Table> {
    let plugins = dump.get("plugins")?;
    let third = plugins.get("io.containerd.cri.v1.images");
    third.or_else(|| plugins.get("io.containerd.grpc.v1.cri")?.get("containerd"))?.as_table()
}

/// Judges a configuration.
pub fn judge(dump: &Table, known: &Known) -> Vec<Check> {
    let mut checks = Vec::new();
    let images = cri(dump);
    let text = |key: &str| images.and_then(|images| images.get(key)?.as_str()).unwrap_or_default();
    let truth = |key: &str| images.and_then(|images| images.get(key)?.as_bool()).unwrap_or_default();
    let ours = is_default(dump, &known.snapshotter);
    if known.cri {
        checks.push(if ours {
            Check::ok("snapshotter of CRI", known.snapshotter.clone())
        } else {
            Check::warn(
                "snapshotter of CRI",
                format!("{:?}: Kubernetes does not use this one", text("snapshotter")),
                "run `cvmfs-snapshotter install --containerd`, unless only chosen runtime classes or other clients are to use it",
            )
        });
        if ours {
            checks.push(match (truth("disable_snapshot_annotations"), known.index) {
                (false, _) => Check::ok("annotations of CRI", "enabled"),
                (true, true) => Check::ok(
                    "annotations of CRI",
                    "disabled, which does no harm: layers are found by the chain IDs that containerd always tells",
                ),
                (true, false) => Check::warn(
                    "annotations of CRI",
                    "disabled, and not every repository has an index of chains: its layers are not found",
                    "set disable_snapshot_annotations = false in the images section of CRI",
                ),
            });
            if truth("discard_unpacked_layers") {
                checks.push(Check::ok(
                    "unpacked layers",
                    "discarded, which does no harm here; images with local layers can't be exported",
                ));
            }
        }
    }
    if known.version >= Version(2, 0) {
        checks.push(transfer(dump, known, known.cri && ours && known.version >= Version(2, 1)));
    }
    checks
}

/// The transfer service: `ctr` pulls by it since 2.0, CRI since 2.1.
fn transfer(dump: &Table, known: &Known, needed: bool) -> Check {
    let name = "transfer service";
    let entries =
        dump.get("plugins").and_then(|plugins| plugins.get("io.containerd.transfer.v1.local")?.get("unpack_config"));
    let entries = entries.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let has = |entry: &Value| entry.get("snapshotter").and_then(Value::as_str) == Some(&known.snapshotter);
    if entries.iter().any(has) {
        return Check::ok(name, format!("unpacks for {}", known.snapshotter));
    }
    let found =
        format!("its unpack_config does not name {}: pulls download everything and unpack nothing", known.snapshotter);
    let advice = "run `cvmfs-snapshotter install --containerd` and restart containerd";
    if needed { Check::fail(name, found, advice) } else { Check::warn(name, found, advice) }
}

/// Where the kubelet looks for the space that images take.
pub fn image_filesystem(version: Version, root: Option<&str>, wanted: &str) -> Check {
    let name = "space of images";
    let advice = format!("set exports.root of the proxy plugin to {wanted}");
    match root {
        Some(root) if root == wanted => Check::ok(name, format!("the kubelet looks at {root}")),
        Some(root) => {
            Check::warn(name, format!("the kubelet looks at {root}, but the state directory is {wanted}"), advice)
        }
        None if version < Version(1, 7) => {
            Check::ok(name, format!("containerd {version} can't tell the kubelet; 1.7 and newer can"))
        }
        None => {
            Check::warn(name, "the proxy plugin has no exports.root: the kubelet can't tell what images take", advice)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::State::{self, Fail, Ok, Warn};

    const ONE: &str = r#"version = 2
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "cvmfs-snapshotter"
disable_snapshot_annotations = true
"#;
    const TWO: &str = r#"version = 3
[plugins."io.containerd.cri.v1.images"]
snapshotter = "cvmfs-snapshotter"
disable_snapshot_annotations = true
"#;
    const UNPACK: &str = r#"
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
platform = "linux"
snapshotter = "overlayfs"
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
platform = "linux"
snapshotter = "cvmfs-snapshotter"
"#;

    fn states(text: &str, version: Version, cri: bool, index: bool) -> Vec<State> {
        let known = Known { version, snapshotter: "cvmfs-snapshotter".into(), cri, index };
        let checks = judge(&text.parse().unwrap(), &known);
        assert!(checks.iter().all(|check| (check.state == Ok) == check.advice.is_none()), "{checks:?}");
        checks.iter().map(|check| check.state).collect()
    }

    #[test]
    fn configurations_of_all_versions_are_judged() {
        let other = TWO.replace("cvmfs-snapshotter", "overlayfs");
        let enabled = ONE.replace("true", "false");
        let both = format!("{TWO}{UNPACK}");
        for (text, version, cri, index, expected) in [
            (ONE, Version(1, 7), true, true, &[Ok, Ok][..]),
            (ONE, Version(1, 7), true, false, &[Ok, Warn]),
            (&enabled, Version(1, 6), true, false, &[Ok, Ok]),
            (ONE, Version(1, 7), false, true, &[]),
            ("", Version(1, 7), true, true, &[Warn]),
            (TWO, Version(2, 1), true, true, &[Ok, Ok, Fail]),
            (TWO, Version(2, 0), true, true, &[Ok, Ok, Warn]),
            (&both, Version(2, 1), true, true, &[Ok, Ok, Ok]),
            (&other, Version(2, 1), true, true, &[Warn, Warn]),
            ("", Version(2, 1), false, true, &[Warn]),
        ] {
            assert_eq!(states(text, version, cri, index), expected, "{version} {cri} {index}\n{text}");
        }
    }

    #[test]
    fn the_kubelet_has_to_look_at_the_state_directory() {
        let state = |root| image_filesystem(Version(1, 7), root, "/var/lib/x").state;
        assert_eq!([state(Some("/var/lib/x")), state(Some("/y")), state(None)], [Ok, Warn, Warn]);
        assert_eq!(image_filesystem(Version(1, 6), None, "/var/lib/x").state, Ok);
    }
}
