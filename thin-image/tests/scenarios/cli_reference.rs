//! The command line is the one that is documented.

#[path = "../../../tests/src/cli_reference.rs"]
mod shared;

use clap::CommandFactory;
use thin_image::cli::Cli;

#[test]
fn help_is_as_in_the_reference() {
    shared::help_is_as_kept(Cli::command(), env!("CARGO_MANIFEST_DIR"));
}

#[test]
fn every_command_ends_with_examples_and_every_option_is_explained() {
    shared::everything_is_explained(Cli::command());
}

#[test]
fn examples_are_accepted_by_the_parser() {
    shared::examples_parse(Cli::command(), 12);
}
