//! `cvmfs-publisher`: parse, run, exit status. Everything else is in the library.

use std::io;
use std::process::ExitCode;

use clap::Parser;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use publisher::cli::Cli;
use publisher::command;
use publisher::error::ExitStatus;
use publisher::progress::{self, Started};

/// Every catalog that a transaction touches is an open file; the usual limit of 1024 is for programs that use `select`.
fn raise_open_files() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::debug!(%error, soft, hard, "cannot raise the number of open files");
    }
}

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
    raise_open_files();
    match command::run(&cli.command, &cli.global, progress) {
        Ok(status) => status.into(),
        Err(error) => {
            // Nobody can be told that the standard error is closed.
            let _ = error.print(&mut io::stderr());
            error.exit_status().into()
        }
    }
}
