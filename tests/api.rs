//! The routes beside the artifacts, and the answers to what is none.

use std::process::Command;

use serde_json::Value;

use crate::support::client::Ask;
use crate::support::remotes::Remote;
use crate::support::server::{PROGRAM, Server, Setup};
use crate::support::upstream::{Answer, Upstream};
use crate::support::{eventually, noise, sha256_hex};

#[test]
fn the_root_names_the_program_its_remotes_and_its_endpoints() {
    let upstream = Upstream::start();
    let server = Setup::new()
        .remote("tools", Remote::at(&upstream))
        .remote("alpine", Remote::at(&upstream).package("alpine"))
        .start();
    let answer = server.get("/");
    answer.expect_status(200);
    answer.expect_header("content-type", "application/json");
    let root = answer.json();
    assert_eq!(root["name"], "artifactapi");
    assert_eq!(root["version"], env!("CARGO_PKG_VERSION"));
    assert!(!root["endpoints"].is_null(), "{root}");
    let alpine = &root["remotes"]["alpine"];
    assert_eq!(alpine["type"], "remote");
    assert_eq!(alpine["package"], "alpine");
    assert_eq!(alpine["description"], "alpine of a test");
    assert_eq!(root["remotes"]["tools"]["package"], "generic");
}

#[test]
fn health_tells_the_state_of_every_backend() {
    let server = Setup::files(Remote::at_url("https://files.example.org")).start();
    let answer = server.get("/health");
    answer.expect_status(200);
    let health = answer.json().to_string();
    for backend in ["blob", "index"] {
        assert!(health.contains(backend), "{health}");
    }
}

#[test]
fn a_server_is_alive_and_ready_and_its_own_program_says_so() {
    // Probes bring no token.
    let remote = Remote::at_url("https://files.example.org");
    let server = Setup::files(remote).env("ANONYMOUS_READ", false).start();
    let live = server.get("/health/live");
    live.expect(200, b"{\"status\":\"alive\"}\n");
    eventually("it is ready", || server.get("/health/ready").status() == 200);
    assert_eq!(server.get("/health/ready").json()["status"], "ready");
    let ask = |address: std::net::SocketAddr| {
        let mut program = Command::new(PROGRAM);
        program.arg("health").env_clear().env("LISTEN_ADDR", address.to_string());
        program.output().expect("the program starts")
    };
    let well = ask(server.addr());
    assert!(well.status.success() && well.stderr.is_empty(), "{well:?}");
    let address = server.addr();
    drop(server);
    let gone = ask(address);
    let said = String::from_utf8_lossy(&gone.stderr);
    assert_eq!(gone.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("{address} did not answer GET /health: ")), "{said}");
}

#[test]
fn health_and_metrics_answer_when_every_worker_is_busy() {
    let server = Setup::new().with_uploads().env("WORKERS", 1).start();
    let (mut upload, rest) = server.hold_a_worker("a");
    server.wait_under_way(1);
    for path in ["/health", "/health/live", "/health/ready"] {
        server.get(path).expect_status(200);
    }
    server.get("/metrics").expect_status(200);
    upload.send_raw(&rest);
    upload.incoming(false).expect("it is answered").finish().expect_status(201);
}

#[test]
fn a_request_without_room_is_503_at_once() {
    let server = Setup::new().with_uploads().env("WORKERS", 1).env("QUEUE_MAX", 1).start();
    let (mut upload, rest) = server.hold_a_worker("a");
    server.wait_under_way(1);
    std::thread::scope(|scope| {
        scope.spawn(|| server.get("/api/own/a").expect(200, b"bytes"));
        eventually("one request waits", || server.metric("artifactapi_queued") >= 1.0);
        for _ in 0..5 {
            let answer = server.ask(&Ask::get("/api/own/a"));
            answer.expect_error(503);
            assert!(answer.header("retry-after").is_some(), "{:?}", answer.head);
        }
        upload.send_raw(&rest);
        upload.incoming(false).expect("it is answered").finish().expect_status(201);
    });
    server.get("/api/own/a").expect(200, b"bytes");
}

#[test]
fn the_configuration_is_shown_without_its_secrets() {
    let upstream = Upstream::start();
    let remote = Remote::at(&upstream)
        .with("auth: {basic: {user: 'somebody', password: 'hunter2-password'}}")
        .with("proxy: 'http://user:hunter2-proxy@proxy.example.org:3128'");
    let server = Setup::files(remote).start();
    let answer = server.get("/config");
    answer.expect_status(200);
    let text = answer.json().to_string();
    assert!(!text.contains("hunter2"), "{text}");
    assert!(text.contains("***") && text.contains("somebody"), "{text}");
    assert!(text.contains("index_ttl") && text.contains("include_patterns"), "{text}");
}

/// A server with five stored artifacts of 1000 to 5000 bytes.
fn stocked() -> (Upstream, Server) {
    let upstream = Upstream::start();
    let server = Setup::files(Remote::at(&upstream)).start();
    for (number, path) in ["a/1.zip", "a/2.zip", "b/3.zip", "b/4.txt", "c.zip"].iter().enumerate() {
        let bytes = noise(number as u64, 1000 * (number + 1));
        let file = Answer::file(&bytes).header("Content-Type", "application/zip");
        upstream.serve(&format!("/{path}"), file);
        server.get(&format!("/api/files/{path}")).expect(200, &bytes);
    }
    eventually("all are listed", || listed(&server, "").len() == 5);
    (upstream, server)
}

fn listing(server: &Server, query: &str) -> Value {
    let answer = server.get(&format!("/artifacts/files{query}"));
    answer.expect_status(200);
    answer.json()
}

fn listed(server: &Server, query: &str) -> Vec<String> {
    paths_of(&listing(server, query))
}

fn paths_of(listing: &Value) -> Vec<String> {
    let artifacts = listing["artifacts"].as_array().expect("a list of artifacts");
    artifacts.iter().map(|one| one["path"].as_str().expect("a path").to_owned()).collect()
}

#[test]
fn stored_artifacts_are_listed_with_what_is_known_of_them() {
    let (_upstream, server) = stocked();
    let all = listing(&server, "");
    assert_eq!(all["remote"], "files");
    assert_eq!(all["total_objects"], 5);
    assert_eq!(paths_of(&all), ["a/1.zip", "a/2.zip", "b/3.zip", "b/4.txt", "c.zip"]);
    let first = &all["artifacts"][0];
    assert_eq!(first["size"], 1000);
    assert_eq!(first["sha256"], sha256_hex(&noise(0, 1000)));
    assert_eq!(first["content_type"], "application/zip");
    for field in ["cached_at", "last_used", "fresh_for_s", "hits"] {
        assert!(first.get(field).is_some(), "no {field} in {first}");
    }
    assert_eq!(listed(&server, "?include_pattern=%5Ea/"), ["a/1.zip", "a/2.zip"]);
    assert_eq!(listing(&server, "?include_pattern=%5Ea/")["pattern"], "^a/");
    assert_eq!(listed(&server, "?prefix=b/"), ["b/3.zip", "b/4.txt"]);
    assert_eq!(listed(&server, "?prefix=b/&include_pattern=zip$"), ["b/3.zip"]);
    assert_eq!(listed(&server, "?prefix=none"), Vec::<String>::new());
}

#[test]
fn a_listing_goes_on_at_its_cursor() {
    let (_upstream, server) = stocked();
    for pattern in ["", "&include_pattern=zip$"] {
        let whole = listed(&server, &format!("?limit=100{pattern}"));
        let mut pages = Vec::new();
        let mut query = format!("?limit=2{pattern}");
        loop {
            let page = listing(&server, &query);
            let paths = paths_of(&page);
            assert!(paths.len() <= 2, "{page}");
            pages.extend(paths);
            let Some(cursor) = page["next_cursor"].as_str() else { break };
            assert!(pages.len() <= 5, "the pages do not end");
            query = format!("?limit=2{pattern}&cursor={}", escaped(cursor));
        }
        assert_eq!(pages, whole);
    }
}

fn escaped(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02x}")).collect()
}

#[test]
fn a_listing_that_makes_no_sense_is_400_or_404() {
    let server = Setup::files(Remote::at_url("http://files.example.org")).start();
    server.get("/artifacts/unknown").expect_error(404);
    for query in ["?include_pattern=(", "?limit=0", "?limit=-1", "?limit=x", "?pattern=x"] {
        server.get(&format!("/artifacts/files{query}")).expect_error(400);
    }
    server.get("/jobs?limit=1").expect_error(400);
    let huge = "(a{1000}){1000}";
    server.get(&format!("/artifacts/files?include_pattern={}", escaped(huge))).expect_error(400);
    assert_eq!(listing(&server, "")["total_objects"], 0);
}

#[test]
fn metrics_count_requests_by_remote_and_outcome() {
    let upstream = Upstream::start();
    upstream.serve("/a", Answer::file(&noise(1, 1000)));
    let server = Setup::files(Remote::at(&upstream)).start();
    for _ in 0..3 {
        server.get("/api/files/a").expect_status(200);
    }
    let answer = server.get("/metrics");
    answer.expect_status(200);
    assert!(answer.header("content-type").is_some_and(|kind| kind.contains("text")));
    let text = answer.text();
    assert!(text.contains("remote=\"files\""), "{text}");
    for part in ["requests", "bytes", "fetches", "flights", "busy_workers", "queued", "staging"] {
        assert!(text.contains(part), "no {part} in {text}");
    }
    for bound in ["workers", "connections_max", "staging_bytes_max", "disk_size_bytes"] {
        assert!(server.metric(&format!("artifactapi_{bound}")) > 0.0, "no {bound} in {text}");
    }
    eventually("only who asks is connected", || server.metric("artifactapi_connections") == 1.0);
    let hits = "artifactapi_reply_start_seconds_count{outcome=\"hit\"}";
    assert_eq!(server.metric(hits), 2.0);
    // A name that a client makes up never becomes a label.
    server.get("/api/made-up-by-a-client/a").expect_error(404);
    assert!(!server.get("/metrics").text().contains("made-up"));
}

#[test]
fn what_is_no_route_is_404_and_a_wrong_method_405() {
    let upstream = Upstream::start();
    upstream.serve("/a", Answer::file(b"bytes"));
    let server = Setup::files(Remote::at(&upstream)).start();
    for path in ["/nothing", "/apis/files/a", "/health/x", "/artifacts", "/favicon.ico"] {
        server.get(path).expect_error(404);
    }
    for path in [
        "/",
        "/health",
        "/health/live",
        "/health/ready",
        "/config",
        "/metrics",
        "/artifacts/files",
        "/api/files/a",
    ] {
        let takes_delete = path.starts_with("/api/") || path.starts_with("/artifacts/");
        for method in ["POST", "DELETE", "PATCH", "OPTIONS", "TRACE"] {
            if method == "DELETE" && takes_delete {
                continue;
            }
            let answer = server.ask(&Ask::new(method, path).header("Content-Length", "0"));
            answer.expect_error(405);
            let allow = answer.header("allow").unwrap_or_default().to_owned();
            assert!(allow.contains("GET") && !allow.contains(method), "{method} {path}: {allow}");
        }
        assert_eq!(server.ask(&Ask::head(path)).status(), 200, "HEAD {path}");
    }
    assert!(upstream.seen().iter().all(|seen| seen.method == "GET"));
}

#[test]
fn answers_to_probes_are_logged_for_debugging_only() {
    const PROBES: [&str; 4] = ["/health", "/health/live", "/health/ready", "/metrics"];
    for (level, is_logged) in [("info", false), ("debug", true)] {
        let server = Setup::new().with_uploads().env("LOG_LEVEL", level).start();
        for path in PROBES {
            server.get(path).expect_status(200);
            server.ask(&Ask::delete(path)).expect_error(405);
        }
        server.get("/nothing").expect_error(404);
        server.wait_logged(&["access", "/nothing", "404"]);
        for path in PROBES {
            server.wait_logged(&["access", &format!("path=\"{path}\""), "status=405"]);
            let lines = server.log();
            let answered = lines.iter().filter(|line| {
                line.contains(&format!("path=\"{path}\"")) && line.contains("status=200")
            });
            assert_eq!(answered.count() > 0, is_logged, "{level} {path}: {lines:#?}");
        }
    }
}

#[test]
fn every_request_and_every_fetch_has_its_line_in_the_log() {
    let upstream = Upstream::start();
    upstream.serve("/a.zip", Answer::file(&noise(1, 1234)));
    for format in ["text", "json"] {
        let server = Setup::files(Remote::at(&upstream)).env("LOG_FORMAT", format).start();
        server.get("/api/files/a.zip").expect_status(200);
        server.get("/api/files/a.zip").expect_status(200);
        server.wait_logged(&["files", "a.zip", "miss", "200", "1234"]);
        server.wait_logged(&["files", "a.zip", "hit", "200", "1234"]);
        let about: Vec<_> =
            server.log().into_iter().filter(|line| line.contains("a.zip")).collect();
        assert_eq!(about.len(), 3, "two requests and a fetch: {about:#?}");
        if format == "json" {
            for line in server.log() {
                serde_json::from_str::<Value>(&line).unwrap_or_else(|e| panic!("{e}: {line}"));
            }
        }
    }
}
