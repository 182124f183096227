//! In which order layers are fetched: a value, made before anything is asked for.
//!
//! Images of a higher priority come first. Within a priority owners take turns by bytes: whoever was given least so far is next, so that
//! one with a thousand images does not keep one with a single image waiting. An owner's images come in the order of the list, the layers
//! of an image from the bottom up, and a layer that several images need is fetched for the first of them only.
//!
//! Invariants
//! - Every layer once.
//! - A layer comes after those below it in the image that it is fetched for: there, what was fetched never waits for what was not begun.
//! - At any point, of two owners in one priority who both have layers left, neither is more than one layer ahead of the other.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, HashSet, VecDeque};
use std::hash::Hash;

/// An image, as far as its layers have to be fetched.
#[derive(Debug, Clone)]
pub(super) struct Job<'a, K> {
    pub(super) owner: Option<&'a str>,
    pub(super) priority: i32,
    /// With their sizes, bottom first.
    pub(super) layers: Vec<(K, u64)>,
}

/// A layer, and the job that it is fetched for, by its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Turn<K> {
    pub(super) job: usize,
    pub(super) layer: K,
}

/// The order for jobs in the order of the list.
pub(super) fn order<K: Copy + Eq + Hash>(jobs: &[Job<'_, K>]) -> Vec<Turn<K>> {
    let mut priorities: BTreeMap<Reverse<i32>, Vec<usize>> = BTreeMap::new();
    for (place, job) in jobs.iter().enumerate() {
        priorities.entry(Reverse(job.priority)).or_default().push(place);
    }
    let mut seen = HashSet::new();
    priorities.values().flat_map(|places| take_turns(jobs, places, &mut seen)).collect()
}

/// The turns of owners within one priority.
fn take_turns<K: Copy + Eq + Hash>(jobs: &[Job<'_, K>], places: &[usize], seen: &mut HashSet<K>) -> Vec<Turn<K>> {
    let mut numbers: HashMap<Option<&str>, usize> = HashMap::new();
    let mut queues: Vec<VecDeque<(Turn<K>, u64)>> = Vec::new();
    for place in places {
        let number = *numbers.entry(jobs[*place].owner).or_insert(queues.len());
        if number == queues.len() {
            queues.push(VecDeque::new());
        }
        queues[number]
            .extend(jobs[*place].layers.iter().map(|(layer, size)| (Turn { job: *place, layer: *layer }, *size)));
    }
    // Least served first, then in the order of the list.
    let mut waiting: BinaryHeap<Reverse<(u64, usize)>> = (0..queues.len()).map(|owner| Reverse((0, owner))).collect();
    let mut turns = Vec::new();
    while let Some(Reverse((served, owner))) = waiting.pop() {
        // What another one was served already costs nothing.
        let next = std::iter::from_fn(|| queues[owner].pop_front()).find(|(turn, _)| seen.insert(turn.layer));
        if let Some((turn, size)) = next {
            turns.push(turn);
            waiting.push(Reverse((served.saturating_add(size), owner)));
        }
    }
    turns
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn job<'a>(owner: Option<&'a str>, priority: i32, layers: &[(u32, u64)]) -> Job<'a, u32> {
        Job { owner, priority, layers: layers.to_vec() }
    }

    fn layers(jobs: &[Job<'_, u32>]) -> Vec<u32> {
        order(jobs).iter().map(|turn| turn.layer).collect()
    }

    #[test]
    fn the_order_of_the_list_where_nothing_else_is_said() {
        let jobs = [job(None, 0, &[(1, 5), (2, 5)]), job(None, 0, &[(1, 5), (3, 1)]), job(None, 0, &[(4, 9)])];
        assert_eq!(layers(&jobs), [1, 2, 3, 4]);
        assert_eq!(order(&jobs)[2], Turn { job: 1, layer: 3 });
        assert_eq!(layers(&[]), [] as [u32; 0]);
    }

    #[test]
    fn priority_comes_before_everything() {
        let jobs = [job(Some("a"), 0, &[(1, 1)]), job(Some("b"), -1, &[(2, 1)]), job(Some("a"), 7, &[(3, 99), (1, 1)])];
        assert_eq!(layers(&jobs), [3, 1, 2]);
    }

    #[test]
    fn one_image_of_one_owner_does_not_wait_for_a_thousand_of_another() {
        let mut jobs: Vec<_> = (0..1000).map(|number| job(Some("many"), 0, &[(number, 100)])).collect();
        jobs.push(job(Some("one"), 0, &[(5000, 40), (5001, 50), (5002, 60)]));
        // The first of the other, then its own until it has had as much.
        assert_eq!(layers(&jobs)[..7], [0, 5000, 5001, 5002, 1, 2, 3]);
    }

    #[test]
    fn what_is_shared_is_paid_once_by_whoever_comes_first() {
        let jobs = [job(Some("a"), 0, &[(1, 100), (2, 1)]), job(Some("b"), 0, &[(1, 100), (3, 1), (4, 1)])];
        assert_eq!(layers(&jobs), [1, 3, 4, 2]);
    }

    fn any_jobs() -> impl Strategy<Value = Vec<(u8, i32, Vec<u32>)>> {
        let layers = prop::collection::vec(0_u32..60, 0..8);
        prop::collection::vec((0_u8..5, 0_i32..3, layers), 0..40)
    }

    /// The same layer has the same size everywhere.
    fn size(layer: u32) -> u64 {
        u64::from(layer.wrapping_mul(2_654_435_761) >> 20)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_promises_hold_for_any_list(described in any_jobs()) {
            let names = ["a", "b", "c", "d"];
            let jobs: Vec<Job<'_, u32>> = described
                .iter()
                .map(|(owner, priority, layers)| {
                    let mut seen = HashSet::new();
                    let layers = layers.iter().filter(|layer| seen.insert(**layer));
                    let layers = layers.map(|layer| (*layer, size(*layer))).collect();
                    Job { owner: names.get(usize::from(*owner)).copied(), priority: *priority, layers }
                })
                .collect();
            let turns = order(&jobs);
            let at: HashMap<u32, usize> = turns.iter().enumerate().map(|(at, turn)| (turn.layer, at)).collect();
            prop_assert_eq!(at.len(), turns.len(), "every layer once");
            for (now, turn) in turns.iter().enumerate() {
                let below = jobs[turn.job].layers.iter().take_while(|(layer, _)| *layer != turn.layer);
                for (below, _) in below {
                    prop_assert!(at[below] < now, "{below} is below {}", turn.layer);
                }
            }
            for job in &jobs {
                for (layer, _) in &job.layers {
                    prop_assert!(jobs[turns[at[layer]].job].priority >= job.priority, "nothing waits behind a lower one");
                }
            }
            let largest = turns.iter().map(|turn| size(turn.layer)).max().unwrap_or(0);
            for priority in 0..3 {
                let turns: Vec<_> = turns.iter().filter(|turn| jobs[turn.job].priority == priority).collect();
                let owner = |turn: &Turn<u32>| jobs[turn.job].owner;
                let mut served: HashMap<Option<&str>, u64> = HashMap::new();
                for (now, turn) in turns.iter().enumerate() {
                    *served.entry(owner(turn)).or_default() += size(turn.layer);
                    for waiting in turns[now + 1..].iter().map(|turn| owner(turn)) {
                        let ahead = served[&owner(turn)].saturating_sub(served.get(&waiting).copied().unwrap_or(0));
                        prop_assert!(ahead <= largest, "{ahead} bytes ahead of {waiting:?}");
                    }
                }
            }
        }
    }
}
