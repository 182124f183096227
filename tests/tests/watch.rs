//! A watching publisher, turned by hand and by a clock of the test.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use clap::Parser as _;
use publisher::cli::{Cli, Command, Paths};
use publisher::config::Config;
use publisher::error::CommandError;
use publisher::progress::Silent;
use publisher::report::Outcome;
use publisher::target::Clock;
use publisher::watch::Watcher;
use publisher::watch::hooks::{Format, parse};
use registry::testing::{Fault, TestRegistry};
use scenarios::image_builder::{Image, Pushed, file};
use scenarios::repository::{Site, layer_path};
use time::UtcDateTime;

struct Watched {
    registry: TestRegistry,
    site: Site,
    list: PathBuf,
    _directory: tempfile::TempDir,
    now: UtcDateTime,
    clock: Arc<AtomicI64>,
}

impl Watched {
    fn new(images: &[&str]) -> Self {
        let (registry, site) = (TestRegistry::spawn(), Site::new());
        let directory = tempfile::tempdir().unwrap();
        let list = directory.path().join("list.yaml");
        let watched = Self {
            registry,
            site,
            list,
            _directory: directory,
            now: UtcDateTime::now().replace_nanosecond(0).unwrap(),
            clock: Arc::default(),
        };
        watched.wish(images);
        watched
    }

    fn wish(&self, images: &[&str]) {
        let lines: String = images.iter().map(|image| format!("- '{}/lab/{image}'\n", self.registry.url())).collect();
        fs::write(&self.list, format!("version: 1\ncvmfs_repo: {}\ninput:\n{lines}", self.site.target.fqrn)).unwrap();
    }

    fn push(&self, name: &str, tag: &str, content: &str) -> Pushed {
        Image::of(&[&[file("content", content)]]).push(&self.registry, &format!("lab/{name}"), tag)
    }

    fn watcher(&self) -> Watcher {
        self.watcher_with(&[])
    }

    fn watcher_with(&self, options: &[&str]) -> Watcher {
        let words = ["cvmfs-publisher", "watch", "--interval", "10m", self.list.to_str().unwrap()];
        let Command::Watch(options) = Cli::try_parse_from(words.iter().chain(options)).unwrap().command else {
            panic!("not watch")
        };
        let paths = self.site.target.paths.clone();
        let (config, path) = (Config::default(), |_: &str| Ok::<Paths, CommandError>(paths.clone()));
        let watcher = Watcher::new(&options, &config, path, Arc::new(Silent));
        watcher.unwrap().with_clock(Clock::Set(self.clock.clone()))
    }

    /// Turns once, so many seconds later; what became of what was looked at, and in how many seconds it turns again.
    fn turn(&mut self, watcher: &mut Watcher, seconds: u64) -> (Vec<(String, Outcome)>, i64) {
        self.now += Duration::from_secs(seconds);
        self.clock.store(self.now.unix_timestamp(), Ordering::Relaxed);
        let turn = watcher.turn(self.now);
        let wishes = turn.report.map(|report| report.wishes).unwrap_or_default();
        let name = |name: Option<String>| name.unwrap_or_default().rsplit('/').next().unwrap_or_default().to_owned();
        let outcomes = wishes.into_iter().map(|wish| (name(wish.image), wish.outcome)).collect();
        (outcomes, (turn.next - self.now).whole_seconds())
    }

    fn revision(&self) -> u64 {
        self.site.target.repository().unwrap().manifest().revision
    }

    fn tell(&self, watcher: &Watcher, name: &str, tag: &str) {
        let body = format!(r#"{{"repository":"lab/{name}","updated_tags":["{tag}"]}}"#);
        watcher.site().queue().put(parse(Format::Quay, body.as_bytes()).unwrap()).unwrap();
    }
}

fn outcomes(list: &[(&str, Outcome)]) -> Vec<(String, Outcome)> {
    list.iter().map(|(name, outcome)| ((*name).to_owned(), *outcome)).collect()
}

#[test]
fn looks_on_the_interval_and_publishes_only_what_changed() {
    let mut watched = Watched::new(&["app:1", "tool:*"]);
    watched.push("app", "1", "one");
    watched.push("tool", "a", "tool");
    let mut watcher = watched.watcher();
    let (first, next) = watched.turn(&mut watcher, 0);
    assert_eq!(first, outcomes(&[("app:1", Outcome::Added), ("tool:a", Outcome::Added)]));
    assert_eq!(next, 600);
    let revision = watched.revision();
    assert_eq!(watched.turn(&mut watcher, 300).0, []);
    let (second, _) = watched.turn(&mut watcher, 300);
    assert_eq!(second, outcomes(&[("app:1", Outcome::Unchanged), ("tool:a", Outcome::Unchanged)]));
    assert_eq!(watched.revision(), revision);
    watched.push("app", "1", "two");
    watched.push("tool", "b", "another");
    let (third, _) = watched.turn(&mut watcher, 600);
    assert_eq!(
        third,
        outcomes(&[("app:1", Outcome::Updated), ("tool:a", Outcome::Unchanged), ("tool:b", Outcome::Added)])
    );
    watched.site.assert_sound();
}

#[test]
fn an_event_is_looked_at_at_once_and_survives_a_restart() {
    let mut watched = Watched::new(&["app:1", "tool:*", "third:1"]);
    for (name, tag) in [("app", "1"), ("tool", "a"), ("third", "1")] {
        watched.push(name, tag, name);
    }
    let mut watcher = watched.watcher();
    watched.turn(&mut watcher, 0);
    watched.push("app", "1", "new");
    watched.push("tool", "b", "new");
    watched.tell(&watcher, "app", "1");
    watched.tell(&watcher, "tool", "b");
    watched.tell(&watcher, "tool", "b");
    watched.tell(&watcher, "nobody", "1");
    drop(watcher);
    let mut watcher = watched.watcher();
    assert_eq!(watcher.site().queue().len(), 3);
    watched.registry.forget_requests();
    let (told, next) = watched.turn(&mut watcher, 1);
    assert_eq!(told, outcomes(&[("app:1", Outcome::Updated), ("tool:b", Outcome::Added)]));
    assert_eq!(next, 599);
    assert_eq!(watched.registry.count("HEAD", "third"), 0, "nobody told of it");
    assert!(watcher.site().queue().is_empty());
    assert_eq!(watched.turn(&mut watcher, 1).0, []);
}

#[test]
fn an_image_that_fails_rests_and_holds_up_nobody() {
    let mut watched = Watched::new(&["app:1", "missing:1"]);
    watched.push("app", "1", "one");
    let mut watcher = watched.watcher();
    let (first, next) = watched.turn(&mut watcher, 0);
    assert_eq!(first, outcomes(&[("app:1", Outcome::Added), ("missing:1", Outcome::Failed)]));
    assert_eq!(next, 30);
    assert_eq!(watched.turn(&mut watcher, 29).0, []);
    assert_eq!(watched.turn(&mut watcher, 1), (outcomes(&[("missing:1", Outcome::Failed)]), 60));
    // Also after a restart.
    let mut watcher = watched.watcher();
    assert_eq!(watched.turn(&mut watcher, 59).0, []);
    watched.push("missing", "1", "there now");
    assert_eq!(watched.turn(&mut watcher, 1).0, outcomes(&[("missing:1", Outcome::Added)]));
    let status = watcher.site().status();
    assert!(status.images.values().all(|image| image.failures == 0 && image.error.is_none()));
    // What was there and is not any more has failed; what is published stays.
    watched.registry.remove_tag("lab/app", "1");
    let (gone, _) = watched.turn(&mut watcher, 600);
    assert_eq!(gone, outcomes(&[("app:1", Outcome::Failed), ("missing:1", Outcome::Unchanged)]));
    let app = format!("{}/lab/app:1", watched.registry.url());
    let status = watcher.site().status();
    assert!(status.images[&app].last_success.is_some() && status.images[&app].digest.is_some());
    assert!(!watched.site.tree(".flat").is_empty());
    watched.site.assert_sound();
}

#[test]
fn the_list_may_change_and_be_wrong_meanwhile() {
    let mut watched = Watched::new(&["app:1"]);
    watched.push("app", "1", "one");
    watched.push("other", "1", "other");
    let mut watcher = watched.watcher();
    watched.turn(&mut watcher, 0);
    fs::write(&watched.list, "{").unwrap();
    watched.turn(&mut watcher, 1);
    assert!(watcher.site().status().list.error.is_some());
    watched.wish(&["app:1", "other:1"]);
    let (more, _) = watched.turn(&mut watcher, 1);
    assert_eq!(more, outcomes(&[("other:1", Outcome::Added)]));
    watched.wish(&["other:1"]);
    watched.turn(&mut watcher, 600);
    assert_eq!(watcher.site().status().images.len(), 1);
    assert_eq!(watcher.site().status().list.error, None);
}

#[test]
fn the_whitelist_is_renewed_when_ten_days_are_left_and_otherwise_complained_about() {
    let mut watched = Watched::new(&["app:1"]);
    watched.push("app", "1", "one");
    let mut watcher = watched.watcher();
    let days = |count: u64| count * 24 * 3600;
    let expires = |watcher: &Watcher| watcher.site().status().whitelist_expires.unwrap().0;
    watched.turn(&mut watcher, 0);
    let at_first = expires(&watcher);
    watched.turn(&mut watcher, days(19));
    assert_eq!(expires(&watcher), at_first);
    watched.turn(&mut watcher, days(2));
    let renewed = expires(&watcher);
    assert!(renewed > at_first + Duration::from_secs(days(19)), "{renewed}");
    assert_eq!(watcher.site().status().troubles().count(), 0);
    // Without the key it is said; the rest goes on.
    let key = watched.site.target.paths.keys.join(format!("{}.masterkey", watched.site.target.fqrn));
    fs::remove_file(&key).unwrap();
    let (looked, _) = watched.turn(&mut watcher, days(21));
    assert_eq!(looked.len(), 1);
    let status = watcher.site().status();
    assert!(status.whitelist_warning.unwrap().contains("no master key here"));
    assert_eq!(expires(&watcher), renewed);
}

#[test]
fn what_is_wished_no_more_goes_after_its_grace() {
    const DAY: u64 = 24 * 3600;
    let mut watched = Watched::new(&["app:1", "tool:1"]);
    let (app, tool) = (watched.push("app", "1", "one"), watched.push("tool", "1", "two"));
    let mut watcher = watched.watcher_with(&["--prune", "--grace", "10d", "--collect", "1d", "--objects"]);
    let has = |watched: &Watched, image: &Pushed| watched.site.published(&layer_path(image.layers[0])).is_some();
    let collection = |watcher: &Watcher| watcher.site().status().upkeep.collection.unwrap();
    watched.turn(&mut watcher, 0);
    assert_eq!((collection(&watcher).condemned, collection(&watcher).swept), (0, 0));

    // An entry that is not understood may be the image's other name.
    watched.wish(&["app:1", "Not a name"]);
    watched.turn(&mut watcher, 1);
    let public = |watched: &Watched| {
        let names = scenarios::tree::names(&watched.site.tree(""));
        names.iter().any(|name| name.ends_with("tool:1") && !name.starts_with('.'))
    };
    assert!(public(&watched));

    watched.wish(&["app:1"]);
    watched.turn(&mut watcher, 1);
    assert!(!public(&watched));
    assert!(!watcher.site().status().images.keys().any(|name| name.contains("tool")));
    watched.turn(&mut watcher, DAY);
    assert_eq!((collection(&watcher).condemned, collection(&watcher).swept), (2, 0));
    drop(watcher);
    let mut watcher = watched.watcher_with(&["--prune", "--grace", "10d", "--collect", "1d", "--objects"]);
    watched.turn(&mut watcher, DAY / 2);
    assert!(watcher.site().status().upkeep.collection.is_none(), "half a day after the last one");
    watched.turn(&mut watcher, 9 * DAY);
    assert!(has(&watched, &tool), "nine and a half days after it was condemned");
    let (_, next) = watched.turn(&mut watcher, DAY);
    assert_eq!((collection(&watcher).condemned, collection(&watcher).swept), (0, 2));
    assert!(!has(&watched, &tool) && has(&watched, &app));
    assert_eq!(next, 600);
    assert_eq!(watcher.site().status().troubles().collect::<Vec<_>>(), Vec::<&str>::new());
    watched.site.assert_sound();
}

#[test]
fn the_page_is_published_when_something_else_was_but_not_too_often() {
    let mut watched = Watched::new(&["app:*"]);
    watched.push("app", "1", "one");
    let mut watcher = watched.watcher_with(&["--publish-page", "1h"]);
    let page = |watched: &Watched| {
        let tree = watched.site.tree("");
        let Some(scenarios::tree::What::File(bytes)) = tree.get(&b".status.html"[..]).map(|node| node.what.clone())
        else {
            panic!("no page among {:?}", scenarios::tree::names(&tree));
        };
        String::from_utf8(bytes).unwrap()
    };
    watched.turn(&mut watcher, 0);
    assert!(page(&watched).contains("lab/app:1"));
    let revision = watched.revision();
    watched.turn(&mut watcher, 3600);
    assert_eq!(watched.revision(), revision, "nothing was published but the page");
    watched.push("app", "2", "two");
    drop(watcher);
    let mut watcher = watched.watcher_with(&["--publish-page", "1h"]);
    watched.turn(&mut watcher, 600);
    watched.push("app", "3", "three");
    watched.turn(&mut watcher, 600);
    assert!(page(&watched).contains("lab/app:2") && !page(&watched).contains("lab/app:3"));
    watched.turn(&mut watcher, 3600);
    assert!(page(&watched).contains("lab/app:3"));
    watched.site.assert_sound();
}

#[test]
fn how_often_registries_are_asked_stands_in_the_status_and_in_the_metrics() {
    let mut watched = Watched::new(&["app:1"]);
    watched.push("app", "1", "one");
    watched.registry.fault(Fault::retry_after(429, "3600").on("/manifests/").method("HEAD"));
    let mut watcher = watched.watcher();
    assert_eq!(watched.turn(&mut watcher, 0).0, outcomes(&[("app:1", Outcome::Failed)]));
    let status = watcher.site().status();
    let [seen] = &status.registries[..] else { panic!("{:?}", status.registries) };
    assert_eq!((seen.registry.as_str(), seen.requests, seen.throttled), (watched.registry.url(), 1, 1));
    assert!(seen.paused.is_some_and(|seconds| seconds > 3000), "{seen:?}");
    assert!(status.to_text().contains("asked for a pause"), "{}", status.to_text());
    let metrics = watcher.site().metrics().text(0);
    let line = format!("cvmfs_publisher_registry_requests{{registry=\"{}\"}} 1", watched.registry.url());
    assert!(metrics.contains(&line) && metrics.contains("cvmfs_publisher_registry_paused_seconds"), "{metrics}");
}
