//! Purges: one artifact, many, and what must never go by mistake.

use serde_json::Value;

use crate::support::client::Ask;
use crate::support::eventually;
use crate::support::remotes::Remote;
use crate::support::server::{Server, Setup};
use crate::support::upstream::{Answer, Upstream};

const ADMIN: &str = "a-token-of-the-tests";
const FILES: [&str; 5] = ["a/1.zip", "a/2.zip", "b/3.zip", "b/4.txt", "c.zip"];

/// A server with [`FILES`] stored in a remote and in a local repository.
fn stocked() -> (Upstream, Server) {
    let upstream = Upstream::start();
    let server = Setup::files(Remote::at(&upstream).with("negative_ttl: 3600"))
        .remote("own", Remote::local())
        .env("ADMIN_TOKEN", ADMIN)
        .start();
    for path in FILES {
        upstream.serve(&format!("/{path}"), Answer::file(path.as_bytes()));
        server.get(&format!("/api/files/{path}")).expect(200, path.as_bytes());
        let ask = Ask::put(&format!("/api/own/{path}"), path.as_bytes());
        server.ask(&ask.token(ADMIN)).expect_status(201);
    }
    eventually("all are stored", || stored(&server, "files").len() == FILES.len());
    (upstream, server)
}

fn stored(server: &Server, remote: &str) -> Vec<String> {
    paths(&server.get(&format!("/artifacts/{remote}")).json())
}

fn paths(answer: &Value) -> Vec<String> {
    let artifacts = answer["artifacts"].as_array().expect("a list");
    artifacts.iter().map(|one| one["path"].as_str().expect("a path").to_owned()).collect()
}

fn delete(server: &Server, target: &str) -> crate::support::client::Received {
    server.ask(&Ask::delete(target).token(ADMIN))
}

#[test]
fn a_purged_artifact_is_fetched_anew() {
    let (upstream, server) = stocked();
    upstream.serve("/c.zip", Answer::file(b"newer"));
    server.get("/api/files/c.zip").expect(200, b"c.zip");
    delete(&server, "/api/files/c.zip").expect(204, b"");
    delete(&server, "/api/files/c.zip").expect_error(404);
    assert_eq!(stored(&server, "files").len(), FILES.len() - 1);
    let answer = server.get("/api/files/c.zip");
    answer.expect(200, b"newer");
    answer.expect_header("x-artifact-source", "remote");
}

#[test]
fn a_purge_forgets_that_a_file_was_absent() {
    let (upstream, server) = stocked();
    server.get("/api/files/late").expect_error(404);
    upstream.serve("/late", Answer::file(b"here now"));
    server.get("/api/files/late").expect_error(404);
    delete(&server, "/api/files/late").expect(204, b"");
    server.get("/api/files/late").expect(200, b"here now");
}

#[test]
fn many_are_purged_by_pattern_and_a_dry_run_only_lists_them() {
    let (upstream, server) = stocked();
    let fetched = upstream.total();
    let target = "/artifacts/files?include_pattern=%5C.zip%24&prefix=a/";
    let dry = delete(&server, &format!("{target}&dry_run=true"));
    dry.expect_status(200);
    let dry = dry.json();
    assert_eq!(paths(&dry), ["a/1.zip", "a/2.zip"]);
    assert_eq!((&dry["dry_run"], &dry["purged_count"]), (&Value::from(true), &Value::from(0)));
    assert_eq!(dry["bytes"], 14);
    assert_eq!(stored(&server, "files").len(), FILES.len());

    let done = delete(&server, target).json();
    assert_eq!((paths(&done), &done["purged_count"]), (paths(&dry), &Value::from(2)));
    assert_eq!(stored(&server, "files"), ["b/3.zip", "b/4.txt", "c.zip"]);
    assert_eq!(server.blob_files().len(), 2 * FILES.len() - 2);
    server.get("/api/files/b/3.zip").expect_header("x-artifact-source", "cache");
    assert_eq!(upstream.total(), fetched);
}

#[test]
fn a_purge_is_bounded_and_its_cursor_leads_on() {
    let (_upstream, server) = stocked();
    let mut rounds = 0;
    let mut cursor = String::new();
    loop {
        let page = delete(&server, &format!("/artifacts/files?all=true&limit=2{cursor}")).json();
        rounds += 1;
        assert!(paths(&page).len() <= 2, "{page}");
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(rounds, 3);
    assert!(stored(&server, "files").is_empty());
    assert_eq!(stored(&server, "own").len(), FILES.len());
}

#[test]
fn nothing_goes_by_a_mistake() {
    let (_upstream, server) = stocked();
    for query in [
        "",
        "?",
        "?include_pattern=",
        "?dry_run=true",
        "?all=false",
        "?all=yes",
        "?all=true&dryrun=true",
        "?all=true&dry_run=1",
        "?all=true&limit=0",
        "?include_pattern=(",
    ] {
        delete(&server, &format!("/artifacts/files{query}")).expect_error(400);
    }
    delete(&server, "/artifacts/nowhere?all=true").expect_error(404);
    delete(&server, "/api/files/a/../c.zip").expect_error(400);
    assert_eq!(stored(&server, "files").len(), FILES.len());
}

#[test]
fn who_reads_a_file_that_is_purged_keeps_it_to_the_end() {
    let upstream = Upstream::start();
    let bytes = crate::support::noise(1, 8 << 20);
    upstream.serve("/big", Answer::file(&bytes));
    let server = Setup::files(Remote::at(&upstream)).env("ADMIN_TOKEN", ADMIN).start();
    server.get("/api/files/big").expect(200, &bytes);
    eventually("it is stored", || stored(&server, "files").len() == 1);
    let mut reading = server.begin(&Ask::get("/api/files/big"));
    reading.read_to(1000);
    delete(&server, "/api/files/big").expect(204, b"");
    reading.finish().expect(200, &bytes);
}
