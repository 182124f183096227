//! `cvmfs-publisher`: parse, run, exit status. Everything else is in the library.

fn main() {}
