//! Many clients on one cold file: one fetch, and no client is in another's way.

use crate::support::client::Ask;
use crate::support::remotes::Remote;
use crate::support::server::{Server, Setup};
use crate::support::upstream::{Answer, Gate, Upstream};
use crate::support::{assert_same_bytes, eventually, noise};

/// How often one fetch may ask, with its retries.
const FETCH_ATTEMPTS_MAX: usize = 5;

/// A server with one remote, whose file is held at a byte.
fn held(bytes: &[u8], at: u64) -> (Upstream, Gate, Server) {
    let (upstream, gate) = (Upstream::start(), Gate::new());
    upstream.serve("/big", Answer::file(bytes).etag("\"v1\"").held_at(at, &gate));
    let server = Setup::files(Remote::at(&upstream)).start();
    (upstream, gate, server)
}

#[test]
fn a_herd_on_a_cold_file_is_one_fetch() {
    let upstream = Upstream::start();
    let bytes = noise(1, 8 << 20);
    upstream.serve("/big", Answer::file(&bytes).throttled(2 << 20));
    let server = Setup::files(Remote::at(&upstream)).start();
    // Connections are opened 20 ms apart: 100 of them take half of the download's time.
    std::thread::scope(|scope| {
        for _ in 0..100 {
            scope.spawn(|| server.get("/api/files/big").expect(200, &bytes));
        }
    });
    assert_eq!(upstream.count("/big"), 1);
}

#[test]
fn the_first_client_may_go_away_without_ending_the_fill() {
    let bytes = noise(2, 4 << 20);
    let (upstream, gate, server) = held(&bytes, 1 << 20);
    let mut first = server.begin(&Ask::get("/api/files/big"));
    first.read_to(1000);
    let mut second = server.begin(&Ask::get("/api/files/big"));
    second.read_to(1000);
    first.abort();
    gate.open();
    second.finish().expect(200, &bytes);
    assert_eq!(upstream.count("/big"), 1);
}

#[test]
fn a_fill_goes_on_when_every_client_has_gone() {
    let bytes = noise(3, 4 << 20);
    let (upstream, gate, server) = held(&bytes, 1 << 20);
    server.begin(&Ask::get("/api/files/big")).abort();
    gate.open();
    eventually("the file is stored", || server.blob_files().len() == 1);
    let hit = server.get("/api/files/big");
    hit.expect(200, &bytes);
    assert_eq!(upstream.count("/big"), 1);
}

#[test]
fn a_latecomer_gets_the_beginning_at_once() {
    let bytes = noise(4, 4 << 20);
    let (upstream, gate, server) = held(&bytes, 2 << 20);
    let first = server.begin(&Ask::get("/api/files/big"));
    gate.wait_reached(1);
    let mut late = server.begin(&Ask::get("/api/files/big"));
    assert_same_bytes(&late.read_to(1 << 20)[..1 << 20], &bytes[..1 << 20]);
    gate.open();
    late.finish().expect(200, &bytes);
    first.finish().expect(200, &bytes);
    assert_eq!(upstream.count("/big"), 1);
}

#[test]
fn a_client_that_reads_nothing_slows_nobody() {
    let upstream = Upstream::start();
    let bytes = noise(5, 32 << 20);
    upstream.serve("/big", Answer::file(&bytes));
    let server = Setup::files(Remote::at(&upstream)).start();
    let idle = server.begin(&Ask::get("/api/files/big"));
    server.get("/api/files/big").expect(200, &bytes);
    assert_eq!(upstream.count("/big"), 1);
    idle.finish().expect(200, &bytes);
}

#[test]
fn a_held_file_does_not_hold_another() {
    let (upstream, gate, server) = held(&noise(6, 1 << 20), 1000);
    upstream.serve("/other", Answer::file(b"bytes"));
    let waiting = server.begin(&Ask::get("/api/files/big"));
    server.ask(&Ask::get("/api/files/other")).expect(200, b"bytes");
    gate.open();
    waiting.finish().expect_status(200);
}

#[test]
fn a_failed_fetch_is_one_failure_for_all_who_wait() {
    let upstream = Upstream::start();
    let server = Setup::files(Remote::at(&upstream).with("negative_ttl: 0")).start();
    for (upstream_status, status) in [(404, 404), (403, 502), (501, 502)] {
        let (path, gate) = (format!("/{upstream_status}"), Gate::new());
        upstream.serve(&path, Answer::status(upstream_status).head_held_by(&gate));
        std::thread::scope(|scope| {
            for _ in 0..10 {
                scope.spawn(|| server.get(&format!("/api/files{path}")).expect_error(status));
            }
            server.wait_under_way(10);
            gate.open();
        });
        assert_eq!(upstream.answering_peak(&path), 1);
        let asked = upstream.count(&path);
        assert!(asked <= FETCH_ATTEMPTS_MAX, "{asked} requests for {path}");
    }
}

#[test]
fn head_during_a_fill_waits_for_no_byte_of_the_body() {
    let bytes = noise(7, 1 << 20);
    let (upstream, gate, server) = held(&bytes, 1000);
    let first = server.begin(&Ask::get("/api/files/big"));
    let head = server.ask(&Ask::head("/api/files/big"));
    head.expect(200, b"");
    head.expect_header("content-length", &bytes.len().to_string());
    head.expect_header("etag", "\"v1\"");
    gate.open();
    first.finish().expect(200, &bytes);
    assert_eq!(upstream.count("/big"), 1);
}

#[test]
fn refreshes_of_one_index_are_one_question() {
    let (upstream, gate) = (Upstream::start(), Gate::new());
    upstream.serve("/latest", Answer::file(b"one").etag("\"v1\""));
    let server = Setup::files(Remote::at(&upstream).always_revalidated()).start();
    server.get("/api/files/latest").expect(200, b"one");
    upstream.serve("/latest", Answer::file(b"two").etag("\"v2\"").head_held_by(&gate));
    std::thread::scope(|scope| {
        for _ in 0..10 {
            scope.spawn(|| server.get("/api/files/latest").expect(200, b"two"));
        }
        server.wait_under_way(10);
        gate.open();
    });
    assert_eq!(upstream.count("/latest"), 2);
}
