//! A registry in this process, for tests: blobs and manifests in memory, pushes accepted, faults on request.
//!
//! ```no_run
//! # use registry::testing::{Fault, TestRegistry};
//! let registry = TestRegistry::spawn();
//! let layer = registry.put_blob("content");
//! registry.put_manifest("lab/x", "1", "application/vnd.oci.image.manifest.v1+json", "{}");
//! registry.fault(Fault::cut_after(3).on("/blobs/").times(2));
//! let image = registry.reference("lab/x:1"); // http://127.0.0.1:PORT/lab/x:1
//! // … use it …
//! assert_eq!(registry.count("GET", "/blobs/"), 3);
//! ```
//!
//! Invariants
//! - Listens on 127.0.0.1, at a port that the system chooses, in a thread and a runtime of its own: usable from
//!   synchronous tests, from any runtime, and from several at once. Stops when dropped.
//! - Speaks the protocol strictly (digests verified on push, manifests refused while their blobs are missing), so
//!   that a client can't pass here and fail elsewhere.
//! - Blobs and manifests given by the test itself are not checked: hostile ones are welcome.

mod chaos;
mod fault;
mod guard;
mod serve;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use axum::serve::ListenerExt;
use bytes::Bytes;
use http::HeaderMap;
use image::digest::{Digest, ManifestDigest};
use image::reference::Reference;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use chaos::Chaos;
pub use fault::Fault;
use guard::{Guard, Issuer};

/// A request that arrived.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// GET, HEAD, …
    pub method: String,
    /// path and query
    pub path: String,
    /// all headers
    pub headers: HeaderMap,
    /// the body, empty for uploads of blobs
    pub body: Bytes,
    /// when it came
    pub at: Instant,
    /// when it was answered, if it was
    pub answered: Arc<OnceLock<Instant>>,
}

impl Recorded {
    /// The text of a header, if it was sent.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// A running registry. See the [module](self).
pub struct TestRegistry {
    address: SocketAddr,
    ca_pem: Option<String>,
    state: Arc<State>,
    /// dropped with the registry, which stops it
    _stop: oneshot::Sender<()>,
}

#[derive(Debug, Default)]
struct State {
    url: String,
    store: Mutex<Store>,
    issuer: Mutex<Issuer>,
}

impl State {
    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn issuer(&self) -> MutexGuard<'_, Issuer> {
        self.issuer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Default)]
struct Store {
    blobs: HashMap<Digest, Bytes>,
    /// by image repository, then by tag or digest: media type and bytes
    manifests: HashMap<String, BTreeMap<String, (String, Bytes)>>,
    requests: Vec<Recorded>,
    faults: Vec<Fault>,
    chaos: Option<Chaos>,
    guard: Guard,
    page_size: Option<usize>,
    no_links: bool,
    lists_referrers: bool,
    upload_base: Option<String>,
    uploads: u64,
}

impl TestRegistry {
    /// Starts a plain registry.
    pub fn spawn() -> Self {
        Self::spawn_with(false)
    }

    /// Starts a registry with TLS and a certificate that only [`ca_pem`](Self::ca_pem) vouches for.
    pub fn spawn_tls() -> Self {
        Self::spawn_with(true)
    }

    /// The same as [`spawn`](Self::spawn), for symmetry in asynchronous tests.
    pub async fn start() -> Self {
        Self::spawn()
    }

    fn spawn_with(tls: bool) -> Self {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has a free port");
        listener.set_nonblocking(true).expect("a fresh socket can be made non-blocking");
        let address = listener.local_addr().expect("a bound socket has an address");
        let scheme = if tls { "https" } else { "http" };
        let state = Arc::new(State { url: format!("{scheme}://{address}"), ..State::default() });
        let (acceptor, ca_pem) = tls.then(serve::tls).unzip();
        let (stop, stopped) = oneshot::channel();
        let served = state.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.expect("a runtime can be built");
            runtime.block_on(async move {
                let listener = TcpListener::from_std(listener).expect("the socket is non-blocking");
                let listener = listener.tap_io(|stream| {
                    let _ = stream.set_nodelay(true);
                });
                let router = serve::router(served);
                // a dropped sender counts as "stop"; connections die with the runtime
                let serving = async {
                    match acceptor {
                        Some(acceptor) => axum::serve(serve::TlsListener { listener, acceptor }, router).await,
                        None => axum::serve(listener, router).await,
                    }
                };
                tokio::select! { _ = serving => {}, _ = stopped => {} }
            });
            runtime.shutdown_background();
        });
        Self { address, ca_pem, state, _stop: stop }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://127.0.0.1:PORT`, or `https`.
    pub fn url(&self) -> &str {
        &self.state.url
    }

    /// The certificate to trust, if it speaks TLS.
    pub fn ca_pem(&self) -> Option<&str> {
        self.ca_pem.as_deref()
    }

    /// An image of this registry: `"lab/x:1"`, `"lab/x@sha256:…"`.
    ///
    /// # Panics
    /// If `name` is no image name.
    pub fn reference(&self, name: &str) -> Reference {
        Reference::parse(&format!("{}/{name}", self.url())).expect("the test names an image")
    }

    /// Stores a blob under its digest, for all repositories.
    pub fn put_blob(&self, bytes: impl Into<Bytes>) -> Digest {
        let bytes = bytes.into();
        let digest = Digest::of(&bytes);
        self.state.store().blobs.insert(digest, bytes);
        digest
    }

    /// Stores bytes under a digest that isn't theirs.
    pub fn put_false_blob(&self, digest: Digest, bytes: impl Into<Bytes>) {
        self.state.store().blobs.insert(digest, bytes.into());
    }

    /// Stores a manifest or an index under its tag and its digest; unchecked.
    pub fn put_manifest(
        &self,
        repository: &str,
        tag: &str,
        media_type: &str,
        bytes: impl Into<Bytes>,
    ) -> ManifestDigest {
        let bytes = bytes.into();
        let digest = ManifestDigest::of(&bytes);
        self.put_false_manifest(repository, &digest.to_string(), media_type, bytes.clone());
        self.put_false_manifest(repository, tag, media_type, bytes);
        digest
    }

    /// Stores a manifest under any name, a tag or a digest, also one that isn't its own.
    pub fn put_false_manifest(&self, repository: &str, name: &str, media_type: &str, bytes: impl Into<Bytes>) {
        let mut store = self.state.store();
        let names = store.manifests.entry(repository.to_owned()).or_default();
        names.insert(name.to_owned(), (media_type.to_owned(), bytes.into()));
    }

    /// Forgets a tag.
    pub fn remove_tag(&self, repository: &str, tag: &str) {
        if let Some(names) = self.state.store().manifests.get_mut(repository) {
            names.remove(tag);
        }
    }

    /// A blob that is stored, for instance after a push.
    pub fn blob(&self, digest: Digest) -> Option<Bytes> {
        self.state.store().blobs.get(&digest).cloned()
    }

    /// A manifest that is stored, by tag or digest: media type and bytes.
    pub fn manifest(&self, repository: &str, name: &str) -> Option<(String, Bytes)> {
        self.state.store().manifests.get(repository)?.get(name).cloned()
    }

    /// Adds a fault; several can be active at once.
    pub fn fault(&self, fault: Fault) {
        self.state.store().faults.push(fault);
    }

    /// From now on so many of a hundred requests meet a fault of any kind, chosen by the seed: refusals with and without
    /// `Retry-After`, 401, 500, cuts, wrong bytes, slow bodies, ranges that are ignored.
    pub fn fault_at_random(&self, seed: u64, percent: u8) {
        self.state.store().chaos = Some(Chaos::new(seed, percent));
    }

    /// Removes all faults.
    pub fn heal(&self) {
        let mut store = self.state.store();
        store.faults.clear();
        store.chaos = None;
    }

    /// Lists what refers to an image from now on, as registries of distribution-spec 1.1 do.
    pub fn list_referrers(&self) {
        self.state.store().lists_referrers = true;
    }

    /// Gives tags and referrers out in pages of this size at most.
    pub fn page_tags(&self, size: usize) {
        self.state.store().page_size = Some(size);
    }

    /// Names no next page: the list goes on for those who ask for what comes after the last tag.
    pub fn name_no_pages(&self) {
        self.state.store().no_links = true;
    }

    /// Sends uploads to another address, scheme and host.
    pub fn upload_to(&self, base: &str) {
        self.state.store().upload_base = Some(base.to_owned());
    }

    /// Asks for user name and password (Basic) from now on.
    pub fn require_basic(&self, user: &str, password: &str) {
        self.state.store().guard = Guard::Basic { user: user.to_owned(), password: password.to_owned() };
    }

    /// Asks for a token from now on; `issuer` sells it at its `/token`, and may be this registry or another one.
    /// An issuer gives tokens for pulling to everybody, for pushing to its accounts.
    pub fn require_token(&self, issuer: &Self) {
        self.state.store().guard = Guard::Token { issuer: issuer.state.clone() };
    }

    /// Answers everything with 401 and this challenge from now on.
    pub fn challenge(&self, challenge: &str) {
        self.state.store().guard = Guard::Always { challenge: challenge.to_owned() };
    }

    /// Adds an account to the token server.
    pub fn add_account(&self, user: &str, password: &str) {
        self.state.issuer().accounts.push((user.to_owned(), password.to_owned()));
    }

    /// Adds an identity (refresh) token to the token server.
    pub fn add_identity_token(&self, token: &str) {
        self.state.issuer().identity_tokens.push(token.to_owned());
    }

    /// The token server gives nothing to anonymous callers from now on.
    pub fn refuse_anonymous(&self) {
        self.state.issuer().refuse_anonymous = true;
    }

    /// What the token server declares as `expires_in`, in seconds.
    pub fn token_life(&self, seconds: u64) {
        self.state.issuer().expires_in = Some(seconds);
    }

    /// All tokens sold so far become worthless.
    pub fn revoke_tokens(&self) {
        self.state.issuer().revoke();
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<Recorded> {
        self.state.store().requests.clone()
    }

    /// How many requests so far with this method whose path contains `part`.
    pub fn count(&self, method: &str, part: &str) -> usize {
        let store = self.state.store();
        store.requests.iter().filter(|request| request.method == method && request.path.contains(part)).count()
    }

    /// How many of those requests were under way at the same time, at most.
    pub fn most_at_once(&self, method: &str, part: &str) -> usize {
        let store = self.state.store();
        let asked: Vec<&Recorded> =
            store.requests.iter().filter(|r| r.method == method && r.path.contains(part)).collect();
        let is_under_way = |other: &Recorded, at| other.at <= at && other.answered.get().is_none_or(|end| *end > at);
        asked.iter().map(|one| asked.iter().filter(|other| is_under_way(other, one.at)).count()).max().unwrap_or(0)
    }

    /// Starts counting anew.
    pub fn forget_requests(&self) {
        self.state.store().requests.clear();
    }
}

impl fmt::Debug for TestRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TestRegistry").field(&self.state.url).finish()
    }
}
