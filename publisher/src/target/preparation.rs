//! The right to store objects that nothing refers to yet, and the knowledge whether they may have been collected.

use cvmfs::catalog::NestedRef;
use cvmfs::lease::LeaseKind;
use cvmfs::store::StoreError;
use cvmfs::traversal::{Loader, TraversalError};

use super::{LeaseGuard, Target, Traces};
use crate::failure::Failure;
use crate::layer::objects_are_present;
use crate::raw_index::RawIndex;

/// Held from the first object that is stored until the last publish that needs them.
#[derive(Debug)]
pub struct Preparation {
    lease: LeaseGuard,
    traces: Traces,
    /// Whether objects are known to have been collected since the repository was opened.
    is_late: bool,
}

impl Target {
    /// Keeps collectors away while objects are prepared; waits for one that is at work.
    pub fn prepare(&self, what: &str) -> Result<Preparation, Failure> {
        let lease = self.lease(LeaseKind::Prepare, what, self.patience)?;
        let is_late = self.forget_if_collected()?;
        Ok(Preparation { lease, traces: Traces::look(&*self.store, self.scratch())?, is_late })
    }

    /// Drops what is remembered of objects if any were collected since the last look, whoever did it; says so.
    pub fn forget_if_collected(&self) -> Result<bool, Failure> {
        let state = &self.paths.state;
        // What this process saw before counts for more than what another one saw and noted since.
        let before = self.traces.lock().clone().or_else(|| Traces::recall(state));
        let (now, collected) = match before {
            Some(before) => match before.are_all(&*self.store, self.scratch())? {
                // The next look begins here, or it could not tell of revisions that came since.
                Ok(()) => (Traces::look(&*self.store, self.scratch())?, false),
                Err(now) => (now, true),
            },
            None => (Traces::look(&*self.store, self.scratch())?, true),
        };
        if collected {
            RawIndex::clear(state)?;
        }
        now.remember(state)?;
        *self.traces.lock() = Some(now);
        Ok(collected)
    }

    /// Whether a catalog, all below it and everything that they refer to is in the storage.
    pub fn is_present(&self, reference: &NestedRef) -> Result<bool, Failure> {
        let loader = Loader::new(&*self.store, self.scratch());
        match objects_are_present(loader, &*self.store, reference) {
            Err(Failure::Traversal(TraversalError::Store { source, .. }))
                if matches!(*source, StoreError::Missing(_)) =>
            {
                Ok(false)
            }
            other => other,
        }
    }
}

impl Preparation {
    /// Whether every object that was stored, or proven to be there, since the beginning is there still. If not so, all
    /// have to be proven again. To be asked while the lock for publishing is held.
    pub fn is_undisturbed(&self, target: &Target) -> Result<bool, Failure> {
        Ok(!self.is_late && !self.lease.is_lost() && self.traces.are_all(&*target.store, target.scratch())?.is_ok())
    }

    /// Goes on after objects were collected: what is remembered of them is dropped. What was prepared before may be used
    /// later, so everything is proven from now on.
    pub fn renew(&mut self, target: &Target, what: &str) -> Result<(), Failure> {
        if self.lease.is_lost() {
            self.lease = target.lease(LeaseKind::Prepare, what, target.patience)?;
        }
        target.forget_if_collected()?;
        self.is_late = true;
        Ok(())
    }
}
