//! What an operator runs beside the server: `reindex` and `verify`.

use std::fs;
use std::path::PathBuf;
use std::process::Output;

use rustix::process::Signal;
use serde_json::Value;

use crate::support::client::{Ask, Received};
use crate::support::remotes::Remote;
use crate::support::server::{PROGRAM, Server, Setup};
use crate::support::upstream::{Answer, Upstream};
use crate::support::{eventually, noise};

const ADMIN: &str = "a-token-of-the-tests";
const DATE: &str = "Wed, 01 Jan 2025 00:00:00 GMT";

/// The header fields by which a client recognises what it has.
const KEPT: [&str; 7] = [
    "etag",
    "last-modified",
    "content-type",
    "content-length",
    "content-disposition",
    "x-checksum-sha256",
    "repr-digest",
];

fn kept(answer: &Received) -> [Option<String>; 7] {
    KEPT.map(|name| answer.header(name).map(str::to_owned))
}

fn stop(server: &mut Server) {
    server.signal(Signal::TERM);
    assert!(server.wait_exit().success());
}

/// Stops a server and loses its index.
fn lose_index(server: &mut Server) {
    stop(server);
    let index = ["index.sqlite", "index.sqlite-wal", "index.sqlite-shm"];
    for file in index.map(|name| server.data_dir().join(name)) {
        match fs::remove_file(&file) {
            Ok(()) => {}
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{file:?}"),
        }
    }
}

/// Runs a command with `--json`; gives its exit code, its findings and its summary.
#[track_caller]
fn run(server: &Server, words: &[&str]) -> (i32, Vec<Value>, Value) {
    let output = server.command(&[words, &["--json"]].concat());
    let code = output.status.code().expect("no signal ended it");
    let text = String::from_utf8(output.stdout).expect("it writes text");
    let parse = |line| serde_json::from_str(line).expect("each line is an object");
    let mut objects: Vec<Value> = text.lines().map(parse).collect();
    let summary = objects.pop().unwrap_or_else(|| {
        panic!("no summary: {}", String::from_utf8_lossy(&output.stderr));
    });
    assert_eq!(summary["event"], "summary");
    (code, objects, summary)
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn blob_of(server: &Server, name: &str) -> PathBuf {
    let files = server.blob_files();
    let of_name = |file: &&PathBuf| file.file_name() == Some(name.as_ref());
    files.iter().find(of_name).unwrap_or_else(|| panic!("no {name} in {files:?}")).clone()
}

/// Turns one bit over in the middle, and the file's time back if it is to look untouched.
fn flip_bit(file: &PathBuf, keeps_time: bool) {
    let modified = fs::metadata(file).and_then(|found| found.modified()).expect("it is there");
    let mut bytes = fs::read(file).expect("it can be read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(file, bytes).expect("it can be written");
    if keeps_time {
        let file = fs::File::open(file).expect("it is there");
        file.set_modified(modified).expect("its owner sets its time");
    }
}

#[test]
fn an_index_that_is_lost_under_the_server_is_reported() {
    let server = Setup::files(Remote::local()).start();
    fs::remove_file(server.data_dir().join("index.sqlite")).expect("it is there");
    server.wait_logged(&["ERROR", "index.sqlite was removed", "artifactapi reindex"]);
    eventually("health says so", || {
        let health = server.get("/health").json();
        let detail = health["backends"]["index"]["detail"].as_str().unwrap_or_default();
        health["status"] == "degraded" && detail.contains("artifactapi reindex")
    });
    server.get("/health/ready").expect_status(200);
}

#[test]
fn a_lost_index_comes_back_from_the_blobs_with_every_header() {
    let upstream = Upstream::start();
    let (tool, odd) = (noise(1, 300_000), noise(2, 1_000));
    upstream
        .serve("/v1/tool%20%C3%A9%2B1.zip", Answer::file(&tool).etag("\"v1\"").last_modified(DATE));
    upstream.serve("/odd.x-odd", Answer::file(&odd).header("Content-Type", "application/x-odd"));
    upstream.serve("/empty", Answer::file(b"").etag("W/\"weak\""));
    let paths = ["/api/files/v1/tool%20%C3%A9%2B1.zip", "/api/files/odd.x-odd", "/api/files/empty"];
    let mut server = Setup::files(Remote::at(&upstream)).start();
    let before = paths.map(|path| {
        server.get(path).expect_status(200);
        let hit = server.get(path);
        hit.expect_header("x-artifact-source", "cache");
        kept(&hit)
    });
    let asked = upstream.total();
    lose_index(&mut server);

    let (code, findings, summary) = run(&server, &["reindex", "--dry-run"]);
    assert_eq!((code, findings.len(), &summary["recorded"]), (0, 3, &3.into()));
    let (code, findings, summary) = run(&server, &["reindex"]);
    assert_eq!((code, findings.len(), &summary["recorded"]), (0, 3, &3.into()));
    assert!(findings.iter().all(|found| found["event"] == "unrecorded" && found["mended"] == true));
    let (code, findings, summary) = run(&server, &["reindex"]);
    assert_eq!((code, findings.len(), &summary["right"]), (0, 0, &3.into()));

    server.start_again();
    for (path, before) in paths.iter().zip(&before) {
        let first = server.get(path);
        first.expect_status(200);
        first.expect_header("x-artifact-source", "cache");
        let status = first.header("cache-status").unwrap_or_default();
        assert!(status.starts_with("artifactapi; hit"), "{status}");
        assert_eq!(kept(&first), *before, "{path}");
        let next = server.get(path);
        let status = next.header("cache-status").unwrap_or_default();
        assert!(status.starts_with("artifactapi; hit"), "{status}");
        assert_eq!(kept(&next), *before, "{path}");
    }
    server.get(paths[0]).expect(200, &tool);
    assert_eq!(upstream.total(), asked, "upstream was not asked");
}

#[test]
fn an_index_file_is_revalidated_after_a_rebuild() {
    let upstream = Upstream::start();
    upstream.serve("/index", Answer::file(b"one").etag("\"1\""));
    let remote = Remote::at(&upstream).with("mutable_patterns: ['^index$']");
    let mut server = Setup::files(remote).start();
    server.get("/api/files/index").expect(200, b"one");
    server.get("/api/files/index").expect(200, b"one");
    assert_eq!(upstream.count("/index"), 1);
    lose_index(&mut server);
    assert_eq!(run(&server, &["reindex"]).0, 0);
    server.start_again();
    server.get("/api/files/index").expect(200, b"one");
    let seen = upstream.seen_for("/index");
    assert_eq!(seen.len(), 2);
    assert_eq!(seen[1].header("if-none-match"), Some("\"1\""));
}

#[test]
fn a_flipped_bit_is_found_dropped_and_healed() {
    for (keeps_time, word) in [(false, "changed"), (true, "damaged")] {
        let upstream = Upstream::start();
        let (bytes, others) = (noise(3, 200_000), noise(4, 5_000));
        upstream.serve("/a.bin", Answer::file(&bytes));
        upstream.serve("/b.bin", Answer::file(&others));
        let mut server = Setup::files(Remote::at(&upstream)).start();
        server.get("/api/files/a.bin").expect(200, &bytes);
        server.get("/api/files/b.bin").expect(200, &others);
        stop(&mut server);
        let (code, findings, summary) = run(&server, &["verify"]);
        assert_eq!((code, findings.len(), &summary["right"]), (0, 0, &2.into()));

        flip_bit(&blob_of(&server, "a.bin"), keeps_time);
        let (code, findings, summary) = run(&server, &["verify"]);
        assert_eq!((code, &summary["right"], &summary[word]), (1, &1.into(), &1.into()));
        assert_eq!((&findings[0]["event"], &findings[0]["path"]), (&word.into(), &"a.bin".into()));

        let (code, findings, summary) = run(&server, &["verify", "--remote", "files", "--repair"]);
        assert_eq!((code, &summary["dropped"]), (0, &1.into()));
        assert_eq!(findings[0]["mended"], true);
        let (code, _, summary) = run(&server, &["verify"]);
        assert_eq!((code, &summary["artifacts"]), (0, &1.into()));

        server.start_again();
        server.get("/api/files/a.bin").expect(200, &bytes);
        server.get("/api/files/b.bin").expect(200, &others);
        assert_eq!((upstream.count("/a.bin"), upstream.count("/b.bin")), (2, 1));
        stop(&mut server);
        assert_eq!(run(&server, &["verify"]).2["right"], 2);
    }
}

#[test]
fn a_damaged_upload_is_kept_unless_its_repository_is_named() {
    let setup = Setup::new().remote("own", Remote::local()).env("ADMIN_TOKEN", ADMIN);
    let mut server = setup.start();
    server.ask(&Ask::put("/api/own/a.bin", b"whole").token(ADMIN)).expect_status(201);
    stop(&mut server);
    flip_bit(&blob_of(&server, "a.bin"), true);
    let (code, findings, summary) = run(&server, &["verify", "--repair"]);
    assert_eq!((code, &summary["damaged"], &summary["dropped"]), (1, &1.into(), &0.into()));
    assert_eq!(findings[0]["mended"], false);
    blob_of(&server, "a.bin");
    let (code, _, summary) = run(&server, &["verify", "--repair", "--remote", "own"]);
    assert_eq!((code, &summary["dropped"]), (0, &1.into()));
    server.start_again();
    server.get("/api/own/a.bin").expect_status(404);
}

#[test]
fn a_rebuild_never_makes_changed_bytes_the_right_ones() {
    for keeps_time in [false, true] {
        let upstream = Upstream::start();
        let bytes = noise(5, 50_000);
        upstream.serve("/a.bin", Answer::file(&bytes));
        let mut server = Setup::files(Remote::at(&upstream)).start();
        server.get("/api/files/a.bin").expect(200, &bytes);
        lose_index(&mut server);
        flip_bit(&blob_of(&server, "a.bin"), keeps_time);
        // A file with another time says nothing that could be believed: somebody should look.
        let (code, _, summary) = run(&server, &["reindex"]);
        let unknown = u64::from(!keeps_time);
        assert_eq!((code, &summary["unknown"]), (unknown as i32, &unknown.into()));
        server.start_again();
        server.get("/api/files/a.bin").expect(200, &bytes);
        assert_eq!(upstream.count("/a.bin"), 2);
    }
}

#[test]
fn an_offline_remote_keeps_what_it_cannot_fetch_again() {
    let upstream = Upstream::start();
    let bytes = noise(6, 50_000);
    upstream.serve("/a.bin", Answer::file(&bytes));
    let mut server = Setup::files(Remote::at(&upstream)).start();
    server.get("/api/files/a.bin").expect(200, &bytes);
    lose_index(&mut server);
    let yaml = fs::read_to_string(server.config_path()).expect("it was written");
    server.rewrite_config(&(yaml + "    offline: true\n"));
    flip_bit(&blob_of(&server, "a.bin"), true);
    assert_eq!(run(&server, &["reindex"]).0, 0);
    server.start_again();
    for _ in 0..2 {
        let refused = server.get("/api/files/a.bin");
        refused.expect_error(500);
        assert!(refused.text().contains("offline"), "{}", refused.text());
    }
    // The file is looked into anew each time, so who brings it back need not do more.
    flip_bit(&blob_of(&server, "a.bin"), true);
    server.get("/api/files/a.bin").expect(200, &bytes);
    assert_eq!(upstream.total(), 1);
}

#[test]
fn a_copy_without_times_is_taken_as_it_lies_if_its_bytes_are_right() {
    let upstream = Upstream::start();
    let files = ["/a.bin", "/b.bin"].map(|path| (path, noise(7, 50_000)));
    for (path, bytes) in &files {
        upstream.serve(path, Answer::file(bytes));
    }
    let mut server = Setup::files(Remote::at(&upstream)).start();
    for (path, bytes) in &files {
        server.get(&format!("/api/files{path}")).expect(200, bytes);
    }
    stop(&mut server);
    let yaml = fs::read_to_string(server.config_path()).expect("it was written");
    server.rewrite_config(&(yaml + "    offline: true\n"));
    for path in server.blob_files() {
        let copied = fs::read(&path).expect("a blob is a file");
        fs::remove_file(&path).expect("it was there");
        fs::write(&path, copied).expect("it fits");
    }
    let wrong = blob_of(&server, "b.bin");
    fs::write(&wrong, noise(8, 50_000)).expect("it fits");
    server.start_again();
    // Asking for one takes nothing away.
    server.get("/api/files/a.bin").expect_error(503);
    stop(&mut server);
    let (code, _, summary) = run(&server, &["verify"]);
    assert_eq!((code, &summary["changed"]), (1, &serde_json::json!(2)), "{summary}");
    let (code, found, _) = run(&server, &["verify", "--repair"]);
    assert_eq!(code, 0, "{found:?}");
    server.start_again();
    server.get("/api/files/a.bin").expect(200, &files[0].1);
    server.get("/api/files/b.bin").expect_error(404);
    assert_eq!(upstream.total(), 2);
}

#[test]
fn people_read_lines_and_a_summary() {
    let upstream = Upstream::start();
    upstream.serve("/a.bin", Answer::file(b"bytes"));
    let mut server = Setup::files(Remote::at(&upstream)).start();
    server.get("/api/files/a.bin").expect(200, b"bytes");
    lose_index(&mut server);
    let output = server.command(&["reindex"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let text = String::from_utf8(output.stdout).expect("it writes text");
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("unrecorded files/a.bin (blob files/"), "{text}");
    assert_eq!(lines[1], "reindex: 1 file, 5 B of blobs: 0 right, 1 recorded");
    let text = server.command(&["verify"]).stdout;
    let text = String::from_utf8(text).expect("it writes text");
    assert_eq!(text, "verify: 1 file, 5 B of artifacts: 1 right\n");
}

#[test]
fn a_mistyped_remote_or_data_folder_is_not_sound() {
    let upstream = Upstream::start();
    let setup = Setup::files(Remote::at(&upstream)).remote("empty", Remote::at(&upstream));
    let mut server = setup.start();
    upstream.serve("/a.bin", Answer::file(b"bytes"));
    server.get("/api/files/a.bin").expect(200, b"bytes");
    stop(&mut server);
    assert_eq!(run(&server, &["verify", "--remote", "empty"]).2["artifacts"], 0);
    let output = server.command(&["verify", "--remote", "fiels"]);
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(1), &b""[..]));
    assert!(stderr(&output).contains("no remote \"fiels\" is in "), "{}", stderr(&output));

    let mistyped = server.data_dir().with_file_name("dtaa");
    for command in ["verify", "reindex"] {
        for exists in [false, true] {
            if exists {
                fs::create_dir(&mistyped).expect("the folder takes another");
            }
            let mut run = std::process::Command::new(PROGRAM);
            let output = run.arg(command).env_clear().env("DATA_DIR", &mistyped).output();
            let output = output.expect("the program starts");
            assert_eq!((output.status.code(), &output.stdout[..]), (Some(1), &b""[..]));
            assert!(stderr(&output).contains("has no artifacts: is it mis"), "{}", stderr(&output));
            if exists {
                // Fails unless it is empty: nothing was made in it.
                fs::remove_dir(&mistyped).expect("it is empty");
            } else {
                assert!(!mistyped.exists());
            }
        }
    }
}

#[test]
fn a_data_folder_in_use_is_left_alone_and_the_message_says_by_whom() {
    let upstream = Upstream::start();
    let server = Setup::files(Remote::at(&upstream)).start();
    for words in [&["reindex"][..], &["verify", "--repair"]] {
        let output = server.command(words);
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(output.stdout, b"");
        let text = stderr(&output);
        assert!(text.contains("in use by another artifactapi (process "), "{text}");
    }
    server.get("/health").expect_status(200);
}
