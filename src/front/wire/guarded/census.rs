//! Who is connected: how many in all, how many from each address, and the reserved few.
//!
//! A [`Seat`] is held by each connection and gives its place back when it is dropped,
//! whichever thread that happens on.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::front::wire::network_of;

/// Counts connections against their bounds.
#[derive(Debug)]
pub(super) struct Census {
    ordinary_max: usize,
    reserved_max: usize,
    per_address_max: usize,
    // Guards the counts. A leaf: nothing else is locked or waited for while it is held.
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    // Apart, so that whoever holds a reserved seat for long takes no ordinary one.
    ordinary: usize,
    reserved: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// Why there is no seat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    /// No seat of the kind is left.
    InAll,
    /// Too many from this address.
    ForAddress,
}

/// Which seats may be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// For any request.
    Ordinary,
    /// Kept free for health and metrics.
    Reserved,
}

impl Census {
    /// Counts for `all_max` connections, the last `reserved` of which, at most half, only for the
    /// fast lane, and `per_address_max` from one address.
    pub(super) fn new(all_max: usize, reserved: usize, per_address_max: usize) -> Arc<Self> {
        // Where there are few, half of them must be for clients.
        let ordinary_max = all_max - reserved.min(all_max / 2);
        let reserved_max = all_max - ordinary_max;
        Arc::new(Self { ordinary_max, reserved_max, per_address_max, counts: Mutex::default() })
    }

    /// Takes a seat; `counted_as` is the address to count it for, if it is to be bounded.
    ///
    /// # Errors
    /// [`Full`].
    pub(super) fn seat(
        self: &Arc<Self>,
        kind: Kind,
        counted_as: Option<IpAddr>,
    ) -> Result<Seat, Full> {
        let address = counted_as.map(network_of);
        let mut counts = self.counts();
        if let Some(address) = address
            && counts.by_address.get(&address).is_some_and(|n| *n >= self.per_address_max)
        {
            return Err(Full::ForAddress);
        }
        let (count, most) = match kind {
            Kind::Ordinary => (&mut counts.ordinary, self.ordinary_max),
            Kind::Reserved => (&mut counts.reserved, self.reserved_max),
        };
        if *count >= most {
            return Err(Full::InAll);
        }
        *count += 1;
        if let Some(address) = address {
            *counts.by_address.entry(address).or_default() += 1;
        }
        Ok(Seat { census: Arc::clone(self), address, kind })
    }

    /// Connections now.
    pub(super) fn len(&self) -> usize {
        let counts = self.counts();
        counts.ordinary + counts.reserved
    }

    /// Connections at most.
    pub(super) fn max(&self) -> usize {
        self.ordinary_max + self.reserved_max
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        // Nothing panics while it holds the lock; the counts are whole in any case.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of one connection.
#[derive(Debug)]
pub(super) struct Seat {
    census: Arc<Census>,
    address: Option<IpAddr>,
    kind: Kind,
}

impl Seat {
    /// Whether it is counted for this address.
    pub(super) fn is_for(&self, address: IpAddr) -> bool {
        self.address == Some(network_of(address))
    }

    /// Which kind it is.
    pub(super) fn kind(&self) -> Kind {
        self.kind
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut counts = self.census.counts();
        match self.kind {
            Kind::Ordinary => counts.ordinary -= 1,
            Kind::Reserved => counts.reserved -= 1,
        }
        if let Some(address) = self.address
            && let Some(count) = counts.by_address.get_mut(&address)
        {
            *count -= 1;
            if *count == 0 {
                counts.by_address.remove(&address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn the_last_seats_are_reserved_and_dropped_seats_are_free_again() {
        let census = Census::new(3, 1, 9);
        let first = census.seat(Kind::Ordinary, None).unwrap();
        let _second = census.seat(Kind::Ordinary, None).unwrap();
        assert_eq!(census.seat(Kind::Ordinary, None).unwrap_err(), Full::InAll);
        let third = census.seat(Kind::Reserved, None).unwrap();
        assert_eq!(third.kind(), Kind::Reserved);
        assert_eq!(census.seat(Kind::Reserved, None).unwrap_err(), Full::InAll);
        drop((first, third));
        assert_eq!((census.len(), census.max()), (1, 3));
        for kind in [Kind::Ordinary, Kind::Reserved] {
            let _again = census.seat(kind, None).unwrap();
            assert_eq!(census.seat(kind, None).unwrap_err(), Full::InAll);
        }
    }

    #[test]
    fn an_ordinary_seat_that_is_given_back_is_free_though_all_reserved_ones_are_taken() {
        let census = Census::new(4, 2, 9);
        let ordinary = [(); 2].map(|()| census.seat(Kind::Ordinary, None).unwrap());
        let reserved = [(); 2].map(|()| census.seat(Kind::Reserved, None).unwrap());
        drop(ordinary);
        let ordinary = [(); 2].map(|()| census.seat(Kind::Ordinary, None).unwrap());
        assert_eq!(census.seat(Kind::Ordinary, None).unwrap_err(), Full::InAll);
        assert_eq!(census.seat(Kind::Reserved, None).unwrap_err(), Full::InAll);
        drop((ordinary, reserved));
        for kind in [Kind::Ordinary, Kind::Reserved] {
            let [first, second] = [(); 2].map(|()| census.seat(kind, None));
            assert!(first.is_ok() && second.is_ok());
        }
    }

    #[test]
    fn one_address_takes_no_more_than_its_share() {
        let census = Census::new(99, 1, 2);
        for (same, other) in [
            (["192.0.2.1", "192.0.2.1", "::ffff:192.0.2.1"], "192.0.2.2"),
            (["2001:db8::1", "2001:db8::2", "2001:db8:0:0:ffff::3"], "2001:db8:0:1::1"),
        ] {
            let seats = same.map(|text| census.seat(Kind::Ordinary, address(text)));
            assert!(seats[0].is_ok() && seats[1].is_ok());
            assert_eq!(*seats[2].as_ref().unwrap_err(), Full::ForAddress);
            assert!(census.seat(Kind::Ordinary, address(other)).is_ok());
            drop(seats);
            assert!(census.seat(Kind::Ordinary, address(same[2])).is_ok());
        }
        assert!(census.counts().by_address.is_empty());
    }
}
