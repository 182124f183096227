//! kill -9 under load: what was answered is there, and rows and directories are the same ones.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use containerd_client::services::v1::snapshots::Kind;
use image::digest::ChainId;
use tonic::Code;

use crate::common::{Client, Failure, World, request};

const CLIENTS: usize = 8;
const ROUNDS: usize = 20;

/// What a client knows of its own snapshots: kind, parent, a label.
type Model = BTreeMap<String, (Kind, String, String)>;

/// A change that may or may not have happened when the daemon was killed.
#[derive(Debug, Clone)]
enum Change {
    Make(String, Kind, String),
    Commit(String, String),
    Label(String, String),
    Remove(String),
}

impl Change {
    fn apply(&self, model: &mut Model) {
        match self {
            Change::Make(name, kind, parent) => {
                model.insert(name.clone(), (*kind, parent.clone(), String::new()));
            }
            Change::Commit(name, key) => {
                let (_, parent, _) = model.remove(key).expect("it was active");
                model.insert(name.clone(), (Kind::Committed, parent, String::new()));
            }
            Change::Label(name, value) => model.get_mut(name).expect("it is there").2 = value.clone(),
            Change::Remove(name) => {
                model.remove(name);
            }
        }
    }

    fn perform(&self, client: &mut Client) -> Result<(), Failure> {
        match self {
            Change::Make(name, Kind::Active, parent) => client.prepare(name, parent, &[]).map(drop),
            Change::Make(name, _, parent) => client.view(name, parent).map(drop),
            Change::Commit(name, key) => client.commit(name, key, &[]),
            Change::Label(name, value) => client.update(name, &[("x", value)], &["labels.x"]).map(drop),
            Change::Remove(name) => client.remove(name),
        }
    }

    /// Something that makes sense with these snapshots.
    fn random(model: &Model, prefix: &str, random: &mut fastrand::Rng, number: &mut u64) -> Change {
        *number += 1;
        let of = |kind: Kind| -> Vec<&String> {
            model.iter().filter(|(_, (k, ..))| *k == kind).map(|(name, _)| name).collect()
        };
        let (active, committed) = (of(Kind::Active), of(Kind::Committed));
        let leaves: Vec<&String> =
            model.keys().filter(|name| !model.values().any(|(_, parent, _)| parent == *name)).collect();
        let pick = |names: &[&String], random: &mut fastrand::Rng| -> Option<String> {
            (!names.is_empty()).then(|| names[random.usize(..names.len())].clone())
        };
        let parent = pick(&committed, random).unwrap_or_default();
        let made = format!("{prefix}/{number}");
        match random.u32(..10) {
            0..3 => Change::Make(made, Kind::Active, parent),
            3 => Change::Make(made, Kind::View, parent),
            4..7 if !active.is_empty() => Change::Commit(made, pick(&active, random).expect("there is one")),
            7 if !model.is_empty() => {
                let names: Vec<&String> = model.keys().collect();
                Change::Label(pick(&names, random).expect("there is one"), number.to_string())
            }
            8..10 if model.len() > 10 => Change::Remove(pick(&leaves, random).expect("there is a leaf")),
            _ => Change::Make(made, Kind::Active, String::new()),
        }
    }
}

fn model_of(client: &mut Client, prefix: &str) -> Model {
    let infos = client.list(&[&format!("name~=/^{prefix}\\//")]);
    let entry = |info: containerd_client::services::v1::snapshots::Info| {
        let label = info.labels.get("x").cloned().unwrap_or_default();
        (info.name.clone(), (info.kind(), info.parent, label))
    };
    infos.into_iter().map(entry).collect()
}

/// Makes changes until the daemon is gone; returns the one that was not answered.
fn work(client: &mut Client, model: &mut Model, prefix: &str, number: &mut u64, stop: &AtomicBool) -> Option<Change> {
    let mut random = fastrand::Rng::new();
    while !stop.load(Ordering::Relaxed) {
        let change = Change::random(model, prefix, &mut random, number);
        match change.perform(client) {
            Ok(()) => change.apply(model),
            Err(failure)
                if matches!(failure.code, Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal) =>
            {
                return Some(change);
            }
            Err(failure) => panic!("{change:?}: {failure:?}"),
        }
    }
    None
}

#[test]
fn what_was_answered_survives_kills_under_load() {
    let mut world = World::new();
    let repository = world.repository("images.example.org");
    let layers: Vec<_> = (0..10).map(|number| repository.layer(&format!("layer {number}"))).collect();
    let chains: Vec<ChainId> = repository.index(&layers);
    let mut models = vec![Model::new(); CLIENTS];
    let mut numbers = vec![0_u64; CLIENTS];
    let mut daemon = world.start();
    let mut answered = 0;
    for round in 0..ROUNDS {
        let stop = AtomicBool::new(false);
        let pending: Vec<Option<Change>> = std::thread::scope(|scope| {
            let workers: Vec<_> = models
                .iter_mut()
                .zip(&mut numbers)
                .enumerate()
                .map(|(client, (model, number))| {
                    let (mut connection, stop) = (daemon.client(), &stop);
                    scope.spawn(move || work(&mut connection, model, &format!("c{client}"), number, stop))
                })
                .collect();
            // Pulls and removals of an image from the repository, all the while.
            let mut connection = daemon.client();
            let (chains, stop_pulls) = (&chains, &stop);
            scope.spawn(move || {
                while !stop_pulls.load(Ordering::Relaxed) {
                    let mut made: Vec<String> = Vec::new();
                    for chain in chains {
                        let parent = made.last().cloned().unwrap_or_default();
                        match connection.lazily("pull", &parent, &request(*chain, None)) {
                            Ok(info) => made.push(info.expect("it is published").name),
                            Err(_) => return,
                        }
                    }
                    while let Some(name) = made.pop() {
                        if connection.remove(&name).is_err() {
                            return;
                        }
                    }
                }
            });
            std::thread::sleep(Duration::from_millis(fastrand::u64(30..400)));
            daemon.signal(nix::sys::signal::Signal::SIGKILL);
            daemon.wait();
            stop.store(true, Ordering::Relaxed);
            workers.into_iter().map(|worker| worker.join().unwrap()).collect()
        });
        daemon = world.start();
        let mut client = daemon.client();
        for (number, model) in models.iter_mut().enumerate() {
            let found = model_of(&mut client, &format!("c{number}"));
            if found != *model {
                let change = pending[number].as_ref().expect("all was answered");
                change.apply(model);
                assert_eq!(found, *model, "round {round}, client {number}, with {change:?}");
            }
        }
        assert_eq!(world.directories(), world.rows(), "round {round}");
        // Every snapshot can be used.
        for info in client.list(&["kind!=committed"]) {
            client.mounts(&info.name).unwrap();
        }
        answered = numbers.iter().sum::<u64>();
        client.cleanup().unwrap();
        assert_eq!(world.trash(), Vec::<String>::new(), "round {round}");
    }
    assert!(answered > 500, "there was load: {answered}");
    // The records of the directories say the same as the rows.
    let before = daemon.client().everything();
    assert!(daemon.stop().success());
    let daemon = world.start_with(&["--rebuild"]);
    assert_eq!(daemon.client().everything(), before);
}
