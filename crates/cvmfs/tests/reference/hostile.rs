//! Catalogs that nobody writes in good faith: each is refused when it is opened, and named by the check.

use cvmfs::catalog::NestedRef;
use cvmfs::check::{Report, Rule};
use cvmfs::hash::{ContentHash, ObjectKind};
use cvmfs::path::RepoPath;
use cvmfs::store::put_stream;
use cvmfs::traversal::{Descend, Loaded, Loader, TraversalError, Visit, walk};

use crate::fixtures::files;
use crate::laboratory::{Keys, Laboratory};

const BASE: &str = "hardlinks";

/// Reads every row, chunk list and counter of every catalog, as a reader without suspicion does.
struct Everything;

impl Visit for Everything {
    type Error = TraversalError;

    fn enter(&mut self, catalog: &Loaded) -> Result<Descend, TraversalError> {
        let NestedRef { path, hash, .. } = catalog.reference().clone();
        let read = || {
            for row in catalog.rows_after(0, 10_000)? {
                catalog.chunks(row.key, row.entry.algorithm())?;
            }
            catalog.counters()?;
            catalog.bind_mountpoints()
        };
        read().map(|_| Descend::Into).map_err(|source| TraversalError::Catalog { path, hash, source: Box::new(source) })
    }
}

/// All causes of the error that a walk ends with.
fn walk_all(laboratory: &Laboratory<'_>) -> Option<String> {
    let scratch = tempfile::tempdir().unwrap();
    let root = NestedRef {
        path: RepoPath::ROOT,
        hash: laboratory.manifest.root_catalog,
        size: laboratory.manifest.root_catalog_size,
    };
    let error = walk(Loader::new(&laboratory.store, scratch.path()), root, &mut Everything).err()?;
    let causes = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
    Some(causes.map(ToString::to_string).collect::<Vec<_>>().join(": "))
}

/// Changes to the catalog of `/nested`, and a word of the reason.
#[rustfmt::skip]
const SCHEMAS: &[(&str, &str)] = &[
    ("CREATE VIEW extra AS SELECT 1", "view"),
    ("ALTER TABLE catalog RENAME TO c; CREATE VIEW catalog AS SELECT * FROM c", "view"),
    ("ALTER TABLE nested_catalogs RENAME TO n; CREATE VIEW nested_catalogs AS
        WITH RECURSIVE r(path, sha1, size) AS (SELECT '/x', 'y', 0 UNION ALL SELECT path || 'x', sha1, size FROM r)
        SELECT * FROM r", "view"),
    ("CREATE TRIGGER t AFTER INSERT ON catalog BEGIN SELECT 1; END", "trigger"),
    ("CREATE VIRTUAL TABLE extra USING fts5(x)", "virtual table"),
    ("ALTER TABLE catalog ADD COLUMN extra AS (zeroblob(1 << 30))", "computed column"),
    ("ALTER TABLE properties ADD COLUMN extra GENERATED ALWAYS AS (hex(value)) VIRTUAL", "computed column"),
    ("DROP TABLE catalog", "tables"),
    ("DROP TABLE chunks", "tables"),
    ("DROP TABLE nested_catalogs", "tables"),
    ("DROP TABLE bind_mountpoints", "tables"),
    ("DROP TABLE statistics", "tables"),
    ("DROP TABLE properties", "tables"),
    ("ALTER TABLE catalog DROP COLUMN symlink", "tables"),
    ("UPDATE properties SET value = '9.9' WHERE key = 'schema'", "schema"),
    ("UPDATE properties SET value = 'up/../and/away' WHERE key = 'root_prefix'", "root_prefix"),
    ("INSERT INTO nested_catalogs VALUES ('/nested/x', 'no hash', 0)", "malformed row"),
    ("INSERT INTO nested_catalogs SELECT '/nested/x', hex(zeroblob(20)), -1", "malformed row"),
    ("INSERT INTO nested_catalogs SELECT '../x', hex(zeroblob(20)), 1", "malformed row"),
    ("UPDATE catalog SET name = 'a/b' WHERE name = 'g1'", "name with"),
    ("UPDATE catalog SET name = hex(zeroblob(200)) WHERE name = 'g1'", "255 bytes"),
    ("UPDATE catalog SET mode = -1 WHERE name = 'g1'", "mode"),
    ("UPDATE catalog SET hash = x'00' WHERE name = 'g1'", "20 bytes"),
    ("UPDATE catalog SET flags = flags | 1792 WHERE name = 'g1'", "hash algorithm"),
];

#[test]
fn catalogs_with_a_hostile_schema_are_refused() {
    let keys = Keys::generate();
    let base = files(BASE);
    let mut wrong = String::new();
    for (sql, reason) in SCHEMAS {
        let mut laboratory = Laboratory::new(&base, &keys);
        laboratory.catalog("/nested", sql);
        let report = laboratory.examine();
        let named = report.has(Rule::CatalogDatabase) || report.has(Rule::MalformedRow);
        let error = walk_all(&laboratory).unwrap_or_else(|| "nothing".into());
        println!(
            "{:<70} {error}",
            sql.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(68).collect::<String>()
        );
        if !named || !error.contains(reason) || !error.contains("/nested") {
            wrong += &format!("{sql}: {error}\n{}", print(&report));
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

fn print(report: &Report) -> String {
    report.findings.iter().map(|finding| format!("  {finding}\n")).collect()
}

/// Makes these bytes the root catalog.
fn with_root<'a>(laboratory: &mut Laboratory<'a>, bytes: &[u8]) -> ContentHash {
    let algorithm = laboratory.algorithm();
    let (hash, _) = put_stream(&laboratory.store, algorithm, ObjectKind::Catalog, &mut &bytes[..]).unwrap();
    (laboratory.manifest.root_catalog, laboratory.manifest.root_catalog_size) = (hash, bytes.len() as u64);
    laboratory.publish();
    hash
}

#[test]
fn what_is_no_database_is_no_catalog() {
    let keys = Keys::generate();
    let base = files(BASE);
    let whole = Laboratory::new(&base, &keys).plain_catalog();
    let mut header_only = whole.clone();
    header_only.truncate(100);
    for (what, bytes) in [
        ("nothing", &b""[..]),
        (
            "text",
            b"not a database, but long enough to hold a header of a hundred bytes, which is what SQLite looks at first",
        ),
        ("a header", &header_only),
        ("zeros", &[0; 4096]),
        ("half of it", &whole[..whole.len() / 2]),
    ] {
        let mut laboratory = Laboratory::new(&base, &keys);
        with_root(&mut laboratory, bytes);
        let report = laboratory.examine();
        assert!(report.has(Rule::CatalogDatabase), "{what}:\n{}", print(&report));
        assert!(walk_all(&laboratory).is_some(), "{what} can be walked");
    }
}

/// The other databases come from the same servers.
#[test]
fn tag_database_and_reflog_with_a_hostile_schema_are_refused() {
    let keys = Keys::generate();
    let base = files(BASE);
    let view = "CREATE VIEW extra AS SELECT 1";
    let mut laboratory = Laboratory::new(&base, &keys);
    laboratory.history(view);
    assert!(laboratory.examine().has(Rule::History));
    let mut laboratory = Laboratory::new(&base, &keys);
    laboratory.edit_reflog(|file| rusqlite::Connection::open(file).unwrap().execute_batch(view).unwrap());
    laboratory.sign();
    assert!(laboratory.examine().has(Rule::Reflog));
}

/// A catalog that does not say where it belongs has the rows of a root, so nothing of it is found elsewhere.
#[test]
fn a_catalog_without_prefix_is_a_root_catalog() {
    let keys = Keys::generate();
    let mut laboratory = Laboratory::new(&files(BASE), &keys);
    laboratory.catalog("/nested", "DELETE FROM properties WHERE key = 'root_prefix'");
    let scratch = tempfile::tempdir().unwrap();
    let path = RepoPath::parse("/nested").unwrap();
    let loader = Loader::new(&laboratory.store, scratch.path());
    let catalog = loader.load(&NestedRef { path: path.clone(), hash: laboratory.nested("/nested"), size: 0 }).unwrap();
    assert!(catalog.root_prefix().is_root());
    assert_eq!(catalog.lookup_path(&path).unwrap(), None);
    assert!(laboratory.examine().has(Rule::RootPrefix));
}
