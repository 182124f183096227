//! The program `cvmfs-client`.

use std::process::ExitCode;

fn main() -> ExitCode {
    client::cli::main()
}
