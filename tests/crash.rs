//! kill -9 in the middle of misses, refreshes and hits: what is served afterwards is always
//! a whole version that upstream once gave, and nothing is left over in staging.
//!
//! The moment of each kill is not a time but a number of answers, which `seeds` vary: some
//! downloads are done then, others are half-way. `CRASH_ROUNDS` raises the number of rounds.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::support::client::{Ask, Received};
use crate::support::remotes::Remote;
use crate::support::server::{Server, Setup};
use crate::support::upstream::{Answer, Upstream};
use crate::support::{eventually, noise, sha256_hex};

const ROUNDS: u64 = 10;
const CLIENTS: u64 = 6;
/// Files that never change, in each round some of them cold.
const FILES: u64 = 24;
/// Index files that have a new version in each round.
const INDEXES: u64 = 4;
const INDEX_BYTES: usize = 40_000;
/// Fast enough to finish some downloads before a kill, slow enough to cut others.
const BYTES_PER_SECOND: u64 = 8 << 20;

fn file(number: u64) -> (String, Vec<u8>) {
    (format!("/files/{number}.bin"), noise(number, 1000 << (number % 12)))
}

fn index(number: u64, round: u64) -> (String, Vec<u8>) {
    (format!("/index/{number}"), noise(1000 + number * 1000 + round, INDEX_BYTES))
}

/// Steps of a small generator: which path a client asks for next.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

fn publish(upstream: &Upstream, round: u64) {
    for number in 0..FILES {
        let (path, bytes) = file(number);
        let answer = Answer::file(&bytes).etag(&format!("\"{number}\""));
        upstream.serve(&path, answer.throttled(BYTES_PER_SECOND));
    }
    for number in 0..INDEXES {
        let (path, bytes) = index(number, round);
        upstream.serve(&path, Answer::file(&bytes).etag(&format!("\"{number}-{round}\"")));
    }
}

/// Whether an answer is a whole one; fails if it is whole and wrong.
fn is_right(path: &str, answer: &Received, upto: u64) -> bool {
    if answer.status() != 200 || !answer.looks_whole() {
        return false;
    }
    let sum = sha256_hex(&answer.body);
    if let Some(announced) = answer.header("x-checksum-sha256") {
        assert_eq!(sum, announced, "{path} is not what its digest says");
    }
    let number: u64 = path.trim_end_matches(".bin").rsplit('/').next().unwrap().parse().unwrap();
    let is_known = if path.starts_with("/files/") {
        answer.body == file(number).1
    } else {
        (0..=upto).any(|round| answer.body == index(number, round).1)
    };
    assert!(is_known, "{path} is no version that upstream had: {} bytes", answer.body.len());
    true
}

/// Asks as a client does until the server is gone.
fn drive(server: &Server, seed: u64, round: u64, answers: &AtomicUsize, is_over: &AtomicBool) {
    let mut state = seed;
    while !is_over.load(Ordering::SeqCst) {
        let pick = next(&mut state) % (FILES + 2 * INDEXES);
        let path = if pick < FILES { file(pick).0 } else { index(pick % INDEXES, 0).0 };
        let remote = if pick < FILES { "files" } else { "index" };
        let Ok(connection) = server.try_connect() else { return };
        let ask = Ask::get(&format!("/api/{remote}{path}"));
        let Ok(incoming) = connection.begin(&ask) else { continue };
        if is_right(&path, &incoming.finish(), round) {
            answers.fetch_add(1, Ordering::SeqCst);
        }
    }
}

#[test]
fn a_killed_server_never_serves_wrong_bytes_afterwards() {
    let rounds = std::env::var("CRASH_ROUNDS")
        .map_or(ROUNDS, |rounds| rounds.parse().expect("CRASH_ROUNDS is a number"));
    let upstream = Upstream::start();
    let mut server = Setup::new()
        .remote("files", Remote::at(&upstream))
        .remote("index", Remote::at(&upstream).always_revalidated())
        .start();
    for round in 0..rounds {
        publish(&upstream, round);
        if round % 5 == 4 {
            // Everything is cold again for the next rounds.
            server.kill();
            std::fs::remove_dir_all(server.data_dir()).expect("the folder can be removed");
            server.start_again();
        }
        let mut moment = round.wrapping_mul(7919) + 1;
        let enough = usize::try_from(next(&mut moment) % 40).expect("a small number");
        let (answers, is_over) = (AtomicUsize::new(0), AtomicBool::new(false));
        std::thread::scope(|scope| {
            for client in 0..CLIENTS {
                let (server, answers, is_over) = (&server, &answers, &is_over);
                scope.spawn(move || drive(server, round * 100 + client, round, answers, is_over));
            }
            eventually("some answers came", || answers.load(Ordering::SeqCst) >= enough);
            server.signal(rustix::process::Signal::KILL);
            is_over.store(true, Ordering::SeqCst);
        });
        server.wait_exit();
        server.start_again();
        assert!(server.staging_files().is_empty(), "{:?}", server.staging_files());
        for number in 0..FILES {
            let path = file(number).0;
            let answer = server.get(&format!("/api/files{path}"));
            assert!(is_right(&path, &answer, round), "{path}: {:?}", answer.head);
        }
        for number in 0..INDEXES {
            let (path, bytes) = index(number, round);
            server.get(&format!("/api/index{path}")).expect(200, &bytes);
        }
    }
}
