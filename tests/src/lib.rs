//! Scenarios across crates; a Rust toolchain and /dev/fuse are all they need.

pub mod fixtures;
pub mod image_builder;
pub mod mounted;
pub mod naive;
pub mod repository;
pub mod stock;
pub mod takeover;
pub mod tree;
