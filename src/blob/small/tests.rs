use std::sync::atomic::Ordering;

use super::*;
use crate::blob::behind::{self, Behind};
use crate::blob::memory::MemoryBlobs;

crate::blob::conformance::blob_conformance!(|| {
    (SmallBlobs::new(Arc::new(MemoryBlobs::new()), 1 << 20, TierCounters::default()), ())
});

struct Bench {
    behind: Arc<Behind>,
    small: SmallBlobs,
    scratch: tempfile::TempDir,
}

impl Bench {
    fn new(bytes_max: u64) -> Self {
        let behind = Arc::new(Behind::default());
        let small = SmallBlobs::new(Arc::clone(&behind) as _, bytes_max, TierCounters::default());
        Self { behind, small, scratch: tempfile::tempdir().unwrap() }
    }

    fn publish(&self, path: &str, bytes: &[u8]) -> (BlobKey, BlobVersion) {
        behind::publish(&self.small, self.scratch.path(), path, bytes)
    }

    fn read(&self, (key, version): &(BlobKey, BlobVersion), range: Range<u64>) -> Vec<u8> {
        read_to_vec(&mut self.small.open(key, version, range).unwrap(), 1 << 20).unwrap()
    }

    /// How often the store behind was asked by what `read` does.
    fn asked_by(&self, read: impl FnOnce()) -> u64 {
        let before = self.behind.opened.load(Ordering::Relaxed);
        read();
        self.behind.opened.load(Ordering::Relaxed) - before
    }
}

#[test]
fn a_small_blob_is_read_from_the_store_once() {
    let bench = Bench::new(1 << 20);
    let blob = bench.publish("a", b"0123456789");
    assert_eq!(bench.asked_by(|| assert_eq!(bench.read(&blob, 0..10), b"0123456789")), 1);
    bench.behind.away.store(true, Ordering::Relaxed);
    assert_eq!(bench.read(&blob, 0..10), b"0123456789");
    assert_eq!(bench.read(&blob, 3..5), b"34");
    let past = bench.small.open(&blob.0, &blob.1, 0..11);
    assert!(matches!(past, Err(BlobError::Unavailable { .. })), "the store behind refuses it");
}

#[test]
fn a_blob_without_bytes_is_kept_too() {
    let bench = Bench::new(1 << 20);
    let blob = bench.publish("a", b"");
    assert_eq!(bench.asked_by(|| assert_eq!(bench.read(&blob, 0..0), b"")), 1);
    bench.behind.away.store(true, Ordering::Relaxed);
    assert_eq!(bench.read(&blob, 0..0), b"");
}

#[test]
fn the_beginning_of_a_large_blob_is_kept_and_the_rest_is_not() {
    let bench = Bench::new(1 << 20);
    let bytes: Vec<u8> = (0..3 * BEGINNING_BYTES_MAX).map(|at| at as u8).collect();
    let (blob, len) = (bench.publish("a", &bytes), bytes.len() as u64);
    let most = BEGINNING_BYTES_MAX as u64;
    for (range, asked) in [
        (0..len, [1, 1]),
        (10..20, [1, 1]),
        (0..20, [1, 0]),
        (10..20, [0, 0]),
        (0..most + 1, [1, 1]),
        (0..most, [1, 0]),
        (0..20, [0, 0]),
        (most - 1..most + 1, [1, 1]),
    ] {
        for times in asked {
            let wanted = &bytes[range.start as usize..range.end as usize];
            let read = || assert_eq!(bench.read(&blob, range.clone()), wanted);
            assert_eq!(bench.asked_by(read), times, "{range:?}");
        }
    }
}

#[test]
fn what_was_replaced_or_removed_is_given_up() {
    let bench = Bench::new(1 << 20);
    let earlier = bench.publish("a", b"earlier");
    bench.read(&earlier, 0..7);
    let later = bench.publish("a", b"later");
    assert_eq!(bench.small.table().bytes, 0);
    let opened = bench.small.open(&earlier.0, &earlier.1, 0..7);
    assert!(matches!(opened, Err(BlobError::Changed(_))));
    assert_eq!(bench.read(&later, 0..5), b"later");
    bench.small.remove(&later.0).unwrap();
    assert!(matches!(bench.small.open(&later.0, &later.1, 0..5), Err(BlobError::Missing(_))));
    assert_eq!(bench.small.table().bytes, 0);
}

#[test]
fn another_replica_that_replaces_a_blob_is_no_matter() {
    let bench = Bench::new(1 << 20);
    let earlier = bench.publish("a", b"earlier");
    bench.read(&earlier, 0..7);
    let later = behind::publish(&*bench.behind, bench.scratch.path(), "a", b"later");
    assert_eq!(bench.read(&earlier, 0..7), b"earlier", "as its row still says");
    assert_eq!(bench.read(&later, 0..5), b"later");
    assert_eq!(bench.asked_by(|| assert_eq!(bench.read(&later, 0..5), b"later")), 0);
}

#[test]
fn memory_is_bounded_and_those_not_used_for_longest_go() {
    let bench = Bench::new(4 * (100 + BESIDE_BYTES));
    let blobs: Vec<_> = (0..5).map(|n| bench.publish(&n.to_string(), &[n; 100])).collect();
    for blob in &blobs[..4] {
        bench.read(blob, 0..100);
    }
    bench.read(&blobs[0], 0..100);
    bench.read(&blobs[4], 0..100);
    assert_eq!(bench.small.table().bytes, bench.small.bytes_max);
    let TierCounters { hits, misses, fills, evictions, bytes, .. } = &bench.small.counters;
    assert_eq!((hits.get(), misses.get(), fills.get(), evictions.get()), (1, 5, 5, 1));
    assert_eq!(bytes.get() as u64, bench.small.bytes_max);
    for (at, asked) in [(0, 0), (2, 0), (3, 0), (4, 0), (1, 1)] {
        assert_eq!(bench.asked_by(|| drop(bench.read(&blobs[at], 0..100))), asked, "{at}");
    }
}

#[test]
fn a_blob_over_the_bound_is_served_and_not_kept() {
    let bench = Bench::new(100);
    let blob = bench.publish("a", &[7; 100]);
    assert_eq!(bench.asked_by(|| assert_eq!(bench.read(&blob, 0..100), [7; 100])), 1);
    assert_eq!(bench.small.table().bytes, 0);
}
