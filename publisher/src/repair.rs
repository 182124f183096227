//! `check --fix`: a plan of repairs, shown first, applied in one publish.

pub mod damaged;
