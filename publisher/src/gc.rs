//! Collects objects that no kept revision refers to. What goes and why it is safe: `doc/COLLECTING.md`.
//!
//! Order: locks and lease; marking; what is remembered of objects is dropped; `last_gc` for everybody else's memory; the
//! reflog; the objects. Whoever ends in between leaves a repository that is sound, and objects for the next collection.

use std::fmt::Write as _;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant, SystemTime};

use cvmfs::gc::{Keep, Mode, Options, Plan, Swept};
use cvmfs::hash::ObjectKind;
use indicatif::DecimalBytes;
use serde::Serialize;
use serde_json::Value;
use time::UtcDateTime;

use crate::failure::Failure;
use crate::status;
use crate::target::Target;

/// Which revisions are kept where nothing else is said: those of the last three days, as the reference tools do.
pub const DEFAULT_KEEP: Duration = Duration::from_secs(3 * 24 * 3600);

/// How a collection is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CollectOptions {
    /// How far back revisions are kept.
    pub keep: Keep,
    /// Objects younger than this stay.
    pub minimal_age: Duration,
    /// Count only.
    pub dry_run: bool,
}

/// Objects of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Objects {
    /// How many.
    pub objects: u64,
    /// Stored bytes.
    pub bytes: u64,
}

impl From<cvmfs::gc::Count> for Objects {
    fn from(count: cvmfs::gc::Count) -> Objects {
        Objects { objects: count.objects, bytes: count.bytes }
    }
}

/// What a collection did, or would do.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Collected {
    schema: u32,
    /// Name of the repository.
    pub repository: String,
    /// Its revision, which stays what it is.
    pub revision: u64,
    /// Whether nothing was changed.
    pub dry_run: bool,
    /// Root catalogs that are kept.
    pub roots_kept: u64,
    /// Root catalogs that would be kept, had another collection not taken them.
    pub roots_missing: u64,
    /// Root catalogs that the reflog forgets.
    pub roots_forgotten: u64,
    /// Catalogs read.
    pub catalogs: u64,
    /// Objects in the storage before.
    pub seen: Objects,
    /// Objects that nothing refers to, and that are too young to go.
    pub young: Objects,
    /// Objects removed.
    pub removed: Objects,
    /// The same by kind.
    pub removed_by_kind: Vec<(&'static str, Objects)>,
    /// Files below data/ that are no objects.
    pub strangers: u64,
    /// Wall-clock time.
    pub seconds: f64,
}

impl Collected {
    /// For people.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for (kind, count) in &self.removed_by_kind {
            let _ = writeln!(text, "{:>9} {kind}, {}", count.objects, DecimalBytes(count.bytes));
        }
        let verb = if self.dry_run { "would be removed" } else { "removed" };
        let _ = write!(
            text,
            "{}: {} of {} objects {verb}, {} of {}; {} revisions kept, {} forgotten",
            self.repository,
            self.removed.objects,
            self.seen.objects,
            DecimalBytes(self.removed.bytes),
            DecimalBytes(self.seen.bytes),
            self.roots_kept,
            self.roots_forgotten,
        );
        if self.young.objects > 0 {
            let _ = write!(text, "; {} unused objects are too young to go", self.young.objects);
        }
        if self.roots_missing > 0 {
            let _ = write!(text, "; {} revisions that ought to be kept are gone", self.roots_missing);
        }
        if self.strangers > 0 {
            let _ = write!(text, "; {} files below data/ are no objects and stay", self.strangers);
        }
        text.push('\n');
        text
    }

    /// For programs: one JSON object, with a line feed at its end. What happened to images before stands in it, if
    /// they were looked at.
    pub fn to_json(&self, images: Option<&crate::removal::Collected>) -> String {
        let mut value = serde_json::to_value(self).expect("only strings and numbers");
        let kinds = self.removed_by_kind.iter().map(|(kind, count)| ((*kind).to_owned(), serde_json::json!(count)));
        value["removed_by_kind"] = Value::Object(kinds.collect());
        if let Some(images) = images {
            value["images"] = serde_json::to_value(images).expect("only strings and numbers");
        }
        format!("{value:#}\n")
    }
}

fn kind_name(kind: ObjectKind) -> &'static str {
    match kind {
        ObjectKind::File => "files",
        ObjectKind::Chunk => "chunks",
        ObjectKind::Catalog => "catalogs",
        ObjectKind::History => "tag databases",
        ObjectKind::Certificate => "certificates",
        ObjectKind::MetaInfo => "meta infos",
    }
}

/// Collects. Others who publish or prepare content are waited for; those who come later wait for this.
pub fn collect(target: &Target, options: &CollectOptions) -> Result<Collected, Failure> {
    let start = Instant::now();
    let threads = std::thread::available_parallelism().map_or(2, NonZeroUsize::get);
    let mark = |repository| {
        let options = Options {
            keep: options.keep,
            minimal_age: options.minimal_age,
            now: SystemTime::now(),
            scratch: target.scratch(),
            threads,
        };
        Plan::make(repository, &options)
    };
    if options.dry_run {
        let plan = mark(target.repository()?)?;
        let swept = plan.sweep(&*target.store, Mode::Count, &|| true)?;
        return Ok(report(target, options, &plan, &swept, start)?);
    }
    let lock = target.lock_to_collect()?;
    target.expect_reflog()?;
    let mut plan = mark(target.repository()?)?;
    let now = UtcDateTime::now();
    // Before anything goes: that is how others know.
    status::note(&*target.store, &[("last_gc", &status::date(now))])?;
    target.forget_if_collected()?;
    let seconds = now.unix_timestamp().max(0) as u64;
    plan.forget(Some(&target.signer), seconds, Some(&target.reflog_checksum()))?;
    let swept = plan.sweep(&*target.store, Mode::Remove, &|| !lock.is_lost())?;
    // Our own memory was dropped above, and this collection was the reason.
    target.forget_if_collected()?;
    Ok(report(target, options, &plan, &swept, start)?)
}

fn report(
    target: &Target,
    options: &CollectOptions,
    plan: &Plan,
    swept: &Swept,
    start: Instant,
) -> Result<Collected, cvmfs::gc::GcError> {
    use cvmfs::reflog::RefKind;
    Ok(Collected {
        schema: 1,
        repository: target.fqrn.clone(),
        revision: plan.revision(),
        dry_run: options.dry_run,
        roots_kept: plan.kept.len() as u64,
        roots_missing: plan.missing.len() as u64,
        roots_forgotten: plan.forgotten.iter().filter(|r| r.kind == RefKind::Catalog).count() as u64,
        catalogs: plan.catalogs,
        seen: swept.seen.into(),
        young: swept.young.into(),
        removed: swept.total().into(),
        removed_by_kind: swept.removed.iter().map(|(kind, count)| (kind_name(*kind), (*count).into())).collect(),
        strangers: swept.strangers,
        seconds: start.elapsed().as_secs_f64(),
    })
}
