//! Tables of what RFC 9112 allows and of the tricks that it does not.

use std::time::Duration;

use super::*;

fn bounds() -> Bounds {
    Bounds {
        workers: 1,
        queue_max: 1,
        head_bytes_max: 600,
        url_bytes_max: 100,
        header_count_max: 8,
        body_bytes_max: 1000,
        idle_timeout: Duration::from_secs(1),
        write_timeout: Duration::from_secs(1),
        shutdown_grace: Duration::from_secs(1),
    }
}

/// Scans `wire` as it comes by `step` bytes, and parses what is found.
fn read(wire: &[u8], step: usize) -> Result<Option<(Parsed, usize)>, Refusal> {
    let (bounds, mut scanner, mut shown) = (bounds(), Scanner::default(), 0);
    loop {
        shown = (shown + step).min(wire.len());
        match scanner.advance(&wire[..shown], &bounds) {
            Scan::Partial if shown == wire.len() => return Ok(None),
            Scan::Partial => {}
            Scan::Refused(refusal) => return Err(refusal),
            Scan::Complete { begin, end } => {
                return parse(&wire[begin..end], &bounds).map(|parsed| Some((parsed, end)));
            }
        }
    }
}

const STEPS: [usize; 4] = [1, 2, 7, 1 << 20];

fn accepted(wire: &str) -> Parsed {
    let mut last = None;
    for step in STEPS {
        let parsed = read(wire.as_bytes(), step).unwrap_or_else(|refusal| {
            panic!("{wire:?} by {step}: {refusal:?}");
        });
        last = Some(parsed.unwrap_or_else(|| panic!("{wire:?} by {step} is not complete")).0);
    }
    last.unwrap()
}

#[track_caller]
fn refused(wire: impl AsRef<[u8]>, status: u16) {
    let wire = wire.as_ref();
    for step in STEPS {
        let text = String::from_utf8_lossy(wire);
        match read(wire, step) {
            Err(refusal) => assert_eq!(refusal.status, status, "{text:?} by {step}"),
            Ok(parsed) => panic!("{text:?} by {step}: {parsed:?}"),
        }
    }
}

/// A request with one more field, or whatever else `lines` are.
fn with(lines: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}\r\n\r\n")
}

#[test]
fn targets_in_every_form_are_read() {
    for (target, expected) in [
        ("/", "/"),
        ("/a/b?c=d&e", "/a/b?c=d&e"),
        ("/a%20b//../%2e", "/a%20b//../%2e"),
        ("http://example.org", "/"),
        ("http://example.org/a?b", "/a?b"),
        ("HTTP://example.org:80?b", "/?b"),
        ("https://[2001:db8::1]:8443/x", "/x"),
    ] {
        let parsed = accepted(&format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert_eq!(parsed.head.target, expected, "{target}");
    }
    let parsed = accepted("GET http://example.org:81/ HTTP/1.1\r\nHost: other\r\n\r\n");
    assert_eq!(parsed.head.header("host").as_deref(), Some("example.org:81"));
    let parsed = accepted("GET http://example.org:81/ HTTP/1.0\r\n\r\n");
    assert_eq!(parsed.head.header("host").as_deref(), Some("example.org:81"));
}

#[test]
fn malformed_request_lines_are_refused() {
    for line in [
        "GET / HTTP/1.1 ",
        "GET  / HTTP/1.1",
        " GET / HTTP/1.1",
        "GET /  HTTP/1.1",
        "GET\t/\tHTTP/1.1",
        "GET / HTTP/1.1\r",
        "GET /\rX HTTP/1.1",
        "GET / http/1.1",
        "GET / HTTP/1.10",
        "GET / HTTP/01.1",
        "GET / HTTP/1",
        "GET / HTTP/1.x",
        "GET / HTP/1.1",
        "GET / ",
        "GET /",
        "GET",
        "G@T / HTTP/1.1",
        "GET / a HTTP/1.1",
        "GET /a\x0bb HTTP/1.1",
        "GET /a\0b HTTP/1.1",
        "GET /a\x7fb HTTP/1.1",
        "GET /\u{e4} HTTP/1.1",
        "GET /a#b HTTP/1.1",
        "GET a HTTP/1.1",
        "GET * HTTP/1.1",
        "GET //// HTTP/1.1\0",
        "GET http:/a HTTP/1.1",
        "GET http:///a HTTP/1.1",
        "GET http://:80/a HTTP/1.1",
        "GET http://[]/a HTTP/1.1",
        "GET http://a%/ HTTP/1.1",
        "GET http://user@a/ HTTP/1.1",
        "GET http://a:x/ HTTP/1.1",
        "GET ftp://a/ HTTP/1.1",
        "GET example.org:80 HTTP/1.1",
        "CONNECT / HTTP/1.1",
        "CONNECT example.org HTTP/1.1",
    ] {
        refused(format!("{line}\r\nHost: a\r\n\r\n"), 400);
    }
}

#[test]
fn methods_and_versions_that_are_not_served_have_their_status() {
    refused("BREW / HTTP/1.1\r\nHost: a\r\n\r\n", 501);
    refused("get / HTTP/1.1\r\nHost: a\r\n\r\n", 501);
    refused("CONNECT example.org:443 HTTP/1.1\r\nHost: a\r\n\r\n", 405);
    refused("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", 204);
    refused("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505);
    refused("GET / HTTP/1.2\r\nHost: a\r\n\r\n", 505);
    refused("GET / HTTP/3.0\r\nHost: a\r\n\r\n", 505);
    refused("GET / HTTP/0.9\r\n\r\n", 505);
    for method in METHODS.iter().filter(|method| **method != "CONNECT") {
        let parsed = accepted(&format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert_eq!(parsed.head.method, *method);
    }
}

#[test]
fn what_cannot_become_a_request_is_refused_before_it_is_whole() {
    refused("GET /\r\n", 400);
    refused("GET / HTTP/1.1\n", 400);
    refused("GET / HTTP/1.1\r\nHost: a\n", 400);
    refused("GET / HTTP/1.1\r\nHost: a\r\n\n", 400);
    refused("\n", 400);
    refused("\r\n\r\n\r\n", 400);
    refused("\x16\x03\x01\x02\x00\x01\x00\x01\u{fc}", 400);
    refused("\0", 400);
    refused("\rX", 400);
    refused("\r\n\rX", 400);
    refused("GET\t/", 400);
    refused("G\u{fc}T / HTTP/1.1\r\n", 400);
    refused(" / HTTP/1.1\r\n", 400);
    refused("B".repeat(33), 501);
    refused(format!("{} / HTTP/1.1\r\n", "B".repeat(33)), 501);
    refused(format!("{} /{} HTTP/1.1\r\n", "B".repeat(99), "a".repeat(200)), 501);
    refused(format!("GET /{}", "a".repeat(200)), 414);
    refused(format!("GET /{} HTTP/1.1\r\n", "a".repeat(100)), 414);
    refused(format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}", "a".repeat(600)), 431);
    refused(format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "a".repeat(580)), 431);
    refused(format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: 1\r\n".repeat(8)), 431);
}

#[test]
fn what_lies_at_a_bound_is_accepted() {
    accepted(&format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(99)));
    accepted(&format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: 1\r\n".repeat(7)));
    let padding = 600 - "GET / HTTP/1.1\r\nHost: a\r\nX: \r\n\r\n".len();
    accepted(&format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "a".repeat(padding)));
    accepted("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n");
    for incomplete in ["", "\r", "\r\n", "G", "GET / HTTP/1.1\r\nHost: a\r\n", "GET / H"] {
        for step in STEPS {
            assert!(read(incomplete.as_bytes(), step).unwrap().is_none(), "{incomplete:?}");
        }
    }
}

#[test]
fn only_what_belongs_to_the_head_is_taken() {
    let wire = b"\r\nGET /one HTTP/1.1\r\nHost: a\r\n\r\nGET /two HTTP/1.1\r\nHost: a\r\n\r\n";
    let (parsed, end) = read(wire, 1 << 20).unwrap().unwrap();
    assert_eq!(parsed.head.target, "/one");
    assert!(wire[end..].starts_with(b"GET /two "));
}

#[test]
fn malformed_fields_are_refused() {
    for field in [
        "X : 1",
        "X\t: 1",
        " X: 1",
        "\tX: 1",
        ": 1",
        "X",
        "X Y: 1",
        "X(: 1",
        "X\0: 1",
        "X\u{e4}: 1",
        "X: a\r\n b",
        "X: a\r\n\tb",
        "X: a\0b",
        "X: a\rb",
        "X: a\x0bb",
        "X: a\x7fb",
        "X: a\x1bb",
        "\r: 1",
        "Host: b",
        "host: a",
        "Content-Length: 1\rTransfer-Encoding: chunked",
    ] {
        refused(with(field), 400);
    }
    refused("POST / HTTP/1.1\r\n X: 1\r\nHost: a\r\n\r\n", 400);
}

#[test]
fn hosts_are_checked() {
    for host in
        ["", "a", "a:80", "a.example.org", "[2001:db8::1]", "[::1]:80", "1.2.3.4", "a:", "a%2db"]
    {
        accepted(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        accepted(&format!("GET / HTTP/1.0\r\nHost: {host}\r\n\r\n"));
    }
    for host in [
        "a b",
        "a/b",
        "a@b",
        "a,b",
        "a:b",
        "a:1:2",
        "[::1",
        "a]",
        "a?b",
        "a\\b",
        "\u{e4}",
        "<a>",
        "a:123456",
        ":80",
        "[]",
        "[]:80",
        "[a]",
        "[1.2.3.4]",
        "[::1]a",
        "[::1%25eth0]",
        "a%",
        "a%2",
        "a%zz",
    ] {
        refused(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"), 400);
    }
    refused("GET / HTTP/1.1\r\n\r\n", 400);
    refused("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400);
    refused("GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", 400);
    accepted("GET / HTTP/1.0\r\n\r\n");
}

#[test]
fn framing_follows_the_rules() {
    for (fields, body) in [
        ("X: 1", BodyFraming::None),
        ("Content-Length: 0", BodyFraming::None),
        ("Content-Length: 7", BodyFraming::Length(7)),
        ("content-LENGTH:\t7 ", BodyFraming::Length(7)),
        ("Content-Length: 007", BodyFraming::Length(7)),
        ("Content-Length: 7\r\nContent-Length: 7", BodyFraming::Length(7)),
        ("Content-Length: 7, 7", BodyFraming::Length(7)),
        ("Content-Length: 1000", BodyFraming::Length(1000)),
        ("Transfer-Encoding: chunked", BodyFraming::Chunked),
        ("transfer-encoding: CHUNKED ", BodyFraming::Chunked),
    ] {
        assert_eq!(accepted(&with(fields)).body, body, "{fields:?}");
    }
}

#[test]
fn framing_that_two_readers_could_read_differently_is_refused() {
    for (fields, status) in [
        ("Content-Length: 7\r\nTransfer-Encoding: chunked", 400),
        ("Transfer-Encoding: chunked\r\nContent-Length: 7", 400),
        ("Transfer-Encoding: chunked\r\nContent-Length: 0", 400),
        ("Content-Length: 7\r\nContent-Length: 8", 400),
        ("Content-Length: 7, 8", 400),
        ("Content-Length: 7\r\nContent-Length: 07", 400),
        ("Content-Length: 7,", 400),
        ("Content-Length: ,7", 400),
        ("Content-Length:", 400),
        ("Content-Length: +7", 400),
        ("Content-Length: -7", 400),
        ("Content-Length: 0x7", 400),
        ("Content-Length: 7e0", 400),
        ("Content-Length: 7.0", 400),
        ("Content-Length: 7 7", 400),
        ("Content-Length: \"7\"", 400),
        ("Content-Length: 7;a", 400),
        ("Content-Length: \u{ff17}", 400),
        ("Content-Length: 1001", 413),
        ("Content-Length: 99999999999999", 413),
        ("Content-Length: 18446744073709551616", 413),
        ("Content-Length: 99999999999999999999999999999", 413),
        ("Transfer-Encoding:", 400),
        ("Transfer-Encoding: identity", 400),
        ("Transfer-Encoding: gzip", 400),
        ("Transfer-Encoding: gzip, chunked", 501),
        ("Transfer-Encoding: chunked, gzip", 400),
        ("Transfer-Encoding: chunked, chunked", 400),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", 400),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", 400),
        ("Transfer-Encoding: identity\r\nTransfer-Encoding: chunked", 400),
        ("Transfer-Encoding: identity, chunked", 400),
        ("Transfer-Encoding: ,chunked", 400),
        ("Transfer-Encoding: chunked,", 400),
        ("Transfer-Encoding: xchunked", 400),
        ("Transfer-Encoding: chunkedx", 400),
        ("Transfer-Encoding: \"chunked\"", 400),
        ("Transfer-Encoding: chunked;q=1", 400),
        ("Transfer-Encoding: chunked foo", 400),
        ("Transfer-Encoding: \x0bchunked", 400),
        ("Transfer-Encoding : chunked", 400),
        ("Transfer-Encoding\x0b: chunked", 400),
        ("X: a\r\n Transfer-Encoding: chunked", 400),
        ("Transfer-Encoding:\r\n chunked", 400),
        ("Expect: 200-ok", 417),
    ] {
        refused(with(fields), status);
    }
    refused("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400);
}

#[test]
fn the_connection_is_kept_as_the_client_wants() {
    for (version, connection, keeps) in [
        ("1.1", "", true),
        ("1.1", "Connection: keep-alive\r\n", true),
        ("1.1", "Connection: close\r\n", false),
        ("1.1", "Connection: TE, Close\r\n", false),
        ("1.1", "Connection: keep-alive\r\nConnection: close\r\n", false),
        ("1.1", "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n", true),
        ("1.0", "", false),
        ("1.0", "Connection: Keep-Alive\r\n", true),
        ("1.0", "Connection: keep-alive, close\r\n", false),
    ] {
        let parsed = accepted(&format!("GET / HTTP/{version}\r\nHost: a\r\n{connection}\r\n"));
        assert_eq!(parsed.wants_keep_alive, keeps, "{version} {connection:?}");
    }
}

#[test]
fn a_client_is_waited_for_only_where_it_may_ask_for_that() {
    for (version, fields, expects) in [
        ("1.1", "Expect: 100-continue\r\nContent-Length: 1\r\n", true),
        ("1.1", "Expect: 100-Continue\r\nTransfer-Encoding: chunked\r\n", true),
        ("1.1", "Expect: 100-continue\r\n", false),
        ("1.0", "Expect: 100-continue\r\nContent-Length: 1\r\n", false),
    ] {
        let parsed = accepted(&format!("POST / HTTP/{version}\r\nHost: a\r\n{fields}\r\n"));
        assert_eq!(parsed.expects_continue, expects, "{version} {fields:?}");
    }
}

#[test]
fn names_are_lower_case_and_values_have_no_control_characters() {
    let mut wire = b"GET / HTTP/1.1\r\nHOST: a\r\nX-Caf: ".to_vec();
    wire.extend_from_slice(b" caf\xe9 \xc2\x85 \xc3\xa9 \t \r\n\r\n");
    let (parsed, _) = read(&wire, 1).unwrap().unwrap();
    let expected = [("host", "a"), ("x-caf", "caf\u{fffd} \u{fffd} \u{e9}")]
        .map(|(n, v)| (n.into(), v.into()));
    assert_eq!(parsed.head.headers, expected);
}
