//! `cvmfs-publisher`: parse, run, exit status. Everything else is in the library.

use std::io;
use std::process::ExitCode;

use clap::Parser;
use publisher::cli::{Cli, Command, Environment, Paths, print_result};
use publisher::error::{CommandError, ExitStatus};
use publisher::progress::{self, Started};
use publisher::serve::serve;
use publisher::wishlist::Lint;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are results, not errors; clap knows where each belongs.
            let _ = error.print();
            return if error.use_stderr() { ExitStatus::Usage.into() } else { ExitStatus::Success.into() };
        }
    };
    let Started { progress: _, log } = progress::start(cli.global.progress);
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::from(cli.global.log_level))
        .with_writer(move || log.clone())
        .init();
    match run(&cli) {
        Ok(status) => status.into(),
        Err(error) => {
            // Nobody can be told that the standard error is closed.
            let _ = error.print(&mut io::stderr());
            error.exit_status().into()
        }
    }
}

fn run(cli: &Cli) -> Result<ExitStatus, CommandError> {
    let paths =
        |fqrn: &str| Paths::resolve(fqrn, &cli.global.paths, &Environment::current()).map_err(CommandError::config);
    match &cli.command {
        Command::Serve(arguments) => {
            let root = paths(&arguments.fqrn)?.storage;
            serve(&arguments.fqrn, &root, arguments.listen, cli.global.json)?;
            Ok(ExitStatus::Success)
        }
        Command::Lint(arguments) => {
            let lint = Lint::read(&arguments.wishlist)?;
            print_result(&if cli.global.json { lint.to_json() } else { lint.to_text() })?;
            Ok(lint.exit_status())
        }
        _ => Err(CommandError::failed("this command is not connected yet")),
    }
}
