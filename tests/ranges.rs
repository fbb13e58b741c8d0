//! Parts of files (RFC 9110, section 14): of stored ones, of growing ones, of cold ones.

use std::ops::Range;

use crate::support::client::{Ask, Received};
use crate::support::remotes::Remote;
use crate::support::server::Setup;
use crate::support::upstream::{Answer, Gate, Upstream};
use crate::support::{assert_same_bytes, eventually, noise};

const DATE: &str = "Wed, 01 Jan 2025 00:00:00 GMT";

#[track_caller]
fn expect_part(answer: &Received, part: Range<usize>, whole: &[u8]) {
    answer.expect(206, &whole[part.clone()]);
    let expected = format!("bytes {}-{}/{}", part.start, part.end - 1, whole.len());
    answer.expect_header("content-range", &expected);
}

#[test]
fn single_ranges_of_a_stored_file_are_exact() {
    let upstream = Upstream::start();
    let bytes = noise(1, 10_000);
    upstream.serve("/a", Answer::file(&bytes).etag("\"v1\"").last_modified(DATE));
    let server = Setup::files(Remote::at(&upstream)).start();
    server.get("/api/files/a").expect(200, &bytes);
    for (range, part) in [
        ("0-0", 0..1),
        ("0-9", 0..10),
        ("9999-9999", 9999..10_000),
        ("5000-", 5000..10_000),
        ("9000-999999", 9000..10_000),
        ("0-", 0..10_000),
        ("-1", 9999..10_000),
        ("-500", 9500..10_000),
        ("-999999", 0..10_000),
        ("0-18446744073709551615", 0..10_000),
    ] {
        let answer = server.ask(&Ask::get("/api/files/a").range(range));
        expect_part(&answer, part, &bytes);
        answer.expect_header("etag", "\"v1\"");
        answer.expect_header("x-artifact-source", "cache");
    }
    assert_eq!(upstream.total(), 1);
}

#[test]
fn a_range_behind_the_end_is_416_with_the_size() {
    let upstream = Upstream::start();
    upstream.serve("/a", Answer::file(&noise(2, 1000)));
    let server = Setup::files(Remote::at(&upstream)).start();
    server.get("/api/files/a").expect_status(200);
    // A client that has the whole file asks from its end on.
    for range in ["1000-", "1000-1000", "18446744073709551615-", "-0"] {
        let answer = server.ask(&Ask::get("/api/files/a").range(range));
        answer.expect_status(416);
        answer.expect_header("content-range", "bytes */1000");
        // What these say is said of what the answer holds, and that is an error.
        for of_artifact in ["repr-digest", "x-checksum-sha256", "content-disposition", "etag"] {
            assert_eq!(answer.header(of_artifact), None, "{of_artifact}");
        }
    }
}

#[test]
fn a_range_that_means_nothing_is_ignored() {
    let upstream = Upstream::start();
    let bytes = noise(3, 1000);
    upstream.serve("/a", Answer::file(&bytes));
    let server = Setup::files(Remote::at(&upstream)).start();
    server.get("/api/files/a").expect(200, &bytes);
    for range in ["bytes=", "bytes=5", "bytes=9-5", "bytes=a-b", "lines=1-2", "bytes=--5", "5-9"] {
        server.ask(&Ask::get("/api/files/a").header("Range", range)).expect(200, &bytes);
    }
    // Ranges are defined for GET alone.
    server.ask(&Ask::head("/api/files/a").range("0-9")).expect(200, b"");
}

#[test]
fn several_ranges_come_as_parts_or_whole() {
    let upstream = Upstream::start();
    let bytes = noise(4, 10_000);
    upstream.serve("/a", Answer::file(&bytes));
    let server = Setup::files(Remote::at(&upstream)).start();
    server.get("/api/files/a").expect(200, &bytes);
    let answer = server.ask(&Ask::get("/api/files/a").range("0-9, 5000-5099, -10"));
    let parts = parts_of(&answer, bytes.len());
    assert_eq!(parts.len(), 3);
    for ((range, body), expected) in parts.iter().zip([0..10, 5000..5100, 9990..10_000]) {
        assert_eq!(range, &expected);
        assert_same_bytes(body, &bytes[expected]);
    }
}

#[test]
fn many_ranges_cannot_multiply_the_file() {
    let upstream = Upstream::start();
    let bytes = noise(5, 100_000);
    upstream.serve("/a", Answer::file(&bytes));
    let server = Setup::files(Remote::at(&upstream)).start();
    server.get("/api/files/a").expect(200, &bytes);
    let overlapping = vec!["0-"; 500].join(",");
    let tiny: Vec<String> = (0..1000).map(|n| format!("{}-{}", n * 2, n * 2)).collect();
    for ranges in [overlapping, tiny.join(",")] {
        let answer = server.ask(&Ask::get("/api/files/a").range(&ranges));
        assert!(answer.looks_whole() && answer.body.len() < 2 * bytes.len(), "{:?}", answer.head);
        if answer.status() == 200 {
            assert_same_bytes(&answer.body, &bytes);
        }
    }
}

#[test]
fn a_range_of_another_version_gives_the_whole_file() {
    let upstream = Upstream::start();
    let bytes = noise(6, 1000);
    upstream.serve("/a", Answer::file(&bytes).etag("\"v1\"").last_modified(DATE));
    let server = Setup::files(Remote::at(&upstream)).start();
    server.get("/api/files/a").expect(200, &bytes);
    for (version, is_part) in [
        ("\"v1\"", true),
        (DATE, true),
        ("\"v0\"", false),
        ("W/\"v1\"", false),
        ("Thu, 02 Jan 2025 00:00:00 GMT", false),
    ] {
        let ask = Ask::get("/api/files/a").range("10-19").header("If-Range", version);
        let answer = server.ask(&ask);
        if is_part {
            expect_part(&answer, 10..20, &bytes);
        } else {
            answer.expect(200, &bytes);
        }
    }
}

#[test]
fn a_range_of_a_cold_file_is_a_part_and_fills_the_cache() {
    let upstream = Upstream::start();
    let bytes = noise(7, 200_000);
    for path in ["/first", "/last", "/unknown-length", "/beyond"] {
        let file = Answer::file(&bytes).etag("\"v1\"");
        upstream.serve(path, if path == "/unknown-length" { file.chunked() } else { file });
    }
    let server = Setup::files(Remote::at(&upstream)).start();
    let ask = |path: &str, range: &str| server.ask(&Ask::get(path).range(range));
    expect_part(&ask("/api/files/first", "100-199"), 100..200, &bytes);
    expect_part(&ask("/api/files/last", "-100"), 199_900..200_000, &bytes);
    expect_part(&ask("/api/files/unknown-length", "100-199"), 100..200, &bytes);
    ask("/api/files/beyond", "200000-").expect_status(416);
    for path in ["/first", "/last", "/unknown-length", "/beyond"] {
        let target = format!("/api/files{path}");
        eventually("the whole file is a hit", || {
            let answer = server.get(&target);
            answer.expect(200, &bytes);
            answer.header("x-artifact-source") == Some("cache")
        });
        let fills = upstream.seen_for(path);
        let plain = fills.iter().filter(|seen| seen.header("range").is_none()).count();
        assert_eq!(plain, 1, "one fill, which is a plain GET: {fills:?}");
    }
}

#[test]
fn a_range_of_a_cold_file_that_is_not_there_is_404() {
    let upstream = Upstream::start();
    let server = Setup::files(Remote::at(&upstream)).start();
    server.ask(&Ask::get("/api/files/none").range("0-9")).expect_error(404);
}

#[test]
fn a_part_that_is_there_comes_while_the_file_grows() {
    let upstream = Upstream::start();
    let (bytes, gate) = (noise(8, 4 << 20), Gate::new());
    upstream.serve("/big", Answer::file(&bytes).etag("\"v1\"").held_at(1 << 20, &gate));
    let server = Setup::files(Remote::at(&upstream)).start();
    let first = server.begin(&Ask::get("/api/files/big"));
    let answer = server.ask(&Ask::get("/api/files/big").range("1000-99999"));
    expect_part(&answer, 1000..100_000, &bytes);
    gate.open();
    first.finish().expect(200, &bytes);
    assert_eq!(upstream.count("/big"), 1);
}

#[test]
fn a_part_far_ahead_of_a_growing_file_is_asked_for_on_its_own() {
    let upstream = Upstream::start();
    let (bytes, gate) = (noise(9, 48 << 20), Gate::new());
    let file = Answer::file(&bytes).etag("\"v1\"");
    upstream.serve("/big", [file.clone().held_at(100_000, &gate), file]);
    let server = Setup::files(Remote::at(&upstream)).start();
    let first = server.begin(&Ask::get("/api/files/big"));
    gate.wait_reached(1);
    let answer = server.ask(&Ask::get("/api/files/big").range("-1000"));
    expect_part(&answer, bytes.len() - 1000..bytes.len(), &bytes);
    gate.open();
    first.finish().expect(200, &bytes);
    let seen = upstream.seen_for("/big");
    assert_eq!(seen.len(), 2);
    assert!(seen[1].header("range").is_some(), "{:?}", seen[1]);
    server.get("/api/files/big").expect_header("x-artifact-source", "cache");
}

#[test]
fn a_download_that_broke_off_on_a_miss_resumes_on_the_hit() {
    let upstream = Upstream::start();
    let bytes = noise(10, 32 << 20);
    upstream.serve("/big", Answer::file(&bytes).etag("\"v1\"").last_modified(DATE));
    let server = Setup::files(Remote::at(&upstream)).start();
    let mut broken = server.begin(&Ask::get("/api/files/big"));
    let version = broken.head.header("etag").expect("a miss has upstream's ETag").to_owned();
    let mut bytes_so_far = broken.read_to(1 << 20).to_vec();
    broken.abort();
    eventually("the file is stored", || server.blob_files().len() == 1);

    let from = bytes_so_far.len();
    // As curl -C - asks, and as careful clients do.
    let plain = server.ask(&Ask::get("/api/files/big").range(&format!("{from}-")));
    expect_part(&plain, from..bytes.len(), &bytes);
    let ask = Ask::get("/api/files/big").range(&format!("{from}-")).header("If-Range", version);
    expect_part(&server.ask(&ask), from..bytes.len(), &bytes);
    bytes_so_far.extend_from_slice(&plain.body);
    assert_same_bytes(&bytes_so_far, &bytes);
    assert_eq!(upstream.count("/big"), 1);
}

#[test]
fn a_first_get_that_is_given_up_for_parallel_ranges_costs_one_fill() {
    let upstream = Upstream::start();
    let bytes = noise(11, 8 << 20);
    upstream.serve("/big", Answer::file(&bytes).etag("\"v1\"").throttled(8 << 20));
    let server = Setup::files(Remote::at(&upstream)).start();
    // What aria2 does with eight connections.
    server.begin(&Ask::get("/api/files/big")).abort();
    let part = bytes.len() / 8;
    std::thread::scope(|scope| {
        for number in 0..8 {
            let (server, bytes) = (&server, &bytes);
            scope.spawn(move || {
                let range = number * part..(number + 1) * part;
                let header = format!("{}-{}", range.start, range.end - 1);
                expect_part(&server.ask(&Ask::get("/api/files/big").range(&header)), range, bytes);
            });
        }
    });
    server.get("/api/files/big").expect(200, &bytes);
    let fills = upstream.seen_for("/big");
    assert_eq!(fills.iter().filter(|seen| seen.header("range").is_none()).count(), 1);
}

/// The parts of a multipart/byteranges answer (RFC 9110, section 14.6).
fn parts_of(answer: &Received, total: usize) -> Vec<(Range<usize>, Vec<u8>)> {
    answer.expect_status(206);
    let content_type = answer.header("content-type").unwrap_or_default();
    let boundary = content_type
        .strip_prefix("multipart/byteranges; boundary=")
        .unwrap_or_else(|| panic!("not multipart: {content_type}"))
        .trim_matches('"');
    let mut parts = Vec::new();
    let mut rest = answer.body.as_slice();
    let find = |bytes: &[u8], what: &str| {
        bytes.windows(what.len()).position(|window| window == what.as_bytes())
    };
    let delimiter = format!("--{boundary}");
    loop {
        let at = find(rest, &delimiter).expect("a boundary stands there");
        rest = &rest[at + delimiter.len()..];
        if rest.starts_with(b"--") {
            return parts;
        }
        let end = find(rest, "\r\n\r\n").expect("a part has a head");
        let head = String::from_utf8_lossy(&rest[..end]).to_ascii_lowercase();
        let range = head.split("content-range: bytes ").nth(1).expect("a part has a Content-Range");
        let (range, size) = range.lines().next().unwrap_or_default().split_once('/').expect("a/b");
        assert_eq!(size, total.to_string());
        let (from, to) = range.split_once('-').expect("from-to");
        let range = from.parse().expect("a number")..to.parse::<usize>().expect("a number") + 1;
        let body = rest[end + 4..][..range.len()].to_vec();
        rest = &rest[end + 4 + range.len()..];
        parts.push((range, body));
    }
}
