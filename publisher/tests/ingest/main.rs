//! Archives go into a repository of their own, again and again; after each step the repository is sound, has exactly
//! the expected tree, and a new revision exactly if something changed.

mod hard_links;
mod limits;
mod members;
mod places;
mod program;
mod world;
