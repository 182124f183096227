//! The walk through nested catalogs, in order and on hostile ground.

use cvmfs::catalog::NestedRef;
use cvmfs::check::{Options, Rule, check};
use cvmfs::hash::ObjectKind;
use cvmfs::path::RepoPath;
use cvmfs::store::{Store as _, put_stream};
use cvmfs::traversal::{Descend, Loaded, Loader, TraversalError, Visit, walk};

use crate::fixtures::files;
use crate::laboratory::{Keys, Laboratory};

/// Three levels: `/`, `/nested`, `/nested/inner`.
const BASE: &str = "rmd";

#[derive(Default)]
struct Steps {
    taken: Vec<String>,
    past: Option<&'static str>,
}

impl Visit for Steps {
    type Error = TraversalError;

    fn enter(&mut self, catalog: &Loaded) -> Result<Descend, TraversalError> {
        let path = catalog.reference().path.to_string();
        self.taken.push(format!("enter {path}"));
        Ok(if self.past == Some(&path) { Descend::Past } else { Descend::Into })
    }

    fn leave(&mut self, reference: &NestedRef) -> Result<(), TraversalError> {
        self.taken.push(format!("leave {}", reference.path));
        Ok(())
    }
}

fn run(laboratory: &Laboratory<'_>, past: Option<&'static str>) -> (Vec<String>, Result<(), TraversalError>) {
    let scratch = tempfile::tempdir().unwrap();
    let mut steps = Steps { past, ..Steps::default() };
    let root = NestedRef { path: RepoPath::ROOT, hash: laboratory.manifest.root_catalog, size: 0 };
    let result = walk(Loader::new(&laboratory.store, scratch.path()), root, &mut steps);
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0, "temporary files are gone");
    (steps.taken, result)
}

#[test]
fn a_catalog_is_entered_before_and_left_after_those_below() {
    let keys = Keys::generate();
    let laboratory = Laboratory::new(&files(BASE), &keys);
    let (steps, result) = run(&laboratory, None);
    result.unwrap();
    assert_eq!(
        steps,
        ["enter /", "enter /nested", "enter /nested/inner", "leave /nested/inner", "leave /nested", "leave /"]
    );
    let (steps, result) = run(&laboratory, Some("/nested"));
    result.unwrap();
    assert_eq!(steps, ["enter /", "enter /nested", "leave /nested", "leave /"]);
}

#[test]
fn missing_and_misplaced_catalogs_end_the_walk_with_their_path() {
    let keys = Keys::generate();
    let laboratory = Laboratory::new(&files(BASE), &keys);
    let nested = laboratory.nested("/nested").object(ObjectKind::Catalog);
    laboratory.remove(nested);
    let (steps, result) = run(&laboratory, None);
    assert_eq!(steps, ["enter /"]);
    assert!(matches!(result, Err(TraversalError::Store { path, .. }) if path.to_string() == "/nested"));

    for path in ["/", "/elsewhere", "/nested"] {
        let mut laboratory = Laboratory::new(&files(BASE), &keys);
        laboratory.catalog("/nested", &format!("UPDATE nested_catalogs SET path = '{path}'"));
        let (_, result) = run(&laboratory, None);
        assert!(matches!(result, Err(TraversalError::Outside { .. })), "{path}: {result:?}");
        assert!(laboratory.examine().has(Rule::CatalogDatabase), "{path}");
    }
}

/// Whatever bytes a catalog has, the check says something and ends.
#[test]
fn no_bytes_of_a_catalog_stop_the_check() {
    let keys = Keys::generate();
    let laboratory = Laboratory::new(&files(BASE), &keys);
    let scratch = tempfile::tempdir().unwrap();
    let plain = laboratory.plain_catalog();
    let mut state = 1u64;
    let mut next = |limit: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % limit
    };
    let mut unsound = 0;
    const ROUNDS: usize = 400;
    for round in 0..ROUNDS {
        let mut bytes = plain.clone();
        match round % 4 {
            0 => bytes.truncate(next(plain.len())),
            // A few wild bytes, now and then in the header and the schema.
            kind => (0..1 + next(8)).for_each(|_| {
                let at = next(if kind == 1 { 2048 } else { plain.len() });
                bytes[at] = next(256) as u8;
            }),
        }
        let algorithm = laboratory.algorithm();
        let (hash, _) = put_stream(&laboratory.store, algorithm, ObjectKind::Catalog, &mut &bytes[..]).unwrap();
        let mut manifest = laboratory.manifest.clone();
        (manifest.root_catalog, manifest.root_catalog_size) = (hash, 0);
        laboratory.store.replace(".cvmfspublished", manifest.print().as_bytes()).unwrap();
        let report = check(&laboratory.store, &Options::new(scratch.path())).unwrap();
        // The manifest is not signed here; what counts are findings about the catalog.
        unsound += usize::from(report.counts.keys().any(|rule| *rule > Rule::ReflogEntry));
    }
    assert!(unsound > ROUNDS / 2, "only {unsound} of {ROUNDS} damaged catalogs were noticed");
}
