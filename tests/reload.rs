//! remotes.yaml: judged by `check` and at the start, read again while the server runs.

use std::process::{Command, Output};

use rustix::process::Signal;

use crate::support::client::Ask;
use crate::support::remotes::{Remote, remotes_yaml};
use crate::support::server::{PROGRAM, Server, Setup};
use crate::support::upstream::{Answer, Gate, Upstream};
use crate::support::{eventually, noise};

/// Polls the file so often that no test waits long.
const POLL_S: &str = "0.1";
/// Never polls the file.
const NO_POLL: &str = "0";

fn server_with(upstream: &Upstream, poll: &str) -> Server {
    upstream.serve("/a", Answer::file(b"bytes"));
    Setup::new().remote("old", Remote::at(upstream)).env("CONFIG_POLL_S", poll).start()
}

#[test]
fn a_signal_brings_the_new_file_into_force() {
    let upstream = Upstream::start();
    let server = server_with(&upstream, NO_POLL);
    server.get("/api/old/a").expect(200, b"bytes");
    server.get("/api/new/a").expect_error(404);
    server.rewrite_config(&remotes_yaml(&[("new", Remote::at(&upstream))]));
    server.get("/api/new/a").expect_error(404);
    server.signal(Signal::HUP);
    eventually("the new remote is there", || server.get("/api/new/a").status() == 200);
    server.get("/api/old/a").expect_error(404);
}

#[test]
fn a_changed_file_comes_into_force_by_itself() {
    let upstream = Upstream::start();
    let server = server_with(&upstream, POLL_S);
    server.rewrite_config(&remotes_yaml(&[("new", Remote::at(&upstream))]));
    eventually("the new remote is there", || server.get("/api/new/a").status() == 200);
    server.get("/api/old/a").expect_error(404);
}

#[test]
fn a_broken_file_is_reported_and_the_old_one_stays() {
    let upstream = Upstream::start();
    let server = server_with(&upstream, NO_POLL);
    for (broken, sign) in [
        ("remotes: [", "remotes.yaml"),
        ("remotes:\n  x:\n    base_ulr: 'http://files.example.org'\n", "base_url"),
        ("", "remotes.yaml"),
    ] {
        let logged = server.log().len();
        server.rewrite_config(broken);
        server.signal(Signal::HUP);
        eventually("the broken file is reported", || {
            server.log()[logged..].iter().any(|line| line.contains(sign))
        });
        server.get("/api/old/a").expect(200, b"bytes");
    }
    std::fs::remove_file(server.config_path()).expect("the file can be removed");
    server.signal(Signal::HUP);
    server.get("/api/old/a").expect(200, b"bytes");
    let is_refused = || server.metric("artifactapi_config_refused{file=\"remotes\"}") == 1.0;
    eventually("the file is told to be refused", is_refused);
    server.rewrite_config(&remotes_yaml(&[("new", Remote::at(&upstream))]));
    server.signal(Signal::HUP);
    eventually("the mended file is in force", || server.get("/api/new/a").status() == 200);
    eventually("nothing is refused any more", || !is_refused());
}

#[test]
fn a_local_repository_with_files_does_not_become_a_remote() {
    let upstream = Upstream::start();
    let server = Setup::new().with_uploads().env("CONFIG_POLL_S", NO_POLL).start();
    let token = crate::support::server::ADMIN_TOKEN;
    server.ask(&Ask::put("/api/own/a", b"upload").token(token)).expect_status(201);
    upstream.serve("/a", Answer::file(b"upstream's"));
    server.rewrite_config(&remotes_yaml(&[("own", Remote::at(&upstream))]));
    server.signal(Signal::HUP);
    server.wait_logged(&["ERROR", "has files", "evicted", "another name"]);
    server.get("/api/own/a").expect(200, b"upload");
    server.ask(&Ask::delete("/api/own/a").token(token)).expect_status(204);
    server.signal(Signal::HUP);
    eventually("it is a remote", || server.get("/api/own/a").status() == 200);
    server.get("/api/own/a").expect(200, b"upstream's");
}

#[test]
fn a_reload_drops_no_request() {
    let (upstream, gate) = (Upstream::start(), Gate::new());
    let bytes = noise(1, 1 << 20);
    let server = server_with(&upstream, NO_POLL);
    upstream.serve("/big", Answer::file(&bytes).held_at(100_000, &gate));
    let running = server.begin(&Ask::get("/api/old/big"));
    server.rewrite_config(&remotes_yaml(&[("new", Remote::at(&upstream))]));
    server.signal(Signal::HUP);
    let ask = Ask::get("/api/new/a");
    eventually("the new remote is there", || server.ask(&ask).status() == 200);
    gate.open();
    running.finish().expect(200, &bytes);
}

#[test]
fn what_is_stored_stays_when_a_remote_is_changed() {
    let upstream = Upstream::start();
    let server = server_with(&upstream, NO_POLL);
    server.get("/api/old/a").expect(200, b"bytes");
    let described = Remote::at(&upstream).include(&["^a$"]);
    server.rewrite_config(&remotes_yaml(&[("old", described)]));
    server.signal(Signal::HUP);
    eventually("the new patterns hold", || server.get("/api/old/b").status() == 403);
    server.get("/api/old/a").expect_header("x-artifact-source", "cache");
    assert_eq!(upstream.count("/a"), 1);
}

/// Runs `artifactapi check` on a text.
fn run_check(yaml: &str) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().expect("a folder for the test can be made");
    let file = folder.path().join("some-remotes.yaml");
    std::fs::write(&file, yaml).expect("the folder takes a file");
    let output = Command::new(PROGRAM)
        .env_clear()
        .arg("check")
        .arg(&file)
        .output()
        .expect("the program can be started");
    (output.status.code(), text_of(&output))
}

fn text_of(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

#[test]
fn check_accepts_a_good_file() {
    let yaml = remotes_yaml(&[("files", Remote::at_url("https://files.example.org"))]);
    let (code, text) = run_check(&yaml);
    assert_eq!(code, Some(0), "{text}");
}

#[test]
fn check_names_file_line_key_value_and_fix() {
    let bad_pattern = Remote::at_url("https://files.example.org").include(&[".*/x86_64/(.*$"]);
    let (code, text) = run_check(&remotes_yaml(&[("files", bad_pattern)]));
    assert_eq!(code, Some(1), "{text}");
    let named =
        ["some-remotes.yaml:7: remotes.files.include_patterns[0]", ".*/x86_64/(.*$", "escape"];
    for part in named {
        assert!(text.contains(part), "no {part:?} in {text}");
    }

    let typo = Remote::at_url("https://files.example.org").with("mutable_pattern: []");
    let (code, text) = run_check(&remotes_yaml(&[("files", typo)]));
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("mutable_patterns"), "no suggestion in {text}");
}

#[test]
fn check_warns_of_what_is_probably_not_meant() {
    for (remote, sign) in [
        (Remote::at_url("https://files.example.org").include(&["a.zip"]), "begin it with ^"),
        (Remote::at_url("https://files.example.org").include(&[".*"]), "every path"),
        (Remote::at_url("http://files.example.org"), "plain http"),
        (Remote::at_url("https://user:pw@files.example.org"), "credential"),
    ] {
        let (code, text) = run_check(&remotes_yaml(&[("files", remote)]));
        assert_eq!(code, Some(0), "{text}");
        let text = text.to_lowercase();
        assert!(text.contains("warning") && text.contains(sign), "no {sign:?} in {text}");
        assert!(!text.contains("user:pw"), "{text}");
    }
}

#[test]
fn a_start_with_a_value_that_makes_no_sense_names_it() {
    for (name, value) in
        [("WORKERS", "many"), ("LISTEN_ADDR", "nowhere"), ("STAGING_BYTES_MAX", "-1")]
    {
        let folder = tempfile::tempdir().expect("a folder for the test can be made");
        let config = folder.path().join("remotes.yaml");
        std::fs::write(&config, "remotes: {}\n").expect("the folder takes a file");
        let output = Command::new(PROGRAM)
            .env_clear()
            .env("CONFIG_PATH", config)
            .env("DATA_DIR", folder.path().join("data"))
            .env("LISTEN_ADDR", "127.0.0.1:0")
            .env(name, value)
            .output()
            .expect("the program can be started");
        let text = text_of(&output);
        assert!(!output.status.success(), "{text}");
        assert!(text.contains(name) && text.contains(value), "{text}");
    }
}

#[test]
fn the_reference_file_of_the_repository_is_good() {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("remotes.yaml");
    let output = Command::new(PROGRAM)
        .env_clear()
        .arg("check")
        .arg(&file)
        .output()
        .expect("the program can be started");
    assert_eq!(output.status.code(), Some(0), "{}", text_of(&output));
}
