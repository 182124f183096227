//! Mounts a CernVM-FS repository over HTTP with a local cache.
