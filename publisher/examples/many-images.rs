//! What a collection of images costs in a repository with thousands of them: time, memory, what is read and written.
//!
//! `many-images COUNT` makes a repository in a temporary directory: each image with a flat and a layer of its own and
//! four layers that it shares with others, all of them empty directories; records and index as conversions write them.
//! Then a tenth of the images is pruned, condemned, and swept under a clock that is set forward.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use cvmfs::entry::{Entry, Meta};
use cvmfs::hash::{Algorithm, ObjectKind};
use cvmfs::object::Encoder;
use cvmfs::path::RepoPath;
use cvmfs::store::put_content;
use cvmfs::subtree::SubtreeWriter;
use cvmfs::transaction::Transaction;
use image::digest::{ChainId, DiffId, ImageId, LayerDigest, ManifestDigest};
use image::layout::{
    CatalogRule, DescriptorRecord, ImageFile, IndexKey, Layout, ManifestRecord, OwnedPath, StatusRecord, timestamp,
};
use image::platform::Platform;
use image::reference::{PublicName, Wish};
use publisher::cli::Paths;
use publisher::layer::{repo_path, subtree_options};
use publisher::removal::{self, Collected, Options, Usage, Wanted};
use publisher::target::{Clock, InitOptions, Target, directory_meta, file_meta};
use time::UtcDateTime;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Images published at once.
const BATCH: usize = 500;
const SHARED: usize = 4;
const DAY: i64 = 24 * 3600;

fn main() -> Result<()> {
    let count: usize = std::env::args().nth(1).ok_or("usage: many-images COUNT")?.parse()?;
    if let Ok((_, hard)) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE) {
        nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    let directory = tempfile::tempdir()?;
    let path = |name: &str| directory.path().join(name);
    let paths = Paths { storage: path("storage").into(), keys: path("keys"), state: path("state") };
    let options = InitOptions { ttl: 240, algorithm: Algorithm::Sha1, garbage_collectable: true };
    let mut target = Target::init("images.example.org", paths, options)?;
    let clock = Arc::new(AtomicI64::new(UtcDateTime::now().unix_timestamp()));
    target.clock = Clock::Set(clock.clone());

    let start = Instant::now();
    for first in (0..count).step_by(BATCH) {
        publish(&target, first..(first + BATCH).min(count), count)?;
    }
    println!("{count} images made in {:.1} s", start.elapsed().as_secs_f64());
    let usual = Options {
        grace: Duration::from_secs(30 * 24 * 3600),
        keep_versions: 0,
        lists: Wanted::default(),
        usage: Usage::default(),
        dry_run: false,
    };
    let dry = Options { dry_run: true, ..usual.clone() };
    println!(
        "{:<34} {:>7} {:>8} {:>8} {:>8} {:>9} {:>7} {:>9} {:>8}",
        "", "s", "catalogs", "records", "kB", "condemned", "swept", "catalogs", "kB"
    );
    println!(
        "{:<34} {:>7} {:>8} {:>8} {:>8} {:>9} {:>7} {:>9} {:>8}",
        "", "", "read", "read", "", "", "", "written", ""
    );
    let show = |what: &str, done: &Collected| {
        println!(
            "{what:<34} {:>7.2} {:>8} {:>8} {:>8} {:>9} {:>7} {:>9} {:>8}",
            done.seconds,
            done.read.catalogs,
            done.read.records,
            done.read.bytes / 1000,
            done.condemned.len(),
            done.swept.len(),
            done.catalogs_written,
            done.catalog_bytes / 1000,
        );
    };
    show("dry run, nothing to condemn", &removal::collect(&target, &dry)?);
    show("first run, users are recorded", &removal::collect(&target, &usual)?);
    show("run with nothing to do", &removal::collect(&target, &usual)?);
    let wishes: Vec<Wish> =
        (0..count).filter(|n| n % 10 != 0).map(|n| Wish::parse(&name(n)).map_err(Into::into)).collect::<Result<_>>()?;
    let wanted = Wanted::new(&wishes)?;
    let start = Instant::now();
    let pruned = removal::prune(&target, &wanted, false)?;
    println!("{} images pruned in {:.2} s", pruned.images.len(), start.elapsed().as_secs_f64());
    show("dry run, a tenth to condemn", &removal::collect(&target, &dry)?);
    show("condemned", &removal::collect(&target, &usual)?);
    clock.fetch_add(31 * DAY, Ordering::Relaxed);
    show("dry run, a tenth to sweep", &removal::collect(&target, &dry)?);
    show("swept", &removal::collect(&target, &usual)?);
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find(|l| l.starts_with("VmHWM")).unwrap_or_default();
    println!("peak memory, making the repository included: {}", peak.trim_start_matches("VmHWM:").trim());
    Ok(())
}

fn name(n: usize) -> String {
    format!("registry{}.example.org/group{}/image{n}:1", n % 5, n % 97)
}

fn publish(target: &Target, images: std::ops::Range<usize>, count: usize) -> Result<()> {
    let lock = target.lock()?;
    let now = target.clock.now();
    let mut hand = Hand {
        target,
        layout: Layout::new(),
        now,
        encoder: Encoder::new(Algorithm::Sha1, target.codec),
        transaction: target.begin(&lock, now)?,
        known: HashMap::new(),
    };
    for n in images {
        hand.image(n, count)?;
    }
    target.commit(hand.transaction)?;
    Ok(())
}

struct Hand<'a> {
    target: &'a Target,
    layout: Layout,
    now: UtcDateTime,
    encoder: Encoder,
    transaction: Transaction,
    known: HashMap<RepoPath, ()>,
}

impl Hand<'_> {
    fn image(&mut self, n: usize, count: usize) -> Result<()> {
        let shared = (0..SHARED).map(|s| format!("shared {}", (n * 7 + s * 13) % (count / 10).max(SHARED)));
        let layers: Vec<String> = shared.chain([format!("own {n}")]).collect();
        let config_bytes = format!(
            r#"{{"architecture":"amd64","os":"linux","config":{{}},"n":{n},"rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
            layers.iter().map(|l| DiffId::of(l.as_bytes()).to_string()).collect::<Vec<_>>().join("\",\"")
        );
        let config = ImageId::of(config_bytes.as_bytes());
        let digests: Vec<LayerDigest> =
            layers.iter().map(|l| LayerDigest::of(format!("blob {l}").as_bytes())).collect();
        for layer in &digests {
            self.graft(&OwnedPath::Layer(*layer))?;
        }
        self.graft(&OwnedPath::Flat(config))?;
        let descriptor = |layer: &LayerDigest| DescriptorRecord {
            media_type: "application/vnd.oci.image.layer.v1.tar+gzip".to_owned(),
            size: 1000,
            digest: *layer,
        };
        let record = ManifestRecord {
            schema_version: 2,
            media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
            config: DescriptorRecord {
                media_type: "application/vnd.oci.image.config.v1+json".to_owned(),
                size: config_bytes.len() as u64,
                digest: config,
            },
            layers: digests.iter().map(descriptor).collect(),
        };
        let manifest_bytes = record.to_bytes();
        let digest = ManifestDigest::of(&manifest_bytes);
        let name = PublicName::parse(&name(n))?;
        let status = StatusRecord {
            flat: true,
            signed_by: Vec::new(),
            image: format!("https://{name}"),
            digest,
            index: None,
            config,
            platform: Platform::parse("linux/amd64")?,
            wished: None,
            published: timestamp(self.now.unix_timestamp()),
            revision: 1,
            generator: "many-images".to_owned(),
            startup: None,
            bundles: false,
        };
        let file = |file| OwnedPath::ImageFile { platform: None, name: name.clone(), file };
        self.file(&file(ImageFile::Manifest), &manifest_bytes)?;
        self.file(&file(ImageFile::RawManifest), &manifest_bytes)?;
        self.file(&file(ImageFile::Config), config_bytes.as_bytes())?;
        self.file(&file(ImageFile::Status), &status.to_bytes())?;
        self.file(&OwnedPath::Index(IndexKey::Config(config)), config_bytes.as_bytes())?;
        self.file(&OwnedPath::Index(IndexKey::Manifest(digest)), &manifest_bytes)?;
        let diff_ids: Vec<DiffId> = layers.iter().map(|l| DiffId::of(l.as_bytes())).collect();
        for ((layer, diff_id), chain) in digests.iter().zip(&diff_ids).zip(ChainId::stack(&diff_ids)) {
            for key in [IndexKey::DiffId(*diff_id), IndexKey::ChainId(chain)] {
                self.link(&OwnedPath::Index(key), &OwnedPath::Layer(*layer))?;
            }
        }
        self.link(&OwnedPath::Public { platform: None, name }, &OwnedPath::Flat(config))
    }

    fn directories(&mut self, path: &OwnedPath) -> Result<RepoPath> {
        let at = repo_path(&self.layout, path);
        let starts = self.layout.nested_catalogs(path);
        let starts: Vec<RepoPath> = starts
            .into_iter()
            .filter(|n| n.rule == CatalogRule::Always)
            .map(|n| RepoPath::ROOT.join_path(n.path))
            .collect::<std::result::Result<_, _>>()?;
        let parent = at.parent().ok_or("the root")?;
        if self.known.insert(parent.clone(), ()).is_none() {
            self.transaction.ensure_directories(&parent, directory_meta(self.now), &|p| starts.contains(p))?;
        }
        Ok(at)
    }

    fn graft(&mut self, path: &OwnedPath) -> Result<()> {
        let at = self.directories(path)?;
        if self.transaction.lookup(&at)?.is_some() {
            return Ok(());
        }
        let options = subtree_options(self.target, Algorithm::Sha1, 100, self.now)?;
        let root = Entry::directory("", directory_meta(self.now));
        let mut writer = SubtreeWriter::new(self.target.store.clone(), options, &at, root.clone())?;
        if matches!(path, OwnedPath::Layer(_)) {
            writer.add(b"layerfs", root, 0, &[])?;
        }
        Ok(self.transaction.graft(&writer.finish()?)?)
    }

    fn link(&mut self, path: &OwnedPath, to: &OwnedPath) -> Result<()> {
        let at = self.directories(path)?;
        let meta = Meta { permissions: 0o777, ..file_meta(self.now) };
        let entry = Entry::symlink(at.name(), meta, self.layout.link(path, to));
        Ok(self.transaction.put(&at, entry, &[])?)
    }

    fn file(&mut self, path: &OwnedPath, bytes: &[u8]) -> Result<()> {
        let at = self.directories(path)?;
        let (hash, _) = put_content(&*self.target.store, &mut self.encoder, ObjectKind::File, bytes)?;
        let compression = self.target.codec.compression();
        let entry = Entry::file(at.name(), file_meta(self.now), bytes.len() as u64, hash, compression);
        Ok(self.transaction.put(&at, entry, &[])?)
    }
}
