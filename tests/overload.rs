//! What an operator's probes and scrapes get while there is no room for anybody else.

use std::io::Read;
use std::net::TcpListener;

use rustix::process::Signal;

use crate::support::client::{Ask, Connection};
use crate::support::remotes::Remote;
use crate::support::server::{Server, Setup};
use crate::support::upstream::{Answer, Gate, Upstream};
use crate::support::{eventually, noise};

/// Probes and scrapes in a row: more than there are seats, so that each must be given back.
const PROBES: usize = 30;

/// Asks for health and metrics, as often as a monitoring system might in this state.
#[track_caller]
fn expect_to_be_observable(server: &Server) {
    for _ in 0..PROBES {
        let health = server.get("/health");
        health.expect_status(200);
        assert!(health.json()["status"].is_string(), "{:?}", health.json());
        let metrics = server.get("/metrics");
        metrics.expect_status(200);
        assert!(metrics.text().ends_with("# EOF\n"), "it is whole");
    }
}

/// A server whose remote is not asked for anything.
fn nothing_to_fetch() -> Setup {
    Setup::files(Remote::at_url("http://127.0.0.1:9"))
}

/// An upstream whose file `/held` does not come before the gate is opened.
fn held() -> (Upstream, Gate) {
    let (upstream, gate) = (Upstream::start(), Gate::new());
    upstream.serve("/held", Answer::file(b"bytes").head_held_by(&gate));
    (upstream, gate)
}

/// Sends a request and leaves its answer for later.
fn asked(server: &Server, target: &str) -> Connection {
    let mut connection = server.connect();
    connection.send_raw(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes());
    connection
}

#[test]
fn health_and_metrics_answer_while_every_worker_and_ordinary_connection_is_taken() {
    let server = Setup::new()
        .with_uploads()
        .env("WORKERS", 2)
        .env("QUEUE_MAX", 6)
        .env("CONNECTIONS_MAX", 12)
        .env("CONNECTIONS_RESERVED", 4)
        .start();
    let uploads = ["a", "b"].map(|path| server.hold_a_worker(path));
    server.wait_under_way(2);
    expect_to_be_observable(&server);

    let queued: Vec<Connection> = (0..6).map(|_| asked(&server, "/artifacts/own")).collect();
    eventually("the queue is full", || server.metric("artifactapi_queued") == 6.0);
    // All eight ordinary connections are taken now: what comes has a reserved one.
    expect_to_be_observable(&server);
    for _ in 0..PROBES {
        server.ask(&Ask::get("/artifacts/own")).expect_error(503);
    }
    expect_to_be_observable(&server);

    for (mut upload, rest) in uploads {
        upload.send_raw(&rest);
        upload.incoming(false).expect("it is answered").finish().expect_status(201);
    }
    for connection in queued {
        connection.incoming(false).expect("who waited is answered").finish().expect_status(200);
    }
}

#[test]
fn clients_that_wait_for_upstream_hold_no_worker() {
    const WAITING: usize = 20;
    let (upstream, beginning, middle) = (Upstream::start(), Gate::new(), Gate::new());
    // Little enough for the sockets' buffers, so that nobody waits for the clients.
    let bytes = noise(1, 50_000);
    upstream.serve("/silent", Answer::file(&bytes).head_held_by(&beginning));
    upstream.serve("/slow", Answer::file(&bytes).held_at(30_000, &middle));
    upstream.serve("/other", Answer::file(b"other"));
    let server = Setup::files(Remote::at(&upstream)).env("WORKERS", 2).start();
    server.get("/api/files/other").expect(200, b"other");
    let waiting =
        |path: &str| -> Vec<Connection> { (0..WAITING).map(|_| asked(&server, path)).collect() };
    let (silent, slow) = (waiting("/api/files/silent"), waiting("/api/files/slow"));
    eventually("all of them wait without a worker", || {
        server.metric("artifactapi_waiting") == 2.0 * WAITING as f64
    });
    assert_eq!(server.metric("artifactapi_busy_workers"), 0.0);
    let hit = server.ask(&Ask::get("/api/files/other"));
    hit.expect_header("x-artifact-source", "cache");
    upstream.serve("/another", Answer::file(b"another"));
    server.ask(&Ask::get("/api/files/another")).expect(200, b"another");
    for (gate, clients) in [(beginning, silent), (middle, slow)] {
        gate.open();
        for client in clients {
            client.incoming(false).expect("it is answered").finish().expect(200, &bytes);
        }
    }
    for path in ["/silent", "/slow"] {
        assert_eq!(upstream.count(path), 1, "{path}");
    }
    assert_eq!(server.metric("artifactapi_waiting"), 0.0);
}

#[test]
fn whatever_of_a_slow_file_is_asked_for_holds_no_worker() {
    let (upstream, gate) = (Upstream::start(), Gate::new());
    let bytes = noise(1, 3_000_000);
    let slow = Answer::file(&bytes).etag("\"v1\"").ignoring_ranges();
    upstream.serve("/slow", slow.held_at(30_000, &gate));
    upstream.serve("/other", Answer::file(b"other"));
    let server = Setup::files(Remote::at(&upstream)).env("WORKERS", 1).start();
    server.get("/api/files/other").expect(200, b"other");
    let slow = Ask::get("/api/files/slow");
    let far = 2_900_000..2_900_100;
    let asks = [
        (slow.clone().range("50000-50099"), 206, &bytes[50_000..50_100]),
        (slow.clone().range("2900000-2900099"), 206, &bytes[far.clone()]),
        (slow.clone().range("0-9, 2900000-2900099"), 206, &bytes[far]),
        (slow.clone().range("-100"), 206, &bytes[bytes.len() - 100..]),
        (slow.clone().header("Want-Repr-Digest", "sha-256=1"), 200, &bytes[..]),
        (slow.http_10(), 200, &bytes[..]),
    ];
    let mut waiting = Vec::new();
    for (ask, status, expected) in asks {
        let mut connection = server.connect();
        connection.send_raw(&ask.wire(server.addr()).0);
        waiting.push((connection, status, expected));
        eventually("it waits", || server.metric("artifactapi_waiting") == waiting.len() as f64);
        server.ask(&Ask::get("/api/files/other")).expect(200, b"other");
    }
    gate.open();
    for (connection, status, expected) in waiting {
        let answer = connection.incoming(false).expect("it is answered").finish();
        answer.expect_status(status);
        let has_expected = answer.body.windows(expected.len()).any(|run| run == expected);
        assert!(has_expected, "{:?}", answer.head);
    }
}

#[test]
fn ranges_far_ahead_hold_a_quarter_of_the_workers_at_most() {
    let (upstream, gate) = (Upstream::start(), Gate::new());
    let bytes = noise(1, 3_000_000);
    let file = || Answer::file(&bytes).etag("\"v1\"");
    // The file is slow to come, and its parts do not come at all.
    upstream.serve("/slow", [file().held_at(30_000, &gate), file().head_held_by(&gate)]);
    upstream.serve("/other", Answer::file(b"other"));
    let server = Setup::files(Remote::at(&upstream)).env("WORKERS", 4).start();
    server.get("/api/files/other").expect(200, b"other");
    let first = asked(&server, "/api/files/slow");
    eventually("it waits", || server.metric("artifactapi_waiting") == 1.0);
    let far = Ask::get("/api/files/slow").range("2900000-2900099");
    let clients: Vec<Connection> = (0..6)
        .map(|_| {
            let mut connection = server.connect();
            connection.send_raw(&far.wire(server.addr()).0);
            connection
        })
        .collect();
    eventually("all but one wait", || server.metric("artifactapi_waiting") == 6.0);
    server.ask(&Ask::get("/api/files/other")).expect(200, b"other");
    assert_eq!(upstream.count("/slow"), 2, "the file, and one part of it");
    gate.open();
    for client in clients {
        let answer = client.incoming(false).expect("it is answered").finish();
        answer.expect(206, &bytes[2_900_000..2_900_100]);
    }
    first.incoming(false).expect("it is answered").finish().expect(200, &bytes);
}

#[test]
fn clients_that_close_make_room_for_others() {
    const ROOM: usize = 8;
    let (upstream, gate) = held();
    let server =
        Setup::files(Remote::at(&upstream)).env("CONNECTIONS_PER_ADDRESS_MAX", ROOM).start();
    for number in 0..3 * ROOM {
        drop(asked(&server, "/api/files/held"));
        server.ask(&Ask::get("/health")).expect_status(200);
        assert!(server.metric("artifactapi_waiting") <= ROOM as f64, "after {number}");
    }
    gate.open();
    server.get("/api/files/held").expect(200, b"bytes");
    assert_eq!(upstream.count("/held"), 1);
}

#[test]
fn a_client_that_leaves_while_it_waits_without_a_worker_has_its_line() {
    let (upstream, gate) = held();
    let server = Setup::files(Remote::at(&upstream)).start();
    let client = asked(&server, "/api/files/held");
    eventually("it waits", || server.metric("artifactapi_waiting") == 1.0);
    client.reset();
    server.wait_logged(&["access", "/api/files/held", "client left"]);
    assert_eq!(server.metric("artifactapi_waiting"), 0.0);
    gate.open();
    server.get("/api/files/held").expect(200, b"bytes");
    assert_eq!(upstream.count("/held"), 1);
}

#[test]
fn a_stop_answers_those_who_wait_without_a_worker() {
    let (upstream, gate) = held();
    let server = Setup::files(Remote::at(&upstream)).env("WORKERS", 4).env("SHUTDOWN_GRACE_S", 600);
    let mut server = server.start();
    let clients: Vec<Connection> = (0..3).map(|_| asked(&server, "/api/files/held")).collect();
    eventually("all wait", || server.metric("artifactapi_waiting") == 3.0);
    server.signal(Signal::TERM);
    eventually("nobody is accepted any more", || server.try_connect().is_err());
    gate.open();
    for client in clients {
        client.incoming(false).expect("it is answered").finish().expect(200, b"bytes");
    }
    assert_eq!(server.wait_exit().code(), Some(0));
}

#[test]
fn health_and_metrics_answer_while_a_backend_hangs() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = silent.local_addr().expect("a listener has an address");
    // It takes connections and requests, and never answers.
    std::thread::spawn(move || {
        let swallow = |mut stream: std::net::TcpStream| {
            while stream.read(&mut [0; 1024]).is_ok_and(|read| read > 0) {}
        };
        for stream in silent.incoming().map_while(Result::ok) {
            std::thread::spawn(move || swallow(stream));
        }
    });
    let upstream = Upstream::start();
    upstream.serve("/a", Answer::file(b"bytes"));
    let server = Setup::files(Remote::at(&upstream))
        .env("WORKERS", 2)
        .env("REDIS_URL", format!("redis://{address}/0"))
        .start();
    eventually("the backend is found to be down", || {
        server.get("/health").json()["backends"]["coordination"]["status"] == "down"
    });
    expect_to_be_observable(&server);
    // Losing it costs duplicate work at most.
    server.get("/api/files/a").expect(200, b"bytes");
    expect_to_be_observable(&server);
}

#[test]
fn a_remote_whose_upstream_never_answers_leaves_threads_and_places_to_the_others() {
    let (silent, upstream) = (Upstream::start(), Upstream::start());
    let server = Setup::files(Remote::at(&upstream))
        .remote("silent", Remote::at(&silent))
        .env("WORKERS", 64)
        .env("FETCH_THREADS", 8)
        .env("FETCH_QUEUE_MAX", 8)
        .start();
    // More than there are threads: of those and of the places in the queue it gets six each.
    let waiting: Vec<Connection> = (0..12)
        .map(|n| {
            silent.serve(&format!("/{n}"), Answer::stalled());
            asked(&server, &format!("/api/silent/{n}"))
        })
        .collect();
    eventually("its share of the threads is taken", || silent.total() == 6);
    eventually("and that of the queue", || server.metric("artifactapi_fetches_queued") == 6.0);
    let refused = server.ask(&Ask::get("/api/silent/one-more"));
    refused.expect_error(503);
    assert!(refused.header("retry-after").is_some(), "{:?}", refused.head);
    let shed = "artifactapi_requests_total{remote=\"silent\",outcome=\"shed\"}";
    eventually("it is counted", || server.metric(shed) == 1.0);
    for n in 0..20 {
        upstream.serve(&format!("/{n}"), Answer::file(b"bytes"));
        server.ask(&Ask::get(&format!("/api/files/{n}"))).expect(200, b"bytes");
    }
    // Nobody had to wait for an end of what hangs.
    assert_eq!(silent.total(), 6);
    drop(waiting);
}

#[test]
fn what_never_became_a_request_has_its_line_and_its_count() {
    let server = nothing_to_fetch().env("HEAD_TIMEOUT_S", "0.1").start();
    for (wire, status) in [
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\n", 408),
        ("BREW / HTTP/1.1\r\nHost: a\r\n\r\n", 501),
    ] {
        let mut connection = server.connect();
        connection.send_raw(wire.as_bytes());
        let answer = connection.incoming(false).expect("it is answered").finish();
        answer.expect_error(status);
        let status = status.to_string();
        server.wait_logged(&["access", "no request", &status, "127.0.0.1"]);
        let count = server.metric(&format!("artifactapi_refusals_total{{status=\"{status}\"}}"));
        assert_eq!(count, 1.0, "{status}");
    }
}

#[test]
fn a_flood_of_what_is_no_request_does_not_flood_the_log() {
    const FLOOD: usize = 300;
    let server = nothing_to_fetch().start();
    let began = std::time::Instant::now();
    for _ in 0..FLOOD {
        let mut connection = Connection::open(server.addr()).expect("the server listens");
        connection.send_raw(b"?\r\n\r\n");
        connection.incoming(false).expect("it is answered").finish().expect_error(400);
    }
    assert_eq!(server.metric("artifactapi_refusals_total{status=\"400\"}"), FLOOD as f64);
    // The lines of each second that it took, and of one more, begun but not over.
    let allowed = 10 * (began.elapsed().as_secs() as usize + 2);
    let lines = server.log().iter().filter(|line| line.contains("no request")).count();
    assert!(lines > 0 && lines <= allowed, "{lines} lines for {FLOOD} refusals");
}
