//! A watching publisher, turned by hand and by a clock of the test.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser as _;
use publisher::cli::{Cli, Command, Paths};
use publisher::config::Config;
use publisher::error::CommandError;
use publisher::progress::Silent;
use publisher::report::Outcome;
use publisher::watch::Watcher;
use publisher::watch::hooks::{Format, parse};
use registry::testing::{Fault, TestRegistry};
use scenarios::image_builder::{Image, file};
use scenarios::repository::Site;
use time::UtcDateTime;

struct Watched {
    registry: TestRegistry,
    site: Site,
    list: PathBuf,
    _directory: tempfile::TempDir,
    now: UtcDateTime,
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
        };
        watched.wish(images);
        watched
    }

    fn wish(&self, images: &[&str]) {
        let lines: String = images.iter().map(|image| format!("- '{}/lab/{image}'\n", self.registry.url())).collect();
        fs::write(&self.list, format!("version: 1\ncvmfs_repo: {}\ninput:\n{lines}", self.site.target.fqrn)).unwrap();
    }

    fn push(&self, name: &str, tag: &str, content: &str) {
        Image::of(&[&[file("content", content)]]).push(&self.registry, &format!("lab/{name}"), tag);
    }

    fn watcher(&self) -> Watcher {
        let words = ["cvmfs-publisher", "watch", "--interval", "10m"].map(str::to_owned);
        let list = self.list.to_str().unwrap().to_owned();
        let Command::Watch(options) = Cli::try_parse_from(words.into_iter().chain([list])).unwrap().command else {
            panic!("not watch")
        };
        let paths = self.site.target.paths.clone();
        Watcher::new(&options, &Config::default(), |_| Ok::<Paths, CommandError>(paths.clone()), Arc::new(Silent))
            .unwrap()
    }

    /// Turns once, so many seconds later; what became of what was looked at, and in how many seconds it turns again.
    fn turn(&mut self, watcher: &mut Watcher, seconds: u64) -> (Vec<(String, Outcome)>, i64) {
        self.now += Duration::from_secs(seconds);
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
    assert!(watcher.site().status().is_well());
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
