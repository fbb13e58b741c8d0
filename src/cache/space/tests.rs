//! Space over backends in memory: what goes, what stays, and that no bound is ever exceeded.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::SystemTime;

use super::*;
use crate::artifact::{ArtifactKey, ArtifactPath, BlobKey, BlobVersion, Digest, Entry, Validators};
use crate::blob::About;
use crate::cache::counters::of;
use crate::cache::tests::{bytes, get, memory_ports, replica, wait_until};
use crate::cache::{Cache, CacheBounds, Outcome, Ports, Target};
use crate::clock::Clock;
use crate::config::file::{Around, parse};
use crate::coord::Lease;
use crate::index::{Put, Scan};
use crate::staging::Expect;
use crate::upstream::scripted::{File, Gate, Scripted};

const KIB: usize = 1 << 10;

/// A cache of the remotes `a`, `b` and the local repository `own`, with bounds.
struct Shelf {
    cache: Arc<Cache>,
    clock: Clock,
    upstream: Scripted,
    ports: Ports,
    remotes: Arc<Remotes>,
    bytes_max: Option<u64>,
    _folder: tempfile::TempDir,
}

impl Shelf {
    /// `keys` are lines of remote `a`.
    fn new(bytes_max: Option<u64>, keys: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let clock = Clock::set_by_hand(SystemTime::now());
        let ports = memory_ports(folder.path(), 1 << 30, &clock);
        let remote = "base_url: https://files.example.org\n    include_patterns: ['.']\n    mutable_patterns: ['^index/']\n";
        let yaml = format!(
            "remotes:\n  a:\n    {remote}    {keys}\n  b:\n    {remote}  own: {{type: local, include_patterns: ['.']}}\n"
        );
        let around = Around { regex_size_max: 1 << 20, env: &|_| None };
        let (remotes, _) = parse(&yaml, "remotes.yaml", &around).expect("it is right");
        // Room for what each client of a test asks for while its fetch before is being stored.
        let lease_ttl = Duration::from_secs(20);
        let bounds = CacheBounds { fetch_threads: 4, fetch_queue_max: 16, lease_ttl };
        let cache = Arc::new(Cache::new(ports.clone(), &bounds));
        let remotes = Arc::new(remotes);
        let upstream = Scripted::new();
        let shelf = Self { cache, clock, upstream, ports, remotes, bytes_max, _folder: folder };
        shelf.call();
        shelf
    }

    /// Puts the bounds in force, which makes the keeper look.
    fn call(&self) {
        let (bytes_max, remotes) = (self.bytes_max, Arc::clone(&self.remotes));
        let plan = SpacePlan { bytes_max, remotes, ..SpacePlan::default() };
        self.cache.space().govern(plan);
    }

    /// Waits until the keeper has looked twice: the second time after this call.
    fn kept(&self) {
        for _ in 0..2 {
            let before = self.cache.space().state().rounds_ended;
            self.call();
            wait_until(|| self.cache.space().state().rounds_ended > before);
        }
    }

    fn target(&self, remote: &str) -> Target {
        let remote = Arc::clone(&self.remotes.by_name[&remote.parse().unwrap()]);
        Target { remote, upstream: Some(Arc::new(self.upstream.clone())) }
    }

    /// Gets a file of `a`, which upstream has then, and says how it was met.
    #[track_caller]
    fn get(&self, path: &str, body: &[u8]) -> Outcome {
        self.get_of("a", path, body)
    }

    #[track_caller]
    fn get_of(&self, remote: &str, path: &str, body: &[u8]) -> Outcome {
        self.upstream.put(path, File::of(body.to_vec()).etag("\"1\""));
        let (outcome, got) = get(&self.cache, &self.target(remote), path).unwrap();
        assert!(got == body, "{path}: {} bytes", got.len());
        wait_until(|| self.cache.flight_count() == 0);
        // A later use is a later moment, whatever the system's clock can tell apart.
        self.clock.advance(Duration::from_secs(1));
        outcome
    }

    /// Puts a blob without a row, under the usual key of its artifact or under another one.
    fn orphan(&self, remote: &str, under: Option<BlobKey>) -> BlobKey {
        let mut staged = self.ports.staging.begin(Expect::default()).unwrap();
        staged.append_bytes(b"bytes").unwrap();
        let about = About {
            artifact: key(remote, "orphan"),
            digest: Digest::of(b"bytes"),
            content_type: None,
            content_encoding: None,
            validators: Validators::default(),
            stored_at: SystemTime::UNIX_EPOCH,
        };
        let blob = under.unwrap_or_else(|| BlobKey::of(&about.artifact));
        self.ports.blobs.publish(&blob, &staged.seal().unwrap(), &about).unwrap();
        blob
    }

    fn has(&self, blob: &BlobKey) -> bool {
        self.ports.blobs.stat(blob).unwrap().is_some()
    }

    /// Puts a row where no fetch would: in a local repository, or in a remote that is gone.
    fn put(&self, remote: &str, path: &str, size: u64) {
        let key = key(remote, path);
        let entry = Entry {
            blob: BlobKey::of(&key),
            version: BlobVersion("1".to_owned()),
            size,
            digest: Digest::of(b""),
            content_type: None,
            content_encoding: None,
            validators: Validators::default(),
            stored_at: SystemTime::UNIX_EPOCH,
            validated_at: SystemTime::UNIX_EPOCH,
            head: None,
            generation: 0,
            unproven: false,
        };
        assert!(matches!(self.ports.index.put(&key, &entry, None).unwrap(), Put::Stored(_)));
    }

    /// The stored paths, with their remotes.
    fn stored(&self) -> Vec<String> {
        let mut stored = Vec::new();
        let mut visit = |row: crate::index::Row| {
            stored.push(row.key.to_string());
            ControlFlow::Continue(())
        };
        self.ports.index.scan(&Scan::default(), &mut visit).unwrap();
        stored
    }

    /// Bytes of blobs in the store.
    fn blob_bytes(&self) -> u64 {
        let mut sum = 0;
        let mut visit = |meta: crate::blob::BlobMeta| {
            sum += meta.size;
            ControlFlow::Continue(())
        };
        self.ports.blobs.each(&mut visit).unwrap();
        sum
    }
}

fn key(remote: &str, path: &str) -> ArtifactKey {
    let path = ArtifactPath::from_canonical(path).unwrap();
    ArtifactKey { remote: remote.parse().unwrap(), path }
}

fn kib(count: usize) -> Option<u64> {
    Some((count * KIB) as u64)
}

#[test]
fn a_full_cache_is_full_and_the_least_recently_used_go_first() {
    let shelf = Shelf::new(kib(16), "");
    let body = bytes(KIB);
    for number in 0..16 {
        let remote = if number % 2 == 0 { "a" } else { "b" };
        assert_eq!(shelf.get_of(remote, &format!("{number:02}"), &body), Outcome::Miss);
    }
    shelf.kept();
    assert_eq!((shelf.stored().len(), shelf.blob_bytes()), (16, 16 << 10), "all of it fits");
    // Nobody has written these uses down yet.
    for path in ["00", "04"] {
        assert_eq!(shelf.get(path, &body), Outcome::Hit);
    }
    assert_eq!(shelf.get("new", &body), Outcome::Miss);
    shelf.kept();
    let stored = shelf.stored();
    // One makes room, and one more is the slack.
    for gone in ["b/01", "a/02"] {
        assert!(!stored.contains(&gone.to_owned()), "{stored:?}");
    }
    assert_eq!(stored.len(), 15);
    assert_eq!(shelf.blob_bytes(), 15 << 10, "blobs went with their rows");
    let counters = shelf.cache.counters();
    let evicted = |remote: &str| of(&counters.evicted, &remote.parse().unwrap()).get();
    assert_eq!((evicted("a"), evicted("b")), (1, 1));
    assert_eq!(of(&counters.evicted_bytes, &"a".parse().unwrap()).get(), 1 << 10);
    assert_eq!(shelf.get_of("b", "01", &body), Outcome::Miss, "what went comes again");
}

#[test]
fn a_remote_keeps_to_its_own_bound_and_leaves_the_others_alone() {
    let shelf = Shelf::new(None, "cache: {max_bytes: 4Ki}");
    let body = bytes(KIB);
    for number in 0..8 {
        shelf.get_of("b", &format!("b{number}"), &body);
        shelf.get(&format!("a{number}"), &body);
    }
    let stored = shelf.stored();
    assert_eq!(stored.iter().filter(|path| path.starts_with("b/")).count(), 8);
    assert!(stored.contains(&"a/a7".to_owned()), "{stored:?}");
    assert!(stored.iter().filter(|path| path.starts_with("a/")).count() <= 4, "{stored:?}");
}

#[test]
fn pins_local_repositories_and_what_is_not_configured_stay() {
    let shelf = Shelf::new(kib(8), "pin_patterns: ['^keep/']");
    let body = bytes(KIB);
    for path in ["keep/1", "keep/2"] {
        shelf.get(path, &body);
    }
    shelf.put("own", "upload", 1 << 40);
    shelf.put("gone", "file", 1 << 40);
    for number in 0..40 {
        shelf.get(&format!("{number}"), &body);
    }
    shelf.kept();
    let stored: BTreeSet<String> = shelf.stored().into_iter().collect();
    for kept in ["a/keep/1", "a/keep/2", "own/upload", "gone/file", "a/39"] {
        assert!(stored.contains(kept), "{kept}: {stored:?}");
    }
    assert!(shelf.blob_bytes() <= 8 << 10);
    assert_eq!(of(&shelf.cache.counters().without_room, &"a".parse().unwrap()).get(), 0);
}

#[test]
fn where_nothing_may_go_what_comes_is_served_unstored() {
    let shelf = Shelf::new(kib(4), "pin_patterns: ['^keep/']");
    let body = bytes(2 * KIB);
    for path in ["keep/1", "keep/2"] {
        shelf.get(path, &body);
    }
    for _ in 0..2 {
        assert_eq!(shelf.get("other", &body), Outcome::Miss);
    }
    assert_eq!(shelf.stored(), ["a/keep/1", "a/keep/2"]);
    assert_eq!(of(&shelf.cache.counters().without_room, &"a".parse().unwrap()).get(), 2);
}

#[test]
fn what_is_larger_than_the_whole_bound_is_served_unstored_and_takes_nothing_out() {
    let shelf = Shelf::new(kib(64), "cache: {max_bytes: 8Ki}");
    let (small, large) = (bytes(KIB), bytes(9 * KIB));
    shelf.get("small", &small);
    for _ in 0..2 {
        assert_eq!(shelf.get("large", &large), Outcome::Miss);
    }
    assert_eq!(shelf.get_of("b", "large", &large), Outcome::Miss);
    assert_eq!(shelf.get_of("b", "large", &large), Outcome::Hit);
    assert_eq!(shelf.get_of("b", "too large", &bytes(65 * KIB)), Outcome::Miss);
    assert_eq!(shelf.stored(), ["a/small", "b/large"]);
}

#[test]
fn a_refresh_needs_room_for_its_growth_only() {
    let shelf = Shelf::new(kib(4), "pin_patterns: ['^keep/']\n    cache: {index_ttl: 0}");
    shelf.get("keep/1", &bytes(KIB));
    shelf.get("index/1", &[1; 3 * KIB]);
    shelf.upstream.put("index/1", File::of(vec![2; 3 * KIB]).etag("\"2\""));
    let (outcome, got) = get(&shelf.cache, &shelf.target("a"), "index/1").unwrap();
    assert_eq!((outcome, got == [2; 3 * KIB]), (Outcome::Miss, true));
    wait_until(|| shelf.cache.flight_count() == 0);
    let entry = shelf.ports.index.get(&key("a", "index/1")).unwrap().unwrap();
    assert_eq!(entry.digest, Digest::of(&[2; 3 * KIB]));
    assert_eq!(shelf.stored().len(), 2);
}

#[test]
fn what_was_not_used_for_so_long_goes_and_what_was_used_stays() {
    let shelf = Shelf::new(None, "keep_unused_for: 3600\n    pin_patterns: ['^keep/']");
    for path in ["used", "unused", "keep/1"] {
        shelf.get(path, b"x");
    }
    shelf.get_of("b", "unused", b"x");
    shelf.clock.advance(Duration::from_secs(3000));
    assert_eq!(shelf.get("used", b"x"), Outcome::Hit);
    shelf.kept();
    assert_eq!(shelf.stored().len(), 4, "the hour is not over");
    shelf.clock.advance(Duration::from_secs(700));
    shelf.kept();
    assert_eq!(shelf.stored(), ["a/keep/1", "a/used", "b/unused"]);
    shelf.clock.advance(Duration::from_secs(3000));
    shelf.kept();
    assert_eq!(shelf.stored(), ["a/keep/1", "b/unused"]);
}

#[test]
fn what_nobody_could_fetch_again_stays_however_long_it_was_not_used() {
    let shelf = Shelf::new(None, "keep_unused_for: 3600\n    offline: true");
    shelf.put("a", "unused", 1);
    shelf.clock.advance(Duration::from_secs(4000));
    shelf.kept();
    assert_eq!(shelf.stored(), ["a/unused"]);
}

#[test]
fn more_than_a_batch_goes_where_a_bound_is_lowered() {
    let mut shelf = Shelf::new(None, "");
    for number in 0..600 {
        shelf.get(&format!("{number:04}"), b"0123456789");
    }
    shelf.bytes_max = Some(100);
    shelf.kept();
    // Ten fit; what exceeds the bound goes with its slack of 6 bytes.
    let newest: Vec<String> = (591..600).map(|number| format!("a/{number:04}")).collect();
    assert_eq!(shelf.stored(), newest);
}

#[test]
fn what_is_being_read_stays_until_it_was_read() {
    let shelf = Shelf::new(kib(4), "");
    let body = bytes(KIB);
    shelf.get("read", &body);
    let target = shelf.target("a");
    let path = ArtifactPath::from_canonical("read").unwrap();
    let found = shelf.cache.find(&target, &path).unwrap();
    assert_eq!(found.met.outcome, Outcome::Hit);
    // As for an answer of several ranges, of which the first is read.
    let again = found.bytes.again().unwrap();
    drop(shelf.cache.open(&target, found.bytes, None, Some(0..10)).unwrap());
    for number in 0..20 {
        shelf.get(&format!("{number}"), &body);
    }
    assert!(shelf.stored().contains(&"a/read".to_owned()));
    let mut rest = shelf.cache.open(&target, again, None, Some(10..KIB as u64)).unwrap();
    assert!(crate::body::read_to_vec(&mut rest, KIB).unwrap() == body[10..]);
    drop(rest);
    for number in 20..40 {
        shelf.get(&format!("{number}"), &body);
    }
    assert!(!shelf.stored().contains(&"a/read".to_owned()));
}

#[test]
fn what_is_being_fetched_stays() {
    let shelf = Shelf::new(kib(4), "cache: {index_ttl: 0}");
    let body = bytes(KIB);
    shelf.get("index/1", &body);
    let gate = Gate::at(0);
    shelf.upstream.put("index/1", File::of("new").etag("\"2\"").head_held_by(&gate));
    thread::scope(|threads| {
        let refresh = threads.spawn(|| get(&shelf.cache, &shelf.target("a"), "index/1").unwrap());
        gate.wait_until_held();
        let target = shelf.target("b");
        for number in 0..20 {
            let path = format!("{number}");
            shelf.upstream.put(&path, File::of(body.clone()));
            get(&shelf.cache, &target, &path).unwrap();
            wait_until(|| shelf.cache.flight_count() == 1);
        }
        assert!(shelf.stored().contains(&"a/index/1".to_owned()));
        gate.open();
        assert_eq!(refresh.join().unwrap(), (Outcome::Miss, b"new".to_vec()));
    });
}

#[test]
fn what_another_replica_is_at_does_not_stand_in_the_way_of_what_may_go() {
    let shelf = Shelf::new(kib(40), "description: x");
    shelf.put("a", "oldest", 10 * KIB as u64);
    shelf.clock.advance(Duration::from_secs(1));
    shelf.put("a", "older", 20 * KIB as u64);
    shelf.clock.advance(Duration::from_secs(1));
    let held = Lease::take(&shelf.ports.leases, &key("a", "oldest"), Duration::from_secs(60));
    assert!(matches!(held, Ok(Some(_))));
    shelf.kept();
    assert_eq!(shelf.get("new", &bytes(15 * KIB)), Outcome::Miss);
    wait_until(|| shelf.stored() == ["a/new", "a/oldest"]);
}

#[test]
fn under_load_no_bound_is_exceeded_and_no_answer_is_wrong() {
    let shelf = Shelf::new(kib(40), "cache: {max_bytes: 24Ki}");
    let body = |number: usize| bytes(KIB * (1 + number % 5));
    for number in 0..60 {
        shelf.upstream.put(&format!("{number}"), File::of(body(number)));
    }
    let has_ended = AtomicBool::new(false);
    thread::scope(|threads| {
        let clients: Vec<_> = (0..4)
            .map(|client| {
                let shelf = &shelf;
                threads.spawn(move || {
                    let targets = ["a", "b"].map(|remote| shelf.target(remote));
                    for round in 0..150 {
                        let number = (client * 17 + round * (round + 7)) % 60;
                        let target = &targets[round % 2];
                        let (_, got) = get(&shelf.cache, target, &number.to_string()).unwrap();
                        assert!(got == body(number), "{number}");
                        shelf.clock.advance(Duration::from_millis(1));
                    }
                })
            })
            .collect();
        let watch = threads.spawn(|| {
            while !has_ended.load(Ordering::Relaxed) {
                assert!(shelf.blob_bytes() <= 40 << 10);
                thread::yield_now();
            }
        });
        let ends: Vec<_> = clients.into_iter().map(|client| client.join()).collect();
        // The watch must end whatever the clients met.
        has_ended.store(true, Ordering::Relaxed);
        ends.into_iter().for_each(|end| end.unwrap());
        watch.join().unwrap();
    });
    wait_until(|| shelf.cache.flight_count() == 0);
    let usage = || shelf.ports.index.usage().unwrap();
    assert!(usage()[&"a".parse().unwrap()].bytes <= 24 << 10, "{:?}", usage());
    // An eviction may be between a row and its blob.
    wait_until(|| usage().values().map(|usage| usage.bytes).sum::<u64>() == shelf.blob_bytes());
    assert_eq!(shelf.cache.counters().healed.get(), 0, "nobody found a row without its blob");
}

#[test]
fn pinned_rows_at_the_beginning_hide_nothing_behind_them() {
    let shelf = Shelf::new(kib(600), "pin_patterns: ['^keep/']");
    // More than one page and one batch.
    for number in 0..600 {
        shelf.put("a", &format!("keep/{number}"), 1);
    }
    let body = bytes(KIB);
    for number in 0..1_000 {
        shelf.get(&format!("{number}"), &body);
    }
    shelf.kept();
    let stored = shelf.stored();
    assert_eq!(stored.iter().filter(|path| path.starts_with("a/keep/")).count(), 600);
    assert!(stored.contains(&"a/999".to_owned()) && !stored.contains(&"a/0".to_owned()));
    assert_eq!(of(&shelf.cache.counters().without_room, &"a".parse().unwrap()).get(), 0);
}

#[test]
fn a_sweep_removes_no_upload_and_nothing_while_the_index_has_no_row() {
    let shelf = Shelf::new(None, "");
    let (cached, upload) = (shelf.orphan("a", None), shelf.orphan("own", None));
    let age = Duration::from_secs(3600);
    shelf.clock.advance(age + Duration::from_secs(60));
    let error = shelf.cache.sweep_orphans(age).unwrap_err();
    assert!(error.contains("reindex"), "{error}");
    shelf.put("a", "known", 1);
    assert_eq!(shelf.cache.sweep_orphans(age).map(|swept| swept.blobs), Ok(1));
    assert!(!shelf.has(&cached));
    assert!(shelf.has(&upload));
}

#[test]
fn a_sweep_leaves_what_belongs_to_no_remote_that_is_configured() {
    let shelf = Shelf::new(None, "");
    let url = |url: &str| BlobKey::of_url(&format!("https://{url}")).unwrap();
    // A local repository that was renamed in remotes.yaml, and one that went by a host's name.
    let renamed = shelf.orphan("renamed", None);
    let at_its_name = shelf.orphan("files.example.org", None);
    // What batches by URL wrote, for a remote that is still there and for one that is not.
    let by_url = shelf.orphan("a", Some(url("files.example.org/a")));
    let of_a_gone_remote = shelf.orphan("gone", Some(url("files.example.org/gone")));
    let at_a_gone_host = shelf.orphan("a", Some(url("other.example.org/a")));
    shelf.put("a", "known", 1);
    shelf.put("renamed", "lost", 1);
    let age = Duration::from_secs(3600);
    shelf.clock.advance(age + Duration::from_secs(60));
    let swept = shelf.cache.sweep_orphans(age).unwrap();
    assert_eq!((swept.blobs, swept.left), (1, 4));
    assert!(!shelf.has(&by_url));
    for left in [renamed, at_its_name, of_a_gone_remote, at_a_gone_host] {
        assert!(shelf.has(&left), "{left}");
    }
    // Nor does it forget a row: it is what tells that bytes are missing.
    let row = shelf.ports.index.get(&key("renamed", "lost")).unwrap();
    assert!(row.is_some());
}

#[test]
fn without_an_answer_of_the_index_nothing_is_added() {
    let space = Arc::new(Space::default());
    let shelf = Shelf::new(kib(8), "");
    space.govern(shelf.cache.space().plan());
    let remote = Arc::clone(&shelf.target("a").remote);
    // A keeper that never learns what is stored.
    thread::scope(|threads| {
        let waiting = threads.spawn(|| space.make_room(&remote, 1, 0).is_none());
        while !waiting.is_finished() {
            if space.state().is_called {
                assert!(space.await_round());
                space.end_round();
            }
            thread::yield_now();
        }
        assert!(waiting.join().unwrap());
    });
    assert!(space.state().wanted.is_empty());
}

#[test]
fn replicas_learn_of_each_others_files() {
    let shelf = Shelf::new(kib(8), "");
    let other = replica(&shelf.ports);
    other.space().govern(shelf.cache.space().plan());
    let body = bytes(KIB);
    for number in 0..8 {
        shelf.get(&format!("{number}"), &body);
    }
    let known = || other.space().usage().values().map(|usage| usage.bytes).sum::<u64>();
    other.space().govern(shelf.cache.space().plan());
    wait_until(|| known() == 8 << 10);
    shelf.upstream.put("new", File::of(body.clone()));
    get(&other, &shelf.target("a"), "new").unwrap();
    wait_until(|| other.flight_count() == 0);
    assert!(shelf.blob_bytes() <= 8 << 10);
    assert!(shelf.stored().contains(&"a/new".to_owned()));
}
