//! What to mount for a snapshot: values, no system calls. containerd or its shim does the mounting.
//!
//! | snapshot | stands on | answer |
//! |---|---|---|
//! | active, view | nothing | bind of its own directory, `rw` or `ro` |
//! | view | one directory | bind of that, `ro` |
//! | view | several | overlay of them, without a writable one |
//! | active | any | overlay with its own directory as the writable one |
//!
//! A bind of a published layer names the directory in the repository itself: some engines open the source without following links.

use std::path::PathBuf;

use crate::snapshots::{Kind, Snapshot};

/// Directories that Linux takes in one overlay.
pub const MAX_LOWERS: usize = 500;

/// A mount as containerd's API has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// `overlay` or `bind`
    pub kind: String,
    /// what is mounted
    pub source: String,
    /// in the order in which the kernel reads them
    pub options: Vec<String>,
}

/// A directory in a stack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// short name below the state directory
    pub path: PathBuf,
    /// where that leads, if it is a link
    pub target: Option<PathBuf>,
}

/// The directories of a snapshot with files of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Own {
    /// files
    pub content: PathBuf,
    /// work directory of overlayfs
    pub work: PathBuf,
}

/// What the kernel and the administrator want of every overlay.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// the kernel has the `index` option, whose default might be on and would refuse directories that were used before
    pub index_off: bool,
    /// within a user namespace: attributes named `user.overlay.` instead of `trusted.overlay.`
    pub userxattr: bool,
    /// give up durability of a container's files for speed
    pub volatile: bool,
    /// more options, as they are
    pub extra: Vec<String>,
}

impl Options {
    /// What this kernel wants.
    pub fn of_this_kernel() -> Self {
        Self { index_off: std::path::Path::new("/sys/module/overlay/parameters/index").exists(), ..Self::default() }
    }
}

/// How many directories these snapshots put into a stack.
pub fn count<'a>(snapshots: impl Iterator<Item = &'a Snapshot>) -> usize {
    snapshots.map(|snapshot| snapshot.lowers.len().max(1)).sum()
}

/// The answer for a snapshot that stands on `layers`, the nearest first.
pub fn mounts(options: &Options, kind: Kind, own: &Own, layers: &[Layer]) -> Vec<Mount> {
    let text = |path: &PathBuf| path.to_string_lossy().into_owned();
    let bind =
        |source: String, mode: &str| Mount { kind: "bind".into(), source, options: vec![mode.into(), "rbind".into()] };
    let writable = kind == Kind::Active;
    match layers {
        [] => return vec![bind(text(&own.content), if writable { "rw" } else { "ro" })],
        [one] if !writable => return vec![bind(text(one.target.as_ref().unwrap_or(&one.path)), "ro")],
        _ => {}
    }
    let mut words = Vec::new();
    if options.index_off {
        words.push("index=off".to_owned());
    }
    if options.userxattr {
        words.push("userxattr".to_owned());
    }
    if writable {
        words.push(format!("workdir={}", text(&own.work)));
        words.push(format!("upperdir={}", text(&own.content)));
    }
    let lowers: Vec<String> = layers.iter().map(|layer| text(&layer.path)).collect();
    words.push(format!("lowerdir={}", lowers.join(":")));
    if writable && options.volatile {
        words.push("volatile".to_owned());
    }
    words.extend(options.extra.iter().cloned());
    vec![Mount { kind: "overlay".into(), source: "overlay".into(), options: words }]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(name: &str, target: Option<&str>) -> Layer {
        Layer { path: format!("/s/{name}/fs").into(), target: target.map(Into::into) }
    }

    fn answer(options: &Options, kind: Kind, layers: &[Layer]) -> String {
        let own = Own { content: "/s/9/fs".into(), work: "/s/9/work".into() };
        let mounts = mounts(options, kind, &own, layers);
        let lines: Vec<String> =
            mounts.iter().map(|m| format!("{} {} {}", m.kind, m.source, m.options.join(","))).collect();
        lines.join("\n")
    }

    #[test]
    fn the_answer_follows_from_kind_and_parents() {
        let (none, plain) = ([], Options::default());
        let one = [layer("1", Some("/cvmfs/r/.layers/l"))];
        let local = [layer("1", None)];
        let two = [layer("2", None), layer("1", Some("/cvmfs/r/.layers/l"))];
        let cases: [(Kind, &[Layer], &str); 7] = [
            (Kind::Active, &none, "bind /s/9/fs rw,rbind"),
            (Kind::View, &none, "bind /s/9/fs ro,rbind"),
            (Kind::View, &one, "bind /cvmfs/r/.layers/l ro,rbind"),
            (Kind::View, &local, "bind /s/1/fs ro,rbind"),
            (Kind::View, &two, "overlay overlay lowerdir=/s/2/fs:/s/1/fs"),
            (Kind::Active, &one, "overlay overlay workdir=/s/9/work,upperdir=/s/9/fs,lowerdir=/s/1/fs"),
            (Kind::Active, &two, "overlay overlay workdir=/s/9/work,upperdir=/s/9/fs,lowerdir=/s/2/fs:/s/1/fs"),
        ];
        for (kind, layers, expected) in cases {
            assert_eq!(answer(&plain, kind, layers), expected);
        }
    }

    #[test]
    fn options_of_kernel_and_administrator_are_in_place() {
        let options = Options { index_off: true, userxattr: true, volatile: true, extra: vec!["xino=off".into()] };
        let one = [layer("1", None)];
        assert_eq!(
            answer(&options, Kind::Active, &one),
            "overlay overlay index=off,userxattr,workdir=/s/9/work,upperdir=/s/9/fs,lowerdir=/s/1/fs,volatile,xino=off"
        );
    }

    #[test]
    fn hundreds_of_layers_fit_into_a_page_after_containerd_has_shortened_them() {
        // containerd changes into the longest common directory first.
        let layers: Vec<Layer> = (0..400).map(|n| layer(&n.to_string(), None)).collect();
        let answer = answer(&Options::default(), Kind::Active, &layers);
        assert!(answer.replace("/s/", "").len() < 4096);
    }
}
