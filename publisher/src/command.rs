//! The commands: arguments in, results on standard output, exit status out.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

use cvmfs::check::{CheckError, Identity, Options, Report, check};
use cvmfs::hash::{Algorithm, ContentHash};
use cvmfs::repository::Revision;
use cvmfs::scrub::scrub;
use cvmfs::store::{Store, names};
use cvmfs::trust::Anchor;
use time::UtcDateTime;

use crate::check_report;
use crate::cli::{self, Environment, Global, HashName, Paths, TagAction, print_result, said};
use crate::config::Config;
use crate::convert::{Plan, Request};
use crate::error::{CommandError, ExitStatus};
use crate::failure::Failure;
use crate::gc::{self, CollectOptions};
use crate::images;
use crate::ingest::ingest;
use crate::pass::{Thin, Workshop, asking};
use crate::podman::{InStore, PodmanState};
use crate::progress::{Event, Progress};
use crate::quota::Held;
use crate::record;
use crate::removal::{self, Wanted};
use crate::repair::fix;
use crate::replicate;
use crate::report::WishOutcome;
use crate::serve::serve;
use crate::startup::GivenList;
use crate::status;
use crate::tags::{self, Retagged};
use crate::target::{InitOptions, Target, sign_whitelist_file};
use crate::thin;
use crate::verify;
use crate::watch;
use crate::weight;
use crate::wishlist::{ImageOptions, Lint, SCHEMA, WishList, absent};

/// Runs one command.
pub fn run(command: &cli::Command, global: &Global, progress: Arc<dyn Progress>) -> Result<ExitStatus, CommandError> {
    let paths = |fqrn: &str| Paths::resolve(fqrn, &global.paths, &Environment::current()).map_err(CommandError::config);
    let open = |fqrn: &str| Target::open(fqrn, paths(fqrn)?).map_err(CommandError::repository);
    let config = || Config::read(global.config.as_deref());
    match command {
        cli::Command::Init(arguments) => {
            let algorithm = match arguments.hash {
                HashName::Sha1 => Algorithm::Sha1,
                HashName::Rmd160 => Algorithm::Rmd160,
                HashName::Shake128 => Algorithm::Shake128,
            };
            let garbage_collectable = !arguments.no_gc;
            let options = InitOptions { ttl: arguments.ttl, algorithm, garbage_collectable };
            let target = Target::init(&arguments.fqrn, paths(&arguments.fqrn)?, options)
                .map_err(|e| e.into_command_error().context(format!("cannot create repository {}", arguments.fqrn)))?;
            let key = target.paths.keys.join(format!("{}.pub", target.fqrn));
            print_result(&format!(
                "repository {} is in {}\nclients need {}\n",
                target.fqrn,
                target.paths.storage,
                key.display()
            ))?;
            Ok(ExitStatus::Success)
        }
        cli::Command::Convert(arguments) => {
            let list = WishList::read(&arguments.wishlist)?;
            for problem in &list.problems {
                progress.event(Event::Message { text: &problem.to_string() });
            }
            let list = if arguments.strict { list.strict()? } else { list };
            let target = open(&list.repository)?;
            let mut requests: Vec<Request> = list.wishes.iter().map(|wish| wish.request(wish.source.clone())).collect();
            let refused: Vec<WishOutcome> = list.failed_wishes().collect();
            let ignored = |name: &str| list.ignores_errors(name);
            let format = list.output_format.as_deref().filter(|_| !arguments.no_thin_images);
            let thin = format.map(|format| (format, list.user.as_str()));
            let in_store = match (arguments.podman_store, arguments.no_podman_store) {
                (true, _) => InStore::All,
                (_, true) => InStore::Follow,
                _ => list.podman.clone(),
            };
            if arguments.podman_store || arguments.no_podman_store {
                for products in requests.iter_mut().filter_map(|r| Arc::make_mut(&mut r.options).products.as_mut()) {
                    products.podman = arguments.podman_store && products.flat;
                }
            }
            convert(
                &target,
                &requests,
                refused,
                &Workshop::new(&arguments.conversion, &config()?, progress)?.telling(&arguments.notifications)?,
                arguments.dry_run,
                global.json,
                &ignored,
                thin,
                in_store,
            )
        }
        cli::Command::Watch(arguments) => watch::watch(arguments, global, progress),
        cli::Command::Status(arguments) => {
            let status = watch::status::read(&open(&arguments.fqrn)?, UtcDateTime::now());
            print_result(&if global.json { status.to_json() } else { status.to_text() })?;
            Ok(ExitStatus::Success)
        }
        cli::Command::ConvertImage(arguments) => {
            let target = open(&arguments.fqrn)?;
            let source = arguments.image.clone();
            let startup =
                arguments.startup.as_deref().map(GivenList::read).transpose().map_err(CommandError::config)?;
            let (name, startup) = (arguments.name.clone(), startup.map(Arc::new));
            let bundles = said(arguments.bundles, arguments.no_bundles);
            let credentials = arguments.credentials.clone();
            let options = ImageOptions { credentials, bundles, ..ImageOptions::default() };
            let request =
                Request { name, startup, options: options.into(), ..Request::new(source.to_string(), source) };
            convert(
                &target,
                &[request],
                Vec::new(),
                &Workshop::new(&arguments.conversion, &config()?, progress)?.telling(&arguments.notifications)?,
                arguments.dry_run,
                global.json,
                &|_| false,
                None,
                if arguments.podman_store { InStore::All } else { InStore::Follow },
            )
        }
        cli::Command::Images(arguments) => {
            let target = open(&arguments.fqrn)?;
            if arguments.earlier {
                let list = removal::earlier(&target).map_err(Failure::into_command_error)?;
                print_result(&match global.json {
                    true => removal::earlier_to_json(&list),
                    false => removal::earlier_to_text(&list),
                })?;
                return Ok(ExitStatus::Success);
            }
            let list = images::list(&target).map_err(Failure::into_command_error)?;
            print_result(&if global.json { images::to_json(&list) } else { images::to_text(&list) })?;
            Ok(ExitStatus::Success)
        }
        cli::Command::Record(arguments) => record::record(arguments, &open(&arguments.fqrn)?, global.json),
        cli::Command::RecordInside(arguments) => record::inside(arguments),
        cli::Command::Check(arguments) if arguments.fix => fix(arguments, &open(&arguments.fqrn)?, global.json),
        cli::Command::Check(arguments) => check_repository(arguments, &paths(&arguments.fqrn)?, global.json),
        cli::Command::Verify(arguments) => {
            verify::run(arguments, &|| open(&arguments.fqrn), &config()?, global.json, progress)
        }
        cli::Command::Catalogs(arguments) => {
            let target = open(&arguments.fqrn)?;
            let text = match &arguments.image {
                Some(image) => weight::image(&target, image).map(|images| match global.json {
                    true => weight::image_to_json(&images),
                    false => weight::image_to_text(&images),
                }),
                None => weight::list(&target).map(|images| match global.json {
                    true => weight::list_to_json(&images),
                    false => weight::list_to_text(&images),
                }),
            };
            print_result(&text.map_err(Failure::into_command_error)?)?;
            Ok(ExitStatus::Success)
        }
        cli::Command::Ingest(arguments) => {
            let target = open(&arguments.fqrn)?;
            let report = ingest(&target, arguments).map_err(|e| {
                let (fqrn, e) = (&arguments.fqrn, e.into_command_error());
                e.context(match &arguments.tar {
                    Some(tar) => format!("cannot ingest {} into {fqrn}", tar.display()),
                    None => format!("cannot delete from {fqrn}"),
                })
            })?;
            print_result(&if global.json { report.to_json() } else { report.to_text() })?;
            Ok(ExitStatus::Success)
        }
        cli::Command::Tag(arguments) => {
            let target = open(&arguments.fqrn)?;
            let changed = match &arguments.action {
                None | Some(TagAction::List) => {
                    let tags = images::tags(&target).map_err(Failure::into_command_error)?;
                    let json = global.json;
                    print_result(&if json { images::tags_to_json(&tags) } else { images::tags_to_text(&tags) })?;
                    return Ok(ExitStatus::Success);
                }
                Some(TagAction::Add { name, message, root_hash, revision }) => {
                    let revision = match (root_hash, revision) {
                        (Some(root), _) => Revision::Root(*root),
                        (None, Some(number)) => Revision::Number(*number),
                        (None, None) => Revision::Head,
                    };
                    tags::add(&target, name, message, revision)
                }
                Some(TagAction::Remove { names }) => tags::remove(&target, names),
            };
            print_retagged(changed, &arguments.fqrn, global.json)
        }
        cli::Command::Rollback(arguments) => {
            let target = open(&arguments.fqrn)?;
            print_retagged(tags::roll_back(&target, arguments.tag.as_deref()), &arguments.fqrn, global.json)
        }
        cli::Command::Remove(arguments) => {
            let removed = removal::remove(&open(&arguments.fqrn)?, &arguments.image, arguments.dry_run)
                .map_err(|e| e.into_command_error().context(format!("cannot remove {}", arguments.image)))?;
            print_result(&if global.json { removed.to_json() } else { removed.to_text("removed") })?;
            Ok(ExitStatus::Success)
        }
        cli::Command::Undelete(arguments) => {
            let (image, version) = (&arguments.image, arguments.version.as_deref());
            let restored = removal::undelete(&open(&arguments.fqrn)?, image, version, arguments.dry_run)
                .map_err(|e| e.into_command_error().context(format!("cannot undelete {image}")))?;
            print_result(&if global.json { restored.to_json() } else { restored.to_text("restored") })?;
            Ok(ExitStatus::Success)
        }
        cli::Command::Pin(arguments) => {
            let (pin, word) = match arguments.remove {
                true => (removal::Pin::Remove, "unpinned"),
                false => (removal::Pin::Set, "pinned"),
            };
            let pinned = removal::pin(&open(&arguments.fqrn)?, &arguments.image, pin)
                .map_err(|e| e.into_command_error().context(format!("cannot pin {}", arguments.image)))?;
            print_result(&if global.json { pinned.to_json() } else { pinned.to_text(word) })?;
            Ok(ExitStatus::Success)
        }
        cli::Command::Prune(arguments) => {
            let (fqrn, wanted) = wanted(&arguments.wishlists)?;
            if wanted.is_empty() {
                let what = "the lists ask for nothing, so every image would be removed; remove them one by one if that is meant";
                return Err(CommandError::config(std::io::Error::other(what)));
            }
            let removed = removal::prune(&open(&fqrn)?, &wanted, arguments.dry_run)
                .map_err(|e| e.into_command_error().context(format!("cannot prune {fqrn}")))?;
            print_result(&if global.json { removed.to_json() } else { removed.to_text("removed") })?;
            Ok(ExitStatus::Success)
        }
        cli::Command::Gc(arguments) => collect(arguments, &open(&arguments.fqrn)?, global.json),
        cli::Command::Replicate(arguments) => {
            let options = replicate::Options::from_arguments(arguments, paths)?;
            let report = replicate::replicate(&options, &*progress).map_err(|e| {
                let (url, directory) = (&arguments.url, arguments.directory.display());
                CommandError::from(e).context(format!("cannot replicate {url} into {directory}"))
            })?;
            print_result(&if global.json { report.to_json() } else { report.to_text() })?;
            Ok(ExitStatus::Success)
        }
        cli::Command::Sign(arguments) => {
            let paths = paths(&arguments.fqrn)?;
            let store = paths.storage.open().map_err(Failure::into_command_error)?;
            let (now, validity) = (UtcDateTime::now(), time::Duration::days(arguments.days.into()));
            let expires = sign_whitelist_file(&*store, &arguments.fqrn, &paths.keys, now, validity)
                .map_err(Failure::into_command_error)?;
            print_result(&format!("whitelist of {} is valid until {expires}\n", arguments.fqrn))?;
            Ok(ExitStatus::Success)
        }
        cli::Command::Serve(arguments) => {
            let paths = paths(&arguments.fqrn)?;
            let root = paths.storage.directory().ok_or_else(|| {
                CommandError::usage(std::io::Error::other(format!(
                    "{} is no directory; its own server serves it",
                    paths.storage
                )))
            })?;
            serve(&arguments.fqrn, root, arguments.listen, global.json)?;
            Ok(ExitStatus::Success)
        }
        cli::Command::Lint(arguments) => {
            let list = WishList::read(&arguments.wishlist);
            let absent = match &list {
                Ok(list) if arguments.online => asking(&config()?, |sources| absent(list, sources))?,
                _ => Vec::new(),
            };
            let mut lint = Lint::of(&arguments.wishlist, list)?;
            lint.absent = absent;
            print_result(&if global.json { lint.to_json() } else { lint.to_text() })?;
            Ok(lint.exit_status())
        }
        cli::Command::Schema => {
            print_result(SCHEMA)?;
            Ok(ExitStatus::Success)
        }
    }
}

/// What lists ask for together. A list that is not understood to the last entry would have things removed that somebody
/// wants.
fn wanted(lists: &[PathBuf]) -> Result<(String, Wanted), CommandError> {
    let mut wishes = Vec::new();
    let mut repository: Option<String> = None;
    for path in lists {
        let list = WishList::read(path)?.strict()?;
        if let Some(first) = repository.as_ref().filter(|first| **first != list.repository) {
            let what = format!("{}: the list is for {}, an earlier one for {first}", path.display(), list.repository);
            return Err(CommandError::config(std::io::Error::other(what)));
        }
        repository = Some(list.repository);
        wishes.extend(list.wishes);
    }
    let wanted = Wanted::of(&wishes).map_err(CommandError::config)?;
    Ok((repository.unwrap_or_default(), wanted))
}

/// Images, then objects. What the first has published is what the second works on.
fn collect(arguments: &cli::Gc, target: &Target, json: bool) -> Result<ExitStatus, CommandError> {
    let failed = |e: Failure| {
        let is_unmarked = matches!(e, Failure::Unmarked { .. });
        let e = e.into_command_error().context(format!("cannot collect {}", arguments.fqrn));
        match is_unmarked {
            true => e.hint("check --fix repairs what can be repaired; gc --objects --no-images collects objects only"),
            false => e,
        }
    };
    let (fqrn, lists) = wanted(&arguments.wishlist)?;
    if !arguments.wishlist.is_empty() && fqrn != arguments.fqrn {
        let what = format!("the wish lists are for {fqrn}, not for {}", arguments.fqrn);
        return Err(CommandError::config(std::io::Error::other(what)));
    }
    let images = match arguments.no_images {
        true => None,
        false => {
            let options = removal::Options {
                grace: arguments.grace,
                keep_versions: arguments.keep_versions,
                lists,
                usage: removal::Usage::read(&arguments.in_use).map_err(failed)?,
                dry_run: arguments.dry_run,
            };
            Some(removal::collect(target, &options).map_err(failed)?)
        }
    };
    if let Some(images) = images.as_ref().filter(|_| !json) {
        print_result(&images.to_text())?;
    }
    let objects = match arguments.objects {
        true => {
            let options = CollectOptions {
                keep: arguments.keep(UtcDateTime::now()),
                minimal_age: arguments.min_age,
                dry_run: arguments.dry_run,
            };
            Some(gc::collect(target, &options).map_err(failed)?)
        }
        false => None,
    };
    match (&images, &objects) {
        (_, Some(objects)) if json => print_result(&objects.to_json(images.as_ref()))?,
        (Some(images), None) if json => print_result(&images.to_json())?,
        (_, Some(objects)) => print_result(&objects.to_text())?,
        _ => {}
    }
    Ok(ExitStatus::Success)
}

fn print_retagged(changed: Result<Retagged, Failure>, fqrn: &str, json: bool) -> Result<ExitStatus, CommandError> {
    let changed =
        changed.map_err(|e| e.into_command_error().context(format!("cannot change the history of {fqrn}")))?;
    print_result(&if json { changed.to_json() } else { changed.to_text() })?;
    Ok(ExitStatus::Success)
}

#[expect(clippy::too_many_arguments, reason = "the shared tail of two commands")]
fn convert(
    target: &Target,
    requests: &[Request],
    refused: Vec<WishOutcome>,
    workshop: &Workshop,
    dry_run: bool,
    json: bool,
    ignored: &dyn Fn(&str) -> bool,
    thin: Thin<'_>,
    in_store: InStore,
) -> Result<ExitStatus, CommandError> {
    let mut converter = workshop.converter(target);
    converter.options.in_store = in_store;
    let mut plan = converter.plan(requests).map_err(Failure::into_command_error)?;
    plan.keep_quotas(&Held::default());
    if dry_run {
        let thin = thin.map_or_else(|| vec![None; plan.images.len()], |(format, _)| thin::targets(format, &plan));
        print_result(&if json { plan.to_json(&target.fqrn, &thin) } else { plan.to_text(&target.fqrn, &thin) })?;
        let nameless = thin.iter().flatten().any(Result::is_err);
        let any_failed = !refused.is_empty() || nameless || plan.images.iter().any(Result::is_err);
        return Ok(if any_failed { ExitStatus::Failed } else { ExitStatus::Success });
    }
    let mut report = workshop.execute(&converter, &plan, thin)?;
    report.wishes.extend(refused);
    report.wishes.sort_by_key(|w| w.line);
    let whole: Vec<String> = requests.iter().map(|request| request.text.clone()).collect();
    watch::note(&target.paths, &report, &plan, &whole, workshop.stop());
    for wish in &mut report.wishes {
        wish.ignored = wish.image.as_deref().is_some_and(ignored);
    }
    print_result(&if json { report.to_json() } else { report.to_text() })?;
    Ok(workshop.stop().asked().map_or_else(|| report.exit_status(), ExitStatus::from))
}

/// The name of an image's thin image, if it gets one, or why it can't have one.
type ThinName = Option<Result<image::reference::Reference, String>>;

impl Plan {
    /// The plan for people: one line an image, and one for its thin image.
    pub fn to_text(&self, fqrn: &str, thin: &[ThinName]) -> String {
        let mut text = format!("{fqrn}, revision {}:\n", self.revision);
        for (image, thin) in self.images.iter().zip(thin) {
            text.push_str(&match image {
                Ok(image) => format!(
                    "  {:<9} {}{}  {}  fetch {} of {} layers, {} bytes{}{}\n",
                    image.outcome.as_str(),
                    image.image,
                    image.wanted.named_platform().map(|platform| format!(" for {platform}")).unwrap_or_default(),
                    image.document.digest,
                    image.distinct_layers().filter(|l| l.state == crate::plan::LayerState::Missing).count(),
                    image.distinct_layers().count(),
                    image.missing_bytes(),
                    if image.needs_flat { ", make the flat" } else { "" },
                    image.podman.map_or("", PodmanState::as_planned),
                ),
                Err(outcome) => {
                    let platform = outcome.platform.as_ref().map(|p| format!(" for {p}")).unwrap_or_default();
                    let error = outcome.error.as_deref().unwrap_or_default();
                    format!("  failed    {}{platform}  {error}\n", outcome.wish)
                }
            });
            match thin {
                Some(Ok(name)) => text.push_str(&format!("            thin image {name}\n")),
                Some(Err(why)) => text.push_str(&format!("            no thin image: {why}\n")),
                None => {}
            }
        }
        text
    }

    /// The plan for programs.
    pub fn to_json(&self, fqrn: &str, thin: &[ThinName]) -> String {
        let images: Vec<serde_json::Value> = self
            .images
            .iter()
            .zip(thin)
            .map(|(image, thin)| match image {
                Ok(image) => serde_json::json!({
                    "wish": image.wanted.wish,
                    "line": image.wanted.line,
                    "image": image.image,
                    "name": image.name.as_str(),
                    "platform": image.platform.to_string(),
                    "place": image.wanted.place.as_ref().map(|place| place.as_str()),
                    "digest": image.document.digest.to_string(),
                    "config": image.manifest.config.to_string(),
                    "outcome": image.outcome.as_str(),
                    "flat": image.needs_flat,
                    "thin": thin.as_ref().map(|name| match name {
                        Ok(name) => serde_json::json!({ "image": name.to_string() }),
                        Err(why) => serde_json::json!({ "error": why }),
                    }),
                    "podman": image.podman,
                    "layers": image.distinct_layers().map(|l| serde_json::json!({
                        "digest": l.layer.descriptor.digest.to_string(),
                        "size": l.layer.descriptor.size,
                        "state": l.state,
                    })).collect::<Vec<_>>(),
                }),
                Err(outcome) => serde_json::json!({
                    "wish": outcome.wish,
                    "line": outcome.line,
                    "platform": outcome.platform,
                    "outcome": "failed",
                    "error": outcome.error,
                }),
            })
            .collect();
        let plan = serde_json::json!({
            "schema": 1, "repository": fqrn, "revision": self.revision, "images": images,
        });
        format!("{plan:#}\n")
    }
}

fn check_repository(arguments: &cli::Check, paths: &Paths, json: bool) -> Result<ExitStatus, CommandError> {
    let store = paths.storage.open().map_err(Failure::into_command_error)?;
    let scratch = tempfile::tempdir().map_err(CommandError::failed)?;
    let key = paths.keys.join(format!("{}.pub", arguments.fqrn));
    let pem =
        std::fs::read_to_string(&key).map_err(|e| Failure::io("read", &key)(e).into_command_error()).map_err(|e| {
            CommandError::repository(e).hint("check needs the public master key; give its place with --keys")
        })?;
    let master = cvmfs::signature::PublicKey::from_pem(&pem)
        .map_err(|source| Failure::Key { path: key.clone(), source }.into_command_error())?;
    let master_keys = [master];
    let anchor = Anchor { name: &arguments.fqrn, master_keys: &master_keys, blacklist: &[], now: UtcDateTime::now() };
    let mut options = Options::new(scratch.path());
    options.identity = Identity::Trusted(&anchor);
    options.reflog_checksum = reflog_checksum(&*store, paths);
    let examine = || {
        let mut report = check(&*store, &options)?;
        if arguments.data {
            let threads = std::thread::available_parallelism().map_or(2, NonZeroUsize::get);
            report.merge(scrub(&*store, threads)?);
        }
        Ok(report)
    };
    let unreadable = |e: CheckError| CommandError::repository(e).context(format!("cannot check {}", arguments.fqrn));
    let examined = examine();
    note_check(&*store, paths, examined.as_ref().is_ok_and(Report::is_sound));
    let report = examined.map_err(unreadable)?;
    print_result(&if json {
        check_report::to_json(&report, &arguments.fqrn)
    } else {
        check_report::to_text(&report, &arguments.fqrn)
    })?;
    Ok(if report.is_sound() { ExitStatus::Success } else { ExitStatus::Failed })
}

/// Says in a stratum 0 of the reference tools when it was checked, and how that ended, as they do.
pub(crate) fn note_check(store: &dyn Store, paths: &Paths, is_sound: bool) {
    if paths.storage.stratum0().is_none() {
        return;
    }
    let (date, word) = (status::date(UtcDateTime::now()), if is_sound { "succeeded" } else { "failed" });
    // Whoever may read may check.
    if let Err(error) = status::note(store, &[("last_check", &date), ("check_status", word)]) {
        tracing::warn!(%error, "the check is not noted in {}", status::STATUS);
    }
}

/// The hash of the reflog kept in our state, while a publish stands between its last two steps and for copies: it
/// counts only if the reflog is really the one it names. A copy has two, as its reflog is replaced after the hash.
pub(crate) fn reflog_checksum(store: &dyn Store, paths: &Paths) -> Option<ContentHash> {
    let text = std::fs::read_to_string(paths.reflog_checksum()).ok()?;
    let reflog = store.read(names::REFLOG).ok()??;
    let mut kept = text.lines().filter_map(|line| line.trim().parse::<ContentHash>().ok());
    kept.find(|kept| ContentHash::of(kept.algorithm, &reflog) == *kept)
}
