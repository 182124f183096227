//! Keeps a repository up with its wish list, for years: the same pass again and again, on an interval and when registries tell.
//!
//! ```text
//! list changed ─┐                    ┌─ convert what is due        (crate::pass)
//! interval ─────┼─▶ due.rs: a pass ──┼─ note outcomes, next tries  (outcomes.rs)
//! webhook ──────┘        ▲           ├─ renew the whitelist
//! server.rs ─▶ queue.rs ─┘           └─ prune, collect, publish the page (upkeep.rs)
//! ```
//! State, below `watch/` of the state directory: `images.json` (outcomes), `queue/` (events), `upkeep.json`. All of it can be deleted.
//!
//! Invariants
//! - A turn is a function of the time it is given, so tests turn it by a clock of their own.
//! - Nothing that fails ends the program but a signal: a list that can't be read leaves the last good one at work, a repository that
//!   can't be opened is tried again. What is wrong stands in the status, in the metrics and in the log.
//! - An event is forgotten only after a pass that looked.

pub mod due;
pub mod hooks;
mod list;
pub mod metrics;
pub mod outcomes;
pub mod page;
pub mod queue;
pub mod server;
pub mod status;
mod upkeep;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use time::UtcDateTime;
use tokio::sync::Notify;

use self::due::due;
use self::list::ListFile;
use self::metrics::Metrics;
use self::outcomes::{Moment, Outcomes};
use self::queue::{Queue, Taken};
use self::server::{Secret, Site};
use self::status::{PassStatus, Status};
use self::upkeep::Upkeep;
use crate::cli::{Environment, Global, Paths, Watch};
use crate::config::Config;
use crate::convert::Plan;
use crate::error::{CommandError, ExitStatus};
use crate::failure::Failure;
use crate::pass::Workshop;
use crate::plan::image_name;
use crate::progress::{Event as Told, Progress};
use crate::pulse::Pulse;
use crate::report::{Outcome, Report};
use crate::stop::Stop;
use crate::target::{Clock, Target, WhitelistEnd, sign_whitelist_file};

/// How often the list is looked at.
const LIST: Duration = Duration::from_secs(2);
/// How long a repository that can't be opened is left alone.
const REST: Duration = Duration::from_secs(30);
/// For how long a whitelist is renewed.
const VALIDITY: time::Duration = cvmfs::whitelist::DEFAULT_VALIDITY;

/// Our state.
fn directory(paths: &Paths) -> PathBuf {
    paths.state.join("watch")
}

/// What became of images.
fn images_file(paths: &Paths) -> PathBuf {
    directory(paths).join("images.json")
}

/// Notes a pass that nobody watches: what became of images, and when they are due again, for `status` and for a program that watches
/// later. One that watches now knows better, and writes over it.
pub fn note(paths: &Paths, report: &Report, plan: &Plan, whole: &[String], stop: &Stop) {
    let file = images_file(paths);
    let mut outcomes = Outcomes::read(&file);
    let (now, mut report) = (UtcDateTime::now(), report.clone());
    match stop.asked() {
        // What was stopped has not failed.
        Some(_) => {
            report.wishes.retain(|wish| wish.outcome != Outcome::Failed);
            outcomes.note(&report, &[], &HashSet::new(), now);
        }
        None => outcomes.note(&report, whole, &HashSet::new(), now),
    }
    outcomes.describe(plan);
    let written = std::fs::create_dir_all(directory(paths)).and_then(|()| outcomes.write(&file));
    if let Err(error) = written {
        tracing::warn!(file = %file.display(), %error, "outcomes are not kept");
    }
}

/// Watches one list.
#[derive(Debug)]
pub struct Watcher {
    fqrn: String,
    paths: Paths,
    workshop: Workshop,
    list: ListFile,
    interval: Duration,
    thin: bool,
    outcomes: Outcomes,
    outcomes_file: PathBuf,
    upkeep: Upkeep,
    clock: Clock,
    site: Arc<Site>,
    progress: Arc<dyn Progress>,
    pulse: Pulse,
}

/// What a turn came to.
#[derive(Debug)]
pub struct Turn {
    /// What became of what was due; none if nothing was.
    pub report: Option<Report>,
    /// When to turn again at the latest.
    pub next: UtcDateTime,
}

impl Watcher {
    /// Reads the list and the state. The repository is that of the list, and stays it.
    pub fn new(
        options: &Watch,
        config: &Config,
        paths: impl Fn(&str) -> Result<Paths, CommandError>,
        progress: Arc<dyn Progress>,
    ) -> Result<Self, CommandError> {
        let list = ListFile::open(&options.wishlist, options.git_pull)?;
        let fqrn = list.current().repository.clone();
        let paths = paths(&fqrn)?;
        Target::open(&fqrn, paths.clone()).map_err(Failure::into_command_error)?;
        let directory = directory(&paths);
        let queue = Queue::open(&directory.join("queue")).map_err(|error| {
            CommandError::failed(error).context(format!("cannot keep events in {}", directory.display()))
        })?;
        let outcomes_file = images_file(&paths);
        let outcomes = Outcomes::read(&outcomes_file);
        let secret = options.hook_token.as_deref().map(Secret::read).transpose()?;
        let pulse = Pulse::to_systemd();
        let progress = pulse.of_progress(progress);
        let workshop = Workshop::new(&options.conversion, config, progress.clone())?.telling(&options.notifications)?;
        let workshop = workshop.with_pulse(pulse.clone());
        let metrics = Metrics::new(workshop.budgets().clone());
        let site = Site::new(Arc::new(queue), secret, metrics, Status::new(&fqrn, &options.wishlist));
        Ok(Self {
            fqrn,
            paths,
            workshop,
            list,
            interval: options.interval,
            thin: !options.no_thin_images,
            outcomes,
            outcomes_file,
            upkeep: Upkeep::new(&options.upkeep, directory.join("upkeep.json")),
            clock: Clock::System,
            site: Arc::new(site),
            progress,
            pulse,
        })
    }

    /// With records that state the time of another clock.
    pub fn with_clock(self, clock: Clock) -> Self {
        Self { clock, ..self }
    }

    /// What the server shows and takes.
    pub fn site(&self) -> &Arc<Site> {
        &self.site
    }

    /// Does what is due.
    pub fn turn(&mut self, now: UtcDateTime) -> Turn {
        if let Some(fqrn) = self.list.refresh() {
            tracing::error!(
                fqrn,
                ours = self.fqrn,
                "the list is for another repository now; the last one stays at work"
            );
        }
        let told = self.site.queue().take();
        match Target::open(&self.fqrn, self.paths.clone()) {
            Ok(mut target) => {
                target.clock = self.clock.clone();
                target.store = self.pulse.of_store(target.store);
                self.whitelist(&target, now);
                let turn = self.work(&target, &told, now);
                self.show();
                self.keep_up(&target, now);
                let next = self.upkeep.next(now).map_or(turn.next, |next| turn.next.min(next));
                Turn { next, ..turn }
            }
            Err(error) => {
                let what = crate::error::one_line(&error);
                tracing::error!("{what}");
                self.site.update(|status| status.trouble = Some(what));
                self.show();
                Turn { report: None, next: now + REST }
            }
        }
    }

    fn keep_up(&mut self, target: &Target, now: UtcDateTime) {
        if self.workshop.stop().asked().is_none() {
            self.upkeep.work(target, self.list.current(), &self.site, now);
        }
    }

    fn work(&mut self, target: &Target, told: &Taken, now: UtcDateTime) -> Turn {
        let list = self.list.current();
        let due = due(&list.wishes, &self.outcomes, told, self.interval, now);
        let idle = due.next.unwrap_or(now + self.interval);
        if due.requests.is_empty() {
            // Events that match no wish.
            self.forget(told);
            let wishes = list.wishes.iter().map(|wish| wish.text.as_str()).collect();
            self.outcomes.keep_wishes(&wishes);
            return Turn { report: None, next: idle };
        }
        let begun = Instant::now();
        let mut converter = self.workshop.converter(target);
        converter.options.in_store.clone_from(&list.podman);
        let thin = list.output_format.as_deref().filter(|_| self.thin).map(|format| (format, list.user.as_str()));
        let is_wanted = |wanted: &crate::plan::Wanted| !due.resting.contains(&image_name(&wanted.source));
        let plan = converter.plan_some(&due.requests, &is_wanted).map_err(Failure::into_command_error);
        let result = plan.map(|mut plan| {
            plan.keep_quotas(&self.outcomes.held(list, &plan));
            plan
        });
        let result = result.and_then(|plan| Ok((self.workshop.execute(&converter, &plan, thin)?, plan)));
        match result {
            Ok((mut report, plan)) => {
                if self.workshop.stop().asked().is_some() {
                    // What was stopped has not failed; events stay for the next start.
                    report.wishes.retain(|wish| wish.outcome != Outcome::Failed);
                    self.outcomes.note(&report, &[], &HashSet::new(), now);
                } else {
                    self.outcomes.note(&report, &due.whole, &due.resting, now);
                    let wishes = list.wishes.iter().map(|wish| wish.text.as_str()).collect();
                    self.outcomes.keep_wishes(&wishes);
                    self.forget(told);
                }
                self.outcomes.describe(&plan);
                if let Err(error) = self.outcomes.write(&self.outcomes_file) {
                    tracing::warn!(file = %self.outcomes_file.display(), %error, "outcomes are not kept");
                }
                self.site.metrics().note(&report, begun.elapsed());
                self.site.metrics().undelivered(self.workshop.undelivered());
                let pass = PassStatus::new(&report, Moment(now), begun.elapsed());
                self.site.update(|status| {
                    status.trouble = None;
                    status.revision = report.revision;
                    status.last_pass = Some(pass);
                });
                if report.wishes.iter().any(|wish| wish.outcome != Outcome::Unchanged) {
                    self.progress.event(Told::Message { text: report.to_text().trim_end() });
                }
                let again = due_again(list, &self.outcomes, self.site.queue(), self.interval, now);
                Turn { report: Some(report), next: again }
            }
            Err(error) => {
                tracing::error!("{error}");
                self.site.metrics().failed_pass();
                self.site.update(|status| status.trouble = Some(error.to_string()));
                Turn { report: None, next: now + REST }
            }
        }
    }

    fn forget(&self, told: &Taken) {
        if let Err(error) = self.site.queue().done(told) {
            tracing::warn!(%error, "events that were looked at can't be removed; they are looked at again");
        }
    }

    /// Renews the whitelist if it is time and the key is here.
    fn whitelist(&self, target: &Target, now: UtcDateTime) {
        let keys = &target.paths.keys;
        let mut end = WhitelistEnd::of(&*target.store, keys, &self.fqrn);
        if end.is_near(now) && end.has_master {
            match sign_whitelist_file(&*target.store, &self.fqrn, keys, now, VALIDITY) {
                Ok(expires) => {
                    tracing::info!(%expires, "the whitelist was renewed");
                    end = WhitelistEnd::of(&*target.store, keys, &self.fqrn);
                }
                Err(error) => tracing::error!(error = crate::error::one_line(&error), "the whitelist can't be renewed"),
            }
        }
        let warning = end.warning(&self.fqrn, now);
        self.site.metrics().whitelist(end.expires, now);
        self.site.update(|status| {
            status.whitelist_expires = end.expires.map(Moment);
            status.whitelist_warning = warning;
        });
    }

    fn show(&self) {
        let list = self.list.current();
        self.site.metrics().images(&self.outcomes);
        self.site.update(|status| {
            status.list.wishes = list.wishes.len();
            status.list.problems = list.problems.iter().map(ToString::to_string).collect();
            status.list.error = self.list.trouble().map(str::to_owned);
            status.images.clone_from(&self.outcomes.images);
        });
    }

    /// Turns until a signal comes.
    fn run(&mut self) {
        let stop = self.workshop.stop().clone();
        let runtime = self.workshop.runtime().clone();
        let wake = self.site.wake();
        while stop.asked().is_none() {
            let turn = self.turn(UtcDateTime::now());
            runtime.block_on(rest(turn.next, &wake, &stop, || self.list.has_changed(), &self.pulse));
        }
    }
}

/// When something is due after a pass.
fn due_again(
    list: &crate::wishlist::WishList,
    outcomes: &Outcomes,
    queue: &Queue,
    interval: Duration,
    now: UtcDateTime,
) -> UtcDateTime {
    due(&list.wishes, outcomes, &queue.take(), interval, now).next.unwrap_or(now + interval)
}

/// Waits for the time, an event, a change of the list, or the end.
async fn rest(until: UtcDateTime, wake: &Notify, stop: &Stop, list_changed: impl Fn() -> bool, pulse: &Pulse) {
    let pause = pulse.every().map_or(LIST, |every| every.min(LIST));
    loop {
        pulse.beat();
        let left = Duration::try_from(until - UtcDateTime::now()).unwrap_or_default();
        if left.is_zero() || list_changed() {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(left.min(pause)) => {}
            () = wake.notified() => return,
            () = stop.wait() => return,
        }
    }
}

/// The command: watches until SIGTERM or SIGINT.
pub fn watch(options: &Watch, global: &Global, progress: Arc<dyn Progress>) -> Result<ExitStatus, CommandError> {
    let paths = |fqrn: &str| Paths::resolve(fqrn, &global.paths, &Environment::current()).map_err(CommandError::config);
    let config = Config::read(global.config.as_deref())?;
    let mut watcher = Watcher::new(options, &config, paths, progress)?;
    let address = match options.listen {
        Some(address) => {
            let runtime = watcher.workshop.runtime().clone();
            let stop = watcher.workshop.stop().clone();
            Some(runtime.block_on(server::start(watcher.site.clone(), address, stop))?)
        }
        None => None,
    };
    server::announce(&watcher.fqrn, address, global.json)?;
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    watcher.run();
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    Ok(ExitStatus::Success)
}
