//! How the program fails: one error type for the binary, one exit status for every way to end.
//!
//! Libraries return enums, because somebody may branch on them. A person needs something else: what was attempted,
//! the chain of causes, and what to do next. [`CommandError`] carries these three, [`CommandError::print`] is the only
//! function that shows them and [`CommandError::exit_status`] the only one that picks the exit code.
//!
//! Invariants
//! - Nothing else in the program calls `exit` or chooses a number.
//! - Text that came from outside (registries, tar members, wish lists) is shown without control characters.
//! - A reader that closes our standard output (`| head`) is no error.

use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;

/// Every way for the program to end. Scripts depend on the numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// 0: everything that was wished for is published; the repository is sound.
    Success,
    /// 1: the work was begun, and some of it failed; `check` found damage.
    Failed,
    /// 2: the command line is wrong.
    Usage,
    /// 3: the configuration or the wish list is wrong. Nothing was done.
    Config,
    /// 4: the repository can't be used: not found, not trusted, locked.
    Repository,
    /// 130: stopped by an interrupt from the keyboard, after a clean abort.
    Interrupted,
    /// 143: stopped by a termination signal, after a clean abort.
    Terminated,
}

impl ExitStatus {
    /// The number that the shell sees.
    pub fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Config => 3,
            Self::Repository => 4,
            Self::Interrupted => 130,
            Self::Terminated => 143,
        }
    }
}

impl From<ExitStatus> for ExitCode {
    fn from(status: ExitStatus) -> Self {
        Self::from(status.code())
    }
}

/// A signal that asks the program to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGINT
    Interrupt,
    /// SIGTERM
    Terminate,
}

impl From<Signal> for ExitStatus {
    fn from(signal: Signal) -> Self {
        match signal {
            Signal::Interrupt => Self::Interrupted,
            Signal::Terminate => Self::Terminated,
        }
    }
}

/// Whose fault it is, which decides the exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The work itself failed.
    Failed,
    /// An argument is wrong in a way that the argument parser can't see.
    Usage,
    /// A configuration file or the wish list is wrong.
    Config,
    /// The repository is missing, not trusted, or locked by somebody else.
    Repository,
    /// The operator stopped us.
    Stopped(Signal),
    /// The reader of our standard output went away: nobody is left to be told.
    ClosedOutput,
}

/// What the program shows when a command fails.
#[derive(Debug)]
pub struct CommandError {
    kind: ErrorKind,
    source: Box<dyn Error + Send + Sync>,
    hints: Vec<String>,
}

impl CommandError {
    /// An error of the given kind. `source` may be another error or a message.
    pub fn new(kind: ErrorKind, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { kind, source: source.into(), hints: Vec::new() }
    }

    /// The work failed: exit status 1.
    pub fn failed(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::new(ErrorKind::Failed, source)
    }

    /// The command line asks for something impossible: exit status 2.
    pub fn usage(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::new(ErrorKind::Usage, source)
    }

    /// The configuration or wish list is wrong: exit status 3.
    pub fn config(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::new(ErrorKind::Config, source)
    }

    /// The repository can't be used: exit status 4.
    pub fn repository(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::new(ErrorKind::Repository, source)
    }

    /// A signal arrived and the work was aborted cleanly: exit status 130 or 143.
    pub fn stopped(signal: Signal) -> Self {
        let message = match signal {
            Signal::Interrupt => "interrupted",
            Signal::Terminate => "asked to terminate",
        };
        Self::new(ErrorKind::Stopped(signal), message)
    }

    /// Writing a result to standard output failed.
    pub fn output(error: io::Error) -> Self {
        let kind = if error.kind() == io::ErrorKind::BrokenPipe { ErrorKind::ClosedOutput } else { ErrorKind::Failed };
        Self::new(kind, error).context("cannot write to standard output")
    }

    /// Says what was attempted; what was there before becomes the cause.
    #[must_use]
    pub fn context(self, message: impl Into<String>) -> Self {
        let source = Box::new(Context { message: message.into(), source: self.source });
        Self { source, ..self }
    }

    /// Adds advice: what the operator can do now.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// The kind.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The exit status of a program that ends with this error.
    pub fn exit_status(&self) -> ExitStatus {
        match self.kind {
            ErrorKind::Failed => ExitStatus::Failed,
            ErrorKind::Usage => ExitStatus::Usage,
            ErrorKind::Config => ExitStatus::Config,
            ErrorKind::Repository => ExitStatus::Repository,
            ErrorKind::Stopped(signal) => signal.into(),
            ErrorKind::ClosedOutput => ExitStatus::Success,
        }
    }

    /// Prints the error, its causes and the hints, for a person.
    pub fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        if self.kind == ErrorKind::ClosedOutput {
            return Ok(());
        }
        writeln!(out, "Error: {}", printable_lines(&self.source.to_string()))?;
        let causes = causes(self.source.as_ref());
        if !causes.is_empty() {
            writeln!(out, "Caused by:")?;
        }
        for (number, cause) in causes.iter().enumerate() {
            writeln!(out, "{}: {}", number + 1, printable_lines(cause))?;
        }
        for hint in &self.hints {
            writeln!(out, "Hint: {}", printable_lines(hint))?;
        }
        Ok(())
    }
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source.fmt(f)
    }
}

impl Error for CommandError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.source()
    }
}

/// A sentence in front of a cause.
#[derive(Debug)]
struct Context {
    message: String,
    source: Box<dyn Error + Send + Sync>,
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for Context {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(self.source.as_ref())
    }
}

/// The error and its causes on one line, as the report and the progress lines want it.
pub fn one_line(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    for cause in causes(error) {
        text.push_str(": ");
        text.push_str(&cause);
    }
    printable(&text).into_owned()
}

/// The causes below `error`, outermost first. A cause that the line above already ends with is left out: some
/// libraries print their source as part of their own message.
fn causes(error: &(dyn Error + 'static)) -> Vec<String> {
    let mut causes = Vec::new();
    let mut above = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        if !above.ends_with(&text) {
            causes.push(text.clone());
            above = text;
        }
        next = cause.source();
    }
    causes
}

/// `text` with every control character replaced, so that a registry can't move the cursor of the operator's terminal
/// or begin a line of its own in a log.
pub fn printable(text: &str) -> Cow<'_, str> {
    replace_controls(text, |_| true)
}

/// The same for text of several lines: line feeds stay.
fn printable_lines(text: &str) -> Cow<'_, str> {
    replace_controls(text, |c| c != '\n')
}

fn replace_controls(text: &str, also: impl Fn(char) -> bool) -> Cow<'_, str> {
    // Besides the control characters proper: those that reverse the direction of the text around them.
    let bad = |c: char| {
        (c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}'))
            && also(c)
    };
    if text.contains(bad) { Cow::Owned(text.replace(bad, "\u{fffd}")) } else { Cow::Borrowed(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Layered {
        #[error("layer sha256:3f1c does not match its digest after 41 MB")]
        Outer(#[source] Box<Layered>),
        #[error("reading the blob: {0}")]
        Middle(#[source] io::Error),
    }

    fn printed(error: &CommandError) -> String {
        let mut out = Vec::new();
        error.print(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn prints_the_error_its_numbered_causes_and_the_hints() {
        let cause = Layered::Outer(Box::new(Layered::Middle(io::Error::other("connection closed by registry"))));
        let error = CommandError::failed(cause)
            .context("cannot publish docker.io/library/fedora:latest")
            .hint("run the same command again; 3 of 5 layers are already in the repository.");
        assert_eq!(
            printed(&error),
            "Error: cannot publish docker.io/library/fedora:latest\n\
             Caused by:\n\
             1: layer sha256:3f1c does not match its digest after 41 MB\n\
             2: reading the blob: connection closed by registry\n\
             Hint: run the same command again; 3 of 5 layers are already in the repository.\n"
        );
    }

    #[test]
    fn an_error_without_cause_is_one_line() {
        assert_eq!(printed(&CommandError::usage("--base is missing")), "Error: --base is missing\n");
    }

    #[test]
    fn each_kind_has_its_exit_code() {
        let cases = [
            (CommandError::failed("x"), 1),
            (CommandError::usage("x"), 2),
            (CommandError::config("x"), 3),
            (CommandError::repository("x"), 4),
            (CommandError::stopped(Signal::Interrupt), 130),
            (CommandError::stopped(Signal::Terminate), 143),
            (CommandError::output(io::Error::from(io::ErrorKind::BrokenPipe)), 0),
            (CommandError::output(io::Error::from(io::ErrorKind::StorageFull)), 1),
        ];
        for (error, code) in cases {
            assert_eq!(error.exit_status().code(), code, "{error:?}");
        }
        assert_eq!(ExitStatus::Success.code(), 0);
    }

    #[test]
    fn a_closed_output_is_not_talked_about() {
        assert_eq!(printed(&CommandError::output(io::Error::from(io::ErrorKind::BrokenPipe))), "");
    }

    #[test]
    fn control_characters_from_outside_never_reach_the_terminal() {
        let error = CommandError::failed("registry said \u{1b}[2J\r\u{202e}gone").context("two\nlines");
        let text = printed(&error);
        assert!(text.starts_with("Error: two\nlines\nCaused by:\n"), "{text:?}");
        assert!(!text.contains(['\u{1b}', '\r', '\u{202e}']), "{text:?}");
        assert_eq!(printable("a\nb"), "a\u{fffd}b");
        assert!(matches!(printable("plain text"), Cow::Borrowed(_)));
    }

    #[test]
    fn one_line_holds_the_whole_chain_once() {
        let error = Layered::Outer(Box::new(Layered::Middle(io::Error::other("cut\nhere"))));
        assert_eq!(
            one_line(&error),
            "layer sha256:3f1c does not match its digest after 41 MB: reading the blob: cut\u{fffd}here"
        );
    }
}
