//! What goes wrong at upstream: no client sees a complete-looking body that is none, nothing
//! wrong is stored, and the next request heals.

use crate::support::client::{Ask, Received};
use crate::support::remotes::Remote;
use crate::support::server::{Server, Setup};
use crate::support::upstream::{Answer, Gate, Upstream};
use crate::support::{assert_same_bytes, eventually, noise, sha256_hex};

/// A body larger than any buffer on its way, so that a fault in it comes after its beginning.
const LARGE: usize = 2 << 20;
/// Where the faults are.
const FAULT_AT: u64 = 1 << 20;

/// Waits until a path gives the right bytes; until then there may be errors, but nothing that
/// looks like another whole file.
#[track_caller]
fn expect_healed(server: &Server, target: &str, bytes: &[u8]) {
    eventually("the next requests heal", || {
        let answer = server.get(target);
        match answer.status() {
            200 => answer.expect(200, bytes),
            502..=504 => answer.expect_error(answer.status()),
            other => panic!("{other} while healing"),
        }
        answer.status() == 200
    });
    server.get(target).expect(200, bytes);
}

#[track_caller]
fn expect_nothing_stored(server: &Server) {
    eventually("staging is empty", || server.staging_files().is_empty());
    assert_eq!(server.blob_files(), Vec::<std::path::PathBuf>::new());
}

#[test]
fn an_upstream_without_an_answer_is_502_or_504_and_heals() {
    let upstream = Upstream::start();
    let server = Setup::files(Remote::at(&upstream).impatient("1")).start();
    let bytes = noise(1, 10_000);
    for (name, fault, status) in [
        ("closed", Answer::closed(), 502),
        ("reset", Answer::reset(), 502),
        ("stalled", Answer::stalled(), 504),
        ("500", Answer::status(500), 502),
        ("403", Answer::status(403), 502),
    ] {
        let target = format!("/api/files/{name}");
        upstream.serve(&format!("/{name}"), fault);
        eventually("the upstream is asked", || {
            let answer = server.get(&target);
            // Earlier faults may have it left alone for a while.
            answer.expect_error(if answer.status() == 503 { 503 } else { status });
            answer.status() == status
        });
        expect_nothing_stored(&server);
        upstream.serve(&format!("/{name}"), Answer::file(&bytes));
        expect_healed(&server, &target, &bytes);
        std::fs::remove_file(server.blob_files().remove(0)).expect("the blob can be removed");
    }
}

#[test]
fn an_upstream_that_is_down_is_502_and_heals() {
    let upstream = Upstream::start();
    upstream.serve("/a", Answer::file(b"bytes"));
    let server = Setup::files(Remote::at(&upstream)).start();
    upstream.go_down();
    server.get("/api/files/a").expect_error(502);
    upstream.go_up();
    expect_healed(&server, "/api/files/a", b"bytes");
}

#[test]
fn an_upstream_that_asks_for_patience_is_503_or_502_and_heals() {
    for status in [429, 503] {
        let upstream = Upstream::start();
        upstream.serve("/a", Answer::status(status).header("Retry-After", "7200"));
        let server = Setup::files(Remote::at(&upstream)).start();
        // Two hours are not waited for.
        let answer = server.get("/api/files/a");
        answer.expect_error(if answer.status() == 503 { 503 } else { 502 });
        expect_nothing_stored(&server);
    }
}

#[test]
fn a_body_that_breaks_off_looks_broken_to_every_client() {
    let bytes = noise(2, LARGE);
    let file = || Answer::file(&bytes).ignoring_ranges();
    for (name, fault) in [
        ("cut", file().cut_at(FAULT_AT)),
        ("reset", file().reset_at(FAULT_AT)),
        ("stalled", file().stalled_at(FAULT_AT)),
        ("claiming more", file().claiming_length(LARGE as u64 + 1)),
        ("chunked and cut", file().chunked().cut_at(FAULT_AT)),
        ("chunked without end", file().chunked_without_end()),
    ] {
        let (upstream, gate) = (Upstream::start(), Gate::new());
        upstream.serve("/big", fault.held_at(FAULT_AT / 2, &gate));
        let server = Setup::files(Remote::at(&upstream).impatient("1")).start();
        let first = server.begin(&Ask::get("/api/files/big"));
        let second = server.begin(&Ask::get("/api/files/big"));
        gate.open();
        for answer in [first.finish(), second.finish()] {
            assert!(!answer.looks_whole(), "{name}: {:?}, {:?}", answer.head, answer.end);
            assert_same_bytes(&answer.body, &bytes[..answer.body.len()]);
        }
        expect_nothing_stored(&server);
        upstream.serve("/big", Answer::file(&bytes));
        expect_healed(&server, "/api/files/big", &bytes);
    }
}

#[test]
fn a_part_of_a_body_that_breaks_off_looks_broken_too() {
    let (upstream, bytes) = (Upstream::start(), noise(3, LARGE));
    upstream.serve("/big", Answer::file(&bytes).ignoring_ranges().cut_at(FAULT_AT));
    let server = Setup::files(Remote::at(&upstream)).start();
    let range = format!("1000-{}", LARGE - 1);
    let answer = server.ask(&Ask::get("/api/files/big").range(&range));
    assert!(answer.status() >= 500 || !answer.looks_whole(), "{:?}", answer.head);
    expect_nothing_stored(&server);
}

#[test]
fn a_body_that_only_the_close_ends_is_served_but_not_kept() {
    let (upstream, bytes) = (Upstream::start(), noise(4, 300_000));
    upstream.serve("/a", Answer::file(&bytes).until_close());
    let server = Setup::files(Remote::at(&upstream)).start();
    for _ in 0..2 {
        let answer = server.get("/api/files/a");
        answer.expect(200, &bytes);
        answer.expect_header("x-artifact-source", "remote");
    }
    assert_eq!(upstream.total(), 2);
    expect_nothing_stored(&server);
}

#[test]
fn a_cut_body_is_resumed_and_the_client_notices_nothing() {
    let (upstream, bytes) = (Upstream::start(), noise(5, LARGE));
    let file = Answer::file(&bytes).etag("\"v1\"");
    upstream.serve("/cut", [file.clone().cut_at(FAULT_AT), file.clone()]);
    upstream.serve("/reset", [file.clone().reset_at(FAULT_AT), file.clone()]);
    upstream.serve("/stalled", [file.clone().stalled_at(FAULT_AT), file.clone()]);
    upstream.serve("/twice", [file.clone().cut_at(FAULT_AT), file.clone().cut_at(1000), file]);
    let server = Setup::files(Remote::at(&upstream).impatient("1")).start();
    for path in ["/cut", "/reset", "/stalled", "/twice"] {
        server.get(&format!("/api/files{path}")).expect(200, &bytes);
        let hit = server.get(&format!("/api/files{path}"));
        hit.expect(200, &bytes);
        hit.expect_header("x-artifact-source", "cache");
        let seen = upstream.seen_for(path);
        assert_eq!(seen.len(), if path == "/twice" { 3 } else { 2 });
        let from = seen[1].header("range").expect("the rest is asked for");
        assert!(from.starts_with("bytes=") && from.ends_with('-'), "{from}");
        assert_eq!(seen[1].header("if-range"), Some("\"v1\""));
    }
}

#[test]
fn the_rest_of_another_version_is_never_joined_on() {
    let (upstream, old, new) = (Upstream::start(), noise(6, LARGE), noise(7, LARGE));
    let (v1, v2) = (Answer::file(&old).etag("\"v1\""), Answer::file(&new).etag("\"v2\""));
    upstream.serve("/a", [v1.cut_at(FAULT_AT), v2]);
    let server = Setup::files(Remote::at(&upstream)).start();
    let answer = server.get("/api/files/a");
    assert!(!answer.looks_whole(), "{:?}", answer.head);
    assert_same_bytes(&answer.body, &old[..answer.body.len()]);
    expect_healed(&server, "/api/files/a", &new);
}

#[test]
fn a_slow_body_that_moves_is_never_cut() {
    let (upstream, bytes) = (Upstream::start(), noise(8, 60_000));
    upstream.serve("/slow", Answer::file(&bytes).throttled(20_000));
    // The whole takes three times as long as any silence may last.
    let server = Setup::files(Remote::at(&upstream).impatient("1")).start();
    server.get("/api/files/slow").expect(200, &bytes);
    assert_eq!(upstream.total(), 1);
}

#[test]
fn wrong_bytes_for_a_name_with_a_checksum_never_look_whole() {
    let (right, wrong) = (noise(9, LARGE), noise(10, LARGE));
    let sum = sha256_hex(&right);
    let rpm = format!("/repodata/{sum}-primary.xml.gz");
    let deb = format!("/dists/stable/main/binary-amd64/by-hash/SHA256/{sum}");
    for (package, path) in [("rpm", &rpm), ("deb", &deb)] {
        let lies = [
            ("other bytes", Answer::file(&wrong)),
            ("other bytes in chunks", Answer::file(&wrong).chunked()),
            ("the last byte missing", Answer::file(&right[..LARGE - 1])),
            ("a byte too many", Answer::file(&[&right[..], b"x"].concat())),
            ("the announced length too short", Answer::file(&right).claiming_length(FAULT_AT)),
        ];
        for (name, lie) in lies {
            let (upstream, gate) = (Upstream::start(), Gate::new());
            upstream.serve(path, lie.held_at(FAULT_AT / 2, &gate));
            let server = Setup::files(Remote::at(&upstream).package(package)).start();
            let target = format!("/api/files{path}");
            std::thread::scope(|scope| {
                for _ in 0..3 {
                    scope.spawn(|| expect_no_whole_file(&server.get(&target), name));
                }
                server.wait_under_way(3);
                gate.open();
            });
            expect_nothing_stored(&server);
            upstream.serve(path, Answer::file(&right));
            expect_healed(&server, &target, &right);
        }
    }
}

#[track_caller]
fn expect_no_whole_file(answer: &Received, name: &str) {
    match answer.status() {
        200 => assert!(!answer.looks_whole(), "{name}: a whole body came"),
        status => answer.expect_error(status),
    }
}

#[test]
fn wrong_bytes_are_502_if_nothing_was_sent_yet() {
    let (upstream, right) = (Upstream::start(), noise(11, 1000));
    let path = format!("/repodata/{}-primary.xml.gz", sha256_hex(&right));
    upstream.serve(&path, Answer::file(&noise(12, 1000)));
    let server = Setup::files(Remote::at(&upstream).package("rpm")).start();
    server.get(&format!("/api/files{path}")).expect_error(502);
    expect_nothing_stored(&server);
    upstream.serve(&path, Answer::file(&right));
    expect_healed(&server, &format!("/api/files{path}"), &right);
}

#[test]
fn a_failing_upstream_leaves_the_stale_copy_in_service() {
    let upstream = Upstream::start();
    let remote = Remote::at(&upstream).always_revalidated().impatient("1");
    let server = Setup::files(remote).start();
    for (name, fault) in [
        ("closed", Answer::closed()),
        ("reset", Answer::reset()),
        ("stalled", Answer::stalled()),
        ("500", Answer::status(500)),
        ("503", Answer::status(503)),
        ("429", Answer::status(429)),
    ] {
        let (path, target) = (format!("/{name}"), format!("/api/files/{name}"));
        upstream.serve(&path, Answer::file(name.as_bytes()).etag("\"v1\""));
        expect_healed(&server, &target, name.as_bytes());
        upstream.serve(&path, fault);
        let stale = server.get(&target);
        stale.expect(200, name.as_bytes());
        stale.expect_header("x-artifact-source", "cache");
        stale.expect_header("etag", "\"v1\"");
    }
    upstream.go_down();
    eventually("the copy is marked as stale", || {
        let stale = server.get("/api/files/closed");
        stale.expect(200, b"closed");
        let status = stale.header("cache-status").unwrap_or_default();
        status.starts_with("artifactapi; hit") && status.contains("ttl=-")
    });
    server.wait_logged(&["stale"]);
}

#[test]
fn a_web_page_in_a_files_place_is_a_failure_and_no_file() {
    let upstream = Upstream::start();
    let remote = Remote::at(&upstream).always_revalidated().package("deb").include(&["."]);
    let server = Setup::files(remote).start();
    let portal = || {
        let page = b"<!DOCTYPE html>\n<title>Please sign in</title>";
        Answer::file(page).header("Content-Type", "text/html; charset=utf-8")
    };
    upstream.serve("/dists/a/InRelease", Answer::file(b"index"));
    server.get("/api/files/dists/a/InRelease").expect(200, b"index");
    for path in ["/dists/a/InRelease", "/pool/t/t_1_amd64.deb", "/pool/t/"] {
        upstream.serve(path, portal());
    }
    let package = server.get("/api/files/pool/t/t_1_amd64.deb");
    package.expect_error(502);
    assert!(package.text().contains("a web page in place of the file"), "{}", package.text());
    let index = server.get("/api/files/dists/a/InRelease");
    index.expect(200, b"index");
    assert!(index.header("cache-status").unwrap_or_default().contains("ttl=-"));
    // A listing is one.
    server.get("/api/files/pool/t/").expect_status(200);
    let bytes = noise(31, 10_000);
    let typed_alike = Answer::file(&bytes).header("Content-Type", "text/html");
    upstream.serve("/pool/t/t_1_amd64.deb", typed_alike);
    expect_healed(&server, "/api/files/pool/t/t_1_amd64.deb", &bytes);
}

#[test]
fn an_upstream_that_is_silent_holds_no_stale_copy_back() {
    let (upstream, gate) = (Upstream::start(), Gate::new());
    upstream.serve("/a", Answer::file(b"one").etag("\"v1\""));
    // It may be silent for a minute.
    let server = Setup::files(Remote::at(&upstream).always_revalidated()).start();
    server.get("/api/files/a").expect(200, b"one");
    upstream.serve("/a", Answer::file(b"two").etag("\"v2\"").head_held_by(&gate));
    for _ in 0..3 {
        let stale = server.ask(&Ask::get("/api/files/a"));
        stale.expect(200, b"one");
        assert!(stale.header("cache-status").unwrap_or_default().contains("ttl=-"));
    }
    // One fetch, which goes on: nobody has waited for its end.
    assert_eq!(upstream.count("/a"), 2);
    gate.open();
    eventually("the new version has come", || server.get("/api/files/a").body == b"two");
}

#[test]
fn a_new_version_that_breaks_off_leaves_the_old_one() {
    let (upstream, old, new) = (Upstream::start(), noise(16, 100_000), noise(13, LARGE));
    upstream.serve("/a", Answer::file(&old).etag("\"v1\""));
    let server = Setup::files(Remote::at(&upstream).always_revalidated()).start();
    server.get("/api/files/a").expect(200, &old);
    upstream.serve("/a", Answer::file(&new).ignoring_ranges().cut_at(FAULT_AT));
    let answer = server.get("/api/files/a");
    if answer.looks_whole() {
        answer.expect(200, &old);
    } else {
        assert_same_bytes(&answer.body, &new[..answer.body.len()]);
    }
    upstream.serve("/a", Answer::status(500));
    server.get("/api/files/a").expect(200, &old);
    upstream.serve("/a", Answer::file(&new).etag("\"v2\""));
    eventually("the new version is served", || {
        let answer = server.get("/api/files/a");
        let status = answer.header("cache-status").unwrap_or_default();
        answer.body == new && status == "artifactapi; fwd=stale; fwd-status=200; stored"
    });
}

#[test]
fn a_stale_copy_is_served_no_longer_than_allowed() {
    let upstream = Upstream::start();
    upstream.serve("/a", Answer::file(b"bytes").etag("\"v1\""));
    let remote = Remote::at(&upstream).always_revalidated().with("stale_if_error: 2");
    let server = Setup::files(remote).start();
    server.get("/api/files/a").expect(200, b"bytes");
    upstream.go_down();
    eventually("the copy is too old", || {
        let answer = server.get("/api/files/a");
        match answer.status() {
            200 => answer.expect(200, b"bytes"),
            status => answer.expect_error(status),
        }
        answer.status() >= 502
    });
}

#[test]
fn what_is_gone_upstream_is_gone_here_once_it_lapsed() {
    let upstream = Upstream::start();
    upstream.serve("/a", Answer::file(b"bytes"));
    let server = Setup::files(Remote::at(&upstream).always_revalidated()).start();
    server.get("/api/files/a").expect(200, b"bytes");
    upstream.serve("/a", Answer::status(404));
    server.get("/api/files/a").expect_error(404);
}

#[test]
fn a_404_is_remembered_for_its_negative_ttl() {
    let upstream = Upstream::start();
    let server = Setup::new()
        .remote("long", Remote::at(&upstream).with("negative_ttl: 3600"))
        .remote("short", Remote::at(&upstream).with("negative_ttl: 1"))
        .remote("none", Remote::at(&upstream).with("negative_ttl: 0"))
        .start();
    for _ in 0..3 {
        server.get("/api/long/a").expect_error(404);
        server.get("/api/none/b").expect_error(404);
        server.get("/api/short/c").expect_error(404);
    }
    assert_eq!(upstream.count("/a"), 1);
    assert_eq!(upstream.count("/b"), 3);
    upstream.serve("/a", Answer::file(b"bytes"));
    upstream.serve("/c", Answer::file(b"bytes"));
    server.get("/api/long/a").expect_error(404);
    eventually("the 404 is forgotten", || server.get("/api/short/c").status() == 200);
}

#[test]
fn what_does_not_fit_into_staging_is_passed_through() {
    let upstream = Upstream::start();
    let (large, small) = (noise(14, 4 << 20), noise(15, 100_000));
    upstream.serve("/large", Answer::file(&large));
    upstream.serve("/large-chunked", Answer::file(&large).chunked());
    upstream.serve("/small", Answer::file(&small));
    let server = Setup::files(Remote::at(&upstream)).env("STAGING_BYTES_MAX", "1Mi").start();
    server.get("/api/files/large").expect(200, &large);
    // Its length is known too late: the beginning may have been sent.
    let answer = server.get("/api/files/large-chunked");
    assert!(answer.body == large || !answer.looks_whole() || answer.status() == 507);
    // The next time it is known.
    let again = server.get("/api/files/large-chunked");
    again.expect(200, &large);
    again.expect_header("cache-status", "artifactapi; fwd=bypass");
    server.get("/api/files/small").expect(200, &small);
    server.get("/api/files/small").expect_header("x-artifact-source", "cache");
    assert_eq!(server.blob_files().len(), 1);
}

#[test]
fn clients_that_have_gone_hold_no_worker() {
    let upstream = Upstream::start();
    let server =
        Setup::files(Remote::at(&upstream)).env("WORKERS", 2).env("FETCH_THREADS", 4).start();
    let bytes = noise(9, 1000);
    upstream.serve("/hit", Answer::file(&bytes));
    server.get("/api/files/hit").expect(200, &bytes);
    let gate = Gate::new();
    for name in ["one", "two"] {
        upstream.serve(&format!("/{name}"), Answer::file(&bytes).head_held_by(&gate));
        let mut client = server.connect();
        // A body that does not come holds no worker either.
        let fields = "Host: a\r\nContent-Length: 1";
        client.send_raw(format!("GET /api/files/{name} HTTP/1.1\r\n{fields}\r\n\r\n").as_bytes());
        // Kept until the upstream was asked.
        eventually("the upstream is asked", || upstream.count(&format!("/{name}")) == 1);
    }
    // Both have gone, though nobody can know.
    server.ask(&Ask::get("/api/files/hit")).expect(200, &bytes);
    gate.open();
    eventually("the fetches ended well, though nobody waited", || server.blob_files().len() == 3);
}
