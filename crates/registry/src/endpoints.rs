//! Who is asked about an image repository: its mirrors in order, then the registry itself.
//!
//! Invariants
//! - A mirror never sees credentials of the registry; it has its own or none.
//! - Whatever a mirror answers is held to the digest that was asked for. Only mirrors that may are asked what a tag stands for.
//! - A mirror that fails is passed over for a while, longer each time, and the log says so. One that has not got something is not a
//!   failure: the next one is asked.
//! - Nobody waits for a mirror as for a registry: two tries, and no pause of more than seconds.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use image::reference::{Repository, Scheme};

use crate::budget::Limits;
use crate::client::{Client, ClientConfig};
use crate::error::Error;
use crate::lines::Lines;
use crate::retry::RetryPolicy;
use crate::settings::Mirror;
use crate::transport::{Login, Session, Target, base_url, mirror_url, shown};

/// What a mirror is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wants {
    /// What a name stands for now.
    Names,
    /// Something whose digest is known.
    Content,
}

/// Who is asked.
#[derive(Debug)]
pub(crate) struct Endpoints {
    /// In this order, before the registry.
    pub(crate) mirrors: Vec<Target>,
    /// The registry.
    pub(crate) origin: Target,
}

/// Sessions and connections of a client.
#[derive(Debug)]
pub(crate) struct Sessions {
    /// by CA file
    lines: HashMap<Option<PathBuf>, Arc<Lines>>,
    known: Mutex<BTreeMap<(String, Login), Arc<Session>>>,
}

impl Sessions {
    /// Reads all CA files.
    pub(crate) fn new(config: &ClientConfig) -> Result<Self, Error> {
        let mut lines = HashMap::from([(None, Arc::new(Lines::new(config, None)?))]);
        for file in config.registries.ca_files() {
            if let Entry::Vacant(entry) = lines.entry(Some(file.to_owned())) {
                entry.insert(Arc::new(Lines::new(config, Some(file))?));
            }
        }
        Ok(Self { lines, known: Mutex::default() })
    }

    fn of(
        &self,
        config: &ClientConfig,
        origin: String,
        login: Login,
        ca: Option<PathBuf>,
        limits: Limits,
    ) -> Arc<Session> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let budget = || config.budgets.of(&origin, limits);
        let lines = || self.lines.get(&ca).unwrap_or(&self.lines[&None]).clone();
        let session = || Session { grants: Default::default(), budget: budget(), lines: lines() };
        known.entry((origin.clone(), login)).or_insert_with(|| Arc::new(session())).clone()
    }
}

impl Client {
    /// The registry itself.
    pub(crate) fn target(&self, repository: &Repository) -> Result<Target, Error> {
        let config = self.config();
        let rules = config.registries.rules(repository);
        let mut limits = rules.limits;
        limits.in_flight = limits.in_flight.min(config.requests_per_registry);
        let (place, path, base, login) = match &config.mirror {
            Some(mirror) => {
                let place = format!("{repository}, asked of {}", shown(mirror));
                (place, repository.path().to_owned(), mirror_url(mirror, repository)?, Login::Mirror(None))
            }
            None => {
                if repository.scheme() == Scheme::Http && rules.plain_http == Some(false) {
                    return Err(Error::Configuration(format!(
                        "{repository}: plain http is not allowed for this registry (plain_http = false in the configuration); write https://"
                    )));
                }
                let (host, path) = config.credentials.route(repository);
                let base = base_url(repository, &host, &path)?;
                let login = self.login().map_or(Login::Configured, Login::Named);
                (repository.to_string(), path, base, login)
            }
        };
        let ca = rules.ca_file.map(ToOwned::to_owned);
        let session = self.sessions().of(config, shown(&base), login.clone(), ca, limits);
        Ok(Target { repository: repository.clone(), place, path, base, session, login, retry: config.retry.clone() })
    }

    /// All who may be asked now.
    pub(crate) fn endpoints(&self, repository: &Repository, wants: Wants) -> Result<Endpoints, Error> {
        let origin = self.target(repository)?;
        let mut mirrors = Vec::new();
        if self.config().mirror.is_none() {
            let rules = self.config().registries.rules(repository);
            for mirror in rules.mirrors.iter().filter(|mirror| mirror.resolve || wants == Wants::Content) {
                let target = self.mirror(mirror, repository, rules.limits)?;
                if !target.session.budget.is_passed_over() {
                    mirrors.push(target);
                }
            }
        }
        Ok(Endpoints { mirrors, origin })
    }

    fn mirror(&self, mirror: &Mirror, repository: &Repository, limits: Limits) -> Result<Target, Error> {
        let base = mirror_url(&mirror.url, repository)?;
        let login = Login::Mirror(mirror.credentials.as_deref().map(Arc::from));
        let config = self.config();
        let session = self.sessions().of(config, shown(&base), login.clone(), mirror.ca_file.clone(), limits);
        let place = format!("{repository}, asked of {}", shown(&base));
        let path = base.path().trim_start_matches("/v2/").trim_end_matches('/').to_owned();
        let retry = RetryPolicy {
            attempts: config.retry.attempts.min(2),
            longest_wait: config.retry.longest_wait.min(Duration::from_secs(5)),
            ..config.retry.clone()
        };
        Ok(Target { repository: repository.clone(), place, path, base, session, login, retry })
    }
}

/// What a mirror answered, if it is of use; why it is not stands in the log.
pub(crate) fn useful<T>(mirror: &Target, result: Result<T, Error>) -> Option<T> {
    match result {
        Ok(answer) => {
            mirror.session.budget.recovered();
            Some(answer)
        }
        Err(error) => {
            blame(mirror, &error);
            None
        }
    }
}

/// Passes a mirror over that failed.
pub(crate) fn blame(mirror: &Target, error: &Error) {
    let at = shown(&mirror.base);
    if matches!(error, Error::NotFound { .. }) {
        tracing::debug!(mirror = at, %error, "a mirror has not got this; the next one is asked");
        return;
    }
    let rest = mirror.session.budget.fail();
    tracing::warn!(mirror = at, %error, seconds = rest.as_secs(), "a mirror failed and is passed over for a while");
}
