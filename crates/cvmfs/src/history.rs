//! Named snapshots of a repository (tags): the database object with suffix `H`.
//!
//! Two tags are kept automatically: `trunk` names the current root catalog, `trunk-previous` the one before.
//! At least one tag is on the default branch, or the reference checker complains of a dangling branch.
//! What may be done with tags, and how a rollback changes them, is in `edit.rs`.

mod edit;

use std::path::Path;

use rusqlite::Connection;

use crate::catalog::reader::open_immutable;
use crate::hash::ContentHash;

pub use self::edit::{TagError, is_tag_name};

/// Tag of the current revision.
pub const TRUNK: &str = "trunk";
/// Tag of the revision before.
pub const TRUNK_PREVIOUS: &str = "trunk-previous";

const CREATE: &str = "
CREATE TABLE properties (key TEXT, value TEXT, CONSTRAINT pk_properties PRIMARY KEY (key));
CREATE TABLE branches (branch TEXT, parent TEXT, initial_revision INTEGER, CONSTRAINT pk_branch PRIMARY KEY (branch),
  FOREIGN KEY (parent) REFERENCES branches (branch),
  CHECK ((branch <> '' AND parent IS NOT NULL) OR (branch = '' AND parent IS NULL)));
CREATE TABLE tags (name TEXT, hash TEXT, revision INTEGER, timestamp INTEGER, channel INTEGER, description TEXT,
  size INTEGER, branch TEXT, CONSTRAINT pk_tags PRIMARY KEY (name), FOREIGN KEY (branch) REFERENCES branches (branch));
CREATE TABLE recycle_bin (hash TEXT, flags INTEGER, CONSTRAINT pk_hash PRIMARY KEY (hash));
";

/// One named snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tag {
    /// Unique name.
    pub name: String,
    /// Root catalog.
    pub root: ContentHash,
    /// Revision of the root catalog.
    pub revision: u64,
    /// `last_modified` of the root catalog, Unix seconds.
    pub timestamp: u64,
    /// Words for people.
    pub description: String,
    /// Bytes of the plain root catalog.
    pub size: u64,
    /// Branch; empty is the default one.
    pub branch: String,
}

/// A line of development; every repository has the default one, with the empty name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Branch {
    /// Name.
    pub name: String,
    /// Branch it left; none for the default branch.
    pub parent: Option<String>,
    /// Revision at which it began.
    pub initial_revision: u64,
}

/// The tag database as a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    /// Fully qualified repository name.
    pub fqrn: String,
    /// All branches, the default one included.
    pub branches: Vec<Branch>,
    /// All tags.
    pub tags: Vec<Tag>,
}

impl History {
    /// The history of a repository without tags.
    pub fn new(fqrn: &str) -> History {
        let main = Branch { name: String::new(), parent: None, initial_revision: 0 };
        History { fqrn: fqrn.to_owned(), branches: vec![main], tags: Vec::new() }
    }

    /// Reads a plain database file; columns that older revisions lack are filled in.
    pub fn read(file: &Path) -> rusqlite::Result<History> {
        let db = open_immutable(file)?;
        let mut columns = Vec::new();
        db.pragma(None, "table_info", "tags", |row| {
            columns.push(row.get::<_, String>(1)?);
            Ok(())
        })?;
        let has = |name: &str| columns.iter().any(|c| c == name);
        let (size, branch) = (if has("size") { "size" } else { "0" }, if has("branch") { "branch" } else { "''" });
        let fqrn = db.query_row("SELECT value FROM properties WHERE key = 'fqrn'", (), |r| r.get::<_, String>(0))?;
        let mut history = History::new(&fqrn);
        if has("branch") {
            let mut rows = db.prepare("SELECT branch, parent, coalesce(initial_revision, 0) FROM branches")?;
            history.branches = rows
                .query_map((), |r| {
                    Ok(Branch {
                        name: r.get(0)?,
                        parent: r.get(1)?,
                        initial_revision: r.get::<_, i64>(2)?.max(0) as u64,
                    })
                })?
                .collect::<rusqlite::Result<_>>()?;
        }
        let sql =
            format!("SELECT name, hash, revision, timestamp, coalesce(description, ''), {size}, {branch} FROM tags");
        let mut rows = db.prepare(&sql)?;
        let tags = rows.query_map((), |r| {
            let number = |i| Ok::<_, rusqlite::Error>(r.get::<_, Option<i64>>(i)?.unwrap_or(0).max(0) as u64);
            let hash: String = r.get(1)?;
            Ok(Tag {
                name: r.get(0)?,
                root: hash.parse().map_err(|e| {
                    rusqlite::Error::FromSqlConversionFailure(1, rusqlite::types::Type::Text, Box::new(e))
                })?,
                revision: number(2)?,
                timestamp: number(3)?,
                description: r.get(4)?,
                size: number(5)?,
                branch: r.get::<_, Option<String>>(6)?.unwrap_or_default(),
            })
        })?;
        history.tags = tags.collect::<rusqlite::Result<_>>()?;
        Ok(history)
    }

    /// Writes a new plain database file; `previous` is the object this one follows.
    pub fn write(&self, file: &Path, previous: ContentHash) -> rusqlite::Result<()> {
        let mut db = Connection::open(file)?;
        db.execute_batch("PRAGMA page_size = 1024; PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;")?;
        let transaction = db.transaction()?;
        transaction.execute_batch(CREATE)?;
        let mut property = transaction.prepare("INSERT INTO properties VALUES (?1, ?2)")?;
        property.execute(("schema", "1.0"))?;
        property.execute(("schema_revision", "3"))?;
        property.execute(("fqrn", &self.fqrn))?;
        property.execute(("previous_revision", previous.to_string()))?;
        drop(property);
        for branch in &self.branches {
            transaction.execute(
                "INSERT INTO branches VALUES (?1, ?2, ?3)",
                (&branch.name, &branch.parent, branch.initial_revision as i64),
            )?;
        }
        for tag in &self.tags {
            transaction.execute(
                "INSERT INTO tags VALUES (?1, ?2, ?3, ?4, 0, ?5, ?6, ?7)",
                (
                    &tag.name,
                    tag.root.to_string(),
                    tag.revision as i64,
                    tag.timestamp as i64,
                    &tag.description,
                    tag.size as i64,
                    &tag.branch,
                ),
            )?;
        }
        transaction.commit()?;
        db.close().map_err(|(_, e)| e)
    }

    /// The tag with this name.
    pub fn tag(&self, name: &str) -> Option<&Tag> {
        self.tags.iter().find(|t| t.name == name)
    }

    /// Moves the two automatic tags on to a new head.
    pub fn advance_trunk(&mut self, head: Tag) {
        self.tags.retain(|t| t.name != TRUNK_PREVIOUS);
        if let Some(trunk) = self.tags.iter_mut().find(|t| t.name == TRUNK) {
            trunk.name = TRUNK_PREVIOUS.into();
            trunk.description = "default undo target".into();
        }
        self.tags.push(Tag { name: TRUNK.into(), description: "current HEAD".into(), ..head });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::Algorithm;

    fn tag(revision: u64) -> Tag {
        Tag {
            name: format!("v{revision}"),
            root: ContentHash::of(Algorithm::Sha1, &revision.to_le_bytes()),
            revision,
            timestamp: 1000 + revision,
            description: "words".into(),
            size: 4096,
            branch: String::new(),
        }
    }

    #[test]
    fn round_trips_through_the_database() {
        let dir = tempfile::tempdir().unwrap();
        let mut history = History::new("x.example.org");
        history.tags = vec![tag(1), tag(2)];
        history.branches.push(Branch { name: "b".into(), parent: Some(String::new()), initial_revision: 1 });
        let file = dir.path().join("h");
        history.write(&file, ContentHash::null(Algorithm::Sha1)).unwrap();
        assert_eq!(History::read(&file).unwrap(), history);
        assert!(History::read(&dir.path().join("absent")).is_err());
    }

    #[test]
    fn trunk_moves_on() {
        let mut history = History::new("x.example.org");
        for revision in 1..=3 {
            history.advance_trunk(tag(revision));
        }
        let names: Vec<(&str, u64)> = history.tags.iter().map(|t| (t.name.as_str(), t.revision)).collect();
        assert_eq!(names, [(TRUNK_PREVIOUS, 2), (TRUNK, 3)]);
        assert_eq!(history.tag(TRUNK).unwrap().description, "current HEAD");
    }
}
