//! Gives back the disk of layers that were unpacked here before they were published.
//!
//! A layer that was absent when its image was pulled stays a local directory. Once the repository has it, its snapshot can stand for
//! the published directory instead: name, parent and labels stay, so containerd does not notice. Snapshots that a container or a
//! view stands on are left alone; their mounts hold the files.

use serde::{Deserialize, Serialize};

use crate::daemon::{Daemon, chain_of};
use crate::decision::Action;
use crate::error::Error;
use crate::labels::{LayerName, Wanted};
use crate::resolve::{Below, Way};
use crate::snapshots::{Found, Id, Kind, PAGE, Snapshot};
use crate::usage::Usage;

/// What became of the local snapshots.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Converted {
    /// names of those that stand for published directories now
    pub converted: Vec<String>,
    /// bytes that their files took
    pub freed: u64,
    /// names of those that are published, but in use
    pub in_use: Vec<String>,
    /// how many are in no repository
    pub absent: usize,
}

/// Converts whatever can be; with `dry_run` only says what that would be.
pub async fn convert(daemon: &Daemon, dry_run: bool) -> Result<Converted, Error> {
    let mut result = Converted::default();
    for (snapshot, below) in candidates(daemon).await? {
        let Some(chain) = chain_of(&snapshot) else { continue };
        let wanted = Wanted::named(LayerName::Chain(chain));
        let decision = daemon.find(&wanted, below).await;
        let Action::Serve { repository, hit } = decision.action() else {
            result.absent += 1;
            continue;
        };
        let Ok(lowers) = daemon.lowers(&repository, &hit.layer).await else {
            result.absent += 1;
            continue;
        };
        let name = snapshot.info.name.clone();
        let size = hit.layer.size;
        let found =
            Found { lowers, how: Way::Chain.as_str(), logical: Usage { size: size.0, inodes: size.1 }, stack: None };
        let id = snapshot.id;
        let done = if dry_run {
            let freed = snapshot.usage.map_or(0, |usage| usage.size);
            daemon
                .blocking(move |snapshots| snapshots.metadata().read(|table| Ok(!table.has_mounted_descendant(id)?)))
                .await
                .map(|free| free.then_some(freed))
        } else {
            match daemon.blocking(move |snapshots| snapshots.convert(id, &found)).await {
                Ok(freed) => Ok(Some(freed)),
                Err(Error::FailedPrecondition(_)) => Ok(None),
                Err(error) => Err(error),
            }
        };
        match done? {
            Some(freed) => {
                result.converted.push(name);
                result.freed += freed;
            }
            None => result.in_use.push(name),
        }
    }
    if !dry_run {
        daemon.blocking(crate::snapshots::Snapshots::cleanup).await?;
    }
    Ok(result)
}

/// Committed snapshots with files of their own, and what they stand on.
async fn candidates(daemon: &Daemon) -> Result<Vec<(Snapshot, Below)>, Error> {
    daemon
        .blocking(|snapshots| {
            snapshots.metadata().read(|table| {
                let mut found = Vec::new();
                let mut last: Option<Id> = None;
                loop {
                    let page = table.page(last, PAGE, None)?;
                    last = page.last().map(|snapshot| snapshot.id);
                    let full = page.len() == PAGE;
                    for snapshot in page
                        .into_iter()
                        .filter(|snapshot| snapshot.info.kind == Kind::Committed && !snapshot.is_remote())
                    {
                        let below = match snapshot.parent {
                            None => Below::Nothing,
                            Some(parent) => chain_of(&table.by_id(parent)?).map_or(Below::Unknown, Below::Chain),
                        };
                        found.push((snapshot, below));
                    }
                    if !full {
                        return Ok(found);
                    }
                }
            })
        })
        .await
}
