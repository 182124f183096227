//! `install` and `uninstall`: shows the difference, then makes it.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;

use anyhow::bail;

use crate::config::Config;
use crate::install::difference::difference;
use crate::install::{Engine, Machine, Plan, Settings, Versions, record};

/// Registers the snapshotter with engines.
pub fn install(
    config: &Config,
    root: &Path,
    engines: &[Engine],
    versions: &Versions,
    dry_run: bool,
) -> anyhow::Result<ExitCode> {
    let machine = Machine::at(root);
    let plan = Plan::make(&machine, engines, &Settings::of(config), &std::env::current_exe()?, versions)?;
    if !plan.changes.is_empty() {
        super::print(text(&plan).trim_end())?;
    }
    let say = |text: String| {
        let _ = writeln!(io::stderr(), "{text}");
    };
    for note in &plan.notes {
        say(format!("Note: {note}"));
    }
    if dry_run {
        say("Nothing was changed (--dry-run).".to_owned());
        return Ok(ExitCode::SUCCESS);
    }
    record::apply(&machine, &plan)?;
    if plan.changes.is_empty() {
        say("Everything is installed already.".to_owned());
    } else {
        say(format!("Then:\n  {}", plan.next.join("\n  ")));
    }
    Ok(ExitCode::SUCCESS)
}

/// Takes back what was installed; status 1 if something had to be left.
pub fn uninstall(root: &Path, dry_run: bool) -> anyhow::Result<ExitCode> {
    let undone = record::undo(&Machine::at(root), dry_run)?;
    if undone.restored.is_empty() && undone.left.is_empty() {
        bail!("nothing is recorded as installed");
    }
    let mut text = String::new();
    let verb = if dry_run { "would take back" } else { "took back" };
    for path in &undone.restored {
        let _ = writeln!(text, "{verb} {}", path.display());
    }
    for (path, backup) in &undone.left {
        let before = match backup {
            Some(backup) => format!("as it was before, it is in {}", backup.display()),
            None => "before, it was not there".to_owned(),
        };
        let _ = writeln!(text, "left {}: somebody has changed it since; {before}", path.display());
    }
    super::print(text.trim_end())?;
    if !dry_run {
        let _ = writeln!(
            io::stderr(),
            "Then restart the engine. The daemon still runs: systemctl stop cvmfs-snapshotter.socket cvmfs-snapshotter.service"
        );
    }
    Ok(if undone.left.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn text(plan: &Plan) -> String {
    let mut text = String::new();
    for change in &plan.changes {
        let path = change.path.display();
        let before = if change.before.is_some() { path.to_string() } else { "/dev/null".to_owned() };
        let _ = write!(
            text,
            "--- {before}\n+++ {path}\n{}",
            difference(change.before.as_deref().unwrap_or_default(), &change.after)
        );
    }
    text
}
