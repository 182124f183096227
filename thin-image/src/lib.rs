//! Every engine runs images from a mounted CernVM-FS repository: thin images, a store for Podman, a mirror of manifests.
//!
//! ```text
//!                                       ┌── output ── OCI layout, archive
//! /cvmfs/REPOSITORY ── published ── build ── push ─── registry
//!                          │            └── engines ── Docker, containerd, Podman
//!                          ├── podman_store ── additional image store on this node
//!                          ├── mirror ── distribution API on this node
//!                          └── graphdriver, volumes ── plugins of Docker, through [`plugin`]
//! ```
//! All of it is made from the records that the publisher left in the repository; no registry is asked for the source.
//!
//! | module | promise |
//! |---|---|
//! | [`published`] | what is published under a name |
//! | [`build`] | thin images of it, all layers being there |
//! | [`output`] | them as files, whole or not at all |
//! | [`push`] | them in a registry, only if they changed; with whose password |
//! | [`engines`] | them in the engines of this machine |
//! | [`inspect`] | what a thin image is, whoever made it |
//! | [`podman_store`] | images for Podman and CRI-O |
//! | [`mirror`] | a registry that has no layers |
//! | [`graphdriver`] | a plugin by which Docker up to 27 runs thin images |
//! | [`volumes`] | a plugin by which containers of every Docker get repositories |

pub mod build;
pub mod cli;
pub mod config;
pub mod engines;
pub mod files;
pub mod graphdriver;
pub mod inspect;
pub mod look;
pub mod mirror;
pub mod names;
pub mod output;
pub mod plugin;
pub mod podman_store;
pub mod published;
pub mod push;
pub mod signals;
pub mod text;
pub mod volumes;
