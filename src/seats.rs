//! What requests may hold for as long as others like, workers for one: a bounded number, so that the
//! rest serves everybody else.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The most of them, of however many workers.
const SEATS_MAX: usize = 32;

/// So many seats; who finds none goes without.
#[derive(Debug, Clone)]
pub struct Seats {
    taken: Arc<AtomicUsize>,
    max: usize,
}

impl Seats {
    /// A quarter of so many workers, but no more than 32; one at least.
    pub fn of(workers: usize) -> Self {
        Self::up_to((workers / 4).clamp(1, SEATS_MAX))
    }

    /// So many seats.
    pub fn up_to(max: usize) -> Self {
        Self { taken: Arc::default(), max }
    }

    /// Takes one, if there is one.
    pub fn take(&self) -> Option<Seat> {
        let seat = Seat(Arc::clone(&self.taken));
        (seat.0.fetch_add(1, Ordering::SeqCst) < self.max).then_some(seat)
    }
}

/// Seats for what takes memory: some for what is small, a few of them for what is large.
#[derive(Debug, Clone)]
pub struct SizedSeats {
    any: Seats,
    large: Seats,
}

/// Seats for what is large, at most.
const LARGE_MAX: usize = 4;

impl SizedSeats {
    /// Seats of so many workers, each of which holds its worker.
    pub fn of(workers: usize) -> Self {
        Self { any: Seats::of(workers), large: Seats::up_to(LARGE_MAX) }
    }

    /// Seats that hold no worker.
    pub fn beside_workers() -> Self {
        Self { any: Seats::up_to(SEATS_MAX), large: Seats::up_to(LARGE_MAX) }
    }

    /// Takes one, if there is one; `is_large` says what it is for.
    pub fn take(&self, is_large: bool) -> Option<SizedSeat> {
        let seat = SizedSeat { _any: self.any.take()?, large: None };
        if is_large { self.enlarge(seat) } else { Some(seat) }
    }

    /// Makes of a seat one for what is large, if there is one.
    pub fn enlarge(&self, seat: SizedSeat) -> Option<SizedSeat> {
        Some(SizedSeat { large: Some(self.large.take()?), ..seat })
    }
}

/// A seat for something of a size; given back when dropped.
#[derive(Debug)]
pub struct SizedSeat {
    _any: Seat,
    #[expect(dead_code, reason = "it is only held")]
    large: Option<Seat>,
}

/// A seat; given back when dropped.
#[derive(Debug)]
pub struct Seat(Arc<AtomicUsize>);

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
    fn a_few_seats_are_for_what_is_large() {
        let seats = SizedSeats::of(256);
        let large: Vec<SizedSeat> =
            std::iter::from_fn(|| seats.take(true)).take(SEATS_MAX).collect();
        assert_eq!(large.len(), LARGE_MAX);
        let small: Vec<SizedSeat> =
            std::iter::from_fn(|| seats.take(false)).take(SEATS_MAX).collect();
        assert_eq!(small.len(), SEATS_MAX - LARGE_MAX);
        drop(large);
        assert!(seats.take(true).is_some());
        // Also where there is but one.
        let one = SizedSeats::of(1);
        let seat = one.take(false).unwrap();
        assert!(one.take(false).is_none());
        assert!(one.enlarge(seat).is_some());
    }

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
