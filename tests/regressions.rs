//! One test for each fault that was once there, or that a crate below is known to have.

use rustix::process::Signal;

use crate::support::client::Ask;
use crate::support::eventually;
use crate::support::remotes::Remote;
use crate::support::server::{Server, Setup};
use crate::support::upstream::{Answer, Upstream};

fn world() -> (Upstream, Server) {
    let upstream = Upstream::start();
    upstream.serve("/a", Answer::file(b"bytes"));
    let server = Setup::files(Remote::at(&upstream)).start();
    server.get("/api/files/a").expect(200, b"bytes");
    (upstream, server)
}

/// Sends something, lets the server answer or close, and looks whether it still serves.
#[track_caller]
fn expect_survived(server: &Server, bytes: &[u8]) {
    let mut connection = server.connect();
    connection.send_raw(bytes);
    drop(connection);
    server.get("/api/files/a").expect(200, b"bytes");
}

/// tiny_http allocates what a Content-Length announces when it drops a request.
#[test]
fn an_absurd_content_length_does_not_end_the_process() {
    let (_upstream, server) = world();
    for length in ["99999999999999", "18446744073709551615", "99999999999999999999999"] {
        for method in ["GET", "POST"] {
            let request = format!(
                "{method} /api/files/a HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n"
            );
            expect_survived(&server, request.as_bytes());
        }
    }
}

/// tiny_http keeps a thread and two descriptors for each of these, for ever.
#[test]
fn a_client_of_http_2_does_not_end_the_service() {
    let (_upstream, server) = world();
    expect_survived(&server, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
}

#[test]
fn what_is_no_request_does_not_end_the_service() {
    let (_upstream, server) = world();
    for bytes in [
        b"\r\n\r\n".as_slice(),
        b"\0\0\0\0",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /api/files/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ] {
        expect_survived(&server, bytes);
    }
}

/// A body that nobody asked for must not be taken for the next request.
#[test]
fn an_unread_body_is_not_the_next_request() {
    let (upstream, server) = world();
    upstream.serve("/smuggled", Answer::file(b"smuggled"));
    let inner = "GET /api/files/smuggled HTTP/1.1\r\nHost: x\r\n\r\n";
    for framing in [
        format!("Content-Length: {}\r\n\r\n{inner}", inner.len()),
        format!("Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{inner}\r\n0\r\n\r\n", inner.len()),
    ] {
        let mut connection = server.connect();
        let request = format!("POST /api/files/a HTTP/1.1\r\nHost: x\r\n{framing}");
        connection.send_raw(request.as_bytes());
        let (answer, kept) = connection.incoming(false).expect("it is answered").finish_keeping();
        answer.expect_error(405);
        // Closed, or in step with the client: the next answer is for the next request.
        if let Ok(incoming) = kept.begin(&Ask::get("/api/files/a")) {
            incoming.finish().expect(200, b"bytes");
        }
    }
    assert_eq!(upstream.count("/smuggled"), 0);
}

/// Clients that come and go must leave nothing behind.
#[test]
fn threads_and_descriptors_return_to_where_they_were() {
    let (_upstream, server) = world();
    let after_requests = || {
        for _ in 0..20 {
            server.get("/api/files/a").expect(200, b"bytes");
        }
        (server.threads(), server.descriptors())
    };
    let (threads, descriptors) = after_requests();
    for _ in 0..100 {
        server.begin(&Ask::get("/api/files/a")).abort();
    }
    eventually("nothing is left behind", || {
        server.threads() <= threads + 4 && server.descriptors() <= descriptors + 4
    });
}

/// They were passed over in silence, and so was the service that they were meant for.
#[test]
fn variables_of_a_service_that_is_not_chosen_are_named_at_the_start() {
    let upstream = Upstream::start();
    let setup = Setup::files(Remote::at(&upstream)).env("MINIO_ACCESS_KEY", "key");
    let server = setup.env("DBUSER", "user").start();
    server.wait_logged(&["WARN", "MINIO_ACCESS_KEY does nothing, because MINIO_ENDPOINT is not"]);
    server.wait_logged(&["WARN", "DBUSER does nothing, because DBHOST is not set"]);
    server.wait_logged(&["listening on ", "disk", "SQLite", "memory"]);
}

/// tracing-subscriber tells of a line that it could not write with `eprintln!`, which panics
/// where standard error is gone.
#[test]
fn a_log_that_nobody_reads_any_more_ends_nothing() {
    let (_upstream, mut server) = world();
    server.end_log();
    for _ in 0..3 {
        server.get("/api/files/a").expect(200, b"bytes");
    }
    server.signal(Signal::TERM);
    assert_eq!(server.wait_exit().code(), Some(0));
}
