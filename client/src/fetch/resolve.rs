//! From names of proxies to their addresses, each of which counts as a proxy of its own.
//!
//! Facts: of a name with addresses of both families only the preferred one is used; the number of addresses
//! can be bounded. Names that are known stay as they are when a later look-up fails; a name that never was
//! known makes a proxy that fails at once. Only the first look-up is waited for.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use tokio::time::timeout;

use super::route::{Member, Place, Proxy};
use super::selection::{Family, Selection};

/// What is known of names: addresses, or why there are none.
type Known = BTreeMap<String, Result<Vec<IpAddr>, String>>;

/// Looks up the names of proxies.
#[derive(Debug)]
pub(super) struct Resolver {
    groups: Vec<Vec<Option<String>>>,
    names: BTreeSet<String>,
    selection: Selection,
    known: Mutex<Known>,
    /// When to look again; none before the first time and when there is nothing to look up.
    next: Mutex<Option<Instant>>,
    /// Which addresses are used when there are more than wanted.
    chance: RandomState,
}

impl Resolver {
    pub(super) fn new(groups: &[Vec<Option<String>>], selection: &Selection) -> Resolver {
        Resolver {
            groups: groups.to_vec(),
            names: groups.iter().flatten().flatten().filter_map(|url| name_of(url)).collect(),
            selection: selection.clone(),
            known: Mutex::default(),
            next: Mutex::default(),
            chance: RandomState::new(),
        }
    }

    /// Whether it is time to look again; says so once.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        let mut next = self.next.lock();
        let due = next.is_some_and(|at| at <= now);
        if due {
            *next = None;
        }
        due
    }

    /// Looks all names up; gives the groups of proxies that come of it.
    pub(super) async fn look(&self) -> Vec<Vec<Member>> {
        let mut lookups = tokio::task::JoinSet::new();
        for name in &self.names {
            let (name, patience) = (name.clone(), self.selection.lookup);
            lookups.spawn(async move {
                let found = match timeout(patience, tokio::net::lookup_host((name.as_str(), 0))).await {
                    Ok(Ok(addresses)) => Ok(addresses.map(|address| address.ip()).collect()),
                    Ok(Err(error)) => Err(error.to_string()),
                    Err(_) => Err(format!("no answer for {patience:?}")),
                };
                (name, found)
            });
        }
        let mut all_found = true;
        while let Some(Ok((name, found))) = lookups.join_next().await {
            all_found &= found.is_ok();
            self.learn(name, found);
        }
        if !self.names.is_empty() {
            let (shorter, longer) = self.selection.lookup_again;
            *self.next.lock() = Some(Instant::now() + if all_found { longer } else { shorter });
        }
        self.expand()
    }

    fn learn(&self, name: String, found: Result<Vec<IpAddr>, String>) {
        let mut known = self.known.lock();
        match (&found, known.get(&name)) {
            (Err(reason), Some(Ok(_))) => {
                tracing::warn!(name, reason, "cannot look up a proxy again; keeping its addresses");
            }
            _ => drop(known.insert(name, found)),
        }
    }

    fn expand(&self) -> Vec<Vec<Member>> {
        let known = self.known.lock();
        let members = |url: &String| {
            let place = |place| Some(Arc::new(Proxy { url: url.clone(), place }));
            let Some(name) = name_of(url) else { return vec![place(Place::InUrl)] };
            match known.get(&name) {
                Some(Ok(addresses)) => {
                    let chosen = self.choose(addresses);
                    match chosen.is_empty() {
                        true => vec![place(Place::Unknown(format!("{name} has no address")))],
                        false => chosen.into_iter().map(|address| place(Place::At(address))).collect(),
                    }
                }
                Some(Err(reason)) => vec![place(Place::Unknown(format!("cannot look up {name}: {reason}")))],
                None => vec![place(Place::Unknown(format!("{name} was not looked up")))],
            }
        };
        let group = |group: &Vec<Option<String>>| {
            group.iter().flat_map(|member| member.as_ref().map_or_else(|| vec![None], members)).collect()
        };
        self.groups.iter().map(group).collect()
    }

    fn choose(&self, addresses: &[IpAddr]) -> Vec<IpAddr> {
        let preferred = |address: &&IpAddr| address.is_ipv4() == (self.selection.prefer == Family::V4);
        let mut chosen: BTreeSet<IpAddr> = addresses.iter().filter(preferred).copied().collect();
        if chosen.is_empty() {
            chosen = addresses.iter().copied().collect();
        }
        let mut chosen: Vec<IpAddr> = chosen.into_iter().collect();
        if let Some(most) = self.selection.max_addresses.filter(|most| *most < chosen.len()) {
            chosen.sort_by_key(|address| self.chance.hash_one(address));
            chosen.truncate(most);
        }
        chosen
    }
}

/// Name of the proxy's machine; `None` when it is an address already.
fn name_of(url: &str) -> Option<String> {
    let url = reqwest::Url::parse(url).ok()?;
    let host = url.host_str()?;
    let is_address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().is_ok();
    (!is_address).then(|| host.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(selection: Selection, found: Result<Vec<IpAddr>, String>) -> Vec<Place> {
        let resolver = Resolver::new(&[vec![Some("http://squid:3128".into())]], &selection);
        resolver.learn("squid".into(), found);
        resolver.expand().remove(0).into_iter().map(|member| member.unwrap().place.clone()).collect()
    }

    #[test]
    fn each_address_of_the_preferred_family_is_a_member() {
        let (four, other, six): (IpAddr, IpAddr, IpAddr) =
            ([10, 0, 0, 1].into(), [10, 0, 0, 2].into(), [0, 0, 0, 0, 0, 0, 0, 1].into());
        let prefer = |prefer| Selection { prefer, ..Selection::default() };
        for (selection, found, expected) in [
            (prefer(Family::V4), vec![four, six, other, four], vec![four, other]),
            (prefer(Family::V6), vec![four, six, other], vec![six]),
            (prefer(Family::V6), vec![four], vec![four]),
            (prefer(Family::V4), vec![six], vec![six]),
        ] {
            let expected: Vec<Place> = expected.into_iter().map(Place::At).collect();
            assert_eq!(places(selection.clone(), Ok(found.clone())), expected, "{:?} {found:?}", selection.prefer);
        }
        let two = Selection { max_addresses: Some(2), ..Selection::default() };
        assert_eq!(places(two, Ok((1..9).map(|i| [10, 0, 0, i].into()).collect())).len(), 2);
    }

    #[test]
    fn a_name_without_address_says_why_and_a_known_one_outlives_a_failure() {
        let unknown = places(Selection::default(), Err("no such name".into()));
        assert_eq!(unknown, [Place::Unknown("cannot look up squid: no such name".into())]);
        let resolver = Resolver::new(&[vec![Some("http://squid:3128".into())]], &Selection::default());
        resolver.learn("squid".into(), Ok(vec![[10, 0, 0, 1].into()]));
        let before = resolver.expand();
        resolver.learn("squid".into(), Err("server failure".into()));
        assert_eq!(resolver.expand(), before);
    }

    #[test]
    fn addresses_and_direct_connections_need_no_look_up() {
        let groups = vec![
            vec![Some("http://10.0.0.1:3128".into()), Some("http://[::1]:3128".into()), Some("http://squid".into())],
            vec![None],
        ];
        let resolver = Resolver::new(&groups, &Selection::default());
        assert_eq!(resolver.names, BTreeSet::from(["squid".to_owned()]));
        let expanded = resolver.expand();
        assert_eq!(expanded[0][0].as_ref().unwrap().place, Place::InUrl);
        assert_eq!(expanded[0][1].as_ref().unwrap().place, Place::InUrl);
        assert_eq!(expanded[1], [None]);
    }

    #[test]
    fn looking_gives_addresses_and_the_time_of_the_next_look() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let resolver = Resolver::new(&[vec![Some("http://localhost:3128".into())]], &Selection::default());
        assert!(!resolver.is_due(Instant::now()));
        let groups = runtime.block_on(resolver.look());
        assert_eq!(groups[0][0].as_ref().unwrap().place, Place::At([127, 0, 0, 1].into()));
        let longer = resolver.selection.lookup_again.1;
        assert!(!resolver.is_due(Instant::now()));
        assert!(resolver.is_due(Instant::now() + longer) && !resolver.is_due(Instant::now() + longer));
    }
}
