//! Uploads over backends that fail, race and crash between two steps.

use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use super::*;
use crate::artifact::{BlobVersion, RemoteName};
use crate::blob::memory::MemoryBlobs;
use crate::blob::{BlobMeta, BlobStore};
use crate::body::{Body, read_to_vec};
use crate::cache::tests::NoLeases;
use crate::cache::{CacheBounds, Outcome, Ports, Purged};
use crate::clock::Clock;
use crate::config::file::{Around, parse};
use crate::coord::local::{LocalFreshness, LocalLeases};
use crate::coord::{Acquired, LeaseToken, Leases};
use crate::index::memory::MemoryIndex;
use crate::index::{ArtifactIndex, LeastUsed, Row, Scan, Usage, Use};
use crate::staging::Staging;

/// Backends in memory that write down what they are asked, and fail where a test says so.
#[derive(Debug, Default)]
struct Watched {
    blobs: MemoryBlobs,
    index: MemoryIndex,
    calls: Mutex<Vec<&'static str>>,
    failing: Mutex<Option<&'static str>>,
    /// Whether the next look at a blob finds none.
    hiding: AtomicBool,
    /// What happens once behind the next removal of a blob.
    after_removal: Mutex<Option<Meanwhile>>,
    /// What happens once in the middle of the next publish.
    meanwhile: Mutex<Option<Meanwhile>>,
}

struct Meanwhile(Box<dyn FnOnce() + Send>);

impl std::fmt::Debug for Meanwhile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Meanwhile")
    }
}

impl Watched {
    fn under_way(&self) {
        let meanwhile = self.meanwhile.lock().unwrap().take();
        if let Some(Meanwhile(happens)) = meanwhile {
            happens();
        }
    }

    /// Whether a step is to go on.
    fn step(&self, name: &'static str) -> bool {
        self.calls.lock().unwrap().push(name);
        *self.failing.lock().unwrap() != Some(name)
    }

    fn blob_step(&self, name: &'static str, key: &BlobKey) -> Result<(), BlobError> {
        if self.step(name) { Ok(()) } else { Err(BlobError::Full(key.clone())) }
    }

    fn index_step(&self, name: &'static str) -> Result<(), IndexError> {
        let source = || "on purpose".into();
        match self.step(name) {
            true => Ok(()),
            false => Err(IndexError::Unavailable { operation: "work", source: source() }),
        }
    }
}

#[derive(Debug)]
struct Blobs(Arc<Watched>);

impl BlobStore for Blobs {
    fn publish(
        &self,
        key: &BlobKey,
        sealed: &SealedFile,
        about: &About,
    ) -> Result<BlobVersion, BlobError> {
        self.0.under_way();
        self.0.blob_step("publish", key)?;
        self.0.blobs.publish(key, sealed, about)
    }

    fn publish_over(
        &self,
        key: &BlobKey,
        there: Option<&BlobVersion>,
        sealed: &SealedFile,
        about: &About,
    ) -> Result<BlobVersion, BlobError> {
        self.0.under_way();
        self.0.blob_step("publish", key)?;
        self.0.blobs.publish_over(key, there, sealed, about)
    }

    fn persist(&self, key: &BlobKey) -> Result<(), BlobError> {
        let source = || std::io::Error::other("on purpose");
        match self.0.step("persist blob") {
            true => Ok(()),
            false => Err(BlobError::Unsynced { key: key.clone(), source: source() }),
        }
    }

    fn open(
        &self,
        key: &BlobKey,
        version: &BlobVersion,
        range: Range<u64>,
    ) -> Result<Body, BlobError> {
        self.0.blobs.open(key, version, range)
    }

    fn stat(&self, key: &BlobKey) -> Result<Option<BlobMeta>, BlobError> {
        if self.0.hiding.swap(false, Ordering::SeqCst) {
            return Ok(None);
        }
        self.0.blobs.stat(key)
    }

    fn remove(&self, key: &BlobKey) -> Result<(), BlobError> {
        self.0.blob_step("remove blob", key)?;
        self.0.blobs.remove(key)?;
        if let Some(Meanwhile(happens)) = self.0.after_removal.lock().unwrap().take() {
            happens();
        }
        Ok(())
    }

    fn each(&self, visit: &mut dyn FnMut(BlobMeta) -> ControlFlow<()>) -> Result<(), BlobError> {
        self.0.blobs.each(visit)
    }
}

#[derive(Debug)]
struct Index(Arc<Watched>);

impl ArtifactIndex for Index {
    fn get(&self, key: &ArtifactKey) -> Result<Option<Entry>, IndexError> {
        self.0.index.get(key)
    }

    fn put(
        &self,
        key: &ArtifactKey,
        entry: &Entry,
        replaces: Option<u64>,
    ) -> Result<Put, IndexError> {
        self.0.index_step("put")?;
        self.0.index.put(key, entry, replaces)
    }

    fn remove(&self, key: &ArtifactKey, generation: u64) -> Result<bool, IndexError> {
        self.0.index_step("remove row")?;
        self.0.index.remove(key, generation)
    }

    fn persist(&self, _key: &ArtifactKey) -> Result<(), IndexError> {
        self.0.index_step("persist row")
    }

    fn scan(
        &self,
        query: &Scan,
        visit: &mut dyn FnMut(Row) -> ControlFlow<()>,
    ) -> Result<(), IndexError> {
        self.0.index.scan(query, visit)
    }

    fn touch(&self, uses: &[Use]) -> Result<(), IndexError> {
        self.0.index.touch(uses)
    }

    fn usage(&self) -> Result<BTreeMap<RemoteName, Usage>, IndexError> {
        self.0.index.usage()
    }

    fn least_used(
        &self,
        query: &LeastUsed,
        visit: &mut dyn FnMut(Row) -> ControlFlow<()>,
    ) -> Result<(), IndexError> {
        self.0.index.least_used(query, visit)
    }

    fn probe(&self) -> Result<(), IndexError> {
        self.0.index.probe()
    }
}

/// Some replicas over one store and one index.
struct World {
    watched: Arc<Watched>,
    replicas: Vec<Arc<Cache>>,
    target: Arc<Target>,
    staging: Staging,
    _folder: tempfile::TempDir,
}

impl World {
    fn new(keys: &str, replicas: usize, leases: Option<Arc<dyn Leases>>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let staging = Staging::open(folder.path(), 1 << 30).unwrap();
        let clock = Clock::set_by_hand(SystemTime::now());
        let watched = Arc::new(Watched::default());
        let ports = Ports {
            blobs: Arc::new(Blobs(Arc::clone(&watched))),
            index: Arc::new(Index(Arc::clone(&watched))),
            freshness: Arc::new(LocalFreshness::new(clock.clone())),
            leases: leases.unwrap_or_else(|| Arc::new(LocalLeases::new(clock.clone()))),
            staging: staging.clone(),
            clock,
        };
        let yaml = format!("remotes:\n  own:\n    type: local\n    {keys}\n");
        let around = Around { regex_size_max: 1 << 20, env: &|_| None };
        let (remotes, _) = parse(&yaml, "remotes.yaml", &around).unwrap();
        let remote = remotes.by_name.values().next().unwrap().clone();
        let target = Arc::new(Target { remote, upstream: None });
        let bounds = CacheBounds {
            fetch_threads: 1,
            fetch_queue_max: 4,
            lease_ttl: Duration::from_secs(20),
        };
        let replicas =
            (0..replicas).map(|_| Arc::new(Cache::new(ports.clone(), &bounds))).collect();
        Self { watched, replicas, target, staging, _folder: folder }
    }

    fn put(&self, replica: usize, content: &[u8]) -> Result<Uploaded, ChangeError> {
        put(&self.replicas[replica], &self.target, content)
    }

    /// In the middle of the next publish, another replica uploads this, which succeeds; then a
    /// step fails.
    fn meanwhile(&self, content: &'static [u8], failing: Option<&'static str>) {
        let (cache, target) = (Arc::clone(&self.replicas[1]), Arc::clone(&self.target));
        let watched = Arc::clone(&self.watched);
        let upload = move || {
            assert!(put(&cache, &target, content).is_ok());
            *watched.failing.lock().unwrap() = failing;
        };
        *self.watched.meanwhile.lock().unwrap() = Some(Meanwhile(Box::new(upload)));
    }

    fn get(&self) -> Result<Vec<u8>, String> {
        let cache = &self.replicas[0];
        let mut found = cache.find(&self.target, &path());
        for _ in 0..4 {
            let ready = found.map_err(|error| chain(&error))?;
            assert_eq!(ready.met.outcome, Outcome::Hit);
            let (len, digest) = (ready.met.about.len, ready.met.about.digest);
            match cache.open(&self.target, ready.bytes, len, None) {
                Ok(mut body) => {
                    let bytes = read_to_vec(&mut body, 1 << 20).unwrap();
                    assert_eq!(digest, Some(Digest::of(&bytes)), "the row fits the bytes");
                    return Ok(bytes);
                }
                Err(why) => found = cache.find_again(&self.target, &path(), why),
            }
        }
        Err("it kept changing".to_owned())
    }

    fn fail(&self, step: Option<&'static str>) {
        *self.watched.failing.lock().unwrap() = step;
    }

    fn calls(&self) -> Vec<&'static str> {
        std::mem::take(&mut *self.watched.calls.lock().unwrap())
    }

    fn blob_count(&self) -> usize {
        let mut count = 0;
        self.watched
            .blobs
            .each(&mut |_| {
                count += 1;
                ControlFlow::Continue(())
            })
            .unwrap();
        count
    }
}

fn put(cache: &Cache, target: &Target, content: &[u8]) -> Result<Uploaded, ChangeError> {
    let sealed = cache.stage(&mut &*content, Expect::default(), 1 << 20)?;
    let upload = Upload {
        content_type: None,
        content_encoding: None,
        last_modified: "Thu, 01 Jan 2026 00:00:00 GMT".to_owned(),
        precondition: &|_| true,
    };
    cache.upload(target, &path(), &sealed, upload)
}

fn path() -> ArtifactPath {
    ArtifactPath::from_canonical("dir/a").unwrap()
}

fn key() -> ArtifactKey {
    ArtifactKey { remote: "own".parse().unwrap(), path: path() }
}

#[test]
fn an_upload_is_durable_before_it_is_answered() {
    let world = World::new("allow_overwrite: true", 1, None);
    assert!(matches!(world.put(0, b"one"), Ok(Uploaded::Created(_))));
    assert_eq!(world.calls(), ["publish", "persist blob", "put", "persist row"]);
    // The answer to the first one may never have been sent.
    assert!(matches!(world.put(0, b"one"), Ok(Uploaded::Same(_))));
    assert_eq!(world.calls(), ["persist blob", "persist row"]);
    assert!(matches!(world.put(0, b"two"), Ok(Uploaded::Replaced(_))));
    assert_eq!(world.calls(), ["publish", "persist blob", "put", "persist row"]);
    let removed = world.replicas[0].purge(&world.target, &path(), &|_| true);
    assert!(matches!(removed, Ok(Purged::Removed(_))));
    // Otherwise a loss of power could bring back a row whose blob is gone.
    assert_eq!(world.calls(), ["remove row", "persist row", "remove blob"]);
}

#[test]
fn an_upload_that_fails_at_any_step_is_no_success_and_can_be_repeated() {
    for step in ["publish", "persist blob", "put", "persist row"] {
        let world = World::new("description: x", 1, None);
        world.fail(Some(step));
        assert!(world.put(0, b"one").is_err(), "{step}");
        assert_eq!(world.staging.reserved_bytes(), 0);
        world.fail(None);
        assert!(world.put(0, b"one").is_ok(), "{step}");
        assert_eq!(world.get().unwrap(), b"one", "{step}");
        assert!(matches!(world.put(0, b"two"), Err(ChangeError::Conflict(_))), "{step}");
    }
}

#[test]
fn an_overwrite_that_crashed_before_its_row_leaves_one_content_whole() {
    let world = World::new("allow_overwrite: true", 1, None);
    world.put(0, b"one").unwrap();
    world.fail(Some("put"));
    assert!(world.put(0, b"two!").is_err());
    world.fail(None);
    assert_eq!(world.get().unwrap(), b"two!");
    assert!(matches!(world.put(0, b"two!"), Ok(Uploaded::Same(_))));
}

#[test]
fn a_blob_that_is_missing_is_an_error_and_keeps_its_row() {
    let world = World::new("description: x", 1, None);
    world.put(0, b"one").unwrap();
    world.watched.blobs.remove(&BlobKey::of(&key())).unwrap();
    let why = world.get().unwrap_err();
    assert!(why.contains("missing"), "{why}");
    assert!(world.watched.index.get(&key()).unwrap().is_some());
    // Nothing is there that could be in the way.
    assert!(matches!(world.put(0, b"two"), Ok(Uploaded::Created(_))));
    assert_eq!(world.get().unwrap(), b"two");
}

#[test]
fn bytes_that_nobody_uploaded_are_served_to_nobody() {
    for (keys, overwrites) in [("description: x", false), ("allow_overwrite: true", true)] {
        let world = World::new(keys, 1, None);
        world.put(0, b"one").unwrap();
        // Another artifact's bytes under the key, and bytes that are not what they say they are.
        for (artifact, digest) in [("dir/b", b"bad"), ("dir/a", b"one")] {
            let mut staged = world.staging.begin(Expect::default()).unwrap();
            staged.append_bytes(b"bad").unwrap();
            let about = About {
                artifact: ArtifactKey {
                    path: ArtifactPath::from_canonical(artifact).unwrap(),
                    ..key()
                },
                digest: Digest::of(digest),
                content_type: None,
                content_encoding: None,
                validators: Validators::default(),
                stored_at: SystemTime::now(),
            };
            let blob = BlobKey::of(&key());
            world.watched.blobs.publish(&blob, &staged.seal().unwrap(), &about).unwrap();
            let why = world.get().unwrap_err();
            assert!(why.contains("not those that were uploaded"), "{why}");
            let row = world.watched.index.get(&key()).unwrap().expect("the row is kept");
            assert_eq!(row.digest, Digest::of(b"one"));
            // The name still means what was uploaded: that brings it back, and only that, unless
            // the remote lets it be replaced.
            if !overwrites {
                let conflict = world.put(0, b"bad").unwrap_err();
                assert!(matches!(conflict, ChangeError::Conflict(d) if d == Digest::of(b"one")));
            }
            assert!(matches!(world.put(0, b"one"), Ok(Uploaded::Same(_))));
            assert_eq!(world.get().unwrap(), b"one");
        }
        if overwrites {
            assert!(matches!(world.put(0, b"two"), Ok(Uploaded::Replaced(_))));
            assert_eq!(world.get().unwrap(), b"two");
        }
    }
}

#[test]
fn a_row_that_is_doubted_is_proven_or_refused_and_never_forgotten() {
    for (bytes, expected) in [(&b"one"[..], Some(&b"one"[..])), (b"bad", None)] {
        let world = World::new("description: x", 1, None);
        let Ok(Uploaded::Created(entry)) = world.put(0, bytes) else { panic!("it is new") };
        let doubted = Entry { unproven: true, digest: Digest::of(b"one"), ..entry.clone() };
        world.watched.index.put(&key(), &doubted, Some(entry.generation)).unwrap();
        match (world.get(), expected) {
            (Ok(bytes), Some(expected)) => assert_eq!(bytes, expected),
            (Err(why), None) => assert!(why.contains("uploaded again"), "{why}"),
            (got, _) => panic!("{got:?}"),
        }
        let row = world.watched.index.get(&key()).unwrap().expect("the row is kept");
        assert_eq!(row.unproven, expected.is_none());
    }
}

/// Each replica uploads a content of its own in the same moment; the answers, in order.
fn race(world: &World, contents: &[Vec<u8>]) -> Vec<Result<Uploaded, ChangeError>> {
    let start = std::sync::Barrier::new(contents.len());
    std::thread::scope(|scope| {
        let racing: Vec<_> = contents
            .iter()
            .enumerate()
            .map(|(replica, content)| {
                let start = &start;
                scope.spawn(move || {
                    start.wait();
                    world.put(replica, content)
                })
            })
            .collect();
        racing.into_iter().map(|one| one.join().unwrap()).collect()
    })
}

fn contents() -> Vec<Vec<u8>> {
    (0..4_u8).map(|number| vec![number; 1000 + usize::from(number)]).collect()
}

#[test]
fn of_replicas_that_race_one_wins_and_the_others_learn_its_content() {
    for _ in 0..20 {
        let (world, contents) = (World::new("description: x", 4, None), contents());
        let answers = race(&world, &contents);
        let winners: Vec<usize> = (0..4).filter(|at| answers[*at].is_ok()).collect();
        let [winner] = winners[..] else { panic!("one winner, not {answers:?}") };
        assert_eq!(world.get().unwrap(), contents[winner]);
        let digest = Digest::of(&contents[winner]);
        for (at, answer) in answers.iter().enumerate().filter(|(at, _)| *at != winner) {
            assert!(matches!(answer, Err(ChangeError::Conflict(d)) if *d == digest), "{at}");
        }
    }
}

#[test]
fn without_leases_racing_replicas_still_leave_one_content_whole() {
    for _ in 0..50 {
        let world = World::new("description: x", 4, Some(Arc::new(NoLeases)));
        let contents = contents();
        let answers = race(&world, &contents);
        let served = world.get().unwrap();
        let at = contents.iter().position(|content| *content == served).expect("one of them");
        // Who is served was not told that it lost: it succeeded, or was told to try again.
        assert!(matches!(answers[at], Ok(_) | Err(ChangeError::Busy)), "{answers:?}");
    }
}

#[test]
fn without_leases_who_fails_takes_nothing_away_from_who_succeeded() {
    for content in [&b"two"[..], b"one"] {
        let world = World::new("description: x", 2, Some(Arc::new(NoLeases)));
        world.meanwhile(b"one", Some("publish"));
        assert!(matches!(world.put(0, content), Err(ChangeError::Store(_))));
        assert_eq!(world.get().unwrap(), b"one");
    }
}

#[test]
fn without_leases_a_name_keeps_the_content_that_was_acknowledged() {
    let world = World::new("description: x", 2, Some(Arc::new(NoLeases)));
    world.meanwhile(b"one", None);
    let late = world.put(0, b"two").unwrap_err();
    assert!(matches!(late, ChangeError::Conflict(d) if d == Digest::of(b"one")), "{late:?}");
    assert_eq!(world.get().unwrap(), b"one");

    let world = World::new("description: x", 2, Some(Arc::new(NoLeases)));
    world.meanwhile(b"one", None);
    assert!(matches!(world.put(0, b"one"), Ok(Uploaded::Created(_))));
    assert_eq!(world.get().unwrap(), b"one");
}

#[test]
fn without_leases_a_late_overwrite_does_not_take_the_place_of_a_later_one() {
    let world = World::new("allow_overwrite: true", 2, Some(Arc::new(NoLeases)));
    world.put(0, b"one").unwrap();
    world.meanwhile(b"three", None);
    let late = world.put(0, b"two").unwrap_err();
    assert!(matches!(late, ChangeError::Conflict(d) if d == Digest::of(b"three")), "{late:?}");
    assert_eq!(world.get().unwrap(), b"three");
}

/// Leases that everybody is given, as when Redis forgot who had them.
#[derive(Debug)]
struct ForgottenLeases;

impl Leases for ForgottenLeases {
    fn try_acquire(&self, _: &ArtifactKey, _: Duration) -> Acquired {
        Acquired::Granted(LeaseToken("anybody's".to_owned()))
    }

    fn renew(&self, _: &ArtifactKey, _: &LeaseToken, _: Duration) -> bool {
        true
    }

    fn release(&self, _: &ArtifactKey, _: &LeaseToken) {}

    fn are_shared(&self) -> bool {
        true
    }
}

#[test]
fn who_has_a_lease_takes_nothing_away_from_who_has_none() {
    let world = World::new("description: x", 2, Some(Arc::new(ForgottenLeases)));
    world.meanwhile(b"one", None);
    let late = world.put(0, b"two").unwrap_err();
    assert!(matches!(late, ChangeError::Conflict(d) if d == Digest::of(b"one")), "{late:?}");
    assert_eq!(world.get().unwrap(), b"one");
    // A removal, whose name is uploaded again before the bytes are looked at.
    let purge = || world.replicas[0].purge(&world.target, &path(), &|_| true);
    let (cache, target) = (Arc::clone(&world.replicas[1]), Arc::clone(&world.target));
    let again = move || drop(put(&cache, &target, b"three").unwrap());
    *world.watched.after_removal.lock().unwrap() = Some(Meanwhile(Box::new(again)));
    assert!(matches!(purge(), Ok(Purged::Removed(_))));
    assert_eq!(world.get().unwrap(), b"three");
}

#[test]
fn what_may_be_on_its_way_to_a_row_is_left_until_it_is_old() {
    let world = World::new("description: x", 1, Some(Arc::new(ForgottenLeases)));
    world.fail(Some("put"));
    assert!(matches!(world.put(0, b"one"), Err(ChangeError::Index(_))));
    world.fail(None);
    assert!(matches!(world.put(0, b"two"), Err(ChangeError::Busy)));
    let purged = world.replicas[0].purge(&world.target, &path(), &|_| true);
    assert!(matches!(purged, Err(ChangeError::Busy)));
    world.replicas[0].ports.clock.advance(Duration::from_secs(61));
    assert!(matches!(world.put(0, b"two"), Ok(Uploaded::Created(_))));
    assert_eq!(world.get().unwrap(), b"two");
}

#[test]
fn what_an_upload_left_before_its_row_is_no_obstacle() {
    let world = World::new("description: x", 1, None);
    world.fail(Some("put"));
    assert!(matches!(world.put(0, b"one"), Err(ChangeError::Index(_))));
    world.fail(None);
    assert_eq!(world.blob_count(), 1);
    assert!(matches!(world.put(0, b"two"), Ok(Uploaded::Created(_))));
    assert_eq!(world.get().unwrap(), b"two");
}

#[test]
fn an_object_that_came_late_is_not_served_in_place_of_what_was_acknowledged() {
    let world = World::new("description: x", 1, None);
    world.put(0, b"one").unwrap();
    // A request to the store that was given up long ago.
    let cache = &world.replicas[0];
    let sealed = cache.stage(&mut &b"two"[..], Expect::default(), 1 << 20).unwrap();
    let about = world.watched.blobs.stat(&BlobKey::of(&key())).unwrap().unwrap().about.unwrap();
    let about = About { digest: sealed.digest(), ..about };
    world.watched.blobs.publish(&BlobKey::of(&key()), &sealed, &about).unwrap();
    let lost = world.get().unwrap_err();
    assert!(lost.contains("not those that were uploaded"), "{lost}");
    assert!(matches!(world.put(0, b"one"), Ok(Uploaded::Same(_))));
    assert_eq!(world.get().unwrap(), b"one");
    // Nor does it stay behind a removal.
    world.watched.blobs.publish(&BlobKey::of(&key()), &sealed, &about).unwrap();
    assert!(matches!(cache.purge(&world.target, &path(), &|_| true), Ok(Purged::Removed(_))));
    assert_eq!(world.blob_count(), 0);
}

#[test]
fn what_stands_in_for_lost_bytes_can_be_uploaded_again_after_a_failure() {
    let world = World::new("description: x", 1, None);
    world.put(0, b"one").unwrap();
    world.watched.blobs.remove(&BlobKey::of(&key())).unwrap();
    world.fail(Some("put"));
    assert!(matches!(world.put(0, b"two"), Err(ChangeError::Index(_))));
    world.fail(None);
    assert!(matches!(world.put(0, b"two"), Ok(Uploaded::Created(_))));
    assert_eq!(world.get().unwrap(), b"two");
}

#[test]
fn a_store_that_says_once_that_a_file_is_missing_takes_nothing_away() {
    let world = World::new("description: x", 1, None);
    world.put(0, b"one").unwrap();
    let hide = || world.watched.hiding.store(true, Ordering::SeqCst);
    hide();
    assert!(matches!(world.put(0, b"two"), Err(ChangeError::Conflict(_))));
    assert_eq!(world.get().unwrap(), b"one");
    // Nor where it then fails, and somebody tries again.
    hide();
    world.fail(Some("publish"));
    assert!(matches!(world.put(0, b"two"), Err(ChangeError::Store(_))));
    world.fail(None);
    assert!(matches!(world.put(0, b"two"), Err(ChangeError::Conflict(_))));
    assert_eq!(world.get().unwrap(), b"one");
    hide();
    assert!(world.put(0, b"one").is_ok(), "it is there");
    assert_eq!(world.get().unwrap(), b"one");
    // Who may overwrite is not told that it may not.
    let world = World::new("allow_overwrite: true", 1, None);
    world.put(0, b"one").unwrap();
    world.watched.hiding.store(true, Ordering::SeqCst);
    assert!(matches!(world.put(0, b"two"), Err(ChangeError::Busy)));
    assert!(matches!(world.put(0, b"two"), Ok(Uploaded::Replaced(_))));
}

#[test]
fn bytes_that_did_not_reach_the_disk_are_not_taken_for_an_upload_that_did() {
    let world = World::new("allow_overwrite: true", 1, None);
    world.put(0, b"one").unwrap();
    world.fail(Some("persist blob"));
    assert!(matches!(world.put(0, b"two"), Err(ChangeError::Store(_))));
    world.fail(None);
    world.calls();
    world.put(0, b"two").unwrap();
    assert!(world.calls().contains(&"publish"), "a second sync alone proves nothing");
    assert_eq!(world.get().unwrap(), b"two");
}

#[test]
fn what_is_left_goes_only_for_who_meant_it() {
    let world = World::new("description: x", 1, None);
    world.fail(Some("put"));
    world.put(0, b"one").unwrap_err();
    world.fail(None);
    let cache = &world.replicas[0];
    let purged = cache.purge(&world.target, &path(), &|current| current.is_some());
    assert!(matches!(purged, Err(ChangeError::Precondition)));
    assert_eq!(world.blob_count(), 1);
}

#[test]
fn a_removal_that_may_have_failed_says_so_and_can_be_repeated() {
    let world = World::new("description: x", 1, None);
    world.put(0, b"one").unwrap();
    let purge = || world.replicas[0].purge(&world.target, &path(), &|_| true);
    world.fail(Some("remove blob"));
    assert!(matches!(purge(), Err(ChangeError::Store(_))));
    assert!(matches!(purge(), Err(ChangeError::Store(_))));
    world.fail(None);
    assert!(matches!(purge(), Ok(Purged::Forgotten)));
    assert_eq!(world.blob_count(), 0);
    assert!(matches!(purge(), Ok(Purged::Absent)));
}

#[test]
fn who_reads_during_an_overwrite_gets_one_content_whole() {
    let world = World::new("allow_overwrite: true", 1, None);
    world.put(0, b"one").unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..200 {
                world.put(0, if round % 2 == 0 { b"two!" } else { b"one" }).unwrap();
            }
            done.store(true, Ordering::SeqCst);
        });
        while !done.load(Ordering::SeqCst) {
            let bytes = world.get().unwrap();
            assert!(bytes == b"one" || bytes == b"two!", "{bytes:?}");
        }
    });
}
