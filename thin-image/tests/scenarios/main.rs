//! What the crate promises, against directories that look like a mounted repository, and a registry in this process.

mod build;
mod cli_reference;
mod command;
mod graphdriver;
mod inspect;
mod mirror;
mod podman_store;
mod push;
mod repository;
mod volumes;
