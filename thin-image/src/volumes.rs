//! Repositories as volumes, for every Docker: a container gets `/cvmfs/REPOSITORY` by naming it.
//!
//! | name of a volume | shows |
//! |---|---|
//! | `REPOSITORY` | what the host has mounted, else a mount of our own |
//! | `REPOSITORY@TAG`, `REPOSITORY#HASH` | that snapshot or root catalog, in a mount of our own |
//! | any other, with the option `repository`, and `tag` or `hash` | the same |
//!
//! A mount of our own is made by `cvmfs-client` for the first container and goes with the last one. Containers are known by the ID that
//! Docker gives each use; the same ID twice is one use.
//!
//! Invariants
//! - Only repositories in the configuration are mounted, and no option of a user reaches the client but a tag or a hash.
//! - What is in use is on disk before a container sees it, so a restart of the plugin loses nothing; what it says of an earlier start of
//!   the machine counts for nothing.
//! - Listing volumes looks at no repository.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{Request, StatusCode};
use axum::response::Response;
use axum::routing::post;
use image::thin::is_repository_name;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::files;
use crate::graphdriver::mounts;
use crate::look::Looks;
use crate::plugin::{Refusal, answer, blocking, read, refuse};
use crate::published::Repository;
use crate::text::printable;

/// What the plugin says that it implements.
pub const IMPLEMENTS: &str = "VolumeDriver";
/// File below the state directory.
const FILE: &str = "volumes.json";
/// Where our own mounts are, below the state directory.
const MOUNTS: &str = "volumes";

/// Which revision of a repository a volume shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Revision {
    /// the newest one
    Newest,
    /// a named snapshot
    Tag(String),
    /// a root catalog
    Hash(String),
}

/// What a volume shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// name of the repository
    pub repository: String,
    /// which revision of it
    pub revision: Revision,
}

impl Source {
    /// From the name of a volume and its options.
    pub fn parse(name: &str, options: &BTreeMap<String, String>) -> Result<Self, Refusal> {
        let known = ["repository", "tag", "hash"];
        if let Some(key) = options.keys().find(|key| !known.contains(&key.as_str())) {
            return Err(Refusal::new(format!(
                "volumes have no option {:?}; there are {}",
                printable(key, 100),
                known.join(", ")
            )));
        }
        let (mut repository, mut tag, mut hash) = (name, None, None);
        if let Some((before, after)) = name.split_once('@') {
            (repository, tag) = (before, Some(after));
        } else if let Some((before, after)) = name.split_once('#') {
            (repository, hash) = (before, Some(after));
        }
        if let Some(given) = options.get("repository") {
            (repository, tag, hash) = (given, None, None);
        }
        let given = |key: &str| options.get(key).map(String::as_str);
        let revision = match (given("tag").or(tag), given("hash").or(hash)) {
            (None, None) => Revision::Newest,
            (Some(tag), None) if is_tag(tag) => Revision::Tag(tag.to_owned()),
            (None, Some(hash)) if is_hash(hash) => Revision::Hash(hash.to_owned()),
            (Some(_), Some(_)) => return Err(Refusal::new("a volume shows a tag or a hash, not both")),
            (Some(other), None) => {
                return Err(Refusal::new(format!("{:?} is not the tag of a snapshot", printable(other, 100))));
            }
            (None, Some(other)) => {
                return Err(Refusal::new(format!("{:?} is not the hash of a root catalog", printable(other, 100))));
            }
        };
        if !is_repository_name(repository) {
            return Err(Refusal::new(format!(
                "{:?} is not the name of a repository; name the volume after one, or give the option repository",
                printable(repository, 100)
            )));
        }
        Ok(Self { repository: repository.to_owned(), revision })
    }

    /// A directory's name that no other source has.
    fn directory(&self) -> String {
        match &self.revision {
            Revision::Newest => self.repository.clone(),
            Revision::Tag(tag) => format!("{}@{tag}", self.repository),
            Revision::Hash(hash) => format!("{}#{hash}", self.repository),
        }
    }
}

fn is_tag(tag: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.:".contains(&b);
    !tag.is_empty() && tag.len() <= 200 && tag.bytes().all(plain)
}

fn is_hash(hash: &str) -> bool {
    let (digits, algorithm) = hash.split_once('-').map_or((hash, None), |(digits, name)| (digits, Some(name)));
    (32..=64).contains(&digits.len())
        && digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        && matches!(algorithm, None | Some("rmd160" | "shake128"))
}

/// A volume that Docker knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Volume {
    source: Source,
    /// uses, by Docker's IDs
    #[serde(default)]
    uses: BTreeSet<String>,
    /// is it shown by a mount of our own?
    #[serde(default)]
    own: bool,
}

/// `volumes.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    schema: u32,
    /// which start of the machine the uses are of
    boot: String,
    volumes: BTreeMap<String, Volume>,
}

/// The driver.
#[derive(Debug)]
pub struct Volumes {
    repositories: Vec<Repository>,
    client: PathBuf,
    looks: Looks,
    state: PathBuf,
    kept: Mutex<Kept>,
}

impl Volumes {
    /// Volumes of these repositories, with what was known of them in `state`. `client` mounts what is not mounted.
    pub fn open(repositories: Vec<Repository>, client: &Path, state: &Path) -> Result<Self, Refusal> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
        fs::create_dir_all(state.join(MOUNTS)).map_err(Refusal::of(format!("cannot make {}", state.display())))?;
        let file = state.join(FILE);
        let mut kept = match fs::read(&file) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Kept { schema: 1, boot: boot.clone(), volumes: BTreeMap::new() }
            }
            Err(error) => return Err(Refusal::of(format!("cannot read {}", file.display()))(error)),
            Ok(bytes) => {
                let damaged =
                    Refusal::of(format!("{} is damaged; remove it when no container has a volume", file.display()));
                serde_json::from_slice(&bytes).map_err(damaged)?
            }
        };
        if kept.schema != 1 {
            return Err(Refusal::new(format!("{} is of a later version of this program", file.display())));
        }
        if kept.boot != boot {
            kept.volumes.values_mut().for_each(|volume| volume.uses.clear());
            kept.boot = boot;
        }
        let volumes = Self {
            repositories,
            client: client.to_owned(),
            looks: Looks::default(),
            state: state.to_owned(),
            kept: Mutex::new(kept),
        };
        volumes.tidy()?;
        Ok(volumes)
    }

    /// Unmounts what nobody uses: a process was killed between noting and doing.
    fn tidy(&self) -> Result<(), Refusal> {
        let kept = self.kept.lock().expect("nobody panics while holding it");
        let used: BTreeSet<String> =
            kept.volumes.values().filter(|v| v.own && !v.uses.is_empty()).map(|v| v.source.directory()).collect();
        let path = self.state.join(MOUNTS);
        let entries = fs::read_dir(&path).map_err(Refusal::of(format!("cannot read {}", path.display())))?;
        for entry in entries.flatten() {
            if entry.file_name().to_str().is_none_or(|name| !used.contains(name)) {
                self.unmount(&entry.path());
            }
        }
        self.write(&kept)
    }

    fn write(&self, kept: &Kept) -> Result<(), Refusal> {
        let bytes = serde_json::to_vec_pretty(kept).expect("it has string keys");
        files::replace(&self.state.join(FILE), &bytes).map_err(Refusal::of("cannot remember volumes"))
    }

    /// Changes what is kept, first on disk.
    fn change<T>(&self, kept: &mut Kept, change: impl FnOnce(&mut Kept) -> T) -> Result<T, Refusal> {
        let mut new = kept.clone();
        let result = change(&mut new);
        self.write(&new)?;
        *kept = new;
        Ok(result)
    }

    fn repository(&self, source: &Source) -> Result<&Repository, Refusal> {
        self.repositories.iter().find(|repository| repository.name() == source.repository).ok_or_else(|| {
            Refusal::new(format!(
                "repository {0} is not configured; add [[repositories]] name = \"{0}\" to {1} and restart the plugin",
                source.repository,
                crate::config::FILE
            ))
        })
    }

    /// Docker makes a volume; the same one again is no error.
    fn create(&self, name: &str, options: &BTreeMap<String, String>) -> Result<(), Refusal> {
        let source = Source::parse(name, options)?;
        self.repository(&source)?;
        let mut kept = self.kept.lock().expect("nobody panics while holding it");
        match kept.volumes.get(name) {
            Some(volume) if volume.source == source => Ok(()),
            Some(_) => Err(Refusal::new(format!("volume {name} shows something else; remove it first"))),
            None => {
                let volume = Volume { source, uses: BTreeSet::new(), own: false };
                self.change(&mut kept, |kept| kept.volumes.insert(name.to_owned(), volume)).map(drop)
            }
        }
    }

    /// Docker forgets a volume.
    fn remove(&self, name: &str) -> Result<(), Refusal> {
        let mut kept = self.kept.lock().expect("nobody panics while holding it");
        let Some(volume) = self.change(&mut kept, |kept| kept.volumes.remove(name))? else { return Ok(()) };
        self.leave(&kept, &volume);
        Ok(())
    }

    /// A container begins to use a volume. Returns the directory that it gets.
    fn mount(&self, name: &str, id: &str) -> Result<PathBuf, Refusal> {
        let mut kept = self.kept.lock().expect("nobody panics while holding it");
        let volume = find(&kept, name)?.clone();
        let repository = self.repository(&volume.source)?;
        let hosts = volume.source.revision == Revision::Newest && self.looks.mounted(repository).is_ok();
        // A container that has our mount keeps it, also if the host mounts the repository meanwhile.
        let own = !hosts || (volume.own && !volume.uses.is_empty());
        self.change(&mut kept, |kept| {
            let volume = kept.volumes.get_mut(name).expect("it was just found");
            volume.own = own;
            volume.uses.insert(id.to_owned());
        })?;
        if !own {
            return Ok(repository.mountpoint().to_owned());
        }
        self.mount_ourselves(&volume.source).inspect_err(|_| {
            let gone = self.change(&mut kept, |kept| {
                kept.volumes.get_mut(name).expect("it was just found").uses.remove(id);
            });
            if let Err(error) = gone {
                tracing::warn!(volume = name, %error, "a use that failed is still noted");
            }
        })
    }

    /// A container ends using a volume; one that never did is no error.
    fn release(&self, name: &str, id: &str) -> Result<(), Refusal> {
        let mut kept = self.kept.lock().expect("nobody panics while holding it");
        let volume = self.change(&mut kept, |kept| {
            let volume = kept.volumes.get_mut(name)?;
            volume.uses.remove(id);
            Some(volume.clone())
        })?;
        if let Some(volume) = volume.filter(|volume| volume.uses.is_empty()) {
            self.leave(&kept, &volume);
        }
        Ok(())
    }

    /// Unmounts what a volume showed if no other one shows it.
    fn leave(&self, kept: &Kept, volume: &Volume) {
        let same = |other: &&Volume| other.own && !other.uses.is_empty() && other.source == volume.source;
        if volume.own && kept.volumes.values().all(|other| !same(&other)) {
            self.unmount(&self.place(&volume.source));
        }
    }

    fn place(&self, source: &Source) -> PathBuf {
        self.state.join(MOUNTS).join(source.directory())
    }

    /// Mounts a source unless it is mounted.
    fn mount_ourselves(&self, source: &Source) -> Result<PathBuf, Refusal> {
        let place = self.place(source);
        if mounts::is_mounted(&place)? {
            return Ok(place);
        }
        fs::create_dir_all(&place).map_err(Refusal::of(format!("cannot make {}", place.display())))?;
        let mut command = Command::new(&self.client);
        command.args(["mount", &source.repository]).arg(&place);
        match &source.revision {
            Revision::Newest => {}
            Revision::Tag(tag) => drop(command.args(["-o", &format!("CVMFS_REPOSITORY_TAG={tag}")])),
            Revision::Hash(hash) => drop(command.args(["-o", &format!("CVMFS_ROOT_HASH={hash}")])),
        }
        let done = run(command).inspect_err(|_| drop(fs::remove_dir(&place)));
        done.map_err(|refusal| {
            Refusal::new(format!("repository {} is not mounted on this host, and {refusal}", source.repository))
        })?;
        Ok(place)
    }

    /// Unmounts a directory of ours; what can't be unmounted now is tried again at the next start.
    fn unmount(&self, place: &Path) {
        if mounts::is_mounted(place).unwrap_or(true) {
            let mut command = Command::new(&self.client);
            command.arg("umount").arg(place);
            if let Err(error) = run(command) {
                tracing::warn!(place = %place.display(), %error, "not unmounted");
                return;
            }
        }
        let _ = fs::remove_dir(place);
    }

    /// Where a volume is, if a container uses it; no repository is looked at.
    fn path(&self, volume: &Volume) -> PathBuf {
        match (volume.uses.is_empty(), volume.own, self.repository(&volume.source)) {
            (true, ..) => PathBuf::new(),
            (_, false, Ok(repository)) => repository.mountpoint().to_owned(),
            _ => self.place(&volume.source),
        }
    }

    fn described(&self, name: &str, volume: &Volume) -> Value {
        let mut value = json!({ "Name": name, "Mountpoint": self.path(volume) });
        if !volume.uses.is_empty() {
            value["Status"] = json!({ "uses": volume.uses.len(), "mounted": if volume.own { "by the plugin" } else { "by the host" } });
        }
        value
    }

    fn call(&self, method: &str, call: &Call) -> Result<Value, Refusal> {
        let nothing = |()| json!({});
        let kept = || self.kept.lock().expect("nobody panics while holding it");
        match method {
            "Create" => self.create(&call.name, call.options.as_ref().unwrap_or(&BTreeMap::new())).map(nothing),
            "Remove" => self.remove(&call.name).map(nothing),
            "Mount" => Ok(json!({ "Mountpoint": self.mount(&call.name, &call.id)? })),
            "Unmount" => self.release(&call.name, &call.id).map(nothing),
            "Path" => Ok(json!({ "Mountpoint": self.path(find(&kept(), &call.name)?) })),
            "Get" => Ok(json!({ "Volume": self.described(&call.name, find(&kept(), &call.name)?) })),
            "List" => {
                let kept = kept();
                let list: Vec<Value> = kept.volumes.iter().map(|(name, volume)| self.described(name, volume)).collect();
                Ok(json!({ "Volumes": list }))
            }
            // Each host has its own mounts.
            "Capabilities" => Ok(json!({ "Capabilities": { "Scope": "local" } })),
            other => Err(Refusal::new(format!("there is no method {other}"))),
        }
    }
}

fn find<'a>(kept: &'a Kept, name: &str) -> Result<&'a Volume, Refusal> {
    kept.volumes.get(name).ok_or_else(|| Refusal::new(format!("there is no volume {:?}", printable(name, 200))))
}

/// Runs the client to its end.
fn run(mut command: Command) -> Result<(), Refusal> {
    let name = command.get_program().to_string_lossy().into_owned();
    // Its background process would keep pipes open; what it has to say goes to a file.
    let said = tempfile::tempfile().map_err(Refusal::of("cannot make a file"))?;
    let out = said.try_clone().map_err(Refusal::of("cannot make a file"))?;
    let status = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(out)
        .status()
        .map_err(Refusal::of(format!("{name} can't be run to mount it")))?;
    if status.success() {
        return Ok(());
    }
    let mut text = String::new();
    let mut said = said;
    let _ = std::io::Seek::rewind(&mut said).and_then(|()| std::io::Read::read_to_string(&mut said, &mut text));
    Err(Refusal::new(format!("{name} failed ({status}): {}", printable(text.trim(), 500))))
}

/// A request, of whichever method.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Call {
    #[serde(rename = "Name")]
    name: String,
    #[serde(rename = "ID")]
    id: String,
    #[serde(rename = "Opts")]
    options: Option<BTreeMap<String, String>>,
}

const METHODS: [&str; 8] = ["Create", "Remove", "Mount", "Unmount", "Path", "Get", "List", "Capabilities"];

/// The routes.
pub fn router(volumes: Arc<Volumes>) -> Router {
    let mut router = Router::new();
    for method in METHODS {
        let handle = async move |State(volumes): State<Arc<Volumes>>, request: Request<Body>| -> Response {
            let done = match read::<Call>(request).await {
                Ok(arguments) => blocking(move || volumes.call(method, &arguments)).await,
                Err(refusal) => Err(refusal),
            };
            done.map_or_else(|refusal| refuse(method, &refusal, StatusCode::OK), |value| answer(&value))
        };
        router = router.route(&format!("/VolumeDriver.{method}"), post(handle));
    }
    router.with_state(volumes)
}

#[cfg(test)]
mod tests {
    use super::*;

    type Pairs<'a> = &'a [(&'a str, &'a str)];

    fn options(pairs: Pairs<'_>) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn names_and_options_say_what_a_volume_shows() {
        let hash = "0".repeat(40);
        let by_hash = format!("a.b#{hash}");
        let newest = Revision::Newest;
        let tag = |tag: &str| Revision::Tag(tag.to_owned());
        let cases: [(&str, Pairs<'_>, &str, Revision); 5] = [
            ("images.example.org", &[], "images.example.org", newest.clone()),
            ("a.b@v1:2", &[], "a.b", tag("v1:2")),
            (&by_hash, &[], "a.b", Revision::Hash(hash)),
            ("anything at all", &[("repository", "a.b")], "a.b", newest),
            ("a.b", &[("tag", "trunk")], "a.b", tag("trunk")),
        ];
        for (name, pairs, repository, revision) in cases {
            let found = Source::parse(name, &options(pairs)).unwrap();
            assert_eq!(found, Source { repository: repository.to_owned(), revision }, "{name}");
        }
    }

    #[test]
    fn what_would_lead_elsewhere_is_refused() {
        let bad_hash = format!("a.b#{}/..", "0".repeat(40));
        let cases: [(&str, Pairs<'_>, &str); 9] = [
            ("../etc", &[], "not the name of a repository"),
            ("a/b", &[], "not the name of a repository"),
            ("", &[], "not the name of a repository"),
            ("a.b@../x", &[], "not the tag"),
            ("a.b@x,CVMFS_SERVER_URL=y", &[], "not the tag"),
            (&bad_hash, &[], "not the hash"),
            ("a.b#0", &[], "not the hash"),
            ("a.b", &[("clientOpts", "x")], "no option \"clientOpts\""),
            ("a.b@x", &[("hash", "00000000000000000000000000000000")], "not both"),
        ];
        for (name, pairs, reason) in cases {
            let error = Source::parse(name, &options(pairs)).unwrap_err().to_string();
            assert!(error.contains(reason), "{name}: {error}");
        }
    }
}
