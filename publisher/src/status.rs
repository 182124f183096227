//! `.cvmfs_status.json`: when the reference tools last did what, for people and monitors. A JSON object of texts; whoever
//! writes into it leaves what others wrote.

use cvmfs::store::{Store, StoreError};
use serde_json::{Map, Value};
use time::UtcDateTime;
use time::macros::format_description;

/// The file, beside the manifest.
pub const STATUS: &str = ".cvmfs_status.json";

/// Sets these; all else stays. A file that is no JSON object begins anew, as monitors could not read it either.
pub fn note(store: &dyn Store, facts: &[(&str, &str)]) -> Result<(), StoreError> {
    let old = store.read(STATUS)?.and_then(|status| serde_json::from_slice(&status).ok());
    let mut status = match old {
        Some(Value::Object(status)) => status,
        _ => Map::new(),
    };
    status.extend(facts.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())));
    store.replace(STATUS, format!("{:#}\n", Value::Object(status)).as_bytes())
}

/// What `date --utc` prints.
pub fn date(now: UtcDateTime) -> String {
    let format = format_description!(
        "[weekday repr:short] [month repr:short] [day padding:space] [hour]:[minute]:[second] UTC [year]"
    );
    now.format(format).expect("every time has these components")
}

#[cfg(test)]
mod tests {
    use cvmfs::store::MemoryStore;

    use super::*;

    #[test]
    fn dates_are_as_the_stock_tools_write_them() {
        let at = |seconds| date(UtcDateTime::from_unix_timestamp(seconds).unwrap());
        assert_eq!(at(1_795_292_457), "Sat Nov 21 20:20:57 UTC 2026");
        assert_eq!(at(1_793_663_999), "Mon Nov  2 23:59:59 UTC 2026");
    }

    #[test]
    fn what_others_wrote_stays() {
        let store = MemoryStore::default();
        for (before, after) in [
            ("{\"a\": \"1\", \"last_gc\": \"once\"}", "{\"a\":\"1\",\"last_gc\":\"now\"}"),
            ("[1]", "{\"last_gc\":\"now\"}"),
            ("no JSON", "{\"last_gc\":\"now\"}"),
        ] {
            store.replace(STATUS, before.as_bytes()).unwrap();
            note(&store, &[("last_gc", "now")]).unwrap();
            let found: Value = serde_json::from_slice(&store.read(STATUS).unwrap().unwrap()).unwrap();
            assert_eq!(found.to_string(), after, "{before}");
        }
    }
}
