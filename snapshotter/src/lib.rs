//! A containerd remote snapshotter: layers come from mounted CernVM-FS repositories instead of being downloaded.
//!
//! ```text
//! containerd ── service ── daemon ──┬── decision ◀── resolve ── repository ── /cvmfs/REPOSITORY
//!                 gRPC              ├── fill ── containerd (content store, unpacker)
//!                                   └── snapshots ──┬── metadata (SQLite)
//! people ───── control ─────────────┘               ├── directories
//!                HTTP                               └── overlay (mount options)
//! ```
//! The data path is not here: a published layer is a symbolic link into the repository, overlayfs reads it through the kernel, and
//! the daemon can stop, crash or be replaced without any container noticing.

pub mod cli;
pub mod config;
pub mod containerd;
pub mod control;
pub mod convert_local;
pub mod daemon;
pub mod decision;
pub mod directories;
pub mod doctor;
pub mod error;
pub mod fill;
pub mod filter;
pub mod hosts;
pub mod install;
pub mod labels;
pub mod legacy;
pub mod metadata;
pub mod metrics;
pub mod overlay;
pub mod pull;
pub mod repository;
pub mod resolve;
pub mod serve;
pub mod service;
pub mod snapshots;
pub mod thin;
pub mod usage;

/// The generated service; its description is `proto/snapshots.proto`.
#[allow(missing_docs, missing_debug_implementations, unused_qualifications, clippy::all)]
pub mod proto {
    tonic::include_proto!("containerd.services.snapshots.v1");
}
