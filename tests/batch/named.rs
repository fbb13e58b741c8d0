//! Batches of paths and of URLs: what each names, whose it is, and that nothing is done twice.

use serde_json::{Value, json};

use super::discovery::{serve, warm};
use super::{cache, counts};
use crate::support::noise;
use crate::support::remotes::Remote;
use crate::support::server::{Server, Setup};
use crate::support::upstream::{Answer, Upstream};

/// The one artifact of an answer.
#[track_caller]
fn only(answer: &Value) -> &Value {
    let artifacts = answer["artifacts"].as_array().expect("a list of artifacts");
    assert_eq!(artifacts.len(), 1, "{answer}");
    &artifacts[0]
}

#[test]
fn a_url_belongs_to_the_longest_base_that_allows_it() {
    let upstream = Upstream::start();
    serve(&upstream, &["/t/v1/a.zip", "/t/v1/b.txt", "/t/v1/c.iso"]);
    let remote = |path: &str, include: &str| {
        Remote::at_url(&format!("{}{path}", upstream.url())).include(&[include])
    };
    let server = Setup::new()
        .remote("outer", remote("/", "zip$|txt$"))
        .remote("tools", remote("/t/", "zip$"))
        .remote("twin", remote("/t/", "iso$"))
        .start();
    let check = |name: &str, owner: &str| {
        let answer = cache(&server, &json!({"urls": [format!("{}/t/v1/{name}", upstream.url())]}));
        assert_eq!((&only(&answer)["remote"], counts(&answer)[1]), (&json!(owner), 1), "{answer}");
    };
    check("a.zip", "tools");
    check("b.txt", "outer");
    check("c.iso", "twin");
    let refused = cache(&server, &json!({"urls": [format!("{}/t/v1/d.exe", upstream.url())]}));
    let error = only(&refused)["error"].as_str().unwrap().to_owned();
    assert!(error.contains("patterns of remote tools do not allow"), "{error}");
}

#[test]
fn one_url_is_kept_for_each_of_two_remotes() {
    let upstream = Upstream::start();
    serve(&upstream, &["/x.zip"]);
    let server =
        Setup::new().remote("a", Remote::at(&upstream)).remote("b", Remote::at(&upstream)).start();
    let url = format!("{}/x.zip", upstream.url());
    for remote in ["a", "b"] {
        let answer = cache(&server, &json!({"urls": [url], "remote": remote}));
        assert_eq!(counts(&answer), [1, 1, 0, 0, 0], "{answer}");
    }
    for remote in ["a", "b"] {
        let hit = server.get(&format!("/api/{remote}/x.zip"));
        hit.expect(200, b"/x.zip");
        hit.expect_header("x-artifact-source", "cache");
    }
    assert_eq!((upstream.total(), server.blob_files().len()), (2, 2));
}

#[test]
fn results_name_their_url_and_never_a_password() {
    let upstream = Upstream::start();
    serve(&upstream, &["/x.zip"]);
    let server = Setup::files(Remote::at(&upstream)).start();
    let url = format!("{}/x.zip", upstream.url());
    let answer = cache(&server, &json!({"urls": [url]}));
    assert_eq!((&only(&answer)["url"], &only(&answer)["path"]), (&json!(url), &json!("x.zip")));
    let by_path = cache(&server, &json!({"remote": "files", "paths": ["x.zip"]}));
    assert_eq!(only(&by_path)["url"], Value::Null);

    let with_password = url.replace("http://", "http://me:s3cret@");
    for url in [&*with_password, "me:s3cret@host/x", "http://me:s3cret@ho st/x"] {
        let answer = cache(&server, &json!({"urls": [url]}));
        assert_eq!(counts(&answer), [0, 0, 0, 0, 1]);
        assert!(!answer.to_string().contains("s3cret"), "{answer}");
    }
    let refused = cache(&server, &json!({"urls": [with_password]}));
    let error = only(&refused)["error"].as_str().unwrap();
    assert!(error.contains("credential"), "{error}");
    assert!(!server.log().iter().any(|line| line.contains("s3cret")));
}

fn warm_list(server: &Server, kind: &str, text: &str) -> String {
    let folder = tempfile::tempdir().expect("a folder for the test can be made");
    let list = folder.path().join("list");
    std::fs::write(&list, text).expect("it takes a file");
    let ended = warm(server, &["files", kind, list.to_str().expect("a plain name")]);
    String::from_utf8_lossy(&ended.stdout).into_owned()
}

#[test]
fn warming_says_whose_a_url_is() {
    let (upstream, other) = (Upstream::start(), Upstream::start());
    serve(&upstream, &["/x.zip"]);
    let server = Setup::new()
        .remote("files", Remote::at(&upstream))
        .remote("other", Remote::at(&other))
        .start();
    let list = format!("{0}/x.zip\n{1}/y.zip\n", upstream.url(), other.url());
    let out = warm_list(&server, "--urls", &list);
    let cached = format!("cached 6 {}/x.zip\n", upstream.url());
    let refused = format!("{}/y.zip: it is a URL of remote other, not that of files", other.url());
    assert!(out.contains(&cached) && out.contains(&refused), "{out}");
    assert_eq!(other.total(), 0);
}

#[test]
fn what_results_print_can_be_given_back() {
    let upstream = Upstream::start();
    let names = ["g++_1%3a2_amd64.deb", "v1/100%.tar.gz", "a b.zip", "x?y=1%20z"];
    let targets = ["/g%2B%2B_1%253a2_amd64.deb", "/v1/100%25.tar.gz", "/a%20b.zip", "/x?y=1%20z"];
    serve(&upstream, &targets);
    let server = Setup::files(Remote::at(&upstream)).start();
    for target in targets {
        server.get(&format!("/api/files{target}")).expect_status(200);
    }
    let printed = server.get("/artifacts/files").json();
    let artifacts = printed["artifacts"].as_array().expect("a list of artifacts");
    let mut paths: Vec<&str> = artifacts.iter().map(|a| a["path"].as_str().unwrap()).collect();
    paths.sort_unstable();
    let mut expected = names;
    expected.sort_unstable();
    assert_eq!(paths, expected);
    let answer = cache(&server, &json!({"remote": "files", "paths": paths}));
    assert_eq!(counts(&answer), [4, 0, 4, 0, 0], "{answer}");
    let out = warm_list(&server, "--paths", &paths.join("\n"));
    assert!(out.contains("0 of 4 artifacts cached, 4 were cached already"), "{out}");
    assert_eq!(upstream.total(), 4);
}

#[test]
fn what_is_named_twice_is_done_once() {
    let upstream = Upstream::start();
    serve(&upstream, &["/a.zip"]);
    let server = Setup::files(Remote::at(&upstream)).start();
    let paths = ["a.zip", "/a.zip", "a.zip", "b/../c", "b/../c"];
    let answer = cache(&server, &json!({"remote": "files", "paths": paths}));
    assert_eq!(counts(&answer), [1, 1, 0, 0, 1], "{answer}");
    assert_eq!(answer["fetched_bytes"], 6);
    let url = format!("{}/a.zip", upstream.url());
    let encoded = format!("{}/%61.zip", upstream.url());
    let answer = cache(&server, &json!({"urls": [url, encoded, url]}));
    assert_eq!(counts(&answer), [1, 0, 1, 0, 0], "{answer}");
}

#[test]
fn messages_count_in_words() {
    let upstream = Upstream::start();
    serve(&upstream, &["/a.zip", "/b.zip"]);
    let server = Setup::files(Remote::at(&upstream)).start();
    let say = |paths: &[&str], dry_run: bool| {
        let wanted = json!({"remote": "files", "paths": paths, "dry_run": dry_run});
        let answer = cache(&server, &wanted);
        let text = |name: &str| answer[name].as_str().unwrap().to_owned();
        (text("about"), text("message"))
    };
    let check = |said: (String, String), about: &str, message: &str| {
        assert_eq!((said.0.as_str(), said.1.as_str()), (about, message));
    };
    check(say(&["a.zip"], false), "files: 1 path", "1 of 1 artifact cached");
    let again = "0 of 1 artifact would be cached, 1 was cached already";
    check(say(&["a.zip"], true), "files: 1 path", again);
    check(
        say(&["a.zip", "b.zip"], true),
        "files: 2 paths",
        "1 of 2 artifacts would be cached, 1 was cached already",
    );
}

#[test]
fn a_batch_that_cannot_stay_says_so() {
    let upstream = Upstream::start();
    let names: Vec<String> = (0..20).map(|number| format!("f{number}")).collect();
    for name in &names {
        upstream.serve(&format!("/{name}"), Answer::file(&noise(1, 1000)));
    }
    upstream.serve("/large", Answer::file(&noise(2, 20_000)));
    let server = Setup::files(Remote::at(&upstream)).env("CACHE_MAX_BYTES", 10_000).start();
    let answer = cache(&server, &json!({"remote": "files", "paths": names}));
    let message = answer["message"].as_str().unwrap();
    // How many of them find room at once is the keeper's matter.
    let expected = "; that is more than cache.max_bytes or CACHE_MAX_BYTES lets stay";
    assert!(message.contains(expected), "{message}");
    let answer = cache(&server, &json!({"remote": "files", "paths": ["large"]}));
    let error = only(&answer)["error"].as_str().unwrap();
    assert!(error.contains("cache.max_bytes or CACHE_MAX_BYTES"), "{error}");
}
