//! Tells others what happens: lines in a file and requests to an address, in the form that the existing tool has.
//!
//! ```text
//! events of a pass (progress.rs) ─▶ progress.rs ─┐
//! a revision was published ─▶ stratum1.rs ───────┼─▶ Notifier ─┬─▶ file: one line each, appended
//! start and end ─────────────────────────────────┘             └─▶ hook.rs: a queue and a thread
//! ```
//! An object has string values only, with sorted keys: `action`, `time` (UTC), often `id` (pairs start and end),
//! `time_elapsed_s`, `status`, `error`, `size_bytes`. What an action's other keys mean is in `doc/WATCHING.md`.
//!
//! Invariants
//! - Publishing waits for nobody: a full queue drops, a file that can't be written is warned of.
//! - Everything that could not be told is counted ([`Notifier::undelivered`]).
//! - The end is waited for, but not for ever.

mod hook;
mod progress;
mod stratum1;

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use time::UtcDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

use self::hook::Hook;
pub use self::progress::Telling;
use self::stratum1::Strata;
use crate::cli::Notifications;
use crate::error::CommandError;
use crate::report::{Report, WishOutcome};
use crate::stop::Stop;
use crate::target::Target;

/// As the existing tool writes times, which are those of UTC here.
const TIME: &[BorrowedFormatItem<'_>] = format_description!(
    "[day padding:space] [month repr:short] [year] - [hour]:[minute]:[second].[subsecond digits:3]"
);
/// Environment variable with the token for the address.
const TOKEN: &str = "CVMFS_PUBLISHER_NOTIFY_TOKEN";

/// Keys and values of a notification, besides `action` and `time`.
type Fields<'a> = &'a [(&'static str, &'a str)];

/// Where notifications go.
#[derive(Debug)]
struct Channels {
    file: Option<PathBuf>,
    hook: Option<Hook>,
    undelivered: Arc<AtomicU64>,
    /// Whether the file could not be written the last time.
    is_broken: Mutex<bool>,
}

impl Channels {
    fn tell(&self, action: &str, fields: Fields<'_>) {
        let now = UtcDateTime::now().format(TIME).unwrap_or_default();
        let mut object: BTreeMap<&str, &str> = fields.iter().copied().collect();
        object.insert("action", action);
        object.insert("time", &now);
        let mut line = serde_json::to_string(&object).expect("strings");
        if let Some(hook) = &self.hook
            && !hook.send(line.clone())
        {
            self.undelivered.fetch_add(1, Ordering::Relaxed);
        }
        let Some(file) = &self.file else { return };
        line.push('\n');
        // Opened for each line, so that it can be rotated; one write, so that several publishers can share it.
        let mut options = OpenOptions::new();
        let written = options.create(true).append(true).mode(0o660).open(file);
        let written = written.and_then(|mut file| file.write_all(line.as_bytes()));
        let was_broken = std::mem::replace(&mut *self.is_broken.lock(), written.is_err());
        if let Err(error) = written {
            self.undelivered.fetch_add(1, Ordering::Relaxed);
            if !was_broken {
                tracing::warn!(file = %file.display(), %error, "notifications can't be written");
            }
        }
    }
}

/// Tells others. Dropped, it tells the end and waits for what is under way, for a bounded time.
#[derive(Debug)]
pub struct Notifier {
    channels: Arc<Channels>,
    strata: Option<Strata>,
    begun: Instant,
}

impl Notifier {
    /// As the command line says; none if nobody is to be told.
    pub fn start(options: &Notifications, stop: &Stop) -> Result<Option<Notifier>, CommandError> {
        if options.is_empty() {
            return Ok(None);
        }
        let undelivered = Arc::new(AtomicU64::new(0));
        let hook = match &options.notify_url {
            Some(url) => {
                let token = match &options.notify_token_file {
                    Some(file) => Some(std::fs::read_to_string(file).map_err(|error| {
                        CommandError::config(error).context(format!("cannot read the token in {}", file.display()))
                    })?),
                    None => std::env::var(TOKEN).ok(),
                };
                let token = token.as_deref().map(str::trim).filter(|token| !token.is_empty());
                Some(Hook::start(url.clone(), token, undelivered.clone())?)
            }
            None => None,
        };
        let is_broken = Mutex::new(false);
        let channels = Arc::new(Channels { file: options.file.clone(), hook, undelivered, is_broken });
        let strata = match options.stratum1.is_empty() {
            true => None,
            false => Some(Strata::start(&options.stratum1, options.stratum1_timeout, channels.clone(), stop.clone())),
        };
        channels.tell("start_ducc", &[("pid", &std::process::id().to_string())]);
        Ok(Some(Notifier { channels, strata, begun: Instant::now() }))
    }

    /// How many notifications reached nobody.
    pub fn undelivered(&self) -> u64 {
        self.channels.undelivered.load(Ordering::Relaxed)
    }

    /// A wish has failed before anything was begun.
    pub fn refused(&self, wish: &WishOutcome) {
        let (image, outcome) = (wish.image.as_deref().unwrap_or(&wish.wish), wish.outcome.as_str());
        let error = wish.error.as_deref().unwrap_or_default();
        let fields = [("image", image), ("outcome", outcome), ("status", "error"), ("error", error)];
        self.channels.tell("end_image_conversion", &fields);
    }

    /// A pass has ended: whoever replicates the repository is asked whether it has what was published.
    pub fn published(&self, target: &Target, report: &Report) {
        if let (Some(strata), Some(revision)) = (&self.strata, report.revision)
            && report.revision_before != report.revision
        {
            strata.expect(target, revision);
        }
    }
}

impl Drop for Notifier {
    fn drop(&mut self) {
        // Those who ask are done before the last word.
        drop(self.strata.take());
        let pid = std::process::id().to_string();
        self.channels.tell("end_ducc", &[("pid", &pid), ("time_elapsed_s", &seconds(self.begun.elapsed()))]);
        if let Some(hook) = &self.channels.hook {
            hook.finish();
        }
        match self.undelivered() {
            0 => {}
            count => tracing::warn!(count, "notifications could not be delivered"),
        }
    }
}

fn seconds(elapsed: Duration) -> String {
    format!("{:.3}", elapsed.as_secs_f64())
}

/// Pairs the start of something with its end: a random UUID (RFC 9562, version 4).
fn unique() -> String {
    let bits = fastrand::u128(..) & !(0xf << 76) & !(0x3 << 62) | 0x4 << 76 | 0x2 << 62;
    let hex = format!("{bits:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

#[cfg(test)]
mod tests;
