//! Damaged copies of a fixture: each breaks one rule, and what cannot but break with it.

use cvmfs::check::Rule;
use cvmfs::hash::{ObjectId, ObjectKind};
use cvmfs::keys::Signer;
use cvmfs::path::RepoPath;
use cvmfs::store::{Store as _, names};
use time::Duration;

use crate::NOW;
use crate::laboratory::{Laboratory, at, rename};

/// How a rule is broken: the rule and what cannot but break with it, the fixture, in words, and the deed.
pub type Case = (&'static [Rule], &'static str, &'static str, fn(&mut Laboratory<'_>));

/// A small repository with hard links, and one with chunks and three levels of catalogs.
pub const LINKS: &str = "hardlinks";
pub const CHUNKS: &str = "rmd";

fn replace(laboratory: &Laboratory<'_>, name: &str, edit: impl FnOnce(&mut Vec<u8>)) {
    let mut content = laboratory.store.read(name).unwrap().unwrap();
    edit(&mut content);
    laboratory.store.replace(name, &content).unwrap();
}

fn flip_last(content: &mut [u8]) {
    *content.last_mut().unwrap() ^= 1;
}

fn first_object(laboratory: &Laboratory<'_>, kind: ObjectKind) -> ObjectId {
    let content = laboratory.store.content();
    let mut ids = content.keys().filter_map(|path| {
        let (bucket, name) = path.strip_prefix("data/")?.split_once('/')?;
        ObjectId::from_path_parts(bucket, name)
    });
    ids.find(|id| id.kind == kind).unwrap()
}

/// Removes the references of a kind from the reflog, and nothing else.
fn forget(laboratory: &mut Laboratory<'_>, kind: u8) {
    laboratory.edit_reflog(|file| {
        let db = rusqlite::Connection::open(file).unwrap();
        db.execute("DELETE FROM refs WHERE type = ?1", [kind]).unwrap();
    });
    laboratory.sign();
}

pub const NOTHING: &str = "0000000000000000000000000000000000000000";

#[rustfmt::skip]
pub const CASES: &[Case] = &[
    // The documents at the top.
    (&[Rule::ManifestSyntax], LINKS, "the manifest is other text", |l| l.store.replace(names::MANIFEST, b"not a manifest").unwrap()),
    (&[Rule::ManifestSyntax], LINKS, "another root path in R", |l| replace(l, names::MANIFEST, |text| {
        let at = text.windows(3).position(|w| w == b"\nRd").unwrap();
        text[at + 2] = b'e';
    })),
    (&[Rule::ManifestSignature], LINKS, "one bit of the signature", |l| replace(l, names::MANIFEST, |text| flip_last(text))),
    (&[Rule::ManifestSignature, Rule::ManifestTtl], LINKS, "a digit of D under the old signature", |l| replace(l, names::MANIFEST, |text| {
        let at = text.windows(5).position(|w| w == b"\nD240").unwrap();
        text[at + 2] = b'9';
    })),
    (&[Rule::ManifestName, Rule::HistoryName, Rule::Reflog], LINKS, "another name in N, signed", |l| {
        l.manifest.name = "other.example.org".into();
        l.sign();
    }),
    (&[Rule::ManifestRevision], LINKS, "S one lower", |l| { l.manifest.revision -= 1; l.sign(); }),
    (&[Rule::ManifestTime], LINKS, "T a day earlier", |l| { l.manifest.published -= 86400; l.sign(); }),
    (&[Rule::ManifestTtl], LINKS, "D higher than TTL of the root catalog", |l| { l.manifest.ttl = 900; l.sign(); }),
    (&[Rule::ManifestTtl], LINKS, "D lower than TTL of the root catalog", |l| { l.manifest.ttl = 60; l.sign(); }),
    (&[Rule::ManifestTtl], LINKS, "no TTL in the root catalog, and D is not the default", |l| {
        l.catalog("/", "DELETE FROM properties WHERE key = 'TTL'");
        l.manifest.ttl = 900;
        l.sign();
    }),
    (&[Rule::Certificate], LINKS, "the object is missing", |l| l.remove(l.manifest.certificate.unwrap().object(ObjectKind::Certificate))),
    (&[Rule::Certificate], LINKS, "no X", |l| { l.manifest.certificate = None; l.sign(); }),
    (&[Rule::CertificateTrust], LINKS, "the whitelist has another fingerprint", |l| {
        let other = Signer::generate("other.example.org", NOW).unwrap();
        l.whitelist(&other.certificate_pem, &l.keys.master, NOW + Duration::days(1));
    }),
    (&[Rule::WhitelistExpired], LINKS, "it expired an hour ago", |l|
        l.whitelist(&l.keys.signer.certificate_pem, &l.keys.master, NOW - Duration::hours(1))),
    (&[Rule::WhitelistSignature], LINKS, "signed by another key", |l|
        l.whitelist(&l.keys.signer.certificate_pem, &l.keys.signer.key, NOW + Duration::days(1))),
    (&[Rule::WhitelistSyntax], LINKS, "there is none", |l| drop(l.store.content().remove(names::WHITELIST))),
    (&[Rule::WhitelistSignature], LINKS, "one bit of its signature", |l| replace(l, names::WHITELIST, |text| flip_last(text))),
    (&[Rule::MetaInfo], LINKS, "the object is missing", |l| l.remove(l.manifest.meta_info.unwrap().object(ObjectKind::MetaInfo))),
    (&[Rule::AlternativeLink], LINKS, "A says yes, and there are no links", |l| { l.manifest.alternative_paths = true; l.sign(); }),
    (&[Rule::AlternativeLink], LINKS, "the link of the certificate is there, that of the catalog is not", |l| {
        l.manifest.alternative_paths = true;
        l.sign();
        let certificate = l.manifest.certificate.unwrap().object(ObjectKind::Certificate);
        l.store.content().insert(format!(".cvmfsalt-{certificate}"), Vec::new());
    }),

    // Tags.
    (&[Rule::History], LINKS, "the object is missing", |l| l.remove(l.manifest.history.unwrap().object(ObjectKind::History))),
    (&[Rule::History], LINKS, "no table of tags", |l| l.history("DROP TABLE tags")),
    (&[Rule::HistoryName], LINKS, "another repository in its properties", |l| l.history("UPDATE properties SET value = 'x.org' WHERE key = 'fqrn'")),
    (&[Rule::HistoryTagBranch], LINKS, "a tag on a branch that is not there", |l|
        l.history("UPDATE tags SET branch = 'nowhere' WHERE name = 'trunk-previous'")),
    (&[Rule::HistoryTagRevision], LINKS, "a branch that starts after its tags", |l| l.history("UPDATE branches SET initial_revision = 3")),
    (&[Rule::HistoryUnusedBranch], LINKS, "a branch without tags", |l| l.history("INSERT INTO branches VALUES ('side', '', 1)")),
    (&[Rule::HistoryUnusedBranch], LINKS, "no tags at all", |l| l.history("DELETE FROM tags")),
    (&[Rule::HistoryTagRoot], LINKS, "a tag with an unknown root", |l|
        l.history(&format!("UPDATE tags SET hash = '{NOTHING}' WHERE name = 'trunk-previous'"))),

    // Reflog.
    (&[Rule::ReflogMissing], LINKS, "there is none, and Y has its hash", |l| drop(l.store.content().remove(names::REFLOG))),
    (&[Rule::ReflogUnknownHash], LINKS, "there is one, and Y is not there", |l| { l.manifest.reflog = None; l.sign(); }),
    (&[Rule::ReflogHash], LINKS, "one byte more than Y says", |l| replace(l, names::REFLOG, |content| content.push(0))),
    (&[Rule::Reflog], LINKS, "no database", |l| {
        l.edit_reflog(|file| std::fs::write(file, "no database").unwrap());
        l.sign();
    }),
    (&[Rule::ReflogEntry], LINKS, "the root catalog is not in it", |l| forget(l, 0)),
    (&[Rule::ReflogEntry], LINKS, "the certificate is not in it", |l| forget(l, 1)),
    (&[Rule::ReflogEntry], LINKS, "the tag database is not in it", |l| forget(l, 2)),
    (&[Rule::ReflogEntry], LINKS, "the meta info is not in it", |l| forget(l, 3)),

    // Catalogs as a whole.
    (&[Rule::CatalogObject], LINKS, "the object of a nested catalog is missing", |l| l.remove(l.nested("/nested").object(ObjectKind::Catalog))),
    (&[Rule::CatalogDatabase], LINKS, "no table of nested catalogs", |l| l.catalog("/nested", "DROP TABLE nested_catalogs")),
    (&[Rule::CatalogDatabase], LINKS, "a view", |l| l.catalog("/nested", "CREATE VIEW v AS SELECT 1")),
    (&[Rule::CatalogDatabase], LINKS, "in write-ahead-log mode", |l| l.catalog("/nested", "PRAGMA journal_mode = WAL")),
    (&[Rule::CatalogDatabase], LINKS, "schema 3.0", |l|
        l.catalog("/nested", "UPDATE properties SET value = '3.0' WHERE key = 'schema'")),
    (&[Rule::CatalogIndex], LINKS, "no index on the directory", |l| l.catalog("/nested", "DROP INDEX idx_catalog_parent")),
    (&[Rule::CatalogSize], LINKS, "a wrong size in nested_catalogs", |l| l.catalog("/", "UPDATE nested_catalogs SET size = size + 1024")),
    (&[Rule::CatalogSize], LINKS, "a wrong B", |l| { l.manifest.root_catalog_size += 1024; l.sign(); }),
    (&[Rule::CatalogRoot], LINKS, "no root entry in a nested catalog", |l| l.catalog("/nested", "DELETE FROM catalog WHERE flags & 32")),
    (&[Rule::RootRow], LINKS, "the root entry is row 1000", |l| l.catalog("/", "UPDATE catalog SET rowid = 1000 WHERE rowid = 1")),
    (&[Rule::RootPrefix], LINKS, "root_prefix names another place", |l|
        l.catalog("/nested", "UPDATE properties SET value = '/elsewhere' WHERE key = 'root_prefix'")),
    (&[Rule::RootPrefix], LINKS, "no root_prefix in a nested catalog", |l| l.catalog("/nested", "DELETE FROM properties WHERE key = 'root_prefix'")),
    (&[Rule::RootPrefix], LINKS, "a root_prefix in the root catalog", |l|
        l.catalog("/", "INSERT INTO properties VALUES ('root_prefix', '/elsewhere')")),
    (&[Rule::NestedFlags], LINKS, "the root entry of a nested catalog has flags 1", |l| l.catalog("/nested", "UPDATE catalog SET flags = 1 WHERE flags & 32")),
    (&[Rule::Transition], LINKS, "mtime of the root entry", |l| l.catalog("/nested", "UPDATE catalog SET mtime = mtime + 1 WHERE flags & 32")),
    (&[Rule::Transition], LINKS, "mode of the transition point", |l| l.catalog("/", "UPDATE catalog SET mode = 16832 WHERE flags & 2")),
    (&[Rule::Transition], LINKS, "name of the root entry", |l|
        l.catalog("/nested", "UPDATE catalog SET name = 'other' WHERE flags & 32")),
    (&[Rule::Transition], LINKS, "link count of the transition point", |l|
        l.catalog("/", "UPDATE catalog SET hardlinks = hardlinks + 1 WHERE flags & 2")),
    (&[Rule::Transition, Rule::HardlinkGroup], LINKS, "hard-link group of the transition point", |l|
        l.catalog("/", "UPDATE catalog SET hardlinks = hardlinks | (7 << 32) WHERE flags & 2")),
    (&[Rule::Transition], LINKS, "size of the transition point", |l|
        l.catalog("/", "UPDATE catalog SET size = size + 1 WHERE flags & 2")),
    (&[Rule::Transition], LINKS, "nanoseconds of the transition point", |l|
        l.catalog("/", "UPDATE catalog SET mtimens = 5 WHERE flags & 2")),
    (&[Rule::Transition], LINKS, "content hash of the transition point", |l|
        l.catalog("/", &format!("UPDATE catalog SET hash = x'{NOTHING}' WHERE flags & 2"))),
    (&[Rule::Transition], LINKS, "link target of the transition point", |l|
        l.catalog("/", "UPDATE catalog SET symlink = 'x' WHERE flags & 2")),
    (&[Rule::Transition, Rule::External], LINKS, "external flag of the transition point", |l|
        l.catalog("/", "UPDATE catalog SET flags = flags | 128 WHERE flags & 2")),
    (&[Rule::Transition, Rule::Counter], LINKS, "extended attributes of the transition point alone", |l|
        l.catalog("/", "UPDATE catalog SET xattr = x'0101010061' WHERE flags & 2")),
    (&[Rule::TransitionOwner, Rule::Counter], LINKS, "other extended attributes in both", |l| {
        l.catalog("/", "UPDATE catalog SET xattr = x'0101010061' WHERE flags & 2");
        l.catalog("/nested", "UPDATE catalog SET xattr = x'0101010062' WHERE flags & 32");
    }),
    (&[Rule::TransitionOwner], LINKS, "owner of the transition point", |l| l.catalog("/", "UPDATE catalog SET uid = 7 WHERE flags & 2")),

    // Rows.
    (&[Rule::MalformedRow], LINKS, "symlink is NULL", |l|
        l.catalog("/", &format!("UPDATE catalog SET symlink = NULL WHERE {}", at("/new_repository")))),
    (&[Rule::MalformedRow, Rule::Counter], LINKS, "mode without a type", |l|
        l.catalog("/", &format!("UPDATE catalog SET mode = 0 WHERE {}", at("/new_repository")))),
    (&[Rule::MalformedRow, Rule::Counter], LINKS, "a size of 2^62", |l|
        l.catalog("/", &format!("UPDATE catalog SET size = 1 << 62 WHERE {}", at("/new_repository")))),
    (&[Rule::PathKey], LINKS, "a key that nothing hashes to, on a file", |l|
        l.catalog("/", &format!("UPDATE catalog SET md5path_1 = 1 WHERE {}", at("/new_repository")))),
    (&[Rule::PathKey, Rule::UnreachableRows, Rule::Counter], LINKS, "the same on a directory", |l|
        l.catalog("/", &format!("UPDATE catalog SET md5path_1 = 1 WHERE {}", at("/cross/sub")))),
    (&[Rule::EntryName], LINKS, "no name", |l|
        l.catalog("/", &format!("UPDATE catalog SET name = '' WHERE {}", at("/new_repository")))),
    (&[Rule::TypeFlags], LINKS, "flags of a link on a file", |l|
        l.catalog("/", &format!("UPDATE catalog SET flags = 12 WHERE {}", at("/new_repository")))),
    (&[Rule::XattrBlob], LINKS, "a version that nobody knows", |l| l.catalog("/", "UPDATE catalog SET xattr = x'0201' WHERE xattr IS NOT NULL")),
    (&[Rule::MarkerPlace], LINKS, "a marker in a plain directory", |l| l.catalog("/", &rename("/cross/a", "/cross/.cvmfscatalog"))),
    (&[Rule::MarkerMissing], LINKS, "a nested catalog without marker", |l| l.catalog("/nested", &rename("/nested/.cvmfscatalog", "/nested/marker"))),
    (&[Rule::ContentHash], LINKS, "no hash", |l|
        l.catalog("/", &format!("UPDATE catalog SET hash = NULL WHERE {}", at("/new_repository")))),
    (&[Rule::ObjectMissing], LINKS, "a hash that nothing has", |l| l.catalog("/", &format!(
        "UPDATE catalog SET hash = x'{NOTHING}' WHERE {}", at("/new_repository")))),
    (&[Rule::ChunkMissing], CHUNKS, "the object is missing", |l| l.remove(first_object(l, ObjectKind::Chunk))),
    (&[Rule::ChunkOffset], CHUNKS, "a gap", |l| l.catalog("/", "UPDATE chunks SET offset = offset + 1 WHERE offset > 0")),
    (&[Rule::ChunkOffset, Rule::ChunkSum, Rule::Counter], CHUNKS, "the first chunk is missing", |l|
        l.catalog("/", "DELETE FROM chunks WHERE offset = 0")),
    (&[Rule::ChunkSum], CHUNKS, "the last chunk is one byte short", |l|
        l.catalog("/", "UPDATE chunks SET size = size - 1 WHERE offset = (SELECT max(offset) FROM chunks)")),
    (&[Rule::ChunkStray], CHUNKS, "a chunk of a path that is not there", |l|
        l.catalog("/", &format!("INSERT INTO chunks VALUES (1, 2, 0, 3, x'{NOTHING}')"))),
    (&[Rule::LinkCount], LINKS, "link count 0 on a file", |l|
        l.catalog("/", &format!("UPDATE catalog SET hardlinks = 0 WHERE {}", at("/new_repository")))),
    (&[Rule::LinkCount, Rule::DirectoryLinks], LINKS, "link count 0 on a directory", |l|
        l.catalog("/", &format!("UPDATE catalog SET hardlinks = 0 WHERE {}", at("/cross")))),
    (&[Rule::HardlinkGroup], LINKS, "link count 2, no group", |l|
        l.catalog("/", &format!("UPDATE catalog SET hardlinks = 2 WHERE {}", at("/new_repository")))),
    (&[Rule::HardlinkGroup], LINKS, "one name of a group has another mode", |l|
        l.catalog("/", &format!("UPDATE catalog SET mode = mode + 1 WHERE {}", at("/hl/a")))),
    (&[Rule::HardlinkGroup], LINKS, "one name has link count 1", |l|
        l.catalog("/", &format!("UPDATE catalog SET hardlinks = 1 WHERE {}", at("/hl/p")))),
    (&[Rule::HardlinkGroup], LINKS, "a directory in a group", |l| l.catalog("/", &format!(
        "UPDATE catalog SET hardlinks = (99 << 32) | hardlinks WHERE {}", at("/cross/sub")))),
    (&[Rule::DirectoryLinks], LINKS, "link count 4 on a directory with one sub-directory", |l|
        l.catalog("/", &format!("UPDATE catalog SET hardlinks = 4 WHERE {}", at("/cross")))),
    (&[Rule::DirectIo], LINKS, "on a link", |l|
        l.catalog("/", &format!("UPDATE catalog SET flags = flags | 65536 WHERE {}", at("/hl/sym")))),
    (&[Rule::DirectIo], LINKS, "on a directory", |l|
        l.catalog("/", &format!("UPDATE catalog SET flags = flags | 65536 WHERE {}", at("/cross")))),
    (&[Rule::External], LINKS, "on a link", |l|
        l.catalog("/", &format!("UPDATE catalog SET flags = flags | 128 WHERE {}", at("/hl/sym")))),
    (&[Rule::External], LINKS, "on a directory", |l|
        l.catalog("/", &format!("UPDATE catalog SET flags = flags | 128 WHERE {}", at("/cross")))),
    (&[Rule::Symlink], LINKS, "on a link", |l|
        l.catalog("/", &format!("UPDATE catalog SET hash = x'{NOTHING}' WHERE {}", at("/hl/sym")))),
    (&[Rule::SpecialFile], CHUNKS, "a content hash on a pipe", |l|
        l.catalog("/", &format!("UPDATE catalog SET hash = x'{NOTHING}' WHERE {}", at("/fifo")))),
    (&[Rule::SpecialFile], CHUNKS, "a size on a pipe", |l| l.catalog("/", &format!("UPDATE catalog SET size = 5 WHERE {}", at("/fifo")))),
    (&[Rule::SpecialFile], CHUNKS, "a link target on a pipe", |l|
        l.catalog("/", &format!("UPDATE catalog SET symlink = 'x' WHERE {}", at("/fifo")))),

    // Nesting and statistics.
    (&[Rule::NestedUnregistered, Rule::Counter], LINKS, "no rows in nested_catalogs", |l| l.catalog("/", "DELETE FROM nested_catalogs")),
    (&[Rule::NestedStray, Rule::RootPrefix], LINKS, "a row for a path that is not there", |l|
        l.catalog("/", "INSERT INTO nested_catalogs SELECT '/stray', sha1, size FROM nested_catalogs")),
    (&[Rule::NestedCovered, Rule::UnreachableRows], LINKS, "a row below the transition point", |l| {
        let (file, parent) = (at("/new_repository"), RepoPath::parse("/nested").unwrap().key());
        l.catalog("/", &format!(
            "CREATE TEMP TABLE copy AS SELECT * FROM catalog WHERE {file};
             UPDATE copy SET md5path_1 = 1, parent_1 = {}, parent_2 = {};
             INSERT INTO catalog SELECT * FROM copy", parent.high, parent.low));
    }),
    (&[Rule::NestedExclusive], LINKS, "the same path in both tables", |l|
        l.catalog("/", "INSERT INTO bind_mountpoints SELECT * FROM nested_catalogs")),
    (&[Rule::NestedExclusive, Rule::BindUnregistered], LINKS, "both flags on one directory", |l|
        l.catalog("/", "UPDATE catalog SET flags = flags | 16384 WHERE flags & 2")),
    (&[Rule::BindUnregistered, Rule::UnreachableRows, Rule::NestedCovered, Rule::Counter], LINKS, "a directory with the bind flag, in no table", |l|
        l.catalog("/", &format!("UPDATE catalog SET flags = 16385 WHERE {}", at("/cross/sub")))),
    (&[Rule::UnreachableRows, Rule::Counter], LINKS, "a file below no directory", |l|
        l.catalog("/", &format!("UPDATE catalog SET parent_1 = 1 WHERE {}", at("/new_repository")))),
    (&[Rule::CounterMissing], LINKS, "no self_xattr", |l|
        l.catalog("/nested", "DELETE FROM statistics WHERE counter = 'self_xattr'")),
    (&[Rule::Counter], LINKS, "self_regular one too high", |l|
        l.catalog("/", "UPDATE statistics SET value = value + 1 WHERE counter = 'self_regular'")),
    (&[Rule::Counter], CHUNKS, "subtree_dir one too low", |l|
        l.catalog("/", "UPDATE statistics SET value = value - 1 WHERE counter = 'subtree_dir'")),

    // Stored bytes.
    (&[Rule::ObjectName], LINKS, "a file directly in data/", |l| drop(l.store.content().insert("data/stray".into(), Vec::new()))),
    (&[Rule::ObjectName], LINKS, "a file with a name that is no hash", |l| drop(l.store.content().insert("data/00/nonsense".into(), Vec::new()))),
    (&[Rule::ObjectName], LINKS, "a directory in a bucket", |l| drop(l.store.content().insert("data/00/a/b".into(), Vec::new()))),
    (&[Rule::ObjectContent], LINKS, "the last byte of an object", |l| {
        let id = first_object(l, ObjectKind::File);
        flip_last(l.store.content().get_mut(&id.path()).unwrap());
    }),
];
