//! Batches: what upstream has is found, cached once, and never in a client's way.

use crate::support::client::{Ask, Received};
use crate::support::remotes::Remote;
use crate::support::server::{Server, Setup};
use crate::support::upstream::{Answer, Gate, Upstream};
use crate::support::{eventually, noise, sha256_hex};
use serde_json::{Value, json};

/// Sends a batch and reads the whole answer.
fn post(server: &Server, target: &str, body: &Value) -> Received {
    post_raw(server, target, body.to_string().as_bytes())
}

fn post_raw(server: &Server, target: &str, body: &[u8]) -> Received {
    let mut connection = server.connect();
    let head = format!(
        "POST {target} HTTP/1.1\r\nHost: {}\r\nContent-Length: {}\r\n\r\n",
        server.addr(),
        body.len()
    );
    connection.send_raw(&[head.as_bytes(), body].concat());
    connection.incoming(false).expect("an answer").finish()
}

/// Sends a batch that is answered with its results.
#[track_caller]
fn cache(server: &Server, body: &Value) -> Value {
    let answer = post(server, "/cache-artifact", body);
    answer.expect_status(200);
    answer.json()
}

/// The counts of an answer: matched, cached, already cached, failed, refused.
fn counts(answer: &Value) -> [u64; 5] {
    ["matched", "cached_count", "already_cached", "failed", "refused"]
        .map(|name| answer[name].as_u64().unwrap_or_else(|| panic!("no {name} in {answer}")))
}

/// The paths of an answer's artifacts, sorted.
fn paths(answer: &Value) -> Vec<String> {
    let artifacts = answer["artifacts"].as_array().expect("a list of artifacts");
    let mut paths: Vec<String> =
        artifacts.iter().map(|a| a["path"].as_str().expect("a path").to_owned()).collect();
    paths.sort();
    paths
}

fn html(page: &str) -> Answer {
    Answer::file(page.as_bytes()).header("Content-Type", "text/html;charset=UTF-8")
}

/// A listing as nginx makes them.
fn nginx(folder: &str, names: &[&str]) -> Answer {
    let mut page = format!(
        "<html>\r\n<head><title>Index of {folder}</title></head>\r\n<body>\r\n<h1>Index of {folder}</h1><hr><pre><a href=\"../\">../</a>\r\n"
    );
    for name in names {
        page += &format!("<a href=\"{name}\">{name}</a>   01-Jan-2026 00:00   12\r\n");
    }
    html(&(page + "</pre><hr></body>\r\n</html>\r\n"))
}

/// An upstream with files below `/files/`, each with bytes of its own, and a server on it.
fn world(names: &[&str]) -> (Upstream, Server) {
    let upstream = Upstream::start();
    for name in names {
        upstream.serve(&format!("/files/{name}"), Answer::file(name.as_bytes()));
    }
    upstream.serve("/files/", nginx("/files/", names));
    let server = Setup::files(Remote::at(&upstream).include(&["^files/"])).start();
    (upstream, server)
}

#[test]
fn a_thousand_files_are_cached_by_one_call_and_each_is_fetched_once() {
    let names: Vec<String> = (0..1000).map(|n| format!("tool-{n:04}.tar.gz")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let (upstream, server) = world(&names);
    let wanted = json!({"remote": "files", "include_pattern": "^files/.*"});
    let answer = cache(&server, &wanted);
    assert_eq!(counts(&answer), [1000, 1000, 0, 0, 0], "{}", answer["message"]);
    let expected: Vec<String> = names.iter().map(|name| format!("files/{name}")).collect();
    assert_eq!(paths(&answer), expected);
    // The index.json that is not there, the listing, and the files.
    assert_eq!(upstream.total(), 1002);
    assert!(names.iter().all(|name| upstream.count(&format!("/files/{name}")) == 1));
    let first = &answer["artifacts"].as_array().unwrap()[0];
    let name = first["path"].as_str().unwrap().strip_prefix("files/").unwrap();
    assert_eq!(first["sha256"], sha256_hex(name.as_bytes()));
    assert_eq!((&first["bytes"], &first["status"]), (&json!(name.len()), &json!("cached")));

    let hit = server.get("/api/files/files/tool-0999.tar.gz");
    hit.expect(200, b"tool-0999.tar.gz");
    hit.expect_header("x-artifact-source", "cache");
    let again = cache(&server, &wanted);
    assert_eq!(counts(&again), [1000, 0, 1000, 0, 0]);
    assert_eq!(upstream.total(), 1004);
}

#[test]
fn a_batch_waits_out_the_pause_of_an_upstream_that_has_just_failed() {
    let (upstream, server) = world(&["a", "b", "c"]);
    upstream.go_down();
    eventually("the upstream is left alone", || server.get("/api/files/files/a").status() == 503);
    upstream.go_up();
    let answer = cache(&server, &json!({"remote": "files", "paths": ["files/a", "files/b"]}));
    assert_eq!(counts(&answer), [2, 2, 0, 0, 0], "{answer}");
}

#[test]
fn a_dry_run_fetches_nothing_and_a_limit_holds() {
    let (upstream, server) = world(&["a.zip", "b.zip", "c.zip", "d.txt"]);
    let pattern = r"^files/.*\.zip$";
    let answer =
        cache(&server, &json!({"remote": "files", "include_pattern": pattern, "dry_run": true}));
    assert_eq!(counts(&answer), [3, 0, 0, 0, 0]);
    assert_eq!(answer["would_cache"], 3);
    assert_eq!(answer["artifacts"][0]["status"], "would_cache");
    assert_eq!(upstream.count("/files/a.zip"), 0);
    assert!(server.blob_files().is_empty());

    let answer =
        cache(&server, &json!({"remote": "files", "include_pattern": pattern, "limit": 2}));
    assert_eq!(counts(&answer), [2, 2, 0, 0, 0]);
    assert_eq!(server.blob_files().len(), 2);
}

#[test]
fn a_limit_counts_what_is_to_be_cached() {
    let names = ["a.zip", "b.zip", "c.zip", "d.zip", "e.zip"];
    let (upstream, server) = world(&names);
    let files: Vec<String> = names.iter().map(|name| format!("files/{name}")).collect();
    let urls: Vec<String> =
        names.iter().map(|name| format!("{}/files/{name}", upstream.url())).collect();
    let by_pattern = json!({"remote": "files", "include_pattern": "^files/", "limit": 2});
    assert_eq!(counts(&cache(&server, &by_pattern)), [2, 2, 0, 0, 0]);
    assert_eq!(counts(&cache(&server, &by_pattern)), [4, 2, 2, 0, 0]);
    assert_eq!(counts(&cache(&server, &by_pattern)), [5, 1, 4, 0, 0]);

    let (_upstream, other) = world(&names);
    let by_path = json!({"remote": "files", "paths": files, "limit": 2});
    let dry = json!({"remote": "files", "paths": files, "limit": 2, "dry_run": true});
    assert_eq!(counts(&cache(&other, &by_path)), [2, 2, 0, 0, 0]);
    assert_eq!(cache(&other, &dry)["would_cache"], 2);
    assert_eq!(counts(&cache(&other, &by_path)), [4, 2, 2, 0, 0]);
    let by_url = json!({"urls": urls, "limit": 3, "force": true});
    assert_eq!(counts(&cache(&server, &by_url))[0], 3);
}

#[test]
fn force_asks_upstream_about_what_is_stored() {
    let upstream = Upstream::start();
    upstream.serve("/a.zip", Answer::file(b"one").etag("\"v1\""));
    upstream.serve("/b.zip", Answer::file(b"same").etag("\"v1\""));
    let server = Setup::files(Remote::at(&upstream)).start();
    let wanted =
        |force: bool| json!({"remote": "files", "paths": ["a.zip", "/b.zip"], "force": force});
    assert_eq!(counts(&cache(&server, &wanted(false))), [2, 2, 0, 0, 0]);
    upstream.serve("/a.zip", Answer::file(b"two").etag("\"v2\""));
    assert_eq!(counts(&cache(&server, &wanted(false))), [2, 0, 2, 0, 0]);
    assert_eq!(upstream.total(), 2);
    assert_eq!(counts(&cache(&server, &wanted(true))), [2, 1, 1, 0, 0]);
    assert_eq!(upstream.total(), 4);
    server.get("/api/files/a.zip").expect(200, b"two");
}

#[test]
fn patterns_of_the_remote_refuse_what_a_batch_asks_for() {
    let (upstream, server) = world(&["a.zip"]);
    upstream.serve("/secret", Answer::file(b"secret"));
    let answer = cache(
        &server,
        &json!({"remote": "files", "paths": ["secret", "files/a.zip", "files/../secret", ""]}),
    );
    assert_eq!(counts(&answer), [1, 1, 0, 0, 3]);
    let refused: Vec<&Value> = answer["artifacts"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|artifact| artifact["status"] == "refused")
        .collect();
    assert!(refused.iter().all(|artifact| artifact["error"].is_string()), "{refused:?}");
    assert_eq!(upstream.count("/secret"), 0);

    upstream.serve("/", nginx("/", &["files/", "secret"]));
    let answer = cache(&server, &json!({"remote": "files", "include_pattern": "secret|a.zip"}));
    assert_eq!(counts(&answer), [1, 0, 1, 0, 0]);
    assert_eq!(upstream.count("/secret"), 0);
}

#[test]
fn a_missing_file_fails_alone() {
    let (_upstream, server) = world(&["a.zip"]);
    let answer =
        cache(&server, &json!({"remote": "files", "paths": ["files/a.zip", "files/gone.zip"]}));
    assert_eq!(counts(&answer), [2, 1, 0, 1, 0]);
}

#[test]
fn urls_are_stored_under_their_host_and_served_by_path() {
    let upstream = Upstream::start();
    upstream.serve("/tools/v1/tool%20a.zip", Answer::file(b"tool"));
    upstream.serve("/tools/other", Answer::file(b"other"));
    let remote = Remote::at_url(&format!("{}/tools", upstream.url())).include(&[r"\.zip$"]);
    let server = Setup::files(remote).start();
    let url = format!("{}/tools/v1/tool%20a.zip", upstream.url());
    let answer = cache(
        &server,
        &json!({"urls": [
            url,
            format!("{}/tools/other", upstream.url()),
            format!("{}/elsewhere/x.zip", upstream.url()),
            "https://files.example.org/tools/x.zip",
            "no URL",
        ]}),
    );
    assert_eq!(counts(&answer), [1, 1, 0, 0, 4]);
    let key = format!("127.0.0.1/{}/tool a.zip", &sha256_hex(url.as_bytes())[..16]);
    let stored = server.data_dir().join("blobs").join(key);
    assert_eq!(std::fs::read(stored).expect("it lies where it was said to"), b"tool");
    let hit = server.get("/api/files/v1/tool%20a.zip");
    hit.expect(200, b"tool");
    hit.expect_header("x-artifact-source", "cache");
    assert_eq!(upstream.total(), 1);
    assert_eq!(counts(&cache(&server, &json!({"urls": [url]}))), [1, 0, 1, 0, 0]);
}

#[test]
fn malformed_requests_are_refused_and_name_the_field() {
    let (upstream, server) = world(&[]);
    let check = |body: &str, status: u16, part: &str| {
        let answer = post_raw(&server, "/cache-artifact", body.as_bytes());
        answer.expect_error(status);
        let detail = answer.json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains(part), "{body}: {detail}");
    };
    check("", 400, "not JSON");
    check("[]", 400, "object");
    check("{}", 400, "exactly one of");
    check(r#"{"remote": "files", "paths": [], "urls": []}"#, 400, "exactly one of");
    check(r#"{"include_pattern": "x"}"#, 400, "remote");
    check(r#"{"remote": "files", "include_pattern": "("}"#, 400, "include_pattern");
    check(r#"{"remote": "files", "paths": ["a", 1]}"#, 400, "paths[1]");
    check(r#"{"remote": "files", "paths": ["a"], "limit": 0}"#, 400, "limit");
    check(r#"{"remote": "files", "paths": ["a"], "dry_run": 1}"#, 400, "dry_run");
    check(r#"{"remote": "files", "paths": ["a"], "dry": true}"#, 400, "\"dry\"");
    let twice = r#"{"remote": "files", "paths": ["a"], "dry_run": true, "dry_run": false}"#;
    check(twice, 400, "\"dry_run\" is given twice");
    check(r#"{"remote": "none", "paths": ["a"]}"#, 404, "\"none\"");
    check(&format!("[{}]", "1".repeat(17 << 20)), 413, "larger");
    post(&server, "/cache-artifact?wait=maybe", &json!({})).expect_error(400);
    let wanted = json!({"remote": "files", "paths": ["files/a.zip"]});
    let unknown = post(&server, "/cache-artifact?dry_run=true", &wanted);
    unknown.expect_error(400);
    let text = unknown.text();
    assert!(text.contains("dry_run") && text.contains("use wait"), "{text}");
    assert_eq!(upstream.total(), 0);
    server.get("/jobs/0123?lmit=1").expect_error(400);
    server.get("/cache-artifact").expect_error(405);
    server.get("/jobs/0123").expect_error(404);
}

#[test]
fn a_batch_that_finds_no_listing_says_so() {
    let upstream = Upstream::start();
    let server = Setup::files(Remote::at(&upstream)).start();
    let answer =
        post(&server, "/cache-artifact", &json!({"remote": "files", "include_pattern": "a/.*"}));
    answer.expect_error(502);
    assert!(answer.text().contains("no listing at a/"), "{}", answer.text());
}

#[test]
fn a_client_never_waits_behind_a_batch() {
    let (upstream, gate) = (Upstream::start(), Gate::new());
    let held: Vec<String> = (0..6).map(|n| format!("held-{n}")).collect();
    for name in &held {
        upstream.serve(&format!("/{name}"), Answer::file(b"held").head_held_by(&gate));
    }
    upstream.serve("/wanted", Answer::file(b"wanted"));
    let server = Setup::files(Remote::at(&upstream)).env("FETCH_THREADS", 4).start();
    std::thread::scope(|scope| {
        let batch = scope.spawn(|| cache(&server, &json!({"remote": "files", "paths": held})));
        gate.wait_reached(2);
        // Every slot that a batch may have is held now, and four more of its files wait.
        server.ask(&Ask::get("/api/files/wanted")).expect(200, b"wanted");
        // A client asks for one of those.
        upstream.serve("/held-5", Answer::file(b"free"));
        server.ask(&Ask::get("/api/files/held-5")).expect(200, b"free");
        assert_eq!(upstream.total(), 4);
        gate.open();
        assert_eq!(counts(&batch.join().unwrap()), [6, 5, 1, 0, 0]);
    });
}

#[test]
fn a_large_batch_is_a_job_that_can_be_followed() {
    let names: Vec<String> = (0..1001).map(|n| format!("f{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let (_upstream, server) = world(&names);
    let wanted = json!({"remote": "files", "include_pattern": "^files/"});
    let answer = post(&server, "/cache-artifact", &wanted);
    answer.expect_status(202);
    let location = answer.header("location").expect("where to look").to_owned();
    assert_eq!(location, format!("/jobs/{}", answer.json()["job"].as_str().unwrap()));
    let report = || server.get(&location).json();
    eventually("the job is done", || report()["state"] == "done");
    let first = report();
    assert_eq!(counts(&first), [1001, 1001, 0, 0, 0]);
    assert_eq!(first["artifacts"].as_array().unwrap().len(), 1000);
    assert_eq!(first["next_offset"], 1000);
    let rest = server.get(&format!("{location}?offset=1000")).json();
    assert_eq!(
        (rest["artifacts"].as_array().unwrap().len(), &rest["next_offset"]),
        (1, &Value::Null)
    );
    let jobs = server.get("/jobs").json();
    assert_eq!(jobs["jobs"][0]["matched"], 1001);
    server.get(&format!("{location}?limit=x")).expect_error(400);
}

#[test]
fn a_job_that_is_cancelled_begins_nothing_more() {
    let (upstream, gate) = (Upstream::start(), Gate::new());
    let names: Vec<String> = (0..1500).map(|n| format!("f{n}")).collect();
    for name in &names {
        upstream.serve(&format!("/{name}"), Answer::file(b"x").head_held_by(&gate));
    }
    let server = Setup::files(Remote::at(&upstream)).env("FETCH_THREADS", 4).start();
    let answer = post(&server, "/cache-artifact", &json!({"remote": "files", "paths": names}));
    answer.expect_status(202);
    let location = answer.header("location").unwrap().to_owned();
    gate.wait_reached(2);
    server.ask(&Ask::new("DELETE", &location)).expect_status(200);
    eventually("the job has ended", || server.get(&location).json()["state"] == "cancelled");
    let report = server.get(&location).json();
    assert_eq!((&report["cancelled"], &report["cached_count"]), (&json!(1500), &json!(0)));
    gate.open();
    assert_eq!(upstream.total(), 2);
}

#[test]
fn who_waits_is_told_line_by_line() {
    let (_upstream, server) = world(&["a.zip", "b.zip"]);
    let wanted = json!({"remote": "files", "include_pattern": "^files/", "limit": 10});
    let answer = post(&server, "/cache-artifact?wait=true", &wanted);
    answer.expect_status(200);
    answer.expect_header("content-type", "application/x-ndjson");
    let text = answer.text();
    let lines: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect();
    let events = |name: &str| lines.iter().filter(|line| line["event"] == name).count();
    assert_eq!((events("begun"), events("artifact"), events("end")), (1, 2, 1), "{text}");
    assert_eq!(lines.last().unwrap()["event"], "end");
    assert_eq!(counts(lines.last().unwrap()), [2, 2, 0, 0, 0]);
}

#[test]
fn stopping_ends_a_batch_that_is_waited_for() {
    let (upstream, gate) = (Upstream::start(), Gate::new());
    upstream.serve("/held", Answer::file(&noise(1, 1000)).held_at(10, &gate));
    let mut server = Setup::files(Remote::at(&upstream)).start();
    let mut connection = server.connect();
    let body = json!({"remote": "files", "paths": ["held"]}).to_string();
    let head = format!(
        "POST /cache-artifact?wait=true HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    connection.send_raw(head.as_bytes());
    let incoming = connection.incoming(false).expect("an answer");
    gate.wait_reached(1);
    server.signal(rustix::process::Signal::TERM);
    let answer = incoming.finish();
    answer.expect_status(200);
    assert!(answer.text().lines().last().unwrap().contains("\"cancelled\""), "{}", answer.text());
    gate.open();
    assert!(server.wait_exit().success());
}

mod debian;
mod discovery;
mod incomplete;
mod named;

/// Anybody may send a batch where anybody may read, and how slowly is theirs to choose.
#[test]
fn batches_that_come_slowly_leave_workers_to_others() {
    const WORKERS: usize = 8;
    let upstream = Upstream::start();
    upstream.serve("/a", Answer::file(b"bytes"));
    let server = Setup::files(Remote::at(&upstream)).env("WORKERS", WORKERS).start();
    let small = json!({"remote": "files", "paths": ["a"]});
    let slow: Vec<_> = (0..WORKERS / 4)
        .map(|_| {
            let mut connection = server.connect();
            connection.send_raw(
                b"POST /cache-artifact HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n{",
            );
            connection
        })
        .collect();
    let mut refused = None;
    eventually("a quarter of the workers reads batches", || {
        let answer = post(&server, "/cache-artifact", &small);
        let is_refused = answer.status() == 503;
        refused = Some(answer);
        is_refused
    });
    let refused = refused.expect("it was answered");
    refused.expect_error(503);
    refused.expect_header("retry-after", "1");
    server.get("/api/files/a").expect(200, b"bytes");
    drop(slow);
    eventually("there are seats again", || {
        post(&server, "/cache-artifact", &small).status() == 200
    });
}

#[test]
fn a_long_batch_is_taken_where_there_is_but_one_worker() {
    let upstream = Upstream::start();
    let server = Setup::files(Remote::at(&upstream)).env("WORKERS", 1).start();
    let urls = vec!["https://other.example.org/a"; 5_000];
    let answer = post(&server, "/cache-artifact", &json!({ "urls": urls }));
    answer.expect_status(200);
    assert_eq!(answer.json()["refused"], 1, "named five thousand times");
}
