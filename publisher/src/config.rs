//! The operator's configuration file: what the command line is too short for, and what must not stand in wish lists.
//!
//! TOML; see `doc/REGISTRIES.md` and `doc/SIGNATURES.md` for every key. Without `--config`, [`FILE`] is read if it is there. Unknown keys are refused: what is
//! misspelt would be believed to hold. Secrets are named here, never written.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;
use std::sync::Arc;

use registry::credentials::named::NamedCredential;
use registry::settings::RegistrySettings;
use registry::{Registries, Settings};
use serde::Deserialize;

use crate::error::CommandError;
use crate::signature::{Policy, PolicySettings, PrivateImages, RuleSettings};

/// Where the configuration is unless the command line says otherwise.
pub const FILE: &str = "/etc/cvmfs-publisher/config.toml";
/// No configuration is larger, in bytes.
const LARGEST: u64 = 1 << 20;

/// What the file says. The default says nothing.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// How registries are asked, and with which credentials.
    pub registries: Arc<Registries>,
    /// Which images have to be signed, and which may be published although they are not public.
    pub policy: Arc<Policy>,
}

/// The file as it is written.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Text {
    credentials: BTreeMap<String, NamedCredential>,
    registries: BTreeMap<String, RegistrySettings>,
    signatures: Vec<RuleSettings>,
    private_images: Option<PrivateImages>,
    public_images: Vec<String>,
}

impl Config {
    /// Reads the file that is named, or the one that is there for all.
    pub fn read(named: Option<&Path>) -> Result<Self, CommandError> {
        let path = named.unwrap_or(Path::new(FILE));
        match read(path) {
            Ok(text) => Self::parse(&text).map_err(|error| error.context(format!("{} can't be used", path.display()))),
            Err(error) if named.is_none() && error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(CommandError::config(error).context(format!("cannot read {}", path.display()))),
        }
    }

    fn parse(text: &str) -> Result<Self, CommandError> {
        let text: Text = toml::from_str(text).map_err(|error| {
            // Its own text shows the line, which may hold what was not meant for logs.
            let line = error.span().map_or(0, |span| 1 + text[..span.start].matches('\n').count());
            CommandError::config(format!("line {line}: {}", error.message()))
        })?;
        let Text { credentials, registries, signatures, private_images, public_images } = text;
        let registries = Settings { credentials, registries }.check().map_err(CommandError::config)?;
        let policy = PolicySettings { signatures, private_images, public_images }.check();
        Ok(Self { registries: registries.into(), policy: policy.map_err(CommandError::config)?.into() })
    }
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(LARGEST + 1).read_to_string(&mut text)?;
    match text.len() as u64 > LARGEST {
        true => Err(io::Error::new(io::ErrorKind::InvalidData, "larger than 1 MiB; this is no configuration")),
        false => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{ErrorKind, one_line};

    #[test]
    fn the_example_of_the_documentation_is_read() {
        let page = include_str!("../../doc/REGISTRIES.md");
        let example = page.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
        Config::parse(example).unwrap();
    }

    #[test]
    fn mistakes_name_the_line_and_repeat_nothing() {
        for (text, said) in [
            ("[registries.\"quay.io\"]\nmirror = []", "line 2: unknown field `mirror`"),
            ("[credentials.a]\nuser = \"u\"\npassword = \"hunter2\"", "line 3: unknown field `password`"),
            ("[registries.\"quay.io\"]\ncredentials = \"b\"", "credentials.b is not there"),
            ("[[", "line 1: "),
        ] {
            let error = Config::parse(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            let error = one_line(&error);
            assert!(error.contains(said) && !error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn only_a_file_that_is_named_has_to_be_there() {
        let directory = tempfile::tempdir().unwrap();
        assert!(Config::read(Some(&directory.path().join("none.toml"))).is_err());
        let file = directory.path().join("config.toml");
        std::fs::write(&file, "").unwrap();
        Config::read(Some(&file)).unwrap();
    }
}
