//! Changes to one catalog, and writing them.

use crate::catalog::reader::CatalogError;
use crate::catalog::writer::CatalogWriter;
use crate::entry::{Chunk, Entry};
use crate::hash::ContentHash;
use crate::path::{PathKey, RepoPath};

/// One change to a catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Edit {
    /// Nothing but a new version: the copy was changed already.
    Touch,
    /// A row is written anew, key included.
    Update { rowid: i64, key: PathKey, entry: Box<Entry> },
    /// A directory gets this link count.
    Links { rowid: i64, links: u32 },
    /// A row hangs below another directory.
    Parent { rowid: i64, parent: PathKey },
    /// A row is added.
    Insert { key: PathKey, parent: PathKey, entry: Box<Entry> },
    /// A row goes.
    Delete { rowid: i64 },
    /// The root entry becomes the first row.
    RootFirst { rowid: i64 },
    /// Rows that no listing shows go.
    DropUnreachable,
    /// Chunks of a file get another key.
    MoveChunks { from: PathKey, to: PathKey },
    /// Chunks of a file are these.
    Chunks { key: PathKey, chunks: Vec<Chunk> },
    /// Chunks of what is no chunked file go.
    DropStrayChunks,
    /// A nested catalog is registered.
    SetNested { path: RepoPath, hash: ContentHash, size: u64 },
    /// A nested catalog is registered no more.
    RemoveNested { path: RepoPath },
    /// A bind mountpoint is registered no more.
    RemoveBind { path: RepoPath },
    /// The property that says where the catalog is mounted.
    RootPrefix,
}

/// What leads from the root entry downwards, as a client lists it: nothing below a transition point.
const UNREACHABLE: &str = "WITH RECURSIVE reached(high, low, id, is_end) AS (
    SELECT md5path_1, md5path_2, rowid, 0 FROM catalog WHERE md5path_1 = ?1 AND md5path_2 = ?2
    UNION
    SELECT c.md5path_1, c.md5path_2, c.rowid, (c.flags & 16386) != 0 FROM catalog AS c
      JOIN reached ON c.parent_1 = reached.high AND c.parent_2 = reached.low WHERE reached.is_end = 0
      AND c.rowid != reached.id)
  DELETE FROM catalog WHERE rowid NOT IN (SELECT id FROM reached)";

const STRAY_CHUNKS: &str = "DELETE FROM chunks WHERE NOT EXISTS (SELECT 1 FROM catalog AS c
    WHERE c.md5path_1 = chunks.md5path_1 AND c.md5path_2 = chunks.md5path_2 AND (c.flags & 64) != 0)";

/// Writes edits into the catalog mounted at `path`, in their order.
pub(crate) fn apply(writer: &CatalogWriter, edits: &[Edit], path: &RepoPath) -> Result<(), CatalogError> {
    for edit in edits {
        match edit {
            Edit::Touch => {}
            Edit::Update { rowid, key, entry } => {
                const SQL: &str = "UPDATE catalog SET md5path_1 = ?2, md5path_2 = ?3 WHERE rowid = ?1";
                writer.execute(SQL, (rowid, key.high, key.low))?;
                writer.update(*key, entry)?;
            }
            Edit::Links { rowid, links } => {
                let sql = "UPDATE catalog SET hardlinks = ?2 WHERE rowid = ?1";
                writer.execute(sql, (rowid, i64::from(*links)))?;
            }
            Edit::Parent { rowid, parent } => {
                let sql = "UPDATE catalog SET parent_1 = ?2, parent_2 = ?3 WHERE rowid = ?1";
                writer.execute(sql, (rowid, parent.high, parent.low))?;
            }
            Edit::Insert { key, parent, entry } => {
                writer.insert(*key, *parent, entry)?;
            }
            Edit::Delete { rowid } => {
                writer.execute("DELETE FROM catalog WHERE rowid = ?1", [rowid])?;
            }
            Edit::RootFirst { rowid } => {
                let free = "UPDATE catalog SET rowid = (SELECT max(rowid) + 1 FROM catalog) WHERE rowid = 1";
                writer.execute(free, ())?;
                writer.execute("UPDATE catalog SET rowid = 1 WHERE rowid = ?1", [rowid])?;
            }
            Edit::DropUnreachable => {
                let key = path.key();
                writer.execute(UNREACHABLE, (key.high, key.low))?;
            }
            Edit::MoveChunks { from, to } => {
                let sql = "UPDATE chunks SET md5path_1 = ?3, md5path_2 = ?4 WHERE md5path_1 = ?1 AND md5path_2 = ?2";
                writer.execute(sql, (from.high, from.low, to.high, to.low))?;
            }
            Edit::Chunks { key, chunks } => {
                let sql = "DELETE FROM chunks WHERE md5path_1 = ?1 AND md5path_2 = ?2";
                writer.execute(sql, (key.high, key.low))?;
                writer.insert_chunks(*key, chunks)?;
            }
            Edit::DropStrayChunks => {
                writer.execute(STRAY_CHUNKS, ())?;
            }
            Edit::SetNested { path, hash, size } => writer.set_nested(path, *hash, *size)?,
            Edit::RemoveNested { path } => writer.remove_nested(path)?,
            Edit::RemoveBind { path } => {
                let text = crate::catalog::reader::Text(path.as_bytes());
                writer.execute("DELETE FROM bind_mountpoints WHERE path = ?1", [text])?;
            }
            Edit::RootPrefix => writer.set_root_prefix(path)?,
        }
    }
    Ok(())
}
