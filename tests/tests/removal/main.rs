//! Images go and come back: removal, earlier images, condemned layers and flats, what keeps them.

mod collection;
mod model;
mod names;
mod platforms;
mod world;
