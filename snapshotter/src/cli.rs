//! The command line.

mod doctor;
mod install;
mod pull;
mod resolve;
mod status;

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use image::platform::Platform;

use crate::config::{Config, ConfigError, LogFormat};
use crate::control;
use crate::install::{Engine, Version, Versions};
use crate::pull::Wish;

const EXAMPLES: &str = "\
Examples:
  cvmfs-snapshotter install --containerd
  cvmfs-snapshotter doctor
  cvmfs-snapshotter pull docker.io/library/python:3.12
  cvmfs-snapshotter status
  cvmfs-snapshotter resolve sha256:3f1c…
  cvmfs-snapshotter convert-local --dry-run";

/// Lets containerd start images without downloading them, from repositories mounted below /cvmfs.
#[derive(Debug, Parser)]
#[command(name = "cvmfs-snapshotter", version, after_help = EXAMPLES, max_term_width = 120)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Where help lists what every command takes.
const ALL: &str = "Options of all commands";

/// What every command takes.
#[derive(Debug, Args)]
struct Global {
    /// Configuration file; files in conf.d beside it are read after it [default: /etc/cvmfs-snapshotter/config.toml, if it is there]
    #[arg(long, global = true, value_name = "FILE", env = "CVMFS_SNAPSHOTTER_CONFIG", hide_env_values = true, help_heading = ALL)]
    config: Option<PathBuf>,
    /// Socket for containerd
    #[arg(long, global = true, value_name = "SOCKET", env = "CVMFS_SNAPSHOTTER_ADDRESS", hide_env_values = true, help_heading = ALL)]
    address: Option<PathBuf>,
    /// State directory
    #[arg(long, global = true, value_name = "DIR", env = "CVMFS_SNAPSHOTTER_ROOT", hide_env_values = true, help_heading = ALL)]
    root: Option<PathBuf>,
    /// Which events to log: error, warn, info, debug, or a filter such as snapshotter::daemon=debug
    #[arg(long, global = true, value_name = "FILTER", env = "CVMFS_SNAPSHOTTER_LOG", hide_env_values = true, help_heading = ALL)]
    log_level: Option<String>,
}

impl Global {
    /// The configuration with what the command line says otherwise.
    fn read(&self) -> Result<Config, ConfigError> {
        let mut config = Config::read(self.config.as_deref())?;
        if let Some(address) = &self.address {
            config.address.clone_from(address);
        }
        if let Some(root) = &self.root {
            config.root.clone_from(root);
        }
        if let Some(level) = &self.log_level {
            config.log_level.clone_from(level);
        }
        Ok(config)
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon
    #[command(
        after_help = "Examples:\n  cvmfs-snapshotter serve\n  cvmfs-snapshotter serve --rebuild      after the database was damaged"
    )]
    Serve {
        /// Set the database aside and make it anew from the snapshot directories
        #[arg(long)]
        rebuild: bool,
    },
    /// Pull an image, lazily with every version of containerd; needs the daemon
    ///
    /// `ctr images pull` of containerd 1.6 and 1.7 downloads all layers, because it tells a snapshotter nothing of them. This command
    /// asks for each layer first and downloads only what no repository has. Passwords come from the Docker configuration. The image
    /// gets the name that `ctr run`, nerdctl and the kubelet look for.
    #[command(
        after_help = "Examples:\n  cvmfs-snapshotter pull docker.io/library/python:3.12\n  cvmfs-snapshotter pull --namespace k8s.io quay.io/example/tool:1.4\n  cvmfs-snapshotter pull --json 127.0.0.1:5000/app:1 | jq .layers\n  cvmfs-snapshotter pull --hosts-dir /etc/containerd/certs.d quay.io/example/tool:1.4"
    )]
    Pull {
        /// Image; with its tag or digest
        image: String,
        /// Namespace of containerd: default for ctr and nerdctl, k8s.io for Kubernetes, moby for Docker
        #[arg(
            long,
            value_name = "NAME",
            default_value = "default",
            env = "CONTAINERD_NAMESPACE",
            hide_env_values = true
        )]
        namespace: String,
        /// For which machine [default: this one]
        #[arg(long, value_name = "OS/ARCHITECTURE")]
        platform: Option<Platform>,
        /// Ask the registry over HTTP without TLS; registries of this machine always are
        #[arg(long)]
        plain_http: bool,
        /// Directory that names mirrors, as containerd's certs.d; they are asked for manifests and configs before the registry
        #[arg(long, value_name = "DIR")]
        hosts_dir: Option<PathBuf>,
        /// Print the result as JSON
        #[arg(long)]
        json: bool,
    },
    /// Show the state of the running daemon
    #[command(after_help = "Examples:\n  cvmfs-snapshotter status\n  cvmfs-snapshotter status --json | jq .layers")]
    Status {
        /// Print everything as JSON
        #[arg(long)]
        json: bool,
    },
    /// Explain where layers would come from, without pulling anything; needs no daemon
    #[command(
        after_help = "Examples:\n  cvmfs-snapshotter resolve docker.io/library/python:3.12\n  cvmfs-snapshotter resolve sha256:3f1c…   a layer digest, a diff ID or a chain ID"
    )]
    Resolve {
        /// Image, as published, or a digest
        what: String,
        /// Print everything as JSON
        #[arg(long)]
        json: bool,
    },
    /// Look for what is wrong with this node, and say what to do about it
    ///
    /// Looks at the repositories and how they are mounted, at the kernel, at the daemon, at containerd and its configuration, and for
    /// images that only another snapshotter has. Changes nothing. Status 1 if something does not work.
    #[command(
        after_help = "Examples:\n  cvmfs-snapshotter doctor\n  cvmfs-snapshotter doctor --json | jq '.[] | select(.state != \"ok\")'"
    )]
    Doctor {
        /// Print everything as JSON
        #[arg(long)]
        json: bool,
    },
    /// Register the snapshotter with an engine: its configuration, and units of systemd
    ///
    /// Writes what the version that is found understands, prints the difference, and keeps the files as they were. Comments and the
    /// form of a file stay. Restarts nothing; the commands to go on with are printed.
    #[command(
        after_help = "Examples:\n  cvmfs-snapshotter install --containerd --dry-run\n  cvmfs-snapshotter install --containerd\n  cvmfs-snapshotter install --docker\n  cvmfs-snapshotter install --k3s --containerd-version 2.0"
    )]
    #[command(group = clap::ArgGroup::new("engine").required(true).multiple(true))]
    Install {
        /// containerd 1.6 or newer, and with it Kubernetes
        #[arg(long, group = "engine")]
        containerd: bool,
        /// Docker 24 or newer on the containerd of this machine
        #[arg(long, group = "engine")]
        docker: bool,
        /// k3s with its own containerd
        #[arg(long, group = "engine", conflicts_with_all = ["containerd", "docker"])]
        k3s: bool,
        /// Version of containerd [default: what `containerd --version` says]
        #[arg(long, value_name = "VERSION", value_parser = version)]
        containerd_version: Option<Version>,
        /// Only print the difference
        #[arg(long)]
        dry_run: bool,
        /// Directory that stands for /, for machine images
        #[arg(long, value_name = "DIR", default_value = "/")]
        root_prefix: PathBuf,
    },
    /// Take back what install did; files that somebody has changed since are left alone
    #[command(after_help = "Examples:\n  cvmfs-snapshotter uninstall --dry-run\n  cvmfs-snapshotter uninstall")]
    Uninstall {
        /// Only say what would be taken back
        #[arg(long)]
        dry_run: bool,
        /// Directory that stands for /, for machine images
        #[arg(long, value_name = "DIR", default_value = "/")]
        root_prefix: PathBuf,
    },
    /// Give back the disk of layers that were unpacked here before they were published
    #[command(after_help = "Examples:\n  cvmfs-snapshotter convert-local --dry-run\n  cvmfs-snapshotter convert-local")]
    ConvertLocal {
        /// Only say what would be converted
        #[arg(long)]
        dry_run: bool,
        /// Print everything as JSON
        #[arg(long)]
        json: bool,
    },
    /// Print the configuration as it is in force
    #[command(after_help = "Examples:\n  cvmfs-snapshotter config > /etc/cvmfs-snapshotter/config.toml")]
    Config,
}

/// Exit status by what went wrong; the same for all programs of this project.
#[derive(Debug, Clone, Copy)]
enum Failed {
    /// the request could not be carried out
    Request = 1,
    /// the configuration makes no sense
    Config = 3,
}

/// Parses the command line and runs it.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    let config = match cli.global.read() {
        Ok(config) => config,
        Err(error) => return complain(&error.into(), Failed::Config),
    };
    if let Err(error) = log(&config, matches!(cli.command, Command::Serve { .. })) {
        return complain(&error, Failed::Config);
    }
    // Two providers may be compiled in; without a choice the first connection would panic.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return complain(&error.into(), Failed::Request),
    };
    let result = runtime.block_on(run(&cli, config));
    // A look into a repository that hangs must not hold the process.
    runtime.shutdown_background();
    match result {
        Ok(code) => code,
        Err(error) => complain(&error, Failed::Request),
    }
}

async fn run(cli: &Cli, config: Config) -> anyhow::Result<ExitCode> {
    match &cli.command {
        Command::Serve { rebuild } => crate::serve::serve(config, *rebuild).await?,
        Command::Pull { image, namespace, platform, plain_http, hosts_dir, json } => {
            let wish = Wish {
                image: crate::pull::reference(image, *plain_http)?,
                platform: platform.clone().map_or_else(this_machine, Ok)?,
                namespace: namespace.clone(),
                hosts: hosts_dir.clone(),
            };
            return pull::pull(&config, &wish, *json).await;
        }
        Command::Status { json } => return status::status(&config, *json).await,
        Command::Resolve { what, json } => return resolve::resolve(&config, what, *json).await,
        Command::Doctor { json } => return doctor::doctor(&config, *json).await,
        Command::Install { containerd, docker, k3s, containerd_version, dry_run, root_prefix } => {
            let engines = [(*containerd, Engine::Containerd), (*docker, Engine::Docker), (*k3s, Engine::K3s)];
            let engines: Vec<Engine> =
                engines.into_iter().filter(|(wanted, _)| *wanted).map(|(_, engine)| engine).collect();
            let versions = Versions { named: *containerd_version, look: true };
            return install::install(&config, root_prefix, &engines, &versions, *dry_run);
        }
        Command::Uninstall { dry_run, root_prefix } => return install::uninstall(root_prefix, *dry_run),
        Command::ConvertLocal { dry_run, json } => {
            let converted = control::ask_convert(&config.control(), *dry_run).await?;
            if *json {
                print(&serde_json::to_string_pretty(&converted)?)?;
            } else {
                print(&status::converted(&converted, *dry_run))?;
            }
        }
        Command::Config => print(config.print().trim_end())?,
    }
    Ok(ExitCode::SUCCESS)
}

fn version(text: &str) -> Result<Version, String> {
    Version::find(text).ok_or_else(|| "write for instance 1.7".to_owned())
}

fn this_machine() -> anyhow::Result<Platform> {
    Ok(Platform::new("linux", std::env::consts::ARCH, None)?)
}

fn log(config: &Config, daemon: bool) -> anyhow::Result<()> {
    let level = if daemon { config.log_level.as_str() } else { "warn" };
    let filter = tracing_subscriber::EnvFilter::try_new(level)?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match config.log_format {
        LogFormat::Text => builder.with_ansi(false).init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}

/// A result; that nobody reads it is no reason to fail loudly.
fn print(text: &str) -> io::Result<()> {
    match writeln!(io::stdout(), "{text}") {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => done,
    }
}

fn complain(error: &anyhow::Error, failed: Failed) -> ExitCode {
    let _ = writeln!(io::stderr(), "Error: {error}");
    for (number, cause) in error.chain().skip(1).enumerate() {
        let _ = writeln!(io::stderr(), "{}: {cause}", number + 1);
    }
    ExitCode::from(failed as u8)
}
