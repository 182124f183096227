//! The program on a stratum 0 of the reference tools: found by its `server.conf`, published into, left as they would
//! have left it. They are not here, so each file is compared with what is known of them.

#[path = "../../../tests/src/fixtures.rs"]
#[allow(dead_code, missing_docs, reason = "the file is shared; not every test uses all of it")]
mod fixtures;
#[path = "../s3/world.rs"]
#[allow(dead_code, reason = "the file is shared; not every test uses all of it")]
mod s3;
#[path = "../s3/server.rs"]
#[allow(dead_code, reason = "the file is shared; not every test uses all of it")]
mod server;
#[path = "../../../tests/src/stock.rs"]
#[allow(dead_code, missing_docs, reason = "the file is shared; not every test uses all of it")]
mod stock;

mod bucket;
mod content;
mod keys;
mod leavings;
mod locks;
mod upkeep;
mod world;
