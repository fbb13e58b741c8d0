use std::sync::atomic::Ordering;
use std::time::SystemTime;

use super::*;
use crate::blob::behind::{self, Behind};
use crate::blob::memory::MemoryBlobs;

crate::blob::conformance::blob_conformance!(|| {
    let (behind, counters) = (Arc::new(MemoryBlobs::new()), TierCounters::default());
    (SmallBlobs::new(behind, 1 << 20, Clock::system(), counters), ())
});

struct Bench {
    behind: Arc<Behind>,
    small: SmallBlobs,
    scratch: tempfile::TempDir,
}

impl Bench {
    fn new(bytes_max: u64) -> Self {
        let behind = Arc::new(Behind::default());
        let clock = Clock::set_by_hand(SystemTime::UNIX_EPOCH);
        let before = Arc::clone(&behind) as _;
        let small = SmallBlobs::new(before, bytes_max, clock, TierCounters::default());
        Self { behind, small, scratch: tempfile::tempdir().unwrap() }
    }

    fn publish(&self, path: &str, bytes: &[u8]) -> (BlobKey, BlobVersion) {
        behind::publish(&self.small, self.scratch.path(), path, bytes)
    }

    fn read(&self, (key, version): &(BlobKey, BlobVersion), range: Range<u64>) -> Vec<u8> {
        read_to_vec(&mut self.small.open(key, version, range).unwrap(), 1 << 20).unwrap()
    }

    /// Uses a blob until it is in memory.
    fn warm(&self, blob: &(BlobKey, BlobVersion), len: u64) {
        self.read(blob, 0..len);
        self.read(blob, 0..len);
    }

    /// How often the store behind was asked for bytes by what `read` does.
    fn asked_by(&self, read: impl FnOnce()) -> u64 {
        let before = self.behind.opened.load(Ordering::Relaxed);
        read();
        self.behind.opened.load(Ordering::Relaxed) - before
    }

    fn take_away(&self) {
        self.behind.away.store(true, Ordering::Relaxed);
    }
}

#[test]
fn what_is_new_takes_nobodys_place() {
    let bench = Bench::new(1 << 20);
    behind::check_that_nobodys_place_is_taken(&bench.small, bench.scratch.path());
}

#[test]
fn the_second_use_of_a_small_blob_brings_it_here() {
    let bench = Bench::new(1 << 20);
    let blob = bench.publish("a", b"0123456789");
    for asked in [1, 1, 0] {
        assert_eq!(bench.asked_by(|| assert_eq!(bench.read(&blob, 0..10), b"0123456789")), asked);
    }
    bench.take_away();
    assert_eq!(bench.read(&blob, 0..10), b"0123456789");
    assert_eq!(bench.read(&blob, 3..5), b"34");
    let past = bench.small.open(&blob.0, &blob.1, 0..11);
    assert!(matches!(past, Err(BlobError::Unavailable { .. })), "the store behind refuses it");
    let current = bench.small.open_current(&blob.0, &blob.1, 0..10);
    assert!(matches!(current, Err(BlobError::Unavailable { .. })), "only the store knows");
}

#[test]
fn a_blob_without_bytes_is_kept_too() {
    let bench = Bench::new(1 << 20);
    let blob = bench.publish("a", b"");
    bench.warm(&blob, 0);
    bench.take_away();
    assert_eq!(bench.read(&blob, 0..0), b"");
}

#[test]
fn a_large_blob_is_not_kept_and_neither_is_its_beginning() {
    let bench = Bench::new(1 << 20);
    let bytes: Vec<u8> = (0..=BLOB_BYTES_MAX).map(|at| at as u8).collect();
    let (large, small) = (bench.publish("l", &bytes), bench.publish("s", &bytes[1..]));
    for range in [0..bytes.len() as u64, 0..20, 10..20] {
        let wanted = &bytes[range.start as usize..range.end as usize];
        let read = || assert_eq!(bench.read(&large, range.clone()), wanted);
        (0..3).for_each(|_| assert_eq!(bench.asked_by(read), 1, "{range:?}"));
    }
    assert_eq!(bench.small.table().bytes, 0);
    bench.warm(&small, BLOB_BYTES_MAX as u64);
    assert_eq!(bench.asked_by(|| assert_eq!(bench.read(&small, 1..2), bytes[2..3])), 0);
}

#[test]
fn bytes_that_are_not_what_the_blob_says_are_damage_and_not_kept() {
    let bench = Bench::new(1 << 20);
    let blob = bench.publish("a", b"0123456789");
    bench.read(&blob, 0..10);
    bench.behind.lies.store(true, Ordering::Relaxed);
    let lied = bench.small.open(&blob.0, &blob.1, 0..10);
    assert!(matches!(lied, Err(BlobError::Corrupt { .. })), "{lied:?}");
    bench.behind.lies.store(false, Ordering::Relaxed);
    assert_eq!(bench.read(&blob, 0..10), b"0123456789");
    assert_eq!(bench.small.counters.failures.get(), 1);
}

#[test]
fn what_was_replaced_or_removed_is_given_up() {
    let bench = Bench::new(1 << 20);
    let earlier = bench.publish("a", b"earlier");
    bench.warm(&earlier, 7);
    let later = bench.publish("a", b"later");
    assert_eq!(bench.small.table().bytes, 0);
    let opened = bench.small.open(&earlier.0, &earlier.1, 0..7);
    assert!(matches!(opened, Err(BlobError::Changed(_))));
    bench.warm(&later, 5);
    bench.small.remove(&later.0).unwrap();
    assert!(matches!(bench.small.open(&later.0, &later.1, 0..5), Err(BlobError::Missing(_))));
    assert_eq!(bench.small.table().bytes, 0);
}

#[test]
fn what_another_replica_replaced_is_told_to_who_must_know() {
    let bench = Bench::new(1 << 20);
    let earlier = bench.publish("a", b"earlier");
    bench.warm(&earlier, 7);
    let later = behind::publish(&*bench.behind, bench.scratch.path(), "a", b"later");
    assert_eq!(bench.read(&earlier, 0..7), b"earlier", "as its row still says");
    let current = bench.small.open_current(&earlier.0, &earlier.1, 0..7);
    assert!(matches!(current, Err(BlobError::Changed(_))));
    assert_eq!(bench.read(&later, 0..5), b"later");
    assert_eq!(bench.asked_by(|| assert_eq!(bench.read(&later, 0..5), b"later")), 0);
}

#[test]
fn memory_is_bounded_and_those_not_used_for_longest_go() {
    let bench = Bench::new(4 * (100 + BESIDE_BYTES));
    let blobs: Vec<_> = (0..5).map(|n| bench.publish(&n.to_string(), &[n; 100])).collect();
    for blob in &blobs[..4] {
        bench.warm(blob, 100);
    }
    bench.read(&blobs[0], 0..100);
    bench.warm(&blobs[4], 100);
    assert_eq!(bench.small.table().bytes, bench.small.bytes_max);
    let TierCounters { hits, misses, fills, evictions, bytes, .. } = &bench.small.counters;
    assert_eq!((hits.get(), misses.get(), fills.get(), evictions.get()), (1, 10, 5, 1));
    assert_eq!(bytes.get() as u64, bench.small.bytes_max);
    for (at, asked) in [(0, 0), (2, 0), (3, 0), (4, 0), (1, 1)] {
        assert_eq!(bench.asked_by(|| drop(bench.read(&blobs[at], 0..100))), asked, "{at}");
    }
}

#[test]
fn a_blob_over_the_bound_is_served_and_not_kept() {
    let bench = Bench::new(100);
    let blob = bench.publish("a", &[7; 100]);
    for _ in 0..3 {
        assert_eq!(bench.asked_by(|| assert_eq!(bench.read(&blob, 0..100), [7; 100])), 1);
    }
    assert_eq!(bench.small.table().bytes, 0);
}
