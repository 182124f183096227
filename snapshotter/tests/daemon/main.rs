//! The running daemon, through its sockets: the calls of containerd, kills, damage, and what its answers give when they are mounted.

#[path = "../common/mod.rs"]
mod common;

mod calls;
mod crash;
mod layers;
mod mounts;
mod refusals;
mod startup;
mod state;
mod thin;
