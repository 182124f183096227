//! What the reference implementation wrote, read and checked by this crate; and each rule of the check, broken.

#[path = "../../../../tests/src/fixtures.rs"]
#[allow(dead_code, missing_docs, reason = "the file is shared; not every test uses all of it")]
mod fixtures;

mod broken;
mod damage;
mod document;
mod hostile;
mod laboratory;
mod reading;
mod repairs;
mod soundness;
mod walking;

use cvmfs::signature::PublicKey;
use cvmfs::trust::Anchor;
use time::UtcDateTime;
use time::macros::utc_datetime;

/// When the tests take place: shortly after the fixtures were made.
const NOW: UtcDateTime = utc_datetime!(2026-11-22 00:00:00);

/// Calls `with` with the anchor for a fixture.
fn trusting<T>(fixture: &fixtures::Fixture, with: impl FnOnce(&Anchor<'_>) -> T) -> T {
    let master_keys = [PublicKey::from_pem(&fixture.public_key).unwrap()];
    with(&Anchor { name: &fixture.fqrn, master_keys: &master_keys, blacklist: &[], now: NOW })
}
