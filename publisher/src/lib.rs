//! Publishes container images into a CernVM-FS repository.
//!
//! The binary `cvmfs-publisher` parses its arguments ([`cli`]), runs one command and turns the result into an exit
//! status ([`error`], [`report`]). Everything that can be tested is in this library.

pub mod adopt;
pub mod check_report;
pub mod cli;
pub mod command;
pub mod config;
pub mod content;
pub mod convert;
pub mod decompress;
pub mod docker_archive;
pub mod error;
pub mod failure;
pub mod flat;
pub mod gc;
pub mod images;
pub mod ingest;
pub mod layer;
pub mod layer_rows;
pub mod notify;
pub mod pass;
pub mod plan;
pub mod podman;
pub mod progress;
pub mod publish;
pub mod pulse;
pub mod quota;
pub mod raw_index;
pub mod record;
pub mod removal;
pub mod repair;
pub mod replicate;
pub mod report;
pub mod rows;
pub mod serve;
pub mod signature;
pub mod source;
pub mod staging;
pub mod startup;
pub mod status;
pub mod stop;
pub mod storage;
pub mod tags;
pub mod target;
pub mod thin;
pub mod verify;
pub mod watch;
pub mod weight;
pub mod wishlist;
