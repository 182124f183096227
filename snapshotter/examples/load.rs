//! Puts load on a daemon and prints one line of JSON: how long calls take with many clients and many snapshots.
//!
//! ```text
//! load --program target/release/cvmfs-snapshotter     starts a daemon of its own
//! load --socket S --repository DIR --pid N            takes a running one, whose repository is the directory DIR
//! ```
//! Layers are published into the directory first. Then `count` of them are prepared by `clients` connections at the same time, and
//! again; then containers are prepared until there are `snapshots` snapshots, and lists are timed. A daemon of its own is started
//! again at the end, to see how long that takes with so many.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use clap::Parser;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::snapshots::{ListSnapshotsRequest, PrepareSnapshotRequest};
use image::digest::{ChainId, DiffId, LayerDigest};
use image::layout::{FormatRecord, IndexKey, Layout, OwnedPath};
use tonic::Code;
use tonic::transport::Channel;

/// Puts load on a cvmfs-snapshotter.
#[derive(Debug, Parser)]
struct Arguments {
    /// Program to start
    #[arg(long, conflicts_with_all = ["socket", "repository", "pid"], required_unless_present_all = ["socket", "repository", "pid"])]
    program: Option<PathBuf>,
    /// Socket of a running daemon
    #[arg(long)]
    socket: Option<PathBuf>,
    /// Directory of a repository that it serves; layers are made in it
    #[arg(long)]
    repository: Option<PathBuf>,
    /// Process whose memory is of interest
    #[arg(long)]
    pid: Option<u32>,
    /// Connections at the same time
    #[arg(long, default_value_t = 64)]
    clients: usize,
    /// Layers to prepare
    #[arg(long, default_value_t = 2000)]
    count: usize,
    /// Snapshots to have in the end
    #[arg(long, default_value_t = 10_000)]
    snapshots: usize,
}

type Client = SnapshotsClient<Channel>;

const REFERENCE: &str = "containerd.io/snapshot.ref";

#[derive(Debug, Clone, Copy)]
struct Layer {
    digest: LayerDigest,
    chain: ChainId,
}

fn publish(repository: &Path, number: usize) -> anyhow::Result<Layer> {
    let (digest, diff) = (LayerDigest::of(&number.to_le_bytes()), DiffId::of(&number.to_le_bytes()));
    let chain = ChainId::on(None, diff);
    let layout = Layout::new();
    let at = |path: &OwnedPath| repository.join(layout.print(path));
    std::fs::create_dir_all(at(&OwnedPath::LayerContent(digest)))?;
    std::fs::write(at(&OwnedPath::LayerContent(digest)).join("file"), number.to_string())?;
    let format = FormatRecord {
        whiteouts: FormatRecord::OVERLAY.into(),
        xattrs: true,
        diff_id: diff,
        size: 1024,
        entries: 1,
        rows: 1,
        lost: Vec::new(),
        lost_more: 0,
        owners: true,
        settled_on: None,
        implicit: Vec::new(),
    };
    let record = at(&OwnedPath::LayerFormat(digest));
    std::fs::create_dir_all(record.parent().expect("it is below the layer"))?;
    std::fs::write(record, format.to_bytes())?;
    let key = OwnedPath::Index(IndexKey::ChainId(chain));
    std::fs::create_dir_all(at(&key).parent().expect("it is below the index"))?;
    let _ = std::fs::remove_file(at(&key));
    std::os::unix::fs::symlink(layout.link(&key, &OwnedPath::Layer(digest)), at(&key))?;
    Ok(Layer { digest, chain })
}

async fn connect(socket: &Path) -> anyhow::Result<Client> {
    let start = Instant::now();
    loop {
        match containerd_client::connect(socket).await {
            Ok(channel) => return Ok(SnapshotsClient::new(channel).max_decoding_message_size(16 << 20)),
            Err(_) if start.elapsed() < Duration::from_secs(60) => tokio::time::sleep(Duration::from_millis(5)).await,
            Err(error) => return Err(error).context("the daemon does not answer"),
        }
    }
}

/// Prepares `count` snapshots from all clients at the same time; returns how long each took, in milliseconds, sorted.
async fn prepare(
    clients: &[Client],
    count: usize,
    expected: Code,
    request: impl Fn(usize) -> PrepareSnapshotRequest + Send + Sync + 'static,
) -> anyhow::Result<Vec<f64>> {
    let (request, next) = (Arc::new(request), Arc::new(AtomicUsize::new(0)));
    let workers = clients.iter().cloned().map(|mut client| {
        let (request, next) = (Arc::clone(&request), Arc::clone(&next));
        tokio::spawn(async move {
            let mut times = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return Ok(times);
                }
                let start = Instant::now();
                let code = client.prepare(request(number)).await.map_or_else(|status| status.code(), |_| Code::Ok);
                times.push(start.elapsed().as_secs_f64() * 1000.0);
                ensure!(code == expected, "call {number} was answered with {code:?}");
            }
        })
    });
    let mut times = Vec::new();
    for worker in workers.collect::<Vec<_>>() {
        times.extend(worker.await??);
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

fn figures(times: &[f64]) -> serde_json::Value {
    let at = |part: f64| {
        let position = (times.len() as f64 * part) as usize;
        round(times[position.min(times.len() - 1)])
    };
    serde_json::json!({"p50": at(0.5), "p99": at(0.99), "max": at(1.0)})
}

fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

/// Milliseconds of a list, and how many snapshots are in it.
async fn list(client: &mut Client, filter: Option<String>) -> anyhow::Result<(f64, usize)> {
    let start = Instant::now();
    let request = ListSnapshotsRequest { filters: filter.into_iter().collect(), ..ListSnapshotsRequest::default() };
    let mut stream = client.list(request).await?.into_inner();
    let mut count = 0;
    while let Some(page) = stream.message().await? {
        count += page.info.len();
    }
    Ok((round(start.elapsed().as_secs_f64() * 1000.0), count))
}

/// A line of the kernel's account of a process, in megabytes.
fn memory(pid: u32, line: &str) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let value = status.lines().find_map(|text| text.strip_prefix(line)).context("the kernel has no such line")?;
    let kilobytes: f64 = value.trim_start_matches(':').trim().trim_end_matches("kB").trim().parse()?;
    Ok(round(kilobytes / 1024.0))
}

/// A daemon of our own; killed when dropped.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(program: &Path, directory: &Path) -> anyhow::Result<Daemon> {
    let text = |name: &str| directory.join(name).display().to_string();
    let config = format!(
        "root = {:?}\naddress = {:?}\nlog_level = \"warn\"\nfill_missing = \"off\"\n[[repositories]]\nname = \"images.example.org\"\nmountpoint = {:?}\n",
        text("s"),
        text("r/snapshotter.sock"),
        text("cvmfs"),
    );
    std::fs::write(directory.join("config.toml"), config)?;
    let mut command = Command::new(program);
    command.arg("--config").arg(directory.join("config.toml")).arg("serve").stdout(Stdio::null());
    Ok(Daemon(command.spawn().with_context(|| program.display().to_string())?))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    ensure!(
        arguments.count > 0 && arguments.snapshots > arguments.count && arguments.clients > 0,
        "counts make no sense"
    );
    let directory = tempfile::Builder::new().prefix("load").tempdir()?;
    let mut own = None;
    let (socket, repository, pid) = match (&arguments.program, &arguments.socket, &arguments.repository, arguments.pid)
    {
        (Some(program), ..) => {
            let daemon = own.insert(start(program, directory.path())?);
            (directory.path().join("r/snapshotter.sock"), directory.path().join("cvmfs"), daemon.0.id())
        }
        (None, Some(socket), Some(repository), Some(pid)) => (socket.clone(), repository.clone(), pid),
        _ => bail!("--program, or --socket, --repository and --pid"),
    };
    let layers = (0..arguments.count).map(|number| publish(&repository, number)).collect::<Result<Vec<_>, _>>()?;
    let mut clients = Vec::new();
    for _ in 0..arguments.clients {
        clients.push(connect(&socket).await?);
    }
    let memory_before = memory(pid, "VmRSS")?;

    let labelled = {
        let layers = layers.clone();
        move |number: usize| {
            let Layer { digest, chain } = layers[number];
            let labels = HashMap::from([
                (REFERENCE.to_owned(), chain.to_string()),
                ("containerd.io/snapshot/cri.layer-digest".to_owned(), digest.to_string()),
            ]);
            let key = format!("default/{number}/extract {chain}");
            PrepareSnapshotRequest { key, labels, ..PrepareSnapshotRequest::default() }
        }
    };
    let present = prepare(&clients, arguments.count, Code::AlreadyExists, labelled.clone()).await?;
    let existing = prepare(&clients, arguments.count, Code::AlreadyExists, labelled).await?;
    // containerd's question after each of them.
    let filter = |layer: &Layer| format!("labels.{REFERENCE:?}=={},parent==\"\"", layer.chain);
    let request = ListSnapshotsRequest { filters: vec![filter(&layers[0])], ..ListSnapshotsRequest::default() };
    let page = clients[0].list(request).await?.into_inner().message().await?;
    let base = page.and_then(|page| page.info.into_iter().next()).context("the layer was not found")?.name;
    let containers = arguments.snapshots - arguments.count;
    let container = move |number: usize| {
        let (key, parent) = (format!("default/{number}/container"), base.clone());
        PrepareSnapshotRequest { key, parent, ..PrepareSnapshotRequest::default() }
    };
    let container = prepare(&clients, containers, Code::Ok, container).await?;
    let (list_ms, listed) = list(&mut clients[0], None).await?;
    ensure!(listed >= arguments.snapshots, "only {listed} snapshots are listed");
    let mut filtered = Vec::new();
    for layer in layers.iter().take(200) {
        let (ms, found) = list(&mut clients[0], Some(filter(layer))).await?;
        ensure!(found == 1, "{found} snapshots for one layer");
        filtered.push(ms);
    }
    filtered.sort_by(f64::total_cmp);
    let (memory_after, memory_peak) = (memory(pid, "VmRSS")?, memory(pid, "VmHWM")?);
    let mut restart = None;
    if let Some(program) = &arguments.program {
        drop((clients, own));
        let begin = Instant::now();
        let _daemon = start(program, directory.path())?;
        let mut client = connect(&socket).await?;
        let (_, count) = list(&mut client, Some("name==absent".into())).await?;
        ensure!(count == 0, "nothing has this name");
        restart = Some(round(begin.elapsed().as_secs_f64() * 1000.0));
    }
    let line = serde_json::json!({
        "clients": arguments.clients,
        "count": arguments.count,
        "prepare_present_ms": figures(&present),
        "prepare_existing_ms": figures(&existing),
        "prepare_container_ms": figures(&container),
        "snapshots": listed,
        "list_ms": list_ms,
        "list_filtered_ms": figures(&filtered),
        "rss_before_mb": memory_before,
        "rss_after_mb": memory_after,
        "rss_peak_mb": memory_peak,
        "restart_ms": restart,
    });
    println!("{line}");
    Ok(())
}
