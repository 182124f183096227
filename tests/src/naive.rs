//! What unpacking layers one after the other into a directory gives: the oracle for flat images.
//!
//! Written as a person would do it by hand, without any idea shared with the code under test: no merging of rows, one
//! tree that is changed member by member. What comes from a lower layer is known by a number on each entry, so that
//! whiteouts spare what their own layer brought, wherever they stand in the archive.
//!
//! Hard links: names of one layer in one directory share a file; everything else is a copy, which is what a
//! repository can hold.

use std::collections::{BTreeMap, HashMap};

use crate::image_builder::{Kind, Member};
use crate::tree::{Node, Tree, What};

/// A path as its components.
type Path = Vec<Vec<u8>>;

#[derive(Debug, Clone)]
struct File {
    node: Node,
    /// Layer that brought it.
    layer: usize,
    /// The same number, the same file.
    inode: usize,
}

/// A directory into which layers are unpacked.
#[derive(Debug, Clone, Default)]
pub struct Directory {
    files: BTreeMap<Path, File>,
    layers: usize,
    inodes: usize,
}

/// The tree of these layers, bottom first.
pub fn unpack<'a>(layers: impl IntoIterator<Item = &'a [Member]>) -> Tree {
    let mut directory = Directory::default();
    for layer in layers {
        directory.begin_layer();
        let mut copies = HashMap::new();
        for member in layer {
            directory.add(member, &mut copies);
        }
    }
    directory.tree()
}

fn components(path: &[u8]) -> Path {
    path.split(|b| *b == b'/').filter(|c| !c.is_empty() && *c != b".").map(<[u8]>::to_vec).collect()
}

impl Directory {
    /// What follows belongs to the next layer.
    pub fn begin_layer(&mut self) {
        self.layers += 1;
        if self.layers == 1 {
            self.make_directory(&Path::new());
        }
    }

    /// Unpacks one member. `copies` knows which files of lower layers this layer has linked to; it is empty at the
    /// start of a layer.
    pub fn add(&mut self, member: &Member, copies: &mut HashMap<usize, usize>) {
        let mut path = components(&member.path);
        let Some(name) = path.pop() else {
            self.directory_metadata(&Path::new(), member);
            return;
        };
        let parent = self.resolve(&path);
        // Engines make the parents of whiteouts as well.
        for depth in 0..=parent.len() {
            if !self.is_directory(&parent[..depth].to_vec()) {
                self.make_directory(&parent[..depth].to_vec());
            }
        }
        if let Some(hidden) = name.strip_prefix(b".wh.") {
            let top: Path = if hidden == b".wh..opq" { parent } else { [parent, vec![hidden.to_vec()]].concat() };
            self.hide(&top, hidden == b".wh..opq");
            return;
        }
        let path: Path = [parent, vec![name]].concat();
        let what = match &member.kind {
            Kind::Directory if self.is_directory(&path) => return self.directory_metadata(&path, member),
            Kind::Directory => What::Directory,
            Kind::File(content) => What::File(content.clone()),
            Kind::Symlink(target) => What::Symlink(target.clone()),
            Kind::Char(major, minor) => What::Char(device(*major, *minor)),
            Kind::Block(major, minor) => What::Block(device(*major, *minor)),
            Kind::Fifo => What::Fifo,
            Kind::HardLink(target) => return self.link(path, target, copies),
        };
        self.remove(&path);
        let node = Node { what, ..metadata(member) };
        self.put(path, node);
    }

    /// The tree so far.
    pub fn tree(&self) -> Tree {
        let names = |path: &Path, file: &File| {
            let siblings =
                |other: &Path| other.len() == path.len() && other[..path.len() - 1] == path[..path.len() - 1];
            self.files.iter().filter(|(p, f)| f.inode == file.inode && siblings(p)).count() as u32
        };
        self.files
            .iter()
            .map(|(path, file)| {
                let mut node = file.node.clone();
                node.links = if node.what == What::Directory { 1 } else { names(path, file) };
                (path.join(&b'/'), node)
            })
            .collect()
    }

    /// What is at a path, links not followed.
    pub fn get(&self, path: &str) -> Option<&Node> {
        self.files.get(&components(path.as_bytes())).map(|f| &f.node)
    }

    /// Whether the present layer brought what is at a path.
    pub fn is_new(&self, path: &str) -> bool {
        self.files.get(&components(path.as_bytes())).is_some_and(|f| f.layer == self.layers)
    }

    /// Paths of everything that is no directory.
    pub fn leaves(&self) -> Vec<String> {
        let leaves = self.files.iter().filter(|(_, f)| f.node.what != What::Directory);
        leaves.map(|(path, _)| String::from_utf8_lossy(&path.join(&b'/')).into_owned()).collect()
    }

    /// Follows symbolic links inside the root.
    fn resolve(&self, path: &Path) -> Path {
        let mut done = Path::new();
        let mut todo: Path = path.iter().rev().cloned().collect();
        let mut links = 0;
        while let Some(name) = todo.pop() {
            if name == b".." {
                done.pop();
                continue;
            }
            let next: Path = [done.clone(), vec![name]].concat();
            match self.files.get(&next).map(|f| &f.node.what) {
                Some(What::Symlink(target)) => {
                    links += 1;
                    assert!(links < 100, "a loop of links in a test");
                    if target.starts_with(b"/") {
                        done.clear();
                    }
                    todo.extend(components(target).into_iter().rev());
                }
                _ => done = next,
            }
        }
        done
    }

    fn is_directory(&self, path: &Path) -> bool {
        self.files.get(path).is_some_and(|f| f.node.what == What::Directory)
    }

    fn make_directory(&mut self, path: &Path) {
        self.remove(path);
        self.put(path.clone(), unlisted_directory());
    }

    fn directory_metadata(&mut self, path: &Path, member: &Member) {
        let layer = self.layers;
        let file = self.files.get_mut(path).expect("it exists");
        file.node = Node { what: What::Directory, ..metadata(member) };
        file.layer = layer;
    }

    fn put(&mut self, path: Path, node: Node) {
        self.inodes += 1;
        self.files.insert(path, File { node, layer: self.layers, inode: self.inodes });
    }

    fn remove(&mut self, path: &Path) {
        self.files.retain(|other, _| !other.starts_with(path));
    }

    /// Takes away what lower layers have at and below a path (only below, if it is opaque).
    fn hide(&mut self, path: &Path, only_below: bool) {
        let layer = self.layers;
        self.files.retain(|other, file| {
            !other.starts_with(path) || file.layer == layer || only_below && other.len() == path.len()
        });
        // Directories on the way to what stays.
        let kept: Vec<Path> = self.files.keys().filter(|p| p.starts_with(path)).cloned().collect();
        for path in kept.iter().flat_map(|p| (0..p.len()).map(|n| p[..n].to_vec())) {
            if !self.files.contains_key(&path) {
                self.put(path, unlisted_directory());
            }
        }
    }

    fn link(&mut self, path: Path, target: &[u8], copies: &mut HashMap<usize, usize>) {
        let mut parent = components(target);
        let name = parent.pop().expect("a hard link leads to a file");
        let target: Path = [self.resolve(&parent), vec![name]].concat();
        let mut file = self.files.get(&target).cloned().expect("the target of a hard link");
        assert!(file.node.what != What::Directory, "a hard link to a directory in a test");
        if target == path {
            return;
        }
        if file.layer < self.layers {
            self.inodes += 1;
            let fresh = self.inodes;
            file = File { layer: self.layers, inode: *copies.entry(file.inode).or_insert(fresh), ..file };
        }
        self.remove(&path);
        self.files.insert(path, file);
    }
}

fn unlisted_directory() -> Node {
    Node { what: What::Directory, mode: 0o755, uid: 0, gid: 0, mtime: 0, links: 1, xattrs: BTreeMap::new() }
}

fn metadata(member: &Member) -> Node {
    let mode = if matches!(member.kind, Kind::Symlink(_)) { 0o777 } else { member.mode };
    Node {
        what: What::Directory,
        mode,
        uid: member.uid as u32,
        gid: member.gid as u32,
        mtime: member.mtime,
        links: 1,
        xattrs: member.xattrs.iter().cloned().collect(),
    }
}

/// Device numbers as Linux keeps them in 64 bits.
pub fn device(major: u32, minor: u32) -> u64 {
    let (major, minor) = (u64::from(major), u64::from(minor));
    (major & 0xfff) << 8 | (major & !0xfff) << 32 | minor & 0xff | (minor & !0xff) << 12
}
