//! What a layer leaves open is settled against the layers below it.
//!
//! - An implicit directory takes the metadata of the lower one.
//! - An implicit directory that is a link below isn't one: what the layer has in it moves to where the link leads,
//!   inside the root, as if the archive were unpacked on top of the lower layers. (An archive that lists `bin/tool`
//!   over a base image with `bin → usr/bin` means `usr/bin/tool`.) What is there already stays. A link that leads to
//!   something else than a directory is replaced by the directory.
//! - A pending hard link becomes a copy of the lower file's row; its target may be deleted by this layer (a rename).

use std::collections::BTreeMap;

use super::{Layer, LayerError, Staging};
use crate::resolve::resolve;
use crate::rootfs::TreeLookup;
use crate::tree::{Node, NodeKind, TreePath};

/// Rows that may move because of one link of a lower layer; they are held in memory.
const MOVED_MAX: usize = 250_000;
/// Implicit directories looked at, counted again after each move.
const VISITS_MAX: u64 = 10_000_000;

impl<S> Layer<S> {
    /// Settles what is open. `lower` is the merged tree of all layers below; an empty one for the lowest.
    pub fn settle<C: Clone>(&mut self, lower: &dyn TreeLookup<C>) -> Result<(), LayerError>
    where
        S: Staging<C>,
    {
        // links first: they may stand in the way of a directory, or move with one
        self.settle_links(lower)?;
        self.settle_directories(lower)
    }

    fn settle_directories<C: Clone>(&mut self, lower: &dyn TreeLookup<C>) -> Result<(), LayerError>
    where
        S: Staging<C>,
    {
        let mut visits = 0;
        let mut at = None;
        while let Some((path, mut node)) = self.implicit_after(at.as_ref())? {
            visits += 1;
            if visits > VISITS_MAX {
                return Err(LayerError::TooMany { what: "directories that it doesn't list", limit: VISITS_MAX });
            }
            at = Some(path.clone());
            if self.hides_lower(&path)? {
                continue;
            }
            match lower.get(&path).map_err(LayerError::Lower)? {
                Some(below) if below.is_directory() => {
                    let Node { mode, uid, gid, mtime, mtime_ns, xattrs, .. } = below;
                    node = Node { mode, uid, gid, mtime, mtime_ns, xattrs, ..node };
                    self.put(&path, &node)?;
                }
                Some(Node { kind: NodeKind::Symlink { .. }, .. }) => {
                    let target = resolve(&path, true, |path| self.union_link(lower, path))?;
                    if self.is_directory_or_nothing(lower, &target)? {
                        self.move_subtree(&path, &target)?;
                        // the directories may have moved to before this point; seeing one twice does no harm
                        at = at.min(target.parent());
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The first implicit directory behind a path, in tree order.
    fn implicit_after<C>(&self, path: Option<&TreePath>) -> Result<Option<(TreePath, Node<C>)>, LayerError>
    where
        S: Staging<C>,
    {
        if !self.implicit_more {
            use std::ops::Bound::{Excluded, Unbounded};
            let next = self.implicit.range((path.map_or(Unbounded, Excluded), Unbounded)).next();
            let Some(next) = next else { return Ok(None) };
            return Ok(self.get(next)?.map(|node| (next.clone(), node)));
        }
        let mut row = self.staging.after(path).map_err(LayerError::Store)?;
        while let Some((path, node)) = row {
            if node.is_implicit() {
                return Ok(Some((path, node)));
            }
            row = self.staging.after(Some(&path)).map_err(LayerError::Store)?;
        }
        Ok(None)
    }

    /// Does this layer hide what lower layers have at a path: is it or anything above it opaque?
    pub(super) fn hides_lower<C>(&self, path: &TreePath) -> Result<bool, LayerError>
    where
        S: Staging<C>,
    {
        let mut at = self.has_opaque.then(|| path.clone());
        while let Some(path) = at {
            if self.get(&path)?.is_some_and(|node| node.is_opaque()) {
                return Ok(true);
            }
            at = path.parent();
        }
        Ok(false)
    }

    /// The target of a link at a path, seen through this layer.
    pub(super) fn union_link<C>(
        &self,
        lower: &dyn TreeLookup<C>,
        path: &TreePath,
    ) -> Result<Option<Vec<u8>>, LayerError>
    where
        S: Staging<C>,
    {
        let below = match self.get(path)? {
            Some(Node { kind: NodeKind::Symlink { target }, .. }) => return Ok(Some(target)),
            Some(node) if !node.is_implicit() => None,
            _ if self.hides_lower(path)? => None,
            _ => lower.get(path).map_err(LayerError::Lower)?,
        };
        Ok(match below.map(|node| node.kind) {
            Some(NodeKind::Symlink { target }) => Some(target),
            _ => None,
        })
    }

    /// Can a directory be at this path, seen through this layer: is it one, and all above it, or nothing yet?
    pub(super) fn is_directory_or_nothing<C>(
        &self,
        lower: &dyn TreeLookup<C>,
        path: &TreePath,
    ) -> Result<bool, LayerError>
    where
        S: Staging<C>,
    {
        let mut at = Some(path.clone());
        while let Some(path) = at {
            let is_free = match self.get(&path)? {
                Some(node) => node.is_directory() || node.is_whiteout(),
                None if self.hides_lower(&path)? => true,
                None => lower.get(&path).map_err(LayerError::Lower)?.is_none_or(|node| node.is_directory()),
            };
            if !is_free {
                return Ok(false);
            }
            at = path.parent();
        }
        Ok(true)
    }

    /// Moves everything below one directory into another one, which may be missing; the first one disappears.
    fn move_subtree<C: Clone>(&mut self, from: &TreePath, to: &TreePath) -> Result<(), LayerError>
    where
        S: Staging<C>,
    {
        let mut rows = Vec::new();
        let mut next = self.staging.after(Some(from)).map_err(LayerError::Store)?;
        while let Some((path, node)) = next.take_if(|(path, _)| path.is_below(from)) {
            if rows.len() >= MOVED_MAX {
                let what = "rows below a directory that is a symbolic link in a lower layer";
                return Err(LayerError::TooMany { what, limit: MOVED_MAX as u64 });
            }
            next = self.staging.after(Some(&path)).map_err(LayerError::Store)?;
            rows.push((path, node));
        }
        self.clear(from)?;
        self.ensure_directory(to)?;
        self.counts.moved += rows.len() as u64;
        // below this path nothing can be put
        let mut blocked: Option<TreePath> = None;
        for (path, node) in rows {
            let path = path.moved(from, to).expect("only rows below the directory were collected")?;
            if blocked.as_ref().is_some_and(|blocked| path.is_below(blocked)) {
                continue;
            }
            match self.get::<C>(&path)? {
                Some(found) if found.is_directory() && node.is_directory() => {
                    let keep = if found.is_implicit() { node.clone() } else { found.clone() };
                    let opaque = found.is_opaque() || node.is_opaque();
                    let kind = NodeKind::Directory { opaque, implicit: keep.is_implicit() };
                    self.put(&path, &Node { kind, ..keep })?;
                }
                Some(found) if !found.is_whiteout() => {
                    if !found.is_directory() {
                        blocked = Some(path);
                    }
                }
                _ => drop(self.place(&path, node)?),
            }
        }
        Ok(())
    }

    fn settle_links<C: Clone>(&mut self, lower: &dyn TreeLookup<C>) -> Result<(), LayerError>
    where
        S: Staging<C>,
    {
        let mut groups = BTreeMap::new();
        for (link, target) in std::mem::take(&mut self.pending_links) {
            let found = resolve(&target, false, |path| {
                Ok::<_, LayerError>(match lower.get(path).map_err(LayerError::Lower)?.map(|node| node.kind) {
                    Some(NodeKind::Symlink { target }) => Some(target),
                    _ => None,
                })
            })?;
            let mut node = match lower.get(&found).map_err(LayerError::Lower)? {
                None => return Err(LayerError::Dangling { link, target }),
                Some(node) if node.is_directory() => return Err(LayerError::LinkToDirectory { link, target }),
                Some(node) => node,
            };
            node.link_group = *groups.entry(found).or_insert_with(|| {
                self.next_group += 1;
                self.next_group - 1
            });
            self.counts.broken_links += 1;
            self.ensure_directory(&link.parent().unwrap_or_default())?;
            self.place(&link, node)?;
        }
        Ok(())
    }
}
