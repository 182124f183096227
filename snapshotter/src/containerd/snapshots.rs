//! Snapshots of a snapshotter, as containerd sees them, and containerd's unpacker.

use anyhow::{Context as _, bail};
use containerd_client::services::v1::ApplyRequest;
use containerd_client::services::v1::snapshots::{
    CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
};
use containerd_client::types;
use image::digest::{ChainId, DiffId};
use tonic::{Code, Status};

use super::content::Blob;
use super::{Engine, said};
use crate::labels::Labels;
use crate::overlay::Mount;

/// What `Prepare` answered.
#[derive(Debug)]
pub enum Prepared {
    /// the layer is to be unpacked here
    Mounts(Vec<Mount>),
    /// the snapshotter says that it has the layer
    Exists,
}

impl Engine {
    /// Is there a committed snapshot of these layers? The lease keeps it from now on.
    pub async fn has_chain(&self, snapshotter: &str, chain: ChainId) -> anyhow::Result<bool> {
        Ok(self.is_there(snapshotter, chain).await? && {
            self.keep(&chain.to_string(), format!("snapshots/{snapshotter}")).await?;
            // It may have been collected in between.
            self.is_there(snapshotter, chain).await?
        })
    }

    /// Is there a snapshot of this name?
    pub async fn is_there(&self, snapshotter: &str, chain: ChainId) -> anyhow::Result<bool> {
        let message = StatSnapshotRequest { snapshotter: snapshotter.to_owned(), key: chain.to_string() };
        match self.client().snapshots().stat(self.request(message)?).await {
            Ok(_) => Ok(true),
            Err(status) if status.code() == Code::NotFound => Ok(false),
            Err(status) => Err(explain(snapshotter, status)),
        }
    }

    /// Begins the snapshot of a layer.
    pub async fn prepare(
        &self,
        snapshotter: &str,
        key: &str,
        parent: Option<ChainId>,
        labels: &Labels,
    ) -> anyhow::Result<Prepared> {
        let message = PrepareSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            key: key.to_owned(),
            parent: parent.map(|chain| chain.to_string()).unwrap_or_default(),
            labels: labels.clone().into_iter().collect(),
        };
        match self.client().snapshots().prepare(self.request(message)?).await {
            Ok(answer) => {
                let mounts = answer.into_inner().mounts.into_iter();
                let mount =
                    |mount: types::Mount| Mount { kind: mount.r#type, source: mount.source, options: mount.options };
                Ok(Prepared::Mounts(mounts.map(mount).collect()))
            }
            Err(status) if status.code() == Code::AlreadyExists => Ok(Prepared::Exists),
            Err(status) => Err(explain(snapshotter, status)),
        }
    }

    /// Ends the snapshot of a layer. That somebody else was faster is as good.
    pub async fn commit(&self, snapshotter: &str, chain: ChainId, key: &str, labels: &Labels) -> anyhow::Result<()> {
        let message = CommitSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            name: chain.to_string(),
            key: key.to_owned(),
            labels: labels.clone().into_iter().collect(),
        };
        match self.client().snapshots().commit(self.request(message)?).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::AlreadyExists => {
                self.discard(snapshotter, key).await;
                Ok(())
            }
            Err(status) => Err(explain(snapshotter, status)),
        }
    }

    /// Gives up a snapshot that was begun; if that fails, its lease will end it.
    pub async fn discard(&self, snapshotter: &str, key: &str) {
        let message = RemoveSnapshotRequest { snapshotter: snapshotter.to_owned(), key: key.to_owned() };
        if let Ok(request) = self.request(message)
            && let Err(status) = self.client().snapshots().remove(request).await
        {
            tracing::warn!(key, %status, "an unfinished snapshot is still there");
        }
    }

    /// Unpacks a layer from the content store into mounts; returns the digest of its tar.
    pub async fn apply(&self, blob: &Blob, mounts: &[Mount]) -> anyhow::Result<DiffId> {
        let mounts = mounts.iter().map(|mount| types::Mount {
            r#type: mount.kind.clone(),
            source: mount.source.clone(),
            target: String::new(),
            options: mount.options.clone(),
        });
        let message =
            ApplyRequest { diff: Some(blob.descriptor()), mounts: mounts.collect(), ..ApplyRequest::default() };
        let answer = self.client().diff().apply(self.request(message)?).await.map_err(said);
        let applied = answer.with_context(|| format!("containerd can't unpack {}", blob.digest))?.into_inner().applied;
        let applied = applied.context("containerd does not say what it unpacked")?;
        match DiffId::parse(&applied.digest) {
            Ok(diff) => Ok(diff),
            Err(error) => bail!("containerd does not say what it unpacked: {error}"),
        }
    }
}

/// Why a snapshotter can't be used, and what to do.
fn explain(snapshotter: &str, status: Status) -> anyhow::Error {
    let hint = if status.message().contains("not loaded") {
        "run `cvmfs-snapshotter install --containerd` and restart containerd"
    } else if status.code() == Code::Unavailable {
        "is the daemon running? see `cvmfs-snapshotter doctor`"
    } else {
        "`cvmfs-snapshotter doctor` may tell more"
    };
    said(status).context(format!("containerd can't use the snapshotter {snapshotter}; {hint}"))
}
