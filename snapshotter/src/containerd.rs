//! containerd as we use it: its content store, its unpacker, its leases, its images and snapshots.
//!
//! | module | calls |
//! |---|---|
//! | here | connections, leases |
//! | [`content`] | blobs |
//! | [`snapshots`] | snapshots through containerd, and the unpacker |
//! | [`images`] | names of images |
//! | [`server`] | what containerd says of itself |
//!
//! A request names the namespace in a header, and the lease that keeps what it makes from being collected.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use containerd_client::services::v1::{AddResourceRequest, CreateRequest, DeleteRequest, Resource};
use tonic::{Request, Status};

pub mod content;
pub mod images;
pub mod server;
pub mod snapshots;

pub use content::Blob;

/// Seconds after which a lease ends that nobody ended, for instance because its owner was killed.
const LEASE_SECONDS: i64 = 24 * 3600;
/// Lists of images and snapshots are long on big machines; containerd itself takes this much.
const MESSAGE: usize = 16 << 20;

/// A connection to containerd in one namespace.
pub struct Engine {
    client: containerd_client::Client,
    namespace: String,
    lease: Option<String>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("namespace", &self.namespace).field("lease", &self.lease).finish_non_exhaustive()
    }
}

impl Engine {
    /// Connects to containerd's socket.
    pub async fn connect(socket: &Path, namespace: &str) -> anyhow::Result<Self> {
        let place: PathBuf = socket.to_owned();
        let client = containerd_client::Client::from_path(socket).await.with_context(|| {
            format!("containerd does not answer on {}; is it running, and may this user talk to it?", place.display())
        })?;
        Ok(Self { client, namespace: namespace.to_owned(), lease: None })
    }

    /// The same connection in another namespace, without a lease.
    pub fn within(&self, namespace: &str) -> Self {
        let client = containerd_client::Client::from(self.client.channel());
        Self { client, namespace: namespace.to_owned(), lease: None }
    }

    /// The generated clients.
    pub fn client(&self) -> &containerd_client::Client {
        &self.client
    }

    /// The namespace of all requests.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// A request with its headers.
    pub fn request<T>(&self, message: T) -> anyhow::Result<Request<T>> {
        let mut request = Request::new(message);
        let headers = request.metadata_mut();
        headers.insert("containerd-namespace", self.namespace.parse().context("the namespace can't be a header")?);
        if let Some(lease) = &self.lease {
            headers.insert("containerd-lease", lease.parse().context("the lease can't be a header")?);
        }
        Ok(request)
    }

    /// Takes a lease for all that is made from now on.
    pub async fn lease(&mut self, what: &str) -> anyhow::Result<()> {
        let expires = time::OffsetDateTime::now_utc() + time::Duration::seconds(LEASE_SECONDS);
        let expires = expires.format(&time::format_description::well_known::Rfc3339)?;
        let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_nanos();
        let id = format!("cvmfs-snapshotter-{what}-{}-{nanos}", std::process::id());
        let labels = HashMap::from([("containerd.io/gc.expire".to_owned(), expires)]);
        let request = self.request(CreateRequest { id: id.clone(), labels })?;
        self.client.leases().create(request).await.map_err(said).context("containerd gives no lease")?;
        self.lease = Some(id);
        Ok(())
    }

    /// Makes the lease keep something that was there before it.
    async fn keep(&self, id: &str, kind: String) -> anyhow::Result<()> {
        let Some(lease) = &self.lease else { return Ok(()) };
        let resource = Some(Resource { id: id.to_owned(), r#type: kind });
        let request = self.request(AddResourceRequest { id: lease.clone(), resource })?;
        let done = self.client.leases().add_resource(request).await.map_err(said);
        done.with_context(|| format!("containerd does not keep {id} for this pull"))?;
        Ok(())
    }

    /// Gives the lease back; what it kept and nothing else refers to is collected.
    pub async fn end_lease(&self) -> anyhow::Result<()> {
        if let Some(id) = self.lease.clone() {
            let request = self.request(DeleteRequest { id, sync: false })?;
            self.client.leases().delete(request).await.map_err(said).context("containerd does not end a lease")?;
        }
        Ok(())
    }
}

/// What containerd answered, in its own words.
pub fn said(status: Status) -> anyhow::Error {
    let words = match status.message() {
        "" => status.code().description(),
        words => words,
    };
    anyhow::anyhow!("{}", words.trim())
}
