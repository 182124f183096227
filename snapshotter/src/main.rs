//! The program `cvmfs-snapshotter`.

use std::process::ExitCode;

fn main() -> ExitCode {
    snapshotter::cli::main()
}
