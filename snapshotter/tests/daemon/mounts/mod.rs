//! What the answers give when they are mounted. The name of this module puts its tests into the group that mounts.

mod bare;
mod conformance;
mod convert;
mod flat;
mod legacy;
mod remote;
