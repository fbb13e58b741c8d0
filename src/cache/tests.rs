//! The cache over backends in memory and a scripted upstream.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime};

use super::sweep::Swept;
use super::upkeep::tests::{MeddledBlobs, Meddling};
use super::*;
use crate::artifact::{Digest, Validators};
use crate::blob::TierCounters;
use crate::blob::memory::MemoryBlobs;
use crate::blob::small::SmallBlobs;
use crate::body::read_to_vec;
use crate::config::Remotes;
use crate::config::file::{Around, parse};
use crate::coord::local::{LocalFreshness, LocalLeases};
use crate::coord::{Acquired, LeaseToken};
use crate::index::Scan;
use crate::index::memory::MemoryIndex;
use crate::staging::Expect;
use crate::upstream::scripted::{File, Gate, Scripted, refused, status};
use crate::upstream::{Part, UpstreamHead, UpstreamReply, UpstreamRequest};

const MIB: usize = 1 << 20;

/// A cache with everything that a test may want to look at.
struct World {
    cache: Arc<Cache>,
    clock: Clock,
    upstream: Scripted,
    target: Arc<Target>,
    staging: Staging,
    ports: Ports,
    _folder: Arc<tempfile::TempDir>,
}

/// A remote of generic files: `index/` is mutable, everything else immutable.
pub(super) const GENERIC: &str = "package: generic\n    mutable_patterns: ['^index/']";

pub(super) fn remotes(keys: &str, lifetimes: &str) -> Remotes {
    let yaml = format!(
        "remotes:\n  r:\n    base_url: https://files.example.org\n    type: remote\n    include_patterns: ['.']\n    {keys}\n    cache: {{ file_ttl: 0, {lifetimes} }}\n"
    );
    let around = Around { regex_size_max: 1 << 20, env: &|_| None };
    parse(&yaml, "remotes.yaml", &around).expect("the test's configuration is right").0
}

impl World {
    fn new(upstream: Scripted) -> Self {
        Self::with(upstream, GENERIC, 1 << 30)
    }

    fn with(upstream: Scripted, keys: &str, staging_bytes_max: u64) -> Self {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        let clock = Clock::set_by_hand(SystemTime::now());
        let ports = memory_ports(folder.path(), staging_bytes_max, &clock);
        let staging = ports.staging.clone();
        let remotes = remotes(keys, "index_ttl: 100, negative_ttl: 10");
        let remote = remotes.by_name.values().next().expect("there is one").clone();
        let target = Target { remote, upstream: Some(Arc::new(upstream.clone())) };
        let cache = replica(&ports);
        let remotes = Arc::new(remotes);
        cache.space().govern(space::SpacePlan { remotes, ..Default::default() });
        Self { cache, clock, upstream, target: Arc::new(target), staging, ports, _folder: folder }
    }

    fn path(path: &str) -> ArtifactPath {
        ArtifactPath::from_canonical(path).unwrap()
    }

    fn find(&self, path: &str) -> Result<Found, CacheError> {
        self.cache.find(&self.target, &Self::path(path))
    }

    /// What a client gets: how it was met and the bytes.
    fn get(&self, path: &str) -> Result<(Outcome, Vec<u8>), String> {
        get(&self.cache, &self.target, path)
    }

    #[track_caller]
    fn check(&self, path: &str, outcome: Outcome, bytes: &[u8]) {
        let (met, got) = self.get(path).unwrap_or_else(|error| panic!("{path}: {error}"));
        assert_eq!(met, outcome, "{path}");
        assert!(got == bytes, "{path}: {} bytes, {} expected", got.len(), bytes.len());
    }

    /// The same, and what was fetched for it is stored then.
    #[track_caller]
    fn check_settled(&self, path: &str, outcome: Outcome, body: &str) {
        self.check(path, outcome, body.as_bytes());
        self.settle();
    }

    /// Waits until every fetch has landed, and holds what must be true then.
    #[track_caller]
    fn settle(&self) {
        wait_until(|| self.cache.flight_count() == 0);
        wait_until(|| self.staging.reserved_bytes() == 0);
    }

    /// The flight of a path, which there must be.
    fn flight(&self, path: &str) -> FlightReader {
        let key = ArtifactKey { remote: self.target.remote.name.clone(), path: Self::path(path) };
        match self.cache.flights.join(&key, None) {
            Joined::Follow(reader) => reader,
            Joined::Lead(_) => panic!("nobody fetches {path}"),
        }
    }

    fn stored(&self, path: &str) -> Option<Entry> {
        let key = ArtifactKey { remote: self.target.remote.name.clone(), path: Self::path(path) };
        self.ports.index.get(&key).unwrap()
    }
}

/// As a client that waits as long as it takes.
impl Cache {
    pub(super) fn find(&self, target: &Target, path: &ArtifactPath) -> Result<Found, CacheError> {
        found(self.seek(target, path, Duration::MAX))
    }

    pub(super) fn find_again(
        &self,
        target: &Target,
        path: &ArtifactPath,
        why: OpenError,
    ) -> Result<Found, CacheError> {
        found(self.recover(target, path, why, Duration::MAX))
    }
}

fn found(sought: Result<Sought, CacheError>) -> Result<Found, CacheError> {
    match sought? {
        Sought::Found(found) => Ok(found),
        Sought::Boarding(boarding) => panic!("its patience has run out: {boarding:?}"),
    }
}

/// Backends in memory, and staging in a folder.
pub(super) fn memory_ports(folder: &Path, staging_bytes_max: u64, clock: &Clock) -> Ports {
    Ports {
        blobs: Arc::new(MemoryBlobs::new()),
        index: Arc::new(MemoryIndex::new()),
        freshness: Arc::new(LocalFreshness::new(clock.clone())),
        leases: Arc::new(LocalLeases::new(clock.clone())),
        staging: Staging::open(folder, staging_bytes_max).unwrap(),
        clock: clock.clone(),
    }
}

pub(super) fn replica(ports: &Ports) -> Arc<Cache> {
    let bounds =
        CacheBounds { fetch_threads: 4, fetch_queue_max: 4, lease_ttl: Duration::from_secs(20) };
    Arc::new(Cache::new(ports.clone(), &bounds))
}

pub(super) fn get(
    cache: &Cache,
    target: &Target,
    path: &str,
) -> Result<(Outcome, Vec<u8>), String> {
    let found = cache.find(target, &World::path(path)).map_err(|error| chain(&error))?;
    let len = found.met.about.len;
    let outcome = found.met.outcome;
    let mut body = cache.open(target, found.bytes, len, None).map_err(|error| chain(&error))?;
    let bytes = read_to_vec(&mut body, 64 * MIB).map_err(|error| chain(&error))?;
    Ok((outcome, bytes))
}

#[track_caller]
pub(super) fn wait_until(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "it did not come to pass within 20 s");
        thread::yield_now();
    }
}

pub(super) fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n.wrapping_mul(31) >> 3) as u8).collect()
}

#[test]
fn a_miss_is_stored_and_the_next_request_is_a_hit() {
    let body = bytes(3 * MIB + 7);
    let world = World::new(Scripted::new().file("a.bin", File::of(body.clone()).etag("\"v1\"")));
    world.check("a.bin", Outcome::Miss, &body);
    world.settle();
    world.check("a.bin", Outcome::Hit, &body);
    assert_eq!(world.upstream.count("a.bin"), 1);
    let about = world.find("a.bin").unwrap().met.about;
    assert_eq!(about.digest, Some(Digest::of(&body)));
    assert_eq!(about.validators.etag.as_deref(), Some("\"v1\""));
}

#[test]
fn an_empty_file_and_one_of_unknown_length_are_stored_too() {
    let body = bytes(MIB);
    let upstream = Scripted::new()
        .file("empty", File::of(""))
        .file("chunked", File::of(body.clone()).chunked());
    let world = World::new(upstream);
    for (path, body) in [("empty", &Vec::new()), ("chunked", &body)] {
        world.check(path, Outcome::Miss, body);
        world.settle();
        world.check(path, Outcome::Hit, body);
    }
}

#[test]
fn a_herd_costs_one_fetch_and_everybody_gets_every_byte() {
    let body = bytes(2 * MIB);
    let gate = Gate::at(1000);
    let world = World::new(Scripted::new().file("a", File::of(body.clone()).held_by(&gate)));
    let clients: Vec<_> = (0..16)
        .map(|_| {
            let (cache, target) = (Arc::clone(&world.cache), Arc::clone(&world.target));
            thread::spawn(move || get(&cache, &target, "a").unwrap())
        })
        .collect();
    gate.wait_until_held();
    gate.open();
    let met: Vec<_> = clients
        .into_iter()
        .map(|client| {
            let (outcome, got) = client.join().unwrap();
            assert!(got == body);
            outcome
        })
        .collect();
    assert_eq!(met.iter().filter(|outcome| **outcome == Outcome::Miss).count(), 1, "{met:?}");
    assert_eq!(world.upstream.count("a"), 1);
}

#[test]
fn the_first_bytes_are_read_before_the_last_ones_come() {
    let body = bytes(MIB);
    let gate = Gate::at(1000);
    let world = World::new(Scripted::new().file("a", File::of(body.clone()).held_by(&gate)));
    let found = world.find("a").unwrap();
    let mut stream = world.cache.open(&world.target, found.bytes, Some(MIB as u64), None).unwrap();
    let first = stream.next_piece().unwrap().unwrap().len();
    assert!((1..=1000).contains(&first), "{first}");
    // The client leaves; the fetch goes on to its end.
    drop(stream);
    gate.open();
    world.settle();
    world.check("a", Outcome::Hit, &body);
    assert_eq!(world.upstream.count("a"), 1);
}

#[test]
fn a_mutable_file_is_revalidated_once_its_time_is_over() {
    let world = World::new(Scripted::new().file("index/a", File::of("one").etag("\"1\"")));
    world.check("index/a", Outcome::Miss, b"one");
    world.settle();
    world.check("index/a", Outcome::Hit, b"one");
    world.clock.advance(Duration::from_secs(101));
    world.check("index/a", Outcome::Revalidated, b"one");
    world.check("index/a", Outcome::Hit, b"one");
    assert_eq!(world.upstream.count("index/a"), 2);
    world.upstream.put("index/a", File::of("two").etag("\"2\""));
    world.clock.advance(Duration::from_secs(101));
    world.check("index/a", Outcome::Miss, b"two");
    world.settle();
    world.check("index/a", Outcome::Hit, b"two");
    let asked = world.upstream.requests();
    assert_eq!(asked[1].unless.as_ref().unwrap().etag.as_deref(), Some("\"1\""));
    assert_eq!(asked[2].unless.as_ref().unwrap().etag.as_deref(), Some("\"1\""));
}

#[test]
fn who_joins_a_revalidation_is_served_from_the_store_too() {
    let file = File::of("one").etag("\"1\"");
    let world = World::new(Scripted::new().file("index/a", file.clone()));
    world.check("index/a", Outcome::Miss, b"one");
    world.settle();
    world.clock.advance(Duration::from_secs(101));
    let gate = Gate::at(0);
    world.upstream.put("index/a", file.head_held_by(&gate));
    let client = || {
        let (cache, target) = (Arc::clone(&world.cache), Arc::clone(&world.target));
        thread::spawn(move || get(&cache, &target, "index/a").unwrap())
    };
    let leads = client();
    world.upstream.wait_for("index/a", 2);
    let follows = client();
    wait_until(|| world.flight("index/a").is_urgent());
    gate.open();
    for client in [leads, follows] {
        assert_eq!(client.join().unwrap(), (Outcome::Revalidated, b"one".to_vec()));
    }
    assert_eq!(world.upstream.count("index/a"), 2);
}

#[test]
fn a_stale_copy_stands_in_for_an_upstream_that_fails_but_not_for_one_that_means_it() {
    let world = World::new(Scripted::new().file("index/a", File::of("one").etag("\"1\"")));
    world.check("index/a", Outcome::Miss, b"one");
    world.settle();
    world.upstream.go_down();
    world.clock.advance(Duration::from_millis(100_500));
    world.check("index/a", Outcome::Stale, b"one");
    assert_eq!(world.find("index/a").unwrap().met.ttl_s, Some(-1));
    world.clock.advance(Duration::from_millis(49_500));
    world.check("index/a", Outcome::Stale, b"one");
    assert_eq!(world.find("index/a").unwrap().met.ttl_s, Some(-50));
    world.upstream.come_back();
    let upstream = world.upstream.clone().on("index/a", |_, _| Err(status(503)));
    world.check("index/a", Outcome::Stale, b"one");
    let upstream = upstream.on("index/a", |_, _| Err(status(401)));
    assert!(world.get("index/a").unwrap_err().contains("401"));
    upstream.remove("index/a");
    assert!(matches!(world.find("index/a"), Err(CacheError::Absent)));
}

#[test]
fn absence_is_remembered_for_a_while() {
    let world = World::new(Scripted::new());
    assert!(matches!(world.find("a"), Err(CacheError::Absent)));
    assert!(matches!(world.find("a"), Err(CacheError::Absent)));
    assert_eq!(world.upstream.count("a"), 1);
    world.upstream.put("a", File::of("now"));
    world.clock.advance(Duration::from_secs(11));
    world.check("a", Outcome::Miss, b"now");
}

#[test]
fn a_cut_body_goes_on_where_it_broke_off() {
    let body = bytes(MIB);
    let file = File::of(body.clone())
        .etag("\"v1\"")
        .broken_at(1000, ErrorKind::ConnectionReset)
        .broken_at(500_000, ErrorKind::UnexpectedEof);
    let world = World::new(Scripted::new().file("a", file));
    world.check("a", Outcome::Miss, &body);
    world.settle();
    world.check("a", Outcome::Hit, &body);
    let parts: Vec<_> = world.upstream.requests().into_iter().map(|asked| asked.part).collect();
    assert_eq!(parts.len(), 3);
    let part = parts[1].as_ref().unwrap();
    assert_eq!((part.from, part.of.as_deref()), (1000, Some("\"v1\"")));
}

#[test]
fn a_body_that_changed_while_it_was_cut_is_not_patched_together() {
    let (old, new) = (bytes(MIB), vec![1; MIB]);
    let file = File::of(old).etag("\"v1\"").broken_at(1000, ErrorKind::ConnectionReset);
    let world = World::new(Scripted::new());
    let fresh = File::of(new.clone()).etag("\"v2\"");
    let world_upstream = world.upstream.clone().on("a", {
        let fresh = fresh.clone();
        move |request, nth| if nth == 1 { file.answer(request) } else { fresh.answer(request) }
    });
    assert!(world.get("a").is_err());
    world.settle();
    assert_eq!(world.stored("a"), None);
    assert_eq!(world_upstream.count("a"), 2);
    world.check("a", Outcome::Miss, &new);
}

#[test]
fn a_cut_body_goes_on_only_with_what_names_the_same_version() {
    let (old, new) = (vec![b'o'; 2000], vec![b'n'; 2000]);
    let long_ago = "Thu, 01 Jan 2015 00:00:00 GMT";
    let just_now = httpdate::fmt_http_date(SystemTime::now());
    let file = |bytes: &[u8]| File::of(bytes.to_vec());
    let strong = || file(&old).etag("\"e\"").last_modified(long_ago);
    let weak = || file(&old).etag("W/\"e\"").last_modified(long_ago);
    let dated = || file(&old).last_modified(long_ago);
    // What the whole said of itself, what the part says, and whether they are one.
    let cases = [
        (strong(), file(&old).etag("\"e\""), true),
        (strong(), file(&new).etag("W/\"other\""), false),
        (strong(), file(&new).last_modified(long_ago), false),
        (strong(), file(&new), false),
        (weak(), weak(), true),
        (weak(), file(&new).etag("W/\"other\"").last_modified(long_ago), false),
        (dated(), dated(), true),
        // An answer to If-Range may leave the date out (RFC 9110, section 15.3.7).
        (dated(), file(&old), true),
        (dated(), file(&new).last_modified("Thu, 01 Jan 2015 00:00:01 GMT"), false),
        // A date of this moment does not tell two versions apart (section 8.8.2.2).
        (file(&old).last_modified(&just_now), file(&new).last_modified(&just_now), false),
    ];
    for (number, (whole, part, is_one)) in cases.into_iter().enumerate() {
        let whole = whole.broken_at(1000, ErrorKind::ConnectionReset);
        let world = World::new(Scripted::new().on("a", move |request, nth| match nth {
            1 => whole.answer(request),
            // Whatever it is asked for, it has that version of the part.
            _ => {
                let part_only = request.part.as_ref().map(|part| Part { of: None, ..*part });
                part.answer(&UpstreamRequest { part: part_only, ..*request })
            }
        }));
        match world.get("a") {
            Ok((_, got)) => assert!(is_one && got == old, "case {number}"),
            Err(error) => assert!(!is_one, "case {number}: {error}"),
        }
        world.settle();
        assert_eq!(world.stored("a").is_some(), is_one, "case {number}");
    }
}

#[test]
fn a_304_that_names_another_version_confirms_nothing() {
    let dates = ["Thu, 01 Jan 2015 00:00:00 GMT", "Thu, 01 Jan 2015 00:00:01 GMT"];
    let tagged = |tag: &str| Validators { etag: Some(tag.to_owned()), last_modified: None };
    let dated = |at: usize| Validators { etag: None, last_modified: Some(dates[at].to_owned()) };
    let both = |tag: &str, at: usize| Validators { etag: Some(tag.to_owned()), ..dated(at) };
    // What is stored, what the 304 says, and whether it confirms that (RFC 9111, section 4.3.4).
    let cases = [
        (tagged("\"1\""), tagged("\"1\""), true),
        (tagged("\"1\""), tagged("\"2\""), false),
        (tagged("\"1\""), tagged("W/\"1\""), true),
        (tagged("W/\"1\""), tagged("W/\"2\""), false),
        (tagged("\"1\""), Validators::default(), true),
        (both("\"1\"", 0), both("\"1\"", 1), true),
        (both("\"1\"", 0), dated(1), false),
        (dated(0), dated(0), true),
        (dated(0), dated(1), false),
        (dated(0), both("\"1\"", 0), true),
        (dated(0), tagged("\"1\""), false),
    ];
    for (number, (stored, told, confirms)) in cases.into_iter().enumerate() {
        let versions = [b"one", b"two"].map(|bytes| {
            let mut file = File::of(bytes.to_vec());
            if let Some(etag) = &stored.etag {
                file = file.etag(etag);
            }
            match &stored.last_modified {
                Some(date) => file.last_modified(date),
                None => file,
            }
        });
        let world = World::new(Scripted::new().on("index/a", move |request, nth| {
            match (nth, request.unless) {
                (1, _) => versions[0].answer(request),
                (_, None) => versions[1].answer(request),
                (_, Some(_)) => Ok(UpstreamReply::NotModified(UpstreamHead {
                    validators: told.clone(),
                    ..UpstreamHead::default()
                })),
            }
        }));
        world.check("index/a", Outcome::Miss, b"one");
        world.settle();
        world.clock.advance(Duration::from_secs(101));
        let (_, got) = world.get("index/a").unwrap();
        let wanted: &[u8] = if confirms { b"one" } else { b"two" };
        assert_eq!(got, wanted, "case {number}");
        world.settle();
        assert_eq!(world.upstream.count("index/a"), if confirms { 2 } else { 3 }, "case {number}");
    }
}

#[test]
fn a_cut_that_cannot_be_mended_is_an_error_for_everybody_and_leaves_nothing() {
    let body = bytes(MIB);
    let file = File::of(body.clone()).broken_at(600_000, ErrorKind::UnexpectedEof);
    let world = World::new(Scripted::new().file("a", file));
    let error = world.get("a").unwrap_err();
    assert!(error.contains("broke off"), "{error}");
    world.settle();
    assert_eq!(world.stored("a"), None);
    world.check("a", Outcome::Miss, &body);
}

#[test]
fn a_body_shorter_than_announced_is_an_error_and_not_kept() {
    let short = File::of(bytes(MIB)).announced_as(MIB as u64 + 5);
    let world = World::new(Scripted::new().file("short", short));
    assert!(world.get("short").is_err());
    world.settle();
    assert_eq!(world.stored("short"), None);
}

#[test]
fn a_body_that_only_the_connection_ends_is_served_and_not_kept() {
    let body = bytes(MIB);
    let world = World::new(Scripted::new().file("a", File::of(body.clone()).until_closed()));
    world.check("a", Outcome::Miss, &body);
    world.settle();
    assert_eq!(world.stored("a"), None);
}

#[test]
fn a_name_that_carries_its_checksum_is_held_against_the_bytes() {
    let good = bytes(300_000);
    let path = format!("repodata/{}-primary.xml.gz", Digest::of(&good));
    let world =
        World::with(Scripted::new().file(&path, File::of("wrong")), "package: rpm", 1 << 30);
    let error = world.get(&path).unwrap_err();
    assert!(error.contains("checksum"), "{error}");
    let mut wrong_at_the_end = good.clone();
    *wrong_at_the_end.last_mut().unwrap() ^= 1;
    world.upstream.put(&path, File::of(wrong_at_the_end));
    assert!(world.get(&path).is_err());
    world.settle();
    assert_eq!(world.stored(&path), None);
    world.upstream.put(&path, File::of(good.clone()));
    world.check(&path, Outcome::Miss, &good);
}

#[test]
fn a_client_of_a_checked_body_never_gets_its_end_before_it_is_known_to_be_right() {
    let good = bytes(300_000);
    let path = format!("repodata/{}-primary.xml.gz", Digest::of(&good));
    let mut wrong = good.clone();
    wrong[0] ^= 1;
    let world = World::with(Scripted::new().file(&path, File::of(wrong)), "package: rpm", 1 << 30);
    let mut given = 0;
    // The fetch may fail before the client has found it, or while it reads along.
    if let Ok(Found { met, bytes }) = world.find(&path)
        && let Ok(mut body) = world.cache.open(&world.target, bytes, met.about.len, None)
    {
        while let Ok(Some(piece)) = body.next_piece() {
            given += piece.len();
        }
    }
    assert!(given <= 300_000 - flight::HOLD_BACK_BYTES, "{given} bytes were given");
}

#[test]
fn what_is_too_large_or_finds_no_room_is_served_unstored() {
    let body = bytes(2 * MIB);
    let large = World::with(
        Scripted::new().file("a", File::of(body.clone())),
        "package: generic\n    max_bytes: 1Mi",
        1 << 30,
    );
    let (_, got) = large.get("a").unwrap();
    assert!(got == body);
    large.settle();
    assert_eq!(large.stored("a"), None);
    let full = World::with(Scripted::new().file("a", File::of(body.clone())), GENERIC, MIB as u64);
    full.check("a", Outcome::Pass, &body);
    full.settle();
    assert_eq!(full.stored("a"), None);
}

#[test]
fn what_is_read_along_takes_its_room_until_its_readers_have_gone() {
    let body = bytes(MIB);
    let upstream = Scripted::new().file("held", body.clone()).file("other", body.clone());
    // Neither is stored.
    let keys = "package: generic\n    max_bytes: 1000";
    let world = World::with(upstream, keys, 3 * MIB as u64 / 2);
    let found = world.find("held").unwrap();
    let mut reader = world.cache.open(&world.target, found.bytes, Some(MIB as u64), None).unwrap();
    wait_until(|| world.cache.flight_count() == 0);
    world.check("other", Outcome::Pass, &body);
    assert_eq!(read_to_vec(&mut reader, MIB).unwrap(), body);
    drop(reader);
    world.check("other", Outcome::Miss, &body);
    world.settle();
}

#[test]
fn what_finds_no_room_in_mid_body_is_passed_through_where_nothing_was_sent_and_the_next_time() {
    let body = bytes(2 * MIB);
    let gate = Gate::at(1000);
    let file = File::of(body.clone()).chunked();
    let held = file.clone().held_by(&gate);
    let upstream =
        Scripted::new().on(
            "a",
            move |request, nth| {
                if nth == 1 { held.answer(request) } else { file.answer(request) }
            },
        );
    let world = World::with(upstream, GENERIC, MIB as u64);
    let found = world.find("a").unwrap();
    assert_eq!(found.met.outcome, Outcome::Miss);
    gate.open();
    // As for a range or a digest.
    let found = world.cache.settle(&world.target, found).unwrap();
    assert_eq!(found.met.outcome, Outcome::Pass);
    drop(found);
    world.settle();
    assert_eq!(world.upstream.count("a"), 2);
    world.check("a", Outcome::Pass, &body);
    assert_eq!(world.upstream.count("a"), 3, "it was not fetched in vain once more");
    world.clock.advance(Duration::from_secs(60));
    world.upstream.put("a", "small");
    world.check("a", Outcome::Miss, b"small");
}

#[test]
fn a_stale_copy_stands_in_where_what_found_no_room_cannot_be_passed_through() {
    let large = File::of(bytes(2 * MIB)).chunked();
    let world = World::with(Scripted::new().file("index/a", "one"), GENERIC, MIB as u64);
    world.check("index/a", Outcome::Miss, b"one");
    world.settle();
    world.clock.advance(Duration::from_secs(150));
    world.upstream.put("index/a", large);
    // Cut or passed through, as the first bytes came before the room ended or not.
    let _ = world.get("index/a");
    world.settle();
    assert_eq!(world.find("index/a").unwrap().met.outcome, Outcome::Pass);
    world.upstream.go_down();
    world.check("index/a", Outcome::Stale, b"one");
}

#[test]
fn a_new_body_for_a_stored_copy_is_told_from_a_first_one() {
    let world = World::new(Scripted::new().file("index/a", File::of("one").etag("\"1\"")));
    for (body, is_refresh) in [("one", false), ("two", true), ("three", true)] {
        world.upstream.put("index/a", body);
        let found = world.find("index/a").unwrap();
        assert_eq!((found.met.outcome, found.met.is_refresh), (Outcome::Miss, is_refresh));
        let settled = world.cache.settle(&world.target, found).unwrap();
        assert_eq!((settled.met.is_stored, settled.met.is_refresh), (true, is_refresh));
        drop(settled);
        world.settle();
        assert!(!world.find("index/a").unwrap().met.is_refresh);
        world.clock.advance(Duration::from_secs(150));
    }
}

#[test]
fn a_passed_body_that_is_cut_goes_on_where_it_broke_off() {
    let body = bytes(MIB);
    // The first answer finds no room, the second one is passed through.
    let cut = || {
        let file = File::of(body.clone()).broken_at(600_000, ErrorKind::ConnectionReset);
        file.broken_at(600_000, ErrorKind::ConnectionReset)
    };
    let upstream = Scripted::new().file("strong", cut().etag("\"v1\"")).file("none", cut());
    let world = World::with(upstream, GENERIC, 1000);
    world.check("strong", Outcome::Pass, &body);
    let part = world.upstream.requests().pop().unwrap().part.unwrap();
    assert_eq!((part.from, part.of.as_deref()), (600_000, Some("\"v1\"")));
    let found = world.find("none").unwrap();
    let range = Some(700_000..700_001);
    let why = world.cache.open(&world.target, found.bytes, Some(MIB as u64), range).unwrap_err();
    assert!(chain(&why).contains("after 600000 bytes"), "{}", chain(&why));
}

#[test]
fn what_the_head_shows_to_be_too_large_is_not_said_to_be_stored() {
    for (keys, bytes_max) in [("max_bytes: 1000", None), ("description: x", Some(1000))] {
        let world = World::with(
            Scripted::new()
                .file("large", File::of(bytes(1001)))
                .file("unannounced", File::of(bytes(1001)).chunked())
                .file("small", File::of(bytes(1000))),
            &format!("package: generic\n    {keys}"),
            1 << 30,
        );
        let remotes = world.cache.space().plan().remotes;
        world.cache.space().govern(space::SpacePlan { bytes_max, remotes, ..Default::default() });
        for (path, at_once, settled) in
            [("large", false, false), ("unannounced", true, false), ("small", true, true)]
        {
            let found = world.find(path).unwrap();
            assert_eq!(found.met.is_stored, at_once, "{path}");
            // Who waits for the end learns what became of it.
            let found = world.cache.settle(&world.target, found).unwrap();
            assert_eq!(found.met.is_stored, settled, "{path}");
            drop(found);
            world.settle();
            assert_eq!(world.stored(path).is_some(), settled, "{path}");
        }
    }
}

#[test]
fn an_index_is_fresh_from_upstreams_answer_on() {
    let gate = Gate::at(1);
    let world = World::new(Scripted::new().file("index/a", File::of("one").held_by(&gate)));
    let found = world.find("index/a").unwrap();
    world.clock.advance(Duration::from_secs(60));
    gate.open();
    drop(found);
    world.settle();
    // Of its 100 seconds.
    world.clock.advance(Duration::from_secs(39));
    world.check("index/a", Outcome::Hit, b"one");
    world.clock.advance(Duration::from_secs(2));
    world.check("index/a", Outcome::Miss, b"one");
}

#[test]
fn what_was_only_hashed_is_a_hit() {
    let world = World::new(Scripted::new().file("a", File::of("a")));
    world.check("a", Outcome::Miss, b"a");
    world.settle();
    let entry = world.stored("a").unwrap();
    let doubted = Entry { unproven: true, ..entry.clone() };
    let key = ArtifactKey { remote: world.target.remote.name.clone(), path: World::path("a") };
    world.ports.index.put(&key, &doubted, Some(entry.generation)).unwrap();
    world.check("a", Outcome::Hit, b"a");
    assert!(!world.stored("a").unwrap().unproven);
    assert_eq!(world.upstream.count("a"), 1);
}

#[test]
fn what_is_passed_through_does_not_look_whole_where_it_is_not_what_its_name_says() {
    let right = bytes(3 * MIB);
    let wrong = [&right[1..], b"x"].concat();
    let path = format!("repodata/{}-primary.xml.gz", Digest::of(&right));
    for (body, is_right) in [(&right, true), (&wrong, false)] {
        for file in [File::of(body.clone()), File::of(body.clone()).chunked()] {
            let world = World::with(Scripted::new().file(&path, file), "package: rpm", MIB as u64);
            let found = world.cache.pass(&world.target, world.target.key(World::path(&path)), None);
            let found = found.unwrap();
            let opened = world.cache.open(&world.target, found.bytes, found.met.about.len, None);
            let (mut body_given, mut given) = (opened.unwrap(), 0);
            let end = loop {
                match body_given.next_piece() {
                    Ok(Some(piece)) => given += piece.len(),
                    Ok(None) => break true,
                    Err(_) => break false,
                }
            };
            assert_eq!((end, given == body.len() as u64), (is_right, is_right));
            assert!(given > MIB as u64, "only the last piece is held back");
        }
    }
}

#[test]
fn a_range_of_what_only_its_flight_can_prove_waits_for_that() {
    let body = bytes(8 * MIB);
    let path = format!("repodata/{}-primary.xml.gz", Digest::of(&body));
    let gate = Gate::at(2 * MIB as u64);
    let file = File::of(body).etag("\"v1\"").held_by(&gate);
    let world = World::with(Scripted::new().file(&path, file), "package: rpm", 1 << 30);
    let found = world.find(&path).unwrap();
    let range = 6 * MIB as u64..7 * MIB as u64;
    assert!(found.bytes.is_far_ahead(range.start));
    assert!(world.cache.open_ahead(&world.target, &found.bytes, &range).is_none());
    drop(found);
    gate.open();
    world.settle();
}

#[test]
fn what_cannot_be_read_to_be_proven_is_not_forgotten() {
    let world = World::new(Scripted::new().file("a", File::of("a")));
    world.check_settled("a", Outcome::Miss, "a");
    let meddling = Arc::new(Meddling::default());
    let blobs = MeddledBlobs(Arc::clone(&world.ports.blobs), Arc::clone(&meddling));
    let cache = replica(&Ports { blobs: Arc::new(blobs), ..world.ports.clone() });
    let entry = world.stored("a").unwrap();
    let doubted = Entry { unproven: true, ..entry.clone() };
    let key = ArtifactKey { remote: world.target.remote.name.clone(), path: World::path("a") };
    world.ports.index.put(&key, &doubted, Some(entry.generation)).unwrap();
    let is_away = |is_away| *meddling.store_is_away.lock().unwrap() = is_away;
    is_away(true);
    world.upstream.go_down();
    assert!(get(&cache, &world.target, "a").is_err());
    wait_until(|| cache.flight_count() == 0);
    is_away(false);
    let hit = get(&cache, &world.target, "a").unwrap();
    assert_eq!(hit, (Outcome::Hit, b"a".to_vec()));
}

#[test]
fn a_range_far_ahead_of_a_fill_does_not_wait_for_it() {
    let body = bytes(8 * MIB);
    let gate = Gate::at(1000);
    let file = File::of(body.clone()).etag("\"v1\"");
    let held = file.clone().held_by(&gate);
    let world = World::new(Scripted::new().on("a", move |request, _| {
        if request.part.is_some() { file.answer(request) } else { held.answer(request) }
    }));
    let found = world.find("a").unwrap();
    let (from, to) = (6 * MIB as u64, 6 * MIB as u64 + 100);
    assert!(found.bytes.is_far_ahead(from) && !found.bytes.is_far_ahead(MIB as u64));
    let mut part = world.cache.open_ahead(&world.target, &found.bytes, &(from..to)).unwrap();
    drop(found);
    assert_eq!(read_to_vec(&mut part, MIB).unwrap(), body[from as usize..to as usize]);
    gate.open();
    world.settle();
    world.check("a", Outcome::Hit, &body);
}

#[test]
fn a_member_is_asked_for_again_once_its_head_has_changed() {
    let (head, member) = ("repodata/repomd.xml", "repodata/primary.xml.gz");
    let upstream = Scripted::new()
        .file(head, File::of("head 1").etag("\"h1\""))
        .file(member, File::of("member 1").etag("\"m1\""));
    let world = World::with(upstream, "package: rpm", 1 << 30);
    world.check_settled(head, Outcome::Miss, "head 1");
    world.check_settled(member, Outcome::Miss, "member 1");
    world.check_settled(member, Outcome::Hit, "member 1");
    world.clock.advance(Duration::from_secs(60));
    world.upstream.put(head, File::of("head 2").etag("\"h2\""));
    world.upstream.put(member, File::of("member 2").etag("\"m2\""));
    world.check_settled(member, Outcome::Hit, "member 1");
    world.clock.advance(Duration::from_secs(60));
    world.check_settled(head, Outcome::Miss, "head 2");
    world.check_settled(member, Outcome::Miss, "member 2");
    world.check_settled(member, Outcome::Hit, "member 2");
}

#[test]
fn a_member_whose_fetch_began_before_its_head_changed_belongs_to_the_old_head() {
    let (head, member) = ("repodata/repomd.xml", "repodata/primary.xml.gz");
    let gate = Gate::at(4);
    let upstream = Scripted::new()
        .file(head, File::of("head 1").etag("\"h1\""))
        .file(member, File::of("member 1").etag("\"m1\"").held_by(&gate));
    let world = World::with(upstream, "package: rpm", 1 << 30);
    world.check(head, Outcome::Miss, b"head 1");
    world.settle();
    let client = || {
        let (cache, target) = (Arc::clone(&world.cache), Arc::clone(&world.target));
        thread::spawn(move || get(&cache, &target, member).unwrap())
    };
    let early = client();
    world.upstream.wait_for(member, 1);
    world.upstream.put(head, File::of("head 2").etag("\"h2\""));
    world.upstream.put(member, File::of("member 2").etag("\"m2\""));
    world.clock.advance(Duration::from_secs(101));
    world.check(head, Outcome::Miss, b"head 2");
    wait_until(|| world.stored(head).is_some_and(|head| head.digest == Digest::of(b"head 2")));
    // Who has seen the new head is not given what was asked for under the old one.
    let late = client();
    wait_until(|| world.flight(member).is_urgent());
    gate.open();
    assert_eq!(early.join().unwrap(), (Outcome::Miss, b"member 1".to_vec()));
    assert_eq!(late.join().unwrap(), (Outcome::Miss, b"member 2".to_vec()));
    world.settle();
    world.check(member, Outcome::Hit, b"member 2");
    assert_eq!(world.upstream.count(member), 2);
}

#[test]
fn a_herd_on_a_member_of_a_new_head_is_not_passed_through_one_by_one() {
    let gate = Gate::at(4);
    let upstream = Scripted::new()
        .file(HEAD, File::of("head 1").etag("\"h1\""))
        .file(MEMBER, File::of("member 1").etag("\"m1\"").held_by(&gate));
    let world = World::with(upstream, "package: rpm", 1 << 30);
    world.check_settled(HEAD, Outcome::Miss, "head 1");
    let early = world.find(MEMBER).unwrap();
    world.upstream.put(HEAD, File::of("head 2").etag("\"h2\""));
    world.upstream.put(MEMBER, File::of("member 2").etag("\"m2\""));
    world.clock.advance(Duration::from_secs(101));
    world.check(HEAD, Outcome::Miss, b"head 2");
    wait_until(|| world.stored(HEAD).is_some_and(|head| head.digest == Digest::of(b"head 2")));
    let seek = || {
        let sought = world.cache.seek(&world.target, &World::path(MEMBER), Duration::ZERO);
        let Ok(Sought::Boarding(boarding)) = sought else { panic!("{sought:?}") };
        // It has waited for long enough.
        let boarding = Boarding { until: Instant::now(), ..boarding };
        world.cache.board(&world.target, boarding, Duration::ZERO).unwrap()
    };
    let mut herd: Vec<Sought> = (0..3 * OUTDATED_PASSES_MAX).map(|_| seek()).collect();
    let passed =
        |herd: &[Sought]| herd.iter().filter(|sought| matches!(sought, Sought::Found(_))).count();
    assert_eq!(passed(&herd), OUTDATED_PASSES_MAX);
    assert_eq!(world.upstream.count(MEMBER), 1 + OUTDATED_PASSES_MAX);
    // Whose bytes are all there makes room.
    herd.retain(|sought| matches!(sought, Sought::Boarding(_)));
    let passed = [(); OUTDATED_PASSES_MAX].map(|()| seek());
    assert!(passed.iter().all(|sought| matches!(sought, Sought::Found(_))));
    // Nobody waits for ever, nor is held by a listener that has the patience.
    let Sought::Boarding(boarding) = seek() else { panic!("there is no room") };
    let (until, outdated_until) = (Instant::now(), Some(Instant::now()));
    let late = Boarding { until, outdated_until, ..boarding };
    let refused = world.cache.board(&world.target, late, Duration::MAX);
    let Err(CacheError::Fetch(why)) = refused else { panic!("{refused:?}") };
    assert!(matches!(*why, FetchError::Overloaded));
    drop(passed);
    gate.open();
    drop(early);
    wait_until(|| world.cache.flight_count() == 0);
    for sought in herd {
        let Sought::Boarding(boarding) = sought else { unreachable!("retained") };
        let found = world.cache.board(&world.target, boarding, Duration::from_secs(20)).unwrap();
        assert!(matches!(found, Sought::Found(_)), "{found:?}");
    }
    world.check_settled(MEMBER, Outcome::Hit, "member 2");
    assert_eq!(world.upstream.count(MEMBER), 1 + 2 * OUTDATED_PASSES_MAX + 1);
}

/// A repository whose head and member are stored, and were confirmed a moment ago or earlier.
fn repository(confirmed_s: u64) -> World {
    let upstream = Scripted::new()
        .file(HEAD, File::of("head 1").etag("\"h1\""))
        .file(MEMBER, File::of("member 1").etag("\"m1\""));
    let world = World::with(upstream, "package: rpm", 1 << 30);
    world.check_settled(HEAD, Outcome::Miss, "head 1");
    world.check_settled(MEMBER, Outcome::Miss, "member 1");
    world.clock.advance(Duration::from_secs(101));
    // As a client does that finds its head unchanged: it asks for no member.
    world.check_settled(HEAD, Outcome::Revalidated, "head 1");
    world.clock.advance(Duration::from_secs(confirmed_s));
    world
}

const HEAD: &str = "repodata/repomd.xml";
const MEMBER: &str = "repodata/primary.xml.gz";
const OTHER_MEMBER: &str = "repodata/filelists.xml.gz";

#[test]
fn a_member_that_changes_under_its_head_makes_that_stale_at_once() {
    for confirmed_s in [0, 50] {
        let world = repository(confirmed_s);
        world.upstream.put(MEMBER, File::of("member 2").etag("\"m2\""));
        world.check_settled(HEAD, Outcome::Hit, "head 1");
        world.check_settled(MEMBER, Outcome::Miss, "member 2");
        // Upstream publishes its head last.
        world.check_settled(HEAD, Outcome::Miss, "head 1");
        world.upstream.put(HEAD, File::of("head 2").etag("\"h2\""));
        world.check_settled(HEAD, Outcome::Hit, "head 1");
        world.clock.advance(Duration::from_secs(6));
        world.check_settled(HEAD, Outcome::Miss, "head 2");
        world.check_settled(MEMBER, Outcome::Revalidated, "member 2");
    }
}

#[test]
fn a_member_that_lags_behind_its_head_is_asked_about_soon() {
    let world = repository(50);
    world.clock.advance(Duration::from_secs(60));
    world.upstream.put(HEAD, File::of("head 2").etag("\"h2\""));
    world.check_settled(HEAD, Outcome::Miss, "head 2");
    world.check_settled(MEMBER, Outcome::Revalidated, "member 1");
    world.upstream.remove(OTHER_MEMBER);
    assert!(matches!(world.find(OTHER_MEMBER), Err(CacheError::Absent)));
    world.upstream.put(MEMBER, File::of("member 2").etag("\"m2\""));
    world.upstream.put(OTHER_MEMBER, File::of("other").etag("\"o\""));
    world.check_settled(MEMBER, Outcome::Hit, "member 1");
    world.clock.advance(Duration::from_secs(6));
    world.check_settled(MEMBER, Outcome::Miss, "member 2");
    world.check_settled(OTHER_MEMBER, Outcome::Miss, "other");
}

#[test]
fn a_cold_member_makes_a_head_stale_that_was_not_confirmed_lately() {
    for (confirmed_s, outcome) in [(5, Outcome::Hit), (50, Outcome::Miss)] {
        let world = repository(confirmed_s);
        world.upstream.put(OTHER_MEMBER, File::of("other").etag("\"o\""));
        world.check_settled(OTHER_MEMBER, Outcome::Miss, "other");
        world.check_settled(HEAD, outcome, "head 1");
    }
}

#[test]
fn what_has_settled_is_fresh_for_as_long_as_the_remote_says() {
    let world = repository(101);
    world.upstream.put(HEAD, File::of("head 2").etag("\"h2\""));
    world.check_settled(HEAD, Outcome::Miss, "head 2");
    world.check_settled(MEMBER, Outcome::Revalidated, "member 1");
    world.clock.advance(Duration::from_secs(61));
    world.check_settled(HEAD, Outcome::Revalidated, "head 2");
    world.check_settled(MEMBER, Outcome::Revalidated, "member 1");
    world.clock.advance(Duration::from_secs(90));
    world.check_settled(HEAD, Outcome::Hit, "head 2");
    world.check_settled(MEMBER, Outcome::Hit, "member 1");
}

#[test]
fn a_member_of_another_head_that_a_replica_stored_is_asked_about() {
    let (head, member) = ("repodata/repomd.xml", "repodata/primary.xml.gz");
    let gate = Gate::at(4);
    let upstream = Scripted::new()
        .file(head, File::of("head 1").etag("\"h1\""))
        .file(member, File::of("member 1").etag("\"m1\"").held_by(&gate));
    let world = World::with(upstream, "package: rpm", 1 << 30);
    let other = replica(&world.ports);
    world.check(head, Outcome::Miss, b"head 1");
    world.settle();
    let ask = |cache: &Arc<Cache>| {
        let (cache, target) = (Arc::clone(cache), Arc::clone(&world.target));
        thread::spawn(move || get(&cache, &target, member).unwrap())
    };
    let early = ask(&world.cache);
    world.upstream.wait_for(member, 1);
    world.upstream.put(head, File::of("head 2").etag("\"h2\""));
    world.upstream.put(member, File::of("member 2").etag("\"m2\""));
    let head_key = world.target.key(World::path(head));
    world.ports.freshness.clear(&head_key, Mark::Fresh(Digest::of(b"head 1")));
    world.check(head, Outcome::Miss, b"head 2");
    wait_until(|| world.stored(head).is_some_and(|head| head.digest == Digest::of(b"head 2")));
    let late = ask(&other);
    wait_until(|| other.flight_count() == 1);
    gate.open();
    assert_eq!(early.join().unwrap(), (Outcome::Miss, b"member 1".to_vec()));
    assert_eq!(late.join().unwrap(), (Outcome::Miss, b"member 2".to_vec()));
}

/// A file may change twice within the second that its date names.
#[test]
fn a_date_of_the_second_in_which_the_file_came_confirms_nothing() {
    for (age_s, outcome, bytes) in [(0, Outcome::Miss, b"two"), (1, Outcome::Revalidated, b"one")] {
        let world = World::new(Scripted::new());
        let date = httpdate::fmt_http_date(world.clock.now() - Duration::from_secs(age_s));
        world.upstream.put("index/a", File::of("one").last_modified(&date));
        world.check("index/a", Outcome::Miss, b"one");
        world.settle();
        world.upstream.put("index/a", File::of("two").last_modified(&date));
        world.clock.advance(Duration::from_secs(101));
        world.check("index/a", outcome, bytes);
        world.settle();
        world.clock.advance(Duration::from_secs(101));
        world.check("index/a", Outcome::Revalidated, bytes);
    }
}

#[test]
fn a_lifetime_that_was_shortened_holds_for_what_is_stored() {
    let upstream = Scripted::new().file("index/a", File::of("a").etag("\"a\""));
    let world = World::new(upstream);
    world.check("index/a", Outcome::Miss, b"a");
    assert!(matches!(world.find("index/none"), Err(CacheError::Absent)));
    world.settle();
    let remote = remotes(GENERIC, "index_ttl: 2, negative_ttl: 2").by_name.into_values().next();
    let shorter = Target { remote: remote.unwrap(), upstream: world.target.upstream.clone() };
    let met = |path: &str| world.cache.find(&shorter, &World::path(path)).map(|it| it.met.outcome);
    assert_eq!(met("index/a").unwrap(), Outcome::Revalidated);
    assert_eq!(met("index/a").unwrap(), Outcome::Hit);
    assert!(matches!(met("index/none"), Err(CacheError::Absent)));
    assert_eq!(world.upstream.count("index/none"), 2);
}

#[test]
fn an_index_file_that_is_gone_makes_its_head_stale_at_once() {
    let head = "repodata/repomd.xml";
    let world = World::with(
        Scripted::new().file(head, File::of("head").etag("\"h\"")),
        "package: rpm",
        1 << 30,
    );
    world.check(head, Outcome::Miss, b"head");
    world.settle();
    for gone in
        ["repodata/other.xml.gz".to_owned(), format!("repodata/{}-other.xml.gz", Digest::of(b""))]
    {
        world.check(head, Outcome::Hit, b"head");
        assert!(matches!(world.find(&gone), Err(CacheError::Absent)), "{gone}");
        world.check(head, Outcome::Revalidated, b"head");
    }
}

/// A repomd.xml that states these members.
fn repomd(members: &[(&str, &str)]) -> String {
    let data = members.iter().map(|(path, body)| {
        let digest = Digest::of(body.as_bytes());
        format!(
            "<data type=\"any\"><checksum type=\"sha256\">{digest}</checksum>\
             <location href=\"{path}\"/></data>"
        )
    });
    format!("<repomd>{}</repomd>", data.collect::<String>())
}

#[test]
fn a_member_that_its_head_does_not_state_has_the_head_fetched_at_once() {
    let head = |number| {
        repomd(&[(MEMBER, &format!("member {number}")), (OTHER_MEMBER, &format!("other {number}"))])
    };
    let world = World::with(Scripted::new(), "package: rpm", 1 << 30);
    let publish = |number: u32| {
        let etag = format!("\"{number}\"");
        world.upstream.put(HEAD, File::of(head(number)).etag(&etag));
        world.upstream.put(MEMBER, File::of(format!("member {number}")).etag(&etag));
        world.upstream.put(OTHER_MEMBER, File::of(format!("other {number}")).etag(&etag));
    };
    publish(1);
    world.check_settled(HEAD, Outcome::Miss, &head(1));
    world.check_settled(MEMBER, Outcome::Miss, "member 1");
    publish(2);
    world.clock.advance(Duration::from_secs(101));
    world.check_settled(HEAD, Outcome::Miss, &head(2));
    world.clock.advance(Duration::from_secs(61));
    world.check_settled(HEAD, Outcome::Revalidated, &head(2));
    publish(3);
    // One that is stored since the first head, and one that was never asked for.
    for (member, body) in [(MEMBER, "member 3"), (OTHER_MEMBER, "other 3")] {
        world.check_settled(member, Outcome::Miss, body);
    }
    world.check_settled(HEAD, Outcome::Miss, &head(3));
    for (member, body) in [(MEMBER, "member 3"), (OTHER_MEMBER, "other 3")] {
        world.check_settled(member, Outcome::Revalidated, body);
        world.check_settled(member, Outcome::Hit, body);
    }
}

#[test]
fn a_member_that_lags_behind_what_its_head_states_is_asked_about_each_time() {
    let head = |number| repomd(&[(MEMBER, &format!("member {number}"))]);
    let upstream = Scripted::new()
        .file(HEAD, File::of(head(1)).etag("\"h1\""))
        .file(MEMBER, File::of("member 1").etag("\"m1\""));
    let world = World::with(upstream, "package: rpm", 1 << 30);
    world.check_settled(HEAD, Outcome::Miss, &head(1));
    world.check_settled(MEMBER, Outcome::Miss, "member 1");
    world.upstream.put(HEAD, File::of(head(2)).etag("\"h2\""));
    world.clock.advance(Duration::from_secs(101));
    world.check_settled(HEAD, Outcome::Miss, &head(2));
    // Once whole, for a 304 may be wrong.
    for outcome in [Outcome::Miss, Outcome::Revalidated, Outcome::Revalidated] {
        world.check_settled(MEMBER, outcome, "member 1");
    }
    world.upstream.put(MEMBER, File::of("member 2").etag("\"m2\""));
    world.check_settled(MEMBER, Outcome::Miss, "member 2");
    world.check_settled(MEMBER, Outcome::Hit, "member 2");
}

#[test]
fn a_head_in_doubt_is_fetched_whatever_its_validators_are() {
    let named = repomd(&[(MEMBER, "member")]);
    let world = World::with(
        Scripted::new().file(HEAD, File::of(named.clone()).etag("\"same\"")),
        "package: rpm",
        1 << 30,
    );
    world.check_settled(HEAD, Outcome::Miss, &named);
    world.upstream.put(HEAD, File::of("head 2").etag("\"same\""));
    // It does not name this one, which tells little.
    assert!(matches!(world.find("repodata/repomd.xml.asc"), Err(CacheError::Absent)));
    world.check_settled(HEAD, Outcome::Revalidated, &named);
    assert!(matches!(world.find(MEMBER), Err(CacheError::Absent)));
    world.check_settled(HEAD, Outcome::Miss, "head 2");
    world.clock.advance(Duration::from_secs(101));
    world.check_settled(HEAD, Outcome::Revalidated, "head 2");
}

#[test]
fn a_304_for_what_does_not_fit_its_head_is_not_believed() {
    let head = |number| repomd(&[(MEMBER, &format!("member {number}"))]);
    // A mirror whose files all have one date, and so one ETag where they have one length.
    let upstream = Scripted::new()
        .file(HEAD, File::of(head(1)).etag("\"h1\""))
        .file(MEMBER, File::of("member 1").etag("\"same\""));
    let world = World::with(upstream, "package: rpm", 1 << 30);
    world.check_settled(HEAD, Outcome::Miss, &head(1));
    world.check_settled(MEMBER, Outcome::Miss, "member 1");
    world.upstream.put(HEAD, File::of(head(2)).etag("\"h2\""));
    world.upstream.put(MEMBER, File::of("member 2").etag("\"same\""));
    world.clock.advance(Duration::from_secs(101));
    world.check_settled(HEAD, Outcome::Miss, &head(2));
    world.check_settled(MEMBER, Outcome::Miss, "member 2");
    world.check_settled(MEMBER, Outcome::Hit, "member 2");
}

#[test]
fn of_two_heads_the_one_that_was_confirmed_last_counts() {
    let release = |number| {
        let digest = Digest::of(format!("index {number}").as_bytes());
        format!("SHA256:\n {digest} 7 main/Packages\n")
    };
    let (inline, detached, member) =
        ("dists/a/InRelease", "dists/a/Release", "dists/a/main/Packages");
    let upstream = Scripted::new()
        .file(inline, File::of(release(1)).etag("\"i1\""))
        .file(member, File::of("index 1").etag("\"m1\""));
    let world = World::with(upstream, "package: deb", 1 << 30);
    world.check_settled(inline, Outcome::Miss, &release(1));
    world.check_settled(member, Outcome::Miss, "index 1");
    // Upstream gives the one up.
    world.clock.advance(Duration::from_secs(101));
    world.upstream.remove(inline);
    world.upstream.put(detached, File::of(release(2)).etag("\"r2\""));
    world.upstream.put(member, File::of("index 2").etag("\"m2\""));
    world.check_settled(detached, Outcome::Miss, &release(2));
    world.check_settled(member, Outcome::Miss, "index 2");
    world.check_settled(member, Outcome::Hit, "index 2");
}

#[test]
fn a_mirror_whose_files_never_fit_has_its_head_fetched_now_and_then() {
    let head = repomd(&[(MEMBER, "member"), (OTHER_MEMBER, "other")]);
    let upstream = Scripted::new()
        .file(HEAD, File::of(head.clone()).etag("\"h\""))
        .file(MEMBER, File::of("wrong").etag("\"m\""))
        .file(OTHER_MEMBER, File::of("wrong too").etag("\"o\""));
    let world = World::with(upstream, "package: rpm", 1 << 30);
    world.check_settled(HEAD, Outcome::Miss, &head);
    world.check_settled(MEMBER, Outcome::Miss, "wrong");
    world.check_settled(HEAD, Outcome::Miss, &head);
    for outcome in [Outcome::Miss, Outcome::Revalidated, Outcome::Revalidated] {
        world.check_settled(MEMBER, outcome, "wrong");
        world.check_settled(HEAD, Outcome::Hit, &head);
    }
    world.check_settled(OTHER_MEMBER, Outcome::Miss, "wrong too");
    world.check_settled(HEAD, Outcome::Hit, &head);
    world.clock.advance(Duration::from_secs(6));
    world.check_settled(HEAD, Outcome::Miss, &head);
}

#[test]
fn replicas_share_one_fetch_through_the_lease() {
    let body = bytes(MIB);
    let gate = Gate::at(1000);
    let world = World::new(Scripted::new().file("a", File::of(body.clone()).held_by(&gate)));
    let other = replica(&world.ports);
    let ask = |cache: &Arc<Cache>| {
        let (cache, target) = (Arc::clone(cache), Arc::clone(&world.target));
        thread::spawn(move || get(&cache, &target, "a").unwrap().1)
    };
    let first = ask(&world.cache);
    gate.wait_until_held();
    let second = ask(&other);
    wait_until(|| other.flight_count() == 1);
    gate.open();
    assert!(first.join().unwrap() == body);
    assert!(second.join().unwrap() == body);
    assert_eq!(world.upstream.count("a"), 1);
}

#[test]
fn of_replicas_that_wait_in_vain_one_fetches_for_the_others() {
    let world = World::new(Scripted::new().file("a", File::of(b"bytes".to_vec())));
    let key = ArtifactKey { remote: world.target.remote.name.clone(), path: World::path("a") };
    // Nobody fetches under this one, and it does not lapse.
    let vanished = world.ports.leases.try_acquire(&key, Duration::from_secs(3600));
    assert!(matches!(vanished, Acquired::Granted(_)));
    let bounds =
        CacheBounds { fetch_threads: 1, fetch_queue_max: 1, lease_ttl: Duration::from_secs(2) };
    let replicas: Vec<_> = (0..3).map(|_| Cache::new(world.ports.clone(), &bounds)).collect();
    thread::scope(|scope| {
        for replica in &replicas {
            scope.spawn(|| assert_eq!(get(replica, &world.target, "a").unwrap().1, b"bytes"));
        }
    });
    assert_eq!(world.upstream.count("a"), 1);
}

#[test]
fn what_another_replica_replaced_is_not_served_from_memory_though_the_row_is_old() {
    let upstream = Scripted::new().file("a", File::of("old")).file("index/a", File::of("old"));
    let world = World::new(upstream);
    let (behind, counters) = (Arc::clone(&world.ports.blobs), TierCounters::default());
    let tier = SmallBlobs::new(Arc::clone(&behind), 1 << 20, world.clock.clone(), counters);
    let cache = replica(&Ports { blobs: Arc::new(tier), ..world.ports.clone() });
    for path in ["a", "index/a"] {
        for _ in 0..3 {
            assert_eq!(get(&cache, &world.target, path).unwrap().1, b"old");
            wait_until(|| cache.flight_count() == 0);
        }
        // Another replica is between its blob and its row.
        let mut staged = world.staging.begin(Expect::default()).unwrap();
        staged.append_bytes(b"new").unwrap();
        let entry = world.stored(path).unwrap();
        let about = behind.stat(&entry.blob).unwrap().unwrap().about.unwrap();
        behind.publish(&entry.blob, &staged.seal().unwrap(), &about).unwrap();
        world.upstream.put(path, File::of("new"));
    }
    assert_eq!(get(&cache, &world.target, "a").unwrap().1, b"old", "it never changes");
    // Its row is forgotten, and the front asks again.
    assert!(get(&cache, &world.target, "index/a").is_err());
    assert_eq!(get(&cache, &world.target, "index/a").unwrap().1, b"new");
}

/// Leases that nobody can ask, as when Redis is away.
#[derive(Debug)]
pub(super) struct NoLeases;

impl Leases for NoLeases {
    fn try_acquire(&self, _: &ArtifactKey, _: Duration) -> Acquired {
        Acquired::Unknown
    }

    fn renew(&self, _: &ArtifactKey, _: &LeaseToken, _: Duration) -> bool {
        false
    }

    fn release(&self, _: &ArtifactKey, _: &LeaseToken) {}
}

#[test]
fn replicas_that_fetch_the_same_bytes_keep_them() {
    let gate = Gate::at(1);
    let world = World::new(Scripted::new().file("a", File::of("bytes").held_by(&gate)));
    let ports = Ports { leases: Arc::new(NoLeases), ..world.ports.clone() };
    let replicas = [replica(&ports), replica(&ports)];
    thread::scope(|scope| {
        for cache in &replicas {
            scope.spawn(|| assert_eq!(get(cache, &world.target, "a").unwrap().1, b"bytes"));
        }
        wait_until(|| world.upstream.count("a") == 2);
        gate.open();
    });
    for cache in &replicas {
        wait_until(|| cache.flight_count() == 0);
    }
    // Each put an object of its own in place; the row means the one that is there.
    let entry = world.stored("a").unwrap();
    assert_eq!(world.ports.blobs.stat(&entry.blob).unwrap().unwrap().version, entry.version);
    world.check("a", Outcome::Hit, b"bytes");
}

#[test]
fn replicas_that_race_without_a_lease_never_go_back_to_older_bytes() {
    // The replica that asked first has the older bytes; either may be the first to store.
    for slow_is_older in [true, false] {
        let (old_gate, new_gate) = (Gate::at(1), Gate::at(1));
        let (old, new) = (File::of("old bytes").etag("\"1\""), File::of("new bytes").etag("\"2\""));
        let (held_old, held_new) = (old.held_by(&old_gate), new.clone().held_by(&new_gate));
        let world = World::new(Scripted::new().on("index/a", move |request, nth| match nth {
            1 => held_old.answer(request),
            2 => held_new.answer(request),
            _ => new.answer(request),
        }));
        let ports = Ports { leases: Arc::new(NoLeases), ..world.ports.clone() };
        let (first, second) = (replica(&ports), replica(&ports));
        let ask = |cache: &Arc<Cache>| {
            let (cache, target) = (Arc::clone(cache), Arc::clone(&world.target));
            thread::spawn(move || get(&cache, &target, "index/a").unwrap().1)
        };
        let older = ask(&first);
        old_gate.wait_until_held();
        let newer = ask(&second);
        new_gate.wait_until_held();
        let landed = |cache: &Arc<Cache>| wait_until(|| cache.flight_count() == 0);
        if slow_is_older {
            new_gate.open();
            landed(&second);
            old_gate.open();
        } else {
            old_gate.open();
            landed(&first);
            new_gate.open();
        }
        assert_eq!(older.join().unwrap(), b"old bytes");
        assert_eq!(newer.join().unwrap(), b"new bytes");
        landed(&first);
        landed(&second);
        for cache in [&second, &first] {
            assert_eq!(ask(cache).join().unwrap(), b"new bytes", "slow is older: {slow_is_older}");
            landed(cache);
        }
    }
}

#[test]
fn a_lease_is_held_while_a_fetch_runs_and_given_back_after_it() {
    let gate = Gate::at(10);
    let world = World::new(Scripted::new().file("a", File::of(bytes(100)).held_by(&gate)));
    let key = ArtifactKey { remote: world.target.remote.name.clone(), path: World::path("a") };
    let found = world.find("a").unwrap();
    let ttl = Duration::from_secs(1);
    assert_eq!(world.ports.leases.try_acquire(&key, ttl), Acquired::Held);
    gate.open();
    drop(found);
    world.settle();
    let granted = world.ports.leases.try_acquire(&key, ttl);
    assert!(matches!(granted, Acquired::Granted(LeaseToken(_))), "{granted:?}");
}

#[test]
fn an_entry_whose_blob_is_gone_heals_itself() {
    let body = bytes(1000);
    let world = World::new(Scripted::new().file("a", File::of(body.clone())));
    world.check("a", Outcome::Miss, &body);
    world.settle();
    let entry = world.stored("a").unwrap();
    world.ports.blobs.remove(&entry.blob).unwrap();
    let found = world.find("a").unwrap();
    let why = world.cache.open(&world.target, found.bytes, Some(1000), None).unwrap_err();
    assert!(matches!(why, OpenError::Gone), "{why}");
    let found = world.cache.find_again(&world.target, &World::path("a"), why).unwrap();
    assert_eq!(found.met.outcome, Outcome::Miss);
    drop(found);
    world.settle();
    world.check("a", Outcome::Hit, &body);
    assert_eq!(world.cache.counters().healed.get(), 1);
}

#[test]
fn an_upstream_that_was_never_reached_is_an_error_that_says_so() {
    let world = World::new(Scripted::new().on("a", |_, _| Err(refused())));
    let error = world.get("a").unwrap_err();
    assert!(error.contains("cannot connect"), "{error}");
    world.settle();
}

#[test]
fn a_full_fetch_queue_refuses_at_once() {
    let gate = Gate::at(0);
    let mut upstream = Scripted::new();
    for n in 0..7 {
        upstream = upstream.file(&format!("{n}"), File::of("x").head_held_by(&gate));
    }
    let world = World::new(upstream);
    // Of four threads and four places, a remote takes up three.
    let waiting: Vec<_> = (0..6)
        .map(|n| {
            let (cache, target) = (Arc::clone(&world.cache), Arc::clone(&world.target));
            let client = thread::spawn(move || get(&cache, &target, &n.to_string()).unwrap());
            wait_until(|| world.cache.flight_count() == n + 1);
            if n == 2 {
                wait_until(|| world.cache.fetches_queued() == 0);
            }
            client
        })
        .collect();
    wait_until(|| world.cache.fetches_queued() == 3);
    match world.find("6") {
        Err(CacheError::Fetch(why)) => assert!(matches!(*why, FetchError::Overloaded), "{why}"),
        other => panic!("{other:?}"),
    }
    gate.open();
    for client in waiting {
        client.join().unwrap();
    }
}

#[test]
fn a_sweep_removes_what_no_row_means_once_it_is_old() {
    let world =
        World::new(Scripted::new().file("kept", File::of("k")).file("orphan", File::of("o")));
    world.check("kept", Outcome::Miss, b"k");
    world.check("orphan", Outcome::Miss, b"o");
    world.settle();
    let orphan = world.stored("orphan").unwrap();
    let key = ArtifactKey { remote: world.target.remote.name.clone(), path: World::path("orphan") };
    assert!(world.ports.index.remove(&key, orphan.generation).unwrap());
    let age = Duration::from_secs(3600);
    assert_eq!(world.cache.sweep_orphans(age), Ok(Swept::default()));
    let published = world.ports.blobs.stat(&orphan.blob).unwrap().unwrap().published_at;
    let ahead = published.duration_since(world.clock.now()).unwrap_or_default();
    world.clock.advance(ahead + age);
    assert_eq!(world.cache.sweep_orphans(age), Ok(Swept { blobs: 1, ..Swept::default() }));
    assert_eq!(world.ports.blobs.stat(&orphan.blob).unwrap(), None);
    world.check("kept", Outcome::Hit, b"k");
}

#[test]
fn a_sweep_forgets_old_rows_whose_blob_is_gone() {
    let world = World::new(Scripted::new().file("kept", File::of("k")).file("lost", File::of("l")));
    world.check("kept", Outcome::Miss, b"k");
    world.check("lost", Outcome::Miss, b"l");
    world.settle();
    let blob = world.stored("lost").unwrap().blob;
    world.ports.blobs.remove(&blob).unwrap();
    let age = Duration::from_secs(3600);
    assert_eq!(world.cache.sweep_orphans(age), Ok(Swept::default()));
    world.clock.advance(age);
    assert_eq!(world.cache.sweep_orphans(age), Ok(Swept { rows: 1, ..Swept::default() }));
    assert_eq!(world.stored("lost"), None);
    world.check("kept", Outcome::Hit, b"k");
    // A store with nothing in it is not what the rows are about.
    world.ports.blobs.remove(&world.stored("kept").unwrap().blob).unwrap();
    assert_eq!(world.cache.sweep_orphans(age), Ok(Swept::default()));
    assert!(world.stored("kept").is_some());
}

#[test]
fn uses_are_written_down_in_batches() {
    let world = World::new(Scripted::new().file("a", File::of("a")));
    world.check("a", Outcome::Miss, b"a");
    world.settle();
    world.check("a", Outcome::Hit, b"a");
    world.check("a", Outcome::Hit, b"a");
    world.cache.record_uses();
    let mut hits = Vec::new();
    let collect = &mut |row: Row| {
        hits.push(row.hits);
        std::ops::ControlFlow::Continue(())
    };
    world.ports.index.scan(&Scan::default(), collect).unwrap();
    assert_eq!(hits, [2]);
}

#[test]
fn a_purge_leaves_the_blob_to_a_fetch_that_is_under_way() {
    let file = |text: &str| File::of(text).etag(&format!("\"{text}\""));
    let gate = Gate::at(1);
    let world = World::new(Scripted::new().file("index/a", file("one")));
    world.check("index/a", Outcome::Miss, b"one");
    world.settle();
    world.clock.advance(Duration::from_secs(101));
    world.upstream.put("index/a", file("two").held_by(&gate));
    let (cache, target) = (Arc::clone(&world.cache), Arc::clone(&world.target));
    let client = thread::spawn(move || get(&cache, &target, "index/a").unwrap());
    world.upstream.wait_for("index/a", 2);
    let purge = || world.cache.purge(&world.target, &World::path("index/a"), &|_| true).unwrap();
    let Purged::Removed(entry) = purge() else { panic!("it was stored") };
    assert!(world.ports.blobs.stat(&entry.blob).unwrap().is_some());
    assert!(world.stored("index/a").is_none());
    gate.open();
    assert_eq!(client.join().unwrap(), (Outcome::Miss, b"two".to_vec()));
    world.settle();
    world.check("index/a", Outcome::Hit, b"two");

    // With nobody fetching it, row and blob go.
    let Purged::Removed(entry) = purge() else { panic!("it was stored") };
    assert!(world.ports.blobs.stat(&entry.blob).unwrap().is_none());
    assert_eq!((purge(), world.cache.flight_count()), (Purged::Absent, 0));
}

fn fill(world: &World, path: &str, wish: Wish) -> Result<Filled, CacheError> {
    let patient = |_| std::ops::ControlFlow::Continue(());
    world.cache.fill(&world.target, &World::path(path), None, wish, &patient)
}

#[test]
fn a_fill_stores_once_and_asks_again_only_where_it_is_forced_to() {
    let upstream = Scripted::new().file("a", File::of("one").etag("\"v1\""));
    let world = World::new(upstream);
    assert!(
        matches!(fill(&world, "a", Wish::Fresh), Ok(Filled::Fetched(entry)) if entry.size == 3)
    );
    assert!(matches!(fill(&world, "a", Wish::Fresh), Ok(Filled::Already(_))));
    assert_eq!(world.upstream.count("a"), 1);
    assert!(matches!(fill(&world, "a", Wish::Confirmed), Ok(Filled::Already(_))));
    world.upstream.clone().file("a", File::of("other").etag("\"v2\""));
    assert!(matches!(fill(&world, "a", Wish::Confirmed), Ok(Filled::Fetched(_))));
    assert_eq!(world.upstream.count("a"), 3);
    assert!(matches!(fill(&world, "none", Wish::Fresh), Err(CacheError::Absent)));
}

#[test]
fn a_client_that_joins_a_fill_which_waits_is_served_at_once() {
    let gate = Gate::at(0);
    let mut upstream = Scripted::new().file("wanted", File::of("w"));
    for n in 0..2 {
        upstream = upstream.file(&n.to_string(), File::of("held").head_held_by(&gate));
    }
    let world = World::new(upstream);
    let cache = |path: &'static str| {
        let (cache, target) = (Arc::clone(&world.cache), Arc::clone(&world.target));
        let patient = |_| std::ops::ControlFlow::Continue(());
        thread::spawn(move || {
            cache.fill(&target, &World::path(path), None, Wish::Fresh, &patient).unwrap()
        })
    };
    // Two of the four threads may run fills: both are held, and the third fill waits.
    let mut fills = vec![cache("0"), cache("1")];
    world.upstream.wait_for("0", 1);
    world.upstream.wait_for("1", 1);
    fills.push(cache("wanted"));
    wait_until(|| world.cache.flight_count() == 3);
    assert_eq!(world.upstream.count("wanted"), 0);
    let (outcome, body) = world.get("wanted").unwrap();
    assert!(matches!(outcome, Outcome::Collapsed | Outcome::Hit), "{outcome:?}");
    assert_eq!(body, b"w");
    gate.open();
    for fill in fills {
        assert!(matches!(fill.join().unwrap(), Filled::Fetched(_)));
    }
    world.settle();
}

#[test]
fn a_client_that_joins_a_fill_does_not_fail_it_where_the_queue_is_full() {
    let gate = Gate::at(0);
    let (world, fills) = queued_fills(&gate, 1, |_| std::ops::ControlFlow::Continue(()));
    let ask = |path: String| {
        let (cache, target) = (Arc::clone(&world.cache), Arc::clone(&world.target));
        thread::spawn(move || get(&cache, &target, &path).unwrap())
    };
    // Of the remote's share, one thread is left for clients, and three places in their queue.
    let clients: Vec<_> = (0..4)
        .map(|n| {
            let path = format!("client-{n}");
            world.upstream.clone().file(&path, File::of("x").head_held_by(&gate));
            let client = ask(path);
            wait_until(|| world.cache.flight_count() == fills.len() + n + 1);
            if n == 0 {
                world.upstream.wait_for("client-0", 1);
            }
            client
        })
        .collect();
    wait_until(|| world.cache.fetches_queued() == 3);
    let joining = ask("2".to_owned());
    let key = ArtifactKey { remote: world.target.remote.name.clone(), path: World::path("2") };
    wait_until(|| match world.cache.flights.join(&key, None) {
        Joined::Follow(reader) => reader.is_urgent(),
        Joined::Lead(_) => true,
    });
    gate.open();
    for fill in fills {
        assert!(matches!(fill.join().unwrap(), Ok(Filled::Fetched(_))));
    }
    for client in clients.into_iter().chain([joining]) {
        assert_eq!(client.join().unwrap().1, b"x");
    }
    world.settle();
}

#[test]
fn a_fill_by_url_lies_under_its_own_key_and_is_no_orphan() {
    let world = World::new(Scripted::new().file("a", File::of("one").etag("\"v1\"")));
    let key = BlobKey::of_url("https://files.example.org/a").unwrap();
    let patient = |_| std::ops::ControlFlow::Continue(());
    let path = World::path("a");
    world.cache.fill(&world.target, &path, Some(&key), Wish::Fresh, &patient).unwrap();
    world.check("a", Outcome::Hit, b"one");
    assert_eq!(world.stored("a").unwrap().blob, key);
    let age = Duration::from_secs(3600);
    world.clock.advance(2 * age);
    assert_eq!(world.cache.sweep_orphans(age), Ok(Swept::default()));
    // A later version lies under the usual key, and what it replaces is swept.
    world.upstream.clone().file("a", File::of("two").etag("\"v2\""));
    assert!(matches!(fill(&world, "a", Wish::Confirmed), Ok(Filled::Fetched(_))));
    world.clock.advance(2 * age);
    assert_eq!(world.cache.sweep_orphans(age), Ok(Swept { blobs: 1, ..Swept::default() }));
    world.check("a", Outcome::Hit, b"two");
}

#[test]
fn a_cancelled_fill_is_left_alone_and_lands_by_itself() {
    let gate = Gate::at(0);
    let world = World::new(Scripted::new().file("a", File::of("late").head_held_by(&gate)));
    let impatient = |_| std::ops::ControlFlow::Break(());
    let path = World::path("a");
    let filled = world.cache.fill(&world.target, &path, None, Wish::Fresh, &impatient);
    assert!(matches!(filled, Ok(Filled::Cancelled)));
    gate.open();
    world.settle();
    world.check("a", Outcome::Hit, b"late");
}

/// A world in which the two fills that can run at once are held at upstream, and `count` more
/// wait for a thread, each until `report` ends it.
fn queued_fills(
    gate: &Gate,
    count: usize,
    report: impl Fn(u64) -> std::ops::ControlFlow<()> + Clone + Send + 'static,
) -> (World, Vec<thread::JoinHandle<Result<Filled, CacheError>>>) {
    let mut upstream = Scripted::new();
    for n in 0..2 + count {
        upstream = upstream.file(&n.to_string(), File::of("x").head_held_by(gate));
    }
    let world = World::new(upstream);
    let fills = (0..2 + count)
        .map(|n| {
            let (cache, target) = (Arc::clone(&world.cache), Arc::clone(&world.target));
            let report = report.clone();
            let path = World::path(&n.to_string());
            let filling =
                thread::spawn(move || cache.fill(&target, &path, None, Wish::Fresh, &report));
            wait_until(|| world.cache.flight_count() == n + 1);
            match n {
                0 | 1 => world.upstream.wait_for(&n.to_string(), 1),
                _ => wait_until(|| world.cache.fetches.batch_queued() == n - 1),
            }
            filling
        })
        .collect();
    (world, fills)
}

#[test]
fn a_fill_that_finds_no_room_in_the_queue_takes_no_turn_of_another() {
    let gate = Gate::at(0);
    let (world, fills) = queued_fills(&gate, 4, |_| std::ops::ControlFlow::Continue(()));
    let impatient = |_| std::ops::ControlFlow::Break(());
    let path = World::path("one more");
    for _ in 0..4 {
        match world.cache.fill(&world.target, &path, None, Wish::Fresh, &impatient) {
            Err(CacheError::Fetch(why)) => assert!(matches!(*why, FetchError::Overloaded), "{why}"),
            other => panic!("{other:?}"),
        }
    }
    gate.open();
    world.settle();
    for fill in fills {
        assert!(matches!(fill.join().unwrap(), Ok(Filled::Fetched(_))));
    }
}

#[test]
fn a_cancelled_fill_that_waits_for_a_thread_is_not_fetched() {
    use std::ops::ControlFlow;
    use std::sync::atomic::{AtomicBool, Ordering};
    let (gate, is_cancelled) = (Gate::at(0), Arc::new(AtomicBool::new(false)));
    let report = {
        let is_cancelled = Arc::clone(&is_cancelled);
        move |_| match is_cancelled.load(Ordering::SeqCst) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    };
    let (world, fills) = queued_fills(&gate, 4, report);
    // Somebody else waits for one of them, and is not cancelled.
    let other = {
        let (cache, target) = (Arc::clone(&world.cache), Arc::clone(&world.target));
        let patient = |_| ControlFlow::Continue(());
        thread::spawn(move || cache.fill(&target, &World::path("5"), None, Wish::Fresh, &patient))
    };
    is_cancelled.store(true, Ordering::SeqCst);
    for fill in fills {
        assert!(matches!(fill.join().unwrap(), Ok(Filled::Cancelled)));
    }
    gate.open();
    assert!(matches!(other.join().unwrap(), Ok(Filled::Fetched(_))));
    world.settle();
    let counts = ["0", "1", "2", "3", "4", "5"].map(|path| world.upstream.count(path));
    assert_eq!(counts, [1, 1, 0, 0, 0, 1]);
}

#[test]
fn fills_that_find_no_room_to_stage_wait_for_it_unless_it_can_never_be_enough() {
    let body = bytes(MIB);
    let gate = Gate::at(1000);
    let upstream = Scripted::new()
        .file("first", File::of(body.clone()).held_by(&gate))
        .file("announced", File::of(body.clone()))
        .file("unannounced", File::of(body.clone()).chunked())
        .file("too large", File::of(bytes(3 * MIB)));
    // Room for one of them and a little.
    let world = World::with(upstream, GENERIC, 3 * MIB as u64 / 2);
    let filling = |path: &'static str| {
        let (cache, target) = (Arc::clone(&world.cache), Arc::clone(&world.target));
        let patient = |_| std::ops::ControlFlow::Continue(());
        thread::spawn(move || {
            cache.fill(&target, &World::path(path), None, Wish::Fresh, &patient).unwrap()
        })
    };
    let first = filling("first");
    gate.wait_until_held();
    let others = [filling("announced"), filling("unannounced")];
    world.upstream.wait_for("announced", 1);
    world.upstream.wait_for("unannounced", 1);
    wait_until(|| world.cache.flight_count() == 1);
    assert!(matches!(fill(&world, "too large", Wish::Fresh), Ok(Filled::Unstored)));
    assert_eq!(world.upstream.count("too large"), 1);
    gate.open();
    for fill in others.into_iter().chain([first]) {
        assert!(matches!(fill.join().unwrap(), Filled::Fetched(_)));
    }
    world.settle();
    world.check("unannounced", Outcome::Hit, &body);
}
