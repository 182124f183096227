//! What follows from the answers of the repositories: a value, for the daemon to act on and for `resolve` to explain.

use std::sync::Arc;

use crate::labels::Wanted;
use crate::repository::{Down, OnError, Repository};
use crate::resolve::{self, Answer, Below, Hit, Query, Unfit, Way};

/// What one repository said.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// it has the layer
    Hit(Hit),
    /// it has not
    Absent,
    /// it has one that can't be used here
    Unfit(Unfit),
    /// it can't say
    Down(Down),
    /// the configuration does not want it for this image
    Excluded,
}

impl Outcome {
    /// What an answer means.
    fn of(answer: Result<Option<Answer>, Down>) -> Self {
        match answer {
            Ok(Some(Answer { hit: Some(hit), .. })) => Self::Hit(hit),
            Ok(Some(Answer { unfit: Some(unfit), .. })) => Self::Unfit(unfit),
            Ok(_) => Self::Absent,
            Err(down) => Self::Down(down),
        }
    }
}

/// A repository and what it said.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// which
    pub repository: Arc<Repository>,
    /// what it said
    pub outcome: Outcome,
}

/// All that was asked, in order; a hit is the last one.
#[derive(Debug, Clone, Default)]
pub struct Decision {
    /// what was asked
    pub attempts: Vec<Attempt>,
}

/// What to do.
#[derive(Debug, Clone)]
pub enum Action {
    /// Take the layer from a repository.
    Serve {
        /// which
        repository: Arc<Repository>,
        /// what it has
        hit: Hit,
    },
    /// Let containerd download it, for this reason.
    Download(String),
    /// Refuse, because this repository might have it and wants no downloads instead.
    Refuse(Down),
}

impl Decision {
    /// Asks repositories, one after another, until one has the layer.
    pub async fn make(repositories: &[Arc<Repository>], wanted: &Wanted, below: Below, ways: &[Way]) -> Self {
        let mut decision = Self::default();
        for repository in repositories {
            let outcome = if repository.serves(wanted.image.as_deref()) {
                let query = Query {
                    wanted: wanted.clone(),
                    below,
                    ways: ways.to_vec(),
                    repository: repository.name().to_owned(),
                };
                Outcome::of(repository.look(move |mountpoint| resolve::ask(mountpoint, &query)).await)
            } else {
                Outcome::Excluded
            };
            let hit = matches!(outcome, Outcome::Hit(_));
            decision.attempts.push(Attempt { repository: Arc::clone(repository), outcome });
            if hit {
                break;
            }
        }
        decision
    }

    /// What to do.
    pub fn action(&self) -> Action {
        let mut reasons = Vec::new();
        let mut refuse = None;
        for attempt in &self.attempts {
            let name = attempt.repository.name();
            match &attempt.outcome {
                Outcome::Hit(hit) => {
                    return Action::Serve { repository: Arc::clone(&attempt.repository), hit: hit.clone() };
                }
                Outcome::Absent => reasons.push(format!("not in {name}")),
                Outcome::Unfit(unfit) => reasons.push(format!("in {name}, but {unfit}")),
                Outcome::Excluded => reasons.push(format!("{name} is not for this image")),
                Outcome::Down(down) => {
                    if attempt.repository.on_error() == OnError::Fail {
                        refuse.get_or_insert_with(|| down.clone());
                    }
                    reasons.push(down.to_string());
                }
            }
        }
        refuse.map_or_else(|| Action::Download(reasons.join("; ")), Action::Refuse)
    }

    /// Did all repositories that were asked say that they don't have it?
    pub fn is_absent(&self) -> bool {
        self.attempts.iter().all(|attempt| matches!(attempt.outcome, Outcome::Absent | Outcome::Excluded))
    }

    /// The reason of a download in one word, for metrics.
    pub fn class(&self) -> &'static str {
        let any = |test: fn(&Outcome) -> bool| self.attempts.iter().any(|attempt| test(&attempt.outcome));
        if any(|outcome| matches!(outcome, Outcome::Hit(_))) {
            "unusable"
        } else if any(|outcome| matches!(outcome, Outcome::Down(_))) {
            "repository-down"
        } else if any(|outcome| matches!(outcome, Outcome::Unfit(_))) {
            "unfit"
        } else if any(|outcome| matches!(outcome, Outcome::Absent)) {
            "absent"
        } else {
            "excluded"
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use image::digest::LayerDigest;

    use super::*;
    use crate::resolve::Published;
    use crate::snapshots::Part;

    fn attempt(on_error: OnError, outcome: Outcome) -> Attempt {
        let repository = Repository::new("a.b", Path::new("/cvmfs/a.b"), on_error, Duration::from_secs(1));
        Attempt { repository: Arc::new(repository), outcome }
    }

    fn down() -> Outcome {
        Outcome::Down(Down { repository: "a.b".into(), why: "nothing is mounted".into() })
    }

    fn hit() -> Outcome {
        let layer =
            Published { layer: LayerDigest::of(b""), part: Part::Content, literal: false, diff: None, size: (0, 0) };
        Outcome::Hit(Hit { way: Way::Chain, layer })
    }

    #[test]
    fn the_action_follows_from_what_repositories_say() {
        use OnError::{Fail, Fallback};
        let cases = [
            (vec![(Fallback, Outcome::Absent), (Fallback, hit())], "serve", "unusable"),
            (vec![(Fail, down()), (Fallback, hit())], "serve", "unusable"),
            (vec![(Fallback, Outcome::Absent)], "download", "absent"),
            (vec![(Fallback, down())], "download", "repository-down"),
            (vec![(Fail, down()), (Fallback, Outcome::Absent)], "refuse", "repository-down"),
            (vec![(Fail, Outcome::Absent)], "download", "absent"),
            (vec![(Fallback, Outcome::Excluded)], "download", "excluded"),
        ];
        for (attempts, expected, class) in cases {
            let absent = attempts.iter().all(|(_, outcome)| matches!(outcome, Outcome::Absent | Outcome::Excluded));
            let decision = Decision {
                attempts: attempts.into_iter().map(|(on_error, outcome)| attempt(on_error, outcome)).collect(),
            };
            let action = match decision.action() {
                Action::Serve { .. } => "serve",
                Action::Download(reason) => {
                    assert!(!reason.is_empty());
                    "download"
                }
                Action::Refuse(_) => "refuse",
            };
            assert_eq!((action, decision.class(), decision.is_absent()), (expected, class, absent));
        }
    }
}
