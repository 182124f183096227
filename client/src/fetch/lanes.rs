//! Who may use the network next.
//!
//! Promises
//! - No more requests run at the same time than there are lanes.
//! - What somebody waits for goes before everything that is fetched ahead: a free lane is never given to the latter
//!   while the former waits, and a quarter of the lanes is never used by it at all.
//! - Processes that wait take turns. One that wants a thousand objects delays another one by one request a lane.
//! - What is fetched ahead ends with [`Lanes::close`]; what somebody waits for does not.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

/// The lanes of one way to the servers.
#[derive(Debug)]
pub struct Lanes {
    lanes: usize,
    state: Mutex<State>,
    /// Told when something that is fetched ahead may go on.
    room: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waited_for: usize,
    ahead: usize,
    closed: bool,
    /// Those who wait, by process, and the process that had the last turn.
    queues: BTreeMap<u32, VecDeque<Arc<Ticket>>>,
    last: u32,
}

/// A place in the queue of a process.
#[derive(Debug, Default)]
struct Ticket {
    called: Mutex<bool>,
    call: Condvar,
}

/// A lane in use; free again when dropped.
#[derive(Debug)]
pub struct Lane<'a> {
    lanes: &'a Lanes,
    ahead: bool,
}

impl Lane<'_> {
    /// Whether nobody waits for what is fetched on it.
    pub fn is_ahead(&self) -> bool {
        self.ahead
    }
}

impl Lanes {
    /// This many lanes, at least one.
    pub fn new(lanes: usize) -> Lanes {
        Lanes { lanes: lanes.max(1), state: Mutex::default(), room: Condvar::new() }
    }

    /// Lanes in all.
    pub fn count(&self) -> usize {
        self.lanes
    }

    /// Lanes that may be used ahead.
    pub fn for_ahead(&self) -> usize {
        (self.lanes - self.lanes.div_ceil(4)).max(1)
    }

    /// A lane for something that process `by` waits for.
    pub fn demand(&self, by: u32) -> Lane<'_> {
        let ticket = {
            let mut state = self.state.lock();
            if state.queues.is_empty() && state.used() < self.lanes {
                state.waited_for += 1;
                return Lane { lanes: self, ahead: false };
            }
            let ticket = Arc::<Ticket>::default();
            state.queues.entry(by).or_default().push_back(ticket.clone());
            ticket
        };
        let mut called = ticket.called.lock();
        while !*called {
            ticket.call.wait(&mut called);
        }
        Lane { lanes: self, ahead: false }
    }

    /// A lane for something that nobody waits for; none once they are closed.
    pub fn ahead(&self) -> Option<Lane<'_>> {
        let mut state = self.state.lock();
        loop {
            if state.closed {
                return None;
            }
            if state.queues.is_empty() && state.ahead < self.for_ahead() && state.used() < self.lanes {
                state.ahead += 1;
                return Some(Lane { lanes: self, ahead: true });
            }
            self.room.wait(&mut state);
        }
    }

    /// Requests that run: those that somebody waits for, and those that nobody does.
    pub fn in_use(&self) -> (usize, usize) {
        let state = self.state.lock();
        (state.waited_for, state.ahead)
    }

    /// Gives no more lanes to what is fetched ahead.
    pub fn close(&self) {
        self.state.lock().closed = true;
        self.room.notify_all();
    }

    /// Whether [`Lanes::close`] was called.
    pub fn is_closed(&self) -> bool {
        self.state.lock().closed
    }
}

impl State {
    fn used(&self) -> usize {
        self.waited_for + self.ahead
    }

    /// The next one to be called: processes in turn, in each the one who came first.
    fn next(&mut self) -> Option<Arc<Ticket>> {
        let after = self.queues.range((Bound::Excluded(self.last), Bound::Unbounded)).next();
        let process = *after.or_else(|| self.queues.iter().next())?.0;
        let queue = self.queues.get_mut(&process)?;
        let ticket = queue.pop_front();
        if queue.is_empty() {
            self.queues.remove(&process);
        }
        self.last = process;
        ticket
    }
}

impl Drop for Lane<'_> {
    fn drop(&mut self) {
        let mut state = self.lanes.state.lock();
        match self.ahead {
            true => state.ahead -= 1,
            false => state.waited_for -= 1,
        }
        if let Some(ticket) = state.next() {
            // The lane goes from hand to hand, so nobody can come between.
            state.waited_for += 1;
            *ticket.called.lock() = true;
            ticket.call.notify_one();
        } else {
            self.lanes.room.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    fn waiting(lanes: &Lanes) -> usize {
        lanes.state.lock().queues.values().map(VecDeque::len).sum()
    }

    fn until(what: impl Fn() -> bool) {
        while !what() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Ends of `waits` demands by process, in the order in which they got the only lane.
    fn order(lanes: &Lanes, waits: &[u32]) -> Vec<u32> {
        std::thread::scope(|scope| {
            let (said, heard) = mpsc::channel();
            let held = lanes.demand(0);
            for (number, process) in waits.iter().enumerate() {
                let said = said.clone();
                scope.spawn(move || {
                    let lane = lanes.demand(*process);
                    said.send(*process).unwrap();
                    drop(lane);
                });
                until(|| waiting(lanes) == number + 1);
            }
            drop((held, said));
            heard.iter().collect()
        })
    }

    #[test]
    fn processes_take_turns_and_each_is_served_in_order() {
        let lanes = Lanes::new(1);
        assert_eq!(order(&lanes, &[7, 7, 7, 7, 7, 8, 9, 9]), [7, 8, 9, 7, 9, 7, 7, 7]);
        assert_eq!(lanes.in_use(), (0, 0));
    }

    #[test]
    fn demand_overtakes_a_thousand_that_are_fetched_ahead() {
        let lanes = &Lanes::new(4);
        std::thread::scope(|scope| {
            let held: Vec<_> = (0..3).map(|_| lanes.ahead().unwrap()).collect();
            // A quarter is left free, and the rest queues.
            let (said, heard) = mpsc::channel();
            for _ in 0..1000 {
                let said = said.clone();
                std::thread::Builder::new()
                    .stack_size(1 << 16)
                    .spawn_scoped(scope, move || said.send(lanes.ahead().is_some()).unwrap())
                    .unwrap();
            }
            let first = lanes.demand(1);
            assert_eq!(lanes.in_use(), (1, 3));
            let second = scope.spawn(|| drop(lanes.demand(1)));
            until(|| waiting(lanes) == 1);
            assert!(heard.try_recv().is_err(), "something was fetched ahead while all its lanes were in use");
            // The lane of the first goes to the second, although a thousand have waited longer.
            drop(first);
            second.join().unwrap();
            assert!(heard.try_recv().is_err());
            drop(held);
            assert!((0..1000).all(|_| heard.recv().unwrap()));
        });
        assert_eq!(lanes.in_use(), (0, 0));
    }

    #[test]
    fn closing_ends_what_is_fetched_ahead_only() {
        let lanes = &Lanes::new(1);
        std::thread::scope(|scope| {
            let held = lanes.demand(1);
            let ahead = scope.spawn(|| lanes.ahead().is_some());
            let demand = scope.spawn(|| drop(lanes.demand(2)));
            until(|| waiting(lanes) == 1);
            lanes.close();
            assert!(!ahead.join().unwrap());
            drop(held);
            demand.join().unwrap();
        });
        assert!(lanes.ahead().is_none());
    }

    #[test]
    fn one_lane_is_used_ahead_too() {
        assert_eq!([1, 2, 4, 16, 50].map(|lanes| Lanes::new(lanes).for_ahead()), [1, 1, 3, 12, 37]);
        assert_eq!(Lanes::new(0).count(), 1);
    }
}
