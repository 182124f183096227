//! Scenarios across crates; a Rust toolchain and /dev/fuse are all they need.

pub mod fixtures;
