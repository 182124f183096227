//! Mounts a CernVM-FS repository over HTTP with a local cache.

pub mod cache;
pub mod config;
