//! Room for files that live as long as a run, and the removal of what killed runs left.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;
use time::UtcDateTime;

use crate::failure::Failure;

/// Leftovers of killed runs in the storage are removed when they are older than this.
const LEFTOVER_AGE: Duration = Duration::from_secs(24 * 3600);

/// A scratch directory of our own; those of runs that were killed go.
pub(super) fn scratch_directory(state: &Path) -> Result<TempDir, Failure> {
    let parent = state.join("tmp");
    fs::create_dir_all(&parent).map_err(Failure::io("create directory", &parent))?;
    for entry in fs::read_dir(&parent).map_err(Failure::io("read directory", &parent))?.flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|n| n.split('.').nth(1)).and_then(|p| p.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            // Whatever cannot be removed only takes room.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    let prefix = format!("run.{}.", std::process::id());
    tempfile::Builder::new().prefix(&prefix).tempdir_in(&parent).map_err(Failure::io("create directory in", &parent))
}

/// Removes objects that were never finished.
pub(super) fn remove_leftovers(txn: &Path) {
    let Ok(entries) = fs::read_dir(txn) else { return };
    let now = UtcDateTime::now().unix_timestamp();
    for entry in entries.flatten().filter(|e| e.file_name().to_string_lossy().starts_with("new.")) {
        let old = entry.metadata().is_ok_and(|m| now - m.mtime() > LEFTOVER_AGE.as_secs() as i64);
        if old {
            // Whatever cannot be removed only takes room.
            let _ = fs::remove_file(entry.path());
        }
    }
}
