//! Container images as values: names, digests, manifests, layer changes, repository layout.
//!
//! Pure: values in, values out. No network, no file system, no clock, no environment; bytes come in through `Read`.

pub mod digest;
pub mod reference;
