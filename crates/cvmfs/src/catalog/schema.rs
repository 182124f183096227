//! Tables of a catalog: schema 2.5 revision 7, and what older revisions lack.

/// Newest schema, the one we write.
pub const SCHEMA: &str = "2.5";
/// Newest revision of the schema, the one we write.
pub const SCHEMA_REVISION: u32 = 7;

/// Statements that make an empty catalog. Column order matters to tools that copy whole rows.
pub const CREATE: &str = "
CREATE TABLE catalog (md5path_1 INTEGER, md5path_2 INTEGER, parent_1 INTEGER, parent_2 INTEGER, hardlinks INTEGER,
  hash BLOB, size INTEGER, mode INTEGER, mtime INTEGER, mtimens INTEGER, flags INTEGER, name TEXT, symlink TEXT,
  uid INTEGER, gid INTEGER, xattr BLOB, CONSTRAINT pk_catalog PRIMARY KEY (md5path_1, md5path_2));
CREATE TABLE chunks (md5path_1 INTEGER, md5path_2 INTEGER, offset INTEGER, size INTEGER, hash BLOB,
  CONSTRAINT pk_chunks PRIMARY KEY (md5path_1, md5path_2, offset, size),
  FOREIGN KEY (md5path_1, md5path_2) REFERENCES catalog(md5path_1, md5path_2));
CREATE TABLE nested_catalogs (path TEXT, sha1 TEXT, size INTEGER, CONSTRAINT pk_nested_catalogs PRIMARY KEY (path));
CREATE TABLE bind_mountpoints (path TEXT, sha1 TEXT, size INTEGER, CONSTRAINT pk_bind_mountpoints PRIMARY KEY (path));
CREATE TABLE statistics (counter TEXT, value INTEGER, CONSTRAINT pk_statistics PRIMARY KEY (counter));
CREATE TABLE properties (key TEXT, value TEXT, CONSTRAINT pk_properties PRIMARY KEY (key));
";

/// Index for listings; made after the rows of a new catalog.
pub const CREATE_INDEX: &str = "CREATE INDEX idx_catalog_parent ON catalog (parent_1, parent_2);";

/// SELECT list of the catalog table, with NULL for columns that this revision does not have.
pub fn columns(schema: f32, revision: u32) -> String {
    let legacy = schema < 2.0;
    let or_null = |present: bool, column: &'static str| if present { column } else { "NULL" };
    [
        "rowid",
        "md5path_1",
        "md5path_2",
        "parent_1",
        "parent_2",
        or_null(!legacy, "hardlinks"),
        "hash",
        "size",
        "mode",
        "mtime",
        or_null(revision >= 7, "mtimens"),
        "flags",
        "name",
        "symlink",
        or_null(!legacy, "uid"),
        or_null(!legacy, "gid"),
        or_null(revision >= 2, "xattr"),
    ]
    .join(", ")
}
