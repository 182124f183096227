//! The rows of snapshots within a transaction: what is asked of the tables, and how a snapshot is written in them.

use image::digest::LayerDigest;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use crate::error::Error;
use crate::labels::Labels;
use crate::snapshots::{Id, Info, Kind, Lower, Part, Snapshot};
use crate::usage::Usage;

/// The tables within a transaction.
#[derive(Debug)]
pub struct Table<'a>(pub(super) &'a Connection);

const COLUMNS: &str = "s.id, s.name, s.kind, s.parent, p.name, s.created, s.updated, s.size, s.inodes, s.how";
const FROM: &str = "FROM snapshot s LEFT JOIN snapshot p ON p.id = s.parent";

impl Table<'_> {
    /// The snapshot of a name.
    pub fn get(&self, name: &str) -> Result<Snapshot, Error> {
        let mut statement = self.0.prepare_cached(&format!("SELECT {COLUMNS} {FROM} WHERE s.name = ?1"))?;
        let found = statement.query_row([name], row).optional()?;
        self.complete(found.ok_or_else(|| Error::NotFound(name.to_owned()))?)
    }

    /// The snapshot of a number.
    pub fn by_id(&self, id: Id) -> Result<Snapshot, Error> {
        let mut statement = self.0.prepare_cached(&format!("SELECT {COLUMNS} {FROM} WHERE s.id = ?1"))?;
        let found = statement.query_row([id.0], row).optional()?;
        self.complete(found.ok_or_else(|| Error::NotFound(id.to_string()))?)
    }

    /// All that a snapshot stands on, the nearest first.
    pub fn ancestors(&self, snapshot: &Snapshot) -> Result<Vec<Snapshot>, Error> {
        let mut ancestors: Vec<Snapshot> = Vec::new();
        let mut next = snapshot.parent;
        while let Some(id) = next {
            let ancestor = self.by_id(id)?;
            next = ancestor.parent;
            ancestors.push(ancestor);
        }
        Ok(ancestors)
    }

    /// Fails if a snapshot has this name.
    pub fn ensure_free(&self, name: &str) -> Result<(), Error> {
        let mut statement = self.0.prepare_cached("SELECT 1 FROM snapshot WHERE name = ?1")?;
        if statement.exists([name])? { Err(Error::AlreadyExists(name.to_owned())) } else { Ok(()) }
    }

    /// Does another snapshot stand on this one?
    pub fn has_children(&self, id: Id) -> Result<bool, Error> {
        let mut statement = self.0.prepare_cached("SELECT 1 FROM snapshot WHERE parent = ?1 LIMIT 1")?;
        Ok(statement.exists([id.0])?)
    }

    /// Does an active snapshot or a view stand on this one, directly or not?
    pub fn has_mounted_descendant(&self, id: Id) -> Result<bool, Error> {
        let mut statement = self.0.prepare_cached(
            "WITH RECURSIVE below (id, kind) AS (
                 SELECT id, kind FROM snapshot WHERE parent = ?1
                 UNION ALL SELECT s.id, s.kind FROM snapshot s JOIN below b ON s.parent = b.id
             ) SELECT 1 FROM below WHERE kind <> 'committed' LIMIT 1",
        )?;
        Ok(statement.exists([id.0])?)
    }

    /// Adds a snapshot under the number that it has.
    pub fn insert(&self, snapshot: &Snapshot) -> Result<(), Error> {
        self.write_row(
            "INSERT INTO snapshot (id, name, kind, parent, created, updated, size, inodes, how) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            snapshot,
        )?;
        self.insert_details(snapshot)
    }

    /// Writes a snapshot under its number, where there is one. A time of change that is 0 becomes the time of creation.
    pub fn replace(&self, snapshot: &mut Snapshot) -> Result<(), Error> {
        if snapshot.info.updated == 0 {
            snapshot.info.updated = snapshot.info.created;
        }
        self.write_row(
            "UPDATE snapshot SET name = ?2, kind = ?3, parent = ?4, created = ?5, updated = ?6, size = ?7, inodes = ?8, how = ?9 WHERE id = ?1",
            snapshot,
        )?;
        for table in ["label", "lower"] {
            self.0.prepare_cached(&format!("DELETE FROM {table} WHERE snapshot = ?1"))?.execute([snapshot.id.0])?;
        }
        self.insert_details(snapshot)
    }

    fn write_row(&self, statement: &str, snapshot: &Snapshot) -> Result<(), Error> {
        let Snapshot { id, parent, info, how, usage, .. } = snapshot;
        let (parent, (size, inodes)) = (parent.map(|id| id.0), columns(*usage));
        let kind = info.kind.as_str();
        self.0.prepare_cached(statement)?.execute(params![
            id.0,
            info.name,
            kind,
            parent,
            info.created,
            info.updated,
            size,
            inodes,
            how
        ])?;
        Ok(())
    }

    /// What is not in the row itself.
    fn insert_details(&self, Snapshot { id, info, lowers, .. }: &Snapshot) -> Result<(), Error> {
        let mut statement = self.0.prepare_cached("INSERT INTO label (snapshot, key, value) VALUES (?1, ?2, ?3)")?;
        for (key, value) in &info.labels {
            statement.execute(params![id.0, key, value])?;
        }
        let mut statement = self.0.prepare_cached(
            "INSERT INTO lower (snapshot, position, repository, layer, part) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?;
        for (position, lower) in lowers.iter().enumerate() {
            let position = i64::try_from(position).expect("a stack has at most 500 directories");
            statement.execute(params![id.0, position, lower.repository, lower.layer.hex(), lower.part.as_str()])?;
        }
        Ok(())
    }

    /// Takes a snapshot away.
    pub fn delete(&self, id: Id) -> Result<(), Error> {
        self.0.prepare_cached("DELETE FROM snapshot WHERE id = ?1")?.execute([id.0])?;
        Ok(())
    }

    /// At most `limit` snapshots with numbers after `last`; only those with a label, if one is given.
    pub fn page(&self, last: Option<Id>, limit: usize, label: Option<(&str, &str)>) -> Result<Vec<Snapshot>, Error> {
        let after = last.map_or(0, |id| id.0);
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let found: Vec<Snapshot> = match label {
            None => {
                let mut statement = self
                    .0
                    .prepare_cached(&format!("SELECT {COLUMNS} {FROM} WHERE s.id > ?1 ORDER BY s.id LIMIT ?2"))?;
                statement.query_map([after, limit], row)?.collect::<Result<_, _>>()?
            }
            Some((key, value)) => {
                let mut statement = self.0.prepare_cached(&format!(
                    "SELECT {COLUMNS} {FROM} WHERE s.id > ?1 AND s.id IN (SELECT snapshot FROM label WHERE key = ?3 AND value = ?4)
                     ORDER BY s.id LIMIT ?2"
                ))?;
                statement.query_map(params![after, limit, key, value], row)?.collect::<Result<_, _>>()?
            }
        };
        found.into_iter().map(|snapshot| self.complete(snapshot)).collect()
    }

    /// How many snapshots there are of each kind, those of repositories apart.
    pub fn counts(&self) -> Result<Counts, Error> {
        let mut statement = self.0.prepare_cached(
            "SELECT kind, EXISTS (SELECT 1 FROM lower WHERE snapshot = s.id) AS remote, count(*) FROM snapshot s GROUP BY 1, 2",
        )?;
        let mut counts = Counts::default();
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let (kind, remote, count): (String, bool, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
            let count = count.unsigned_abs();
            match (kind.as_str(), remote) {
                ("active", _) => counts.active += count,
                ("view", _) => counts.views += count,
                (_, true) => counts.remote += count,
                (_, false) => counts.local += count,
            }
        }
        Ok(counts)
    }

    /// Layers of repositories that snapshots stand for, each once.
    pub fn layers(&self) -> Result<Vec<(String, LayerDigest)>, Error> {
        let mut statement = self.0.prepare_cached("SELECT DISTINCT repository, layer FROM lower")?;
        let rows = statement.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?;
        let mut layers = Vec::new();
        for row in rows {
            let (repository, hex) = row?;
            layers.extend(LayerDigest::parse(&format!("sha256:{hex}")).ok().map(|layer| (repository, layer)));
        }
        Ok(layers)
    }

    /// Adds what is not in the row itself.
    fn complete(&self, mut snapshot: Snapshot) -> Result<Snapshot, Error> {
        let mut statement = self.0.prepare_cached("SELECT key, value FROM label WHERE snapshot = ?1")?;
        let labels = statement.query_map([snapshot.id.0], |row| Ok((row.get(0)?, row.get(1)?)))?;
        snapshot.info.labels = labels.collect::<Result<Labels, _>>()?;
        let mut statement =
            self.0.prepare_cached("SELECT repository, layer, part FROM lower WHERE snapshot = ?1 ORDER BY position")?;
        let mut rows = statement.query([snapshot.id.0])?;
        while let Some(row) = rows.next()? {
            let (layer, part): (String, String) = (row.get(1)?, row.get(2)?);
            let layer = LayerDigest::parse(&format!("sha256:{layer}")).map_err(|_| invalid(1))?;
            snapshot.lowers.push(Lower {
                repository: row.get(0)?,
                layer,
                part: Part::parse(&part).ok_or_else(|| invalid(2))?,
            });
        }
        Ok(snapshot)
    }
}

/// Snapshots by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Counts {
    /// writable ones
    pub active: u64,
    /// views
    pub views: u64,
    /// committed ones that stand for directories of repositories
    pub remote: u64,
    /// committed ones with files of their own
    pub local: u64,
}

/// Disk usage as columns.
fn columns(usage: Option<Usage>) -> (Option<i64>, Option<i64>) {
    let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    (usage.map(|usage| number(usage.size)), usage.map(|usage| number(usage.inodes)))
}

fn invalid(column: usize) -> rusqlite::Error {
    rusqlite::Error::InvalidColumnType(column, "text of a kind that is not known".into(), rusqlite::types::Type::Text)
}

fn row(row: &Row<'_>) -> Result<Snapshot, rusqlite::Error> {
    let kind = match row.get_ref(2)?.as_str()? {
        "view" => Kind::View,
        "active" => Kind::Active,
        "committed" => Kind::Committed,
        _ => return Err(invalid(2)),
    };
    let usage = match (row.get::<_, Option<i64>>(7)?, row.get::<_, Option<i64>>(8)?) {
        (Some(size), Some(inodes)) => Some(Usage { size: size.unsigned_abs(), inodes: inodes.unsigned_abs() }),
        _ => None,
    };
    Ok(Snapshot {
        id: Id(row.get(0)?),
        parent: row.get::<_, Option<i64>>(3)?.map(Id),
        info: Info {
            name: row.get(1)?,
            parent: row.get(4)?,
            kind,
            created: row.get(5)?,
            updated: row.get(6)?,
            labels: Labels::new(),
        },
        lowers: Vec::new(),
        how: row.get(9)?,
        usage,
    })
}
