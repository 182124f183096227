//! Credentials that the configuration has a name for: where they are, and how they are read at the moment they are needed.

use std::env;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Credential, Secret, docker_entry, helper_entry};
use crate::error::Error;

/// No user name, password or token is longer, in bytes.
const LONGEST: u64 = 64 * 1024;

/// One of `user` or `user_env` with one of `password_env` or `password_file`; or an identity token, `token_env` or `token_file`; or
/// `docker_config`, a file as `docker login` writes it; or `helper`, the NAME of a program `docker-credential-NAME`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NamedCredential {
    /// user name
    pub user: Option<String>,
    /// environment variable with the user name
    pub user_env: Option<String>,
    /// environment variable with the password
    pub password_env: Option<String>,
    /// file with the password
    pub password_file: Option<PathBuf>,
    /// environment variable with an identity token
    pub token_env: Option<String>,
    /// file with an identity token
    pub token_file: Option<PathBuf>,
    /// Docker configuration; its entry for the registry is taken
    pub docker_config: Option<PathBuf>,
    /// credential helper
    pub helper: Option<String>,
    /// registries that may see them, besides those whose settings name them
    pub registries: Vec<String>,
}

/// Where a credential is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    Password { user: Text, password: Text },
    Token(Text),
    DockerConfig(PathBuf),
    Helper(String),
}

/// Where a text is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Text {
    Here(String),
    Variable(String),
    File(PathBuf),
}

impl NamedCredential {
    /// The one source that is named.
    pub(crate) fn source(&self) -> Result<Source, String> {
        let variable = |name: &Option<String>| name.clone().map(Text::Variable);
        let file = |path: &Option<PathBuf>| path.clone().map(Text::File);
        let user = one([self.user.clone().map(Text::Here), variable(&self.user_env)])?;
        let password = one([variable(&self.password_env), file(&self.password_file)])?;
        let token = one([variable(&self.token_env), file(&self.token_file)])?;
        let login = match (user, password) {
            (Some(user), Some(password)) => Some(Source::Password { user, password }),
            (None, None) => None,
            (Some(_), None) => return Err("a user without password_env or password_file".to_owned()),
            (None, Some(_)) => return Err("a password without user or user_env".to_owned()),
        };
        if let Some(helper) = self.helper.as_ref().filter(|name| !name.bytes().all(is_plain) || name.is_empty()) {
            return Err(format!("helper {helper:?} is no name; write NAME for the program docker-credential-NAME"));
        }
        let docker = self.docker_config.clone().map(Source::DockerConfig);
        let helper = self.helper.clone().map(Source::Helper);
        one([login, token.map(Source::Token), docker, helper])?
            .ok_or_else(|| "no source: write user and password_file, token_file, docker_config or helper".to_owned())
    }
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)
}

fn one<T, const N: usize>(choices: [Option<T>; N]) -> Result<Option<T>, String> {
    let mut given = choices.into_iter().flatten();
    match (given.next(), given.next()) {
        (first, None) => Ok(first),
        _ => Err("more than one source; keep one".to_owned()),
    }
}

impl Source {
    /// The credential, for the registry whose keys in a Docker configuration are these. Blocking.
    pub(crate) fn read(&self, name: &str, keys: &[&str]) -> Result<Credential, Error> {
        let none = |of: String| {
            Error::Configuration(format!("credentials {name}: {of} has none for {}; log in", keys.join(" or ")))
        };
        let first = |entry: &dyn Fn(&str) -> Result<Option<Credential>, Error>| {
            keys.iter().map(|key| entry(key)).find_map(Result::transpose).transpose()
        };
        match self {
            Self::Password { user, password } => {
                Ok(Credential::Password { user: user.read(name)?, password: Secret::new(password.read(name)?) })
            }
            Self::Token(token) => Ok(Credential::IdentityToken(Secret::new(token.read(name)?))),
            Self::DockerConfig(path) => {
                first(&|key| docker_entry(path, key))?.ok_or_else(|| none(path.display().to_string()))
            }
            Self::Helper(helper) => {
                first(&|key| helper_entry(helper, key))?.ok_or_else(|| none(format!("docker-credential-{helper}")))
            }
        }
    }
}

impl Text {
    fn read(&self, name: &str) -> Result<String, Error> {
        let wrong = |what: String| Error::Configuration(format!("credentials {name}: {what}"));
        let (text, place) = match self {
            Self::Here(text) => return Ok(text.clone()),
            Self::Variable(variable) => {
                let place = format!("the environment variable {variable}");
                (env::var(variable).map_err(|_| wrong(format!("{place} is not set")))?, place)
            }
            Self::File(path) => {
                let text = read_file(path).map_err(|source| Error::Io { path: path.clone(), source })?;
                (text, path.display().to_string())
            }
        };
        // Editors end a file with a line feed.
        let text = text.trim_end_matches(['\n', '\r']);
        if text.is_empty() || text.len() as u64 > LONGEST || text.contains(char::is_control) {
            return Err(wrong(format!("{place} is empty, too long or more than a line")));
        }
        Ok(text.to_owned())
    }
}

fn read_file(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(LONGEST + 2).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn named(json: serde_json::Value) -> Result<Source, String> {
        serde_json::from_value::<NamedCredential>(json).map_err(|error| error.to_string())?.source()
    }

    #[test]
    fn there_is_one_source() {
        for json in [
            serde_json::json!({}),
            serde_json::json!({ "user": "u" }),
            serde_json::json!({ "password_env": "P" }),
            serde_json::json!({ "user": "u", "user_env": "U", "password_env": "P" }),
            serde_json::json!({ "user": "u", "password_env": "P", "helper": "pass" }),
            serde_json::json!({ "helper": "../../bin/sh" }),
            serde_json::json!({ "user": "u", "password": "never here" }),
        ] {
            let error = named(json.clone()).unwrap_err();
            assert!(!error.contains("never here"), "{json}: {error}");
        }
    }

    #[test]
    fn secrets_are_read_when_they_are_needed_and_never_shown() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("password");
        let source = named(serde_json::json!({ "user_env": "HOME", "password_file": &file })).unwrap();
        assert!(matches!(source.read("robot", &["r"]), Err(Error::Io { .. })));
        for (content, expected) in
            [("one\n", Some("one")), ("two words", Some("two words")), ("", None), ("a\nb", None)]
        {
            fs::write(&file, content).unwrap();
            let found = source.read("robot", &["r"]);
            assert!(!format!("{found:?}").contains("one"), "{found:?}");
            let found = match found {
                Ok(Credential::Password { password, .. }) => Some(password.expose().to_owned()),
                _ => None,
            };
            assert_eq!(found.as_deref(), expected, "{content:?}");
        }
        let missing = named(serde_json::json!({ "token_env": "SURELY_NOT_SET_HERE" })).unwrap();
        let error = missing.read("robot", &["r"]).unwrap_err().to_string();
        assert!(error.contains("robot") && error.contains("SURELY_NOT_SET_HERE"), "{error}");
    }

    #[test]
    fn a_docker_configuration_and_a_helper_are_asked_for_the_registry() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config.json");
        fs::write(&file, r#"{"auths":{"quay.io":{"auth":"dXNlcjpwOnc="}}}"#).unwrap();
        let source = named(serde_json::json!({ "docker_config": &file })).unwrap();
        assert_eq!(source.read("robot", &["other", "quay.io"]).unwrap(), Credential::password("user", "p:w"));
        assert!(source.read("robot", &["ghcr.io"]).unwrap_err().to_string().contains("ghcr.io"));
        let helper = named(serde_json::json!({ "helper": "surely-not-installed-here" })).unwrap();
        assert!(matches!(helper.read("robot", &["quay.io"]), Err(Error::Configuration(_))));
    }
}
