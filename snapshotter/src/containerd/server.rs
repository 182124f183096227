//! What a running containerd says of itself.

use anyhow::Context as _;
use containerd_client::services::v1::{Plugin, PluginsRequest};

use super::{Engine, said};

impl Engine {
    /// Its version, as it states it, for instance `1.6.20~ds1`.
    pub async fn version(&self) -> anyhow::Result<String> {
        let answer = self.client().version().version(self.request(())?).await.map_err(said);
        Ok(answer.context("containerd does not tell its version")?.into_inner().version)
    }

    /// Its plugins.
    pub async fn plugins(&self) -> anyhow::Result<Vec<Plugin>> {
        let request = self.request(PluginsRequest { filters: Vec::new() })?;
        let answer = self.client().introspection().plugins(request).await.map_err(said);
        Ok(answer.context("containerd does not list its plugins")?.into_inner().plugins)
    }
}
