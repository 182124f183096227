//! Statistics counters of a catalog.
//!
//! `self` counts the rows of the catalog, its root entry included. `subtree` is the sum over the *direct*
//! nested catalogs of their `self` + `subtree`; a transition directory therefore counts twice in all.

use std::ops::{Index, IndexMut};

use crate::entry::{Entry, FileType};

macro_rules! counters {
    ($($variant:ident = $name:literal, $doc:literal;)*) => {
        /// What is counted.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Counter { $(#[doc = $doc] $variant),* }

        impl Counter {
            /// All counters.
            pub const ALL: [Counter; 12] = [$(Counter::$variant),*];

            /// Name without the prefixes `self_` and `subtree_`.
            pub fn name(self) -> &'static str {
                match self { $(Counter::$variant => $name),* }
            }
        }
    };
}

counters! {
    Regular = "regular", "Regular files; every hard-link name counts.";
    Symlink = "symlink", "Symbolic links.";
    Special = "special", "Devices, pipes, sockets.";
    Dir = "dir", "Directories, the catalog's root and transition points included.";
    Nested = "nested", "Direct nested catalogs.";
    Chunked = "chunked", "Chunked files.";
    Chunks = "chunks", "Chunks.";
    FileSize = "file_size", "Bytes of all regular files.";
    ChunkedSize = "chunked_size", "Bytes of chunked files.";
    Xattr = "xattr", "Entries with extended attributes.";
    External = "external", "External files.";
    ExternalFileSize = "external_file_size", "Bytes of external files.";
}

/// One value for each [`Counter`]; signed, so that it serves as a difference too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally([i64; 12]);

impl Index<Counter> for Tally {
    type Output = i64;
    fn index(&self, counter: Counter) -> &i64 {
        &self.0[counter as usize]
    }
}

impl IndexMut<Counter> for Tally {
    fn index_mut(&mut self, counter: Counter) -> &mut i64 {
        &mut self.0[counter as usize]
    }
}

impl Tally {
    /// Adds an entry (`sign` 1) or takes it away (−1). Chunks and nested catalogs count in their own tables.
    pub fn count(&mut self, entry: &Entry, sign: i64) {
        let mut change = Tally::default();
        change.enter(entry);
        self.add(&change, sign);
    }

    fn enter(&mut self, entry: &Entry) {
        let size = entry.size as i64;
        match entry.file_type() {
            FileType::Directory => self[Counter::Dir] = 1,
            FileType::Symlink => self[Counter::Symlink] = 1,
            FileType::Regular => {
                self[Counter::Regular] = 1;
                self[Counter::FileSize] = size;
                if entry.flags.is_chunked() {
                    self[Counter::Chunked] = 1;
                    self[Counter::ChunkedSize] = size;
                }
                if entry.flags.is_external() {
                    self[Counter::External] = 1;
                    self[Counter::ExternalFileSize] = size;
                }
            }
            _ => self[Counter::Special] = 1,
        }
        if entry.xattrs.is_some() {
            self[Counter::Xattr] = 1;
        }
    }

    /// Adds another tally `sign` times. Sizes of a hostile catalog may be anything: sums wrap around, and a check
    /// finds them wrong.
    pub fn add(&mut self, other: &Tally, sign: i64) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine = mine.wrapping_add(theirs.wrapping_mul(sign));
        }
    }

    /// Regular files, links, special files and directories together.
    pub fn entries(&self) -> i64 {
        [Counter::Regular, Counter::Symlink, Counter::Special, Counter::Dir]
            .iter()
            .fold(0, |sum: i64, c| sum.wrapping_add(self[*c]))
    }

    /// Whether every value is zero.
    pub fn is_zero(&self) -> bool {
        self.0.iter().all(|v| *v == 0)
    }
}

/// Both halves of a catalog's statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// The catalog itself.
    pub own: Tally,
    /// Everything below its transition points.
    pub subtree: Tally,
}

impl Counters {
    /// What this catalog adds to the `subtree` of its parent.
    pub fn total(&self) -> Tally {
        let mut total = self.own;
        total.add(&self.subtree, 1);
        total
    }

    /// The 24 rows of the `statistics` table.
    pub fn rows(&self) -> impl Iterator<Item = (String, i64)> + '_ {
        [("self", &self.own), ("subtree", &self.subtree)]
            .into_iter()
            .flat_map(|(prefix, tally)| Counter::ALL.map(|c| (format!("{prefix}_{}", c.name()), tally[c])))
    }

    /// Cell of the row with this name; `None` for names that are no counter.
    pub fn cell_mut(&mut self, row: &str) -> Option<&mut i64> {
        let (tally, name) = match row.strip_prefix("self_") {
            Some(name) => (&mut self.own, name),
            None => (&mut self.subtree, row.strip_prefix("subtree_")?),
        };
        Counter::ALL.into_iter().find(|c| c.name() == name).map(move |c| &mut tally[c])
    }
}
