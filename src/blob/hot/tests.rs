use std::sync::atomic::Ordering;

use super::*;
use crate::blob::behind::{Behind, check_that_nobodys_place_is_taken, publish};
use crate::blob::memory::MemoryBlobs;
use crate::body::read_to_vec;
use crate::test_servers::eventually;

crate::blob::conformance::blob_conformance!(|| {
    let folder = tempfile::tempdir().unwrap();
    let settings = HotSettings { folder: folder.path().to_owned(), bytes_max: 64 << 20 };
    let behind = Arc::new(MemoryBlobs::new());
    (HotBlobs::open(behind, &settings, Clock::system(), TierCounters::default()).unwrap(), folder)
});

/// What a tier has counted.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    hits: u64,
    misses: u64,
    fills: u64,
    failures: u64,
    evictions: u64,
    bytes: u64,
}

struct Bench {
    behind: Arc<Behind>,
    hot: HotBlobs,
    clock: Clock,
    folder: tempfile::TempDir,
}

impl Bench {
    fn new(bytes_max: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let clock = Clock::set_by_hand(SystemTime::UNIX_EPOCH);
        let behind = Arc::new(Behind::default());
        let settings = HotSettings { folder: folder.path().join("hot"), bytes_max };
        let hot = HotBlobs::open(
            Arc::clone(&behind) as _,
            &settings,
            clock.clone(),
            TierCounters::default(),
        )
        .unwrap();
        Self { behind, hot, clock, folder }
    }

    fn publish(&self, path: &str, bytes: &[u8]) -> (BlobKey, BlobVersion) {
        self.publish_by(&self.hot, path, bytes)
    }

    fn publish_by(
        &self,
        store: &dyn BlobStore,
        path: &str,
        bytes: &[u8],
    ) -> (BlobKey, BlobVersion) {
        publish(store, &self.folder.path().join("staging"), path, bytes)
    }

    fn read(&self, (key, version): &(BlobKey, BlobVersion), range: Range<u64>) -> Vec<u8> {
        read_to_vec(&mut self.hot.open(key, version, range).unwrap(), 1 << 20).unwrap()
    }

    /// Uses a blob until it is in the tier.
    fn warm(&self, blob: &(BlobKey, BlobVersion), len: u64) {
        let fills = self.counts().fills;
        self.read(blob, 0..len);
        self.read(blob, 0..len);
        eventually("the blob is here", || self.counts().fills > fills);
    }

    fn files(&self) -> u64 {
        let files = fs::read_dir(self.folder.path().join("hot")).unwrap();
        files.map(|file| file.unwrap().metadata().unwrap().len()).sum()
    }

    fn counts(&self) -> Counts {
        let TierCounters { hits, misses, fills, failures, evictions, bytes } =
            &self.hot.tier.counters;
        Counts {
            hits: hits.get(),
            misses: misses.get(),
            fills: fills.get(),
            failures: failures.get(),
            evictions: evictions.get(),
            bytes: u64::try_from(bytes.get()).unwrap(),
        }
    }

    fn take_away(&self) {
        self.behind.away.store(true, Ordering::Relaxed);
    }
}

#[test]
fn what_is_new_takes_nobodys_place() {
    let bench = Bench::new(1 << 20);
    check_that_nobodys_place_is_taken(&bench.hot, &bench.folder.path().join("staging"));
}

#[test]
fn the_second_use_brings_a_blob_here_and_then_the_store_is_not_asked() {
    let bench = Bench::new(1000);
    let blob = bench.publish("a", b"0123456789");
    bench.read(&blob, 0..10);
    assert_eq!(bench.counts(), Counts { misses: 1, ..Counts::default() });
    bench.read(&blob, 3..4);
    eventually("the blob is here", || bench.counts().fills == 1);
    let asked = bench.behind.opened.load(Ordering::Relaxed);
    bench.take_away();
    assert_eq!(bench.read(&blob, 0..10), b"0123456789");
    assert_eq!(bench.read(&blob, 9..10), b"9");
    assert_eq!(bench.read(&blob, 10..10), b"");
    assert_eq!(bench.behind.opened.load(Ordering::Relaxed), asked);
    let counts = Counts { hits: 3, misses: 2, fills: 1, bytes: 10, ..Counts::default() };
    assert_eq!(bench.counts(), counts);
    let past = bench.hot.open(&blob.0, &blob.1, 0..11);
    assert!(matches!(past, Err(BlobError::Unavailable { .. })), "the store behind refuses it");
}

#[test]
fn a_first_use_long_ago_does_not_count() {
    let bench = Bench::new(1000);
    let blob = bench.publish("a", b"0123456789");
    bench.read(&blob, 0..10);
    bench.clock.advance(crate::blob::seen::SEEN_FOR);
    bench.read(&blob, 0..10);
    assert!(bench.hot.tier.table().under_way.is_empty());
    bench.clock.advance(crate::blob::seen::SEEN_FOR / 2);
    bench.read(&blob, 0..10);
    eventually("the blob is here", || bench.counts().fills == 1);
}

#[test]
fn the_tier_keeps_to_its_size_and_those_not_used_for_longest_go() {
    let bench = Bench::new(100);
    let blobs: Vec<_> = (0..5).map(|n| bench.publish(&n.to_string(), &[n; 25])).collect();
    for blob in &blobs[..4] {
        bench.warm(blob, 25);
    }
    bench.read(&blobs[0], 0..25);
    bench.warm(&blobs[4], 25);
    let counts = bench.counts();
    assert_eq!((counts.bytes, counts.evictions, bench.files()), (100, 1, 100));
    bench.take_away();
    for (number, blob) in blobs.iter().enumerate() {
        let found = bench.hot.open(&blob.0, &blob.1, 0..25);
        assert_eq!(found.is_ok(), number != 1, "{number}");
    }
}

#[test]
fn one_blob_may_not_empty_the_tier() {
    let bench = Bench::new(100);
    let large = bench.publish("large", &[1; 26]);
    let small = bench.publish("small", &[1; 25]);
    bench.read(&large, 0..26);
    bench.read(&large, 0..26);
    bench.warm(&small, 25);
    eventually("nothing is under way", || bench.hot.tier.table().under_way.is_empty());
    assert_eq!((bench.counts().bytes, bench.files()), (25, 25));
}

#[test]
fn a_version_that_was_replaced_by_another_replica_is_never_served_for_the_new_one() {
    let bench = Bench::new(1000);
    let first = bench.publish("a", b"one");
    bench.warm(&first, 3);
    let second = bench.publish_by(&*bench.behind, "a", b"two");
    assert_eq!(bench.read(&first, 0..3), b"one", "the bytes of a version never change");
    assert_eq!(bench.read(&second, 0..3), b"two");
    eventually("the new one is here", || bench.counts().fills == 2);
    assert_eq!((bench.counts().bytes, bench.files()), (3, 3));
    bench.take_away();
    assert_eq!(bench.read(&second, 0..3), b"two");
    assert!(bench.hot.open(&first.0, &first.1, 0..3).is_err());
}

#[test]
fn what_is_replaced_or_removed_here_leaves_the_tier() {
    let bench = Bench::new(1000);
    let (replaced, removed) = (bench.publish("a", b"one"), bench.publish("b", b"one"));
    bench.warm(&replaced, 3);
    bench.warm(&removed, 3);
    bench.publish("a", b"two");
    bench.hot.remove(&removed.0).unwrap();
    assert!(matches!(bench.hot.open(&replaced.0, &replaced.1, 0..3), Err(BlobError::Changed(_))));
    assert!(matches!(bench.hot.open(&removed.0, &removed.1, 0..3), Err(BlobError::Missing(_))));
    assert_eq!((bench.counts().bytes, bench.files()), (0, 0));
}

#[test]
fn what_is_kept_open_is_looked_at_again_and_closed_when_it_leaves() {
    let bench = Bench::new(1000);
    let (cut, lost, removed) =
        (bench.publish("a", b"one"), bench.publish("b", b"one"), bench.publish("c", b"one"));
    let kept = |blob: &(BlobKey, BlobVersion)| {
        bench.warm(blob, 3);
        // Its second reading here has it kept.
        (0..2).for_each(|_| assert_eq!(bench.read(blob, 0..3), b"one"));
        let file = bench.hot.tier.table().here.get(&blob.0).unwrap().1.file;
        assert!(bench.hot.tier.open_files.keeps(&file));
        file
    };
    let cut_file = kept(&cut);
    fs::write(bench.hot.tier.path(cut_file), b"on").unwrap();
    let lost_file = kept(&lost);
    fs::remove_file(bench.hot.tier.path(lost_file)).unwrap();
    let removed_file = kept(&removed);
    bench.hot.remove(&removed.0).unwrap();
    for (blob, failures) in [(&cut, 1), (&lost, 2)] {
        assert_eq!(bench.read(blob, 0..3), b"one");
        assert_eq!(bench.counts().failures, failures);
    }
    for file in [cut_file, lost_file, removed_file] {
        assert!(!bench.hot.tier.open_files.keeps(&file));
    }
}

#[test]
fn a_blob_on_its_way_that_is_called_off_does_not_arrive() {
    let bench = Bench::new(1000);
    let (key, version) = bench.publish("a", b"one");
    let tier = &bench.hot.tier;
    tier.ticket(&key);
    let ticket = tier.ticket(&key).unwrap();
    assert_eq!(tier.ticket(&key), None, "it is on its way");
    tier.forget(&key, Some(&version));
    tier.fill(&Fill { key: key.clone(), version: version.clone(), ticket });
    assert_eq!((bench.counts(), bench.files()), (Counts::default(), 0));
}

#[test]
fn bytes_that_are_not_what_the_blob_says_stay_out() {
    let bench = Bench::new(1000);
    let blob = bench.publish("a", b"one");
    bench.behind.lies.store(true, Ordering::Relaxed);
    bench.read(&blob, 0..3);
    bench.read(&blob, 0..3);
    eventually("the fill failed", || bench.counts().failures == 1);
    assert_eq!((bench.counts().bytes, bench.files()), (0, 0));
    bench.behind.lies.store(false, Ordering::Relaxed);
    bench.read(&blob, 0..3);
    eventually("the blob is here", || bench.counts().fills == 1);
}

#[test]
fn a_local_disk_that_fails_is_no_failure_of_the_store() {
    let bench = Bench::new(1000);
    let (lost, cut) = (bench.publish("lost", b"one"), bench.publish("cut", b"one"));
    bench.warm(&lost, 3);
    bench.warm(&cut, 3);
    for file in fs::read_dir(bench.folder.path().join("hot")).unwrap() {
        let file = fs::OpenOptions::new().write(true).open(file.unwrap().path()).unwrap();
        file.set_len(2).unwrap();
    }
    assert_eq!(bench.read(&cut, 0..3), b"one");
    eventually("the cut one is here again", || bench.counts().fills == 3);
    assert_eq!(bench.counts().failures, 1);
    fs::remove_dir_all(bench.folder.path().join("hot")).unwrap();
    // Nothing can be written: tried once, then not for a while.
    for _ in 0..5 {
        assert_eq!(bench.read(&lost, 0..3), b"one");
        eventually("nothing is under way", || bench.hot.tier.table().under_way.is_empty());
    }
    assert_eq!(bench.counts().failures, 3);
    fs::create_dir(bench.folder.path().join("hot")).unwrap();
    bench.clock.advance(PAUSE_AFTER_FAILURE);
    bench.warm(&lost, 3);
}

#[test]
fn a_start_removes_what_an_earlier_run_left_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("0001.hot"), b"x").unwrap();
    fs::write(folder.path().join("README"), b"x").unwrap();
    let settings = HotSettings { folder: folder.path().to_owned(), bytes_max: 1 };
    HotBlobs::open(
        Arc::new(MemoryBlobs::new()),
        &settings,
        Clock::system(),
        TierCounters::default(),
    )
    .unwrap();
    let left: Vec<_> =
        fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert_eq!(left, ["README"]);
}
