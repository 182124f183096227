//! The configuration of registries, through the program: credentials by reference, mirrors, outcomes that are kept.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Parser as _;
use cvmfs::path::RepoPath;
use publisher::cli::Cli;
use publisher::error::{CommandError, ExitStatus};
use publisher::progress::Silent;
use publisher::report::Outcome;
use publisher::watch::status;
use registry::testing::{Fault, TestRegistry};
use scenarios::image_builder::{Image, file};
use scenarios::repository::{Site, public, wish};
use time::UtcDateTime;

struct World {
    registry: TestRegistry,
    site: Site,
    directory: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let (registry, site) = (TestRegistry::spawn(), Site::new());
        let directory = tempfile::tempdir().unwrap();
        Self { registry, site, directory }
    }

    fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::write(&path, content).unwrap();
        path
    }

    fn list(&self, images: &[&str]) -> PathBuf {
        let lines: String = images.iter().map(|image| format!("- '{}'\n", wish(&self.registry, image))).collect();
        self.write("list.yaml", &format!("version: 1\ncvmfs_repo: {}\ninput:\n{lines}", self.site.target.fqrn))
    }

    fn convert(&self, config: &Path, list: &Path) -> Result<ExitStatus, CommandError> {
        self.run(config, &["convert", list.to_str().unwrap(), "--keep-free", "0", "--platform", "linux/amd64"])
    }

    fn run(&self, config: &Path, command: &[&str]) -> Result<ExitStatus, CommandError> {
        let paths = &self.site.target.paths;
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let storage = text(paths.storage.directory().unwrap());
        let words = ["cvmfs-publisher".to_owned(), "--config".to_owned(), text(config)]
            .into_iter()
            .chain(["--storage".to_owned(), storage, "--keys".to_owned(), text(&paths.keys)])
            .chain(["--state".to_owned(), text(&paths.state)])
            .chain(command.iter().map(|word| (*word).to_owned()));
        let cli = Cli::try_parse_from(words).unwrap();
        publisher::command::run(&cli.command, &cli.global, Arc::new(Silent))
    }
}

#[test]
fn what_was_published_with_named_credentials_is_verified_with_them() {
    let world = World::new();
    Image::of(&[&[file("content", "private")]]).push(&world.registry, "lab/x", "1");
    world.registry.require_basic("robot", "hunter2");
    let (password, address) = (world.write("password", "hunter2\n"), world.registry.address());
    let config = world.write(
        "config.toml",
        &format!(
            "[credentials.robot]\nuser = \"robot\"\npassword_file = \"{}\"\nregistries = [\"{address}\"]\n\
             [registries.\"{address}\"]\nplain_http = true\n",
            password.display(),
        ),
    );
    let (image, fqrn) = (wish(&world.registry, "lab/x:1"), world.site.target.fqrn.as_str());
    let convert = ["convert-image", &image, fqrn, "--keep-free", "0", "--platform", "linux/amd64"];
    let named = ["--credentials", "robot"];
    assert_eq!(world.run(&config, &convert).unwrap(), ExitStatus::Failed, "they are not for every wish");
    assert_eq!(world.run(&config, &[&convert[..], &named].concat()).unwrap(), ExitStatus::Success);
    world.registry.forget_requests();
    let verify = ["verify", &image, fqrn];
    assert_eq!(world.run(&config, &verify).unwrap(), ExitStatus::Success, "compared with itself");
    assert_eq!(world.registry.count("GET", "/blobs/"), 0);
    assert_eq!(world.run(&config, &[&verify[..], &named].concat()).unwrap(), ExitStatus::Success);
    assert_eq!(world.registry.count("GET", "/blobs/"), 1, "compared with the layer");
    let nobody = world.run(&config, &[&verify[..], &["--credentials", "nobody"]].concat()).unwrap_err();
    assert_eq!(nobody.exit_status(), ExitStatus::Config, "{nobody}");

    // What is damaged is fetched again with them, too.
    let lock = world.site.target.lock().unwrap();
    let mut transaction = world.site.target.begin(&lock, UtcDateTime::now()).unwrap();
    let at = format!("/.metadata/{}/config.json", public(&world.registry, "lab/x:1"));
    transaction.remove(&RepoPath::parse(at).unwrap()).unwrap();
    world.site.target.commit(transaction).unwrap();
    drop(lock);
    assert_eq!(world.run(&config, &[&verify[..], &named].concat()).unwrap(), ExitStatus::Failed);
    let fix = ["--fix", "--keep-free", "0", "--platform", "linux/amd64"];
    assert_eq!(world.run(&config, &[&verify[..], &named, &fix].concat()).unwrap(), ExitStatus::Success);
}

#[test]
fn a_private_image_is_published_through_a_mirror_with_credentials_that_stand_elsewhere() {
    let (world, mirror) = (World::new(), TestRegistry::spawn());
    let image = Image::of(&[&[file("content", "private")]]);
    for server in [&world.registry, &mirror] {
        image.push(server, "lab/x", "1");
    }
    world.registry.require_basic("robot", "hunter2");
    mirror.fault(Fault::status(500).on("/blobs/").always());
    let password = world.write("password", "hunter2\n");
    let config = world.write(
        "config.toml",
        &format!(
            "[credentials.robot]\nuser = \"robot\"\npassword_file = \"{}\"\n\
             [registries.\"{}\"]\ncredentials = \"robot\"\nplain_http = true\nmirrors = [{{ url = \"{}\" }}]\n",
            password.display(),
            world.registry.address(),
            mirror.url()
        ),
    );
    let list = world.list(&["lab/x:1"]);
    assert_eq!(world.convert(&config, &list).unwrap(), ExitStatus::Success);
    assert!(mirror.count("HEAD", "/manifests/1") == 1 && mirror.count("GET", "/blobs/") > 0);
    assert_eq!(world.registry.count("HEAD", "/manifests/"), 0, "the mirror said what the tag stands for");
    assert!(world.registry.count("GET", "/blobs/") > 0, "and the registry gave what the mirror failed to give");
    assert!(mirror.requests().iter().all(|request| request.header("authorization").is_none()));

    // A mistake in the file stops everything before it begins.
    let config = world.write("config.toml", "[registries.\"quay.io\"]\ncredentials = \"nobody\"\n");
    let error = world.convert(&config, &list).unwrap_err();
    assert_eq!(error.exit_status(), ExitStatus::Config);
}

#[test]
fn convert_alone_keeps_outcomes_and_next_tries_for_status() {
    let world = World::new();
    Image::of(&[&[file("content", "x")]]).push(&world.registry, "lab/x", "1");
    let (config, list) = (world.write("config.toml", ""), world.list(&["lab/x:1", "lab/gone:1"]));
    for failures in 1..=2 {
        assert_eq!(world.convert(&config, &list).unwrap(), ExitStatus::Failed);
        let status = status::read(&world.site.target, UtcDateTime::now());
        let image = |name: &str| &status.images[&wish(&world.registry, name)];
        let (good, gone) = (image("lab/x:1"), image("lab/gone:1"));
        assert!(matches!(good.outcome, Outcome::Added | Outcome::Unchanged) && good.next_try.is_none());
        assert!(good.size.is_some() && good.path.is_some() && good.last_change.is_some());
        assert_eq!((gone.outcome, gone.failures), (Outcome::Failed, failures));
        assert!(gone.next_try.is_some() && gone.error.as_deref().unwrap().contains("not found"));
        assert!(status.to_text().contains("next try"), "{}", status.to_text());
    }
}
