//! Batches over each kind of remote: what is found is what upstream has, and nothing else is
//! asked for.

use std::io::Write;
use std::process::{Command, Output};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::json;

use super::{cache, counts, html, nginx, paths, post};
use crate::support::remotes::Remote;
use crate::support::server::{PROGRAM, Server, Setup};
use crate::support::upstream::{Answer, Upstream};

pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).expect("memory takes it");
    encoder.finish().expect("memory takes it")
}

/// Serves files whose bytes are their own names.
pub(super) fn serve(upstream: &Upstream, names: &[&str]) {
    for name in names {
        upstream.serve(name, Answer::file(name.as_bytes()));
    }
}

/// What a batch with a pattern finds and caches.
#[track_caller]
fn found(server: &Server, pattern: &str) -> Vec<String> {
    let answer = cache(server, &json!({"remote": "files", "include_pattern": pattern}));
    let [matched, cached, already, failed, _] = counts(&answer);
    assert_eq!((matched, failed), (cached + already, 0), "{answer}");
    assert!(answer["incomplete"].is_null(), "{answer}");
    paths(&answer)
}

fn apkindex(text: &str) -> Vec<u8> {
    let mut block = vec![0; 512];
    block[..8].copy_from_slice(b"APKINDEX");
    block[124..135].copy_from_slice(format!("{:011o}", text.len()).as_bytes());
    block[156] = b'0';
    block.extend(text.as_bytes());
    block.resize(block.len().next_multiple_of(512) + 1024, 0);
    gzip(&block)
}

#[test]
fn an_alpine_repository_is_found_by_its_index() {
    let upstream = Upstream::start();
    let index = apkindex("P:curl\nV:8-r0\nS:9\n\nP:musl\nV:1-r0\n\nP:curl-dev\nV:8-r0\n\n");
    upstream.serve("/v3/main/x86_64/APKINDEX.tar.gz", Answer::file(&index));
    serve(&upstream, &["/v3/main/x86_64/curl-8-r0.apk", "/v3/main/x86_64/curl-dev-8-r0.apk"]);
    let remote = Remote::at(&upstream).package("alpine").include(&[r"/x86_64/.*\.apk$"]);
    let server = Setup::files(remote).start();
    let curl = ["v3/main/x86_64/curl-8-r0.apk", "v3/main/x86_64/curl-dev-8-r0.apk"];
    assert_eq!(found(&server, "^v3/main/x86_64/curl"), curl);
    assert_eq!(upstream.total(), 3);

    // Without a folder in the pattern, listings lead to the index.
    upstream.serve("/", nginx("/", &["v3/"]));
    upstream.serve("/v3/", nginx("/v3/", &["main/"]));
    upstream.serve("/v3/main/", nginx("/v3/main/", &["x86_64/"]));
    upstream.serve("/v3/main/x86_64/", nginx("/v3/main/x86_64/", &["APKINDEX.tar.gz"]));
    assert_eq!(found(&server, r"curl-[^/]*\.apk$"), curl);
}

#[test]
fn an_rpm_repository_is_found_by_its_metadata() {
    let upstream = Upstream::start();
    upstream.serve(
        "/9/os/repodata/repomd.xml",
        Answer::file(b"<repomd><data type=\"primary\"><location href=\"repodata/p-primary.xml.gz\"/></data></repomd>"),
    );
    let primary = "<metadata><package type=\"rpm\"><location href=\"Packages/a/a-1.x86_64.rpm\"/><size package=\"1\"/></package><package><location href=\"Packages/b/b-1.aarch64.rpm\"/></package></metadata>";
    upstream.serve("/9/os/repodata/p-primary.xml.gz", Answer::file(&gzip(primary.as_bytes())));
    serve(&upstream, &["/9/os/Packages/a/a-1.x86_64.rpm"]);
    let remote = Remote::at(&upstream).package("rpm").include(&[r"x86_64\.rpm$"]);
    let server = Setup::files(remote).start();
    assert_eq!(found(&server, "^9/os/Packages/.*"), ["9/os/Packages/a/a-1.x86_64.rpm"]);
    let with_metadata = [
        "9/os/Packages/a/a-1.x86_64.rpm",
        "9/os/repodata/p-primary.xml.gz",
        "9/os/repodata/repomd.xml",
    ];
    assert_eq!(found(&server, "^9/os/"), with_metadata);
}

#[test]
fn a_debian_repository_is_found_by_its_release() {
    let upstream = Upstream::start();
    upstream.serve("/debian/dists/", html("<a href=\"stable/\">stable/</a>"));
    upstream.serve("/debian/dists/stable/", html("<a href=\"InRelease\">InRelease</a>"));
    upstream.serve(
        "/debian/dists/stable/InRelease",
        Answer::file(
            b"SHA256:\n 00 1 main/binary-amd64/Packages\n 00 1 main/binary-amd64/Packages.gz\n",
        ),
    );
    let packages = "Package: g++\nFilename: pool/g/g++_1%3a2_amd64.deb\nSize: 3\n\nFilename: pool/h/h_1_amd64.deb\n";
    upstream.serve(
        "/debian/dists/stable/main/binary-amd64/Packages.gz",
        Answer::file(&gzip(packages.as_bytes())),
    );
    upstream.serve("/debian/pool/g/g%2B%2B_1%253a2_amd64.deb", Answer::file(b"g++"));
    let remote = Remote::at(&upstream).package("deb").include(&[r"_amd64\.deb$"]);
    let server = Setup::files(remote).start();
    assert_eq!(found(&server, "^debian/pool/g/"), ["debian/pool/g/g++_1%3a2_amd64.deb"]);
    server.get("/api/files/debian/pool/g/g%2b%2b_1%253a2_amd64.deb").expect(200, b"g++");
}

#[test]
fn releases_of_products_are_found_by_their_index() {
    let upstream = Upstream::start();
    let url = |name: &str| format!("{}{name}", upstream.url());
    let index = json!({"name": "tool", "versions": {
        "1.0.0": {"builds": [{"url": url("/tool/1.0.0/tool_linux_amd64.zip")}, {"url": url("/tool/1.0.0/tool_darwin.zip")}]},
        "1.1.0": {"builds": [{"url": url("/tool/1.1.0/tool_linux_amd64.zip")}, {"url": "https://other.example.org/tool_linux_amd64.zip"}]},
    }});
    upstream.serve(
        "/tool/index.json",
        Answer::file(index.to_string().as_bytes()).header("Content-Type", "application/json"),
    );
    serve(&upstream, &["/tool/1.0.0/tool_linux_amd64.zip", "/tool/1.1.0/tool_linux_amd64.zip"]);
    let server = Setup::files(Remote::at(&upstream).include(&["linux_amd64"])).start();
    let answer =
        cache(&server, &json!({"remote": "files", "include_pattern": "^tool/.*_linux_amd64"}));
    let expected = ["tool/1.0.0/tool_linux_amd64.zip", "tool/1.1.0/tool_linux_amd64.zip"];
    assert_eq!(paths(&answer), expected);
    assert_eq!(answer["incomplete"], "1 link leads out of the remote's base_url");
    assert_eq!(upstream.total(), 3);
}

#[test]
fn a_mirror_of_products_is_found_with_what_verifies_them() {
    let upstream = Upstream::start();
    let files = [
        "/hc/tool/1.0.0/tool_SHA256SUMS",
        "/hc/tool/1.0.0/tool_SHA256SUMS.sig",
        "/hc/tool/1.0.0/tool_linux_amd64.zip",
    ];
    serve(&upstream, &files);
    let index = json!({"name": "tool", "versions": {"1.0.0": {
        "shasums": "tool_SHA256SUMS", "shasums_signature": "tool_SHA256SUMS.sig",
        "builds": [{"filename": "tool_linux_amd64.zip", "url": "https://releases.example.org/tool/1.0.0/tool_linux_amd64.zip"}],
    }}});
    let index =
        Answer::file(index.to_string().as_bytes()).header("Content-Type", "application/json");
    upstream.serve("/hc/tool/index.json", index);
    let server = Setup::files(Remote::at_url(&format!("{}/hc", upstream.url()))).start();
    let expected = files.map(|file| file.trim_start_matches("/hc/").to_owned());
    assert_eq!(found(&server, "^tool/"), expected);
}

#[test]
fn releases_of_a_repository_are_found_page_by_page() {
    let (upstream, api) = (Upstream::start(), Upstream::start());
    let asset = |name: &str| {
        let path = format!("/o/r/releases/download/{name}");
        upstream.serve(&path, Answer::file(path.as_bytes()));
        json!({"browser_download_url": format!("{}{path}", upstream.url()), "size": path.len()})
    };
    let page = |assets: &[serde_json::Value]| json!([{"assets": assets}]).to_string();
    let next = format!("<{}/v3/repositories/1/releases?page=2>; rel=\"next\"", api.url());
    let first = page(&[asset("v2/a-linux-amd64.tgz"), asset("v2/a-darwin.tgz")]);
    api.serve(
        "/v3/repos/o/r/releases?per_page=100",
        Answer::file(first.as_bytes()).header("Link", &next),
    );
    let second = page(&[asset("v1/a-linux-amd64.tgz")]);
    api.serve("/v3/repositories/1/releases?page=2", Answer::file(second.as_bytes()));
    let remote = Remote::at(&upstream)
        .include(&["^o/r/.*linux-amd64"])
        .with(&format!("api_url: {}/v3", api.url()));
    let server = Setup::files(remote).start();
    let expected = [
        "o/r/releases/download/v1/a-linux-amd64.tgz",
        "o/r/releases/download/v2/a-linux-amd64.tgz",
    ];
    assert_eq!(found(&server, "o/r/.*linux-amd64"), expected);
    // A pattern without a folder is completed by the remote's own.
    assert_eq!(found(&server, "amd64"), expected);
    assert_eq!((api.total(), upstream.total()), (4, 2));
    let unknown = json!({"remote": "files", "include_pattern": "o/none/.*"});
    let answer = post(&server, "/cache-artifact", &unknown);
    answer.expect_error(502);
    assert!(answer.text().contains("knows no repos/o/none/releases"), "{}", answer.text());
}

#[test]
fn a_releases_api_that_refuses_says_why() {
    let api = Upstream::start();
    let refusal =
        |status: u16| Answer::status(status).body("{\"message\": \"API rate limit exceeded\"}");
    api.serve("/repos/o/limited/releases?per_page=100", refusal(403));
    let remote = Remote::at(&api).with(&format!("api_url: {}", api.url()));
    let server = Setup::new()
        .remote("files", remote.clone())
        .remote("known", remote.with("auth: {bearer: \"t0ken\"}"))
        .start();
    for (name, fix) in [("files", "a token in the remote's auth raises"), ("known", "used up")] {
        let limited = json!({"remote": name, "include_pattern": "o/limited/.*"});
        let refused = post(&server, "/cache-artifact", &limited);
        refused.expect_error(502);
        let detail = refused.json()["detail"].as_str().unwrap().to_owned();
        for part in ["answered 403", "\"API rate limit exceeded\"", fix] {
            assert!(detail.contains(part), "{detail}");
        }
    }
    // A pattern without a repository is the request's fault.
    let wanted = json!({"remote": "files", "include_pattern": "amd64"});
    for target in ["/cache-artifact", "/cache-artifact?wait=true"] {
        let answer = post(&server, target, &wanted);
        answer.expect_error(400);
        assert!(answer.text().contains("the releases of which repository?"), "{}", answer.text());
    }
}

#[test]
fn a_path_of_the_base_url_is_no_repository() {
    let upstream = Upstream::start();
    let path = "/o/r/releases/download/v1/a.tgz";
    upstream.serve(&format!("/gh/dl{path}"), Answer::file(b"asset"));
    // The API of a mirror may name the host that it mirrors, or the mirror's own.
    for (repository, url) in [
        ("r", format!("https://origin.example.org{path}")),
        ("s", format!("{}/gh/dl/o/s/x.tgz", upstream.url())),
    ] {
        let page = json!([{"assets": [{"browser_download_url": url}]}]).to_string();
        upstream.serve(
            &format!("/gh/api/repos/o/{repository}/releases?per_page=100"),
            Answer::file(page.as_bytes()),
        );
    }
    serve(&upstream, &["/gh/dl/o/s/x.tgz"]);
    let remote = Remote::at_url(&format!("{}/gh/dl", upstream.url()))
        .with(&format!("api_url: {}/gh/api", upstream.url()));
    let server = Setup::files(remote).start();
    assert_eq!(found(&server, "^o/(r|s)/.*tgz"), [path.trim_start_matches('/'), "o/s/x.tgz"]);
}

#[test]
fn a_pattern_that_is_not_anchored_is_looked_for_everywhere() {
    let upstream = Upstream::start();
    upstream.serve("/", nginx("/", &["deep/", "sub/"]));
    upstream.serve("/sub/", nginx("/sub/", &["amd64.zip"]));
    upstream.serve("/deep/", nginx("/deep/", &["sub/"]));
    upstream.serve("/deep/sub/", nginx("/deep/sub/", &["amd64.zip"]));
    serve(&upstream, &["/sub/amd64.zip", "/deep/sub/amd64.zip"]);
    let server = Setup::files(Remote::at(&upstream)).start();
    let both = ["deep/sub/amd64.zip", "sub/amd64.zip"];
    assert_eq!(found(&server, "sub/.*amd64"), both);
    assert_eq!(upstream.count("/sub/"), 1);
    assert_eq!(found(&server, "^sub/.*amd64"), both[1..]);
    // One that no folder of the root is the beginning of.
    upstream.serve("/sub/", nginx("/sub/", &[]));
    let inner = json!({"remote": "files", "include_pattern": "nothere/|amd64"});
    let answer = cache(&server, &inner);
    assert_eq!((paths(&answer), answer["incomplete"].is_null()), (vec![both[0].to_owned()], true));
}

#[test]
fn where_the_root_lists_nothing_a_guess_has_to_do_and_that_is_told() {
    let upstream = Upstream::start();
    upstream.serve("/sub/", nginx("/sub/", &["amd64.zip"]));
    serve(&upstream, &["/sub/amd64.zip"]);
    let server = Setup::files(Remote::at(&upstream)).start();
    let answer = cache(&server, &json!({"remote": "files", "include_pattern": "sub/.*amd64"}));
    assert_eq!(paths(&answer), ["sub/amd64.zip"]);
    let told = answer["incomplete"].as_str().expect("that more could match");
    assert!(told.starts_with("only sub/ was looked at, though a pattern without ^"), "{told}");
}

#[test]
fn folders_are_followed_down_and_never_up_or_out() {
    let upstream = Upstream::start();
    upstream.serve("/pub/", html("<a href=\"../\">..</a><a href=\"/secret/\">s</a><a href=\"a/\">a</a><a href=\"a/\">again</a><a href=\"http://other.example.org/pub/x.zip\">o</a><a href=\"?C=M\">sort</a><a href=\"closed/\">c</a>"));
    upstream.serve(
        "/pub/a/",
        html("<a href=\"./b/\">b</a><a href=\"/pub/a/x.zip\">x</a><a href=\"/pub/\">up</a>"),
    );
    upstream.serve(
        "/pub/a/b/",
        html("<a href=\"y%20z.zip\">y z</a><a href=\"..%2f..%2f..%2fsecret.zip\">no</a>"),
    );
    upstream.serve("/pub/closed/", nginx("/pub/closed/", &[]));
    upstream.serve("/pub/a/b/y%20z.zip", Answer::file(b"y z"));
    serve(&upstream, &["/pub/a/x.zip"]);
    let server = Setup::files(Remote::at_url(&format!("{}/pub/", upstream.url()))).start();
    assert_eq!(found(&server, r"\.zip$"), ["a/b/y z.zip", "a/x.zip"]);
    let mut asked: Vec<String> = upstream.seen().into_iter().map(|seen| seen.target).collect();
    asked.sort();
    let expected = [
        "/pub/",
        "/pub/a/",
        "/pub/a/b/",
        "/pub/a/b/y%20z.zip",
        "/pub/a/x.zip",
        "/pub/closed/",
        "/pub/index.json",
    ];
    assert_eq!(asked, expected);
}

#[test]
fn a_listing_that_breaks_off_is_named() {
    let upstream = Upstream::start();
    let index = apkindex("P:curl\nV:8-r0\n\n");
    upstream.serve("/main/APKINDEX.tar.gz", Answer::file(&index[..index.len() / 2]));
    let remote = Remote::at(&upstream).package("alpine");
    let server = Setup::files(remote).start();
    let wanted = json!({"remote": "files", "include_pattern": "^main/"});
    let answer = post(&server, "/cache-artifact", &wanted);
    answer.expect_error(502);
    assert!(answer.text().contains("main/APKINDEX.tar.gz"), "{}", answer.text());
}

pub(super) fn warm(server: &Server, words: &[&str]) -> Output {
    let address = format!("{}", server.addr());
    let mut command = Command::new(PROGRAM);
    command.env_clear().env("LISTEN_ADDR", address).arg("warm").args(words);
    command.output().expect("the program starts")
}

#[test]
fn the_command_line_warms_a_running_server() {
    let upstream = Upstream::start();
    serve(&upstream, &["/a.zip", "/b.zip"]);
    upstream.serve("/", nginx("/", &["a.zip", "b.zip"]));
    let server = Setup::files(Remote::at(&upstream).include(&[r"\.zip$"])).start();
    let folder = tempfile::tempdir().expect("a folder for the test can be made");
    let list = folder.path().join("paths");
    std::fs::write(&list, "# what we need\na.zip\ngone.zip\n").expect("it takes a file");
    let urls = folder.path().join("urls");
    std::fs::write(&urls, format!("{}/b.zip\n", upstream.url())).expect("it takes a file");
    let check = |words: &[&str], success: bool, output: &str| {
        let ended = warm(&server, words);
        let (out, err) =
            (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
        assert_eq!(ended.status.success(), success, "{words:?}: {out}{err}");
        assert!(format!("{out}{err}").contains(output), "{words:?}: {out}{err}");
    };
    let (list, urls) = (list.to_str().unwrap(), urls.to_str().unwrap());
    check(&["files", "--dry-run"], true, "2 of 2 artifacts would be cached");
    check(&["files", "--pattern", "^a", "--limit", "1"], true, "cached 6 a.zip\n");
    check(&["files", "--paths", list], false, "failed - gone.zip: ");
    check(&["files", "--urls", urls], true, "1 of 1 artifact cached");
    check(&["files"], true, "0 of 2 artifacts cached, 2 were cached already");
    check(&["files", "--force"], true, "2 of 2 artifacts cached");
    check(&["none"], false, "the server refuses (404): there is no remote");
    check(&["files", "--server", "http://127.0.0.1:1"], false, "does not answer");
    check(&["files", "--server", "nowhere"], false, "is not the address of a server");
    check(&["files", "--paths", "/none"], false, "cannot read /none");
}
