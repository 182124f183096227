//! The whole help text is a snapshot: no option, default or sentence of it changes unseen.
//!
//! Set UPDATE_CLI_REFERENCE=1 to write the snapshot anew, and read the difference before committing it.

use std::fmt::Write;
use std::path::Path;

use clap::{Command, CommandFactory};
use snapshotter::cli::Cli;

/// Short and long help of a command and of all below it.
fn describe(command: &mut Command, text: &mut String) {
    // The name that `build` gave: with those of the parents.
    let name = command.get_bin_name().unwrap_or(command.get_name()).to_owned();
    writeln!(text, "======== {name} -h\n{}", command.render_help()).unwrap();
    writeln!(text, "======== {name} --help\n{}", command.render_long_help()).unwrap();
    for sub in command.get_subcommands_mut().filter(|sub| sub.get_name() != "help") {
        describe(sub, text);
    }
}

fn reference() -> String {
    let mut command = Cli::command().term_width(100);
    command.build();
    let mut text = String::new();
    describe(&mut command, &mut text);
    let mut lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    lines.push("");
    lines.join("\n")
}

#[test]
fn help_is_as_in_the_reference() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli-reference.txt");
    let now = reference();
    if std::env::var_os("UPDATE_CLI_REFERENCE").is_some() {
        std::fs::write(&path, &now).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let difference = now.lines().zip(kept.lines()).enumerate().find(|(_, (now, kept))| now != kept);
    if let Some((number, (now, kept))) = difference {
        panic!(
            "{}:{}\n  now:  {now}\n  kept: {kept}\nUPDATE_CLI_REFERENCE=1 writes it anew",
            path.display(),
            number + 1
        );
    }
    assert_eq!(now.lines().count(), kept.lines().count(), "one text is the beginning of the other");
}

#[test]
fn every_command_ends_with_examples_and_every_option_is_explained() {
    let mut command = Cli::command();
    command.build();
    for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
        let examples = sub.get_after_help().map(ToString::to_string).unwrap_or_default();
        assert!(examples.contains("Examples:\n"), "{} has no examples", sub.get_name());
        assert!(examples.contains(sub.get_name()), "the examples of {} are of something else", sub.get_name());
        assert!(sub.get_about().is_some(), "{} has no sentence", sub.get_name());
        for argument in sub.get_arguments() {
            assert!(argument.get_help().is_some(), "{} {} is not explained", sub.get_name(), argument.get_id());
        }
    }
}

/// Every line of the examples that calls us has to parse.
#[test]
fn examples_are_accepted_by_the_parser() {
    let mut command = Cli::command();
    command.build();
    let mut texts: Vec<String> =
        command.get_subcommands().filter_map(|sub| sub.get_after_help().map(ToString::to_string)).collect();
    texts.extend(command.get_after_help().map(ToString::to_string));
    let mut count = 0;
    for line in texts.iter().flat_map(|text| text.lines()) {
        let Some(at) = line.find("cvmfs-snapshotter") else { continue };
        // What follows a pipe, a redirection or a few blanks is not for us.
        let words = line[at..]
            .split(" | ")
            .flat_map(|text| text.split(" > "))
            .flat_map(|text| text.split("   "))
            .next()
            .unwrap_or_default()
            .split_whitespace();
        if let Err(error) = Command::try_get_matches_from(Cli::command(), words) {
            panic!("{line}\n{error}");
        }
        count += 1;
    }
    assert!(count >= 15, "only {count} examples were found");
}
