//! `status`, and what `convert-local` did, for people.

use std::fmt::Write as _;
use std::process::ExitCode;

use crate::config::Config;
use crate::control::{self, Status};
use crate::convert_local::Converted;
use crate::daemon::Downloaded;

/// Prints the state of the running daemon; status 1 when no repository can be read.
pub async fn status(config: &Config, json: bool) -> anyhow::Result<ExitCode> {
    let status = control::ask_status(&config.control()).await?;
    super::print(&if json { serde_json::to_string_pretty(&status)? } else { text(&status) })?;
    let any = status.repositories.iter().any(|repository| repository.down.is_none());
    Ok(if any { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn text(status: &Status) -> String {
    let mut text =
        format!("cvmfs-snapshotter {}, process {}, running for {} s\n", status.version, status.pid, status.uptime);
    let counts = &status.snapshots;
    let _ = writeln!(
        text,
        "snapshots     {} from repositories, {} local, {} active, {} views",
        counts.remote, counts.local, counts.active, counts.views
    );
    let layers: Vec<String> = status.layers.iter().map(|(result, count)| format!("{count} {result}")).collect();
    let _ = writeln!(text, "layers asked  {}", layers.join(", "));
    for repository in &status.repositories {
        let state = repository.down.as_deref().unwrap_or("can be read");
        let _ = writeln!(text, "repository    {} on {}: {state}", repository.name, repository.mountpoint.display());
    }
    for Downloaded { image, layers, bytes, reason, .. } in &status.downloads {
        let size = *bytes as f64 / 1e6;
        let _ = writeln!(text, "downloaded    {image}: {layers} layers, {size:.1} MB unpacked: {reason}");
    }
    text.trim_end().to_owned()
}

/// What was converted, or would be.
pub fn converted(result: &Converted, dry_run: bool) -> String {
    let mut text = String::new();
    for name in &result.converted {
        let _ = writeln!(text, "{} {name}", if dry_run { "would convert" } else { "converted" });
    }
    for name in &result.in_use {
        let _ = writeln!(text, "in use        {name}");
    }
    let verb = if dry_run { "would be freed" } else { "freed" };
    let _ = write!(
        text,
        "{} layers, {:.1} MB {verb}; {} in use, {} not published",
        result.converted.len(),
        result.freed as f64 / 1e6,
        result.in_use.len(),
        result.absent
    );
    text
}
