//! Names of thin images, made from the name of an image by the list's `output_format`.
//!
//! Variables, as in lists of version 1: `$(scheme)`, `$(registry)`, `$(repository)`, `$(tag)`, `$(digest)`,
//! `$(reference)` (`:TAG`, `@DIGEST` or both) and `$(image)` (repository and reference). A part that the image does not
//! have is empty. What was put in is not looked at again.

use image::reference::Reference;

/// The names that may stand in `$(…)`.
pub(super) const VARIABLES: [&str; 7] = ["scheme", "registry", "repository", "tag", "digest", "reference", "image"];

/// `format` with every variable replaced by its value for `image`. Unknown variables stay as they are, so that the
/// resulting name is refused instead of being silently wrong.
pub fn expand_output_format(format: &str, image: &Reference) -> String {
    let mut expanded = String::with_capacity(format.len());
    for piece in Pieces(format) {
        match piece {
            Piece::Text(text) => expanded.push_str(text),
            Piece::Variable { name, whole } => match value(name, image) {
                Some(value) => expanded.push_str(&value),
                None => expanded.push_str(whole),
            },
        }
    }
    expanded
}

/// Variables of `format` that mean nothing.
pub(super) fn unknown_variables(format: &str) -> impl Iterator<Item = &str> {
    Pieces(format).filter_map(|piece| match piece {
        Piece::Variable { name, .. } if !VARIABLES.contains(&name) => Some(name),
        _ => None,
    })
}

fn value(name: &str, image: &Reference) -> Option<String> {
    let path = image.repository().path();
    match name {
        "scheme" => Some(image.scheme().to_string()),
        "registry" => Some(image.registry_host().to_owned()),
        "repository" => Some(path.to_owned()),
        "tag" => Some(image.tag().unwrap_or_default().to_owned()),
        "digest" => Some(image.digest().map(|digest| digest.to_string()).unwrap_or_default()),
        "reference" => Some(image.suffix()),
        "image" => Some(format!("{path}{}", image.suffix())),
        _ => None,
    }
}

enum Piece<'a> {
    Text(&'a str),
    Variable { name: &'a str, whole: &'a str },
}

/// Cuts a format at its variables.
struct Pieces<'a>(&'a str);

impl<'a> Iterator for Pieces<'a> {
    type Item = Piece<'a>;

    fn next(&mut self) -> Option<Piece<'a>> {
        if self.0.is_empty() {
            return None;
        }
        let start = self.0.find("$(").unwrap_or(self.0.len());
        if start > 0 {
            let (text, rest) = self.0.split_at(start);
            self.0 = rest;
            return Some(Piece::Text(text));
        }
        // An opening without end is text.
        let Some(end) = self.0.find(')') else { return Some(Piece::Text(std::mem::take(&mut self.0))) };
        let (whole, rest) = self.0.split_at(end + 1);
        self.0 = rest;
        Some(Piece::Variable { name: &whole[2..end], whole })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expands_every_variable() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        let both = format!("https://quay.io/tools/app:1.2@{digest}");
        let by_digest = format!("http://127.0.0.1:5000/app@{digest}");
        let cases = [
            (
                "https://quay.io/tools/app:1.2",
                "$(scheme)://$(registry)/$(repository)_thin:$(tag)",
                "https://quay.io/tools/app_thin:1.2".to_owned(),
            ),
            (
                "https://quay.io/tools/app:1.2",
                "$(scheme)://harbor.example.org/thin/$(image)",
                "https://harbor.example.org/thin/tools/app:1.2".to_owned(),
            ),
            (&both, "$(reference) $(digest)", format!(":1.2@{digest} {digest}")),
            (&by_digest, "x/$(image) tag=$(tag)", format!("x/app@{digest} tag=")),
            ("debian:12", "$(registry)/$(repository)", "registry.hub.docker.com/library/debian".to_owned()),
            ("debian:12", "$(tag)$(tag)$(tag)$(tag)$(tag)$(tag)", "121212121212".to_owned()),
            ("debian:12", "", String::new()),
            ("debian:12", "no variable $ ( $)", "no variable $ ( $)".to_owned()),
            ("debian:12", "$(unknown):$(tag) $(tag", "$(unknown):12 $(tag".to_owned()),
            ("debian:12", "$($(tag))", "$($(tag))".to_owned()),
        ];
        for (image, format, expected) in cases {
            let image = Reference::parse(image).unwrap();
            assert_eq!(expand_output_format(format, &image), expected, "{format}");
        }
    }

    #[test]
    fn names_the_unknown_variables() {
        let unknown: Vec<&str> = unknown_variables("$(scheme)://$(host)/$(image)$(Tag)$(open").collect();
        assert_eq!(unknown, ["host", "Tag"]);
    }
}
