//! What a flat image needs besides its layers, so that Apptainer and Singularity can run it as a directory.
//!
//! The names and their meaning are those that existing flat images have; the scripts are our own. What differs from
//! the existing tool, and why:
//! - Words and values of the config are quoted once, between single quotes, and never evaluated: `$`, quotes,
//!   backticks and newlines arrive unchanged.
//! - `etc/hosts` and `etc/resolv.conf` become empty files where they are missing or links: the runtime binds the
//!   host's files over them, and a link could lead the bind elsewhere. A regular file is left as it is: it serves as
//!   target of the bind as well, and engines that don't bind find what the image says. (The existing tool empties it.)
//! - Nothing is put below a directory that is a link, and existing names are left alone: `home`, a dangling link
//!   perhaps, stays what it is. Only our own tree, `.singularity.d`, replaces whatever stands in its way.
//! - `labels.json` holds the labels; working directory and user of the config are recorded there, not applied: jobs
//!   start where the user is, as the user.
//! - `/cvmfs` and `/srv` exist, because a read-only root can't get mount points later.
//!
//! Everything is a function of the config, times included, so that an image has the same flat wherever it is made.

mod scripts;

use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::layer::StoreError;
use crate::manifest::Config;
use crate::rootfs::TreeLookup;
use crate::tree::{Node, NodeKind, TreePath};

/// Mount points that are added by default.
pub const MOUNT_POINTS: [&str; 2] = ["cvmfs", "srv"];

/// Labels that record what isn't applied.
const WORKING_DIR_LABEL: &str = "io.cvmfs.image.working-dir";
const USER_LABEL: &str = "io.cvmfs.image.user";

/// Directories that a runtime expects, with their modes.
const DIRECTORIES: [(&str, u32); 9] = [
    ("dev", 0o755),
    ("proc", 0o755),
    ("root", 0o755),
    ("var/tmp", 0o1777),
    ("tmp", 0o1777),
    ("etc", 0o755),
    ("sys", 0o755),
    ("home", 0o755),
    (".singularity.d/libs", 0o755),
];

/// Links at the root.
const LINKS: [(&str, &str); 6] = [
    ("singularity", ".singularity.d/runscript"),
    (".run", ".singularity.d/actions/run"),
    (".exec", ".singularity.d/actions/exec"),
    (".test", ".singularity.d/actions/test"),
    (".shell", ".singularity.d/actions/shell"),
    ("environment", ".singularity.d/env/90-environment.sh"),
];

/// A file or a directory to add; files come with their bytes.
pub type Addition = (TreePath, Node<Vec<u8>>);

/// What to put on top of an image, given its config and its merged tree. [`crate::rootfs::as_layer`] makes a layer
/// of it. `mount_points` are relative paths, usually [`MOUNT_POINTS`].
pub fn additions<C>(
    config: &Config,
    root: &dyn TreeLookup<C>,
    mount_points: &[TreePath],
) -> Result<Vec<Addition>, StoreError> {
    let mut additions = Additions { list: Vec::new(), mtime: build_time(config), root };
    for directory in [".singularity.d", ".singularity.d/actions", ".singularity.d/env", ".singularity.d/libs"] {
        additions.own_directory(&path(directory))?;
    }
    for (name, text) in scripts::ALL {
        additions.own_file(name, 0o755, text.as_bytes().to_vec());
    }
    let runscript = runscript(config, has_shell(root)?);
    additions.own_file(".singularity.d/runscript", 0o755, runscript.into_bytes());
    additions.own_file(".singularity.d/env/10-docker2singularity.sh", 0o755, environment(config).into_bytes());
    additions.own_file(".singularity.d/labels.json", 0o644, labels(config));
    for (name, mode) in DIRECTORIES {
        additions.directory(&path(name), mode)?;
    }
    for mount_point in mount_points {
        additions.directory(mount_point, 0o755)?;
    }
    for (name, target) in LINKS {
        if root.get(&path(name))?.is_none() {
            additions.push(path(name), Node::new(NodeKind::Symlink { target: target.as_bytes().to_vec() }, 0o777));
        }
    }
    for name in ["etc/hosts", "etc/resolv.conf"] {
        additions.bind_target(&path(name))?;
    }
    Ok(additions.list)
}

/// A path that is written in this file.
fn path(text: &str) -> TreePath {
    TreePath::new(text).expect("a literal in the normal form")
}

/// When the image was built, as far as its config says: the time of everything that is added.
fn build_time(config: &Config) -> i64 {
    let created = config.created.as_deref().and_then(|created| OffsetDateTime::parse(created, &Rfc3339).ok());
    created.map_or(0, OffsetDateTime::unix_timestamp)
}

struct Additions<'a, C> {
    list: Vec<Addition>,
    mtime: i64,
    root: &'a dyn TreeLookup<C>,
}

impl<C> Additions<'_, C> {
    fn push(&mut self, path: TreePath, node: Node<Vec<u8>>) {
        self.list.push((path, Node { mtime: self.mtime, ..node }));
    }

    fn push_file(&mut self, path: TreePath, mode: u32, content: Vec<u8>) {
        let size = content.len() as u64;
        self.push(path, Node::new(NodeKind::Regular { content, size }, mode));
    }

    fn push_directory(&mut self, path: TreePath, mode: u32) {
        self.push(path, Node::new(NodeKind::Directory { opaque: false, implicit: false }, mode));
    }

    /// A directory of our own tree: replaces anything but a directory.
    fn own_directory(&mut self, path: &TreePath) -> Result<(), StoreError> {
        if !self.root.get(path)?.is_some_and(|node| node.is_directory()) {
            self.push_directory(path.clone(), 0o755);
        }
        Ok(())
    }

    /// A file of our own tree: replaces anything.
    fn own_file(&mut self, name: &str, mode: u32, content: Vec<u8>) {
        self.push_file(path(name), mode, content);
    }

    /// Is every directory above it a directory, or missing?
    fn can_hold(&self, path: &TreePath) -> Result<bool, StoreError> {
        let mut above = path.parent();
        while let Some(directory) = above {
            if self.root.get(&directory)?.is_some_and(|node| !node.is_directory()) {
                return Ok(false);
            }
            above = directory.parent();
        }
        Ok(true)
    }

    /// A directory where nothing is yet.
    fn directory(&mut self, path: &TreePath, mode: u32) -> Result<(), StoreError> {
        let known = |(added, _): &Addition| added == path;
        if !self.list.iter().any(known) && self.can_hold(path)? && self.root.get(path)?.is_none() {
            let mut above: Vec<TreePath> = Vec::new();
            let mut parent = path.parent();
            while let Some(directory) = parent.filter(|directory| !directory.is_root()) {
                parent = directory.parent();
                above.push(directory);
            }
            for directory in above.into_iter().rev() {
                if self.root.get(&directory)?.is_none() && !self.list.iter().any(|(added, _)| *added == directory) {
                    self.push_directory(directory, 0o755);
                }
            }
            self.push_directory(path.clone(), mode);
        }
        Ok(())
    }

    /// An empty file where nothing or a link is.
    fn bind_target(&mut self, path: &TreePath) -> Result<(), StoreError> {
        let found = self.root.get(path)?;
        if found.is_none_or(|node| matches!(node.kind, NodeKind::Symlink { .. })) && self.can_hold(path)? {
            self.push_file(path.clone(), 0o644, Vec::new());
        }
        Ok(())
    }
}

/// A word for the shell, whatever is in it. (NUL can't be in an argument or a variable, so it is left out.)
///
/// A single quote is written between double ones: the interpreter inside Apptainer keeps the backslash of `\'` in an
/// assignment.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\0', "").replace('\'', r#"'"'"'"#))
}

/// Is there a shell for scripts? One that is found through other links than that of a merged `/usr` is missed.
fn has_shell<C>(root: &dyn TreeLookup<C>) -> Result<bool, StoreError> {
    Ok(root.get(&path("bin/sh"))?.is_some() || root.get(&path("usr/bin/sh"))?.is_some())
}

/// What has Apptainer interpret a script by itself, which images without a shell need: a line that it finds in the
/// scripts that it makes of Docker's images (`getDockerRunscript` in its sources). Programs then get their whole path
/// as their name.
const INTERPRETED: &str = r#"if false; then
eval "set ${SINGULARITY_OCI_RUN}"
fi
"#;

/// Runs what the config says: the entry point with the user's words, or else with those of the config.
fn runscript(config: &Config, has_shell: bool) -> String {
    let interpreted = if has_shell { "" } else { INTERPRETED };
    let words = |words: &[String]| words.iter().map(|word| format!(" {}", quoted(word))).collect::<String>();
    let (entrypoint, cmd) = (words(&config.entrypoint), words(&config.cmd));
    format!(
        r#"#!/bin/sh
# Runs the command of the image; words given by the user replace the second part of it.
{interpreted}if [ "$#" -gt 0 ]; then
    set --{entrypoint} "$@"
else
    set --{entrypoint}{cmd}
fi
if [ "$#" -eq 0 ]; then
    echo 'This image names no command to run; give one.' >&2
    exit 1
fi
exec "$@"
"#
    )
}

/// Sets the variables of the config. Those of the user win, except for the search path.
fn environment(config: &Config) -> String {
    let is_name = |name: &str| {
        name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') && !name.starts_with(|c: char| c.is_ascii_digit())
    };
    let mut variables: Vec<(&str, &str)> = Vec::new();
    // a name without a value is nothing for Docker, either
    for (name, value) in config.env.iter().filter_map(|variable| variable.split_once('=')) {
        // the last of equal names counts; what is no name for a shell can't be set by one
        variables.retain(|(known, _)| *known != name);
        if !name.is_empty() && is_name(name) {
            variables.push((name, value));
        }
    }
    let mut script = "#!/bin/sh\n# Environment of the image; variables that are set already are kept.\n".to_owned();
    for (name, value) in variables {
        script.push_str(&match name {
            "PATH" => format!("PATH={}\nexport PATH\n", quoted(value)),
            // no assignment where there is a value: shells have variables that can't be changed, such as UID
            _ => format!("[ -n \"${{{name}:-}}\" ] || {name}={}\nexport {name}\n", quoted(value)),
        });
    }
    script
}

/// Labels of the config, and what else is known of it, as a JSON object.
fn labels(config: &Config) -> Vec<u8> {
    let mut labels: Map<String, Value> =
        config.labels.iter().map(|(key, value)| (key.clone(), Value::from(value.clone()))).collect();
    for (label, value) in [(WORKING_DIR_LABEL, &config.working_dir), (USER_LABEL, &config.user)] {
        if !value.is_empty() {
            labels.insert(label.to_owned(), Value::from(value.clone()));
        }
    }
    let mut bytes = serde_json::to_vec_pretty(&Value::Object(labels)).expect("strings only");
    bytes.push(b'\n');
    bytes
}

#[cfg(test)]
mod tests;
