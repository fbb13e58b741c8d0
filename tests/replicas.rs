//! Three replicas over one PostgreSQL, Redis and S3: one cache.
//!
//! `REPLICA_ROUNDS` and `REPLICA_CHAOS_SECONDS` make the tests as long as they should be before
//! a release (50 and 120); their defaults keep every run short.

use std::collections::{BTreeSet, HashMap};
use std::ops::ControlFlow;
use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use artifactapi::artifact::{ArtifactKey, BlobKey, Entry};
use artifactapi::blob::BlobStore;
use artifactapi::index::{ArtifactIndex, Scan};
use rustix::process::Signal;

use crate::support::client::{Ask, Received};
use crate::support::remotes::Remote;
use crate::support::server::{Server, Setup};
use crate::support::services::Services;
use crate::support::upstream::{Answer, Gate, Upstream};
use crate::support::{eventually, noise, sha256_hex};

const REPLICAS: usize = 3;
const CLIENTS: usize = 200;
const ROUNDS: u64 = 10;
const CHAOS_SECONDS: u64 = 15;
const INDEX_BYTES: usize = 40_000;

/// A number that the environment may set.
fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable)
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{variable}: a number")))
}

/// Starts them, and waits until each has all its services: on a busy machine one that starts may
/// find Redis too slow, and does without it for a while.
fn replicas(services: &Services, setup: impl Fn() -> Setup) -> Vec<Server> {
    let replicas: Vec<_> = (0..REPLICAS).map(|_| services.under(setup()).start()).collect();
    for replica in &replicas {
        eventually("the replica has its services", || {
            replica.get("/health").json()["status"] == "ok"
        });
    }
    replicas
}

#[test]
fn a_herd_over_all_replicas_is_one_download() {
    let (services, upstream, gate) = (Services::shared(), Upstream::start(), Gate::new());
    let bytes = noise(1, 1 << 20);
    let answer = Answer::file(&bytes).throttled(2 << 20).held_at(256 << 10, &gate);
    upstream.serve("/big", answer);
    // A stalled body does not renew the lease, and how long the clients take to come is not
    // what is tried here.
    let replicas =
        replicas(&services, || Setup::files(Remote::at(&upstream)).env("LEASE_TTL_S", 600));
    let begun: Vec<_> = replicas.iter().map(|_| AtomicUsize::new(0)).collect();
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (replica, begun) = (&replicas[client % REPLICAS], &begun[client % REPLICAS]);
            let bytes = &bytes;
            scope.spawn(move || {
                let answer = replica.begin(&Ask::get("/api/files/big"));
                begun.fetch_add(1, Ordering::SeqCst);
                answer.finish().expect(200, bytes);
            });
        }
        gate.wait_reached(1);
        for (replica, begun) in replicas.iter().zip(&begun) {
            eventually("every client is being served", || {
                replica.under_way() + begun.load(Ordering::SeqCst) >= CLIENTS / REPLICAS
            });
        }
        gate.open();
    });
    assert_eq!(upstream.count("/big"), 1);
    for replica in &replicas {
        let hit = replica.get("/api/files/big");
        hit.expect(200, &bytes);
        hit.expect_header("x-artifact-source", "cache");
    }
    assert_eq!(upstream.count("/big"), 1);
}

#[test]
fn a_replica_that_dies_in_mid_fetch_costs_the_others_one_fetch() {
    const EACH: usize = 10;
    let (services, upstream) = (Services::shared(), Upstream::start());
    let bytes = noise(2, 4 << 20);
    // Far longer than the lease: it is renewed while bytes come.
    let slow = Answer::file(&bytes).throttled(256 << 10);
    upstream.serve("/big", [slow, Answer::file(&bytes).throttled(8 << 20)]);
    let mut replicas =
        replicas(&services, || Setup::files(Remote::at(&upstream)).env("LEASE_TTL_S", 6));
    let mut leader = replicas.remove(0);
    let mut cut = leader.begin(&Ask::get("/api/files/big"));
    cut.read_to(1);
    std::thread::scope(|scope| {
        for replica in &replicas {
            for _ in 0..EACH {
                let bytes = &bytes;
                scope.spawn(move || {
                    replica.ask(&Ask::get("/api/files/big")).expect(200, bytes);
                });
            }
        }
        for replica in &replicas {
            replica.wait_under_way(EACH);
        }
        leader.kill();
    });
    assert!(!cut.finish().looks_whole());
    let asked = upstream.count("/big");
    assert!(asked <= 2, "{asked} requests");
}

/// The versions of a file and which one some bytes are.
struct Versions {
    bodies: Vec<Vec<u8>>,
    by_sum: HashMap<String, u64>,
}

impl Versions {
    fn new(count: u64) -> Self {
        let bodies: Vec<_> = (0..count).map(|version| noise(7000 + version, INDEX_BYTES)).collect();
        let by_sum = (0..count).zip(&bodies).map(|(at, body)| (sha256_hex(body), at)).collect();
        Self { bodies, by_sum }
    }

    fn answer(&self, version: u64) -> Answer {
        Answer::file(&self.bodies[version as usize]).etag(&format!("\"v{version}\""))
    }

    /// Which version an answer is; fails unless it is one, whole.
    #[track_caller]
    fn of(&self, answer: &Received) -> u64 {
        answer.expect_status(200);
        let sum = sha256_hex(&answer.body);
        if let Some(announced) = answer.header("x-checksum-sha256") {
            assert_eq!(sum, announced, "the bytes are not what their digest says");
        }
        let known = self.by_sum.get(&sum).copied();
        known.unwrap_or_else(|| panic!("no version of upstream: {:?}", answer.head))
    }
}

#[test]
fn no_replica_goes_back_to_an_older_version_of_an_index() {
    const CLIENTS_EACH: usize = 2;
    const ANSWERS_A_ROUND: usize = 4;
    let rounds = number("REPLICA_ROUNDS", ROUNDS);
    let (services, upstream) = (Services::shared(), Upstream::start());
    let versions = Versions::new(rounds);
    upstream.serve("/index", versions.answer(0));
    // The shortest lease, so that some fetches outlast theirs.
    let setup = || Setup::files(Remote::at(&upstream).always_revalidated()).env("LEASE_TTL_S", 1);
    let replicas = replicas(&services, setup);
    let is_over = AtomicBool::new(false);
    let served: Vec<_> = replicas.iter().map(|_| AtomicUsize::new(0)).collect();
    let newest: Vec<_> = replicas.iter().map(|_| AtomicU64::new(0)).collect();
    std::thread::scope(|scope| {
        let end = EndWith(&is_over);
        for (replica, (served, newest)) in replicas.iter().zip(served.iter().zip(&newest)) {
            for _ in 0..CLIENTS_EACH {
                let (versions, is_over) = (&versions, &is_over);
                scope.spawn(move || {
                    let _end = EndWith(is_over);
                    while !is_over.load(Ordering::SeqCst) {
                        let before = newest.load(Ordering::SeqCst);
                        let answer = replica.ask(&Ask::get("/api/files/index"));
                        let version = versions.of(&answer);
                        assert!(version >= before, "{version} after {before}: {:?}", answer.head);
                        newest.fetch_max(version, Ordering::SeqCst);
                        served.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
        }
        for round in 1..rounds {
            let goal: Vec<_> =
                served.iter().map(|it| it.load(Ordering::SeqCst) + ANSWERS_A_ROUND).collect();
            let answer = versions.answer(round);
            // Every fifth version takes longer than a lease lasts.
            let is_slow = round % 5 == 4;
            upstream.serve("/index", if is_slow { answer.throttled(30_000) } else { answer });
            eventually("every replica has answered some more", || {
                let mut both = served.iter().zip(&goal);
                is_over.load(Ordering::SeqCst)
                    || both.all(|(served, goal)| served.load(Ordering::SeqCst) >= *goal)
            });
        }
        drop(end);
    });
    for replica in &replicas {
        assert_eq!(versions.of(&replica.get("/api/files/index")), rounds - 1);
    }
}

/// Says that it is over when it is dropped, by a panic too: then nobody waits in vain.
struct EndWith<'a>(&'a AtomicBool);

impl Drop for EndWith<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

const FILES: u64 = 60;
const INDEXES: u64 = 4;

fn file(number: u64) -> Vec<u8> {
    noise(number, 1000 << (number % 12))
}

/// Steps of a small generator.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

/// Asks whichever replica for whatever; counts whole answers and fails for a wrong one.
fn drive(
    replicas: &[RwLock<Server>],
    versions: &Versions,
    seed: u64,
    is_over: &AtomicBool,
    answers: &AtomicUsize,
) {
    let _end = EndWith(is_over);
    let mut state = seed;
    while !is_over.load(Ordering::SeqCst) {
        let pick = next(&mut state) % (FILES + 4 * INDEXES);
        let path = match pick {
            file if file < FILES => format!("/api/files/{file}.bin"),
            index => format!("/api/index/{}", index % INDEXES),
        };
        let replica = &replicas[next(&mut state) as usize % REPLICAS];
        // One that is being started is passed by.
        let Ok(server) = replica.try_read() else { continue };
        let Ok(connection) = server.try_connect() else { continue };
        drop(server);
        let Ok(incoming) = connection.begin(&Ask::get(&path)) else { continue };
        let answer = incoming.finish();
        if answer.status() != 200 || !answer.looks_whole() {
            continue;
        }
        if pick < FILES {
            answer.expect(200, &file(pick));
            let sum = sha256_hex(&answer.body);
            assert_eq!(answer.header("x-checksum-sha256").unwrap_or(&sum), sum);
        } else {
            versions.of(&answer);
        }
        answers.fetch_add(1, Ordering::SeqCst);
    }
}

fn rows(services: &Services) -> Vec<(ArtifactKey, Entry)> {
    let mut rows = Vec::new();
    let mut visit = |row: artifactapi::index::Row| {
        rows.push((row.key, row.entry));
        ControlFlow::Continue(())
    };
    services.index().scan(&Scan::default(), &mut visit).expect("the index answers");
    rows
}

fn blobs(services: &Services) -> BTreeSet<BlobKey> {
    let mut keys = BTreeSet::new();
    let mut visit = |meta: artifactapi::blob::BlobMeta| {
        keys.insert(meta.key);
        ControlFlow::Continue(())
    };
    services.store().each(&mut visit).expect("the store answers");
    keys
}

#[test]
fn replicas_that_are_killed_at_random_never_serve_wrong_bytes() {
    const CLIENTS: u64 = 6;
    let duration = Duration::from_secs(number("REPLICA_CHAOS_SECONDS", CHAOS_SECONDS));
    let (services, upstream) = (Services::shared(), Upstream::start());
    let versions = Versions::new(200);
    for number in 0..FILES {
        let answer = Answer::file(&file(number)).etag(&format!("\"{number}\""));
        upstream.serve(&format!("/{number}.bin"), answer.throttled(4 << 20));
    }
    let setup = || {
        Setup::new()
            .remote("files", Remote::at(&upstream))
            .remote("index", Remote::at(&upstream).always_revalidated())
            .env("LEASE_TTL_S", 1)
    };
    let publish = |version: u64| {
        for number in 0..INDEXES {
            upstream.serve(&format!("/{number}"), versions.answer(version));
        }
    };
    publish(0);
    let replicas: Vec<_> = replicas(&services, setup).into_iter().map(RwLock::new).collect();
    let (is_over, answers) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut kills = 0;
    std::thread::scope(|scope| {
        let end = EndWith(&is_over);
        for seed in 0..CLIENTS {
            let (replicas, versions) = (&replicas, &versions);
            let (is_over, answers) = (&is_over, &answers);
            scope.spawn(move || drive(replicas, versions, seed, is_over, answers));
        }
        let (began, mut state) = (Instant::now(), 1);
        while began.elapsed() < duration && !is_over.load(Ordering::SeqCst) {
            let enough = answers.load(Ordering::SeqCst) + next(&mut state) as usize % 30;
            eventually("some answers came", || {
                is_over.load(Ordering::SeqCst) || answers.load(Ordering::SeqCst) >= enough
            });
            let replica = &replicas[next(&mut state) as usize % REPLICAS];
            replica.read().expect("nobody panics while holding it").signal(Signal::KILL);
            let mut server = replica.write().expect("nobody panics while holding it");
            server.wait_exit();
            server.start_again();
            kills += 1;
            publish(kills % 200);
        }
        drop(end);
    });
    drop(replicas);
    println!("{kills} kills, {} whole answers", answers.into_inner());
    assert!(kills > 2, "{kills} kills in {duration:?}");

    // What a crash would leave only by chance is there for certain.
    let (index, store) = (services.index(), services.store());
    let mut rows_now = rows(&services).into_iter();
    let (key, entry) = rows_now.next().expect("something was stored");
    assert!(index.remove(&key, entry.generation).expect("the index answers"));
    let (_, entry) = rows_now.next().expect("more was stored");
    store.remove(&entry.blob).expect("the store answers");

    let sweeping =
        services.under(setup().env("SWEEP_INTERVAL_S", 1).env("ORPHAN_AGE_S", 1)).start();
    eventually("no blob is without a row and no row without a blob", || {
        let meant: BTreeSet<_> = rows(&services).into_iter().map(|(_, entry)| entry.blob).collect();
        meant == blobs(&services)
    });
    for number in 0..FILES {
        sweeping.get(&format!("/api/files/{number}.bin")).expect(200, &file(number));
    }
}
