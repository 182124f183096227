//! Publishes container images into a CernVM-FS repository.
//!
//! The binary `cvmfs-publisher` parses its arguments ([`cli`]), runs one command and turns the result into an exit
//! status ([`error`], [`report`]). Everything that can be tested is in this library.

pub mod cli;
pub mod content;
pub mod decompress;
pub mod error;
pub mod failure;
pub mod progress;
pub mod raw_index;
pub mod report;
pub mod rows;
pub mod serve;
pub mod source;
pub mod target;
pub mod wishlist;
