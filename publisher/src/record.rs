//! Makes the start-up list of a published image by starting it once.
//!
//! ```text
//! record ── server for the repository's directory
//!   ├────── cvmfs-client mount            an empty cache, nothing fetched ahead
//!   └────── cvmfs-client record           keeps what is opened below the flat
//!             └── record-inside           namespaces, overlay on the flat
//!                   └── record-inside --entered ── the command
//! ```
//!
//! A command that fails has shown no start: nothing is published. What the image's command may do: [`inside()`].

mod inside;

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use image::digest::ImageId;
use image::layout::{ImageFile, Layout, ManifestRecord, OwnedPath};
use image::manifest::Config;
use tempfile::TempDir;

use self::inside::Start;
pub use self::inside::inside;
use crate::cli::{Record, print_result, said};
use crate::error::{CommandError, ExitStatus};
use crate::failure::Failure;
use crate::publish::Hand;
use crate::removal::Sort;
use crate::serve::{ServeError, Server};
use crate::startup::{GivenList, Listed, publish_list};
use crate::target::Target;

/// What images get that say nothing of it, as with all engines.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The command.
pub fn record(arguments: &Record, target: &Target, json: bool) -> Result<ExitStatus, CommandError> {
    let given = match &arguments.list {
        Some(file) => Some(GivenList::read(file).map_err(CommandError::config)?),
        None if arguments.remove => None,
        None => {
            let text = run(arguments, target)
                .map_err(|error| error.context(format!("cannot record a start of {}", arguments.image)))?;
            if let Some(file) = &arguments.output {
                std::fs::write(file, text).map_err(|e| CommandError::failed(Failure::io("write", file)(e)))?;
                return Ok(ExitStatus::Success);
            }
            Some(GivenList::parse(&text).map_err(CommandError::failed)?)
        }
    };
    let bundles = said(arguments.bundles, arguments.no_bundles);
    let listed = publish_list(target, &arguments.image, given.as_ref(), bundles)
        .map_err(|e| e.into_command_error().context(format!("cannot publish the list of {}", arguments.image)))?;
    print_result(&if json { to_json(&listed) } else { to_text(&listed) })?;
    Ok(ExitStatus::Success)
}

fn to_text(listed: &Listed) -> String {
    let Listed { image, startup, revision, .. } = listed;
    match startup.files {
        0 => format!("{image} has no start-up list, revision {revision}\n"),
        files => format!("{image}  start-up list of {files} files, {} bytes, revision {revision}\n", startup.bytes),
    }
}

fn to_json(listed: &Listed) -> String {
    format!("{}\n", serde_json::to_string_pretty(listed).expect("strings and numbers"))
}

/// Starts the image and returns the list.
fn run(arguments: &Record, target: &Target) -> Result<Vec<u8>, CommandError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(CommandError::usage(std::io::Error::other("an image is started by root only"))
            .hint("make the list elsewhere (cvmfs-client record) and publish it with --list"));
    }
    let client = client(arguments)?;
    let (flat, config) = published(target, &arguments.image).map_err(Failure::into_command_error)?;
    let served = Served::start(arguments, target)?;
    let work = private_directory().map_err(CommandError::failed)?;
    let mount = Mount::new(&client, target, &served.url, &work)?;
    let root = mount.point.join(Layout::new().print(&OwnedPath::Flat(flat)));
    let start = Start {
        root: root.clone(),
        work: work.path().join("work"),
        arguments: words(arguments, &config)?,
        environment: environment(&config),
        directory: config.working_dir.clone(),
        user: config.user.clone(),
        seconds: arguments.time.map(|time| time.as_secs()),
    };
    let (order, list) = (work.path().join("start.json"), work.path().join("list.json"));
    let io = |what, path: &Path| {
        let failure = Failure::io(what, path);
        move |e| CommandError::failed(failure(e))
    };
    std::fs::write(&order, serde_json::to_vec(&start).expect("strings and numbers")).map_err(io("write", &order))?;
    let own = std::env::current_exe().map_err(CommandError::failed)?;
    let mut command = Command::new(&client);
    command.arg("record").arg(&mount.point).arg("--base").arg(&root).arg("--output").arg(&list);
    command.arg("--").arg(own).arg("record-inside").arg(&order);
    // Results are on the standard output, and what the image prints is none.
    let talk = std::io::stderr().as_fd().try_clone_to_owned().map_err(CommandError::failed)?;
    let status = command.stdin(Stdio::null()).stdout(talk).status().map_err(io("start", &client))?;
    if !status.success() {
        return Err(CommandError::failed(std::io::Error::other("the command failed, so it shows no start"))
            .hint("what it printed is above; a command that does not end by itself needs --for"));
    }
    std::fs::read(&list).map_err(io("read", &list))
}

/// The client that mounts: the one that was named, or the one that was installed with this program.
fn client(arguments: &Record) -> Result<PathBuf, CommandError> {
    if let Some(client) = &arguments.client {
        return Ok(client.clone());
    }
    let beside = std::env::current_exe().ok().map(|own| own.with_file_name("cvmfs-client"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = beside.into_iter().chain(std::env::split_paths(&path).map(|place| place.join("cvmfs-client")));
    places.find(|place| place.is_file()).ok_or_else(|| {
        let what = "there is no cvmfs-client beside this program or in PATH";
        CommandError::usage(std::io::Error::other(what)).hint("name it with --client")
    })
}

/// Flat and config of the image that a text means.
fn published(target: &Target, image: &str) -> Result<(ImageId, Config), Failure> {
    let now = target.clock.now();
    let mut view = target.view(now)?;
    let mut hand = Hand::new(target, &mut view, now)?;
    let owners = hand.find(image, Sort::Recorded)?;
    // Another platform's programs do not run here.
    let owner = owners.iter().find(|owner| owner.platform.is_none()).or(owners.first());
    let owner = owner.ok_or_else(|| Failure::Content(format!("{image} is not published")))?;
    let mut read = |file: ImageFile| {
        let path = OwnedPath::ImageFile { platform: owner.platform.clone(), name: owner.name.clone(), file };
        hand.read(&path)?.ok_or_else(|| Failure::Content(format!("{image} has no {}", file.file_name())))
    };
    let flat = ManifestRecord::parse(&read(ImageFile::Manifest)?)?.config.digest;
    Ok((flat, Config::parse(&read(ImageFile::Config)?)?))
}

fn words(arguments: &Record, config: &Config) -> Result<Vec<String>, CommandError> {
    let words = match arguments.command.is_empty() {
        true => config.entrypoint.iter().chain(&config.cmd).cloned().collect::<Vec<_>>(),
        false => arguments.command.clone(),
    };
    if words.is_empty() {
        return Err(CommandError::usage(std::io::Error::other("the image has no command of its own"))
            .hint("write it behind --"));
    }
    Ok(words)
}

fn environment(config: &Config) -> Vec<(String, String)> {
    let said = config.env.iter().map(String::as_str);
    let all = [PATH, "HOME=/root"].into_iter().chain(said).filter_map(|line| line.split_once('='));
    all.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// A directory that nobody else can enter.
fn private_directory() -> std::io::Result<TempDir> {
    let directory = tempfile::Builder::new().prefix("cvmfs-record-").tempdir()?;
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o700))?;
    ["mount", "cache", "work"].iter().try_for_each(|name| std::fs::create_dir(directory.path().join(name)))?;
    Ok(directory)
}

/// A server that ends with this value, unless there is one already.
struct Served {
    url: String,
    _runtime: Option<tokio::runtime::Runtime>,
}

impl Served {
    fn start(arguments: &Record, target: &Target) -> Result<Served, CommandError> {
        if let Some(url) = &arguments.server_url {
            return Ok(Served { url: url.to_string(), _runtime: None });
        }
        let root = target.paths.storage.directory().ok_or_else(|| {
            CommandError::usage(std::io::Error::other(format!("{} is no directory", target.paths.storage)))
                .hint("say with --server-url where the repository can be read")
        })?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(ServeError::Run)?;
        let server = runtime.block_on(Server::bind(&target.fqrn, root, SocketAddr::from((Ipv4Addr::LOCALHOST, 0))))?;
        let url = server.url();
        runtime.spawn(server.run(std::future::pending()));
        Ok(Served { url, _runtime: Some(runtime) })
    }
}

/// The mounted repository; unmounted when dropped.
struct Mount {
    client: PathBuf,
    point: PathBuf,
}

impl Mount {
    fn new(client: &Path, target: &Target, url: &str, work: &TempDir) -> Result<Mount, CommandError> {
        let point = work.path().join("mount");
        let key = target.paths.keys.join(format!("{}.pub", target.fqrn));
        let mut command = Command::new(client);
        command.args(["mount", &target.fqrn]).arg(&point).args(["--server-url", url, "--proxy", "DIRECT"]);
        command.arg("--public-key").arg(key).arg("--cache").arg(work.path().join("cache"));
        command.args(["-o", "CVMFS_PREFETCH=no"]).stdin(Stdio::null());
        let status = command.status().map_err(|e| CommandError::failed(Failure::io("start", client)(e)))?;
        if !status.success() {
            let what = format!("{} could not mount {}", client.display(), target.fqrn);
            return Err(CommandError::failed(std::io::Error::other(what)));
        }
        Ok(Mount { client: client.to_owned(), point })
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let status = Command::new(&self.client).arg("umount").arg(&self.point).stdin(Stdio::null()).status();
        if !status.is_ok_and(|status| status.success()) {
            tracing::warn!(mountpoint = %self.point.display(), "cannot be unmounted");
        }
    }
}
