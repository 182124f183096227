//! The rules, each with a name that scripts may rely on.

use super::Severity;

/// Which program of the reference implementation verifies a rule as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Its check.
    Check,
    /// Its check, but only of a repository behind a web server.
    Remote,
    /// Its scrubber.
    Scrub,
    /// None, although clients or later publishes stumble over it.
    Ours,
}

macro_rules! rules {
    ($($variant:ident = $severity:ident $origin:ident $name:literal, $text:literal;)*) => {
        /// What a sound repository obeys.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Rule { $(#[doc = concat!("`", $name, "`: ", $text, ".")] $variant),* }

        impl Rule {
            /// All rules.
            pub const ALL: &[Rule] = &[$(Rule::$variant),*];

            /// Stable name: lower case, words joined by `-`.
            pub fn name(self) -> &'static str {
                match self { $(Rule::$variant => $name),* }
            }

            /// What is wrong when it is broken.
            pub fn text(self) -> &'static str {
                match self { $(Rule::$variant => $text),* }
            }

            /// How bad that is.
            pub fn severity(self) -> Severity {
                match self { $(Rule::$variant => Severity::$severity),* }
            }

            /// Who else looks at it.
            pub fn origin(self) -> Origin {
                match self { $(Rule::$variant => Origin::$origin),* }
            }
        }
    };
}

rules! {
    ManifestSyntax = Error Check "manifest-syntax", "the manifest is incomplete or malformed";
    ManifestSignature = Error Remote "manifest-signature", "hash line or signature of the manifest do not match";
    ManifestName = Error Remote "manifest-name", "the manifest or whitelist is for another repository";
    ManifestRevision = Error Ours "manifest-revision", "revision (S) of the manifest and of the root catalog differ; clients miss the update";
    ManifestTime = Error Ours "manifest-time", "publication time (T) of the manifest is before last_modified of the root catalog";
    ManifestTtl = Warning Ours "manifest-ttl", "time to live (D) of the manifest and of the root catalog differ; clients take that of the catalog";
    Certificate = Error Remote "certificate", "the certificate object is not named, missing, corrupt or no certificate";
    CertificateTrust = Error Remote "certificate-trust", "the certificate is not on the whitelist, or blacklisted";
    WhitelistSyntax = Error Remote "whitelist-syntax", "the whitelist is missing or malformed";
    WhitelistSignature = Error Remote "whitelist-signature", "the whitelist is signed by no trusted master key";
    WhitelistExpired = Error Remote "whitelist-expired", "the whitelist has expired";
    MetaInfo = Error Check "meta-info", "the meta info object is missing or corrupt";
    AlternativeLink = Error Check "alternative-link", "the manifest promises alternative paths, one of them is missing";

    History = Error Check "history", "the tag database is missing, corrupt or unreadable";
    HistoryName = Error Check "history-name", "the tag database is for another repository";
    HistoryTagBranch = Error Check "history-tag-branch", "a tag is on a branch that does not exist";
    HistoryTagRevision = Error Check "history-tag-revision", "a tag is older than its branch";
    HistoryUnusedBranch = Error Check "history-unused-branch", "a branch has no tag";
    HistoryTagRoot = Error Ours "history-tag-root", "the root catalog of a tag is missing";

    ReflogMissing = Error Check "reflog-missing", "the reflog is missing although its hash is known";
    ReflogUnknownHash = Error Check "reflog-unknown-hash", "there is a reflog, and neither the manifest nor a local checksum says its hash";
    ReflogHash = Error Check "reflog-hash", "the reflog does not hash to what the local checksum or the manifest (Y) says";
    Reflog = Error Check "reflog", "the reflog is unreadable or for another repository";
    ReflogEntry = Error Check "reflog-entry", "an object that the manifest names is not in the reflog";

    CatalogObject = Error Check "catalog-object", "a catalog object is missing or corrupt";
    CatalogDatabase = Error Check "catalog-database", "a catalog is no readable database of a known schema";
    CatalogIndex = Error Ours "catalog-index", "a catalog has no index for listings";
    CatalogSize = Error Check "catalog-size", "size of the plain catalog is not the recorded one";
    CatalogRoot = Error Check "catalog-root", "the root entry of a catalog is missing or no directory";
    RootRow = Warning Ours "root-row", "the root entry of the root catalog is not its first row; clients count inodes from it";
    RootPrefix = Error Check "root-prefix", "root_prefix of a catalog is not the path where it is mounted";
    NestedFlags = Error Check "nested-flags", "the root entry is flagged as that of a nested catalog exactly in nested catalogs";
    Transition = Error Check "transition", "transition point and root entry of a nested catalog differ";
    TransitionOwner = Warning Ours "transition-owner", "owner or extended attributes of transition point and root entry differ";

    MalformedRow = Error Ours "malformed-row", "a catalog row has a value that no row may have";
    PathKey = Error Ours "path-key", "the key of a row is not that of its path, so it cannot be looked up";
    EntryName = Error Check "entry-name", "an entry has an empty name";
    TypeFlags = Warning Ours "type-flags", "flags of an entry contradict its type";
    XattrBlob = Warning Ours "xattr-blob", "extended attributes cannot be decoded; clients show none";
    MarkerPlace = Error Check "marker-place", "a .cvmfscatalog is not directly in the root of a nested catalog";
    MarkerMissing = Error Check "marker-missing", "a nested catalog has no .cvmfscatalog in its root";
    ContentHash = Error Check "content-hash", "a regular file has neither content hash nor chunks";
    ObjectMissing = Error Check "object-missing", "the object of a file is missing";
    ChunkMissing = Error Check "chunk-missing", "the object of a chunk is missing";
    ChunkOffset = Error Check "chunk-offset", "chunks of a file leave a gap or overlap";
    ChunkSum = Error Check "chunk-sum", "chunks of a file do not add up to its size";
    ChunkStray = Error Ours "chunk-stray", "there are chunks of files that are not chunked";
    LinkCount = Error Check "link-count", "an entry has link count 0";
    HardlinkGroup = Error Check "hardlink-group", "a hard-link group is missing, incomplete, or its names differ";
    DirectoryLinks = Error Check "directory-links", "link count of a directory is not 2 + number of its sub-directories";
    DirectIo = Error Check "direct-io", "the direct-I/O flag is on something that is no regular file";
    External = Error Check "external", "the external flag is on something that is no regular file";
    Symlink = Error Check "symlink", "a symbolic link has a content hash";
    SpecialFile = Error Check "special-file", "a device, pipe or socket has a content hash, a link target, or (pipe, socket) a size";

    NestedUnregistered = Error Check "nested-unregistered", "a transition point is not in the table of nested catalogs";
    NestedStray = Error Check "nested-stray", "a registered nested catalog has no transition point, so nobody finds it";
    NestedCovered = Error Check "nested-covered", "there are rows below a transition point in the same catalog";
    NestedExclusive = Error Check "nested-exclusive", "a path is both a nested catalog and a bind mountpoint";
    BindUnregistered = Error Check "bind-unregistered", "a bind mountpoint is not in its table";
    UnreachableRows = Error Check "unreachable-rows", "a catalog has rows that no directory leads to";
    CounterMissing = Error Check "counter-missing", "a statistics counter is missing";
    Counter = Error Check "counter", "a statistics counter is wrong";

    ObjectName = Error Scrub "object-name", "something below data/ is no object, or its name is malformed";
    ObjectContent = Error Scrub "object-content", "the stored bytes of an object do not match its name";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_plain() {
        let mut names: Vec<&str> = Rule::ALL.iter().map(|r| r.name()).collect();
        assert!(names.iter().all(|n| n.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Rule::ALL.len());
    }
}
