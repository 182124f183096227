//! The whole help text is a snapshot: no option, default or sentence of it changes unseen.
//!
//! Set UPDATE_CLI_REFERENCE=1 to write the snapshot anew, and read the difference before committing it.

use std::fmt::Write;
use std::path::Path;

use clap::{Command, CommandFactory};
use thin_image::cli::Cli;

/// Short and long help of a command and of all below it.
fn describe(command: &mut Command, text: &mut String) {
    let name = command.get_bin_name().unwrap_or(command.get_name()).to_owned();
    writeln!(text, "======== {name} -h\n{}", command.render_help()).unwrap();
    writeln!(text, "======== {name} --help\n{}", command.render_long_help()).unwrap();
    for sub in command.get_subcommands_mut().filter(|sub| sub.get_name() != "help") {
        describe(sub, text);
    }
}

#[test]
fn help_is_as_in_the_reference() {
    let mut command = Cli::command().term_width(100);
    command.build();
    let mut now = String::new();
    describe(&mut command, &mut now);
    let now = now.lines().map(str::trim_end).collect::<Vec<_>>().join("\n") + "\n";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli-reference.txt");
    if std::env::var_os("UPDATE_CLI_REFERENCE").is_some() {
        std::fs::write(&path, &now).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let different = now.lines().zip(kept.lines()).position(|(now, kept)| now != kept);
    if let Some(line) = different {
        let (now, kept) = (now.lines().nth(line), kept.lines().nth(line));
        panic!(
            "{}:{}\n  now:  {now:?}\n  kept: {kept:?}\nUPDATE_CLI_REFERENCE=1 writes it anew",
            path.display(),
            line + 1
        );
    }
    assert_eq!(now.len(), kept.len(), "one text is the beginning of the other");
}

#[test]
fn every_command_ends_with_examples_that_the_parser_takes() {
    let mut command = Cli::command();
    command.build();
    let mut count = 0;
    for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
        let examples = sub.get_after_long_help().map(ToString::to_string).unwrap_or_default();
        assert!(examples.starts_with("Examples:\n"), "{} has no examples", sub.get_name());
        assert!(sub.get_long_about().is_some(), "{} has no paragraph", sub.get_name());
        for argument in sub.get_arguments() {
            assert!(argument.get_help().is_some(), "{} {} is not explained", sub.get_name(), argument.get_id());
        }
        for line in examples.lines().filter(|line| line.trim_start().starts_with("thin-image ")) {
            let words = line.trim_start().split(" | ").next().unwrap().split_whitespace();
            if let Err(error) = Cli::command().try_get_matches_from(words) {
                panic!("{line}\n{error}");
            }
            count += 1;
        }
    }
    assert!(count >= 12, "only {count} examples were found");
}
