//! Runs the daemon: state, sockets, signals, the service manager.
//!
//! A start deletes no state and needs no repository. The socket is taken over from systemd if it hands one over, so that containerd's
//! calls wait during a restart instead of failing; otherwise it is made anew. An end by signal lets running requests finish.

use std::future::IntoFuture as _;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::wrappers::UnixListenerStream;

use crate::config::{Auto, Config};
use crate::control;
use crate::daemon::Daemon;
use crate::directories::Directories;
use crate::metadata::Metadata;
use crate::metrics::Metrics;
use crate::overlay;
use crate::proto::snapshots_server::SnapshotsServer;
use crate::service::Service;
use crate::snapshots::Snapshots;

/// What running requests get after a signal.
const GRACE: Duration = Duration::from_secs(5);
/// How often repositories are looked at when nobody asks.
const PROBE: Duration = Duration::from_secs(30);
/// A page of `List` has 100 snapshots with labels of up to 4 KiB each; containerd itself takes this much.
const MESSAGE: usize = 16 << 20;

/// Serves until a signal comes.
pub async fn serve(config: Config, rebuild: bool) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mountpoints =
        config.repositories.iter().map(|repository| (repository.name.clone(), repository.mountpoint())).collect();
    let directories = Arc::new(Directories::open(&config.root, mountpoints)?);
    let metadata = if rebuild {
        let (metadata, count) = Metadata::rebuild(&directories)?;
        tracing::warn!(snapshots = count, "the database was made anew from the snapshot directories");
        metadata
    } else {
        Metadata::open(&directories)?
    };
    let mut options = overlay::Options::of_this_kernel();
    options.userxattr = match config.overlay.userxattr {
        Auto::On => true,
        Auto::Off => false,
        Auto::Auto => in_user_namespace(),
    };
    options.volatile = config.overlay.volatile;
    options.extra.clone_from(&config.overlay.extra);
    let snapshots = Arc::new(Snapshots::new(metadata, directories, options));
    let metrics = Arc::new(Metrics::default());
    let (address, control_address) = (config.address.clone(), config.control());
    let metrics_address = config.metrics.address;
    let daemon = Arc::new(Daemon::new(config, snapshots, metrics));

    let (listener, activated) = match inherited()? {
        Some(listener) => (listener, true),
        None => (listen(&address)?, false),
    };
    let control_listener = listen(&control_address)?;
    tokio::spawn(axum::serve(control_listener, control::router(Arc::clone(&daemon))).into_future());
    if let Some(address) = metrics_address {
        let listener = tokio::net::TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address} for metrics"))?;
        tokio::spawn(axum::serve(listener, control::public_router(Arc::clone(&daemon))).into_future());
    }

    // What an earlier process had no time to delete.
    let trash = Arc::clone(daemon.snapshots());
    tokio::task::spawn_blocking(move || {
        if let Err(error) = trash.cleanup() {
            tracing::warn!(%error, "files of removed snapshots could not be deleted");
        }
    });
    tokio::spawn(watch(Arc::clone(&daemon)));

    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<SnapshotsServer<Service>>().await;
    let service = SnapshotsServer::new(Service(Arc::clone(&daemon)))
        .max_decoding_message_size(MESSAGE)
        .max_encoding_message_size(MESSAGE);
    let stopped = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("ending; containers go on");
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    };
    let (ending, ended) = tokio::sync::oneshot::channel();
    let server = tonic::transport::Server::builder()
        .add_service(health_service)
        .add_service(service)
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), async move {
            stopped.await;
            let _ = ending.send(());
        });
    for repository in daemon.repositories() {
        tracing::info!(repository = repository.name(), mountpoint = %repository.mountpoint().display(), "serving layers of");
    }
    tracing::info!(address = %address.display(), control = %control_address.display(), activated, "ready");
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    tokio::select! {
        done = server => done.context("the socket of containerd can't be served")?,
        () = async { let _ = ended.await; tokio::time::sleep(GRACE).await } => {
            tracing::warn!("requests were still running after {} s", GRACE.as_secs());
        }
    }
    let _ = std::fs::remove_file(&control_address);
    Ok(())
}

/// Keeps what monitoring and the service manager see up to date.
async fn watch(daemon: Arc<Daemon>) {
    let watchdog = sd_notify::watchdog_enabled();
    let pause = watchdog.map_or(PROBE, |limit| (limit / 2).min(PROBE));
    loop {
        for repository in daemon.repositories() {
            let down = repository.probe().await.err();
            daemon.metrics().repository_up(repository.name(), down.is_none());
            if let Some(down) = down {
                tracing::debug!(repository = repository.name(), %down, "a repository can't be read");
            }
        }
        if watchdog.is_some() {
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
        }
        tokio::time::sleep(pause).await;
    }
}

/// The socket that systemd holds for us, if it does.
fn inherited() -> anyhow::Result<Option<UnixListener>> {
    let mut handed = listenfd::ListenFd::from_env();
    let Some(listener) = handed.take_unix_listener(0).context("systemd handed over something that is no socket")?
    else {
        return Ok(None);
    };
    listener.set_nonblocking(true)?;
    Ok(Some(UnixListener::from_std(listener)?))
}

/// A socket for root alone; one that a killed process left behind is replaced, one that is answered is not.
fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    let directory = path.parent().context("a socket needs a directory")?;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => bail!("another process answers on {}; is a cvmfs-snapshotter running?", path.display()),
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).with_context(|| format!("cannot replace {}", path.display()))?;
        }
        Err(_) => {}
    }
    let listener = UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Are we root of a user namespace only?
fn in_user_namespace() -> bool {
    // The first namespace maps all users to themselves.
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().collect::<Vec<_>>() != ["0", "0", "4294967295"]
}
