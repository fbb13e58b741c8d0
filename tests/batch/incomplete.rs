//! Discovery where a part of upstream can't be had: the rest is cached, and what is missing is
//! told.

use serde_json::json;

use super::discovery::{gzip, serve};
use super::{cache, counts, html, nginx, paths, post};
use crate::support::remotes::Remote;
use crate::support::server::{Server, Setup};
use crate::support::upstream::{Answer, Upstream};

/// Caches what matches; gives the paths and what was left out.
#[track_caller]
pub(super) fn found(server: &Server, pattern: &str) -> (Vec<String>, Option<String>) {
    let answer = cache(server, &json!({"remote": "files", "include_pattern": pattern}));
    let [matched, cached, already, failed, _] = counts(&answer);
    assert_eq!((matched, failed), (cached + already, 0), "{answer}");
    (paths(&answer), answer["incomplete"].as_str().map(str::to_owned))
}

#[track_caller]
fn expect_told(told: Option<String>, parts: &[&str]) {
    let told = told.expect("something was left out");
    assert!(parts.iter().all(|part| told.contains(part)), "{parts:?}: {told}");
}

#[test]
fn a_folder_that_fails_costs_only_itself() {
    let upstream = Upstream::start();
    upstream.serve("/", nginx("/", &["a/", "bad/", "closed/", "gone/", "worse/", "z/"]));
    for folder in ["/a/", "/z/"] {
        upstream.serve(folder, nginx(folder, &["f.bin"]));
    }
    serve(&upstream, &["/a/f.bin", "/z/f.bin"]);
    upstream.serve("/bad/", Answer::status(500));
    upstream.serve("/worse/", Answer::status(503));
    upstream.serve("/closed/", Answer::status(403));
    let server = Setup::files(Remote::at(&upstream).include(&["bin$"])).start();
    let (paths, told) = found(&server, "bin$");
    assert_eq!(paths, ["a/f.bin", "z/f.bin"]);
    let parts = [
        "cannot look at bad/",
        "answered 500",
        "closed/ has no listing",
        "answered 403",
        "gone/ has no listing",
        "404",
        "cannot look at worse/",
        "answered 503",
    ];
    expect_told(told, &parts);
}

#[test]
fn one_of_several_beginnings_that_fails_costs_only_itself() {
    let upstream = Upstream::start();
    upstream.serve("/a/", nginx("/a/", &["f.bin"]));
    upstream.serve("/bad/", Answer::status(500));
    serve(&upstream, &["/a/f.bin"]);
    let server = Setup::files(Remote::at(&upstream).include(&["^a/", "^bad/"])).start();
    let (paths, told) = found(&server, "");
    assert_eq!(paths, ["a/f.bin"]);
    expect_told(told, &["cannot look at bad/"]);
    // Where nothing at all can be looked at, the batch fails.
    let wanted = json!({"remote": "files", "include_pattern": "^bad/"});
    post(&server, "/cache-artifact", &wanted).expect_error(502);
}

#[test]
fn an_rpm_repository_that_is_broken_costs_only_itself() {
    let upstream = Upstream::start();
    let primary =
        gzip(b"<metadata><package><location href=\"a-1.noarch.rpm\"/></package></metadata>");
    let repository = |name: &str, file: &str, bytes: Option<&[u8]>| {
        upstream.serve(&format!("/{name}/"), nginx(name, &["repodata/"]));
        let repomd = format!(
            "<repomd><data type=\"primary\"><location href=\"repodata/{file}\"/></data></repomd>"
        );
        let folder = format!("/{name}/repodata");
        upstream.serve(&format!("{folder}/repomd.xml"), Answer::file(repomd.as_bytes()));
        if let Some(bytes) = bytes {
            upstream.serve(&format!("{folder}/{file}"), Answer::file(bytes));
        }
        serve(&upstream, &[&format!("/{name}/a-1.noarch.rpm")]);
    };
    repository("cut", "primary.xml.gz", Some(&primary[..primary.len() - 12]));
    repository("gone", "primary.xml.gz", None);
    repository("odd", "primary.xml.bz2", Some(b"BZh"));
    repository("whole", "primary.xml.gz", Some(&primary));
    upstream.serve("/", nginx("/", &["cut/", "gone/", "odd/", "whole/"]));
    let remote = Remote::at(&upstream).package("rpm").include(&[r"\.rpm$"]);
    let server = Setup::files(remote).start();
    let (paths, told) = found(&server, r"\.rpm$");
    assert!(paths.contains(&"whole/a-1.noarch.rpm".to_owned()), "{paths:?}");
    let parts = [
        "cut/repodata/primary.xml.gz",
        "gone/repodata/primary.xml.gz",
        "odd/repodata/primary.xml.bz2 is of no use",
    ];
    expect_told(told, &parts);
}

#[test]
fn warming_what_is_incomplete_exits_1() {
    let upstream = Upstream::start();
    upstream.serve("/", html("<a href=\"a.bin\">a</a><a href=\"bad/\">b</a>"));
    upstream.serve("/bad/", Answer::status(500));
    serve(&upstream, &["/a.bin"]);
    let server = Setup::files(Remote::at(&upstream)).start();
    let ended = super::discovery::warm(&server, &["files"]);
    let out = String::from_utf8_lossy(&ended.stdout).into_owned();
    assert_eq!(ended.status.code(), Some(1), "{out}");
    assert!(out.contains("1 of 1 artifact"), "{out}");
    assert!(out.contains("not everything was looked at: cannot look at bad/"), "{out}");
}
