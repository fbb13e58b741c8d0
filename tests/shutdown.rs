//! Stopping, and two processes on one folder.

use rustix::process::Signal;

use crate::support::client::Ask;
use crate::support::remotes::Remote;
use crate::support::server::{Server, Setup};
use crate::support::upstream::{Answer, Gate, Upstream};
use crate::support::{eventually, noise};

const LARGE: usize = 1 << 20;

/// A server with a file that is held half-way; `grace` in seconds.
fn busy(grace: u32) -> (Upstream, Gate, Server, Vec<u8>) {
    let (upstream, gate, bytes) = (Upstream::start(), Gate::new(), noise(1, LARGE));
    upstream.serve("/big", Answer::file(&bytes).held_at(LARGE as u64 / 2, &gate));
    upstream.serve("/small", Answer::file(b"bytes"));
    let server = Setup::files(Remote::at(&upstream)).env("SHUTDOWN_GRACE_S", grace).start();
    (upstream, gate, server, bytes)
}

#[test]
fn a_stop_finishes_what_is_in_flight_and_exits_with_0() {
    for signal in [Signal::TERM, Signal::INT] {
        let (_upstream, gate, mut server, bytes) = busy(600);
        let running = server.begin(&Ask::get("/api/files/big"));
        server.signal(signal);
        eventually("nobody is accepted any more", || server.try_connect().is_err());
        gate.open();
        running.finish().expect(200, &bytes);
        assert_eq!(server.wait_exit().code(), Some(0));
        assert!(server.staging_files().is_empty());
        server.start_again();
        server.get("/api/files/big").expect_header("x-artifact-source", "cache");
    }
}

#[test]
fn a_stop_finishes_a_fill_that_nobody_reads_any_more() {
    let (upstream, gate, mut server, bytes) = busy(600);
    server.begin(&Ask::get("/api/files/big")).abort();
    gate.wait_reached(1);
    server.signal(Signal::TERM);
    eventually("nobody is accepted any more", || server.try_connect().is_err());
    gate.open();
    assert_eq!(server.wait_exit().code(), Some(0));
    server.start_again();
    let hit = server.get("/api/files/big");
    hit.expect(200, &bytes);
    hit.expect_header("x-artifact-source", "cache");
    assert_eq!(upstream.count("/big"), 1);
}

#[test]
fn an_idle_connection_holds_up_no_stop() {
    let (_upstream, _gate, mut server, _) = busy(600);
    let (answer, kept) = server.begin(&Ask::get("/api/files/small")).finish_keeping();
    answer.expect(200, b"bytes");
    let silent = server.connect();
    server.signal(Signal::TERM);
    assert_eq!(server.wait_exit().code(), Some(0));
    drop((kept, silent));
}

#[test]
fn a_second_signal_exits_at_once() {
    let (_upstream, _gate, mut server, bytes) = busy(600);
    let running = server.begin(&Ask::get("/api/files/big"));
    server.signal(Signal::TERM);
    eventually("nobody is accepted any more", || server.try_connect().is_err());
    server.signal(Signal::TERM);
    server.wait_exit();
    let answer = running.finish();
    assert!(!answer.looks_whole() && answer.body.len() < bytes.len());
}

#[test]
fn a_stop_waits_no_longer_than_its_grace() {
    let (_upstream, _gate, mut server, _) = busy(1);
    let running = server.begin(&Ask::get("/api/files/big"));
    server.signal(Signal::TERM);
    server.wait_exit();
    assert!(!running.finish().looks_whole());
}

#[test]
fn a_body_that_only_the_end_delimits_does_not_look_whole_when_the_process_ends() {
    for kills in [false, true] {
        let (upstream, gate, bytes) = (Upstream::start(), Gate::new(), noise(1, LARGE));
        upstream.serve("/big", Answer::file(&bytes).chunked().held_at(LARGE as u64 / 2, &gate));
        let mut server = Setup::files(Remote::at(&upstream)).env("SHUTDOWN_GRACE_S", 1).start();
        let mut running = server.begin(&Ask::get("/api/files/big").http_10());
        running.read_to(1000);
        if kills {
            server.kill();
        } else {
            server.signal(Signal::TERM);
            server.wait_exit();
        }
        assert!(!running.finish().looks_whole(), "killed: {kills}");
    }
}

#[test]
fn a_second_process_on_the_same_folder_says_so_and_ends() {
    let (_upstream, _gate, server, _) = busy(600);
    let mut second = server.start_beside();
    assert!(!second.wait_exit().success());
    let log = second.log().join("\n");
    let folder = server.data_dir().display().to_string();
    assert!(log.contains(&folder), "the folder is not named: {log}");
    // The first one is not disturbed.
    server.get("/api/files/small").expect(200, b"bytes");
}

#[test]
fn a_taken_address_says_so_and_ends() {
    let (upstream, _gate, server, _) = busy(600);
    let other = Setup::files(Remote::at(&upstream)).env("LISTEN_ADDR", server.addr()).try_start();
    let log = other.expect_err("the address is taken").join("\n");
    assert!(log.contains(&server.addr().to_string()), "the address is not named: {log}");
}
