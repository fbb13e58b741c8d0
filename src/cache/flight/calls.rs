//! Whom to call when more of a flight has come: readers that wait without a thread.

use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, Weak};

use super::{Flight, lock};
use crate::waiting::{Awaited, Registration, Wake};

/// What of a flight is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// So many readable bytes, or the end of the body, which is that of a body without bytes.
    Readable(u64),
    /// The end of the flight.
    Landed,
}

/// How far a flight has come.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reached {
    pub(super) readable: u64,
    pub(super) is_whole: bool,
    pub(super) has_ended: bool,
}

impl Reached {
    fn has(self, until: Until) -> bool {
        match until {
            _ if self.has_ended => true,
            Until::Readable(wanted) => self.is_whole || self.readable >= wanted,
            Until::Landed => false,
        }
    }
}

/// The calls that are to be made.
#[derive(Default)]
pub(super) struct Calls {
    next: u64,
    waiting: HashMap<u64, (Until, Wake)>,
    // The least number of readable bytes that one of them waits for, so that a flight that grows
    // need not go through them all.
    least: Option<u64>,
}

impl Calls {
    /// Takes those out that are due, to be made without the flight's lock.
    pub(super) fn take_due(&mut self, reached: Reached) -> Vec<Wake> {
        let is_any_due = self.least.is_some_and(|least| reached.has(Until::Readable(least)));
        if self.waiting.is_empty() || !(is_any_due || reached.has_ended) {
            return Vec::new();
        }
        let due = self.waiting.extract_if(|_, (until, _)| reached.has(*until));
        let due = due.map(|(_, (_, wake))| wake).collect();
        let left = self.waiting.values().filter_map(|(until, _)| wanted(*until));
        self.least = left.min();
        due
    }

    fn add(&mut self, until: Until, wake: Wake) -> u64 {
        self.next += 1;
        self.waiting.insert(self.next, (until, wake));
        self.least = self.least.into_iter().chain(wanted(until)).min();
        self.next
    }
}

fn wanted(until: Until) -> Option<u64> {
    match until {
        Until::Readable(wanted) => Some(wanted),
        Until::Landed => None,
    }
}

/// Something of a flight that is still to come.
#[derive(Debug)]
pub struct Coming {
    pub(super) flight: Arc<Flight>,
    pub(super) until: Until,
}

impl Awaited for Coming {
    fn call(&self, wake: Wake) -> Option<Registration> {
        let mut state = lock(&self.flight.state);
        if state.reached().has(self.until) {
            return None;
        }
        let number = state.calls.add(self.until, wake);
        let flight = Arc::downgrade(&self.flight);
        Some(Box::new(Registered { flight, number }) as Box<dyn Any + Send>)
    }
}

/// A call that is to be made, as long as this is there. It does not count as reading along.
struct Registered {
    flight: Weak<Flight>,
    number: u64,
}

impl Drop for Registered {
    fn drop(&mut self) {
        let Some(flight) = self.flight.upgrade() else { return };
        // What it would have called is dropped without the lock.
        let _unmade = lock(&flight.state).calls.waiting.remove(&self.number);
    }
}
