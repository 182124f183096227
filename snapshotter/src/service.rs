//! The Snapshots service: gRPC in, values out. Nothing is decided here.

use std::sync::Arc;
use std::time::Instant;

use futures_util::Stream;
use prost_types::Timestamp;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::daemon::Daemon;
use crate::error::Error;
use crate::filter::Filter;
use crate::overlay;
use crate::proto::snapshots_server::Snapshots as SnapshotsService;
use crate::proto::{
    CleanupRequest, CommitSnapshotRequest, Info, Kind as WireKind, ListSnapshotsRequest, ListSnapshotsResponse, Mount,
    MountsRequest, MountsResponse, PrepareSnapshotRequest, PrepareSnapshotResponse, RemoveSnapshotRequest,
    StatSnapshotRequest, StatSnapshotResponse, UpdateSnapshotRequest, UpdateSnapshotResponse, UsageRequest,
    UsageResponse, ViewSnapshotRequest, ViewSnapshotResponse,
};
use crate::snapshots::{self, Kind, Snapshot};

/// The service over a daemon.
#[derive(Debug, Clone)]
pub struct Service(pub Arc<Daemon>);

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        match error {
            Error::NotFound(_) => Self::not_found(text),
            Error::AlreadyExists(_) => Self::already_exists(text),
            Error::FailedPrecondition(_) => Self::failed_precondition(text),
            Error::InvalidArgument(_) => Self::invalid_argument(text),
            Error::Unavailable(_) => Self::unavailable(text),
            Error::Io { .. } | Error::Database(_) => {
                tracing::error!(error = text, "a request failed");
                Self::unknown(text)
            }
        }
    }
}

type Answer<T> = Result<Response<T>, Status>;

impl Service {
    /// Answers, and counts how long that took.
    async fn timed<T>(&self, method: &'static str, work: impl Future<Output = Result<T, Error>>) -> Answer<T> {
        let start = Instant::now();
        let result = work.await;
        self.0.metrics().request(method, start);
        if let Err(error) = &result {
            tracing::debug!(method, %error, "answered with an error");
        }
        Ok(Response::new(result?))
    }
}

#[tonic::async_trait]
impl SnapshotsService for Service {
    async fn prepare(&self, request: Request<PrepareSnapshotRequest>) -> Answer<PrepareSnapshotResponse> {
        let PrepareSnapshotRequest { key, parent, labels, .. } = request.into_inner();
        let work = async {
            let labels = labels.into_iter().collect();
            let mounts = self.0.prepare(Kind::Active, &key, named(&parent), labels).await?;
            Ok(PrepareSnapshotResponse { mounts: mounts.into_iter().map(mount).collect() })
        };
        self.timed("Prepare", work).await
    }

    async fn view(&self, request: Request<ViewSnapshotRequest>) -> Answer<ViewSnapshotResponse> {
        let ViewSnapshotRequest { key, parent, labels, .. } = request.into_inner();
        let work = async {
            let labels = labels.into_iter().collect();
            let mounts = self.0.prepare(Kind::View, &key, named(&parent), labels).await?;
            Ok(ViewSnapshotResponse { mounts: mounts.into_iter().map(mount).collect() })
        };
        self.timed("View", work).await
    }

    async fn mounts(&self, request: Request<MountsRequest>) -> Answer<MountsResponse> {
        let key = request.into_inner().key;
        let work = async { Ok(MountsResponse { mounts: self.0.mounts(&key).await?.into_iter().map(mount).collect() }) };
        self.timed("Mounts", work).await
    }

    async fn commit(&self, request: Request<CommitSnapshotRequest>) -> Answer<()> {
        let CommitSnapshotRequest { name, key, labels, parent, .. } = request.into_inner();
        let work = self.0.commit(&name, &key, named(&parent), labels.into_iter().collect());
        self.timed("Commit", work).await
    }

    async fn remove(&self, request: Request<RemoveSnapshotRequest>) -> Answer<()> {
        let key = request.into_inner().key;
        self.timed("Remove", self.0.remove(&key)).await
    }

    async fn stat(&self, request: Request<StatSnapshotRequest>) -> Answer<StatSnapshotResponse> {
        let key = request.into_inner().key;
        let work = async {
            let snapshot = self.0.blocking(move |snapshots| snapshots.stat(&key)).await?;
            Ok(StatSnapshotResponse { info: Some(info(snapshot)) })
        };
        self.timed("Stat", work).await
    }

    async fn update(&self, request: Request<UpdateSnapshotRequest>) -> Answer<UpdateSnapshotResponse> {
        let UpdateSnapshotRequest { info: new, update_mask, .. } = request.into_inner();
        let work = async {
            let new = new.ok_or_else(|| Error::InvalidArgument("an update needs the new values".into()))?;
            let labels = new.labels.into_iter().collect();
            let paths = update_mask.map(|mask| mask.paths).unwrap_or_default();
            let snapshot = self.0.blocking(move |snapshots| snapshots.update(&new.name, &labels, &paths)).await?;
            Ok(UpdateSnapshotResponse { info: Some(info(snapshot)) })
        };
        self.timed("Update", work).await
    }

    type ListStream = std::pin::Pin<Box<dyn Stream<Item = Result<ListSnapshotsResponse, Status>> + Send>>;

    async fn list(&self, request: Request<ListSnapshotsRequest>) -> Answer<Self::ListStream> {
        let start = Instant::now();
        let filter = Filter::parse(&request.into_inner().filters)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let (sender, receiver) = tokio::sync::mpsc::channel(4);
        let daemon = Arc::clone(&self.0);
        tokio::task::spawn_blocking(move || {
            let mut last = None;
            loop {
                let (page, next) = match daemon.snapshots().list(&filter, last) {
                    Ok(page) => page,
                    Err(error) => {
                        let _ = sender.blocking_send(Err(error.into()));
                        return;
                    }
                };
                // Whoever asked may be gone.
                if !page.is_empty()
                    && sender
                        .blocking_send(Ok(ListSnapshotsResponse { info: page.into_iter().map(info).collect() }))
                        .is_err()
                {
                    return;
                }
                if next.is_none() {
                    daemon.metrics().request("List", start);
                    return;
                }
                last = next;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn usage(&self, request: Request<UsageRequest>) -> Answer<UsageResponse> {
        let key = request.into_inner().key;
        let work = async {
            let usage = self.0.usage(&key).await?;
            let number = |number| i64::try_from(number).unwrap_or(i64::MAX);
            Ok(UsageResponse { size: number(usage.size), inodes: number(usage.inodes) })
        };
        self.timed("Usage", work).await
    }

    async fn cleanup(&self, _: Request<CleanupRequest>) -> Answer<()> {
        self.timed("Cleanup", self.0.blocking(snapshots::Snapshots::cleanup)).await
    }
}

fn named(parent: &str) -> Option<&str> {
    Some(parent).filter(|parent| !parent.is_empty())
}

fn mount(mount: overlay::Mount) -> Mount {
    Mount { r#type: mount.kind, source: mount.source, target: String::new(), options: mount.options }
}

fn info(snapshot: Snapshot) -> Info {
    let info = snapshot.info;
    let kind = match info.kind {
        Kind::View => WireKind::View,
        Kind::Active => WireKind::Active,
        Kind::Committed => WireKind::Committed,
    };
    Info {
        name: info.name,
        parent: info.parent.unwrap_or_default(),
        kind: kind.into(),
        created_at: Some(timestamp(info.created)),
        updated_at: Some(timestamp(info.updated)),
        labels: info.labels.into_iter().collect(),
    }
}

fn timestamp(nanoseconds: i64) -> Timestamp {
    const SECOND: i64 = 1_000_000_000;
    let nanos = i32::try_from(nanoseconds.rem_euclid(SECOND)).expect("less than a second");
    Timestamp { seconds: nanoseconds.div_euclid(SECOND), nanos }
}
