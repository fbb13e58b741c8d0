//! Exact bytes over loopback. Waits are for events, but where a bound on waiting is the
//! subject; those bounds are far apart from each other.

use std::io::{self, Read};
use std::time::{Duration, Instant};

use url::Url;

use super::raw_server::RawServer;
use super::{HttpUpstream, host_of, url_of};
use crate::artifact::{ArtifactPath, Validators};
use crate::clock::Clock;
use crate::config::{Origin, Timeouts};
use crate::upstream::proxy::ProxyEnv;
use crate::upstream::via;
use crate::upstream::{
    Part, Upstream, UpstreamBody, UpstreamError, UpstreamHead, UpstreamReply, UpstreamRequest,
};
use redirects::sending_to;

mod redirects;
mod tls;

const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(200);

fn origin(base: &str) -> Origin {
    Origin {
        bases: vec![Url::parse(base).unwrap()],
        auth: None,
        ca_file: None,
        proxy: None,
        timeouts: Timeouts { connect: LONG, first_byte: LONG, idle: LONG },
        offline: false,
        allow_private_redirects: false,
        api_url: None,
    }
}

fn upstream(origin: &Origin) -> HttpUpstream {
    let proxies = ProxyEnv::default();
    HttpUpstream::new(origin, &origin.bases[0], 10, &proxies, &Clock::system()).unwrap()
}

fn get(upstream: &HttpUpstream, path: &str) -> Result<UpstreamReply, UpstreamError> {
    let path = ArtifactPath::from_canonical(path).unwrap();
    upstream.get(&UpstreamRequest { path: &path, unless: None, part: None })
}

fn get_part(upstream: &HttpUpstream, part: Part<'_>) -> Result<UpstreamReply, UpstreamError> {
    let path = ArtifactPath::from_canonical("f").unwrap();
    upstream.get(&UpstreamRequest { path: &path, unless: None, part: Some(part) })
}

fn found(reply: Result<UpstreamReply, UpstreamError>) -> (UpstreamHead, Box<dyn UpstreamBody>) {
    match reply {
        Ok(UpstreamReply::Found(head, body)) => (head, body),
        other => panic!("{other:?}"),
    }
}

/// All of a body, or what came before it failed and the kind of its failure.
fn read_all(body: &mut dyn UpstreamBody) -> (Vec<u8>, Option<io::ErrorKind>) {
    let mut bytes = Vec::new();
    let end = body.read_to_end(&mut bytes).err().map(|error| error.kind());
    (bytes, end)
}

fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

#[test]
fn the_request_says_what_is_asked_and_nothing_else() {
    let server = RawServer::always("HTTP/1.1 304 Not Modified\r\nETag: \"2\"\r\n\r\n");
    let upstream = upstream(&origin(&server.url("base/")));
    let path = ArtifactPath::from_request("a%20b/x:y_1%253a2.deb", Some("q=%2f")).unwrap();
    let unless = Validators {
        etag: Some("\"1\"".to_owned()),
        last_modified: Some("Sun, 06 Nov 1994 08:49:37 GMT".to_owned()),
    };
    let request = UpstreamRequest { path: &path, unless: Some(&unless), part: None };
    match upstream.get(&request).unwrap() {
        UpstreamReply::NotModified(head) => {
            assert_eq!(head.validators.etag.as_deref(), Some("\"2\""));
        }
        other => panic!("{other:?}"),
    }
    let head = server.heads().remove(0).to_ascii_lowercase();
    let mut lines: Vec<_> = head.trim_end().split("\r\n").collect();
    lines[1..].sort_unstable();
    let host = format!("host: {}", server.address());
    let agent = format!("user-agent: artifactapi/{}", env!("CARGO_PKG_VERSION"));
    assert_eq!(
        lines,
        [
            "get /base/a%20b/x:y_1%253a2.deb?q=%2f http/1.1",
            "accept-encoding: identity",
            "accept: */*",
            &host,
            "if-modified-since: sun, 06 nov 1994 08:49:37 gmt",
            "if-none-match: \"1\"",
            &agent,
            &format!("via: {}", via::value()),
        ]
    );
}

#[test]
fn a_cut_or_broken_body_never_looks_like_a_whole_one() {
    use io::ErrorKind::{ConnectionReset, InvalidData, UnexpectedEof};
    let check = |answer: &str, ending: Ending, bytes: &str, framed: bool, end: Option<_>| {
        let wire = answer.to_owned();
        let server = RawServer::start(move |connection, _| {
            connection.read_head();
            connection.write(&wire);
            if ending == Ending::Reset {
                connection.reset();
            }
        });
        let (_, mut body) = found(get(&upstream(&origin(&server.url(""))), "f"));
        assert_eq!(body.is_framed(), framed, "{answer:?}");
        let (got, failure) = read_all(body.as_mut());
        let got = String::from_utf8(got).unwrap();
        // A reset overtakes bytes that were sent before it, and so does broken framing.
        if ending == Ending::Close && end != Some(InvalidData) {
            assert_eq!(got, bytes, "{answer:?}");
        }
        assert!(bytes.starts_with(&got), "{answer:?}: {got}");
        assert_eq!(failure, end, "{answer:?}");
        if end.is_some() {
            assert!(body.read(&mut [0; 8]).is_err(), "the failure of {answer:?} did not stay");
        } else {
            assert_eq!(body.read(&mut [0; 8]).unwrap(), 0);
        }
    };
    let len = |n: u64, body: &str| format!("HTTP/1.1 200 OK\r\nContent-Length: {n}\r\n\r\n{body}");
    let chunks =
        |body: &str| format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
    let until_closed = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello";
    let close = Ending::Close;
    check(&len(5, "hello"), close, "hello", true, None);
    check(&len(0, ""), close, "", true, None);
    check(&len(5, "hello, longer"), close, "hello", true, None);
    check(&len(9, "hello"), close, "hello", true, Some(UnexpectedEof));
    check(&len(1 << 62, "hello"), close, "hello", true, Some(UnexpectedEof));
    check(&len(9, ""), close, "", true, Some(UnexpectedEof));
    check(&len(9, "hello"), Ending::Reset, "hello", true, Some(ConnectionReset));
    check(&chunks("5\r\nhello\r\n0\r\n\r\n"), close, "hello", true, None);
    check(&chunks("5;a=b\r\nhello\r\n0\r\nX: y\r\n\r\n"), close, "hello", true, None);
    check(&chunks("5\r\nhello\r\n"), close, "hello", true, Some(UnexpectedEof));
    check(&chunks("5\r\nhello"), close, "hello", true, Some(UnexpectedEof));
    check(&chunks("9\r\nhello"), close, "hello", true, Some(UnexpectedEof));
    check(&chunks("5\r\nhello\r\n0"), close, "hello", true, Some(UnexpectedEof));
    check(&chunks("5\r\nhello\r\n"), Ending::Reset, "hello", true, Some(ConnectionReset));
    check(&chunks("5\r\nhelloX\r\n0\r\n\r\n"), close, "hello", true, Some(InvalidData));
    check(&chunks("5\r\nhello\r\nzz\r\n"), close, "hello", true, Some(InvalidData));
    // No end of line within any buffer.
    let endless = format!("5\r\nhello\r\n{}", "1".repeat(200_000));
    check(&chunks(&endless), close, "hello", true, Some(UnexpectedEof));
    check(until_closed, close, "hello", false, None);
    check(until_closed, Ending::Reset, "hello", false, Some(ConnectionReset));
    check("HTTP/1.0 200 OK\r\n\r\nhello", close, "hello", false, None);
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Close,
    Reset,
}

#[test]
fn a_head_that_makes_no_sense_is_an_error() {
    let check = |answer: &str| {
        let server = RawServer::once(answer);
        match get(&upstream(&origin(&server.url(""))), "f") {
            Err(UpstreamError::Protocol { host, .. }) => {
                assert_eq!(host, server.address().to_string());
            }
            other => panic!("{answer:?}: {other:?}"),
        }
    };
    check("");
    check("HTTP/1.1 200");
    check("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n");
    check("SSH-2.0-OpenSSH_9.2\r\n\r\n");
    check("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!");
    check("HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n");
    check("HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\n");
    check("HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551615\r\n\r\n");
    check("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n");
    check("HTTP/1.1 204 No Content\r\n\r\n");
    check("HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n");
    check("HTTP/1.1 304 Not Modified\r\n\r\n");
    check(
        "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-4/5\r\nContent-Length: 5\r\n\r\nhello",
    );
    check(&format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(80_000)));
    check(&format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: y\r\n".repeat(500)));
}

#[test]
fn informational_answers_are_passed_over() {
    let hints = "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n";
    let server = RawServer::once(format!("{hints}{}", ok("hello")));
    let (_, mut body) = found(get(&upstream(&origin(&server.url(""))), "f"));
    assert_eq!(read_all(body.as_mut()), (b"hello".to_vec(), None));
}

#[test]
fn statuses_are_told_apart_and_their_connection_is_kept() {
    let answer = |status: &str| format!("HTTP/1.1 {status}\r\nContent-Length: 9\r\n\r\nsome text");
    let server = RawServer::start(move |connection, _| {
        while let Some(head) = connection.read_head() {
            let status = &head["GET /".len()..][..3];
            connection.write(answer(&format!("{status} X\r\nRetry-After: 7")));
        }
    });
    let upstream = upstream(&origin(&server.url("")));
    assert!(matches!(get(&upstream, "404"), Ok(UpstreamReply::Absent)));
    assert!(matches!(get(&upstream, "410"), Ok(UpstreamReply::Absent)));
    for (path, is_failure) in [
        ("400", false),
        ("403", false),
        ("416", false),
        ("408", true),
        ("429", true),
        ("503", true),
    ] {
        let error = get(&upstream, path).unwrap_err();
        assert_eq!(error.retry_after(), Some(Duration::from_secs(7)));
        assert_eq!(error.is_failure(), is_failure, "{error}");
        assert!(error.to_string().ends_with(&format!("answered {path}")), "{error}");
    }
    assert_eq!(server.accepted(), 1);
}

#[test]
fn a_connection_is_used_again_after_a_body_was_read_or_counted_out() {
    let server = RawServer::start(|connection, _| {
        while let Some(head) = connection.read_head() {
            connection.write(if head.starts_with("GET /chunked") {
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
                    .into()
            } else {
                ok("hello")
            });
        }
    });
    let upstream = upstream(&origin(&server.url("")));
    let (_, mut body) = found(get(&upstream, "chunked"));
    assert_eq!(read_all(body.as_mut()).0, b"hello");
    // Exactly the announced bytes, without a read that finds the end.
    found(get(&upstream, "counted")).1.read_exact(&mut [0; 5]).unwrap();
    found(get(&upstream, "abandoned")).1.read_exact(&mut [0; 2]).unwrap();
    assert_eq!(server.accepted(), 1);
    found(get(&upstream, "f"));
    assert_eq!(server.accepted(), 2);
}

#[test]
fn a_kept_connection_that_had_died_costs_one_more_try_and_no_error() {
    // The first connection answers once, takes the second request and is gone.
    let server = RawServer::start(|connection, number| {
        connection.read_head();
        connection.write(ok("hello"));
        connection.read_head();
        if number > 0 {
            connection.write(ok("again"));
        }
    });
    let upstream = upstream(&origin(&server.url("")));
    found(get(&upstream, "f")).1.read_exact(&mut [0; 5]).unwrap();
    let (_, mut body) = found(get(&upstream, "f"));
    assert_eq!(read_all(body.as_mut()).0, b"hello");
    assert_eq!((server.accepted(), server.heads().len()), (2, 3));
}

#[test]
fn a_fresh_connection_that_breaks_is_not_tried_again_here() {
    let server = RawServer::once("");
    assert!(get(&upstream(&origin(&server.url(""))), "f").is_err());
    assert_eq!(server.accepted(), 1);
}

#[test]
fn a_silent_head_is_cut_after_its_own_bound() {
    let server = RawServer::start(|connection, _| {
        connection.read_head();
        connection.write("HTTP/1.1 200 OK\r\nContent-");
        connection.stall();
    });
    let mut origin = origin(&server.url(""));
    origin.timeouts.first_byte = SHORT;
    match get(&upstream(&origin), "f") {
        Err(UpstreamError::Timeout { during: "waiting for the head", after, .. }) => {
            assert_eq!(after, SHORT);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_head_may_be_slower_than_a_body_may_be_silent() {
    let server = RawServer::start(|connection, _| {
        connection.read_head();
        pass_time(3 * SHORT);
        connection.write(ok("hello"));
    });
    let mut origin = origin(&server.url(""));
    origin.timeouts.idle = SHORT;
    let (_, mut body) = found(get(&upstream(&origin), "f"));
    assert_eq!(read_all(body.as_mut()), (b"hello".to_vec(), None));
}

#[test]
fn a_silent_body_is_cut_and_a_slow_one_is_not() {
    // Drips for longer than any bound on waiting, then stalls.
    let server = RawServer::start(|connection, _| {
        connection.read_head();
        connection.write("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n");
        for _ in 0..20 {
            pass_time(SHORT / 4);
            connection.write("x");
        }
        connection.stall();
    });
    let mut origin = origin(&server.url(""));
    origin.timeouts = Timeouts { connect: LONG, first_byte: 2 * SHORT, idle: 2 * SHORT };
    let (_, mut body) = found(get(&upstream(&origin), "f"));
    let (bytes, end) = read_all(body.as_mut());
    assert_eq!((bytes.len(), end), (20, Some(io::ErrorKind::TimedOut)));
}

/// Lets time pass where time is the subject, without a word from the other side.
fn pass_time(time: Duration) {
    let until = Instant::now() + time;
    while let Some(left) = until.checked_duration_since(Instant::now()) {
        std::thread::park_timeout(left);
    }
}

#[test]
fn a_refused_connection_is_told_as_such() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = get(&upstream(&origin(&format!("http://{closed}/"))), "f").unwrap_err();
    assert!(matches!(error, UpstreamError::Connect { .. }), "{error:?}");
    let through = Origin {
        proxy: Some(Url::parse(&format!("http://user:hunter2@{closed}")).unwrap()),
        ..origin("http://files.example.org/")
    };
    let error = get(&upstream(&through), "f").unwrap_err().to_string();
    let begin = format!("cannot connect to files.example.org: by way of the proxy {closed}: ");
    assert!(error.starts_with(&begin) && !error.contains("hunter2"), "{error}");
}

#[test]
fn a_part_is_asked_for_with_its_version_and_only_taken_as_asked() {
    let check = |answer: &str, expected: Option<(Option<u64>, &str)>| {
        let server = RawServer::once(answer);
        let reply = get_part(
            &upstream(&origin(&server.url(""))),
            Part { from: 6, to: Some(11), of: Some("\"1\"") },
        );
        let head = server.heads().remove(0).to_ascii_lowercase();
        assert!(head.contains("\r\nrange: bytes=6-10\r\n"), "{head}");
        assert!(head.contains("\r\nif-range: \"1\"\r\n"), "{head}");
        match (reply, expected) {
            (Ok(UpstreamReply::Found(head, mut body)), Some((from, bytes))) => {
                assert_eq!(head.part_from, from);
                assert!(body.is_framed());
                assert_eq!(read_all(body.as_mut()), (bytes.into(), None), "{answer}");
            }
            (Err(UpstreamError::Protocol { .. }), None) => {}
            (other, _) => panic!("{answer:?}: {other:?}"),
        }
    };
    let part = |fields: &str, body: &str| {
        format!("HTTP/1.1 206 Partial Content\r\n{fields}\r\n\r\n{body}")
    };
    let world = Some((Some(6), "world"));
    check(&part("Content-Range: bytes 6-10/11\r\nContent-Length: 5", "world"), world);
    check(&part("Content-Range: bytes 6-10/*", "world"), world);
    let chunked = "Content-Range: bytes 6-10/11\r\nTransfer-Encoding: chunked";
    check(&part(chunked, "5\r\nworld\r\n0\r\n\r\n"), world);
    check(&ok("hello world"), Some((None, "hello world")));
    check(&part("Content-Range: bytes 0-10/11\r\nContent-Length: 11", "hello world"), None);
    check(&part("Content-Range: bytes 6-10/11\r\nContent-Length: 4", "worl"), None);
    check(&part("Content-Length: 5", "world"), None);
}

#[test]
fn a_part_that_ends_early_or_late_is_an_error() {
    use io::ErrorKind::{InvalidData, UnexpectedEof};
    let check = |fields: &str, body: &str, end: io::ErrorKind| {
        let range = "Content-Range: bytes 6-10/11";
        let server = RawServer::once(format!("HTTP/1.1 206 X\r\n{range}\r\n{fields}\r\n{body}"));
        let part = Part { from: 6, to: None, of: None };
        let (_, mut body) = found(get_part(&upstream(&origin(&server.url(""))), part));
        assert_eq!(read_all(body.as_mut()).1, Some(end), "{fields:?}");
    };
    check("", "worl", UnexpectedEof);
    check("Content-Length: 5\r\n", "worl", UnexpectedEof);
    check("Transfer-Encoding: chunked\r\n", "4\r\nworl\r\n0\r\n\r\n", UnexpectedEof);
    check("Transfer-Encoding: chunked\r\n", "6\r\nworlds\r\n0\r\n\r\n", InvalidData);
}

#[test]
fn bytes_are_never_decoded_but_their_encoding_is_told() {
    let answer = "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello";
    let server = RawServer::once(answer);
    let (head, mut body) = found(get(&upstream(&origin(&server.url(""))), "f"));
    assert_eq!(head.content_encoding.as_deref(), Some("gzip"));
    assert_eq!(read_all(body.as_mut()), (b"hello".to_vec(), None));
}

#[test]
fn errors_name_the_host_and_no_secret() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let server = sending_to(format!("http://{closed}/x?token=s3cret"));
    let base = server.url("").replace("http://", "http://u:s3cret@");
    let upstream = upstream(&origin(&base));
    let error = get(&upstream, "a").unwrap_err();
    assert!(error.to_string().contains(&closed.to_string()), "{error}");
    assert!(!format!("{error} {error:?} {upstream:?}").contains("s3cret"), "{error:?}");
    assert!(
        server.heads()[0].contains("authorization: Basic")
            || server.heads()[0].contains("Authorization: Basic")
    );
}

#[test]
fn urls_are_the_base_and_the_path() {
    let check = |base: &str, path: &str, expected: &str| {
        let path = ArtifactPath::from_canonical(path).unwrap();
        let url = url_of(&Url::parse(base).unwrap(), &path).unwrap();
        assert_eq!(url.as_str(), expected);
    };
    check("http://a.example.org/", "x:y/z", "http://a.example.org/x:y/z");
    check("http://a.example.org/b/", "c d?e=f", "http://a.example.org/b/c%20d?e=f");
    check("http://a.example.org/b/", "c?d#e", "http://a.example.org/b/c?d");
    let host = |url: &str| host_of(&Url::parse(url).unwrap());
    assert_eq!(host("https://a.example.org:443/x?y"), "a.example.org");
    assert_eq!(host("https://u:p@[::1]:8443/x"), "[::1]:8443");
}
