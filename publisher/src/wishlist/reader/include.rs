//! Files that a file includes.

use std::path::Path;

use super::{File, Reader};
use crate::wishlist::fields::{Fault, Fields};
use crate::wishlist::yaml::{self, Located, Node};
use crate::wishlist::{read_limited, tree};

/// How deep files include one another.
const MAX_DEPTH: usize = 8;
/// Most files of one list.
const MAX_FILES: usize = 256;

impl Reader {
    pub(super) fn includes(&mut self, file: &File, value: &Located) {
        let mut fields = Fields { directory: file.directory(), faults: Vec::new() };
        let texts = fields.texts("include", value);
        for Fault { line, field, message } in fields.faults {
            self.refuse(file, line, &field, message);
        }
        let lines: Vec<u64> = match &value.value {
            Node::Sequence(items) => items.iter().map(yaml::line).collect(),
            _ => vec![yaml::line(value)],
        };
        for (text, line) in texts.iter().zip(lines) {
            if let Err(message) = self.include(file, text) {
                self.refuse(file, line, "include", format!("{text:?}: {message}"));
            }
        }
    }

    fn include(&mut self, file: &File, text: &str) -> Result<(), String> {
        let path = file.directory().join(text);
        if file.chain.len() >= MAX_DEPTH || self.list.files.len() >= MAX_FILES {
            return Err(format!("a list has up to {MAX_FILES} files, {MAX_DEPTH} deep"));
        }
        if !self.list.files.contains(&path) {
            self.list.files.push(path.clone());
        }
        let real = std::fs::canonicalize(&path).map_err(|error| format!("cannot be read: {error}"))?;
        let top = file.chain.first().and_then(|top| top.parent());
        if !Path::new(text).is_absolute() && top.is_none_or(|top| !real.starts_with(top)) {
            return Err("leads out of the directory of the list; write an absolute path if that is meant".to_owned());
        }
        if file.chain.contains(&real) {
            return Err("includes itself, directly or through others".to_owned());
        }
        if !self.included.insert(real.clone()) {
            return Err("is included already".to_owned());
        }
        let bytes = read_limited(&path, self.bytes_left).map_err(|error| match std::error::Error::source(&error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        })?;
        self.bytes_left -= bytes.len() as u64;
        let tree = tree(&path, &bytes).map_err(|error| error.to_string())?;
        let chain = file.chain.iter().cloned().chain([real]).collect();
        let defaults = file.defaults.clone();
        self.file(File { path: path.into(), version: 1, is_top: false, defaults, chain }, &tree);
        Ok(())
    }
}
