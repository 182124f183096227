//! What a garbage collection costs in a storage of millions of objects: time, memory, scratch space.
//!
//! `collect OBJECTS [ORPHANS]` makes a repository whose files have that many distinct objects, each named by two
//! subtrees as layers and flat images do. The catalogs are real; the objects of files exist only when the storage is
//! listed, together with as many that nothing refers to. Marks, sweeps (removals are counted), prints figures as JSON.

use std::error::Error;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use cvmfs::entry::{Entry, Flags, Meta};
use cvmfs::gc::{Keep, Mode, Options, Plan};
use cvmfs::hash::{Algorithm, ContentHash, ObjectId, ObjectKind};
use cvmfs::keys::Signer;
use cvmfs::object::{Codec, Compression, Encoder};
use cvmfs::path::RepoPath;
use cvmfs::repository::{CreateOptions, Repository};
use cvmfs::signature::PrivateKey;
use cvmfs::store::{Listed, ListedKind, Listing, LocalStore, Staged, Store, StoreError, Stored, put_content};
use cvmfs::subtree::{Graft, SubtreeOptions, SubtreeWriter};
use cvmfs::transaction::{Commit, Transaction, TransactionOptions};
use time::UtcDateTime;

const META: Meta = Meta { permissions: 0o644, uid: 0, gid: 0, mtime: 1_700_000_000, mtime_ns: None };
const FILES_OF_A_DIRECTORY: u64 = 100;
const ROWS_OF_A_CATALOG: u64 = 50_000;

/// The n-th object: as evenly spread as hashes are, and found again without a table.
fn object(n: u64) -> ContentHash {
    let mix = |mut z: u64| {
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let mut digest = [0; 20];
    digest[0] = n as u8;
    digest[1..9].copy_from_slice(&mix(n).to_le_bytes());
    digest[9..17].copy_from_slice(&mix(!n).to_le_bytes());
    ContentHash { algorithm: Algorithm::Sha1, digest }
}

/// A real storage for catalogs; the objects of files are made up whenever they are listed.
#[derive(Debug)]
struct Synthetic {
    real: LocalStore,
    objects: u64,
    removed: AtomicU64,
}

impl Store for Synthetic {
    fn open(&self, id: ObjectId) -> Result<Box<dyn Read + Send>, StoreError> {
        self.real.open(id)
    }
    fn exists(&self, id: ObjectId) -> Result<bool, StoreError> {
        self.real.exists(id)
    }
    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.real.read(name)
    }
    fn stage(&self) -> Result<Box<dyn Staged + '_>, StoreError> {
        self.real.stage()
    }
    fn put(&self, id: ObjectId, stored: &[u8]) -> Result<Stored, StoreError> {
        self.real.put(id, stored)
    }
    fn replace(&self, name: &str, content: &[u8]) -> Result<(), StoreError> {
        self.real.replace(name, content)
    }
    fn swap(&self, name: &str, expected: Option<&[u8]>, content: &[u8]) -> Result<bool, StoreError> {
        self.real.swap(name, expected, content)
    }
    fn flush(&self) -> Result<(), StoreError> {
        Ok(())
    }
    fn place(&self) -> String {
        self.real.place()
    }
}

impl Listing for Synthetic {
    fn list(&self, bucket: Option<&str>, visit: &mut dyn FnMut(Listed<'_>)) -> Result<(), StoreError> {
        self.real.list(bucket, visit)?;
        let Some(bucket) = bucket.and_then(|b| u64::from_str_radix(b, 16).ok()) else { return Ok(()) };
        let mut n = bucket;
        while n < self.objects {
            let text = object(n).to_string();
            let modified = Some(SystemTime::UNIX_EPOCH);
            visit(Listed { name: &text[2..], kind: ListedKind::File, size: 1000, modified });
            n += 256;
        }
        Ok(())
    }

    fn remove(&self, _: ObjectId) -> Result<(), StoreError> {
        self.removed.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// Peak memory since the last call, in bytes.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or_default();
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse().unwrap_or(0);
    // Begins anew.
    let _ = fs::write("/proc/self/clear_refs", "5");
    kilobytes * 1024
}

fn subtree(store: &Arc<Synthetic>, at: &str, objects: u64, options: &SubtreeOptions) -> Result<Graft, Box<dyn Error>> {
    let directory = Meta { permissions: 0o755, ..META };
    let root = Entry::directory("", directory);
    let mut writer = SubtreeWriter::new(store.clone(), options.clone(), &RepoPath::parse(at)?, root)?;
    for n in 0..objects {
        let (upper, lower) = (n / FILES_OF_A_DIRECTORY, n % FILES_OF_A_DIRECTORY);
        let path = format!("d{:04}/e{:04}", upper / 1000, upper % 1000);
        if lower == 0 {
            if upper % 1000 == 0 {
                writer.add(&path.as_bytes()[..5], Entry::directory("", directory), 0, &[])?;
            }
            writer.add(path.as_bytes(), Entry::directory("", directory), 0, &[])?;
        }
        let file = Entry::file("", META, 1000, object(n), Compression::Zlib);
        writer.add(format!("{path}/f{lower:02}").as_bytes(), file, 0, &[])?;
    }
    Ok(writer.finish()?)
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default: u64| arguments.next().map_or(Ok(default), |text| text.parse());
    let (objects, orphans) = (number(10_000_000)?, number(1_000_000)?);
    let lab = tempfile::tempdir()?;
    let path = |name: &str| lab.path().join(name);
    let scratch = path("scratch");
    fs::create_dir(&scratch)?;
    let real = LocalStore::create(path("storage"))?;
    let store = Arc::new(Synthetic { real, objects: objects + orphans, removed: AtomicU64::new(0) });
    let now = UtcDateTime::now();
    let (signer, master) = (Signer::generate("x.example.org", now)?, PrivateKey::generate()?);
    let create = CreateOptions {
        fqrn: "x.example.org".into(),
        algorithm: Algorithm::Sha1,
        ttl: 240,
        garbage_collectable: true,
        root: Meta { permissions: 0o755, ..META },
        now,
        whitelist_expires: now + time::Duration::days(30),
        scratch: scratch.clone(),
    };
    let repository = Repository::create(store.clone(), &create, &signer, &master)?;
    let mut encoder = Encoder::new(Algorithm::Sha1, Codec::default());
    let (empty, _) = put_content(&*store, &mut encoder, ObjectKind::File, b"")?;
    let marker = Entry::file(".cvmfscatalog", META, 0, empty, Compression::Zlib);
    let marker = Entry { flags: marker.flags.with(Flags::HIDDEN), ..marker };
    let options = SubtreeOptions {
        algorithm: Algorithm::Sha1,
        codec: Codec::default(),
        budget: ROWS_OF_A_CATALOG,
        last_modified: 1,
        scratch: scratch.clone(),
        marker: marker.clone(),
        workers: 2,
    };
    let grafts = [subtree(&store, "/layers", objects, &options)?, subtree(&store, "/flat", objects, &options)?];
    let options = TransactionOptions { now, scratch: scratch.clone(), marker };
    let mut transaction = Transaction::begin(repository, options)?;
    grafts.iter().try_for_each(|graft| transaction.graft(graft))?;
    let commit = Commit { signer: &signer, reflog_checksum: None, tags: &[], ttl: None };
    let repository = transaction.commit(&commit)?.repository;
    peak();

    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let now = SystemTime::now() + Duration::from_secs(10);
    let options = Options { keep: Keep::Revisions(0), minimal_age: Duration::ZERO, now, scratch: &scratch, threads };
    let start = Instant::now();
    let plan = Plan::make(repository, &options)?;
    let (mark_seconds, mark_peak) = (start.elapsed().as_secs_f64(), peak());
    let start = Instant::now();
    let swept = plan.sweep(&*store, Mode::Remove, &|| true)?;
    let (sweep_seconds, sweep_peak) = (start.elapsed().as_secs_f64(), peak());
    let removed = store.removed.load(Ordering::Relaxed);
    if swept.seen.objects < objects + orphans || removed < orphans || removed > orphans + 100 {
        return Err(format!("{removed} of {} objects were removed", swept.seen.objects).into());
    }
    let size = |path: &Path| fs::metadata(path).map_or(0, |m| m.len());
    println!(
        "{{\"objects\": {}, \"references\": {}, \"catalogs\": {}, \"removed\": {removed}, \"threads\": {threads}, \
         \"mark_seconds\": {mark_seconds:.1}, \"mark_peak_bytes\": {mark_peak}, \"sweep_seconds\": {sweep_seconds:.1}, \
         \"sweep_peak_bytes\": {sweep_peak}, \"reflog_bytes\": {}}}",
        swept.seen.objects,
        2 * objects,
        plan.catalogs,
        size(&path("storage/.cvmfsreflog")),
    );
    Ok(())
}
