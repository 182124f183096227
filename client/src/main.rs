//! The program `cvmfs-client`.

fn main() {}
