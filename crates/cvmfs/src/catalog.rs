//! File catalogs: SQLite databases that describe one directory subtree each.
//!
//! A directory that starts a nested catalog stands in two catalogs: in the parent as *transition point*
//! (flag, and a row in `nested_catalogs`) and in the child as root entry. Both rows are equal in everything
//! but those flags; the child has no rows beyond its own transition points.

pub mod counters;
pub mod reader;
pub mod schema;
pub mod writer;

pub use counters::{Counter, Counters};
pub use reader::{Catalog, CatalogError, NestedRef, Row};
