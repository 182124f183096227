//! The whole help text of a program is a snapshot: no option, default or sentence of it changes unseen.
//!
//! Included by the tests of each program. Set UPDATE_CLI_REFERENCE=1 to write the snapshot anew, and read the difference before
//! committing it.

use std::fmt::Write;
use std::path::Path;

use clap::Command;

/// Short and long help of a command and of all below it.
fn describe(command: &mut Command, text: &mut String) {
    // The name that `build` gave: with those of the parents.
    let name = command.get_bin_name().unwrap_or(command.get_name()).to_owned();
    writeln!(text, "======== {name} -h\n{}", command.render_help()).unwrap();
    writeln!(text, "======== {name} --help\n{}", command.render_long_help()).unwrap();
    for sub in command.get_subcommands_mut().filter(|sub| sub.get_name() != "help" && !sub.is_hide_set()) {
        describe(sub, text);
    }
}

/// The help text is the one that is kept in `tests/cli-reference.txt` below `directory`.
pub fn help_is_as_kept(command: Command, directory: &str) {
    let mut command = command.term_width(100);
    command.build();
    let mut now = String::new();
    describe(&mut command, &mut now);
    let now = now.lines().map(str::trim_end).collect::<Vec<_>>().join("\n") + "\n";
    let path = Path::new(directory).join("tests/cli-reference.txt");
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

/// The examples of a command, wherever its help shows them.
fn examples(command: &Command) -> String {
    command.get_after_long_help().or(command.get_after_help()).map(ToString::to_string).unwrap_or_default()
}

/// Every command has a sentence and examples, every option is explained.
pub fn everything_is_explained(mut command: Command) {
    command.build();
    let shown = |sub: &&Command| sub.get_name() != "help" && !sub.is_hide_set();
    for sub in command.get_subcommands().filter(shown) {
        let (name, examples) = (sub.get_name(), examples(sub));
        assert!(examples.contains("Examples:\n"), "{name} has no examples");
        assert!(examples.contains(name), "the examples of {name} are of something else");
        assert!(sub.get_long_about().or(sub.get_about()).is_some(), "{name} has no sentence");
        for argument in sub.get_arguments() {
            assert!(argument.get_help().is_some(), "{name} {} is not explained", argument.get_id());
        }
    }
}

/// Every line of the examples that calls the program, `least` at least, is one that the parser takes.
pub fn examples_parse(command: Command, least: usize) {
    let mut built = command.clone();
    built.build();
    let call = format!("{} ", built.get_name());
    let texts: Vec<String> = built.get_subcommands().chain([&built]).map(examples).collect();
    let mut count = 0;
    for line in texts.iter().flat_map(|text| text.lines()) {
        let Some(at) = line.find(&call) else { continue };
        // What follows a pipe, a redirection or a few blanks is not for us.
        let words =
            [" | ", " > ", "   "].iter().fold(&line[at..], |text, end| text.split(end).next().unwrap_or_default());
        if let Err(error) = command.clone().try_get_matches_from(words.split_whitespace()) {
            panic!("{line}\n{error}");
        }
        count += 1;
    }
    assert!(count >= least, "only {count} examples were found");
}
