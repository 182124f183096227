//! Whether objects may have been collected since we looked last, by us or by anybody else.
//!
//! What we remember of objects (the index of known files, prepared layers, a conversion under way) is worth nothing
//! after a collection. The reference collector knows nothing of our leases, so its traces are read instead: `last_gc` in
//! `.cvmfs_status.json` (written where `jq` is installed), and root catalogs missing from the reflog, to which publishes
//! only ever add.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use cvmfs::hash::{Algorithm, ContentHash};
use cvmfs::reflog;
use cvmfs::store::{Listing, names};
use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::status::STATUS;

const SCHEMA: u32 = 1;
const FILE: &str = "collections.json";

/// Traces of collections at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traces {
    schema: u32,
    last_gc: Option<String>,
    /// Hash of the whole reflog: if it is the same, nothing else has to be looked at.
    reflog: Option<String>,
    /// Root catalogs in the reflog, in its order, and a hash over them.
    roots: usize,
    digest: String,
}

impl Traces {
    /// Looks at the storage.
    pub fn look(store: &dyn Listing, scratch: &Path) -> Result<Traces, Failure> {
        let status = store.read(STATUS)?.and_then(|s| serde_json::from_slice::<serde_json::Value>(&s).ok());
        let last_gc = status.and_then(|s| s.get("last_gc")?.as_str().map(str::to_owned));
        let content = store.read(names::REFLOG)?;
        let roots = roots(content.as_deref(), scratch)?;
        Ok(Traces {
            schema: SCHEMA,
            last_gc,
            reflog: content.map(|c| ContentHash::of(Algorithm::Sha1, &c).to_string()),
            roots: roots.len(),
            digest: digest(&roots),
        })
    }

    /// Whether nothing was collected between these traces and now; gives those of now otherwise.
    pub fn are_all(&self, store: &dyn Listing, scratch: &Path) -> Result<Result<(), Traces>, Failure> {
        let now = Traces::look(store, scratch)?;
        if self.schema != SCHEMA || self.last_gc != now.last_gc {
            return Ok(Err(now));
        }
        if self.reflog == now.reflog {
            return Ok(Ok(()));
        }
        let content = store.read(names::REFLOG)?;
        let roots = roots(content.as_deref(), scratch)?;
        let same = roots.get(..self.roots).is_some_and(|before| digest(before) == self.digest);
        Ok(if same { Ok(()) } else { Err(now) })
    }

    /// Those of an earlier run.
    pub(super) fn recall(state: &Path) -> Option<Traces> {
        serde_json::from_slice(&fs::read(state.join(FILE)).ok()?).ok()
    }

    /// For the next run.
    pub(super) fn remember(&self, state: &Path) -> Result<(), Failure> {
        let path = state.join(FILE);
        let write = || {
            let mut file = tempfile::NamedTempFile::new_in(state)?;
            file.write_all(&serde_json::to_vec(self).expect("strings and numbers"))?;
            file.persist(&path)?;
            Ok(())
        };
        write().map_err(Failure::io("write", &path))
    }
}

fn roots(content: Option<&[u8]>, scratch: &Path) -> Result<Vec<ContentHash>, Failure> {
    let Some(content) = content else { return Ok(Vec::new()) };
    let path = scratch.join("reflog");
    let mut file = tempfile::NamedTempFile::new_in(scratch).map_err(Failure::io("create a file in", scratch))?;
    file.write_all(content).map_err(Failure::io("write", &path))?;
    reflog::roots(file.path()).map_err(|source| Failure::State { path, source })
}

fn digest(roots: &[ContentHash]) -> String {
    let text: String = roots.iter().map(|hash| format!("{hash}\n")).collect();
    ContentHash::of(Algorithm::Sha1, text.as_bytes()).to_string()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use cvmfs::reflog::{Ref, RefKind};
    use cvmfs::store::{MemoryStore, Store as _};

    use super::*;

    fn row(n: u8, kind: RefKind, timestamp: u64) -> Ref {
        Ref { hash: ContentHash::of(Algorithm::Sha1, &[n]), kind, timestamp }
    }

    #[test]
    fn publishes_leave_no_traces_and_collections_do() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(MemoryStore::default());
        let file = dir.path().join("r");
        let change = |append: &[Ref], remove: &[Ref]| {
            reflog::append(&file, "x.example.org", append).unwrap();
            reflog::remove(&file, remove).unwrap();
            store.replace(names::REFLOG, &fs::read(&file).unwrap()).unwrap();
        };
        let look = || Traces::look(&*store, dir.path()).unwrap();
        let same = |before: &Traces| before.are_all(&*store, dir.path()).unwrap().is_ok();
        let nothing = look();
        let (first, second, third) =
            (row(1, RefKind::Catalog, 5), row(2, RefKind::Catalog, 5), row(3, RefKind::Catalog, 4));
        change(&[first, row(9, RefKind::History, 5)], &[]);
        assert!(same(&nothing));
        let one = look();
        change(&[second, row(8, RefKind::History, 5)], &[]);
        change(&[Ref { timestamp: 9, ..second }, third], &[]);
        assert!(same(&one) && same(&nothing), "publishes add, and sign the head again");
        let three = look();
        change(&[], &[row(9, RefKind::History, 5)]);
        assert!(same(&three), "an old tag database is no content");
        change(&[], &[second]);
        assert!(!same(&three));
        let two = look();
        store.replace(STATUS, b"{\"last_gc\": \"Sat Nov 21 20:18:14 UTC 2026\"}").unwrap();
        assert!(!same(&two) && same(&look()));
        store.replace(STATUS, b"no JSON").unwrap();
        assert!(same(&two));
        look().remember(dir.path()).unwrap();
        assert_eq!(Traces::recall(dir.path()), Some(look()));
    }
}
