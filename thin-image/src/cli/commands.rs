//! Runs a command: from arguments to values, from values to what is printed.

use std::path::Path;
use std::sync::Arc;

use anyhow::bail;
use image::podman::engine_name;
use image::reference::Reference;
use registry::{Client, ClientConfig, Credentials};
use serde_json::json;

use super::{Build, Command, Global, Graphdriver, Inspect, Load, Mirror, Place, Plugin, Push, Usage, print};
use crate::build::{Platforms, Thin, select, this_machine};
use crate::config::{Config, ConfigError, FILE};
use crate::engines::{Engine, docker_socket};
use crate::graphdriver::{self, driver::Driver};
use crate::inspect;
use crate::mirror::{self, snippets};
use crate::names::{Wanted, mountpoint, published_path};
use crate::output::{Output, archive};
use crate::plugin::{activate, serve};
use crate::podman_store::{Outcome, Store, Wish};
use crate::published::Repository;
use crate::push::{self, Pushed};
use crate::text::bytes;
use crate::volumes::{self, Volumes};

pub(super) async fn run(command: &Command, global: &Global) -> anyhow::Result<()> {
    match command {
        Command::Build(build) => run_build(build, global),
        Command::Push(push) => run_push(push, global).await,
        Command::Inspect(inspect) => run_inspect(inspect, global).await,
        Command::Load(load) => run_load(load, global).await,
        Command::Mirror(mirror) => run_mirror(mirror, global).await,
        Command::Graphdriver(arguments) => run_graphdriver(arguments, global).await,
        Command::Volumes(arguments) => run_volumes(&arguments.plugin, global).await,
    }
}

/// The image and the repository that is to have it.
fn locate(image: &str, place: &Place, global: &Global) -> anyhow::Result<(Repository, Wanted)> {
    let (found, wanted) = match published_path(Path::new(image), &global.cvmfs) {
        Some((repository, wanted)) => (Some(repository), wanted),
        None => (None, Wanted::parse(image)?),
    };
    let name = match (&place.repo, found) {
        (Some(given), Some(found)) if *given != found => {
            bail!(Usage(format!("{image} is in {found}, not in {given}; leave --repo out")))
        }
        (Some(given), _) => given.clone(),
        (None, Some(found)) => found,
        (None, None) => bail!(Usage(format!("which repository has {image}? Name it with --repo"))),
    };
    let at = place.mountpoint.clone().unwrap_or_else(|| mountpoint(&global.cvmfs, &name));
    // A relative path would lead elsewhere from a store or another process.
    Ok((Repository::new(&name, &std::path::absolute(at)?)?, wanted))
}

/// The name that engines get.
fn name_for(thin: &Thin, given: Option<&str>) -> anyhow::Result<String> {
    let Some(given) = given else { return Ok(engine_name(&thin.name)) };
    let reference = Reference::parse(given)?;
    if reference.digest().is_some() {
        bail!(Usage(format!("{given}: a thin image has a digest of its own; name a tag")));
    }
    Ok(engine_name(&reference.public_path()?))
}

fn run_build(build: &Build, global: &Global) -> anyhow::Result<()> {
    let (repository, wanted) = locate(&build.image, &build.place, global)?;
    let thin = Thin::make(&repository, &wanted, &build.shape.platform.0)?;
    let name = name_for(&thin, build.shape.name.as_deref())?;
    let output = Output::parse(&build.output);
    output.write(&thin, &name)?;
    if output == Output::Standard {
        return Ok(());
    }
    report(&thin, &name, None, global)
}

async fn run_push(push: &Push, global: &Global) -> anyhow::Result<()> {
    let target = Reference::parse(&push.target)?;
    if target.digest().is_some() {
        bail!(Usage(format!("{}: a thin image has a digest of its own; name a tag alone", push.target)));
    }
    let (repository, wanted) = locate(&push.image, &push.place, global)?;
    let thin = Thin::make(&repository, &wanted, &push.platform.0)?;
    let credentials = push::credentials(&target, push.user.as_deref(), |name| std::env::var(name).ok())?;
    let client = Client::new(ClientConfig { credentials, extra_ca_files: push.ca.clone(), ..ClientConfig::default() })?;
    let (_, outcome) = push::push(&client, &thin, &target).await?;
    report(&thin, &target.to_string(), Some(outcome == Pushed::Uploaded), global)
}

fn report(thin: &Thin, name: &str, pushed: Option<bool>, global: &Global) -> anyhow::Result<()> {
    let platforms: Vec<String> = thin
        .images
        .iter()
        .map(|image| image.platform.as_ref().map_or_else(|| "unknown".to_owned(), ToString::to_string))
        .collect();
    let top = thin.top();
    if global.json {
        let mut value = json!({
            "schema": 1, "name": name, "repository": thin.repository, "digest": top.digest, "media_type": top.media_type,
            "platforms": platforms, "size": thin.size(),
        });
        if let Some(pushed) = pushed {
            value["pushed"] = pushed.into();
        }
        return Ok(print(&serde_json::to_string_pretty(&value)?)?);
    }
    let outcome = match pushed {
        Some(true) => "  pushed",
        Some(false) => "  unchanged",
        None => "",
    };
    Ok(print(&format!("{name}  {}  {}  {}{outcome}", top.digest, platforms.join(","), bytes(thin.size() as u64)))?)
}

async fn run_inspect(arguments: &Inspect, global: &Global) -> anyhow::Result<()> {
    let what = &arguments.what;
    let path = Path::new(what);
    let is_published = arguments.place.repo.is_some() || published_path(path, &global.cvmfs).is_some();
    let report = if is_published {
        let (repository, wanted) = locate(what, &arguments.place, global)?;
        let thin = Thin::make(&repository, &wanted, &Platforms::All)?;
        inspect::of_thin(what, &thin, &global.cvmfs)?
    } else if path.exists() {
        inspect::of_path(path, &global.cvmfs)?
    } else {
        let credentials = Credentials::from_env()?;
        let config = ClientConfig { credentials, extra_ca_files: arguments.ca.clone(), ..ClientConfig::default() };
        inspect::of_registry(&Client::new(config)?, &Reference::parse(what)?, &global.cvmfs).await?
    };
    Ok(print(&if global.json { serde_json::to_string_pretty(&report)? } else { report.text() })?)
}

async fn run_load(load: &Load, global: &Global) -> anyhow::Result<()> {
    if let Some(directory) = &load.into.podman_store {
        return run_podman_store(load, directory, global);
    }
    if load.name.is_some() && load.images.len() > 1 {
        bail!(Usage("--as names one image".into()));
    }
    let engine = if load.into.docker {
        let host = std::env::var("DOCKER_HOST").ok();
        Engine::Docker { socket: docker_socket(load.socket.as_deref(), host.as_deref())? }
    } else if load.into.containerd {
        Engine::Containerd {
            address: load.address.clone(),
            namespace: load.namespace.clone(),
            snapshotter: load.snapshotter.clone(),
        }
    } else {
        Engine::Podman
    };
    let platforms = platforms(load);
    // All of them are made before one is loaded: a wrong name changes nothing.
    let mut made = Vec::new();
    for image in &load.images {
        let (repository, wanted) = locate(image, &load.place, global)?;
        let thin = Thin::make(&repository, &wanted, &platforms)?;
        let name = name_for(&thin, load.name.as_deref())?;
        made.push((thin, name));
    }
    for (thin, name) in made {
        engine.load(archive(&thin, &name)).await?;
        report(&thin, &name, None, global)?;
    }
    Ok(())
}

fn platforms(load: &Load) -> Platforms {
    load.platform.clone().map_or_else(|| Platforms::Prefer(this_machine()), Platforms::One)
}

fn run_podman_store(load: &Load, directory: &Path, global: &Global) -> anyhow::Result<()> {
    let (names, outcomes) = if load.remove {
        let mut names = Vec::new();
        for image in &load.images {
            let wanted = match published_path(Path::new(image), &global.cvmfs) {
                Some((_, wanted)) => wanted,
                None => Wanted::parse(image)?,
            };
            names.push(wanted.names.iter().map(engine_name).collect::<Vec<_>>());
        }
        let outcomes = Store::open(directory)?.remove(&names)?;
        (load.images.clone(), outcomes)
    } else {
        let mut wishes = Vec::new();
        for image in &load.images {
            let (repository, wanted) = locate(image, &load.place, global)?;
            let image = select(repository.find(&wanted)?, &platforms(load))?.swap_remove(0);
            let index = image.index.map(|digest| repository.document(digest)).transpose()?.flatten();
            wishes.push(Wish { image, repository, index, flat: load.flat });
        }
        let outcomes = Store::open(directory)?.add(&wishes)?;
        (wishes.iter().map(Wish::name).collect(), outcomes)
    };
    if global.json {
        let list: Vec<_> =
            names.iter().zip(&outcomes).map(|(name, outcome)| json!({ "name": name, "outcome": outcome })).collect();
        print(&serde_json::to_string_pretty(&json!({ "schema": 1, "store": directory, "images": list }))?)?;
    } else {
        for (name, outcome) in names.iter().zip(&outcomes) {
            let word = match outcome {
                Outcome::Added => "added",
                Outcome::Updated => "updated",
                Outcome::Unchanged => "unchanged",
                Outcome::Removed => "removed",
                Outcome::Absent => "absent",
            };
            print(&format!("{word:<9}  {name}"))?;
        }
    }
    match names.iter().zip(&outcomes).find(|(_, outcome)| **outcome == Outcome::Absent) {
        Some((name, _)) => bail!("{name} is not in {}", directory.display()),
        None => Ok(()),
    }
}

async fn run_mirror(arguments: &Mirror, global: &Global) -> anyhow::Result<()> {
    let mut config = Config::read(arguments.config.as_deref(), &global.cvmfs)?;
    config.resolve &= !arguments.no_tags;
    if let Some(listen) = arguments.listen {
        config.listen = listen;
    }
    if let Some(engine) = arguments.print {
        return Ok(print(&snippets::print(engine, config.listen, config.resolve, &arguments.registry))?);
    }
    config.repositories = chosen(config.repositories, &arguments.repo, arguments.config.as_deref(), global)?;
    mirror::serve(config).await
}

/// The repositories that the command line names, else those of the configuration; one at least.
fn chosen(
    configured: Vec<Repository>,
    named: &[String],
    config: Option<&Path>,
    global: &Global,
) -> anyhow::Result<Vec<Repository>> {
    let repository = |name: &String| Repository::new(name, &mountpoint(&global.cvmfs, name));
    let repositories =
        if named.is_empty() { configured } else { named.iter().map(repository).collect::<Result<_, _>>()? };
    if repositories.is_empty() {
        bail!(ConfigError::NoRepository(config.unwrap_or(Path::new(FILE)).to_owned()));
    }
    Ok(repositories)
}

/// The configuration of a plugin, with the repositories that it may use.
fn allowed(plugin: &Plugin, global: &Global) -> anyhow::Result<Config> {
    if !nix::unistd::geteuid().is_root() {
        bail!("plugins of Docker mount file systems and have to run as root");
    }
    let config = Config::read(plugin.config.as_deref(), &global.cvmfs)?;
    let repositories = chosen(config.repositories, &plugin.repo, plugin.config.as_deref(), global)?;
    Ok(Config { repositories, ..config })
}

async fn run_graphdriver(arguments: &Graphdriver, global: &Global) -> anyhow::Result<()> {
    let plugin = &arguments.plugin;
    let Config { repositories, prefer_flat, .. } = allowed(plugin, global)?;
    let driver = Driver::new(repositories.clone(), prefer_flat, &plugin.state)?;
    let mut router = graphdriver::router(Arc::new(driver));
    if !arguments.volumes {
        return serve(router.merge(activate(&[graphdriver::IMPLEMENTS])), &plugin.socket).await;
    }
    router = router.merge(volumes::router(Arc::new(Volumes::open(repositories, &plugin.client, &plugin.state)?)));
    serve(router.merge(activate(&[graphdriver::IMPLEMENTS, volumes::IMPLEMENTS])), &plugin.socket).await
}

async fn run_volumes(plugin: &Plugin, global: &Global) -> anyhow::Result<()> {
    let volumes = Volumes::open(allowed(plugin, global)?.repositories, &plugin.client, &plugin.state)?;
    let router = volumes::router(Arc::new(volumes));
    serve(router.merge(activate(&[volumes::IMPLEMENTS])), &plugin.socket).await
}
