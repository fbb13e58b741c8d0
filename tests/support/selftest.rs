//! The harness against itself: a client that overlooks a cut body would make every test
//! about failures pass.

use super::client::{Ask, Connection, End, Received};
use super::upstream::{Answer, Gate, Upstream};
use super::{eventually, noise, sha256_hex};

fn fetch(upstream: &Upstream, ask: &Ask) -> Result<Received, String> {
    let connection = Connection::open(upstream.addr()).expect("the upstream listens");
    connection.begin(ask).map(super::client::Incoming::finish)
}

#[track_caller]
fn check_end(answer: Answer, len: usize, is_end: impl Fn(&End) -> bool) {
    let upstream = Upstream::start();
    upstream.serve("/x", answer);
    let received = fetch(&upstream, &Ask::get("/x")).expect("a head comes");
    assert!(is_end(&received.end), "{:?} after {} bytes", received.end, received.body.len());
    assert_eq!(received.body.len(), len);
}

#[test]
fn a_strict_client_tells_whole_bodies_from_broken_ones() {
    let bytes = noise(1, 100_000);
    let file = || Answer::file(&bytes);
    let is_broken = |end: &End| matches!(end, End::Broken(_));
    let is_whole = |end: &End| *end == End::Whole;
    check_end(file(), 100_000, is_whole);
    check_end(file().chunked(), 100_000, is_whole);
    check_end(file().until_close(), 100_000, |end| *end == End::Closed);
    check_end(file().cut_at(70_000), 70_000, is_broken);
    check_end(file().chunked().cut_at(70_000), 70_000, is_broken);
    check_end(file().chunked_without_end(), 100_000, is_broken);
    check_end(file().claiming_length(100_001), 100_000, is_broken);
    check_end(file().claiming_length(99_999), 99_999, is_whole);
}

#[test]
fn a_reset_is_seen_as_one() {
    let upstream = Upstream::start();
    upstream.serve("/head", Answer::reset());
    upstream.serve("/closed", Answer::closed());
    upstream.serve("/body", Answer::file(&noise(1, 10)).reset_at(5));
    assert!(fetch(&upstream, &Ask::get("/head")).unwrap_err().contains("broke"));
    assert!(fetch(&upstream, &Ask::get("/closed")).unwrap_err().contains("closed"));
    // A reset may overtake the head.
    if let Ok(received) = fetch(&upstream, &Ask::get("/body")) {
        assert!(!received.looks_whole());
    }
}

#[test]
fn a_gate_holds_a_body_at_its_byte_and_stalls_end_with_the_client() {
    let upstream = Upstream::start();
    let gate = Gate::new();
    let bytes = noise(2, 50_000);
    upstream.serve("/gated", Answer::file(&bytes).held_at(20_000, &gate));
    upstream.serve("/stalled", Answer::file(&bytes).stalled_at(10));
    let connection = Connection::open(upstream.addr()).unwrap();
    let mut incoming = connection.begin(&Ask::get("/gated")).unwrap();
    gate.wait_reached(1);
    assert_eq!(incoming.read_to(20_000), &bytes[..20_000]);
    assert_eq!(upstream.answering("/gated"), 1);
    gate.open();
    incoming.finish().expect(200, &bytes);

    let connection = Connection::open(upstream.addr()).unwrap();
    let mut incoming = connection.begin(&Ask::get("/stalled")).unwrap();
    assert_eq!(incoming.read_to(10), &bytes[..10]);
    incoming.abort();
    eventually("the stalled answer has ended", || upstream.answering("/stalled") == 0);
}

#[test]
fn ranges_and_conditions_are_answered_as_an_honest_server_does() {
    let upstream = Upstream::start();
    let bytes = noise(3, 1000);
    let date = "Wed, 01 Jan 2025 00:00:00 GMT";
    upstream.serve("/x", Answer::file(&bytes).etag("\"v1\"").last_modified(date));
    let check = |name: &str, value: &str, range: &str, status: u16, body: &[u8]| {
        let mut ask = Ask::get("/x").header(name, value);
        if !range.is_empty() {
            ask = ask.range(range);
        }
        fetch(&upstream, &ask).expect("a head comes").expect(status, body);
    };
    check("x", "x", "0-9", 206, &bytes[..10]);
    check("x", "x", "990-5000", 206, &bytes[990..]);
    check("x", "x", "-5", 206, &bytes[995..]);
    check("x", "x", "1000-", 416, b"");
    check("If-Range", "\"v1\"", "0-9", 206, &bytes[..10]);
    check("If-Range", "\"v2\"", "0-9", 200, &bytes);
    check("If-None-Match", "\"v0\", W/\"v1\"", "", 304, b"");
    check("If-None-Match", "\"v2\"", "", 200, &bytes);
    check("If-Modified-Since", date, "", 304, b"");
    check("If-Modified-Since", "Tue, 31 Dec 2024 00:00:00 GMT", "", 200, &bytes);
    assert_eq!(upstream.count("/x"), 10);
}

#[test]
fn scripts_go_on_to_their_last_answer_on_one_connection() {
    let upstream = Upstream::start();
    upstream.serve("/x", [Answer::status(503), Answer::file(b"whole")]);
    let mut connection = Connection::open(upstream.addr()).unwrap();
    for status in [503, 200, 200] {
        let (received, kept) = connection.begin(&Ask::get("/x")).unwrap().finish_keeping();
        received.expect_status(status);
        connection = kept;
    }
    let (received, _) = connection.begin(&Ask::head("/x")).unwrap().finish_keeping();
    received.expect(200, b"");
    received.expect_header("content-length", "5");
    assert_eq!((upstream.total(), upstream.connections()), (4, 1));
    assert_eq!(upstream.seen()[3].method, "HEAD");
}

#[test]
fn an_upstream_that_goes_down_refuses_connections_and_comes_back() {
    let upstream = Upstream::start();
    upstream.serve("/x", Answer::file(b"whole"));
    let kept = Connection::open(upstream.addr()).unwrap();
    upstream.go_down();
    assert!(kept.closes_without_a_byte());
    assert!(Connection::open(upstream.addr()).is_err());
    upstream.go_up();
    fetch(&upstream, &Ask::get("/x")).unwrap().expect(200, b"whole");
}

#[test]
fn noise_is_the_same_for_a_seed_and_differs_between_seeds() {
    assert_eq!(noise(7, 33), noise(7, 40)[..33]);
    assert_ne!(noise(7, 33), noise(8, 33));
    assert_eq!(sha256_hex(b""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
}
