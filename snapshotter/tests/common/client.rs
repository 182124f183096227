//! The calls as containerd makes them, without the noise of messages and futures.

use std::collections::HashMap;
use std::path::Path;

use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::snapshots::{
    CleanupRequest, CommitSnapshotRequest, Info, ListSnapshotsRequest, MountsRequest, PrepareSnapshotRequest,
    RemoveSnapshotRequest, StatSnapshotRequest, UpdateSnapshotRequest, UsageRequest, ViewSnapshotRequest,
};
use containerd_client::types::Mount;
use image::digest::{ChainId, LayerDigest};
use tokio::runtime::Runtime;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// Labels as pairs.
pub type Labels<'a> = &'a [(&'a str, &'a str)];

/// Why a call failed.
#[derive(Debug)]
pub struct Failure {
    pub code: Code,
    pub text: String,
}

impl From<Status> for Failure {
    fn from(status: Status) -> Failure {
        Failure { code: status.code(), text: status.message().to_owned() }
    }
}

pub fn labels(pairs: Labels<'_>) -> HashMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// What a request to extract a layer carries: the chain ID always, the digest if the client says it.
pub fn request(chain: ChainId, layer: Option<LayerDigest>) -> Vec<(&'static str, String)> {
    let mut labels = vec![("containerd.io/snapshot.ref", chain.to_string())];
    labels.extend(layer.map(|layer| ("containerd.io/snapshot/cri.layer-digest", layer.to_string())));
    labels
}

/// The newer request that can name a parent.
#[derive(Clone, PartialEq, prost::Message)]
struct Rebase {
    #[prost(string, tag = "1")]
    snapshotter: String,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, tag = "3")]
    key: String,
    #[prost(string, tag = "5")]
    parent: String,
}

/// A connection.
pub struct Client {
    runtime: Runtime,
    channel: Channel,
    calls: SnapshotsClient<Channel>,
}

const NAME: &str = "cvmfs-snapshotter";

impl Client {
    pub fn connect(socket: &Path) -> Result<Client, tonic::transport::Error> {
        // With a thread of its own: a connection has to notice that the daemon ends though nobody makes a call.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let channel = runtime.block_on(containerd_client::connect(socket))?;
        let calls = SnapshotsClient::new(channel.clone()).max_decoding_message_size(16 << 20);
        Ok(Client { runtime, channel, calls })
    }

    /// Does the health service say that the snapshots are served?
    pub fn is_serving(&mut self) -> bool {
        use tonic_health::pb::health_check_response::ServingStatus;
        let mut health = tonic_health::pb::health_client::HealthClient::new(self.channel.clone());
        let service = "containerd.services.snapshots.v1.Snapshots".to_owned();
        let answer = self.runtime.block_on(health.check(tonic_health::pb::HealthCheckRequest { service }));
        answer.is_ok_and(|answer| answer.into_inner().status() == ServingStatus::Serving)
    }

    pub fn prepare(&mut self, key: &str, parent: &str, with: Labels<'_>) -> Result<Vec<Mount>, Failure> {
        let (snapshotter, key, parent, labels) = (NAME.into(), key.into(), parent.into(), labels(with));
        let request = PrepareSnapshotRequest { snapshotter, key, parent, labels };
        Ok(self.runtime.block_on(self.calls.prepare(request))?.into_inner().mounts)
    }

    pub fn view(&mut self, key: &str, parent: &str) -> Result<Vec<Mount>, Failure> {
        let (snapshotter, key, parent) = (NAME.into(), key.into(), parent.into());
        let request = ViewSnapshotRequest { snapshotter, key, parent, labels: HashMap::new() };
        Ok(self.runtime.block_on(self.calls.view(request))?.into_inner().mounts)
    }

    pub fn mounts(&mut self, key: &str) -> Result<Vec<Mount>, Failure> {
        let request = MountsRequest { snapshotter: NAME.into(), key: key.into() };
        Ok(self.runtime.block_on(self.calls.mounts(request))?.into_inner().mounts)
    }

    pub fn commit(&mut self, name: &str, key: &str, with: Labels<'_>) -> Result<(), Failure> {
        let (snapshotter, name, key, labels) = (NAME.into(), name.into(), key.into(), labels(with));
        let request = CommitSnapshotRequest { snapshotter, name, key, labels };
        Ok(self.runtime.block_on(self.calls.commit(request)).map(drop)?)
    }

    /// A commit that names the parent, as clients do that unpack layers side by side.
    pub fn commit_on(&mut self, name: &str, key: &str, parent: &str) -> Result<(), Failure> {
        let (snapshotter, name, key, parent) = (NAME.into(), name.into(), key.into(), parent.into());
        let request = tonic::Request::new(Rebase { snapshotter, name, key, parent });
        let path =
            tonic::codegen::http::uri::PathAndQuery::from_static("/containerd.services.snapshots.v1.Snapshots/Commit");
        let mut raw = tonic::client::Grpc::new(self.channel.clone());
        self.runtime.block_on(async {
            raw.ready().await.expect("it is connected");
            let codec = tonic_prost::ProstCodec::<Rebase, ()>::default();
            Ok(raw.unary(request, path, codec).await.map(drop)?)
        })
    }

    pub fn remove(&mut self, key: &str) -> Result<(), Failure> {
        let request = RemoveSnapshotRequest { snapshotter: NAME.into(), key: key.into() };
        Ok(self.runtime.block_on(self.calls.remove(request)).map(drop)?)
    }

    pub fn stat(&mut self, key: &str) -> Result<Info, Failure> {
        let request = StatSnapshotRequest { snapshotter: NAME.into(), key: key.into() };
        Ok(self.runtime.block_on(self.calls.stat(request))?.into_inner().info.expect("an answer has it"))
    }

    pub fn update(&mut self, name: &str, with: Labels<'_>, paths: &[&str]) -> Result<Info, Failure> {
        let info = Info { name: name.into(), labels: labels(with), ..Info::default() };
        let mask = prost_types::FieldMask { paths: paths.iter().map(|path| (*path).to_owned()).collect() };
        let request = UpdateSnapshotRequest { snapshotter: NAME.into(), info: Some(info), update_mask: Some(mask) };
        Ok(self.runtime.block_on(self.calls.update(request))?.into_inner().info.expect("an answer has it"))
    }

    /// The pages of a list.
    pub fn pages(&mut self, filters: &[&str]) -> Result<Vec<Vec<Info>>, Failure> {
        let filters = filters.iter().map(|filter| (*filter).to_owned()).collect();
        let request = ListSnapshotsRequest { snapshotter: NAME.into(), filters };
        self.runtime.block_on(async {
            let mut stream = self.calls.list(request).await?.into_inner();
            let mut pages = Vec::new();
            while let Some(page) = stream.message().await? {
                pages.push(page.info);
            }
            Ok(pages)
        })
    }

    pub fn list(&mut self, filters: &[&str]) -> Vec<Info> {
        self.pages(filters).unwrap_or_else(|failure| panic!("{filters:?}: {failure:?}")).concat()
    }

    /// All snapshots by name, for comparison.
    pub fn everything(&mut self) -> std::collections::BTreeMap<String, Info> {
        self.list(&[]).into_iter().map(|info| (info.name.clone(), info)).collect()
    }

    pub fn usage(&mut self, key: &str) -> Result<(i64, i64), Failure> {
        let request = UsageRequest { snapshotter: NAME.into(), key: key.into() };
        let usage = self.runtime.block_on(self.calls.usage(request))?.into_inner();
        Ok((usage.size, usage.inodes))
    }

    pub fn cleanup(&mut self) -> Result<(), Failure> {
        let request = CleanupRequest { snapshotter: NAME.into() };
        Ok(self.runtime.block_on(self.calls.cleanup(request)).map(drop)?)
    }

    /// Makes a committed snapshot.
    pub fn layer(&mut self, name: &str, parent: &str) {
        let key = format!("{name}-active");
        self.prepare(&key, parent, &[]).unwrap();
        self.commit(name, &key, &[]).unwrap();
    }

    /// Prepares a layer as containerd does: when told that it exists, it looks for the snapshot. Nothing: it has to download.
    pub fn lazily<T: AsRef<str>>(
        &mut self,
        key: &str,
        parent: &str,
        with: &[(&str, T)],
    ) -> Result<Option<Info>, Failure> {
        let with: Vec<(&str, &str)> = with.iter().map(|(key, value)| (*key, value.as_ref())).collect();
        match self.prepare(key, parent, &with) {
            Ok(_) => return Ok(None),
            Err(failure) if failure.code == Code::AlreadyExists => {}
            Err(failure) => return Err(failure),
        }
        let name = "containerd.io/snapshot.ref";
        let (_, target) = with.iter().find(|(key, _)| *key == name).expect("a layer is asked for");
        // What containerd's metadata store sends.
        let filter = format!("labels.{name:?}=={target},parent=={parent:?}");
        let found = self.pages(&[&filter])?.concat();
        assert_eq!(found.len(), 1, "{filter}: {found:?}");
        let info = found.into_iter().next().expect("there is one");
        assert_eq!(info.kind(), containerd_client::services::v1::snapshots::Kind::Committed);
        assert_eq!((info.parent.as_str(), info.labels.get(name).map(String::as_str)), (parent, Some(*target)));
        Ok(Some(info))
    }
}
