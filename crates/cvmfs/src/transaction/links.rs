//! Hard links and chunks in a transaction.
//!
//! The format knows hard links among the entries of one directory only: rows that are equal in all but their name, tied
//! by the number of a group that is unique in the catalog, and by their count.

use std::collections::BTreeSet;

use super::{OpenCatalog, Transaction};
use crate::entry::{Chunk, Entry};
use crate::path::RepoPath;
use crate::repository::RepositoryError;

impl Transaction {
    /// Chunks of the file at `path`, as changed so far; none for a file in one piece, or for what is no file.
    pub fn chunks(&mut self, path: &RepoPath) -> Result<Vec<Chunk>, RepositoryError> {
        match self.lookup(path)? {
            Some(entry) if entry.flags.is_chunked() => {
                Ok(self.holder(path).writer.chunks(path.key(), entry.algorithm())?)
            }
            _ => Ok(Vec::new()),
        }
    }

    /// Makes all these names of a directory, which must exist, one file. They replace what is there, as
    /// [`Transaction::put`] does, and leave the groups that they were in.
    pub fn put_links(
        &mut self,
        directory: &RepoPath,
        names: &BTreeSet<Vec<u8>>,
        entry: &Entry,
        chunks: &[Chunk],
    ) -> Result<(), RepositoryError> {
        if entry.is_directory() {
            return Err(RepositoryError::Path { path: directory.clone(), what: "a directory has no hard links" });
        }
        for name in names {
            self.put(&directory.join(name), Entry { links: 1, link_group: 0, ..entry.clone() }, chunks)?;
        }
        let Some(first) = names.first().filter(|_| names.len() > 1) else { return Ok(()) };
        let links = u32::try_from(names.len())
            .map_err(|_| RepositoryError::Path { path: directory.clone(), what: "too many names of one file" })?;
        let catalog = self.holder(&directory.join(first));
        let link_group = catalog.writer.new_link_group()?;
        for name in names {
            let tied = Entry { name: name.clone(), links, link_group, ..entry.clone() };
            catalog.writer.update(directory.join(name).key(), &tied)?;
        }
        Ok(())
    }

    /// The catalog with the row of `path`, an entry that was looked up before: all catalogs on its way are open.
    fn holder(&mut self, path: &RepoPath) -> &mut OpenCatalog {
        let holds = |home: &RepoPath| home.contains(path) && (home != path || path.is_root());
        let home = self.open.keys().filter(|home| holds(home)).max_by_key(|home| home.as_bytes().len()).cloned();
        self.open.get_mut(&home.unwrap_or(RepoPath::ROOT)).expect("the root catalog is always open")
    }
}
