//! `doctor`: what is wrong with this node, and what to do about it.

use std::fmt::Write as _;
use std::process::ExitCode;

use crate::config::Config;
use crate::doctor::{Check, State, examine};

/// Prints what was found; status 1 if something does not work.
pub async fn doctor(config: &Config, json: bool) -> anyhow::Result<ExitCode> {
    let checks = examine(config).await;
    super::print(&if json { serde_json::to_string_pretty(&checks)? } else { text(&checks) })?;
    Ok(if checks.iter().any(|check| check.state == State::Fail) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn text(checks: &[Check]) -> String {
    let width = checks.iter().map(|check| check.name.chars().count()).max().unwrap_or_default();
    let mut text = String::new();
    for check in checks {
        let state = match check.state {
            State::Ok => "ok",
            State::Warn => "warn",
            State::Fail => "FAIL",
        };
        let _ = writeln!(text, "{state:<4}  {:<width$}  {}", check.name, check.found);
        if let Some(advice) = &check.advice {
            let _ = writeln!(text, "      {:<width$}  → {advice}", "");
        }
    }
    let count = |state| checks.iter().filter(|check| check.state == state).count();
    let _ = write!(
        text,
        "\n{} well, {} could be better, {} broken",
        count(State::Ok),
        count(State::Warn),
        count(State::Fail)
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_stands_below_what_was_found() {
        let checks =
            [Check::ok("overlayfs", "the kernel has it"), Check::fail("daemon", "does not answer", "start it")];
        assert_eq!(
            text(&checks),
            "ok    overlayfs  the kernel has it\nFAIL  daemon     does not answer\n                 → start it\n\n1 well, 0 could be better, 1 broken"
        );
    }
}
