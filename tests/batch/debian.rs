//! Debian repositories as they are in the wild: indexes by their checksum only, in one of
//! several packings, flat ones, and those that list nothing.

use serde_json::json;

use super::discovery::{gzip, serve};
use super::incomplete::found;
use super::{html, nginx, post};
use crate::support::remotes::Remote;
use crate::support::server::{Server, Setup};
use crate::support::upstream::{Answer, Upstream};

const PACKAGES: &[u8] =
    b"Package: hello\nFilename: pool/h/hello_1_amd64.deb\nSize: 5\n\nFilename: pool/i/i_1_all.deb\n";
const BOTH: [&str; 2] = ["pool/h/hello_1_amd64.deb", "pool/i/i_1_all.deb"];
const INDEX: &str = "/dists/s/main/binary-amd64/Packages";

/// An upstream with the packages, without any index.
fn pool() -> Upstream {
    let upstream = Upstream::start();
    serve(&upstream, &BOTH.map(|path| format!("/{path}")).each_ref().map(String::as_str));
    upstream
}

fn release(upstream: &Upstream, path: &str, text: &str) {
    upstream.serve(path, Answer::file(format!("Suite: s\n{text}").as_bytes()));
}

fn server(upstream: &Upstream, include: &[&str]) -> Server {
    Setup::files(Remote::at(upstream).package("deb").include(include)).start()
}

#[test]
fn an_index_is_read_by_its_checksum_where_it_has_no_other_name() {
    let upstream = pool();
    let text = "Acquire-By-Hash: yes\nSHA256:\n ab12 9 main/binary-amd64/Packages.gz\n";
    release(&upstream, "/dists/s/InRelease", text);
    let by_hash = "/dists/s/main/binary-amd64/by-hash/SHA256/ab12";
    upstream.serve(by_hash, Answer::file(&gzip(PACKAGES)));
    upstream.serve("/dists/", nginx("/dists/", &["s/"]));
    upstream.serve("/dists/s/", nginx("/dists/s/", &["InRelease"]));
    let server = server(&upstream, &[r"\.deb$"]);
    assert_eq!(found(&server, r"\.deb$"), (BOTH.map(String::from).to_vec(), None));
    // The packages of a place in the pool are known by the suites beside it.
    assert_eq!(found(&server, "^pool/h/"), (vec![BOTH[0].to_owned()], None));
}

#[test]
fn every_packing_that_a_release_names_is_tried() {
    let upstream = pool();
    let entries: String =
        ["", ".gz", ".xz"].map(|end| format!(" 00 9 main/binary-amd64/Packages{end}\n")).concat();
    let text = format!("SHA256:\n{entries} 00 9 main/binary-arm64/Packages.gz\n");
    release(&upstream, "/dists/s/Release", &text);
    upstream.serve(&format!("{INDEX}.gz"), Answer::file(&gzip(PACKAGES)));
    // One that is broken counts as one that is not there.
    upstream.serve(&format!("{INDEX}.xz"), Answer::file(b"no xz"));
    let server = server(&upstream, &["^dists/s/", r"^pool/.*\.deb$"]);
    // A mirror of one architecture keeps the Release that names others.
    assert_eq!(found(&server, r"\.deb$"), (BOTH.map(String::from).to_vec(), None));
}

#[test]
fn a_release_of_whose_indexes_none_is_there_is_told_of() {
    let upstream = pool();
    let entries = " 00 9 main/binary-amd64/Packages.gz\n 00 9 main/binary-arm64/Packages.gz\n";
    release(&upstream, "/dists/s/Release", &format!("SHA256:\n{entries}"));
    let server = server(&upstream, &["^dists/s/", r"^pool/.*\.deb$"]);
    let (paths, told) = found(&server, r"^dists/s/|\.deb$");
    assert_eq!(paths, ["dists/s/Release"]);
    let none = "and all else that dists/s/Release names is not there";
    assert!(told.as_deref().is_some_and(|told| told.contains(none)), "{told:?}");
}

#[test]
fn a_flat_repository_is_read() {
    let upstream = pool();
    release(&upstream, "/InRelease", "SHA256:\n 00 9 Packages\n 00 9 Packages.gz\n");
    upstream.serve("/Packages.gz", Answer::file(&gzip(PACKAGES)));
    upstream.serve("/", nginx("/", &["InRelease", "Packages.gz", "pool/"]));
    let listed = server(&upstream, &["deb$"]);
    assert_eq!(found(&listed, "deb$"), (BOTH.map(String::from).to_vec(), None));
    // Neither a listing nor a Release is needed.
    let upstream = pool();
    upstream.serve("/Packages", Answer::file(PACKAGES));
    let bare = server(&upstream, &["deb$"]);
    assert_eq!(found(&bare, "^pool/h/"), (vec![BOTH[0].to_owned()], None));
    // A suite without a Release has its packages beside dists/.
    let upstream = pool();
    upstream.serve("/dists/", nginx("/dists/", &["s/"]));
    upstream.serve("/dists/s/", nginx("/dists/s/", &["Packages"]));
    upstream.serve("/dists/s/Packages", Answer::file(PACKAGES));
    let unsigned = server(&upstream, &["deb$"]);
    assert_eq!(found(&unsigned, "deb$"), (BOTH.map(String::from).to_vec(), None));
}

#[test]
fn a_flat_repository_beside_suites_is_read() {
    let upstream = Upstream::start();
    upstream.serve("/dists/", nginx("/dists/", &[]));
    upstream
        .serve("/flat/Packages", Answer::file(b"Package: a\nFilename: ./a_1_all.deb\nSize: 1\n"));
    upstream.serve("/flat/a_1_all.deb", Answer::file(b"a"));
    let server = server(&upstream, &["deb$"]);
    for (pattern, paths) in
        [("^flat/a", &["flat/a_1_all.deb"][..]), ("^flat/", &["flat/Packages", "flat/a_1_all.deb"])]
    {
        assert_eq!(
            found(&server, pattern),
            (paths.iter().map(|&it| it.to_owned()).collect(), None)
        );
    }
    let paths = serde_json::json!({"remote": "files", "paths": ["flat/./a_1_all.deb"]});
    assert_eq!(super::cache(&server, &paths)["already_cached"], 1, "as Packages names it");
}

#[test]
fn a_page_that_answers_everything_is_no_index() {
    let upstream = pool();
    for name in ["InRelease", "Release", "Packages", "Packages.gz", "Packages.xz"] {
        upstream.serve(&format!("/{name}"), html("<h1>Not here</h1>"));
    }
    upstream.serve("/pool/h/", nginx("/pool/h/", &["hello_1_amd64.deb"]));
    let server = server(&upstream, &["deb$"]);
    assert_eq!(found(&server, "^pool/h/"), (vec![BOTH[0].to_owned()], None));
}

#[test]
fn where_a_portal_answers_everything_nothing_is_complete() {
    let upstream = Upstream::start();
    for path in ["/InRelease", "/Release", "/", "/dists/", "/pool/", "/pool/h/"] {
        upstream.serve(path, html("<!DOCTYPE html><title>Please sign in</title>"));
    }
    for name in ["Packages", "Packages.gz", "Packages.xz"] {
        upstream.serve(&format!("/{name}"), html("<!DOCTYPE html><title>Please sign in</title>"));
    }
    let server = server(&upstream, &["deb$"]);
    for pattern in ["", "^pool/h/"] {
        let wanted = json!({"remote": "files", "include_pattern": pattern});
        let answer = post(&server, "/cache-artifact", &wanted);
        let text = answer.text();
        assert!(text.contains("portal"), "{text}");
        assert!(answer.status() == 502 || !answer.json()["incomplete"].is_null(), "{text}");
    }
}

#[test]
fn a_pool_without_a_listing_is_no_loss_once_its_suite_is_read() {
    let upstream = pool();
    release(&upstream, "/dists/s/Release", "SHA256:\n 00 9 main/binary-amd64/Packages\n");
    upstream.serve(INDEX, Answer::file(PACKAGES));
    let server = server(&upstream, &["^dists/s/", "^pool/"]);
    let (paths, told) = found(&server, "");
    let with_indexes = ["dists/s/Release", "dists/s/main/binary-amd64/Packages", BOTH[0], BOTH[1]];
    assert_eq!((paths, told), (with_indexes.map(String::from).to_vec(), None));
    // The remote's patterns name a suite, which the pattern need not repeat.
    assert_eq!(found(&server, "^pool/h/"), (vec![BOTH[0].to_owned()], None));
}

#[test]
fn a_repository_that_lists_nothing_says_what_to_do() {
    let upstream = pool();
    let server = server(&upstream, &[r"\.deb$"]);
    let wanted = json!({"remote": "files", "include_pattern": "^pool/h/"});
    let answer = post(&server, "/cache-artifact", &wanted);
    answer.expect_error(502);
    let text = answer.text();
    assert!(text.contains("lists neither pool/h/ nor a dists/ beside it"), "{text}");
    // A listed pool is better than nothing.
    upstream.serve("/pool/h/", nginx("/pool/h/", &["hello_1_amd64.deb"]));
    assert_eq!(found(&server, "^pool/h/"), (vec![BOTH[0].to_owned()], None));
}
