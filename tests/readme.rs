//! README's curl examples, run as they stand against a real server.
//!
//! Only what can't be the same here is replaced: the server's address, the job's name, and
//! github.com, which is a scripted upstream.

use std::path::Path;
use std::process::Command;

use crate::support::remotes::Remote;
use crate::support::server::{Server, Setup};
use crate::support::upstream::{Answer, Upstream};

const README: &str = include_str!("../README.md");
const TOKEN: &str = "a token for this test only";
const RELEASE: &str =
    "/prometheus/node_exporter/releases/download/v1.8.2/node_exporter-1.8.2.linux-amd64.tar.gz";

/// The `curl` lines of the shell blocks that ask the server, in their order.
fn examples() -> Vec<String> {
    let (mut lines, mut is_shell) = (Vec::new(), false);
    for line in README.lines() {
        match line.strip_prefix("```") {
            Some(language) => is_shell = language == "sh",
            None if is_shell && line.starts_with("curl ") && line.contains("localhost:8000") => {
                lines.push(line.to_owned());
            }
            None => {}
        }
    }
    lines
}

/// An index of one package, as apk reads it: made by the real tar.
fn apk_index(folder: &Path) -> Vec<u8> {
    std::fs::write(folder.join("APKINDEX"), "P:curl\nV:8.9.0-r0\nA:x86_64\n\n")
        .expect("the folder takes a file");
    let made = Command::new("tar")
        .args(["-czf", "APKINDEX.tar.gz", "APKINDEX"])
        .current_dir(folder)
        .status()
        .expect("there is a tar");
    assert!(made.success());
    std::fs::read(folder.join("APKINDEX.tar.gz")).expect("tar has written it")
}

fn upstream(folder: &Path) -> Upstream {
    let upstream = Upstream::start();
    let folder_of_alpine = "/v3.20/main/x86_64";
    upstream
        .serve(&format!("{folder_of_alpine}/APKINDEX.tar.gz"), Answer::file(&apk_index(folder)));
    upstream.serve(&format!("{folder_of_alpine}/curl-8.9.0-r0.apk"), Answer::file(b"a package"));
    upstream.serve(RELEASE, Answer::file(b"a release"));
    let asset = format!("{{\"browser_download_url\": \"{}{RELEASE}\"}}", upstream.url());
    let releases = format!("[{{\"tag_name\": \"v1.8.2\", \"assets\": [{asset}]}}]");
    upstream.serve(
        "/api/repos/prometheus/node_exporter/releases?per_page=100",
        Answer::file(releases.as_bytes()),
    );
    upstream
}

fn server(upstream: &Upstream) -> Server {
    let github = Remote::at(upstream)
        .include(&["^prometheus/node_exporter/releases/"])
        .with(&format!("api_url: \"{}/api\"", upstream.url()));
    let alpine = Remote::at(upstream).package("alpine").include(&["/x86_64/.*\\\\.apk$"]);
    Setup::new()
        .remote("github", github)
        .remote("alpine", alpine)
        .remote("local-generic", Remote::local())
        .env("ADMIN_TOKEN", TOKEN)
        .start()
}

#[test]
fn the_curl_examples_of_the_readme_work() {
    let examples = examples();
    for part in ["/cache-artifact", "/jobs", "/api/local-generic", "/artifacts/alpine", "DELETE"] {
        assert!(examples.iter().any(|line| line.contains(part)), "no example of {part}");
    }
    let folder = tempfile::tempdir().expect("a folder for the test can be made");
    std::fs::write(folder.path().join("tool-1.2.tar.gz"), "a tool").expect("it takes a file");
    let upstream = upstream(folder.path());
    let server = server(&upstream);
    let mut job = String::from("0123456789abcdef");
    for example in examples {
        let line = example
            // curl takes one of the two only.
            .replacen("curl -f", "curl -", 1)
            .replacen("curl ", "curl --fail-with-body --silent --show-error ", 1)
            .replace("localhost:8000", &server.addr().to_string())
            .replace("https://github.com", &upstream.url())
            .replace("0123456789abcdef", &job);
        let output = Command::new("bash")
            .args(["-c", &line])
            .env("TOKEN", TOKEN)
            .current_dir(folder.path())
            .output()
            .expect("bash can be started");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success(),
            "{line}\n{text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(!text.contains("\"failed\":1"), "{line}\n{text}");
        if line.ends_with("# the batches, newest first") {
            let jobs: serde_json::Value = serde_json::from_str(&text).expect("jobs are JSON");
            job = jobs["jobs"][0]["job"].as_str().expect("a batch was run").to_owned();
        }
    }
}
