//! The edits of a transaction.

use super::{OpenCatalog, Transaction};
use crate::catalog::counters::{Counter, Counters, Tally};
use crate::catalog::reader::{NestedRef, Row};
use crate::catalog::writer::CatalogWriter;
use crate::entry::{Chunk, Entry, Flags, Meta};
use crate::hash::{ContentHash, ObjectKind};
use crate::path::RepoPath;
use crate::repository::{RepositoryError, fetch_to_scratch, scratch_file};
use crate::store::StoreError;
use crate::subtree::{Graft, MARKER};

impl Transaction {
    /// The entry at a path, as changed so far. A transition point is shown as its nested catalog has it.
    pub fn lookup(&mut self, path: &RepoPath) -> Result<Option<Entry>, RepositoryError> {
        let Some(parent) = path.parent() else {
            return Ok(self.catalog(&RepoPath::ROOT).writer.lookup(path.key())?.map(|r| r.entry));
        };
        match self.find_home(&parent)? {
            Some(home) => Ok(self.catalog(&home).writer.lookup(path.key())?.map(|r| r.entry)),
            None => Ok(None),
        }
    }

    /// Entries of a directory, as changed so far; empty when there is no such directory.
    pub fn list(&mut self, path: &RepoPath) -> Result<Vec<Entry>, RepositoryError> {
        match self.find_home(path)? {
            Some(home) => Ok(self.catalog(&home).writer.list(path.key())?.into_iter().map(|r| r.entry).collect()),
            None => Ok(Vec::new()),
        }
    }

    /// Closes catalogs that were only read: whoever looks at much of a repository has few of them open.
    pub fn close_unchanged(&mut self) {
        let changed: Vec<RepoPath> = self.open.iter().filter(|(_, c)| c.dirty).map(|(p, _)| p.clone()).collect();
        self.open.retain(|path, _| path.is_root() || changed.iter().any(|c| path.contains(c)));
    }

    /// The nested catalog whose root is exactly `path`, as it stands in the revision that the transaction began with.
    pub fn nested_reference(&mut self, path: &RepoPath) -> Result<Option<NestedRef>, RepositoryError> {
        let Some(parent) = path.parent() else { return Ok(None) };
        let Some(home) = self.find_home(&parent)? else { return Ok(None) };
        let found = self.catalog(&home).writer.nested(path)?;
        Ok(found.map(|(hash, size)| NestedRef { path: path.clone(), hash, size }))
    }

    /// Adds or replaces the entry at `path`, whose directory must exist. A directory over a directory keeps its
    /// content and takes the new metadata; everything else replaces what was there with all that is below it.
    pub fn put(&mut self, path: &RepoPath, mut entry: Entry, chunks: &[Chunk]) -> Result<(), RepositoryError> {
        entry.name = path.name().to_vec();
        match self.lookup(path)? {
            Some(old) if old.is_directory() && entry.is_directory() => return self.set_directory(path, &old, entry),
            Some(_) => self.remove(path)?,
            None => {}
        }
        let (parent, home) = self.home_of_parent(path)?;
        let catalog = self.catalog(&home);
        catalog.writer.insert(path.key(), parent.key(), &entry)?;
        catalog.writer.insert_chunks(path.key(), chunks)?;
        catalog.count(&entry, chunks.len() as i64, 1);
        if entry.is_directory() { self.add_links(&parent, 1) } else { Ok(()) }
    }

    /// Sets or clears flags of a file that say nothing of its type or content; nothing happens when it does not exist.
    pub fn set_flags(&mut self, path: &RepoPath, flags: u32, is_set: bool) -> Result<(), RepositoryError> {
        let Some(parent) = path.parent() else { return Ok(()) };
        let Some(home) = self.find_home(&parent)? else { return Ok(()) };
        let catalog = self.catalog(&home);
        let Some(row) = catalog.writer.lookup(path.key())?.filter(|row| !row.entry.is_directory()) else {
            return Ok(());
        };
        let old = row.entry.flags;
        let new = if is_set { old.with(flags) } else { old.without(flags) };
        if new != old {
            catalog.writer.update(path.key(), &Entry { flags: new, ..row.entry })?;
            catalog.dirty = true;
        }
        Ok(())
    }

    fn set_directory(&mut self, path: &RepoPath, old: &Entry, entry: Entry) -> Result<(), RepositoryError> {
        let new = Entry { links: old.links, flags: old.flags, size: old.size, ..entry };
        self.update_directory(path, |row| {
            let flags = row.flags;
            *row = Entry { flags, ..new.clone() };
        })
    }

    /// Makes the directory and those above it where they don't exist. `starts_catalog` says which of the new
    /// ones become roots of nested catalogs.
    pub fn ensure_directories(
        &mut self,
        path: &RepoPath,
        meta: Meta,
        starts_catalog: &dyn Fn(&RepoPath) -> bool,
    ) -> Result<(), RepositoryError> {
        for directory in path.ancestors() {
            match self.lookup(&directory)? {
                Some(entry) if entry.is_directory() => {}
                Some(_) => {
                    return Err(RepositoryError::Path {
                        path: directory,
                        what: "exists and is not a directory; remove it first",
                    });
                }
                None => {
                    self.put(&directory, Entry::directory(directory.name(), meta), &[])?;
                    if starts_catalog(&directory) {
                        self.split_off(&directory)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Gives a directory a catalog of its own once it has more than `entries` entries; nothing happens to one that
    /// has one, or does not exist.
    pub fn split_if_larger(&mut self, path: &RepoPath, entries: u64) -> Result<(), RepositoryError> {
        match self.find_home(path)? {
            // Asked at every new entry: counting costs no more than the index.
            Some(home) if home != *path && self.catalog(&home).writer.count(path.key())? > entries => {
                self.split(&home, path)
            }
            _ => Ok(()),
        }
    }

    /// Gives a directory a catalog of its own if the one that it is in has more than `crowd` rows, and at least `least`
    /// of them are below the directory; nothing happens to one that has one, or does not exist.
    pub fn split_if_crowded(&mut self, path: &RepoPath, crowd: u64, least: u64) -> Result<(), RepositoryError> {
        let Some(home) = self.find_home(path)?.filter(|home| home != path) else { return Ok(()) };
        let rows = self.catalog(&home).counters.own.entries().unsigned_abs();
        match rows > crowd && self.rows_below(&home, path, least)? >= least {
            true => self.split(&home, path),
            false => Ok(()),
        }
    }

    /// Rows below a directory in its catalog, counted up to `most`.
    fn rows_below(&mut self, home: &RepoPath, path: &RepoPath, most: u64) -> Result<u64, RepositoryError> {
        let mut rows = self.catalog(home).writer.count(path.key())?;
        if rows >= most {
            return Ok(rows);
        }
        for child in self.catalog(home).writer.list(path.key())? {
            if child.entry.is_directory() && !child.entry.flags.is_nested_mountpoint() && rows < most {
                rows += self.rows_below(home, &path.join(&child.entry.name), most - rows)?;
            }
        }
        Ok(rows)
    }

    /// Moves all below a directory from its catalog `home` to one of its own.
    fn split(&mut self, home: &RepoPath, path: &RepoPath) -> Result<(), RepositoryError> {
        let children = self.catalog(home).writer.list(path.key())?;
        self.split_off(path)?;
        for child in children {
            self.move_rows(home, path, &path.join(&child.entry.name), child)?;
        }
        Ok(())
    }

    /// Moves the row at `path`, with all below it, from catalog `from` to the new catalog `to`.
    fn move_rows(&mut self, from: &RepoPath, to: &RepoPath, path: &RepoPath, row: Row) -> Result<(), RepositoryError> {
        let source = self.catalog(from);
        let below = match row.entry.is_directory() && !row.entry.flags.is_nested_mountpoint() {
            true => source.writer.list(path.key())?,
            false => Vec::new(),
        };
        let chunks = source.writer.chunks(path.key(), row.entry.algorithm())?;
        let nested = match row.entry.flags.is_nested_mountpoint() {
            true => source.writer.nested(path)?,
            false => None,
        };
        source.writer.delete(path.key())?;
        source.count(&row.entry, chunks.len() as i64, -1);
        let mut accounted = Tally::default();
        if row.entry.flags.is_nested_mountpoint() {
            accounted = match self.open.get_mut(path) {
                Some(open) => {
                    open.parent = Some(to.clone());
                    open.accounted
                }
                None => self.forget_nested(from, path)?,
            };
            let source = self.catalog(from);
            source.writer.remove_nested(path)?;
            source.counters.own[Counter::Nested] -= 1;
            source.counters.subtree.add(&accounted, -1);
        }
        let target = self.catalog(to);
        target.writer.insert(row.key, row.parent, &row.entry)?;
        target.writer.insert_chunks(row.key, &chunks)?;
        target.count(&row.entry, chunks.len() as i64, 1);
        if row.entry.flags.is_nested_mountpoint() {
            if let Some((hash, size)) = nested {
                target.writer.set_nested(path, hash, size)?;
            }
            target.counters.own[Counter::Nested] += 1;
            target.counters.subtree.add(&accounted, 1);
        }
        for child in below {
            self.move_rows(from, to, &path.join(&child.entry.name), child)?;
        }
        Ok(())
    }

    /// Makes an empty directory the root of a nested catalog.
    fn split_off(&mut self, path: &RepoPath) -> Result<(), RepositoryError> {
        let (parent, home) = self.home_of_parent(path)?;
        let catalog = self.catalog(&home);
        let Some(row) = catalog.writer.lookup(path.key())? else {
            return Err(RepositoryError::Path { path: path.clone(), what: "does not exist" });
        };
        let transition = Entry { flags: row.entry.flags.with(Flags::NESTED_MOUNTPOINT), ..row.entry.clone() };
        catalog.writer.update(path.key(), &transition)?;
        catalog.counters.own[Counter::Nested] += 1;
        catalog.dirty = true;
        let file = scratch_file(&self.options.scratch)?;
        let writer = CatalogWriter::create(file.path())?;
        writer.set_root_prefix(path)?;
        let root = Entry { flags: row.entry.flags.with(Flags::NESTED_ROOT), ..row.entry };
        writer.insert(path.key(), parent.key(), &root)?;
        let marker = Entry { name: MARKER.to_vec(), ..self.options.marker.clone() };
        writer.insert(path.join(MARKER).key(), path.key(), &marker)?;
        let mut counters = Counters::default();
        counters.own.count(&root, 1);
        counters.own.count(&marker, 1);
        let accounted = Tally::default();
        let new = OpenCatalog { writer, file, parent: Some(home), previous: None, counters, accounted, dirty: true };
        self.open.insert(path.clone(), new);
        Ok(())
    }

    /// Hangs a finished subtree in. Its directory must exist; what is at its path goes.
    pub fn graft(&mut self, graft: &Graft) -> Result<(), RepositoryError> {
        if self.lookup(&graft.path)?.is_some() {
            self.remove(&graft.path)?;
        }
        let (parent, home) = self.home_of_parent(&graft.path)?;
        let flags = graft.entry.flags.with(Flags::NESTED_MOUNTPOINT);
        let entry = Entry { flags, name: graft.path.name().to_vec(), ..graft.entry.clone() };
        let catalog = self.catalog(&home);
        catalog.writer.insert(graft.path.key(), parent.key(), &entry)?;
        catalog.writer.set_nested(&graft.path, graft.catalog, graft.size)?;
        catalog.count(&entry, 0, 1);
        catalog.counters.own[Counter::Nested] += 1;
        catalog.counters.subtree.add(&graft.counters.total(), 1);
        self.add_links(&parent, 1)
    }

    /// Removes the entry at `path` and everything below it; nothing happens when it does not exist.
    pub fn remove(&mut self, path: &RepoPath) -> Result<(), RepositoryError> {
        let Some(entry) = self.lookup(path)? else { return Ok(()) };
        let Some(parent) = path.parent() else {
            return Err(RepositoryError::Path {
                path: path.clone(),
                what: "the root of a repository cannot be removed",
            });
        };
        let home = self.home(&parent)?;
        self.remove_rows(&home, path, &entry)?;
        if entry.is_directory() {
            self.add_links(&parent, -1)?;
        }
        Ok(())
    }

    /// Takes away the row of `path` in catalog `home`, and all below it.
    fn remove_rows(&mut self, home: &RepoPath, path: &RepoPath, entry: &Entry) -> Result<(), RepositoryError> {
        if entry.flags.is_nested_mountpoint() {
            let accounted = self.forget_nested(home, path)?;
            let catalog = self.catalog(home);
            catalog.writer.remove_nested(path)?;
            catalog.counters.own[Counter::Nested] -= 1;
            catalog.counters.subtree.add(&accounted, -1);
        } else if entry.is_directory() {
            for Row { entry: child, .. } in self.catalog(home).writer.list(path.key())? {
                self.remove_rows(home, &path.join(&child.name), &child)?;
            }
        }
        let catalog = self.catalog(home);
        let chunks = catalog.writer.delete(path.key())?;
        catalog.count(entry, chunks as i64, -1);
        match path.parent() {
            Some(parent) if entry.link_group != 0 => self.shrink_link_group(home, &parent, entry.link_group),
            _ => Ok(()),
        }
    }

    /// One name of a hard-link group went.
    fn shrink_link_group(&mut self, home: &RepoPath, directory: &RepoPath, group: u32) -> Result<(), RepositoryError> {
        let writer = &self.catalog(home).writer;
        let rows = writer.list(directory.key())?;
        let rest: Vec<&Row> = rows.iter().filter(|r| r.entry.link_group == group).collect();
        for row in &rest {
            let link_group = if rest.len() > 1 { group } else { 0 };
            writer.update(row.key, &Entry { links: rest.len() as u32, link_group, ..row.entry.clone() })?;
        }
        Ok(())
    }

    /// Closes a nested catalog that goes, with all below it; gives what its parent accounted for it.
    fn forget_nested(&mut self, home: &RepoPath, path: &RepoPath) -> Result<Tally, RepositoryError> {
        let gone: Vec<RepoPath> = self.open.keys().filter(|p| path.contains(p)).cloned().collect();
        let open = gone.into_iter().filter_map(|p| self.open.remove(&p).map(|c| (p, c))).collect::<Vec<_>>();
        if let Some((_, catalog)) = open.into_iter().find(|(p, _)| p == path) {
            return Ok(catalog.accounted);
        }
        let Some((hash, _)) = self.catalog(home).writer.nested(path)? else { return self.remainder(home, path) };
        match self.total_of(hash) {
            // What is damaged can be removed or replaced: it counted what the others do not count.
            Err(error) if is_damage(&error) => self.remainder(home, path),
            other => other,
        }
    }

    fn total_of(&self, hash: ContentHash) -> Result<Tally, RepositoryError> {
        let file = fetch_to_scratch(&*self.repository.store, hash.object(ObjectKind::Catalog), &self.options.scratch)?;
        Ok(CatalogWriter::open(file.path())?.counters()?.total())
    }

    /// What the parent's `subtree` holds besides all its other nested catalogs.
    fn remainder(&mut self, home: &RepoPath, path: &RepoPath) -> Result<Tally, RepositoryError> {
        let mut rest = self.catalog(home).counters.subtree;
        for (other, hash) in self.catalog(home).writer.nested_all()?.into_iter().filter(|(other, _)| other != path) {
            let total = match self.open.get(&other) {
                Some(open) => open.accounted,
                None => self.total_of(hash)?,
            };
            rest.add(&total, -1);
        }
        Ok(rest)
    }

    /// Changes the link count of a directory.
    fn add_links(&mut self, path: &RepoPath, change: i32) -> Result<(), RepositoryError> {
        self.update_directory(path, |entry| entry.links = entry.links.saturating_add_signed(change))
    }

    /// Changes the row of a directory; both rows of a transition point.
    fn update_directory(&mut self, path: &RepoPath, change: impl Fn(&mut Entry)) -> Result<(), RepositoryError> {
        let inner = self.home(path)?;
        let mut homes = vec![inner.clone()];
        if inner == *path
            && let Some(parent) = path.parent()
        {
            homes.push(self.home(&parent)?);
        }
        for home in homes {
            let catalog = self.catalog(&home);
            let Some(row) = catalog.writer.lookup(path.key())? else {
                return Err(RepositoryError::Path {
                    path: path.clone(),
                    what: "the directory has no row in its catalog",
                });
            };
            let mut entry = row.entry.clone();
            change(&mut entry);
            catalog.counters.own.count(&row.entry, -1);
            catalog.count(&entry, 0, 1);
            catalog.writer.update(path.key(), &entry)?;
        }
        Ok(())
    }

    fn home_of_parent(&mut self, path: &RepoPath) -> Result<(RepoPath, RepoPath), RepositoryError> {
        let Some(parent) = path.parent() else {
            return Err(RepositoryError::Path { path: path.clone(), what: "the root of a repository is always there" });
        };
        let home = self.home(&parent)?;
        Ok((parent, home))
    }

    /// The catalog that holds the entries of a directory.
    fn home(&mut self, directory: &RepoPath) -> Result<RepoPath, RepositoryError> {
        self.find_home(directory)?
            .ok_or_else(|| RepositoryError::Path { path: directory.clone(), what: "there is no such directory" })
    }

    fn find_home(&mut self, directory: &RepoPath) -> Result<Option<RepoPath>, RepositoryError> {
        let mut home = RepoPath::ROOT;
        for path in directory.ancestors().filter(|p| !p.is_root()) {
            if self.open.contains_key(&path) {
                home = path;
                continue;
            }
            let Some(row) = self.catalog(&home).writer.lookup(path.key())? else { return Ok(None) };
            if !row.entry.is_directory() {
                return Ok(None);
            }
            if row.entry.flags.is_nested_mountpoint() {
                let Some((hash, _)) = self.catalog(&home).writer.nested(&path)? else {
                    return Err(RepositoryError::Path {
                        path,
                        what: "its nested catalog is not registered; run check",
                    });
                };
                let catalog = self.load(hash, Some(home))?;
                self.open.insert(path.clone(), catalog);
                home = path;
            }
        }
        Ok(Some(home))
    }

    fn catalog(&mut self, home: &RepoPath) -> &mut OpenCatalog {
        self.open.get_mut(home).expect("homes are open catalogs")
    }
}

/// Whether it is the object that is wrong, and not reading it.
fn is_damage(error: &RepositoryError) -> bool {
    let store = matches!(error, RepositoryError::Store(StoreError::Missing(_) | StoreError::Object(_)));
    store || matches!(error, RepositoryError::Catalog(_))
}
