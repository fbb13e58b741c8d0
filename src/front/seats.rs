//! Workers that requests may hold for as long as others like: a bounded number, so that the rest
//! serves everybody else.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The most of them, of however many workers.
const SEATS_MAX: usize = 32;

/// A bounded number of seats: usually a quarter of the workers, but no more than 32; one at least.
#[derive(Debug, Clone)]
pub struct Seats {
    taken: Arc<AtomicUsize>,
    max: usize,
}

impl Seats {
    /// Seats of so many workers.
    pub fn of(workers: usize) -> Self {
        Self::up_to((workers / 4).clamp(1, SEATS_MAX))
    }

    /// So many seats.
    pub(super) fn up_to(max: usize) -> Self {
        Self { taken: Arc::default(), max }
    }

    /// Takes one, if there is one.
    pub(super) fn take(&self) -> Option<Seat> {
        let seat = Seat(Arc::clone(&self.taken));
        (seat.0.fetch_add(1, Ordering::SeqCst) < self.max).then_some(seat)
    }
}

/// A seat; given back when dropped.
#[derive(Debug)]
pub(super) struct Seat(Arc<AtomicUsize>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body::Body;

    #[test]
    fn a_quarter_of_the_workers_is_let_and_comes_back_with_the_body() {
        for (workers, max) in [(1, 1), (7, 1), (8, 2), (256, 32)] {
            let seats = Seats::of(workers);
            let taken: Vec<Seat> = std::iter::from_fn(|| seats.take()).take(100).collect();
            assert_eq!(taken.len(), max, "of {workers}");
            let mut bodies: Vec<Body> =
                taken.into_iter().map(|seat| Body::from_bytes("a").keeping(seat)).collect();
            assert!(seats.take().is_none());
            assert_eq!(bodies[0].next_piece().unwrap().unwrap().len(), 1);
            drop(bodies);
            assert!(seats.take().is_some());
        }
    }
}
