//! Names of images, and what they stand for.

use anyhow::Context as _;
use containerd_client::services::v1::{
    CreateImageRequest, Image, ListImagesRequest, ListNamespacesRequest, UpdateImageRequest,
};
use tonic::Code;

use super::content::Blob;
use super::{Engine, MESSAGE, said};

impl Engine {
    /// Gives a name to a manifest or an index, also if the name stood for something else.
    pub async fn name_image(&self, name: &str, target: &Blob) -> anyhow::Result<()> {
        let image = || Image { name: name.to_owned(), target: Some(target.descriptor()), ..Image::default() };
        let failed = || format!("containerd does not take the name {name}");
        let mut images = self.client().images();
        // Another client may make or remove the name at the same time.
        for _ in 0..3 {
            let request = self.request(CreateImageRequest { image: Some(image()), source_date_epoch: None })?;
            match images.create(request).await {
                Ok(_) => return Ok(()),
                Err(status) if status.code() == Code::AlreadyExists => {}
                Err(status) => return Err(said(status)).with_context(failed),
            }
            let update_mask = Some(prost_types::FieldMask { paths: vec!["target".to_owned()] });
            let message = UpdateImageRequest { image: Some(image()), update_mask, source_date_epoch: None };
            match images.update(self.request(message)?).await {
                Ok(_) => return Ok(()),
                Err(status) if status.code() == Code::NotFound => {}
                Err(status) => return Err(said(status)).with_context(failed),
            }
        }
        anyhow::bail!("{}: others make and remove it all the time", failed())
    }

    /// All images of the namespace, by name.
    pub async fn images(&self) -> anyhow::Result<Vec<(String, String)>> {
        let request = self.request(ListImagesRequest { filters: Vec::new() })?;
        let mut images = self.client().images().max_decoding_message_size(MESSAGE);
        let answer = images.list(request).await.map_err(said).context("containerd does not list its images")?;
        let pair = |image: Image| Some((image.name, image.target?.digest));
        Ok(answer.into_inner().images.into_iter().filter_map(pair).collect())
    }

    /// All namespaces.
    pub async fn namespaces(&self) -> anyhow::Result<Vec<String>> {
        let request = self.request(ListNamespacesRequest { filter: String::new() })?;
        let answer = self.client().namespaces().list(request).await.map_err(said);
        let answer = answer.context("containerd does not list its namespaces")?;
        Ok(answer.into_inner().namespaces.into_iter().map(|namespace| namespace.name).collect())
    }
}
