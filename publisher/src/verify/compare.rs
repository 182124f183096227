//! Two trees, row by row: a merge of two sorted streams, with memory for one directory's hard links on the way.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::fmt;

use image::tree::{Node, NodeKind, TreePath};

use super::content::{Comparer, Verdict};
use super::report::{Findings, Kind};
use crate::failure::Failure;
use crate::rows::FileContent;

type Row = Result<(TreePath, Node<FileContent>), Failure>;

/// What a difference in a tree is told with.
pub struct Comparison<'a> {
    /// Path in the repository of the tree's root.
    pub place: String,
    /// Where differences go.
    pub findings: &'a Findings,
    /// What knows about content.
    pub contents: &'a Comparer<'a>,
    /// Whether permissions may have been opened for everybody: the policy of flats.
    pub may_be_readable: bool,
}

impl fmt::Debug for Comparison<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Comparison").field("place", &self.place).finish_non_exhaustive()
    }
}

impl Comparison<'_> {
    /// Compares all rows; both come in tree order. Gives the number of differences.
    pub fn run(&self, expected: impl Iterator<Item = Row>, found: impl Iterator<Item = Row>) -> Result<u64, Failure> {
        let before = self.findings.count();
        let (mut expected, mut found) = (expected, found);
        let (mut left, mut right) = (expected.next().transpose()?, found.next().transpose()?);
        let mut groups = Groups::default();
        let mut policy = if self.may_be_readable { Policy::Unknown } else { Policy::Keep };
        let mut rows = 0;
        loop {
            let order = match (&left, &right) {
                (None, None) => break,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((a, _)), Some((b, _))) => a.cmp(b),
            };
            rows += 1;
            if order.is_le() && order.is_ge() {
                if let (Some((path, a)), Some((_, b))) = (left.take(), right.take()) {
                    self.row(&path, &a, &b, &mut policy, &mut groups)?;
                }
                (left, right) = (expected.next().transpose()?, found.next().transpose()?);
            } else if order.is_lt() {
                if let Some((path, node)) = left.take() {
                    self.findings.add(Kind::Missing, self.at(&path), type_of(&node.kind), "");
                }
                left = expected.next().transpose()?;
            } else {
                if let Some((path, node)) = right.take() {
                    self.findings.add(Kind::Extra, self.at(&path), "", type_of(&node.kind));
                }
                right = found.next().transpose()?;
            }
        }
        self.findings.compared(rows);
        Ok(self.findings.count() - before)
    }

    fn at(&self, path: &TreePath) -> String {
        if path.is_root() { self.place.clone() } else { format!("{}/{path}", self.place) }
    }

    fn row(
        &self,
        path: &TreePath,
        a: &Node<FileContent>,
        b: &Node<FileContent>,
        policy: &mut Policy,
        groups: &mut Groups,
    ) -> Result<(), Failure> {
        let tell = |kind, expected: &dyn fmt::Display, found: &dyn fmt::Display| {
            self.findings.add(kind, self.at(path), expected, found);
        };
        let (type_a, type_b) = (type_of(&a.kind), type_of(&b.kind));
        if type_a != type_b {
            tell(Kind::Type, &type_a, &type_b);
            return Ok(());
        }
        if !policy.allows(a, b.mode) {
            tell(Kind::Mode, &format!("{:04o}", a.mode), &format!("{:04o}", b.mode));
        }
        if (a.uid, a.gid) != (b.uid, b.gid) {
            tell(Kind::Owner, &format!("{}:{}", a.uid, a.gid), &format!("{}:{}", b.uid, b.gid));
        }
        if (a.mtime, a.mtime_ns) != (b.mtime, b.mtime_ns) {
            tell(Kind::Mtime, &time(a), &time(b));
        }
        if a.xattrs != b.xattrs || a.is_opaque() != b.is_opaque() {
            tell(Kind::Xattr, &xattrs(a), &xattrs(b));
        }
        match (&a.kind, &b.kind) {
            (NodeKind::Symlink { target: a }, NodeKind::Symlink { target: b }) if a != b => {
                tell(Kind::LinkTarget, &a.escape_ascii(), &b.escape_ascii());
            }
            (
                NodeKind::CharDevice { rdev: a } | NodeKind::BlockDevice { rdev: a },
                NodeKind::CharDevice { rdev: b } | NodeKind::BlockDevice { rdev: b },
            ) if a != b => tell(Kind::Device, &device(*a), &device(*b)),
            (NodeKind::Regular { size: a, .. }, NodeKind::Regular { size: b, .. }) if a != b => {
                tell(Kind::Size, a, b);
            }
            (NodeKind::Regular { content: a, size }, NodeKind::Regular { content: b, .. }) => {
                match self.contents.compare(a, b, *size)? {
                    Verdict::Same => self.contents.read(|| self.at(path), b, *size)?,
                    Verdict::Other => tell(Kind::Content, &name(a), &name(b)),
                    Verdict::Unreadable(what) => tell(Kind::Object, &"", &what),
                }
            }
            _ => {}
        }
        if !groups.agree(path, a.link_group, b.link_group) {
            let word = |group| if group == 0 { "a file of its own" } else { "one of several names" };
            tell(Kind::HardLink, &word(a.link_group), &format!("{} of another file", word(b.link_group)));
        }
        Ok(())
    }
}

/// How permissions of the published tree relate to those of the image. One policy holds for a whole tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Policy {
    Unknown,
    Keep,
    Readable,
}

impl Policy {
    fn allows(&mut self, expected: &Node<FileContent>, found: u32) -> bool {
        let for_all = match expected.kind {
            NodeKind::Directory { .. } => 0o555,
            NodeKind::Regular { .. } => 0o444,
            _ => 0,
        };
        let opened = expected.mode | for_all;
        if *self == Policy::Unknown && expected.mode & 0o005 & for_all != 0o005 & for_all {
            // The first that not everybody may read tells.
            *self = if found == opened { Policy::Readable } else { Policy::Keep };
        }
        let is_closed = expected.mode & 0o005 & for_all != 0o005 & for_all;
        match self {
            Policy::Readable if is_closed => found == opened,
            _ => found == expected.mode,
        }
    }
}

/// Which group of one tree is which of the other, within each directory on the way: groups do not leave theirs.
#[derive(Debug, Default)]
struct Groups {
    open: Vec<(TreePath, Same, Same)>,
}

/// Which number of one tree is which of the other.
type Same = HashMap<u64, u64>;

impl Groups {
    fn agree(&mut self, path: &TreePath, a: u64, b: u64) -> bool {
        if a == 0 || b == 0 {
            return a == b;
        }
        let directory = path.parent().unwrap_or_default();
        while self.open.last().is_some_and(|(open, ..)| *open != directory && !directory.is_below(open)) {
            self.open.pop();
        }
        if self.open.last().is_none_or(|(open, ..)| *open != directory) {
            self.open.push((directory, HashMap::new(), HashMap::new()));
        }
        let Some((_, to, from)) = self.open.last_mut() else { return false };
        *to.entry(a).or_insert(b) == b && *from.entry(b).or_insert(a) == a
    }
}

fn type_of<C>(kind: &NodeKind<C>) -> &'static str {
    match kind {
        NodeKind::Directory { .. } => "directory",
        NodeKind::Regular { .. } => "file",
        NodeKind::Symlink { .. } => "symbolic link",
        NodeKind::CharDevice { .. } => "character device",
        NodeKind::BlockDevice { .. } => "block device",
        NodeKind::Fifo => "pipe",
        NodeKind::Socket => "socket",
        NodeKind::Whiteout => "whiteout",
    }
}

fn time(node: &Node<FileContent>) -> String {
    match node.mtime_ns {
        0 => node.mtime.to_string(),
        ns => format!("{}.{ns:09}", node.mtime),
    }
}

fn device(rdev: u64) -> String {
    format!("{}:{}", image::tree::major(rdev), image::tree::minor(rdev))
}

fn xattrs(node: &Node<FileContent>) -> String {
    let one = |(name, value): &(Vec<u8>, Vec<u8>)| format!("{}={}", name.escape_ascii(), value.escape_ascii());
    let opaque = node.is_opaque().then(|| "opaque".to_owned());
    let all: Vec<String> = node.xattrs.iter().map(one).chain(opaque).collect();
    if all.is_empty() { "none".to_owned() } else { all.join(" ") }
}

fn name(content: &FileContent) -> String {
    match content {
        FileContent::Whole(hash, _) => hash.to_string(),
        FileContent::Chunks(chunks, ..) => format!("{} chunks", chunks.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn closed(mode: u32) -> Node<FileContent> {
        Node::new(NodeKind::Directory { opaque: false, implicit: false }, mode)
    }

    #[test]
    fn one_policy_of_permissions_holds_for_a_tree() {
        let mut readable = Policy::Unknown;
        assert!(readable.allows(&closed(0o755), 0o755) && readable == Policy::Unknown);
        assert!(readable.allows(&closed(0o700), 0o755) && readable == Policy::Readable);
        assert!(!readable.allows(&closed(0o700), 0o700), "not opened, though others are");
        let mut keep = Policy::Unknown;
        assert!(keep.allows(&closed(0o700), 0o700) && !keep.allows(&closed(0o700), 0o755));
        assert!(!Policy::Unknown.allows(&closed(0o755), 0o777));
    }

    #[test]
    fn groups_are_the_same_whatever_their_numbers() {
        let path = |text| TreePath::new(text).unwrap();
        let mut groups = Groups::default();
        assert!(groups.agree(&path("a/x"), 7, 1) && groups.agree(&path("a/y"), 7, 1));
        assert!(!groups.agree(&path("a/z"), 8, 1), "two files became one");
        assert!(groups.agree(&path("b/x"), 1, 7), "numbers are free in the next directory");
        assert!(!groups.agree(&path("b/y"), 1, 8) && !groups.agree(&path("b/z"), 0, 7));
    }
}
