//! Looks for what is wrong with a node before somebody's container finds it.
//!
//! | module | looks at |
//! |---|---|
//! | [`repositories`] | each configured repository, and how it is mounted |
//! | [`machine`] | kernel, SELinux, the file system of the state directory |
//! | [`daemon`] | our own sockets |
//! | [`engine`] | containerd: its version, its plugins, its images |
//! | [`settings`] | containerd's configuration |
//!
//! A look gathers facts, a pure function judges them. Every check says what was found; one that is not well says what to do.

use serde::{Deserialize, Serialize};

use crate::config::Config;

pub mod daemon;
pub mod engine;
pub mod machine;
pub mod repositories;
pub mod settings;

/// How something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// well
    Ok,
    /// it works, but not as well as it could, or not for everybody
    Warn,
    /// it does not work
    Fail,
}

/// Something that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// what was looked at
    pub name: String,
    /// how it is
    pub state: State,
    /// what was found
    pub found: String,
    /// what to do
    pub advice: Option<String>,
}

impl Check {
    /// It is well.
    pub fn ok(name: impl Into<String>, found: impl Into<String>) -> Self {
        Self { name: name.into(), state: State::Ok, found: found.into(), advice: None }
    }

    /// It could be better.
    pub fn warn(name: impl Into<String>, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { name: name.into(), state: State::Warn, found: found.into(), advice: Some(advice.into()) }
    }

    /// It does not work.
    pub fn fail(name: impl Into<String>, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { state: State::Fail, ..Self::warn(name, found, advice) }
    }
}

/// Looks at everything.
pub async fn examine(config: &Config) -> Vec<Check> {
    let (repositories, daemon) = tokio::join!(repositories::examine(config), daemon::examine(config));
    let root = config.root.clone();
    let machine = tokio::task::spawn_blocking(move || machine::examine(&root)).await.unwrap_or_default();
    let mut checks = repositories;
    checks.extend(machine);
    checks.extend(daemon);
    checks.extend(engine::examine(config).await);
    checks
}
