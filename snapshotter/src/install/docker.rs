//! `daemon.json` of Docker: its image store is containerd's, and the snapshotter is ours. All other keys stay.

use anyhow::{Context as _, bail};
use serde::Serialize as _;
use serde_json::{Map, Value};

use super::Settings;

/// The file.
pub const FILE: &str = "/etc/docker/daemon.json";

/// What to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// the text of the file
    pub text: String,
    /// what the administrator should know
    pub notes: Vec<String>,
}

/// The file with our settings in it.
pub fn plan(before: Option<&str>, settings: &Settings) -> anyhow::Result<Planned> {
    let text = before.unwrap_or_default();
    let mut notes = Vec::new();
    let mut keys: Map<String, Value> = match text.trim() {
        "" => Map::new(),
        _ => serde_json::from_str(text).context("it is no JSON object")?,
    };
    let old = keys.get("storage-driver").and_then(Value::as_str).map(str::to_owned);
    if old.as_deref() != Some(&settings.name) {
        notes.push(format!(
            "images and containers that Docker has in {} are out of sight from now on; `cvmfs-snapshotter uninstall` brings them back",
            old.as_deref().unwrap_or("its present store")
        ));
    }
    if keys.contains_key("userns-remap") {
        bail!("userns-remap is set, and Docker can't do that with containerd's image store");
    }
    let unchanged = keys.clone();
    keys.insert("storage-driver".to_owned(), settings.name.clone().into());
    let features = keys.entry("features").or_insert_with(|| Map::new().into());
    let features = features.as_object_mut().context("\"features\" is no object")?;
    features.insert("containerd-snapshotter".to_owned(), true.into());
    if keys == unchanged {
        return Ok(Planned { text: text.to_owned(), notes });
    }
    let indent = text.lines().find_map(|line| {
        let blanks = line.len() - line.trim_start_matches([' ', '\t']).len();
        (blanks > 0 && line.trim_start().starts_with('"')).then(|| &line[..blanks])
    });
    let formatter = serde_json::ser::PrettyFormatter::with_indent(indent.unwrap_or("  ").as_bytes());
    let mut bytes = Vec::new();
    keys.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, formatter))?;
    bytes.push(b'\n');
    Ok(Planned { text: String::from_utf8(bytes)?, notes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn other_keys_and_their_order_stay() {
        let before = "{\n\t\"log-driver\": \"journald\",\n\t\"storage-driver\": \"overlay2\",\n\t\"features\": {\"buildkit\": true},\n\t\"insecure-registries\": [\"127.0.0.0/8\"]\n}\n";
        let planned = plan(Some(before), &Settings::of(&Config::default())).unwrap();
        assert_eq!(
            planned.text,
            "{\n\t\"log-driver\": \"journald\",\n\t\"storage-driver\": \"cvmfs-snapshotter\",\n\t\"features\": {\n\t\t\"buildkit\": true,\n\t\t\"containerd-snapshotter\": true\n\t},\n\t\"insecure-registries\": [\n\t\t\"127.0.0.0/8\"\n\t]\n}\n"
        );
        assert!(planned.notes[0].contains("overlay2"));
        let again = plan(Some(&planned.text), &Settings::of(&Config::default())).unwrap();
        assert_eq!((again.text, again.notes), (planned.text, vec![]));
    }

    #[test]
    fn an_absent_or_empty_file_is_made() {
        for before in [None, Some(""), Some("{}")] {
            let text = plan(before, &Settings::of(&Config::default())).unwrap().text;
            assert_eq!(
                text,
                "{\n  \"storage-driver\": \"cvmfs-snapshotter\",\n  \"features\": {\n    \"containerd-snapshotter\": true\n  }\n}\n"
            );
        }
    }

    #[test]
    fn what_would_not_work_is_refused() {
        for (before, reason) in [
            ("{\"userns-remap\": \"default\"}", "userns-remap"),
            ("[]", "no JSON object"),
            ("{", "no JSON object"),
            ("{\"features\": []}", "no object"),
        ] {
            let error = plan(Some(before), &Settings::of(&Config::default())).expect_err(before);
            assert!(error.to_string().contains(reason), "{error}");
        }
    }
}
