//! Scenarios with real engines and servers, run against the built binaries.
