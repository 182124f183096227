//! Writing catalogs.
