//! containerd: is it there, does it know us, does it use us, and are there images that it can't start through us?

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use containerd_client::services::v1::Plugin;
use image::digest::{ChainId, Digest, ManifestDigest};
use image::manifest::{Config as ImageConfig, Document, MAX_DOCUMENT};
use image::platform::{Platform, choose};
use toml::Table;

use super::Check;
use super::settings::{self, Known};
use crate::config::Config;
use crate::containerd::Engine;
use crate::install::Version;

/// Images that are looked at.
const IMAGES: usize = 500;
/// Images that are named.
const NAMED: usize = 5;
/// How long containerd may take to print its configuration.
const PATIENCE: Duration = Duration::from_secs(20);

/// Looks at all of it.
pub async fn examine(config: &Config) -> Vec<Check> {
    let socket = config.containerd.address.display().to_string();
    let facts = match Facts::gather(config).await {
        Ok(facts) => facts,
        Err(error) => {
            let advice = "start containerd, run doctor as root, or name its socket as address in the section [containerd] of our configuration";
            return vec![Check::fail("containerd", error.to_string(), advice)];
        }
    };
    let mut checks = vec![Check::ok("containerd", format!("{} on {socket}", facts.version))];
    let registered = plugin(&facts, config, &mut checks);
    let mut default = false;
    match &facts.dump {
        Ok(dump) => {
            let known = Known {
                version: facts.known_version(),
                snapshotter: config.containerd.snapshotter.clone(),
                cri: facts.cri(),
                index: facts.index,
            };
            checks.extend(settings::judge(dump, &known));
            default = known.cri && settings::is_default(dump, &known.snapshotter);
        }
        Err(error) => checks.push(Check::warn(
            "configuration of containerd",
            format!("is not known: {error:#}"),
            "compare it with what `cvmfs-snapshotter install --containerd --dry-run` would do",
        )),
    }
    if registered {
        match images(config, default).await {
            Ok(found) => checks.extend(found),
            Err(error) => checks.push(Check::warn("images", format!("{error:#}"), "see containerd's log")),
        }
    }
    checks
}

struct Facts {
    version: String,
    plugins: Vec<Plugin>,
    dump: anyhow::Result<Table>,
    index: bool,
}

impl Facts {
    async fn gather(config: &Config) -> anyhow::Result<Self> {
        let engine = Engine::connect(&config.containerd.address, "default").await?;
        let mut index = true;
        for repository in config.repositories() {
            let look = |mountpoint: &Path| Ok(Some(mountpoint.join(".index/chain-id").is_dir()));
            // One that is down says nothing of its index.
            index &= !matches!(repository.look(look).await, Ok(Some(false)));
        }
        Ok(Self {
            version: engine.version().await?,
            plugins: engine.plugins().await?,
            dump: dump(&config.containerd.address).await,
            index,
        })
    }

    /// Its version; one that can't be read is taken for a new one.
    fn known_version(&self) -> Version {
        Version::find(&self.version).unwrap_or(Version(2, 1))
    }

    fn running(&self, kind: &str, id: &str) -> bool {
        self.plugins.iter().any(|plugin| plugin.r#type == kind && plugin.id == id && plugin.init_err.is_none())
    }

    fn cri(&self) -> bool {
        self.running("io.containerd.grpc.v1", "cri")
    }
}

/// Is our plugin there, and with the right socket?
fn plugin(facts: &Facts, config: &Config, checks: &mut Vec<Check>) -> bool {
    const ADVICE: &str = "run `cvmfs-snapshotter install --containerd` and restart containerd";
    let name = &config.containerd.snapshotter;
    let found =
        facts.plugins.iter().find(|plugin| plugin.r#type == "io.containerd.snapshotter.v1" && plugin.id == *name);
    let Some(plugin) = found else {
        checks.push(Check::fail("plugin", format!("containerd has no snapshotter {name}"), ADVICE));
        return false;
    };
    if let Some(error) = &plugin.init_err {
        checks.push(Check::fail("plugin", format!("containerd could not start {name}: {}", error.message), ADVICE));
        return false;
    }
    let proxy = facts.dump.as_ref().ok().and_then(|dump| dump.get("proxy_plugins")?.get(name)?.as_table());
    let export = |key: &str| {
        let told = plugin.exports.get(key).map(String::as_str);
        told.or_else(|| proxy?.get("exports")?.get(key)?.as_str())
    };
    let address = plugin.exports.get("address").map(String::as_str).or_else(|| proxy?.get("address")?.as_str());
    let ours = config.address.display().to_string();
    checks.push(match address {
        Some(address) if address != ours => Check::fail(
            "plugin",
            format!("containerd asks {address}, but the daemon is on {ours}"),
            "give both the same address",
        ),
        _ => Check::ok("plugin", format!("containerd knows {name}")),
    });
    if facts.cri() {
        checks.push(settings::image_filesystem(
            facts.known_version(),
            export("root"),
            &config.root.display().to_string(),
        ));
    }
    true
}

/// The configuration that a running containerd was started with, with all files that it imports.
async fn dump(socket: &Path) -> anyhow::Result<Table> {
    let stream = tokio::net::UnixStream::connect(socket).await?;
    let pid = stream.peer_cred()?.pid().context("the kernel does not tell who is behind the socket")?;
    let process = PathBuf::from(format!("/proc/{pid}"));
    let program = std::fs::read_link(process.join("exe"))?;
    let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    // Its own program prints it; anything else would not understand us.
    if !name.starts_with("containerd") || name.starts_with("containerd-shim") {
        bail!("{} is behind its socket", program.display());
    }
    let words = std::fs::read(process.join("cmdline"))?;
    let words: Vec<String> =
        words.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
    let mut command = tokio::process::Command::new(process.join("exe"));
    if let Some(file) = config_file(&words) {
        command.arg("--config").arg(process.join("cwd").join(file));
    }
    command.args(["config", "dump"]).kill_on_drop(true);
    let output = tokio::time::timeout(PATIENCE, command.output()).await.context("containerd does not print it")??;
    if !output.status.success() {
        bail!("containerd does not print it: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8(output.stdout)?.parse()?)
}

/// The file that a command line of containerd names.
fn config_file(words: &[String]) -> Option<&str> {
    words.iter().enumerate().find_map(|(at, word)| {
        let name = word.trim_start_matches('-');
        match name.split_once('=') {
            Some(("config" | "c", file)) if word.starts_with('-') => Some(file),
            None if word.starts_with('-') && matches!(name, "config" | "c") => words.get(at + 1).map(String::as_str),
            _ => None,
        }
    })
}

/// Images that can't be started through us, because another snapshotter has them.
async fn images(config: &Config, default: bool) -> anyhow::Result<Vec<Check>> {
    let engine = Engine::connect(&config.containerd.address, "default").await?;
    let mut checks = Vec::new();
    for namespace in engine.namespaces().await? {
        let engine = engine.within(&namespace);
        let mut known: HashMap<String, Option<bool>> = HashMap::new();
        let mut found: BTreeMap<String, bool> = BTreeMap::new();
        // CRI names each image by its ID as well.
        let named = |name: &str| !name.starts_with("sha256:");
        for (name, digest) in engine.images().await?.into_iter().filter(|(name, _)| named(name)).take(IMAGES) {
            if !known.contains_key(&digest) {
                known.insert(
                    digest.clone(),
                    here(&engine, &config.containerd.snapshotter, &digest).await.unwrap_or_default(),
                );
            }
            if let Some(Some(here)) = known.get(&digest) {
                found.insert(name, *here);
            }
        }
        checks.extend(mixed(&namespace, &found, default && namespace == "k8s.io"));
    }
    Ok(checks)
}

/// Has our snapshotter all layers of an image? Nothing if its documents are not there.
async fn here(engine: &Engine, snapshotter: &str, target: &str) -> anyhow::Result<Option<bool>> {
    let mut digest = ManifestDigest::parse(target)?.digest();
    let platform = Platform::new("linux", std::env::consts::ARCH, None)?;
    for _ in 0..2 {
        let Some(bytes) = document(engine, digest).await? else { return Ok(None) };
        match Document::parse(&bytes, None)? {
            Document::Index(index) => digest = choose(&index, &platform)?.entry.digest.digest(),
            Document::Manifest(manifest) => {
                let Some(bytes) = document(engine, manifest.config.digest()).await? else { return Ok(None) };
                let Some(top) = ChainId::stack(&ImageConfig::parse(&bytes)?.diff_ids).pop() else { return Ok(None) };
                return Ok(Some(engine.is_there(snapshotter, top).await?));
            }
        }
    }
    Ok(None)
}

async fn document(engine: &Engine, digest: Digest) -> anyhow::Result<Option<Vec<u8>>> {
    match engine.size(digest).await? {
        Some(size) if size <= MAX_DOCUMENT as u64 => Ok(Some(engine.read(digest, size).await?)),
        _ => Ok(None),
    }
}

/// What it means that some images of a namespace are here and others are not.
fn mixed(namespace: &str, images: &BTreeMap<String, bool>, default: bool) -> Option<Check> {
    let missing: Vec<&str> = images.iter().filter(|(_, here)| !**here).map(|(name, _)| name.as_str()).collect();
    let title = format!("images in {namespace}");
    let here = images.len() - missing.len();
    if images.is_empty() {
        return None;
    }
    if missing.is_empty() {
        return Some(Check::ok(title, format!("all {here} are in this snapshotter")));
    }
    if here == 0 && !default {
        return Some(Check::ok(
            title,
            format!("none of {} is in this snapshotter; another one has them", missing.len()),
        ));
    }
    let more = if missing.len() > NAMED { ", …" } else { "" };
    let names = missing[..missing.len().min(NAMED)].join(", ");
    Some(Check::warn(
        title,
        format!(
            "{} of {} are in another snapshotter only, and can't be started through this one: {names}{more}",
            missing.len(),
            images.len()
        ),
        format!("`cvmfs-snapshotter pull --namespace {namespace} IMAGE` brings one in; old containers go on"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::State;

    #[test]
    fn the_configuration_file_is_found_in_a_command_line() {
        for (line, expected) in [
            ("/usr/bin/containerd", None),
            ("containerd -c /a.toml", Some("/a.toml")),
            ("containerd --log-level debug --config /a.toml", Some("/a.toml")),
            ("containerd --config=a.toml", Some("a.toml")),
            ("containerd -c", None),
            ("containerd c /a", None),
        ] {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            assert_eq!(config_file(&words), expected, "{line}");
        }
    }

    #[test]
    fn images_of_two_snapshotters_are_noticed() {
        let state = |images: &[(&str, bool)], default| {
            let images = images.iter().map(|(name, here)| ((*name).to_owned(), *here)).collect();
            mixed("default", &images, default).map(|check| check.state)
        };
        assert_eq!(state(&[], true), None);
        assert_eq!(state(&[("a", true), ("b", true)], false), Some(State::Ok));
        assert_eq!(state(&[("a", true), ("b", false)], false), Some(State::Warn));
        assert_eq!(state(&[("b", false)], false), Some(State::Ok));
        assert_eq!(state(&[("b", false)], true), Some(State::Warn));
    }
}
