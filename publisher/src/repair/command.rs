//! The command: check, plan, publish, check.

use std::num::NonZeroUsize;

use cvmfs::check::{CheckError, Identity, Options, Report, check};
use cvmfs::scrub::scrub;
use cvmfs::trust::Anchor;
use time::UtcDateTime;

use super::{Live, apply, plan, to_json, to_text};
use crate::check_report;
use crate::cli::{Check, print_result};
use crate::command::{note_check, reflog_checksum};
use crate::error::{CommandError, ExitStatus};
use crate::failure::Failure;
use crate::target::Target;

/// Runs `check --fix`.
pub fn fix(arguments: &Check, target: &Target, json: bool) -> Result<ExitStatus, CommandError> {
    let live = if arguments.yes_change_live_layers { Live::Change } else { Live::Keep };
    let planned = |report: &Report| plan(target, report, live).map_err(Failure::into_command_error);
    let before = examine(target, arguments.data)?;
    let intended = planned(&before)?;
    if arguments.dry_run {
        print_result(&match json {
            true => to_json(&intended, &target.fqrn, None),
            false => to_text(&intended, &target.fqrn),
        })?;
        let is_right = before.is_sound() && intended.is_empty() && !intended.leaves_faults();
        return Ok(if is_right { ExitStatus::Success } else { ExitStatus::Failed });
    }
    if !json {
        print_result(&to_text(&intended, &target.fqrn))?;
    }
    let revision = apply(target, &intended)
        .map_err(|e| e.into_command_error().context(format!("cannot repair {}", target.fqrn)))?;
    let after = examine(target, arguments.data)?;
    note_check(&*target.store, &target.paths, after.is_sound());
    let rest = planned(&after)?;
    rest.note_damage(target).map_err(Failure::into_command_error)?;
    if json {
        print_result(&to_json(&intended, &target.fqrn, Some((revision, &after))))?;
    } else {
        let mut text = match revision {
            Some(revision) => format!("revision {revision} is published\n"),
            None => "nothing was published\n".to_owned(),
        };
        if !rest.is_empty() || rest.leaves_faults() {
            text.push_str("what remains:\n");
            text.push_str(&to_text(&rest, &target.fqrn));
        }
        text.push_str(&check_report::to_text(&after, &target.fqrn));
        print_result(&text)?;
    }
    let is_right = after.is_sound() && rest.is_empty() && !rest.leaves_faults();
    Ok(if is_right { ExitStatus::Success } else { ExitStatus::Failed })
}

/// What the check says, with all bytes read if `data`.
pub fn examine(target: &Target, data: bool) -> Result<Report, CommandError> {
    let master_keys = [target.master.clone()];
    let anchor = Anchor { name: &target.fqrn, master_keys: &master_keys, blacklist: &[], now: UtcDateTime::now() };
    let mut options = Options::new(target.scratch());
    options.identity = Identity::Trusted(&anchor);
    options.reflog_checksum = reflog_checksum(&*target.store, &target.paths);
    let unreadable = |e: CheckError| CommandError::repository(e).context(format!("cannot check {}", target.fqrn));
    let mut report = check(&*target.store, &options).map_err(unreadable)?;
    if data {
        let threads = std::thread::available_parallelism().map_or(2, NonZeroUsize::get);
        report.merge(scrub(&*target.store, threads).map_err(unreadable)?);
    }
    Ok(report)
}
