//! How much an image may ask of us before it is refused, as options.
//!
//! The defaults let every sane image through and stop bombs early. Each limit is applied while the bytes stream, so
//! that an image beyond it costs no more than one within.

use super::values::size;

/// Limits for one archive: a layer, or a tar file to ingest.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
#[command(next_help_heading = "Limits against hostile input")]
pub struct ArchiveLimits {
    /// Largest layer, decompressed
    ///
    /// Sizes take the units k, M, G, T (powers of 1000) and Ki, Mi, Gi, Ti (powers of 1024).
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "500G")]
    pub max_layer_size: u64,

    /// Most entries (files, directories, links) in a layer
    #[arg(long, value_name = "N", default_value_t = 5_000_000)]
    pub max_entries: u64,

    /// Largest ratio of decompressed to compressed bytes of a layer
    ///
    /// Archives of zeros compress to about a thousandth; bombs go far beyond.
    #[arg(long, value_name = "RATIO", default_value_t = 1000)]
    pub max_expansion: u64,

    /// Most memory for the windows of zstd streams, all together
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "64Mi")]
    pub max_zstd_window: u64,

    /// Largest extended (PAX) header of an entry
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "1Mi")]
    pub max_pax_header: u64,
}

impl ArchiveLimits {
    /// What the tar reader has to keep.
    pub fn of_tar(&self) -> image::tar::Limits {
        image::tar::Limits {
            entries: self.max_entries,
            bytes: self.max_layer_size,
            header: self.max_pax_header,
            ..image::tar::Limits::default()
        }
    }
}

/// Limits for one image besides those of its layers.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
#[command(next_help_heading = "Limits against hostile input")]
pub struct ImageLimits {
    /// Most layers of an image
    #[arg(long, value_name = "N", default_value_t = 500)]
    pub max_layers: usize,

    /// Largest manifest, index or configuration of an image
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "4Mi")]
    pub max_manifest_size: u64,

    /// Limits of each layer.
    #[command(flatten)]
    pub layer: ArchiveLimits,
}
