//! Container images as values: names, digests, manifests, layer changes, repository layout.
//!
//! Pure: values in, values out. No network, no file system, no clock, no environment; bytes come in through `Read`.
//!
//! From a name to a tree: [`mod@reference`] says what is wanted, [`manifest`] and [`platform`] what it consists of,
//! [`tar`] takes a layer apart, [`tree`] is the form in which it goes on; [`layout`] knows where all of it lies in a
//! repository.

pub mod apptainer;
pub mod digest;
pub mod layer;
pub mod layout;
pub mod manifest;
pub mod platform;
pub mod podman;
pub mod reference;
pub mod resolve;
pub mod rootfs;
pub mod tar;
pub mod thin;
pub mod tree;
