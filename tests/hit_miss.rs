//! What a first request and a later one get: bytes, headers, conditions.

use std::process::Command;

use crate::support::client::Ask;
use crate::support::remotes::Remote;
use crate::support::server::Setup;
use crate::support::upstream::{Answer, Gate, Upstream};
use crate::support::{assert_same_bytes, eventually, noise, sha256_hex};

const DATE: &str = "Wed, 01 Jan 2025 00:00:00 GMT";
const EARLIER: &str = "Tue, 31 Dec 2024 00:00:00 GMT";

#[test]
fn a_miss_is_stored_and_later_requests_are_hits() {
    let upstream = Upstream::start();
    let bytes = noise(1, 300_000);
    upstream.serve("/tool-1.0.zip", Answer::file(&bytes).etag("\"v1\"").last_modified(DATE));
    let server = Setup::files(Remote::at(&upstream)).start();

    let miss = server.get("/api/files/tool-1.0.zip");
    miss.expect(200, &bytes);
    miss.expect_header("x-artifact-source", "remote");
    let status = miss.header("cache-status").expect("every answer has a Cache-Status").to_owned();
    assert!(status.starts_with("artifactapi; fwd=uri-miss"), "{status}");

    let hit = server.get("/api/files/tool-1.0.zip");
    hit.expect(200, &bytes);
    hit.expect_header("x-artifact-source", "cache");
    let status = hit.header("cache-status").expect("every answer has a Cache-Status").to_owned();
    assert!(status.starts_with("artifactapi; hit"), "{status}");
    hit.expect_header("x-checksum-sha256", &sha256_hex(&bytes));
    assert!(hit.header("repr-digest").is_some_and(|digest| digest.starts_with("sha-256=:")));
    assert!(hit.header("age").is_some_and(|age| age.parse::<u64>().is_ok()));

    for answer in [&miss, &hit] {
        answer.expect_header("content-length", "300000");
        answer.expect_header("etag", "\"v1\"");
        answer.expect_header("last-modified", DATE);
        answer.expect_header("accept-ranges", "bytes");
        answer.expect_header("content-type", "application/zip");
        let disposition = answer.header("content-disposition").unwrap_or_default();
        assert!(disposition.contains("tool-1.0.zip"), "{disposition}");
    }
    assert_eq!(upstream.total(), 1);
}

#[test]
fn a_client_that_asks_for_the_digest_has_it_on_a_miss_as_well() {
    let upstream = Upstream::start();
    let bytes = noise(13, 300_000);
    upstream.serve("/a", Answer::file(&bytes));
    upstream.serve("/cut", Answer::file(&bytes).ignoring_ranges().cut_at(100_000));
    let server = Setup::files(Remote::at(&upstream)).start();
    let ask = |path: &str| Ask::get(path).header("Want-Repr-Digest", "sha-256=10");
    let answer = server.ask(&ask("/api/files/a"));
    answer.expect(200, &bytes);
    answer.expect_header("x-checksum-sha256", &sha256_hex(&bytes));
    assert!(answer.header("repr-digest").is_some_and(|digest| digest.starts_with("sha-256=:")));
    // It can be told of a whole file only, so nothing was sent when this one broke off.
    server.ask(&ask("/api/files/cut")).expect_error(502);
}

#[test]
fn the_first_bytes_come_before_upstream_has_finished() {
    let upstream = Upstream::start();
    let (bytes, gate) = (noise(2, 1 << 20), Gate::new());
    upstream.serve("/big.iso", Answer::file(&bytes).held_at(100_000, &gate));
    let server = Setup::files(Remote::at(&upstream)).start();
    let mut answer = server.begin(&Ask::get("/api/files/big.iso"));
    assert_same_bytes(&answer.read_to(100_000)[..100_000], &bytes[..100_000]);
    gate.open();
    answer.finish().expect(200, &bytes);
}

#[test]
fn head_tells_the_same_as_get_without_a_body() {
    let upstream = Upstream::start();
    let bytes = noise(3, 50_000);
    upstream.serve("/a.rpm", Answer::file(&bytes).etag("\"v1\""));
    let server = Setup::files(Remote::at(&upstream)).start();
    // On one connection: a body behind the head would be taken for the next answer.
    let mut connection = server.connect();
    for round in ["miss", "hit"] {
        let head = Ask::head("/api/files/a.rpm");
        let (answer, kept) = connection.begin(&head).expect("a head comes").finish_keeping();
        answer.expect(200, b"");
        answer.expect_header("content-length", "50000");
        answer.expect_header("etag", "\"v1\"");
        let get = Ask::get("/api/files/a.rpm");
        let (answer, kept) = kept.begin(&get).expect(round).finish_keeping();
        answer.expect(200, &bytes);
        connection = kept;
    }
    let gets = upstream.seen_for("/a.rpm").iter().filter(|seen| seen.method == "GET").count();
    assert_eq!(gets, 1);
}

#[test]
fn a_client_that_has_the_file_gets_304() {
    let upstream = Upstream::start();
    let bytes = noise(4, 1000);
    upstream.serve("/a", Answer::file(&bytes).etag("\"v1\"").last_modified(DATE));
    let server = Setup::files(Remote::at(&upstream)).start();
    let check = |name: &str, value: &str, status: u16| {
        let answer = server.ask(&Ask::get("/api/files/a").header(name, value));
        let body: &[u8] = if status == 304 { b"" } else { &bytes };
        answer.expect(status, body);
        answer.expect_header("etag", "\"v1\"");
    };
    // The first is a miss: what a client knows already must not become part of a fill.
    check("If-None-Match", "\"v1\"", 304);
    check("If-None-Match", "\"v1\"", 304);
    check("If-None-Match", "W/\"v1\"", 304);
    check("If-None-Match", "\"v0\", \"v1\"", 304);
    check("If-None-Match", "*", 304);
    check("If-None-Match", "\"v0\"", 200);
    check("If-Modified-Since", DATE, 304);
    check("If-Modified-Since", EARLIER, 200);
    check("If-Modified-Since", "no date", 200);

    let fills = upstream.seen_for("/a");
    assert_eq!(fills.len(), 1);
    assert_eq!(fills[0].header("if-none-match"), None);
}

#[test]
fn if_none_match_wins_over_if_modified_since() {
    let upstream = Upstream::start();
    upstream.serve("/a", Answer::file(b"bytes").etag("\"v1\"").last_modified(DATE));
    let server = Setup::files(Remote::at(&upstream)).start();
    server.get("/api/files/a").expect(200, b"bytes");
    let ask = Ask::get("/api/files/a")
        .header("If-None-Match", "\"v0\"")
        .header("If-Modified-Since", DATE);
    server.ask(&ask).expect(200, b"bytes");
}

#[test]
fn without_an_etag_of_upstream_the_digest_is_the_etag() {
    let upstream = Upstream::start();
    upstream.serve("/a", Answer::file(b"bytes"));
    let server = Setup::files(Remote::at(&upstream)).start();
    server.get("/api/files/a").expect(200, b"bytes");
    let hit = server.get("/api/files/a");
    let etag = hit.header("etag").expect("a stored file has an ETag").to_owned();
    assert!(etag.contains(&sha256_hex(b"bytes")), "{etag}");
    server.ask(&Ask::get("/api/files/a").header("If-None-Match", etag)).expect_status(304);
}

#[test]
fn a_weak_etag_is_for_upstream_alone() {
    let upstream = Upstream::start();
    upstream.serve("/a", Answer::file(b"bytes").etag("W/\"v1\""));
    let server = Setup::files(Remote::at(&upstream).always_revalidated()).start();
    for _ in ["miss", "revalidated"] {
        // Equal weak ETags don't mean equal bytes: no download may be resumed with one.
        let answer = server.get("/api/files/a");
        answer.expect(200, b"bytes");
        assert_ne!(answer.header("etag"), Some("\"v1\""));
    }
    assert_eq!(upstream.seen_for("/a")[1].header("if-none-match"), Some("W/\"v1\""));
}

#[test]
fn content_types_follow_the_file_name_then_upstream() {
    let upstream = Upstream::start();
    let odd = |name: &'static str| Answer::file(b"x").header("Content-Type", name);
    upstream.serve("/a.json", odd("text/plain"));
    upstream.serve("/no-suffix", odd("text/x-made-up"));
    upstream.serve("/nothing", Answer::file(b"x"));
    let server = Setup::files(Remote::at(&upstream)).start();
    for (path, expected) in [
        ("a.json", "application/json"),
        ("no-suffix", "text/x-made-up"),
        ("nothing", "application/octet-stream"),
    ] {
        for _ in ["miss", "hit"] {
            let answer = server.get(&format!("/api/files/{path}"));
            answer.expect_header("content-type", expected);
        }
    }
}

#[test]
fn bytes_are_stored_as_upstream_sent_them() {
    let upstream = Upstream::start();
    // Not gzip at all: whoever tries to decode it fails.
    let bytes = noise(5, 4000);
    upstream.serve("/a.gz", Answer::file(&bytes).header("Content-Encoding", "gzip"));
    let server = Setup::files(Remote::at(&upstream)).start();
    for _ in ["miss", "hit"] {
        let ask = Ask::get("/api/files/a.gz").header("Accept-Encoding", "gzip, br");
        server.ask(&ask).expect(200, &bytes);
    }
    assert_eq!(upstream.seen()[0].header("accept-encoding"), Some("identity"));
}

#[test]
fn a_file_of_unknown_length_is_stored_if_its_chunks_end_well() {
    let upstream = Upstream::start();
    let bytes = noise(6, 200_000);
    upstream.serve("/a.tar", Answer::file(&bytes).chunked());
    let server = Setup::files(Remote::at(&upstream)).start();
    server.get("/api/files/a.tar").expect(200, &bytes);
    let hit = server.get("/api/files/a.tar");
    hit.expect(200, &bytes);
    hit.expect_header("content-length", "200000");
    hit.expect_header("x-artifact-source", "cache");
    assert_eq!(upstream.total(), 1);
}

#[test]
fn an_empty_file_is_a_file() {
    let upstream = Upstream::start();
    upstream.serve("/empty", Answer::file(b"").etag("\"v1\""));
    upstream.serve("/empty-chunked", Answer::file(b"").chunked());
    let server = Setup::files(Remote::at(&upstream)).start();
    for path in ["/api/files/empty", "/api/files/empty-chunked"] {
        for source in ["remote", "cache"] {
            let answer = server.get(path);
            answer.expect(200, b"");
            answer.expect_header("x-artifact-source", source);
        }
    }
}

#[test]
fn a_client_of_http_1_0_gets_a_length_and_no_chunks() {
    let upstream = Upstream::start();
    let bytes = noise(7, 100_000);
    upstream.serve("/known", Answer::file(&bytes));
    upstream.serve("/unknown", Answer::file(&bytes).chunked());
    let server = Setup::files(Remote::at(&upstream)).start();
    for path in ["known", "unknown"] {
        for _ in ["miss", "hit"] {
            let answer = server.ask(&Ask::get(&format!("/api/files/{path}")).http_10());
            answer.expect(200, &bytes);
            assert_eq!(answer.header("transfer-encoding"), None);
        }
    }
    assert_eq!(upstream.total(), 2);
}

#[test]
fn a_connection_carries_many_requests() {
    let upstream = Upstream::start();
    let server = Setup::files(Remote::at(&upstream)).start();
    let mut connection = server.connect();
    for number in 0..20 {
        let bytes = noise(number, 5000);
        upstream.serve(&format!("/{}", number % 7), Answer::file(&bytes));
        let ask = Ask::get(&format!("/api/files/{}", number % 7));
        let (answer, kept) = connection.begin(&ask).expect("it stays open").finish_keeping();
        answer.expect(200, &noise(number % 7, 5000));
        connection = kept;
    }
    assert_eq!(upstream.total(), 7);
    assert!(upstream.connections() < 7, "upstream connections are kept as well");
}

#[test]
fn every_spelling_of_a_path_is_one_artifact() {
    let upstream = Upstream::start();
    upstream.serve("/g%2B%2B_1%253a2~x.deb", Answer::file(b"bytes"));
    let server = Setup::files(Remote::at(&upstream)).start();
    for path in ["g++_1%253a2~x.deb", "g%2b%2B_1%253a2%7ex.deb", "%67%2b+_1%253a2%7Ex.deb"] {
        server.get(&format!("/api/files/{path}")).expect(200, b"bytes");
    }
    assert_eq!(upstream.total(), 1);
}

#[test]
fn a_query_is_part_of_the_name() {
    let upstream = Upstream::start();
    upstream.serve("/get?id=1", Answer::file(b"one"));
    upstream.serve("/get?id=2", Answer::file(b"two"));
    let server = Setup::files(Remote::at(&upstream)).start();
    for _ in ["miss", "hit"] {
        server.get("/api/files/get?id=1").expect(200, b"one");
        server.get("/api/files/get?id=2").expect(200, b"two");
    }
    assert_eq!(upstream.total(), 2);
}

#[test]
fn a_base_url_may_have_a_path() {
    let upstream = Upstream::start();
    upstream.serve("/pub/linux/a.rpm", Answer::file(b"bytes"));
    let server = Setup::new()
        .remote("with", Remote::at_url(&format!("{}/pub/linux/", upstream.url())))
        .remote("without", Remote::at_url(&format!("{}/pub/linux", upstream.url())))
        .start();
    server.get("/api/with/a.rpm").expect(200, b"bytes");
    server.get("/api/without/a.rpm").expect(200, b"bytes");
}

#[test]
fn what_may_change_is_revalidated_and_a_304_keeps_the_stored_bytes() {
    let upstream = Upstream::start();
    upstream.serve("/latest", Answer::file(b"one").etag("\"v1\"").last_modified(DATE));
    let server = Setup::files(Remote::at(&upstream).always_revalidated()).start();
    server.get("/api/files/latest").expect(200, b"one");
    let renewed = server.get("/api/files/latest");
    renewed.expect(200, b"one");
    let status = renewed.header("cache-status").unwrap_or_default().to_owned();
    assert!(status.contains("fwd=stale") && status.contains("fwd-status=304"), "{status}");
    let questions = upstream.seen_for("/latest");
    assert_eq!(questions.len(), 2);
    assert_eq!(questions[1].header("if-none-match"), Some("\"v1\""));

    upstream.serve("/latest", Answer::file(b"two").etag("\"v2\""));
    let changed = server.get("/api/files/latest");
    changed.expect(200, b"two");
    changed.expect_header("etag", "\"v2\"");
    assert_eq!(server.blob_files().len(), 1, "the new bytes replaced the old ones");
}

#[test]
fn last_modified_alone_is_enough_to_revalidate() {
    let upstream = Upstream::start();
    upstream.serve("/latest", Answer::file(b"one").last_modified(DATE));
    let server = Setup::files(Remote::at(&upstream).always_revalidated()).start();
    server.get("/api/files/latest").expect(200, b"one");
    server.get("/api/files/latest").expect(200, b"one");
    assert_eq!(upstream.seen_for("/latest")[1].header("if-modified-since"), Some(DATE));
}

#[test]
fn a_304_renews_the_lifetime() {
    let upstream = Upstream::start();
    upstream.serve("/latest", Answer::file(b"one").etag("\"v1\""));
    let remote = Remote::at(&upstream).index_ttl(3).with("mutable_patterns: ['^latest$']");
    let server = Setup::files(remote).start();
    server.get("/api/files/latest").expect(200, b"one");
    eventually("the lifetime has lapsed", || {
        server.get("/api/files/latest").expect(200, b"one");
        upstream.count("/latest") == 2
    });
    server.get("/api/files/latest").expect_header("x-artifact-source", "cache");
    assert_eq!(upstream.count("/latest"), 2);
}

#[test]
fn an_immutable_file_lapses_after_its_file_ttl() {
    let upstream = Upstream::start();
    upstream.serve("/a.zip", Answer::file(b"one").etag("\"v1\""));
    let server = Setup::files(Remote::at(&upstream).file_ttl(1)).start();
    server.get("/api/files/a.zip").expect(200, b"one");
    eventually("the file was revalidated", || {
        server.get("/api/files/a.zip").expect(200, b"one");
        upstream.seen_for("/a.zip").iter().any(|seen| seen.header("if-none-match").is_some())
    });
}

#[test]
fn a_reader_keeps_its_version_while_a_new_one_is_stored() {
    let upstream = Upstream::start();
    let (old, new) = (noise(8, 32 << 20), noise(9, 1 << 20));
    upstream.serve("/latest", Answer::file(&old).etag("\"v1\""));
    let server = Setup::files(Remote::at(&upstream).always_revalidated()).start();
    server.get("/api/files/latest").expect(200, &old);
    let mut slow = server.begin(&Ask::get("/api/files/latest"));
    slow.read_to(1);
    upstream.serve("/latest", Answer::file(&new).etag("\"v2\""));
    server.get("/api/files/latest").expect(200, &new);
    slow.finish().expect(200, &old);
}

#[test]
fn only_what_the_patterns_allow_is_fetched() {
    let upstream = Upstream::start();
    upstream.serve("/v1/tool_linux.zip", Answer::file(b"bytes"));
    let remote = Remote::at(&upstream)
        .include(&["^v[0-9]+/.*linux.*\\.zip$"])
        .with("exclude_patterns: ['beta']");
    let server = Setup::files(remote).remote("nothing", Remote::at(&upstream).include(&[])).start();
    server.get("/api/files/v1/tool_linux.zip").expect(200, b"bytes");
    let asked = upstream.total();
    for path in ["files/v1/tool_darwin.zip", "files/v1/beta_linux.zip", "nothing/v1/tool_linux.zip"]
    {
        server.get(&format!("/api/{path}")).expect_error(403);
    }
    server.get("/api/unknown/v1/tool_linux.zip").expect_error(404);
    assert_eq!(upstream.total(), asked);
}

#[test]
fn what_is_too_large_to_keep_is_passed_through() {
    let upstream = Upstream::start();
    let bytes = noise(10, 10_000);
    upstream.serve("/large", Answer::file(&bytes));
    upstream.serve("/large-chunked", Answer::file(&bytes).chunked());
    upstream.serve("/small", Answer::file(&bytes[..1000]));
    let server = Setup::files(Remote::at(&upstream).with("max_bytes: 5000")).start();
    for _ in 0..2 {
        server.get("/api/files/large").expect(200, &bytes);
        server.get("/api/files/large-chunked").expect(200, &bytes);
        server.get("/api/files/small").expect(200, &bytes[..1000]);
    }
    assert_eq!(upstream.count("/large"), 2);
    assert_eq!(upstream.count("/large-chunked"), 2);
    assert_eq!(upstream.count("/small"), 1);
    assert_eq!(server.blob_files().len(), 1);
}

#[test]
fn an_offline_remote_serves_what_it_has_and_asks_nobody() {
    let upstream = Upstream::start();
    upstream.serve("/a", Answer::file(b"bytes"));
    let mut server = Setup::files(Remote::at(&upstream).always_revalidated()).start();
    server.get("/api/files/a").expect(200, b"bytes");
    let asked = upstream.total();
    server.kill();
    let yaml = std::fs::read_to_string(server.config_path()).expect("it was written");
    server.rewrite_config(&(yaml + "    offline: true\n"));
    server.start_again();
    server.get("/api/files/a").expect(200, b"bytes");
    let missing = server.get("/api/files/b");
    assert!((400..600).contains(&missing.status()), "{missing:?}");
    assert_eq!(upstream.total(), asked);
}

#[test]
fn a_copied_cache_serves_on_a_machine_without_a_network() {
    let upstream = Upstream::start();
    upstream.serve("/dists/a/InRelease", Answer::file(b"index"));
    upstream.serve("/pool/t/t_1_amd64.deb", Answer::file(b"package"));
    let remote = || Remote::at(&upstream).always_revalidated().package("deb").include(&["."]);
    let files = [("dists/a/InRelease", b"index".as_slice()), ("pool/t/t_1_amd64.deb", b"package")];
    let mut filled = Setup::files(remote()).start();
    for (path, bytes) in files {
        filled.get(&format!("/api/files/{path}")).expect(200, bytes);
    }
    filled.signal(rustix::process::Signal::TERM);
    assert!(filled.wait_exit().success());
    let asked = upstream.total();
    let mut lab = Setup::files(remote()).env("OFFLINE", true).start();
    lab.kill();
    std::fs::remove_dir_all(lab.data_dir()).expect("nobody uses it");
    let copied = Command::new("cp").arg("-a").args([filled.data_dir(), lab.data_dir()]).status();
    assert!(copied.expect("cp is there").success());
    lab.start_again();
    for (path, bytes) in files {
        let hit = lab.get(&format!("/api/files/{path}"));
        hit.expect(200, bytes);
        hit.expect_header("x-artifact-source", "cache");
    }
    lab.get("/api/files/pool/t/t_2_amd64.deb").expect_error(404);
    assert_eq!(upstream.total(), asked);
}

#[test]
fn what_is_stored_outlives_the_process() {
    let upstream = Upstream::start();
    let bytes = noise(11, 100_000);
    upstream.serve("/a", Answer::file(&bytes).etag("\"v1\"").header("Content-Type", "text/x-odd"));
    let mut server = Setup::files(Remote::at(&upstream)).start();
    server.get("/api/files/a").expect(200, &bytes);
    server.signal(rustix::process::Signal::TERM);
    assert!(server.wait_exit().success());
    server.start_again();
    let hit = server.get("/api/files/a");
    hit.expect(200, &bytes);
    hit.expect_header("x-artifact-source", "cache");
    hit.expect_header("etag", "\"v1\"");
    hit.expect_header("content-type", "text/x-odd");
    assert_eq!(upstream.total(), 1);
}

#[test]
fn caches_in_between_ask_each_time_about_what_may_change() {
    let upstream = Upstream::start();
    for path in ["/folder/", "/a"] {
        upstream.serve(path, Answer::file(b"bytes").etag("\"v1\"").last_modified(DATE));
    }
    let server = Setup::files(Remote::at(&upstream)).start();
    for (target, expected) in [("/api/files/folder/", Some("no-cache")), ("/api/files/a", None)] {
        for _ in 0..2 {
            let answer = server.get(target);
            answer.expect(200, b"bytes");
            assert_eq!(answer.header("cache-control"), expected, "{target}");
        }
        let known = server.ask(&Ask::get(target).header("If-None-Match", "\"v1\""));
        known.expect_status(304);
        assert_eq!(known.header("cache-control"), expected, "{target}");
    }
}

#[test]
fn the_folder_of_a_remote_is_had_like_any_other() {
    let upstream = Upstream::start();
    upstream.serve("/", Answer::file(b"<a href=\"a\">a</a>").header("Content-Type", "text/html"));
    let remote = Remote::at(&upstream);
    let server = Setup::files(remote).with_uploads().start();
    for outcome in ["remote", "cache"] {
        let answer = server.get("/api/files/");
        answer.expect(200, b"<a href=\"a\">a</a>");
        answer.expect_header("x-artifact-source", outcome);
        answer.expect_header("content-type", "text/html");
        eventually("it is stored", || server.blob_files().len() == 1);
    }
    server.get("/artifacts/files").expect_status(200);
    server.get("/api/files").expect_error(400);
    server.get("/api/own/").expect_error(404);
}

#[test]
fn stored_files_lie_under_predictable_keys() {
    let upstream = Upstream::start();
    upstream.serve("/v3.20/main/x86_64/curl-8.9.0-r0.apk", Answer::file(b"bytes"));
    let server = Setup::new().remote("alpine", Remote::at(&upstream)).start();
    server.get("/api/alpine/v3.20/main/x86_64/curl-8.9.0-r0.apk").expect(200, b"bytes");
    let file = server.data_dir().join("blobs/alpine/b369c62526bbfedc/curl-8.9.0-r0.apk");
    eventually("the blob is published", || file.exists());
    assert_eq!(std::fs::read(&file).expect("the blob can be read"), b"bytes");
}

#[test]
fn a_blob_that_somebody_removed_or_changed_heals() {
    let upstream = Upstream::start();
    upstream.serve("/a", Answer::file(b"bytes"));
    let server = Setup::files(Remote::at(&upstream)).start();
    server.get("/api/files/a").expect(200, b"bytes");
    eventually("the blob is published", || server.blob_files().len() == 1);
    let blob = server.blob_files().remove(0);
    std::fs::remove_file(&blob).expect("the blob can be removed");
    server.get("/api/files/a").expect(200, b"bytes");
    eventually("the blob is published again", || blob.exists());
    server.get("/api/files/a").expect_header("x-artifact-source", "cache");

    std::fs::remove_file(&blob).expect("the blob can be removed");
    std::fs::write(&blob, b"other bytes").expect("a file can be put there");
    server.get("/api/files/a").expect(200, b"bytes");
}

#[test]
fn memory_does_not_grow_with_the_file() {
    let upstream = Upstream::start();
    let bytes = noise(12, 64 << 20);
    upstream.serve("/big", Answer::file(&bytes));
    let server = Setup::files(Remote::at(&upstream)).start();
    server.get("/api/files/big").expect(200, &bytes);
    server.get("/api/files/big").expect(200, &bytes);
    let peak = server.memory_peak();
    assert!(peak < 64 << 20, "a 64 MiB file took {} MiB", peak >> 20);
}
