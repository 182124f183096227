//! Who is at work in a repository: the file `.cvmfsleases` beside its objects.
//!
//! A file lock serves one machine; a lease serves all that share a storage. It has a term and has to be renewed, so
//! that whoever vanishes blocks nobody for longer than that. The reference tools know nothing of it.
//!
//! | | prepare | publish | collect |
//! |---|---|---|---|
//! | prepare: stores objects that nothing refers to yet | together | together | excluded |
//! | publish: replaces the manifest | together | excluded | excluded |
//! | collect: removes objects that nothing refers to | excluded | excluded | excluded |
//!
//! Invariants
//! - The file changes by [`Store::swap`] only; who loses a race reads again.
//! - A lease past its term, and one that `is_gone` says nobody holds, count as not there; the next change drops them.
//! - A file that is absent means no leases: nothing odd comes of removing it. A holder that finds its own lease
//!   missing takes it again, unless somebody is at work whom it excludes.
//! - No clock here: `now` comes in, in Unix seconds. Machines that share a storage agree on the time to well within
//!   a term.

use serde::{Deserialize, Serialize};

use crate::store::{Store, StoreError};

/// Name of the file in the root of the storage.
pub const LEASES: &str = ".cvmfsleases";

/// Version of the file.
const SCHEMA: u32 = 1;
/// Races lost before a change is given up: others change the file all the time, or it cannot be changed.
const ATTEMPTS: u32 = 50;

/// What a lease allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LeaseKind {
    /// Storing objects that nothing refers to yet.
    Prepare,
    /// Replacing the manifest.
    Publish,
    /// Removing objects.
    Collect,
}

impl LeaseKind {
    /// Whether the two cannot be at work together.
    pub fn excludes(self, other: LeaseKind) -> bool {
        use LeaseKind::{Collect, Publish};
        self == Collect || other == Collect || (self, other) == (Publish, Publish)
    }
}

/// Somebody at work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Unique.
    pub id: String,
    /// What it allows.
    pub kind: LeaseKind,
    /// Name of the machine, for people.
    pub host: String,
    /// What tells machines, and containers on them, apart: process numbers mean something within one only.
    #[serde(default)]
    pub machine: String,
    /// Process.
    pub pid: u32,
    /// When the process began, in a unit of the machine: a later process may have the same number.
    #[serde(default)]
    pub started: u64,
    /// What is being done, for people.
    pub what: String,
    /// Since when, Unix seconds.
    pub since: u64,
    /// Until when, unless it is renewed, Unix seconds.
    pub expires: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct File {
    schema: u32,
    leases: Vec<Lease>,
}

/// A lease cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LeaseError {
    /// Somebody is at work whom this one excludes.
    #[error("{} is at work there: {} (process {} on {})", kind_name(.0.kind), .0.what, .0.pid, .0.host)]
    Held(Box<Lease>),
    /// The file is none of ours.
    #[error("{LEASES} in {place} is not understood ({what}); if no newer version of this program wrote it, remove it")]
    Malformed {
        /// Storage.
        place: String,
        /// What is wrong.
        what: String,
    },
    /// Lost one race after the other.
    #[error("{LEASES} in {0} is changed by others all the time; try again")]
    Contended(String),
    /// The storage failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn kind_name(kind: LeaseKind) -> &'static str {
    match kind {
        LeaseKind::Prepare => "somebody who prepares content",
        LeaseKind::Publish => "another publisher",
        LeaseKind::Collect => "a garbage collection",
    }
}

/// The leases of one storage.
pub struct Leases<'a> {
    store: &'a dyn Store,
    is_gone: &'a dyn Fn(&Lease) -> bool,
}

impl std::fmt::Debug for Leases<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Leases").field("store", &self.store).finish_non_exhaustive()
    }
}

impl<'a> Leases<'a> {
    /// Those in `store`; `is_gone` says of a lease whether it is known that nobody holds it any more.
    pub fn new(store: &'a dyn Store, is_gone: &'a dyn Fn(&Lease) -> bool) -> Leases<'a> {
        Leases { store, is_gone }
    }

    /// Who is at work.
    pub fn current(&self, now: u64) -> Result<Vec<Lease>, LeaseError> {
        Ok(self.live(self.store.read(LEASES)?.as_deref(), now)?.0)
    }

    /// Takes or renews a lease: it stands in the file until `lease.expires`, or somebody is in the way.
    pub fn take(&self, lease: &Lease, now: u64) -> Result<(), LeaseError> {
        self.change(now, |leases| {
            leases.retain(|other| other.id != lease.id);
            if let Some(other) = leases.iter().find(|other| lease.kind.excludes(other.kind)) {
                return Err(LeaseError::Held(Box::new(other.clone())));
            }
            leases.push(lease.clone());
            Ok(())
        })
    }

    /// Ends a lease. One that is not there is no error.
    pub fn give_back(&self, id: &str, now: u64) -> Result<(), LeaseError> {
        self.change(now, |leases| {
            leases.retain(|other| other.id != id);
            Ok(())
        })
    }

    fn change(
        &self,
        now: u64,
        mut edit: impl FnMut(&mut Vec<Lease>) -> Result<(), LeaseError>,
    ) -> Result<(), LeaseError> {
        for _ in 0..ATTEMPTS {
            let stored = self.store.read(LEASES)?;
            let (mut leases, dropped) = self.live(stored.as_deref(), now)?;
            let before = leases.clone();
            edit(&mut leases)?;
            if leases == before && !dropped {
                return Ok(());
            }
            let mut content =
                serde_json::to_vec_pretty(&File { schema: SCHEMA, leases }).expect("only strings and numbers");
            content.push(b'\n');
            if self.store.swap(LEASES, stored.as_deref(), &content)? {
                return Ok(());
            }
        }
        Err(LeaseError::Contended(self.store.place()))
    }

    /// Those that count, and whether any was left out.
    fn live(&self, stored: Option<&[u8]>, now: u64) -> Result<(Vec<Lease>, bool), LeaseError> {
        // An empty file is what a full disk leaves of a first write.
        let Some(stored) = stored.filter(|s| !s.is_empty()) else { return Ok((Vec::new(), false)) };
        let malformed = |what: String| LeaseError::Malformed { place: self.store.place(), what };
        let file: File = serde_json::from_slice(stored).map_err(|e| malformed(e.to_string()))?;
        if file.schema != SCHEMA {
            return Err(malformed(format!("schema {}", file.schema)));
        }
        let all = file.leases.len();
        let live: Vec<Lease> = file.leases.into_iter().filter(|l| l.expires > now && !(self.is_gone)(l)).collect();
        let dropped = live.len() < all;
        Ok((live, dropped))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::store::{LocalStore, MemoryStore};

    fn lease(id: &str, kind: LeaseKind, expires: u64) -> Lease {
        Lease {
            id: id.into(),
            kind,
            host: "node".into(),
            machine: "m".into(),
            pid: 7,
            started: 1,
            what: "a test".into(),
            since: 0,
            expires,
        }
    }

    fn nobody(_: &Lease) -> bool {
        false
    }

    #[test]
    fn who_excludes_whom() {
        use LeaseKind::{Collect, Prepare, Publish};
        let cases = [
            (Prepare, Prepare, false),
            (Prepare, Publish, false),
            (Publish, Publish, true),
            (Collect, Prepare, true),
            (Collect, Publish, true),
            (Collect, Collect, true),
        ];
        for (first, second, excluded) in cases {
            for (a, b) in [(first, second), (second, first)] {
                let store = MemoryStore::default();
                let leases = Leases::new(&store, &nobody);
                leases.take(&lease("a", a, 100), 10).unwrap();
                let taken = leases.take(&lease("b", b, 100), 10);
                assert_eq!(matches!(taken, Err(LeaseError::Held(ref l)) if l.id == "a"), excluded, "{a:?}, then {b:?}");
                leases.give_back("a", 11).unwrap();
                leases.take(&lease("b", b, 100), 11).unwrap();
            }
        }
    }

    #[test]
    fn leases_past_their_term_or_of_the_dead_do_not_count() {
        let store = MemoryStore::default();
        let leases = Leases::new(&store, &nobody);
        leases.take(&lease("a", LeaseKind::Prepare, 100), 10).unwrap();
        assert!(leases.take(&lease("c", LeaseKind::Collect, 200), 99).is_err());
        let dead = |l: &Lease| l.id == "a";
        Leases::new(&store, &dead).take(&lease("c", LeaseKind::Collect, 200), 99).unwrap();
        assert_eq!(leases.current(99).unwrap().len(), 1, "the dead one was dropped");
        leases.take(&lease("d", LeaseKind::Collect, 400), 200).unwrap();
        assert_eq!(leases.current(200).unwrap()[0].id, "d");
        assert_eq!(leases.current(400).unwrap(), []);
    }

    #[test]
    fn a_holder_whose_lease_was_dropped_takes_it_again_unless_somebody_is_in_the_way() {
        let store = MemoryStore::default();
        let leases = Leases::new(&store, &nobody);
        leases.take(&lease("a", LeaseKind::Prepare, 100), 10).unwrap();
        store.content().remove(LEASES);
        leases.take(&lease("a", LeaseKind::Prepare, 130), 40).unwrap();
        assert_eq!(leases.current(40).unwrap()[0].expires, 130);
        store.content().remove(LEASES);
        leases.take(&lease("c", LeaseKind::Collect, 200), 41).unwrap();
        assert!(matches!(leases.take(&lease("a", LeaseKind::Prepare, 160), 70), Err(LeaseError::Held(_))));
    }

    #[test]
    fn what_is_not_understood_is_left_alone() {
        let store = MemoryStore::default();
        for content in [&b"{}"[..], b"{\"schema\":2,\"leases\":[]}", b"garbage"] {
            store.replace(LEASES, content).unwrap();
            let taken = Leases::new(&store, &nobody).take(&lease("a", LeaseKind::Publish, 9), 1);
            assert!(matches!(taken, Err(LeaseError::Malformed { .. })));
            assert_eq!(store.content()[LEASES], content);
        }
        store.replace(LEASES, b"").unwrap();
        Leases::new(&store, &nobody).take(&lease("a", LeaseKind::Publish, 9), 1).unwrap();
    }

    #[test]
    fn of_many_at_once_one_publishes_and_none_is_lost() {
        let directory = tempfile::tempdir().unwrap();
        let store = LocalStore::create(directory.path()).unwrap();
        let publishers = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for n in 0..8 {
                let (store, publishers) = (&store, &publishers);
                scope.spawn(move || {
                    let leases = Leases::new(store, &nobody);
                    leases.take(&lease(&format!("w{n}"), LeaseKind::Prepare, 100), 10).unwrap();
                    match leases.take(&lease(&format!("p{n}"), LeaseKind::Publish, 100), 10) {
                        Ok(()) => drop(publishers.fetch_add(1, Ordering::Relaxed)),
                        Err(LeaseError::Held(_)) => {}
                        Err(other) => panic!("{other}"),
                    }
                });
            }
        });
        assert_eq!(publishers.load(Ordering::Relaxed), 1);
        assert_eq!(Leases::new(&store, &nobody).current(10).unwrap().len(), 9);
    }
}
