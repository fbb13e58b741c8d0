//! The one place that asks what time it is.
//!
//! Judgement (floor 1) takes the time as an argument; whoever calls it holds a [`Clock`].

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

/// A source of wall-clock time: the system's, or one that a test sets by hand.
#[derive(Debug, Clone, Default)]
pub struct Clock {
    by_hand: Option<Arc<Mutex<SystemTime>>>,
}

impl Clock {
    /// The system's clock.
    pub fn system() -> Self {
        Self::default()
    }

    /// A clock that stands at `start` until [`Clock::advance`] moves it; for tests.
    pub fn set_by_hand(start: SystemTime) -> Self {
        Self { by_hand: Some(Arc::new(Mutex::new(start))) }
    }

    /// The time now.
    pub fn now(&self) -> SystemTime {
        match &self.by_hand {
            None => SystemTime::now(),
            Some(time) => *time.lock().expect("nothing can panic while it holds the clock"),
        }
    }

    /// Moves a clock that is set by hand; the system's clock does not obey.
    pub fn advance(&self, by: Duration) {
        if let Some(time) = &self.by_hand {
            *time.lock().expect("nothing can panic while it holds the clock") += by;
        }
    }
}
