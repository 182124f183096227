//! The command line: every option, its help text and its default in one place.
//!
//! Scripts depend on it; the whole help text is kept in `tests/cli-reference.txt` and compared by a test.

// The comments on commands and options are help texts for a terminal, not documentation in Markdown.
#![allow(rustdoc::bare_urls, rustdoc::broken_intra_doc_links, rustdoc::invalid_html_tags)]

mod commands;
mod failure;

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use image::platform::Platform;

use crate::build::Platforms;
use crate::mirror::snippets;
use crate::plugin;
pub use failure::{Usage, exit_status};

/// Run images from a mounted CernVM-FS repository, with any engine
///
/// A thin image is an ordinary image of a few KB that says which layers of a repository it stands for. It is made from what
/// cvmfs-publisher left in the repository, pushed to a registry or loaded into an engine. Podman gets a store of its own, a mirror
/// answers for registries that are down, and plugins let any Docker use repositories.
#[derive(Debug, Parser)]
#[command(
    name = "thin-image",
    version,
    arg_required_else_help = true,
    max_term_width = 100,
    after_long_help = "\
Exit status:
  0  done
  1  it could not be done
  2  the command line is wrong
  3  the configuration is wrong
  4  the repository can't be used: not mounted, not readable

Examples:
  Push the thin image of a published one, and look at it:
    thin-image push debian:stable registry.example.org/thin/debian:stable --repo images.example.org
    thin-image inspect registry.example.org/thin/debian:stable"
)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// What every command takes.
#[derive(Debug, Args)]
struct Global {
    /// Where repositories are mounted
    #[arg(long, global = true, help_heading = "Global options", value_name = "DIR", default_value = "/cvmfs")]
    cvmfs: PathBuf,
    /// Print results as JSON
    #[arg(long, global = true, help_heading = "Global options")]
    json: bool,
    /// Which events to log: error, warn, info, debug, or a filter [default: warn, and info for what serves]
    #[arg(long, global = true, help_heading = "Global options", value_name = "FILTER")]
    log_level: Option<String>,
}

/// In which repository an image is.
#[derive(Debug, Args)]
struct Place {
    /// Repository that has the image; a path below /cvmfs says it by itself
    #[arg(long, value_name = "FQRN")]
    repo: Option<String>,
    /// Where that repository is mounted [default: /cvmfs/FQRN]
    #[arg(long, value_name = "DIR")]
    mountpoint: Option<PathBuf>,
}

/// Which machines and which name.
#[derive(Debug, Args)]
struct Shape {
    /// For which machines, for instance linux/arm64, or all that are published
    #[arg(long, value_name = "OS/ARCHITECTURE|all", default_value = "all")]
    platform: PlatformsArgument,
    /// Name in engines instead of that of the image
    #[arg(long = "as", value_name = "NAME:TAG")]
    name: Option<String>,
}

/// `all` or a platform.
#[derive(Debug, Clone)]
struct PlatformsArgument(Platforms);

impl std::str::FromStr for PlatformsArgument {
    type Err = image::platform::PlatformError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write the thin image of a published image to disk
    ///
    /// Makes it from the records in the repository; no registry is asked. Every layer has to be published. The same image gives the
    /// same bytes. An image that is published for several platforms becomes an index.
    #[command(after_long_help = "\
Examples:
  An OCI layout:
    thin-image build debian:stable --repo images.example.org --output debian

  An archive that docker load, podman load and ctr images import take:
    thin-image build debian:stable --repo images.example.org --output debian.tar
    thin-image build /cvmfs/images.example.org/quay.io/tools/app:1 --output - | docker load")]
    Build(Build),

    /// Push the thin image of a published image to a registry
    ///
    /// Needs no engine. Pushes only what the registry lacks, the name last, and nothing at all if the name has these bytes already.
    /// Passwords come from the Docker configuration; for --user from the variable CVMFS_PUBLISHER_OUTPUT_PASSWORD, from the file that
    /// CVMFS_PUBLISHER_OUTPUT_PASSWORD_FILE names, or from DUCC_OUTPUT_REGISTRY_PASS.
    #[command(after_long_help = "\
Examples:
  To a registry with TLS:
    thin-image push debian:stable registry.example.org/thin/debian:stable --repo images.example.org

  To a plain one:
    thin-image push debian:stable http://127.0.0.1:5000/debian:thin --repo images.example.org")]
    Push(Push),

    /// Show what a thin image stands for, and which of its layers this node has
    ///
    /// Takes an image of a registry, an OCI layout, an archive, a file thin.json, a path below /cvmfs, or with --repo the name of a
    /// published image. Refuses an image that leads anywhere but to layers of a repository.
    #[command(after_long_help = "\
Examples:
  From a registry:
    thin-image inspect registry.example.org/thin/debian:stable

  From disk, for a program:
    thin-image inspect debian.tar --json | jq '.images[].layers[].state'

  What is published:
    thin-image inspect /cvmfs/images.example.org/quay.io/tools/app:1")]
    Inspect(Inspect),

    /// Load published images into an engine of this machine
    ///
    /// Docker and containerd get thin images, and need the graph driver or the snapshotter to run them. Podman, CRI-O and Buildah can't
    /// run thin images; they get an additional image store, which this command makes and keeps: the images appear by their names
    /// without a byte being copied.
    #[command(after_long_help = "\
Examples:
  Into Docker:
    thin-image load debian:stable --repo images.example.org --docker

  Into containerd, for Kubernetes:
    thin-image load debian:stable --repo images.example.org --containerd --namespace k8s.io

  For Podman; storage.conf names the store in additionalimagestores:
    thin-image load debian:stable quay.io/tools/app:1 --repo images.example.org --podman-store /var/lib/cvmfs-images
    thin-image load debian:stable --podman-store /var/lib/cvmfs-images --remove")]
    Load(Load),

    /// Serve manifests and configs from /cvmfs to engines, as a mirror of all registries
    ///
    /// Images are found by their original names and digests, also while their registry is down. Layers are not served: engines that
    /// want one go on to the registry. The configuration is /etc/thin-image/config.toml, if it is there.
    #[command(after_long_help = "\
Examples:
  Serve a repository:
    thin-image mirror --repo images.example.org

  What to tell containerd:
    thin-image mirror --print containerd")]
    Mirror(Mirror),

    /// Serve Docker's graph driver protocol, so that Docker up to 27 runs thin images
    ///
    /// Docker keeps images and containers through this plugin as it does with overlay2; containers of a thin image stand on its layers in
    /// /cvmfs. Docker needs "experimental": true and "storage-driver": "cvmfs" in daemon.json. Docker 28 has no such plugins; use
    /// cvmfs-snapshotter with its containerd image store. Thin images may use the repositories in /etc/thin-image/config.toml. Runs as root
    /// in the mount namespace of Docker.
    #[command(after_long_help = "\
Examples:
  With the repositories of the configuration:
    thin-image graphdriver

  With one repository, and its volumes on the same socket:
    thin-image graphdriver --repo images.example.org --volumes")]
    Graphdriver(Graphdriver),

    /// Serve Docker's volume protocol, so that containers get repositories as volumes
    ///
    /// A volume that is called as a repository shows it; REPOSITORY@TAG and REPOSITORY#HASH show a snapshot. What the host has mounted is
    /// used as it is; anything else is mounted by cvmfs-client for as long as a container uses it. Works with every Docker.
    #[command(after_long_help = "\
Examples:
  Serve the repositories of the configuration:
    thin-image volumes

  What users then write:
    docker run --volume-driver cvmfs -v images.example.org:/cvmfs/images.example.org:ro debian ls /cvmfs/images.example.org")]
    Volumes(VolumesArguments),
}

#[derive(Debug, Args)]
struct Build {
    /// Image, as published, with its tag
    image: String,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    shape: Shape,
    /// Directory for an OCI layout, FILE.tar for an archive, - for an archive on standard output
    #[arg(long, short, value_name = "PATH")]
    output: PathBuf,
}

#[derive(Debug, Args)]
struct Push {
    /// Image, as published, with its tag
    image: String,
    /// Name in the registry, with a tag
    target: String,
    #[command(flatten)]
    place: Place,
    /// For which machines, for instance linux/arm64, or all that are published
    #[arg(long, value_name = "OS/ARCHITECTURE|all", default_value = "all")]
    platform: PlatformsArgument,
    /// User at the registry
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// File with a CA certificate to trust besides the system's, in PEM form
    #[arg(long, value_name = "FILE")]
    ca: Vec<PathBuf>,
}

#[derive(Debug, Args)]
struct Inspect {
    /// Image, directory, file, or path below /cvmfs
    what: String,
    #[command(flatten)]
    place: Place,
    /// File with a CA certificate to trust besides the system's, in PEM form
    #[arg(long, value_name = "FILE")]
    ca: Vec<PathBuf>,
}

#[derive(Debug, Args)]
struct Load {
    /// Images, as published, with their tags
    #[arg(required = true)]
    images: Vec<String>,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    into: EngineChoice,
    /// For which machine [default: this one]
    #[arg(long, value_name = "OS/ARCHITECTURE")]
    platform: Option<Platform>,
    /// Name in the engine instead of that of the image
    #[arg(long = "as", value_name = "NAME:TAG", conflicts_with = "podman_store")]
    name: Option<String>,
    /// Docker: its socket [default: that of DOCKER_HOST, else /var/run/docker.sock]
    #[arg(long, value_name = "SOCKET", conflicts_with_all = ["containerd", "podman", "podman_store"])]
    socket: Option<PathBuf>,
    /// containerd: its socket
    #[arg(long, value_name = "SOCKET", conflicts_with_all = ["docker", "podman", "podman_store"])]
    address: Option<PathBuf>,
    /// containerd: namespace of the image
    #[arg(long, value_name = "NAME", default_value = "default", conflicts_with_all = ["docker", "podman", "podman_store"])]
    namespace: String,
    /// containerd: who unpacks it
    #[arg(long, value_name = "NAME", conflicts_with_all = ["docker", "podman", "podman_store"])]
    snapshotter: Option<String>,
    /// Store for Podman: take the flat root of each image, also if its layers could be taken
    ///
    /// Containers then have one lower directory, and see what was added to the root for Apptainer. Images of which a layer is not
    /// published as overlayfs wants it are always taken like that.
    #[arg(long, conflicts_with_all = ["docker", "containerd", "podman", "remove"])]
    flat: bool,
    /// Store for Podman: take the images out of it
    #[arg(long, conflicts_with_all = ["docker", "containerd", "podman"])]
    remove: bool,
}

/// Which engine.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct EngineChoice {
    /// Into Docker, through its socket
    #[arg(long)]
    docker: bool,
    /// Into containerd, through ctr
    #[arg(long)]
    containerd: bool,
    /// Into Podman's own store, which keeps it but can't run it
    #[arg(long)]
    podman: bool,
    /// Into an additional image store of this machine, for Podman, CRI-O and Buildah
    #[arg(long, value_name = "DIR")]
    podman_store: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Mirror {
    /// Where to listen [default: 127.0.0.1:5080]
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// Repository to serve, instead of those of the configuration; several are asked in order
    #[arg(long, value_name = "FQRN")]
    repo: Vec<String>,
    /// Configuration file [default: /etc/thin-image/config.toml, if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Answer digests only, and leave tags to the registries
    #[arg(long)]
    no_tags: bool,
    /// Print what an engine has to be told, and serve nothing
    #[arg(long, value_name = "ENGINE")]
    print: Option<snippets::Engine>,
    /// With --print podman: registry that is to have the mirror [default: docker.io, quay.io and ghcr.io]
    #[arg(long, value_name = "HOST[:PORT]", requires = "print")]
    registry: Vec<String>,
}

/// What plugins of Docker have in common.
#[derive(Debug, Args)]
struct Plugin {
    /// Where Docker finds the plugin; the name of the file is that of the driver
    #[arg(long, value_name = "PATH", default_value = plugin::SOCKET)]
    socket: PathBuf,
    /// Repository that may be used, instead of those of the configuration
    #[arg(long, value_name = "FQRN")]
    repo: Vec<String>,
    /// Configuration file [default: /etc/thin-image/config.toml, if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// What is remembered over restarts
    #[arg(long, value_name = "DIR", default_value = plugin::STATE)]
    state: PathBuf,
    /// Program that mounts a repository for a volume
    #[arg(long, value_name = "PROGRAM", default_value = "cvmfs-client")]
    client: PathBuf,
}

#[derive(Debug, Args)]
struct Graphdriver {
    #[command(flatten)]
    plugin: Plugin,
    /// Serve volumes as well, under the same name
    #[arg(long)]
    volumes: bool,
}

#[derive(Debug, Args)]
struct VolumesArguments {
    #[command(flatten)]
    plugin: Plugin,
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
    let result = start(&cli);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            failure::complain(&error);
            ExitCode::from(exit_status(&error))
        }
    }
}

fn start(cli: &Cli) -> anyhow::Result<()> {
    let serves = matches!(cli.command, Command::Mirror(_) | Command::Graphdriver(_) | Command::Volumes(_));
    let usual = if serves { "info" } else { "warn" };
    let level = cli.global.log_level.as_deref().unwrap_or(usual);
    let filter = tracing_subscriber::EnvFilter::try_new(level)
        .map_err(|error| Usage(format!("--log-level {level}: {error}")))?;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(false).init();
    // Two providers may be compiled in; without a choice the first connection would panic.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(commands::run(&cli.command, &cli.global));
    // A look into a repository that hangs must not hold the process.
    runtime.shutdown_background();
    result
}

/// A result; that nobody reads it is no reason to fail.
fn print(text: &str) -> io::Result<()> {
    match writeln!(io::stdout(), "{}", text.trim_end()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => done,
    }
}
