//! An absent layer below layers that are there, unpacked by the daemon itself.
//!
//! When containerd has to download one layer it fetches all layers above it as well, also those that will be served: one absent
//! base layer drags the whole image in. So the daemon unpacks that one, through containerd's own unpacker, and says that it exists.
//! The blob comes from containerd's content store, or, if the configuration wants it, from the registry by way of that store.

use anyhow::{Context as _, bail};
use image::digest::{ChainId, Digest, LayerDigest};
use image::reference::Reference;
use registry::{Client, ClientConfig, Credentials};

use crate::config::{Config, FillMissing};
use crate::containerd::{Blob, Engine};
use crate::labels::Wanted;
use crate::overlay::Mount;
use crate::resolve::Below;

/// Where one layer can be had.
#[derive(Debug)]
pub struct Source {
    socket: std::path::PathBuf,
    namespace: String,
    layer: LayerDigest,
    image: Option<String>,
    registry: bool,
}

/// A layer that was obtained.
#[derive(Debug)]
pub struct Obtained {
    engine: Engine,
    blob: Blob,
}

impl Source {
    /// A source for the wanted layer; nothing if the request does not say enough of it.
    ///
    /// The namespace is in the key: `NAMESPACE/NUMBER/…`. The header that also names it is not always there.
    pub fn of(config: &Config, key: &str, wanted: &Wanted) -> Option<Self> {
        if wanted.following.is_empty() {
            return None;
        }
        let (namespace, _) = key.split_once('/')?;
        Some(Self {
            socket: config.containerd.address.clone(),
            namespace: namespace.to_owned(),
            layer: wanted.layer?,
            image: wanted.image.clone(),
            registry: config.fill_missing == FillMissing::Registry,
        })
    }

    /// Finds the blob; nothing if it is nowhere where we may look.
    pub async fn obtain(&self) -> anyhow::Result<Option<Obtained>> {
        let mut engine = Engine::connect(&self.socket, &self.namespace).await?;
        let digest = self.layer.digest();
        if engine.size(digest).await?.is_none() {
            let (true, Some(image)) = (self.registry, &self.image) else { return Ok(None) };
            engine.lease("fill").await?;
            Box::pin(fetch(&engine, image, digest)).await?;
        }
        let size = engine.size(digest).await?.context("containerd has lost the layer again")?;
        let media_type = engine.media_type(digest, size).await?.to_owned();
        Ok(Some(Obtained { engine, blob: Blob { digest, size, media_type } }))
    }

    /// Unpacks the layer into mounts of ours, and makes sure that it is the wanted one.
    pub async fn apply(
        &self,
        obtained: &Obtained,
        mounts: &[Mount],
        below: Below,
        wanted: &Wanted,
    ) -> anyhow::Result<()> {
        let applied = obtained.engine.apply(&obtained.blob, mounts).await;
        // What was fetched for this only may go.
        if let Err(error) = obtained.engine.end_lease().await {
            tracing::warn!(error = format!("{error:#}"), "a lease ends by itself only");
        }
        let diff = applied?;
        let made = match below {
            Below::Nothing => ChainId::on(None, diff),
            Below::Chain(chain) => ChainId::on(Some(chain), diff),
            Below::Unknown => bail!("what is below {} is not known, so the layer can't be verified", self.layer),
        };
        if wanted.chain != Some(made) {
            bail!("{} is the tar {diff}, which makes {made} instead of {}", self.layer, wanted.target);
        }
        Ok(())
    }
}

/// Brings a blob from the registry into the content store.
async fn fetch(engine: &Engine, image: &str, digest: Digest) -> anyhow::Result<()> {
    let reference = parse_reference(image)?;
    let client = Client::new(ClientConfig { credentials: Credentials::from_env()?, ..ClientConfig::default() })?;
    let size = client.blob_size(reference.repository(), digest).await?;
    let size = size.with_context(|| format!("{} does not have {digest}", reference.repository()))?;
    let content = async { anyhow::Ok(client.blob(reference.repository(), digest, size).await?) };
    engine.write(digest, size, content, &std::collections::HashMap::new()).await?;
    Ok(())
}

/// An image name of containerd's as a reference: it has no scheme, and names registries of this machine over plain HTTP.
pub fn parse_reference(image: &str) -> anyhow::Result<Reference> {
    let host = image.split('/').next().unwrap_or_default();
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let local = name == "localhost" || name.parse::<std::net::Ipv4Addr>().is_ok_and(|address| address.is_loopback());
    let text = if local { format!("http://{image}") } else { image.to_owned() };
    Reference::parse(&text).with_context(|| format!("{image} is no image reference"))
}
