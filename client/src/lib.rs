//! Mounts a CernVM-FS repository over HTTP with a local cache.
//!
//! ```text
//! kernel ── fuse ── fs ──┬── catalogs ──┐
//!            │           ├── inode      ├── fetch ──┬── cache (disk, quota)
//!            └── pool    └── xattr      │           └── http, route ── servers, proxies
//!           prefetch   remount ── revision ─────────┘
//! ```
//!
//! `fs` is the file system and knows nothing of FUSE, so it is tested without a kernel. Everything is
//! ordinary threads; only sockets live in an asynchronous runtime.

pub mod bare;
pub mod cache;
pub mod catalogs;
pub mod cli;
pub mod config;
pub mod control;
pub mod device;
pub mod fetch;
pub mod fs;
pub mod fuse;
pub mod helper;
pub mod inode;
pub mod log;
pub mod metrics;
pub mod mount;
pub mod place;
pub mod pool;
pub mod prefetch;
pub mod remount;
pub mod revision;
pub mod stats;
pub mod variables;
pub mod xattr;
