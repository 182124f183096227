//! Entries, and what they have where they say nothing.

use std::collections::HashMap;
use std::sync::Arc;

use image::reference::{ImageSource, ReferenceError, Wish as Source};

use super::{Details, File, Place, Reader};
use crate::wishlist::fields::{Fault, Fields, OPTIONS, join};
use crate::wishlist::options::ImageOptions;
use crate::wishlist::selection::TagSelection;
use crate::wishlist::yaml::{self, Located, Node};
use crate::wishlist::{Severity, Wish};

impl Reader {
    pub(super) fn defaults(&mut self, file: &File, value: &Located) -> Arc<ImageOptions> {
        let mut fields = Fields { directory: file.directory(), faults: Vec::new() };
        let mut options = ImageOptions::default();
        let keys: Vec<&'static str> = OPTIONS.into_iter().filter(|key| *key != "startup").collect();
        for (key, value) in fields.mapping("defaults", value, &keys) {
            fields.option("defaults", key, value, &mut options);
        }
        self.thin_has_a_name(&options, "defaults", value, &mut fields);
        for Fault { line, field, message } in fields.faults {
            self.refuse(file, line, &field, message);
        }
        let options = options.or(&file.defaults);
        self.quota(file, yaml::line(value), &options);
        Arc::new(options)
    }

    fn thin_has_a_name(&self, options: &ImageOptions, at: &str, value: &Located, fields: &mut Fields<'_>) {
        if options.products.is_some_and(|products| products.thin) && self.list.output_format.is_none() {
            let message = "thin needs the key output_format of the list, which names thin images";
            fields.fault(value, &join(at, "products"), message.to_owned());
        }
    }

    /// An owner has one quota, wherever it is said.
    fn quota(&mut self, file: &File, line: u64, options: &ImageOptions) {
        let (Some(owner), Some(quota)) = (&options.owner, options.quota.owner) else { return };
        let place = Place { file: file.path.clone(), line };
        match self.quotas.get(owner).cloned() {
            Some((other, first)) if other != quota => {
                let message = format!(
                    "{owner} may have {quota} bytes here and {other} in {}; the smaller number counts",
                    first.seen_from(&file.path)
                );
                self.warn(file, line, "quota.owner", message);
                if quota < other {
                    self.quotas.insert(owner.clone(), (quota, place));
                }
            }
            Some(_) => {}
            None => drop(self.quotas.insert(owner.clone(), (quota, place))),
        }
    }

    pub(super) fn entry(&mut self, file: &File, index: usize, item: &Located) {
        let (line, field) = (yaml::line(item), format!("input[{index}]"));
        match &item.value {
            Node::Scalar(text) => {
                let details = (file.defaults.clone(), TagSelection::default());
                self.wish(file, line, &field, text, details);
            }
            Node::Mapping(entries) if file.version == 2 => self.entry_with_options(file, &field, item, entries),
            other => {
                let message = format!("expected the name of an image, found {}", other.kind());
                self.fail(file, line, field, message, other.kind());
            }
        }
    }

    fn entry_with_options(
        &mut self,
        file: &File,
        field: &str,
        item: &Located,
        entries: &[(serde_saphyr::Spanned<yaml::Key>, Located)],
    ) {
        let mut fields = Fields { directory: file.directory(), faults: Vec::new() };
        let (mut image, mut options, mut tags) = (None, ImageOptions::default(), None);
        for (key, value) in entries {
            match key.value.0.as_str() {
                "image" => image = Some(value),
                "tags" => tags = Some(fields.tags(&join(field, "tags"), value)),
                other if fields.option(field, other, value, &mut options) => {}
                other => {
                    let known: Vec<&str> = ["image", "tags"].into_iter().chain(OPTIONS).collect();
                    fields.unknown(yaml::line(key), field, other, &known);
                }
            }
        }
        let text = match image {
            Some(value) => fields.text(&join(field, "image"), value),
            None => {
                fields.fault(item, &join(field, "image"), "missing; name the image".to_owned());
                None
            }
        };
        if tags.is_some()
            && text.as_deref().and_then(|t| Source::parse(t).ok()).is_some_and(|s| matches!(s, Source::Image(_)))
        {
            fields.fault(
                item,
                &join(field, "tags"),
                "the image has one tag; write a wildcard to choose among several".to_owned(),
            );
        }
        self.thin_has_a_name(&options, field, item, &mut fields);
        let line = yaml::line(item);
        let shown = text.clone().unwrap_or_else(|| "an entry without an image".to_owned());
        let failed = !fields.faults.is_empty();
        for (number, Fault { line, field, message }) in fields.faults.into_iter().enumerate() {
            // One entry is one failed wish, however much is wrong with it.
            let wish = (number == 0).then(|| shown.clone());
            self.note(file, line, field, message, Severity::Error, wish);
        }
        let Some(text) = text.filter(|_| !failed) else { return };
        let options = Arc::new(options.or(&file.defaults));
        self.quota(file, line, &options);
        self.wish(file, line, field, &text, (options, tags.unwrap_or_default()));
    }

    fn wish(&mut self, file: &File, line: u64, field: &str, text: &str, details: Details) {
        let field = field.to_owned();
        let source = match Source::parse(text) {
            Ok(source) => self.aliases.resolve(source),
            Err(error) => return self.fail(file, line, field, error.to_string(), text),
        };
        if let Some((first, other)) = self.seen.get(&source) {
            let place = first.seen_from(&file.path);
            let differences = differences(&details, other);
            if differences.is_empty() {
                return self.warn(file, line, &field, format!("{text:?} is wished for in {place} already"));
            }
            let message = format!(
                "{text:?} is wished for in {place} already, with another {}; one of them has to go",
                differences.join(", ")
            );
            return self.fail(file, line, field, message, text);
        }
        let place = Place { file: file.path.clone(), line };
        match public_name(&source) {
            Ok(Some(name)) => {
                if let Some(first) = self.names.get(&name) {
                    let first = first.seen_from(&file.path);
                    let message = format!("{text:?} would be published as {name}, as would be {first}");
                    return self.fail(file, line, field, message, text);
                }
                self.names.insert(name, place.clone());
            }
            Ok(None) => {}
            Err(error) => return self.fail(file, line, field, error.to_string(), text),
        }
        self.seen.insert(source.clone(), (place, details.clone()));
        let (file, text, (options, tags)) = (file.path.clone(), text.to_owned(), details);
        self.list.wishes.push(Wish { file, line, field, text, source, options, tags });
    }

    /// In version 2, what an entry names is none of those that wildcards take: it has the options of its own entry.
    pub(super) fn own_entries_win(&mut self) {
        if self.list.version < 2 {
            return;
        }
        let mut tags: HashMap<String, Vec<String>> = HashMap::new();
        for wish in &self.list.wishes {
            if let Source::Image(ImageSource::Registry(image)) = &wish.source
                && let Some(tag) = image.tag()
            {
                tags.entry(image.repository().to_string()).or_default().push(tag.to_owned());
            }
        }
        for wish in &mut self.list.wishes {
            if let Source::Wildcard(wildcard) = &wish.source
                && let Some(named) = tags.get(&wildcard.repository().to_string())
            {
                wish.tags.exclude.extend(named.iter().filter(|tag| wildcard.select(tag).is_some()).cloned());
            }
        }
    }
}

/// In what two wishes for the same thing differ.
fn differences(a: &Details, b: &Details) -> Vec<&'static str> {
    let mut differences = a.0.differences(&b.0);
    if a.1 != b.1 {
        differences.push("tags");
    }
    differences
}

/// Where a wish will be published, as far as it can be known now; an error if that is no place for an image.
fn public_name(source: &Source) -> Result<Option<String>, ReferenceError> {
    match source {
        Source::Image(image @ ImageSource::Registry(_)) => Ok(Some(image.public_path(None)?.to_string())),
        // The tag of an image on disk may stand in its file; its directory part is known.
        Source::Image(on_disk) => on_disk.public_path(None).map(|_| None),
        Source::Wildcard(wildcard) => {
            // Any tag that the pattern takes shows whether the directory is one for images.
            let tag = wildcard.pattern().as_str().replace('*', "0");
            wildcard.select(&tag).map_or(Ok(None), |image| image.public_path().map(|_| None))
        }
    }
}
