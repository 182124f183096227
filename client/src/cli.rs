//! The command line.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use cvmfs::path::RepoPath;

use crate::config::{self, Config, ConfigError, Flags};
use crate::control::{self, Status};
use crate::helper::{self, Wish};
use crate::log;
use crate::mount::{self, MountError};
use crate::prefetch::{Announcement, Summary};
use crate::revision::Chain;

const EXAMPLES: &str = "\
Examples:
  cvmfs-client mount images.example.org /cvmfs/images.example.org \\
      --server-url http://s1.example.org/cvmfs/@fqrn@ --public-key /etc/cvmfs/keys/images.example.org.pub
  cvmfs-client mount images.example.org /cvmfs/images.example.org     everything else from /etc/cvmfs
  cvmfs-client status /cvmfs/images.example.org
  cvmfs-client umount /cvmfs/images.example.org";

/// Mounts CernVM-FS repositories over HTTP, read-only, with a local cache.
#[derive(Debug, Parser)]
#[command(name = "cvmfs-client", version, after_help = EXAMPLES, max_term_width = 120)]
struct Cli {
    /// Which events to log: error, warn, info, debug, or a filter such as client::fetch=debug
    #[arg(long, global = true, value_name = "FILTER", default_value = "info", env = "CVMFS_CLIENT_LOG")]
    log_level: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Mount a repository; returns when it can be used
    Mount(MountArgs),
    /// Unmount, also when the client is dead; returns when the client has ended
    #[command(
        after_help = "Examples:\n  cvmfs-client umount /cvmfs/images.example.org\n  cvmfs-client umount --lazy /mnt"
    )]
    Umount {
        /// Where it is mounted
        mountpoint: PathBuf,
        /// Take it out of sight at once; the client ends with the last user
        #[arg(long)]
        lazy: bool,
    },
    /// Show the state of a mount
    #[command(
        after_help = "Examples:\n  cvmfs-client status /cvmfs/images.example.org\n  cvmfs-client status /mnt --json | jq .revision\n  cvmfs-client status --metrics > /var/lib/node_exporter/cvmfs.prom.$$ && mv …"
    )]
    Status {
        /// Where it is mounted
        #[arg(required_unless_present = "metrics")]
        mountpoint: Option<PathBuf>,
        /// Print everything as JSON
        #[arg(long, conflicts_with = "metrics")]
        json: bool,
        /// Print numbers as Prometheus reads them: of this mount, or else of all mounts of this user
        #[arg(long)]
        metrics: bool,
    },
    /// Look for a new revision now instead of when its time comes
    #[command(after_help = "Examples:\n  cvmfs-client remount /cvmfs/images.example.org")]
    Remount {
        /// Where it is mounted
        mountpoint: PathBuf,
    },
    /// Fetch ahead what a start-up list names
    ///
    /// Paths of the list are looked for below each base in turn, so a list serves a directory as well as a stack of them.
    /// Without LIST, what earlier starts below the first base have taught is fetched.
    #[command(
        after_help = "Examples:\n  cvmfs-client prefetch /cvmfs/sw.example.org /cvmfs/sw.example.org/lists/app.json\n  cvmfs-client prefetch /mnt --base /mnt/releases/v2 --name app app.json"
    )]
    Prefetch {
        /// Where the repository is mounted
        mountpoint: PathBuf,
        /// The list, on this machine or below the mountpoint
        list: Option<PathBuf>,
        /// Directory below the mountpoint that the list is about; may be repeated [default: the mountpoint]
        #[arg(long, value_name = "DIR")]
        base: Vec<PathBuf>,
        /// Name for what starts below the first base, so that its next version profits from what this one touches
        #[arg(long)]
        name: Option<String>,
    },
    /// Record what a workload touches, and print it as a start-up list
    #[command(
        after_help = "Examples:\n  cvmfs-client record /mnt --base /mnt/app --output app.json -- /mnt/app/bin/run --version\n  cvmfs-client record /mnt --start; …; cvmfs-client record /mnt --stop > list.json"
    )]
    Record(RecordArgs),
    /// Check that mounts can be read; all of CVMFS_REPOSITORIES, or all mounts of this user, unless some are named
    #[command(
        after_help = "Examples:\n  cvmfs-client probe\n  cvmfs-client probe images.example.org\n  cvmfs-client probe /mnt/images"
    )]
    Probe {
        /// Repository names, or the directories where they are mounted
        mounts: Vec<PathBuf>,
        /// Directory of the configuration files
        #[arg(long, value_name = "DIR", default_value = config::DEFAULT_DIRECTORY)]
        config_dir: PathBuf,
    },
    /// Print the parameters for a repository and where each comes from
    #[command(
        after_help = "Examples:\n  cvmfs-client showconfig images.example.org\n  cvmfs-client showconfig images.example.org --json | jq '.[] | select(.honoured | not)'"
    )]
    Showconfig {
        /// Repository name
        fqrn: String,
        /// Print a list of JSON objects
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        source: SourceArgs,
    },
}

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
struct MountArgs {
    /// Repository name; without a dot, CVMFS_DEFAULT_DOMAIN is appended
    fqrn: String,
    /// An existing directory
    mountpoint: PathBuf,
    #[command(flatten)]
    source: SourceArgs,
    /// Stay in the foreground and log to standard error
    #[arg(short, long)]
    foreground: bool,
    /// Where the background process logs [default: a file beside the cache directory]
    #[arg(long, value_name = "FILE")]
    log_file: Option<PathBuf>,
    /// Started by ourselves in the background
    #[arg(long, hide = true)]
    background_child: bool,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("how").required(true).args(["start", "stop", "command"]))]
struct RecordArgs {
    /// Where the repository is mounted
    mountpoint: PathBuf,
    /// Begin to record
    #[arg(long)]
    start: bool,
    /// End the record and print the list
    #[arg(long)]
    stop: bool,
    /// Directory below the mountpoint that the list is about [default: the mountpoint]
    #[arg(long, value_name = "DIR")]
    base: Option<PathBuf>,
    /// Where the list goes [default: standard output; that of COMMAND goes to standard error then]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Record this command from its begin to its end
    #[arg(last = true)]
    command: Vec<OsString>,
}

#[derive(Debug, Args)]
struct SourceArgs {
    /// Servers, separated by ';', tried in order; @fqrn@ stands for the repository name
    #[arg(long, value_name = "URL")]
    server_url: Option<String>,
    /// Master public key of the repository; may be repeated [default: /etc/cvmfs/keys/*.pub]
    #[arg(long, value_name = "FILE")]
    public_key: Vec<PathBuf>,
    /// Cache directory [default: /var/lib/cvmfs-client/shared, users ~/.cache/cvmfs-client/shared]
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Size of the cache in MiB; 0 = unlimited [default: 4000]
    #[arg(long, value_name = "MB")]
    cache_limit: Option<i64>,
    /// Proxies: groups separated by ';', members by '|', or DIRECT [default: DIRECT]
    #[arg(long, value_name = "LIST")]
    proxy: Option<String>,
    /// NAME=value for parameters and symlink variables, unset=NAME, or mount options; always ro,nosuid,nodev
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<String>,
    /// Directory of the configuration files
    #[arg(long, value_name = "DIR", default_value = config::DEFAULT_DIRECTORY)]
    config_dir: PathBuf,
}

impl SourceArgs {
    fn flags(&self) -> Flags {
        let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
        Flags {
            server_url: self.server_url.clone(),
            public_keys: self.public_key.iter().map(absolute).collect(),
            cache: self.cache.as_ref().map(absolute),
            cache_limit: self.cache_limit,
            proxy: self.proxy.clone(),
            options: self.options.clone(),
        }
    }
}

/// What ends a command early.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error("nothing of ours is mounted on {0}, or its client is dead")]
    NotMounted(PathBuf),
    #[error("{path} is not below the mountpoint {mountpoint}")]
    Outside { path: PathBuf, mountpoint: PathBuf },
    #[error("nothing is fetched ahead: {0}")]
    Prefetch(io::Error),
    #[error("no start-up list: {0}")]
    Record(io::Error),
    #[error("cannot run {command:?}")]
    Command {
        command: OsString,
        #[source]
        source: io::Error,
    },
    #[error("{command:?} ended with {status}; the list has what it touched until then")]
    CommandFailed { command: OsString, status: std::process::ExitStatus },
    #[error("not all mounts can be read")]
    Probe,
    #[error("the mount could not be updated: {0}")]
    Remount(String),
    #[error("cannot write the output")]
    Output(#[from] io::Error),
}

impl Failure {
    /// 1: some of what was asked for failed; 2: wrong arguments; 3: configuration; 4: repository or mount not usable.
    fn exit_code(&self) -> u8 {
        match self {
            Failure::Config(_) => 3,
            Failure::Mount(_) | Failure::NotMounted(_) => 4,
            Failure::Outside { .. } => 2,
            Failure::Probe
            | Failure::Remount(_)
            | Failure::Output(_)
            | Failure::Prefetch(_)
            | Failure::Record(_)
            | Failure::Command { .. }
            | Failure::CommandFailed { .. } => 1,
        }
    }
}

/// Reads the command line, does what it says, and gives the exit status.
pub fn main() -> ExitCode {
    let mut words: Vec<OsString> = std::env::args_os().collect();
    let helper = helper::wish(&words);
    let is_helper = helper.is_some();
    match helper {
        Some(Wish::Mount(ours)) => words = ours,
        Some(Wish::Nothing) => return ExitCode::SUCCESS,
        Some(Wish::Remount) => {
            eprintln!(
                "Error: the options of a mount stay what they are: unmount it and mount it again.\n\
                 For a new revision: cvmfs-client remount DIRECTORY"
            );
            return ExitCode::from(helper::FAILED);
        }
        None => {}
    }
    let cli = Cli::parse_from(&words);
    log::start(&cli.log_level);
    let child = matches!(&cli.command, Command::Mount(arguments) if arguments.background_child);
    match run(&cli, &words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let mut text = format!("Error: {failure}\n");
            let mut source = std::error::Error::source(&failure);
            for number in 1.. {
                let Some(error) = source else { break };
                text.push_str(&format!("  {number}: {error}\n"));
                source = error.source();
            }
            // The background process tells the one that waits for it, which prints it.
            if child {
                print!("{text}");
            } else if let Failure::Mount(MountError::Background(said)) = &failure {
                eprintln!("{said}");
            } else {
                eprint!("{text}");
            }
            ExitCode::from(if is_helper { helper::FAILED } else { failure.exit_code() })
        }
    }
}

fn run(cli: &Cli, words: &[OsString]) -> Result<(), Failure> {
    match &cli.command {
        Command::Mount(arguments) => mount(cli, arguments, words),
        Command::Umount { mountpoint, lazy } => Ok(mount::unmount(mountpoint, *lazy)?),
        Command::Status { mountpoint, metrics: true, .. } => metrics(mountpoint.as_deref()),
        Command::Status { mountpoint, json, .. } => status(mountpoint.as_deref().unwrap_or(Path::new("")), *json),
        Command::Remount { mountpoint } => remount(mountpoint),
        Command::Prefetch { mountpoint, list, base, name } => prefetch(mountpoint, list.as_deref(), base, name.clone()),
        Command::Record(arguments) => record(arguments),
        Command::Probe { mounts, config_dir } => probe(mounts, config_dir),
        Command::Showconfig { fqrn, json, source } => showconfig(fqrn, *json, source),
    }
}

fn mount(cli: &Cli, arguments: &MountArgs, words: &[OsString]) -> Result<(), Failure> {
    let flags = arguments.source.flags();
    let config = Config::load(&arguments.fqrn, &arguments.source.config_dir, &flags)?;
    for remark in config::table::remarks(&config.parameters) {
        tracing::warn!("{remark}");
    }
    let mountpoint = std::path::absolute(&arguments.mountpoint)?;
    if arguments.background_child {
        // Nobody's directory is kept in use.
        let _ = std::env::set_current_dir("/");
        return Ok(mount::run(&config, &mountpoint, mount::say_ready)?);
    }
    if arguments.foreground {
        return Ok(mount::run(&config, &mountpoint, mount::notify)?);
    }
    // The cache may be new; the background process checks whether it is one of ours.
    let log = match arguments.log_file.as_ref().or(config.log_file.as_ref()) {
        Some(log) => std::path::absolute(log)?,
        None => default_log(&config)?,
    };
    let mut again: Vec<OsString> =
        ["--log-level", &cli.log_level, "mount", "--background-child"].map(OsString::from).into();
    again.extend(words.iter().skip(1).skip_while(|word| *word != "mount").skip(1).cloned());
    Ok(mount::in_background(&again, &log)?)
}

/// Beside the cache directory (or the workspace, if there is one), not in it: what is in it is ours only once it
/// has been checked.
fn default_log(config: &Config) -> Result<PathBuf, Failure> {
    const MAX_LOG: u64 = 16 << 20;
    let name = config.workspace.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let directory = config.workspace.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(directory)?;
    let log = directory.join(format!("{name}.{}.log", config.fqrn));
    if std::fs::metadata(&log).is_ok_and(|m| m.len() > MAX_LOG) {
        let _ = std::fs::rename(&log, log.with_extension("log.old"));
    }
    Ok(log)
}

fn socket(mountpoint: &Path) -> PathBuf {
    let path = mountpoint.canonicalize().or_else(|_| std::path::absolute(mountpoint));
    control::socket(&path.unwrap_or_else(|_| mountpoint.to_owned()))
}

fn ask_status(mountpoint: &Path) -> Result<Status, Failure> {
    control::ask_status(&socket(mountpoint)).map_err(|_| Failure::NotMounted(mountpoint.to_owned()))
}

fn metrics(mountpoint: Option<&Path>) -> Result<(), Failure> {
    let mounts = match mountpoint {
        Some(mountpoint) => vec![ask_status(mountpoint)?],
        None => control::all(),
    };
    Ok(io::stdout().write_all(crate::metrics::print(&mounts).as_bytes())?)
}

fn status(mountpoint: &Path, json: bool) -> Result<(), Failure> {
    let status = ask_status(mountpoint)?;
    let mut out = io::stdout().lock();
    if json {
        let text = serde_json::to_string_pretty(&status).map_err(io::Error::other)?;
        return Ok(writeln!(out, "{text}")?);
    }
    Ok(out.write_all(describe(&status).as_bytes())?)
}

fn describe(status: &Status) -> String {
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    let limit = status.cache_limit.map_or("unlimited".into(), |limit| format!("{} MiB", mib(limit)));
    let next = status.next_check.map_or("never".into(), |seconds| format!("in {seconds} s"));
    let mut lines = vec![
        ("repository", status.fqrn.clone()),
        ("mountpoint", status.mountpoint.clone()),
        ("revision", format!("{} ({})", status.revision, status.root_hash)),
        ("next check", next),
        ("server", format!("{} through {}", status.host, status.proxy)),
        ("client", format!("{}, process {}, up {} s", status.version, status.pid, status.uptime)),
        ("catalogs", format!("{} attached", status.catalogs)),
        (
            "kernel",
            format!(
                "{} inodes, {} open files, {} requests, passthrough {}",
                status.inodes,
                status.open_files,
                status.requests.values().sum::<u64>(),
                status.passthrough
            ),
        ),
        (
            "cache",
            format!(
                "{} MiB of {limit} in {}, {} clean-ups",
                mib(status.cache_used),
                status.cache,
                status.cache_evictions
            ),
        ),
        (
            "network",
            format!(
                "{} objects, {} MiB, {} retries, {} fail-overs",
                status.downloads,
                mib(status.received),
                status.retries,
                status.failovers
            ),
        ),
        ("ahead", describe_ahead(&status.prefetch)),
        ("I/O errors", status.io_errors.to_string()),
    ];
    if let Some(seconds) = status.switched {
        lines.insert(5, ("SWITCHED", format!("{seconds} s ago, from a server or proxy that failed")));
    }
    if status.detached {
        lines.insert(2, ("DETACHED", "unmounted, and kept for those who still use it".into()));
    }
    if let Some(why) = &status.prefetch.resting {
        lines.push(("RESTING", format!("nothing is fetched ahead for a while: {why}")));
    }
    if let Some(place) = &status.bare {
        lines.insert(2, ("and bare on", place.clone()));
    }
    if let Some(tag) = &status.tag {
        lines.insert(3, ("snapshot", tag.clone()));
    }
    if let Some(why) = &status.offline {
        lines.insert(3, ("OFFLINE", why.clone()));
    }
    lines.iter().map(|(name, value)| format!("{name:<12}{value}\n")).collect()
}

fn describe_ahead(ahead: &Summary) -> String {
    if !ahead.enabled {
        return "nothing".into();
    }
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    let mut text = format!(
        "{} objects, {} MiB, of which {} MiB are not used",
        ahead.fetched,
        mib(ahead.fetched_bytes),
        mib(ahead.unused_bytes)
    );
    for (number, what) in [
        (ahead.waiting as u64, "waiting"),
        (ahead.left_out, "left out"),
        (ahead.failures, "failed"),
        (ahead.delayed, "readers delayed"),
    ] {
        if number > 0 {
            text.push_str(&format!(", {number} {what}"));
        }
    }
    text
}

fn remount(mountpoint: &Path) -> Result<(), Failure> {
    use crate::remount::Outcome;
    let outcome = control::ask_remount(&socket(mountpoint)).map_err(|_| Failure::NotMounted(mountpoint.to_owned()))?;
    let text = match outcome {
        Outcome::UpToDate { revision } => format!("up to date: revision {revision}"),
        Outcome::Applied { from, revision } => format!("revision {revision} (before: {from})"),
        Outcome::Fixed { revision } => format!("fixed to revision {revision}"),
        Outcome::Failed { error, .. } => return Err(Failure::Remount(error)),
    };
    Ok(writeln!(io::stdout(), "{text}")?)
}

/// Path in the repository of what lies below a mountpoint.
fn inside(mountpoint: &Path, path: &Path) -> Result<RepoPath, Failure> {
    let outside = || Failure::Outside { path: path.to_owned(), mountpoint: mountpoint.to_owned() };
    let (point, place) = (mountpoint.canonicalize()?, path.canonicalize()?);
    let rest = place.strip_prefix(&point).map_err(|_| outside())?;
    let path = [b"/", rest.as_os_str().as_bytes()].concat();
    RepoPath::parse(path).map_err(|_| outside())
}

fn prefetch(mountpoint: &Path, list: Option<&Path>, bases: &[PathBuf], name: Option<String>) -> Result<(), Failure> {
    let mut announcement = Announcement { name, ..Announcement::default() };
    for base in bases {
        announcement.bases.push(inside(mountpoint, base)?.to_string());
    }
    if let Some(list) = list {
        match inside(mountpoint, list) {
            Ok(path) => announcement.list = Some(path.to_string()),
            Err(_) => announcement.file = Some(std::path::absolute(list)?.to_string_lossy().into_owned()),
        }
    }
    let said = control::ask_prefetch(&socket(mountpoint), &announcement).map_err(Failure::Prefetch)?;
    let left_out = if said.left_out > 0 { format!(", {} lines left out", said.left_out) } else { String::new() };
    Ok(writeln!(io::stdout(), "fetching {} files, {} bytes{left_out}", said.files, said.bytes)?)
}

fn record(arguments: &RecordArgs) -> Result<(), Failure> {
    let socket = socket(&arguments.mountpoint);
    let base = match &arguments.base {
        Some(base) => inside(&arguments.mountpoint, base)?,
        None => RepoPath::ROOT,
    };
    if !arguments.stop {
        control::ask_record(&socket).map_err(|_| Failure::NotMounted(arguments.mountpoint.clone()))?;
    }
    if arguments.start {
        return Ok(());
    }
    let mut failed = None;
    if let [command, rest @ ..] = &arguments.command[..] {
        let mut process = std::process::Command::new(command);
        process.args(rest);
        if arguments.output.is_none() {
            process.stdout(io::stderr());
        }
        let status = process.status().map_err(|source| Failure::Command { command: command.clone(), source })?;
        failed = (!status.success()).then(|| Failure::CommandFailed { command: command.clone(), status });
    }
    let list = control::ask_recorded(&socket, &base).map_err(Failure::Record)?;
    match &arguments.output {
        Some(file) => std::fs::write(file, list)?,
        None => io::stdout().write_all(list.as_bytes())?,
    }
    failed.map_or(Ok(()), Err)
}

fn probe(named: &[PathBuf], config_dir: &Path) -> Result<(), Failure> {
    let (configured, mounts) = config::repositories(config_dir)?;
    let all: Vec<PathBuf> = if !named.is_empty() {
        // A name is a word without a slash.
        named.iter().map(|name| if name.components().count() == 1 { mounts.join(name) } else { name.clone() }).collect()
    } else if !configured.is_empty() {
        configured
    } else {
        control::all().into_iter().map(|status| status.mountpoint.into()).collect()
    };
    let mut failed = false;
    let mut out = io::stdout().lock();
    for mountpoint in all {
        let readable = is_readable(&mountpoint);
        failed |= !readable;
        writeln!(out, "Probing {}... {}", mountpoint.display(), if readable { "OK" } else { "Failed!" })?;
    }
    if failed { Err(Failure::Probe) } else { Ok(()) }
}

/// Whether a repository is mounted there, by whomever, and its root directory can be listed.
fn is_readable(mountpoint: &Path) -> bool {
    // Listing comes first: it makes an automounter mount.
    let listed = std::fs::read_dir(mountpoint).is_ok_and(|mut entries| entries.all(|entry| entry.is_ok()));
    // Ours may have no attributes (CVMFS_XATTRS=no), but then it answers.
    let is_repository = || xattr::get(mountpoint, "user.fqrn").is_ok_and(|fqrn| fqrn.is_some());
    listed && (is_repository() || ask_status(mountpoint).is_ok())
}

fn showconfig(fqrn: &str, json: bool, source: &SourceArgs) -> Result<(), Failure> {
    let flags = source.flags();
    let gathered = config::gather(fqrn, &source.config_dir, &flags)?;
    let shown = config::table::shown(&gathered.parameters);
    let mut out = io::stdout().lock();
    if json {
        let text = serde_json::to_string_pretty(&shown).map_err(io::Error::other)?;
        writeln!(out, "{text}")?;
    } else {
        writeln!(out, "CVMFS_REPOSITORY_NAME={}", gathered.fqrn)?;
        for line in &shown {
            let remark = line.remark.iter().map(|remark| format!("; {remark}")).collect::<String>();
            writeln!(out, "{}={}    # {}{remark}", line.name, line.value, line.origin)?;
        }
    }
    drop(out);
    // Says what is missing or wrong, although the list itself has been printed.
    for remark in config::table::remarks(&gathered.parameters) {
        tracing::warn!("{remark}");
    }
    if let Err(error) = Config::load(&gathered.fqrn, &source.config_dir, &flags) {
        tracing::warn!(error = %Chain(&error), "this repository cannot be mounted like this");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }
}
