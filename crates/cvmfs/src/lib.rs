//! The CernVM-FS repository format: objects, catalogs, manifest, trust, transactions.
//!
//! No network, no FUSE, no clock, no container words: storage, time and keys come in as arguments.

pub mod blacklist;
pub mod bundle;
pub mod catalog;
pub mod check;
pub mod chunk;
pub mod entry;
pub mod gc;
pub mod hash;
pub mod history;
pub mod keys;
pub mod lease;
pub mod manifest;
pub mod object;
pub mod path;
pub mod reflog;
pub mod repair;
pub mod repository;
pub mod scrub;
pub mod signature;
pub mod startup;
pub mod store;
pub mod subtree;
pub mod transaction;
pub mod traversal;
pub mod trust;
pub mod whitelist;
pub mod xattr;
