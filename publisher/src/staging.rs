//! Rows of a layer under construction, in a database that lives in memory until it grows too large for it.
//!
//! SQLite keeps a nameless database in its page cache and spills it to a temporary file by itself: a layer of millions
//! of rows costs no more memory than a small one.

use cvmfs::entry::Chunk;
use cvmfs::hash::{Algorithm, ContentHash};
use cvmfs::object::Compression;
use image::layer::{Staging, StoreError};
use image::tree::{Node, NodeKind, TreePath};
use rusqlite::{Connection, OptionalExtension as _};

use crate::content::{Content, Contents, Ticket};
use crate::rows::FileContent;

/// Content of a file while its layer is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pending {
    /// Brought by this layer; where it is will be known when everything is stored.
    New(Ticket),
    /// Of a lower layer.
    Known(FileContent),
}

impl Pending {
    /// Where the content is, once everything of the archive is stored.
    pub fn resolve(self, contents: &Contents, compression: Compression) -> FileContent {
        match self {
            Pending::Known(known) => known,
            Pending::New(ticket) => match contents.get(ticket) {
                Content::Whole(hash) => FileContent::Whole(hash, compression),
                Content::Chunks(chunks) => {
                    let algorithm = chunks.first().map(|c| c.hash.algorithm).unwrap_or_default();
                    FileContent::Chunks(chunks, algorithm, compression)
                }
            },
        }
    }
}

/// The rows, by path in tree order.
#[derive(Debug)]
pub struct DatabaseStaging {
    db: Connection,
}

impl DatabaseStaging {
    /// No rows.
    pub fn new() -> rusqlite::Result<DatabaseStaging> {
        let db = Connection::open("")?;
        db.set_prepared_statement_cache_capacity(16);
        db.execute_batch(
            "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA locking_mode = EXCLUSIVE;
             PRAGMA cache_size = -32768;
             CREATE TABLE rows (path BLOB PRIMARY KEY, node BLOB) WITHOUT ROWID; BEGIN;",
        )?;
        Ok(DatabaseStaging { db })
    }

    /// Number of rows.
    pub fn count(&self) -> rusqlite::Result<u64> {
        self.db.query_row("SELECT count(*) FROM rows", (), |row| row.get::<_, i64>(0)).map(|n| n.max(0) as u64)
    }

    /// Hands out all rows in tree order.
    pub fn for_each<E: From<StoreError>>(
        &self,
        mut visit: impl FnMut(TreePath, Node<Pending>) -> Result<(), E>,
    ) -> Result<(), E> {
        let boxed = |e: rusqlite::Error| -> StoreError { e.into() };
        let mut statement = self.db.prepare_cached("SELECT path, node FROM rows ORDER BY path").map_err(boxed)?;
        let mut rows = statement.query(()).map_err(boxed)?;
        while let Some(row) = rows.next().map_err(boxed)? {
            let (path, node) = decode(row).map_err(E::from)?;
            visit(path, node)?;
        }
        Ok(())
    }

    fn execute(&self, sql: &str, parameters: impl rusqlite::Params) -> Result<(), StoreError> {
        self.db.prepare_cached(sql)?.execute(parameters)?;
        Ok(())
    }
}

fn decode(row: &rusqlite::Row<'_>) -> Result<(TreePath, Node<Pending>), StoreError> {
    let path = TreePath::from_key(row.get_ref(0)?.as_blob()?)?;
    let node = unpack(row.get_ref(1)?.as_blob()?).ok_or("a row of the layer does not read back")?;
    Ok((path, node))
}

/// Everything below a path: keys between the path with a separator and the same with the next byte.
fn below(path: &TreePath) -> (Vec<u8>, Option<Vec<u8>>) {
    let mut from = path.to_key();
    if path.is_root() {
        return (vec![1], None);
    }
    let mut to = from.clone();
    from.push(0);
    to.push(1);
    (from, Some(to))
}

impl Staging<Pending> for DatabaseStaging {
    fn get(&self, path: &TreePath) -> Result<Option<Node<Pending>>, StoreError> {
        let mut statement = self.db.prepare_cached("SELECT node FROM rows WHERE path = ?1")?;
        let node: Option<Vec<u8>> = statement.query_row([path.to_key()], |row| row.get(0)).optional()?;
        node.map(|n| unpack(&n).ok_or_else(|| "a row of the layer does not read back".into())).transpose()
    }

    fn put(&mut self, path: &TreePath, node: &Node<Pending>) -> Result<(), StoreError> {
        self.execute("INSERT OR REPLACE INTO rows (path, node) VALUES (?1, ?2)", (path.to_key(), pack(node)))
    }

    fn remove_children(&mut self, path: &TreePath) -> Result<(), StoreError> {
        match below(path) {
            (from, Some(to)) => self.execute("DELETE FROM rows WHERE path >= ?1 AND path < ?2", (from, to)),
            (from, None) => self.execute("DELETE FROM rows WHERE path >= ?1", [from]),
        }
    }

    fn remove_subtree(&mut self, path: &TreePath) -> Result<(), StoreError> {
        self.remove_children(path)?;
        self.execute("DELETE FROM rows WHERE path = ?1", [path.to_key()])
    }

    fn after(&self, path: Option<&TreePath>) -> Result<Option<(TreePath, Node<Pending>)>, StoreError> {
        let (comparison, key) = path.map_or((">=", Vec::new()), |p| (">", p.to_key()));
        let sql = format!("SELECT path, node FROM rows WHERE path {comparison} ?1 ORDER BY path LIMIT 1");
        let mut statement = self.db.prepare_cached(&sql)?;
        let mut rows = statement.query([key])?;
        rows.next()?.map(decode).transpose()
    }
}

/// Writes numbers and byte strings one after the other, little-endian, strings behind their length.
fn pack(node: &Node<Pending>) -> Vec<u8> {
    let mut out = Vec::with_capacity(96);
    let (tag, number, bytes): (u8, u64, &[u8]) = match &node.kind {
        NodeKind::Directory { opaque, implicit } => (0, u64::from(*opaque) | u64::from(*implicit) << 1, &[]),
        NodeKind::Regular { size, .. } => (1, *size, &[]),
        NodeKind::Symlink { target } => (2, 0, target),
        NodeKind::CharDevice { rdev } => (3, *rdev, &[]),
        NodeKind::BlockDevice { rdev } => (4, *rdev, &[]),
        NodeKind::Fifo => (5, 0, &[]),
        NodeKind::Socket => (6, 0, &[]),
        NodeKind::Whiteout => (7, 0, &[]),
    };
    out.push(tag);
    for n in [node.mode, node.uid, node.gid, node.mtime_ns] {
        out.extend(n.to_le_bytes());
    }
    out.extend(node.mtime.to_le_bytes());
    out.extend(node.link_group.to_le_bytes());
    out.extend(number.to_le_bytes());
    let string = |out: &mut Vec<u8>, bytes: &[u8]| {
        out.extend((bytes.len() as u32).to_le_bytes());
        out.extend_from_slice(bytes);
    };
    string(&mut out, bytes);
    out.extend((node.xattrs.len() as u32).to_le_bytes());
    for (name, value) in &node.xattrs {
        string(&mut out, name);
        string(&mut out, value);
    }
    if let NodeKind::Regular { content, .. } = &node.kind {
        let place = |out: &mut Vec<u8>, algorithm: Algorithm, compression: Compression| {
            out.extend([algorithm.flag_bits() as u8, compression.flag_bits() as u8]);
        };
        match content {
            Pending::New(ticket) => {
                out.push(0);
                out.extend(ticket.to_le_bytes());
            }
            Pending::Known(FileContent::Whole(hash, compression)) => {
                out.push(1);
                place(&mut out, hash.algorithm, *compression);
                out.extend(hash.digest);
            }
            Pending::Known(FileContent::Chunks(chunks, algorithm, compression)) => {
                out.push(2);
                place(&mut out, *algorithm, *compression);
                out.extend((chunks.len() as u32).to_le_bytes());
                for chunk in chunks {
                    out.extend(chunk.offset.to_le_bytes());
                    out.extend(chunk.size.to_le_bytes());
                    out.extend(chunk.hash.digest);
                }
            }
        }
    }
    out
}

struct Unpacker<'a>(&'a [u8]);

impl<'a> Unpacker<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.0.split_first_chunk::<N>()?;
        self.0 = tail;
        Some(*head)
    }

    fn byte(&mut self) -> Option<u8> {
        self.array::<1>().map(|[b]| b)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn string(&mut self) -> Option<&'a [u8]> {
        let len = self.u32()? as usize;
        let (head, tail) = self.0.split_at_checked(len)?;
        self.0 = tail;
        Some(head)
    }

    fn place(&mut self) -> Option<(Algorithm, Compression)> {
        let [algorithm, compression] = self.array()?;
        Some((Algorithm::from_flag_bits(algorithm.into())?, Compression::from_flag_bits(compression.into())?))
    }

    fn content(&mut self) -> Option<Pending> {
        Some(match self.byte()? {
            0 => Pending::New(self.u32()?),
            1 => {
                let (algorithm, compression) = self.place()?;
                Pending::Known(FileContent::Whole(ContentHash { algorithm, digest: self.array()? }, compression))
            }
            _ => {
                let (algorithm, compression) = self.place()?;
                let mut chunks = Vec::new();
                for _ in 0..self.u32()? {
                    let (offset, size) = (self.u64()?, self.u64()?);
                    chunks.push(Chunk { offset, size, hash: ContentHash { algorithm, digest: self.array()? } });
                }
                Pending::Known(FileContent::Chunks(chunks, algorithm, compression))
            }
        })
    }
}

fn unpack(row: &[u8]) -> Option<Node<Pending>> {
    let mut from = Unpacker(row);
    let tag = from.byte()?;
    let (mode, uid, gid, mtime_ns) = (from.u32()?, from.u32()?, from.u32()?, from.u32()?);
    let (mtime, link_group, number) = (from.u64()? as i64, from.u64()?, from.u64()?);
    let target = from.string()?;
    let mut xattrs = Vec::new();
    for _ in 0..from.u32()? {
        xattrs.push((from.string()?.to_vec(), from.string()?.to_vec()));
    }
    let kind = match tag {
        0 => NodeKind::Directory { opaque: number & 1 != 0, implicit: number & 2 != 0 },
        1 => NodeKind::Regular { content: from.content()?, size: number },
        2 => NodeKind::Symlink { target: target.to_vec() },
        3 => NodeKind::CharDevice { rdev: number },
        4 => NodeKind::BlockDevice { rdev: number },
        5 => NodeKind::Fifo,
        6 => NodeKind::Socket,
        7 => NodeKind::Whiteout,
        _ => return None,
    };
    Some(Node { kind, mode, uid, gid, mtime, mtime_ns, xattrs, link_group })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> TreePath {
        TreePath::new(text).unwrap()
    }

    fn staged(paths: &[&str]) -> DatabaseStaging {
        let mut staging = DatabaseStaging::new().unwrap();
        for text in paths {
            staging.put(&path(text), &Node::whiteout()).unwrap();
        }
        staging
    }

    fn listed(staging: &DatabaseStaging) -> Vec<String> {
        let mut paths = Vec::new();
        staging
            .for_each::<StoreError>(|p, _| {
                paths.push(p.to_string());
                Ok(())
            })
            .unwrap();
        paths
    }

    #[test]
    fn keeps_tree_order_and_removes_whole_subtrees() {
        let mut staging = staged(&["", "b", "a-b", "a", "a/x/y", "a/x", "a!"]);
        assert_eq!(listed(&staging), ["/", "a", "a/x", "a/x/y", "a!", "a-b", "b"]);
        assert_eq!(staging.after(Some(&path("a/x/y"))).unwrap().unwrap().0, path("a!"));
        assert_eq!(staging.after(None).unwrap().unwrap().0, path(""));
        staging.remove_children(&path("a")).unwrap();
        assert_eq!(listed(&staging), ["/", "a", "a!", "a-b", "b"]);
        staging.remove_subtree(&path("a")).unwrap();
        assert_eq!(listed(&staging), ["/", "a!", "a-b", "b"]);
        staging.remove_children(&path("")).unwrap();
        assert_eq!(listed(&staging), ["/"]);
        assert!(staging.get(&path("b")).unwrap().is_none());
    }

    #[test]
    fn nodes_read_back() {
        let hash = ContentHash::of(Algorithm::Rmd160, b"x");
        let chunk = Chunk { offset: 1, size: 2, hash };
        let contents = [
            Pending::New(7),
            Pending::Known(FileContent::Whole(hash, Compression::None)),
            Pending::Known(FileContent::Chunks(vec![chunk; 3], Algorithm::Rmd160, Compression::Zlib)),
        ];
        let mut kinds: Vec<NodeKind<Pending>> =
            contents.into_iter().map(|content| NodeKind::Regular { content, size: 9 }).collect();
        kinds.extend([
            NodeKind::Directory { opaque: true, implicit: false },
            NodeKind::Directory { opaque: false, implicit: true },
            NodeKind::Symlink { target: b"t\xff".to_vec() },
            NodeKind::CharDevice { rdev: u64::MAX },
            NodeKind::BlockDevice { rdev: 1 },
            NodeKind::Fifo,
            NodeKind::Socket,
            NodeKind::Whiteout,
        ]);
        let mut staging = staged(&[]);
        for kind in kinds {
            let xattrs = vec![(b"user.a".to_vec(), b"\0\n".to_vec()), (b"user.b".to_vec(), vec![])];
            let node = Node {
                uid: 1,
                gid: u32::MAX,
                mtime: -9,
                mtime_ns: 5,
                link_group: 3,
                xattrs,
                ..Node::new(kind, 0o7777)
            };
            staging.put(&path("n"), &node).unwrap();
            assert_eq!(staging.get(&path("n")).unwrap(), Some(node));
        }
    }
}
