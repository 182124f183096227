//! `check --fix`: what is wrong with a repository, a plan of repairs that is shown first, and one publish that applies it.
//!
//! ```text
//! check             rules that are broken               cvmfs::check
//! catalogs, tags    what makes them right               cvmfs::repair
//! images, layers    what makes them right               survey.rs, legacy.rs
//! content           that is gone: noted for convert     damaged.rs
//! ```
//!
//! Invariants
//! - A plan is a value: it is printed, and the same value is applied, or nothing if the repository has moved on.
//! - Content that a running container may hold open stays where it is, unless the operator says otherwise.
//! - Nothing is fetched. What only the registry can give is left to `convert`, which takes what is noted as damaged as
//!   absent.
//! - A second run has nothing to do.

mod command;
pub mod damaged;
mod legacy;
mod report;
mod survey;

use std::collections::BTreeSet;

use cvmfs::catalog::NestedRef;
use cvmfs::check::{Finding, Report, Rule, Severity};
use cvmfs::entry::{Entry, Meta};
use cvmfs::hash::{ObjectId, ObjectKind};
use cvmfs::object::Encoder;
use cvmfs::path::RepoPath;
use cvmfs::repair::{Findings, Tools, advice, mends, survey as survey_catalogs};
use cvmfs::repository::RepositoryError;
use cvmfs::store::put_content;
use cvmfs::transaction::{Transaction, TransactionOptions};
use image::digest::{DiffId, ImageId, LayerDigest};
use image::layer::StoreError;
use image::layout::{CatalogRule, FormatRecord, LayersJson, Layout, OwnedPath, timestamp};
use image::manifest::Config;
use image::rootfs::TreeLookup;
use image::tree::{Node, NodeKind, TreePath};
use time::UtcDateTime;

pub use self::command::{examine, fix};
use self::damaged::Damaged;
pub use self::report::{to_json, to_text};
use crate::failure::Failure;
use crate::layer::repo_path;
use crate::rows::{FileContent, to_entry, to_node};
use crate::target::{Target, directory_meta, file_meta};

/// Whether layers that containers may run on are changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Live {
    /// They stay; what is right is written beside.
    Keep,
    /// They are made right where they are.
    Change,
}

/// What can be wrong with a repository of images. Names are stable, texts are not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Catalog(Rule),
    Apptainer,
    Chains,
    Content,
    Flat,
    ImageRecord,
    Index,
    LayerFormat,
    LayerHalfMade,
    LayerMissing,
    LayerRecord,
    Link,
    Podman,
    Whiteouts,
}

impl Fault {
    fn name(self) -> &'static str {
        match self {
            Fault::Catalog(rule) => rule.name(),
            Fault::Apptainer => "apptainer-files",
            Fault::Chains => "chains-left",
            Fault::Content => "content-damaged",
            Fault::Flat => "flat-unlinked",
            Fault::ImageRecord => "image-record",
            Fault::Index => "index",
            Fault::LayerFormat => "layer-format",
            Fault::LayerHalfMade => "layer-half-made",
            Fault::LayerMissing => "layer-missing",
            Fault::LayerRecord => "layer-record",
            Fault::Link => "image-link",
            Fault::Podman => "podman-layer",
            Fault::Whiteouts => "whiteouts-literal",
        }
    }
}

/// One line of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) fault: Fault,
    pub(crate) place: String,
    pub(crate) what: String,
    /// Whether containers that run may notice.
    pub(crate) is_live: bool,
}

/// One change to the repository.
#[derive(Debug, Clone)]
pub(crate) enum Action {
    Remove(RepoPath),
    Link { from: OwnedPath, to: OwnedPath },
    File { path: OwnedPath, bytes: Vec<u8> },
    Format { layer: LayerDigest, format: FormatRecord },
    LayersJson { layer: LayerDigest, diff_id: DiffId },
    Beside { layer: LayerDigest, content: NestedRef, format: FormatRecord, record: Option<LayersJson> },
    WhiteoutsInPlace { layer: LayerDigest, content: NestedRef, format: FormatRecord },
    Apptainer { flat: ImageId, config: Vec<u8> },
}

/// What a look at the images gave.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    pub(crate) repairs: Vec<Line>,
    pub(crate) left: Vec<Line>,
    pub(crate) notes: Vec<Line>,
    pub(crate) actions: Vec<Action>,
}

impl Survey {
    fn repair(&mut self, fault: Fault, place: String, what: String, action: Action) {
        let is_live = matches!(action, Action::WhiteoutsInPlace { .. });
        self.repairs.push(Line { fault, place, what, is_live });
        self.actions.push(action);
    }

    fn line(&mut self, fault: Fault, place: impl ToString, what: impl Into<String>) {
        self.repairs.push(Line { fault, place: place.to_string(), what: what.into(), is_live: false });
    }

    fn left(&mut self, fault: Fault, place: impl ToString, what: impl Into<String>) {
        self.left.push(Line { fault, place: place.to_string(), what: what.into(), is_live: false });
    }

    fn note(&mut self, fault: Fault, place: impl ToString, what: impl Into<String>) {
        self.notes.push(Line { fault, place: place.to_string(), what: what.into(), is_live: false });
    }
}

/// What is going to be done to a repository.
#[derive(Debug)]
pub struct Plan {
    /// Revision that the plan was made against.
    pub revision: u64,
    catalogs: Findings,
    survey: Survey,
    damaged: Damaged,
    /// Objects whose bytes are not those of their names: of no use, and in the way of the right ones.
    corrupt: Vec<ObjectId>,
}

impl Plan {
    /// Keeps for the next `convert` which layers and flats are damaged.
    pub fn note_damage(&self, target: &Target) -> Result<(), Failure> {
        let mut noted = Damaged::read(target)?;
        noted.layers.extend(&self.damaged.layers);
        noted.flats.extend(&self.damaged.flats);
        noted.write(target)
    }

    /// Whether there is nothing to publish.
    pub fn is_empty(&self) -> bool {
        self.survey.repairs.is_empty()
    }

    /// Whether something stays wrong, or cannot be repaired here.
    pub fn leaves_faults(&self) -> bool {
        !self.survey.left.is_empty()
    }
}

/// Makes a plan. `report` is what the check found.
pub fn plan(target: &Target, report: &Report, live: Live) -> Result<Plan, Failure> {
    let now = UtcDateTime::now();
    let repository = target.repository()?;
    let marker = target.marker(repository.algorithm(), now)?;
    let tools = Tools {
        store: &*target.store,
        scratch: target.scratch(),
        now: now.unix_timestamp().max(0) as u64,
        marker: &marker,
    };
    let catalogs = survey_catalogs(tools, repository.manifest())?;
    let mut images = match target.view(now).and_then(|mut view| survey::survey(target, &mut view, live)) {
        Ok(images) => images,
        // Catalogs that cannot be followed are repaired first; the next run sees what they hold.
        Err(e) if !catalogs.repairs.is_empty() || !catalogs.refusals.is_empty() => {
            let mut images = Survey::default();
            images.left(Fault::Content, "/", format!("images are looked at when the catalogs are right: {e}"));
            images
        }
        Err(e) => return Err(e),
    };
    let mut survey = Survey::default();
    for repair in &catalogs.repairs {
        survey.line(Fault::Catalog(repair.rule), &repair.place, &*repair.what);
    }
    let mended: BTreeSet<Rule> = report.counts.keys().copied().filter(|r| mends(*r).is_some()).collect();
    for rule in mended {
        let place = report.findings.iter().find(|f| f.rule == rule).map_or("", |f| &f.place);
        survey.line(Fault::Catalog(rule), place, mends(rule).expect("it was asked before"));
    }
    for refusal in &catalogs.refusals {
        survey.left(Fault::Catalog(refusal.rule), &refusal.place, &*refusal.why);
    }
    // What the repair of catalogs has no say in.
    for finding in report.findings.iter().filter(|f| f.severity() == Severity::Error && is_beyond_catalogs(f.rule)) {
        survey.left(Fault::Catalog(finding.rule), &finding.place, advice(finding.rule));
    }
    let mut corrupt = Vec::new();
    for finding in report.findings.iter().filter(|f| f.rule == Rule::ObjectContent) {
        match corrupt_object(finding) {
            Some(id) => {
                let what = "the object is not what its name says; it goes, so that the next convert can store it";
                survey.line(Fault::Catalog(finding.rule), &finding.place, what);
                corrupt.push(id);
            }
            None => survey.left(Fault::Catalog(finding.rule), &finding.place, advice(finding.rule)),
        }
    }
    let damaged = damaged(&survey.left, &catalogs, report);
    survey.repairs.append(&mut images.repairs);
    survey.left.append(&mut images.left);
    survey.notes.append(&mut images.notes);
    survey.actions.append(&mut images.actions);
    Ok(Plan { revision: repository.manifest().revision, catalogs, survey, damaged, corrupt })
}

/// Faults of stored objects and signed documents.
fn is_beyond_catalogs(rule: Rule) -> bool {
    use Rule::*;
    matches!(
        rule,
        ManifestSyntax
            | ManifestSignature
            | ManifestName
            | Certificate
            | CertificateTrust
            | WhitelistSyntax
            | WhitelistSignature
            | WhitelistExpired
            | MetaInfo
            | History
            | ObjectMissing
            | ChunkMissing
            | ObjectName
    )
}

/// The content of a file that was read and found to be other bytes. What could not be read may come back.
fn corrupt_object(finding: &Finding) -> Option<ObjectId> {
    let (bucket, name) = finding.place.strip_prefix("data/")?.split_once('/')?;
    let id = ObjectId::from_path_parts(bucket, name).filter(|_| !finding.expected.is_empty())?;
    matches!(id.kind, ObjectKind::File | ObjectKind::Chunk).then_some(id)
}

/// Layers and flats in which something is gone.
fn damaged(left: &[Line], catalogs: &Findings, report: &Report) -> Damaged {
    let mut damaged = Damaged::default();
    let layout = Layout::new();
    let missing = |f: &&Finding| matches!(f.rule, Rule::ObjectMissing | Rule::ChunkMissing);
    let places = left.iter().map(|l| l.place.as_str());
    let places = places.chain(catalogs.refusals.iter().map(|r| r.place.as_str()));
    for place in places.chain(report.findings.iter().filter(missing).map(|f| f.place.as_str())) {
        let path: Vec<&str> = place.split(['/', ' ']).filter(|c| !c.is_empty()).take(3).collect();
        match layout.parse(&path.join("/")) {
            Some(OwnedPath::Layer(layer)) => drop(damaged.layers.insert(layer)),
            Some(OwnedPath::Flat(flat)) => drop(damaged.flats.insert(flat)),
            _ => {}
        }
    }
    damaged
}

/// Applies a plan in one publish; gives the new revision, or nothing if there was nothing to publish.
pub fn apply(target: &Target, plan: &Plan) -> Result<Option<u64>, Failure> {
    plan.note_damage(target)?;
    let revision = match plan.survey.repairs.len() > plan.corrupt.len() {
        true => Some(publish(target, plan)?),
        false => None,
    };
    for id in &plan.corrupt {
        target.store.remove(*id)?;
    }
    Ok(revision)
}

fn publish(target: &Target, plan: &Plan) -> Result<u64, Failure> {
    let now = UtcDateTime::now();
    let lock = target.lock()?;
    let repository = target.repository()?;
    let (expected, found) = (plan.revision, repository.manifest().revision);
    if found != expected {
        return Err(RepositoryError::Moved { fqrn: target.fqrn.clone(), expected, found }.into());
    }
    let encoder = Encoder::new(repository.algorithm(), target.codec);
    let is_about_catalogs = plan.survey.repairs.iter().any(|l| matches!(l.fault, Fault::Catalog(_)));
    let mut transaction = match is_about_catalogs {
        true => {
            let marker = target.marker(repository.algorithm(), now)?;
            let options = TransactionOptions { now, scratch: target.scratch().to_owned(), marker };
            let (transaction, findings) = Transaction::begin_repaired(repository, options)?;
            if findings != plan.catalogs {
                return Err(Failure::Content("the repository is not what the plan was made for; run again".into()));
            }
            transaction
        }
        false => target.begin(&lock, now)?,
    };
    let mut hand = Hand { target, transaction: &mut transaction, encoder, layout: Layout::new(), now };
    for action in &plan.survey.actions {
        hand.apply(action)?;
    }
    let published = target.commit(transaction)?;
    drop(lock);
    Ok(published.repository.manifest().revision)
}

struct Hand<'a> {
    target: &'a Target,
    transaction: &'a mut Transaction,
    encoder: Encoder,
    layout: Layout,
    now: UtcDateTime,
}

impl Hand<'_> {
    fn apply(&mut self, action: &Action) -> Result<(), Failure> {
        match action {
            Action::Remove(path) => Ok(self.transaction.remove(path)?),
            Action::Link { from, to } => {
                let at = self.room(from)?;
                let meta = Meta { permissions: 0o777, ..file_meta(self.now) };
                let text = self.layout.link(from, to);
                Ok(self.transaction.put(&at, Entry::symlink(at.name(), meta, text), &[])?)
            }
            Action::File { path, bytes } => self.file(path, bytes),
            Action::Format { layer, format } => self.file(&OwnedPath::LayerFormat(*layer), &format.to_bytes()),
            Action::LayersJson { layer, diff_id } => {
                let created = timestamp(self.now.unix_timestamp());
                let (layer, diff_id) = (*layer, *diff_id);
                let record = LayersJson { created, layer, compressed_size: None, diff_id, size: 0 };
                self.file(&OwnedPath::LayerRecord(layer), &record.to_bytes())
            }
            Action::Beside { layer, content, format, record } => {
                let content = self.current(content)?;
                let graft = legacy::beside(self.target, *layer, &content, (format, record.as_ref()), self.now)?;
                self.room(&OwnedPath::LayerOverlay(*layer))?;
                Ok(self.transaction.graft(&graft)?)
            }
            Action::WhiteoutsInPlace { layer, content, format } => {
                let content = self.current(content)?;
                let graft = legacy::in_place(self.target, &content, self.now)?;
                self.transaction.graft(&graft)?;
                self.file(&OwnedPath::LayerFormat(*layer), &format.to_bytes())
            }
            Action::Apptainer { flat, config } => self.apptainer(*flat, config),
        }
    }

    /// The catalog as the repair has left it.
    fn current(&mut self, planned: &NestedRef) -> Result<NestedRef, Failure> {
        let gone = || Failure::Content(format!("{} has no catalog any more; run again", planned.path));
        self.transaction.nested_reference(&planned.path)?.ok_or_else(gone)
    }

    /// Makes the directories above a path, with the nested catalogs that the layout wants.
    fn room(&mut self, path: &OwnedPath) -> Result<RepoPath, Failure> {
        let at = repo_path(&self.layout, path);
        let always = self.layout.nested_catalogs(path).into_iter().filter(|n| n.rule == CatalogRule::Always);
        let starts: Vec<RepoPath> = always.filter_map(|n| RepoPath::ROOT.join_path(n.path).ok()).collect();
        if let Some(parent) = at.parent() {
            self.transaction.ensure_directories(&parent, directory_meta(self.now), &|p| starts.contains(p))?;
        }
        Ok(at)
    }

    fn file(&mut self, path: &OwnedPath, bytes: &[u8]) -> Result<(), Failure> {
        let at = self.room(path)?;
        let entry = self.stored(at.name(), bytes, file_meta(self.now))?;
        Ok(self.transaction.put(&at, entry, &[])?)
    }

    fn stored(&mut self, name: &[u8], bytes: &[u8], meta: Meta) -> Result<Entry, Failure> {
        let (hash, _) = put_content(&*self.target.store, &mut self.encoder, ObjectKind::File, bytes)?;
        Ok(Entry::file(name, meta, bytes.len() as u64, hash, self.target.codec.compression()))
    }

    /// Adds what Apptainer needs to a flat; nothing that is there is replaced.
    fn apptainer(&mut self, flat: ImageId, config: &[u8]) -> Result<(), Failure> {
        let top = repo_path(&self.layout, &OwnedPath::Flat(flat));
        let config = Config::parse(config)?;
        let points = image::apptainer::MOUNT_POINTS.map(|name| TreePath::new(name).expect("plain names"));
        let lookup = FlatLookup { transaction: std::cell::RefCell::new(self.transaction), top: &top };
        let mut nodes = image::apptainer::additions(&config, &lookup, &points)
            .map_err(|e| Failure::Content(format!("the flat {top} cannot be read: {e}")))?;
        nodes.sort_by(|a, b| a.0.cmp(&b.0));
        for (path, node) in nodes {
            let at = top.join_path(path.as_bytes()).map_err(|e| Failure::Content(e.to_string()))?;
            if self.transaction.lookup(&at)?.is_some() {
                continue;
            }
            let content = match &node.kind {
                NodeKind::Regular { content, .. } => self.stored(at.name(), content, Meta::default())?.content,
                _ => None,
            };
            let compression = self.target.codec.compression();
            let whole = |_| FileContent::Whole(content.expect("set for every file"), compression);
            let (entry, _) = to_entry(at.name(), node.map_content(whole));
            if let Some(parent) = at.parent() {
                self.transaction.ensure_directories(&parent, directory_meta(self.now), &|_| false)?;
            }
            self.transaction.put(&at, entry, &[])?;
        }
        Ok(())
    }
}

/// The flat as it is.
struct FlatLookup<'a, 'b> {
    transaction: std::cell::RefCell<&'a mut Transaction>,
    top: &'b RepoPath,
}

impl TreeLookup<FileContent> for FlatLookup<'_, '_> {
    fn get(&self, path: &TreePath) -> Result<Option<Node<FileContent>>, StoreError> {
        let at = self.top.join_path(path.as_bytes()).map_err(StoreError::from)?;
        let found = self.transaction.borrow_mut().lookup(&at).map_err(StoreError::from)?;
        Ok(found.map(|entry| to_node(entry, Vec::new())))
    }
}
