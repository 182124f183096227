//! What may be fetched before anybody asks for it.

use std::time::Duration;

use super::{ConfigError, Parameters};

/// Bounds of what is fetched ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrefetchLimits {
    /// Whether anything is.
    pub enabled: bool,
    /// Bytes that one start-up list or bundle may fetch.
    pub budget: u64,
    /// Bytes that may be guessed in vain, beside as many as were asked for.
    pub waste: u64,
    /// Nobody looks into files for what they name where answers take less than this.
    pub latency: Duration,
    /// Whether starts teach.
    pub learns: bool,
    /// Whether bundles are looked for.
    pub bundles: bool,
}

impl PrefetchLimits {
    /// As configured, for a cache of this size.
    pub(super) fn from_parameters(p: &Parameters, cache: Option<u64>) -> Result<PrefetchLimits, ConfigError> {
        // What is fetched ahead must not drive out of a small cache what is in use.
        let most = cache.map_or(u64::MAX, |bytes| bytes / 4);
        let mib = |name| Ok::<u64, ConfigError>(p.number::<u64>(name)?.saturating_mul(1 << 20).min(most));
        Ok(PrefetchLimits {
            enabled: p.flag("CVMFS_PREFETCH")?,
            budget: mib("CVMFS_PREFETCH_BUDGET")?,
            waste: mib("CVMFS_PREFETCH_WASTE")?,
            latency: Duration::from_millis(p.number("CVMFS_PREFETCH_LATENCY")?),
            learns: p.flag("CVMFS_PREFETCH_LEARN")?,
            bundles: p.flag("CVMFS_PREFETCH_FILEBUNDLES")?,
        })
    }
}
