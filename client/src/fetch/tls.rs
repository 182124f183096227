//! Certificate authorities for `https` servers and proxies, beside those of the system.
//!
//! Facts: `X509_CERT_BUNDLE` names a file, `X509_CERT_DIR` a directory of files (grid sites keep theirs in
//! /etc/grid-security/certificates). `SSL_CERT_FILE` and `SSL_CERT_DIR` replace those of the system.

use std::path::{Path, PathBuf};

use reqwest::Certificate;

const MAX_FILE: u64 = 16 << 20;
const VARIABLES: [&str; 2] = ["X509_CERT_BUNDLE", "X509_CERT_DIR"];

/// Authorities in these files and directories, and in those that the environment names. What can't be read is
/// warned about: it can only make connections fail.
pub(super) fn authorities(configured: &[PathBuf]) -> Vec<Certificate> {
    let environment = VARIABLES.iter().filter_map(std::env::var_os).map(PathBuf::from);
    let mut found = Vec::new();
    for place in configured.iter().cloned().chain(environment) {
        let files = if place.is_dir() { certificate_files(&place) } else { vec![place] };
        for file in files {
            match read(&file) {
                Ok(certificates) => found.extend(certificates),
                Err(error) => tracing::warn!(file = %file.display(), error, "cannot read certificates"),
            }
        }
    }
    found
}

fn read(file: &Path) -> Result<Vec<Certificate>, String> {
    let size = std::fs::metadata(file).map_err(|e| e.to_string())?.len();
    if size > MAX_FILE {
        return Err(format!("{size} bytes are too many"));
    }
    let pem = std::fs::read(file).map_err(|e| e.to_string())?;
    Certificate::from_pem_bundle(&pem).map_err(|e| e.to_string())
}

/// Files with the endings of certificates; `.0` to `.9` follow hashed names.
fn certificate_files(directory: &Path) -> Vec<PathBuf> {
    let is_certificate = |path: &PathBuf| {
        let ending = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
        matches!(ending, "pem" | "crt") || (ending.len() == 1 && ending.as_bytes()[0].is_ascii_digit())
    };
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(is_certificate).collect();
    files.sort();
    files
}
