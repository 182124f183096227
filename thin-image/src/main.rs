//! The program `thin-image`.

use std::process::ExitCode;

fn main() -> ExitCode {
    thin_image::cli::main()
}
