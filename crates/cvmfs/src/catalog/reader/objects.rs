//! Which objects a catalog needs, without its rows: what garbage collection asks of every catalog.

use rusqlite::types::ValueRef;

use super::{Catalog, CatalogError};
use crate::entry::Flags;
use crate::hash::{Algorithm, ContentHash, ObjectId, ObjectKind};

impl Catalog {
    /// Hands out the object of every file and of every chunk, as often as rows name it; not those of external files,
    /// which are kept elsewhere. Nested catalogs are not among them. A chunk that belongs to no row is handed out under
    /// every algorithm, as nothing says which one it has.
    pub fn objects<E: From<CatalogError>>(&self, mut visit: impl FnMut(ObjectId) -> Result<(), E>) -> Result<(), E> {
        self.object_rows("SELECT hash, flags FROM catalog WHERE hash IS NOT NULL", ObjectKind::File, &mut visit)?;
        if self.version.schema < 2.0 {
            return Ok(());
        }
        let chunks = "SELECT chunks.hash, catalog.flags FROM chunks LEFT JOIN catalog
                      ON catalog.md5path_1 = chunks.md5path_1 AND catalog.md5path_2 = chunks.md5path_2";
        self.object_rows(chunks, ObjectKind::Chunk, &mut visit)
    }

    /// The plain sizes of files above `min` bytes whose content is one object of this repository's.
    pub fn whole_sizes(&self, min: u64) -> Result<Vec<u64>, CatalogError> {
        let db = self.lock();
        let mut statement = self.statement(
            &db,
            "SELECT DISTINCT size FROM catalog WHERE size > ?1 AND hash IS NOT NULL AND flags & ?2 = ?3",
        )?;
        let others = Flags::CHUNKED | Flags::EXTERNAL;
        let min = i64::try_from(min).unwrap_or(i64::MAX);
        let sizes = statement.query_map((min, Flags::FILE | others, Flags::FILE), |row| row.get::<_, i64>(0));
        let sizes = sizes.and_then(Iterator::collect::<rusqlite::Result<Vec<i64>>>).map_err(self.sqlite("sizes"))?;
        Ok(sizes.into_iter().map(|size| size as u64).collect())
    }

    fn object_rows<E: From<CatalogError>>(
        &self,
        sql: &str,
        kind: ObjectKind,
        visit: &mut impl FnMut(ObjectId) -> Result<(), E>,
    ) -> Result<(), E> {
        let db = self.lock();
        let mut statement = self.statement(&db, sql)?;
        let mut rows = statement.query(()).map_err(self.sqlite("objects"))?;
        while let Some(row) = rows.next().map_err(self.sqlite("objects"))? {
            let raw = match row.get_ref(0).unwrap_or(ValueRef::Null) {
                ValueRef::Null | ValueRef::Blob([]) => continue,
                ValueRef::Blob(raw) => raw,
                _ => return Err(self.corrupt("a content hash is no blob".into()).into()),
            };
            let flags = match row.get_ref(1).unwrap_or(ValueRef::Null) {
                ValueRef::Integer(bits) => u32::try_from(bits).ok().map(Flags),
                _ => None,
            };
            let algorithms: &[Algorithm] = match flags {
                Some(flags) if flags.is_external() => continue,
                Some(flags) => {
                    &[flags.algorithm().ok_or_else(|| self.corrupt("a row has an unknown hash algorithm".into()))?]
                }
                None => &Algorithm::ALL,
            };
            for algorithm in algorithms {
                let hash = ContentHash::from_raw(*algorithm, raw)
                    .ok_or_else(|| self.corrupt("a content hash has not 20 bytes".into()))?;
                visit(hash.object(kind))?;
            }
        }
        Ok(())
    }
}
