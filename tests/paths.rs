//! Paths that try to lead out of a remote, sent raw over the socket: refused, and upstream
//! is not even connected to.

use crate::support::client::{End, Incoming};
use crate::support::remotes::Remote;
use crate::support::server::{Server, Setup};
use crate::support::upstream::{Answer, Upstream};

fn world() -> (Upstream, Server) {
    let upstream = Upstream::start();
    // What a trick would reach if it worked.
    for path in ["/secret", "/pub/../secret", "/pub/a", "/a", "/etc/hostname"] {
        upstream.serve(path, Answer::file(b"secret"));
    }
    let remote = Remote::at_url(&format!("{}/pub/", upstream.url()));
    (upstream, Setup::files(remote).start())
}

/// Sends a request line with a Host; gives the status, or `None` for a closed connection.
fn status_of(server: &Server, request_line: &[u8]) -> Option<u16> {
    let mut connection = server.connect();
    connection.send_raw(&[request_line, b"\r\nHost: cache.example.org\r\n\r\n"].concat());
    let answer = connection.incoming(false).map(Incoming::finish).ok()?;
    assert_eq!(answer.end, End::Whole, "{answer:?}");
    assert!(!answer.text().contains("secret\n") && answer.text() != "secret");
    Some(answer.status())
}

#[track_caller]
fn check(targets: &[&[u8]], allowed: &[u16], may_close: bool) {
    let (upstream, server) = world();
    for target in targets {
        let line = [b"GET ", *target, b" HTTP/1.1"].concat();
        let shown = String::from_utf8_lossy(target);
        match status_of(&server, &line) {
            Some(status) => assert!(allowed.contains(&status), "{shown:?}: {status}"),
            None => assert!(may_close, "{shown:?}: the connection was closed"),
        }
        assert_eq!(upstream.connections(), 0, "{shown:?} reached upstream");
    }
    server.get("/health").expect_status(200);
}

#[test]
fn dot_segments_are_refused_however_they_are_written() {
    check(
        &[
            b"/api/files/../secret",
            b"/api/files/a/../../secret",
            b"/api/files/./a",
            b"/api/files/a/.",
            b"/api/files/a/..",
            b"/api/files/..",
            b"/api/files/%2e%2e/secret",
            b"/api/files/%2E%2e/secret",
            b"/api/files/.%2e/secret",
            b"/api/files/%2e/a",
            b"/api/files/a/%2e%2e/%2e%2e/secret",
            b"/api/files/%2e%2e%2fsecret",
            b"/api/files/..%2fsecret",
            b"/api/files/a%2f..%2f..%2fsecret",
        ],
        &[400, 403, 404],
        false,
    );
}

#[test]
fn double_encoding_is_refused() {
    check(
        &[
            b"/api/files/%252e%252e/secret",
            b"/api/files/%252e%252e%252fsecret",
            b"/api/files/a%252f..%252f..%252fsecret",
            b"/api/files/%25252e%25252e/secret",
            b"/api/files/%25%32%65%25%32%65/secret",
            b"/api/files/a%2500b",
            b"/api/files/a%255cb",
            b"/api/files/a%250d%250ab",
        ],
        &[400, 403, 404],
        false,
    );
}

#[test]
fn nul_control_characters_and_backslashes_are_refused() {
    check(
        &[
            b"/api/files/a%00b",
            b"/api/files/a%00",
            b"/api/files/%00",
            b"/api/files/a%0ab",
            b"/api/files/a%0db",
            b"/api/files/a%0d%0aX-Injected:%20yes",
            b"/api/files/a%09b",
            b"/api/files/a%1bb",
            b"/api/files/a%7fb",
            b"/api/files/a\\..\\secret",
            b"/api/files/..\\secret",
            b"/api/files/a%5c..%5c..%5csecret",
            b"/api/files/%5c%5chost%5cshare",
        ],
        &[400, 403, 404],
        false,
    );
}

#[test]
fn bytes_that_do_not_belong_into_a_request_line_are_refused() {
    check(
        &[
            b"/api/files/a\0b",
            b"/api/files/a\x01b",
            b"/api/files/a\x7fb",
            b"/api/files/a b",
            b"/api/files/a\tb",
            b"/api/files/a\rb",
            b"/api/files/a\nX-Injected: yes",
            b"/api/files/\xff\xfe",
            b"/api/files/a\xc3\xa9",
        ],
        &[400, 403, 404, 505],
        true,
    );
}

#[test]
fn what_is_no_text_or_no_escape_is_refused() {
    check(
        &[
            b"/api/files/%ff",
            b"/api/files/a%c0%ae%c0%ae/secret",
            b"/api/files/%c0%af",
            b"/api/files/a%",
            b"/api/files/a%2",
            b"/api/files/a%zz",
            b"/api/files/a%u002e",
            b"/api/files/a%3fb",
        ],
        &[400, 403, 404],
        false,
    );
}

#[test]
fn absolute_urls_and_other_hosts_are_refused() {
    check(
        &[
            b"http://evil.example.org/a",
            b"http://127.0.0.1:1/secret",
            b"ftp://evil.example.org/a",
            b"//evil.example.org/a",
            b"/api/files/http://evil.example.org/a",
            b"/api/files/http:%2f%2fevil.example.org/a",
            b"/api/files/http:/evil.example.org/a",
            b"/api/files///evil.example.org/a",
            b"/api/files//evil.example.org/a",
            b"/api/files/%2fa",
            b"/api/files/%2f%2fevil.example.org/a",
            b"/api/files/a//b",
            b"evil.example.org:443",
            b"*",
            b"api/files/a",
            b"",
        ],
        &[400, 403, 404, 405],
        true,
    );
}

#[test]
fn a_user_or_a_port_in_a_path_stays_in_the_path() {
    let (upstream, server) = world();
    for target in ["/api/files/@evil.example.org/a", "/api/files/:80/a", "/api/files/a@b:80"] {
        assert_eq!(server.get(target).status(), 404, "{target}");
    }
    let seen = upstream.seen();
    assert!(seen.iter().all(|seen| seen.target.starts_with("/pub/")), "{seen:?}");
}

#[test]
fn tricks_with_the_remotes_name_find_no_remote() {
    check(
        &[
            b"/api/../api/files/a",
            b"/api/./files/a",
            b"/api//files/a",
            b"/api/%2e%2e/a",
            b"/api/FILES/a",
            b"/api/files%00/a",
            b"/api/files%2fa",
            b"/api/files",
            b"/api/",
            b"/api",
            b"/API/files/a",
            b"/./api/files/a",
            b"/x/../api/files/a",
            b"/%61pi/../files/a",
        ],
        &[400, 403, 404],
        false,
    );
}

#[test]
fn a_path_that_is_too_long_is_refused() {
    let long = [b"/api/files/".as_slice(), &[b'a'; 5000]].concat();
    let longer = [b"/api/files/".as_slice(), &[b'a'; 20_000]].concat();
    check(&[&long, &longer], &[400, 414, 431], false);
}

#[test]
fn no_header_can_be_split_by_a_name_or_by_an_upstream() {
    let upstream = Upstream::start();
    let odd = "quote\" semi; back'tick`.bin";
    let path = "/quote%22%20semi;%20back%27tick%60.bin";
    for path in [path, "/quote%22%20semi;%20back'tick%60.bin"] {
        let odd_type = "text/x-\u{1}odd";
        upstream.serve(path, Answer::file(b"bytes").header("Content-Type", odd_type));
    }
    let server = Setup::files(Remote::at(&upstream)).start();
    for _ in ["miss", "hit"] {
        let answer = server.get(&format!("/api/files{path}"));
        if answer.status() == 502 {
            // An upstream whose head is malformed may be refused as a whole.
            continue;
        }
        answer.expect(200, b"bytes");
        let value = answer.header("content-disposition").expect("there is one");
        assert!(value.is_ascii() && !value.contains(odd), "an unescaped name: {value}");
        let odd_type = answer.header("content-type").unwrap_or_default();
        assert!(!odd_type.contains('\u{1}'), "{odd_type:?}");
    }
}
