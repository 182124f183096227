//! What is said once: the keys of the list itself.

use super::{File, Reader};
use crate::cli::fqrn;
use crate::podman::InStore;
use crate::wishlist::fields::join;
use crate::wishlist::template;
use crate::wishlist::yaml::{self, Located, Node};

impl Reader {
    /// What is said once for the whole list.
    pub(super) fn header<'v>(&mut self, file: &File, top: u64, find: &impl Fn(&str) -> Option<&'v Located>) {
        if let Some(value) = find("user") {
            self.list.user = self.text(file, "user", value).unwrap_or_default();
        }
        match find("cvmfs_repo") {
            Some(value) => self.list.repository = self.repository(file, value).unwrap_or_default(),
            None if !self.unusable || file.version == 2 => {
                let message = "missing; name the repository, for example images.example.org";
                self.refuse(file, top, "cvmfs_repo", message.to_owned());
            }
            None => {}
        }
        if let Some(value) = find("output_format") {
            self.list.output_format = self.output_format(file, value);
        }
        if let Some(value) = find("podman") {
            self.list.podman = self.podman(file, value);
        }
        if let Some(value) = find("ignoreErrors") {
            self.list.ignore_errors = self.patterns(file, "ignoreErrors", value);
        }
        if let Some(value) = find("aliases").filter(|_| file.version == 2) {
            self.aliases(file, value);
        }
    }

    pub(super) fn version(&mut self, file: &File, value: &Located) -> u32 {
        let line = yaml::line(value);
        match &value.value {
            Node::Scalar(text) if text == "1" => return 1,
            Node::Scalar(text) if text == "2" => return 2,
            Node::Scalar(text) => {
                let message =
                    format!("wish lists of version {text:?} are not known; this program reads versions 1 and 2");
                self.refuse(file, line, "version", message);
            }
            other => self.refuse(file, line, "version", format!("expected 1 or 2, found {}", other.kind())),
        }
        1
    }

    fn repository(&mut self, file: &File, value: &Located) -> Option<String> {
        let text = self.text(file, "cvmfs_repo", value)?;
        let refused = fqrn(&text).map_err(|message| format!("{text:?}: {message}"));
        refused.map_err(|message| self.refuse(file, yaml::line(value), "cvmfs_repo", message)).ok()
    }

    pub(super) fn same_repository(&mut self, file: &File, value: &Located) {
        let Some(found) = self.text(file, "cvmfs_repo", value) else { return };
        if found != self.list.repository {
            let message = format!("{found:?}: the list that includes this file is for {}", self.list.repository);
            self.refuse(file, yaml::line(value), "cvmfs_repo", message);
        }
    }

    fn output_format(&mut self, file: &File, value: &Located) -> Option<String> {
        let text = self.text(file, "output_format", value)?;
        for unknown in template::unknown_variables(&text) {
            let known = template::VARIABLES.map(|name| format!("$({name})")).join(", ");
            let message = format!("unknown variable $({unknown}); there are {known}");
            self.warn(file, yaml::line(value), "output_format", message);
        }
        (!text.is_empty()).then_some(text)
    }

    fn podman(&mut self, file: &File, value: &Located) -> InStore {
        match &value.value {
            Node::Scalar(text) if text == "true" => InStore::All,
            Node::Scalar(text) if text == "false" => InStore::Nothing,
            Node::Scalar(text) => {
                let message = format!("expected true, false or a list of patterns, found {text:?}");
                self.refuse(file, yaml::line(value), "podman", message);
                InStore::Follow
            }
            _ => InStore::Matching(self.patterns(file, "podman", value)),
        }
    }

    fn patterns(&mut self, file: &File, field: &str, value: &Located) -> Vec<String> {
        let mut patterns = Vec::new();
        for (index, item) in self.items(file, field, value).iter().enumerate() {
            match &item.value {
                Node::Scalar(pattern) => patterns.push(pattern.clone()),
                other => {
                    let message = format!("expected a pattern, found {}; ignored", other.kind());
                    self.warn(file, yaml::line(item), &format!("{field}[{index}]"), message);
                }
            }
        }
        patterns
    }

    fn aliases(&mut self, file: &File, value: &Located) {
        let Node::Mapping(entries) = &value.value else {
            let message = format!("expected a mapping of registries, found {}", value.value.kind());
            return self.refuse(file, yaml::line(value), "aliases", message);
        };
        for (alias, registry) in entries {
            let (line, field) = (yaml::line(alias), join("aliases", &alias.value.0));
            let Some(registry) = self.text(file, &field, registry) else { continue };
            if let Err(error) = self.aliases.add(&alias.value.0, &registry) {
                self.refuse(file, line, &field, error.to_string());
            }
        }
        if let Some(alias) = self.aliases.chained().map(str::to_owned) {
            let message = "it means another alias; write the registry that is meant in the end".to_owned();
            self.refuse(file, yaml::line(value), &join("aliases", &alias), message);
        }
    }
}
