//! A file system of `DATA_DIR` that is really full: what is stored is served, and what is to go
//! can go, so that nobody has to remove files by hand.

use std::fs;
use std::os::unix::fs::MetadataExt;

use rustix::process::Signal;

use crate::support::client::{Ask, Received};
use crate::support::remotes::{Remote, remotes_yaml};
use crate::support::server::{Server, Setup};
use crate::support::upstream::{Answer, Upstream};
use crate::support::{eventually, noise};

const ADMIN: &str = "a-token-of-the-tests";
const DISK_BYTES: u64 = 16 << 20;
/// What the README says is kept of it.
const RESERVE_BYTES: u64 = 4 << 20;
const FILES: usize = 40;

/// A remote with [`FILES`] stored, on a disk that something else has filled to the last byte.
struct Full {
    upstream: Upstream,
    files: Vec<Vec<u8>>,
    server: Server,
}

impl Full {
    fn new(setup: impl FnOnce(Setup) -> Setup) -> Self {
        let upstream = Upstream::start();
        let files: Vec<Vec<u8>> = (0..FILES).map(|at| noise(at as u64, 50_000)).collect();
        let server = setup(Setup::files(Remote::at(&upstream)).env("ADMIN_TOKEN", ADMIN))
            .disk_bytes(DISK_BYTES)
            .start();
        for (number, bytes) in files.iter().enumerate() {
            upstream.serve(&format!("/{number}"), Answer::file(bytes));
            server.get(&format!("/api/files/{number}")).expect(200, bytes);
        }
        assert_eq!(stored(&server).len(), FILES);
        server.disk().fill();
        Self { upstream, files, server }
    }

    #[track_caller]
    fn expect(&self, number: usize, source: &str) {
        let answer = self.server.get(&format!("/api/files/{number}"));
        answer.expect(200, &self.files[number]);
        answer.expect_header("x-artifact-source", source);
    }

    /// Something else takes all room that there is, and the server comes back.
    fn fill_and_start_again(&mut self) {
        self.server.disk().fill();
        self.server.start_again();
    }
}

fn stored(server: &Server) -> Vec<String> {
    let listing = server.get("/artifacts/files?limit=1000").json();
    let artifacts = listing["artifacts"].as_array().expect("a list");
    artifacts.iter().map(|one| one["path"].as_str().expect("a path").to_owned()).collect()
}

fn delete(server: &Server, target: &str) -> Received {
    server.ask(&Ask::delete(target).token(ADMIN))
}

/// Purges many, of which none may fail; says how many went.
#[track_caller]
fn purge(server: &Server, selection: &str) -> usize {
    let answer = delete(server, &format!("/artifacts/files?{selection}")).json();
    assert_eq!(answer["failed"], serde_json::json!([]));
    answer["purged_count"].as_u64().expect("a number") as usize
}

/// Waits until health says what is wrong with the blobs; the server stays ready all the same.
#[track_caller]
fn expect_told(server: &Server, sign: &str) {
    eventually("health says so", || {
        let health = server.get("/health").json();
        let detail = health["backends"]["blobs"]["detail"].as_str().unwrap_or_default();
        health["status"] == "degraded" && detail.contains(sign)
    });
    server.get("/health/ready").expect_status(200);
}

/// How much room is kept for the index, in bytes.
fn reserved(server: &Server) -> u64 {
    let reserve = fs::metadata(server.data_dir().join("index.reserve"));
    reserve.map_or(0, |file| file.blocks() * 512)
}

#[test]
fn hits_are_served_misses_pass_and_uploads_are_refused() {
    let full = Full::new(|setup| setup.remote("own", Remote::local()));
    let late = noise(99, 50_000);
    full.upstream.serve("/late", Answer::file(&late));
    full.expect(0, "cache");
    let passed = full.server.get("/api/files/late");
    passed.expect(200, &late);
    passed.expect_header("cache-status", "artifactapi; fwd=bypass");
    let upload = Ask::put("/api/own/late", &late).token(ADMIN);
    full.server.ask(&upload).expect_error(507);
    assert_eq!(reserved(&full.server), RESERVE_BYTES, "none of these takes what is kept");
    expect_told(&full.server, "no storage space");

    full.server.disk().make_room();
    full.server.ask(&upload).expect_status(201);
    // Not the same one: for a minute it is known to find no room.
    full.upstream.serve("/later", Answer::file(&late));
    full.server.get("/api/files/later").expect(200, &late);
    full.server.get("/api/files/later").expect_header("x-artifact-source", "cache");
}

#[test]
fn more_free_than_there_is_stops_the_start() {
    let setup = Setup::files(Remote::at(&Upstream::start())).disk_bytes(DISK_BYTES);
    let log = setup.env("CACHE_MIN_FREE_BYTES", "10Gi").try_start().expect_err("it cannot be");
    assert!(log.concat().contains("CACHE_MIN_FREE_BYTES is 10737418240"), "{log:?}");
}

#[test]
fn the_least_recently_used_go_where_something_else_takes_the_room() {
    let floor = 1 << 20;
    let full = Full::new(|setup| setup.env("CACHE_MIN_FREE_BYTES", floor));
    eventually("there is room again", || full.server.disk().free_bytes() >= floor);
    let left = stored(&full.server);
    assert!(left.len() < FILES && left.len() > FILES / 4, "no more than it takes: {left:?}");
    full.expect(FILES - 1, "cache");
    full.expect(0, "remote");
    full.expect(0, "cache");
}

#[test]
fn a_file_that_the_disk_has_no_room_for_is_passed_through_whole() {
    let (upstream, large) = (Upstream::start(), noise(98, 20 << 20));
    upstream.serve("/large", Answer::file(&large));
    let server = Setup::files(Remote::at(&upstream)).disk_bytes(DISK_BYTES).start();
    for _ in 0..2 {
        let passed = server.get("/api/files/large");
        passed.expect(200, &large);
        passed.expect_header("cache-status", "artifactapi; fwd=bypass");
    }
}

#[test]
fn where_no_scratch_file_can_be_made_misses_pass_too() {
    let upstream = Upstream::start();
    for path in ["/a", "/b"] {
        upstream.serve(path, Answer::file(path.as_bytes()));
    }
    let server = Setup::files(Remote::at(&upstream)).start();
    server.get("/api/files/a").expect(200, b"/a");
    let staging = server.data_dir().join("staging");
    fs::remove_dir_all(&staging).expect("it can be removed");
    fs::write(&staging, "not a folder").expect("its name is free");
    server.get("/api/files/a").expect_header("x-artifact-source", "cache");
    for _ in 0..2 {
        let passed = server.get("/api/files/b");
        passed.expect(200, b"/b");
        passed.expect_header("cache-status", "artifactapi; fwd=bypass");
    }
    expect_told(&server, "staging: ");
    fs::remove_file(&staging).expect("it can be removed");
    eventually("it is stored again", || {
        server.get("/api/files/b");
        server.blob_files().len() == 2
    });
}

#[test]
fn what_is_purged_goes_and_gives_its_room_back() {
    let full = Full::new(|setup| setup);
    let server = &full.server;
    for round in 0..3 {
        delete(server, &format!("/api/files/{round}")).expect(204, b"");
        server.disk().fill();
    }
    assert_eq!(purge(server, "include_pattern=^1"), 10);
    server.disk().fill();
    full.expect(20, "cache");
    assert_eq!(purge(server, "all=true"), FILES - 3 - 10);
    assert!(server.blob_files().is_empty(), "{:?}", server.blob_files());

    full.expect(0, "remote");
    full.expect(0, "cache");
    eventually("as much is kept as before", || reserved(server) == RESERVE_BYTES);
}

#[test]
fn a_server_starts_again_and_again() {
    let mut full = Full::new(|setup| setup);
    for round in 0..3 {
        full.server.kill();
        full.fill_and_start_again();
        full.expect(round, "cache");
        full.server.signal(Signal::TERM);
        assert!(full.server.wait_exit().success());
        // SQLite makes it anew, which takes room.
        let shared = full.server.data_dir().join("index.sqlite-shm");
        if let Err(error) = fs::remove_file(shared) {
            assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{error}");
        }
        full.fill_and_start_again();
        full.expect(round, "cache");
    }
    delete(&full.server, "/api/files/0").expect(204, b"");
    full.server.disk().make_room();
    eventually("as much is kept as before", || reserved(&full.server) == RESERVE_BYTES);
    full.expect(0, "remote");
    full.expect(0, "cache");
}

#[test]
fn without_any_room_a_start_is_refused_with_the_fix() {
    let mut full = Full::new(|setup| setup);
    full.server.kill();
    fs::remove_file(full.server.data_dir().join("index.reserve")).expect("it is there");
    full.server.disk().fill();
    let mut refused = full.server.start_beside();
    assert!(!refused.wait_exit().success());
    let log = refused.log().join("\n");
    assert!(log.contains("index.sqlite, because its file system is full: make"), "{log}");
    full.server.disk().make_room();
    full.server.start_again();
    full.expect(0, "cache");
}

#[test]
fn what_exceeds_a_bound_is_evicted_and_what_is_gone_is_swept() {
    let full = Full::new(|setup| setup.env("SWEEP_INTERVAL_S", 1).env("ORPHAN_AGE_S", 1));
    let server = &full.server;
    let lost = server.blob_files().pop().expect("there are blobs");
    let name = lost.file_name().and_then(|name| name.to_str()).expect("a name").to_owned();
    fs::remove_file(&lost).expect("it is there");
    server.disk().fill();
    eventually("its row is gone", || !stored(server).contains(&name));

    server.disk().fill();
    let yaml = remotes_yaml(&[("files", Remote::at(&full.upstream))]);
    server.rewrite_config(&yaml.replace("cache:\n", "cache:\n      max_bytes: 500000\n"));
    server.signal(Signal::HUP);
    eventually("no more than the bound is stored", || stored(server).len() <= 10);
    assert!(server.blob_files().len() <= 10);
}

#[test]
fn verify_drops_what_is_wrong() {
    let mut full = Full::new(|setup| setup);
    full.server.signal(Signal::TERM);
    assert!(full.server.wait_exit().success());
    let wrong = full.server.blob_files().pop().expect("there are blobs");
    fs::remove_file(&wrong).expect("it is there");
    full.server.disk().fill();
    let verified = full.server.command(&["verify", "--repair"]);
    assert!(verified.status.success(), "{verified:?}");
    full.fill_and_start_again();
    assert_eq!(stored(&full.server).len(), FILES - 1);
}
