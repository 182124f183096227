//! Plan and result of a repair, told to people and to programs.

use std::fmt::Write as _;

use cvmfs::check::Report;
use serde::Serialize;

use super::{Line, Plan};
use crate::error::printable;

/// What is going to be done, for people: one line a repair.
pub fn to_text(plan: &Plan, fqrn: &str) -> String {
    let mut text = String::new();
    let survey = &plan.survey;
    let mut lines = |word: &str, lines: &[Line]| {
        for line in lines {
            let word = if line.is_live { "LIVE" } else { word };
            let place = if line.place.is_empty() { "/" } else { &line.place };
            let told = format!("{place}: {}: {}", line.fault.name(), line.what);
            let _ = writeln!(text, "{word:<7} {}", printable(&told));
        }
    };
    lines("repair", &survey.repairs);
    lines("left", &survey.left);
    lines("note", &survey.notes);
    let live = survey.repairs.iter().filter(|l| l.is_live).count();
    let _ = write!(
        text,
        "{}, revision {}: {} repairs in one publish, {} faults left",
        printable(fqrn),
        plan.revision,
        survey.repairs.len(),
        survey.left.len()
    );
    if live > 0 {
        let _ = write!(text, "; {live} of them change layers that running containers may hold open");
    }
    text.push('\n');
    text
}

/// Plan and result for programs: one object. `result` is the new revision, if there is one, and the check afterwards.
pub fn to_json(plan: &Plan, fqrn: &str, result: Option<(Option<u64>, &Report)>) -> String {
    let lines = |lines: &[Line]| -> Vec<JsonLine> {
        let line = |l: &Line| JsonLine {
            fault: l.fault.name(),
            place: l.place.clone(),
            what: l.what.clone(),
            live: l.is_live,
        };
        lines.iter().map(line).collect()
    };
    let json = Json {
        schema: 1,
        repository: fqrn,
        revision: plan.revision,
        repairs: lines(&plan.survey.repairs),
        left: lines(&plan.survey.left),
        notes: lines(&plan.survey.notes),
        applied: result.is_some(),
        revision_after: result.and_then(|(revision, _)| revision),
        sound: result.map(|(_, report)| report.is_sound()),
    };
    let mut text = serde_json::to_string_pretty(&json).expect("strings and numbers");
    text.push('\n');
    text
}

#[derive(Serialize)]
struct Json<'a> {
    schema: u32,
    repository: &'a str,
    revision: u64,
    repairs: Vec<JsonLine>,
    left: Vec<JsonLine>,
    notes: Vec<JsonLine>,
    applied: bool,
    revision_after: Option<u64>,
    sound: Option<bool>,
}

#[derive(Serialize)]
struct JsonLine {
    fault: &'static str,
    place: String,
    what: String,
    live: bool,
}
