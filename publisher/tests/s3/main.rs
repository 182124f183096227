//! A repository in a bucket, against an S3 server that verifies signatures.

mod named;
mod objects;
mod overtaken;
mod program;
mod server;
mod world;
