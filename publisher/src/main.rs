//! `cvmfs-publisher`: parse, run, exit status. Everything else is in the library.

use std::io;
use std::process::ExitCode;

use clap::Parser;
use publisher::cli::Cli;
use publisher::command;
use publisher::error::ExitStatus;
use publisher::progress::{self, Started};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are results, not errors; clap knows where each belongs.
            let _ = error.print();
            return if error.use_stderr() { ExitStatus::Usage.into() } else { ExitStatus::Success.into() };
        }
    };
    let Started { progress, log } = progress::start(cli.global.progress);
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::from(cli.global.log_level))
        .with_writer(move || log.clone())
        .init();
    match command::run(&cli.command, &cli.global, progress) {
        Ok(status) => status.into(),
        Err(error) => {
            // Nobody can be told that the standard error is closed.
            let _ = error.print(&mut io::stderr());
            error.exit_status().into()
        }
    }
}
