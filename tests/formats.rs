//! Repositories: which files are indexes, which go together, which never change.

use crate::support::remotes::Remote;
use crate::support::server::{Server, Setup};
use crate::support::upstream::{Answer, Upstream};
use crate::support::{eventually, sha256_hex};

/// Serves a path with bytes whose ETag is their digest.
fn publish(upstream: &Upstream, path: &str, bytes: &str) {
    let etag = format!("\"{}\"", &sha256_hex(bytes.as_bytes())[..8]);
    upstream.serve(path, Answer::file(bytes.as_bytes()).etag(&etag));
}

fn get(server: &Server, path: &str) -> String {
    let answer = server.get(&format!("/api/repo{path}"));
    answer.expect_status(200);
    answer.text()
}

#[test]
fn indexes_are_reachable_although_the_patterns_name_packages_only() {
    let upstream = Upstream::start();
    for (package, include, index, other) in [
        (
            "alpine",
            ".*/x86_64/.*\\.apk$",
            "/v3.20/main/x86_64/APKINDEX.tar.gz",
            "/v3.20/main/x86_64/README",
        ),
        ("rpm", ".*/x86_64/.*\\.rpm$", "/9/x86_64/repodata/repomd.xml", "/9/x86_64/notes.txt"),
        ("deb", "^pool/.*_amd64\\.deb$", "/dists/stable/InRelease", "/pool/main/a/a_1.dsc.txt"),
    ] {
        publish(&upstream, index, "index");
        publish(&upstream, other, "other");
        let remote = Remote::at(&upstream).package(package).include(&[include]);
        let server = Setup::new().remote("repo", remote).start();
        assert_eq!(get(&server, index), "index");
        server.get(&format!("/api/repo{other}")).expect_error(403);
        assert_eq!(upstream.count(other), 0);
    }
}

#[test]
fn packages_never_change_and_heads_are_revalidated() {
    for (package, head, immutable) in [
        ("alpine", "/v3.20/main/x86_64/APKINDEX.tar.gz", "/v3.20/main/x86_64/curl-8.9.0-r0.apk"),
        ("rpm", "/9/repodata/repomd.xml", "/9/Packages/bash-5.1.8-9.el9.x86_64.rpm"),
        ("deb", "/dists/stable/InRelease", "/pool/main/b/bash/bash_5.2.15-2_amd64.deb"),
        ("generic", "/channel/latest", "/v1/tool.zip"),
    ] {
        let upstream = Upstream::start();
        publish(&upstream, head, "one");
        publish(&upstream, immutable, "one");
        let mut remote = Remote::at(&upstream).package(package).index_ttl(0);
        if package == "generic" {
            remote = remote.with("mutable_patterns: ['latest$']");
        }
        let server = Setup::new().remote("repo", remote).start();
        for path in [head, immutable] {
            assert_eq!(get(&server, path), "one");
            publish(&upstream, path, "two");
        }
        assert_eq!(get(&server, head), "two", "{package}");
        assert_eq!(get(&server, immutable), "one", "{package}");
        assert_eq!(upstream.count(immutable), 1);
    }
}

#[test]
fn members_of_a_changed_head_are_asked_for_anew() {
    for (package, head, members) in [
        (
            "deb",
            "/dists/stable/InRelease",
            [
                "/dists/stable/main/binary-amd64/Packages.xz",
                "/dists/stable/main/i18n/Translation-en.xz",
            ],
        ),
        (
            "rpm",
            "/9/repodata/repomd.xml",
            ["/9/repodata/primary.xml.gz", "/9/repodata/filelists.xml.zst"],
        ),
    ] {
        let upstream = Upstream::start();
        for path in members.iter().chain([&head]) {
            publish(&upstream, path, "one");
        }
        let remote = Remote::at(&upstream).package(package).index_ttl(2);
        let server = Setup::new().remote("repo", remote).start();
        for path in members.iter().chain([&head]) {
            assert_eq!(get(&server, path), "one");
        }
        for path in members.iter().chain([&head]) {
            publish(&upstream, path, "two");
        }
        eventually("the head has lapsed", || get(&server, head) == "two");
        for path in members {
            assert_eq!(get(&server, path), "two", "{path} beside a new head");
        }
    }
}

#[test]
fn an_unchanged_head_keeps_its_members() {
    let upstream = Upstream::start();
    let (head, member) = ("/dists/stable/InRelease", "/dists/stable/main/binary-amd64/Packages.xz");
    publish(&upstream, head, "one");
    publish(&upstream, member, "one");
    let remote = Remote::at(&upstream).package("deb").index_ttl(0);
    let server = Setup::new().remote("repo", remote).start();
    for _ in 0..3 {
        assert_eq!(get(&server, head), "one");
        assert_eq!(get(&server, member), "one");
    }
    let fills = upstream.seen_for(member);
    let plain = fills.iter().filter(|seen| seen.header("if-none-match").is_none()).count();
    assert_eq!(plain, 1, "{fills:?}");
}

#[test]
fn a_member_that_is_gone_makes_its_head_stale() {
    let upstream = Upstream::start();
    let (head, member) = ("/dists/stable/InRelease", "/dists/stable/main/binary-amd64/Packages.xz");
    publish(&upstream, head, "one");
    let server =
        Setup::new().remote("repo", Remote::at(&upstream).package("deb").index_ttl(3600)).start();
    assert_eq!(get(&server, head), "one");
    assert_eq!(get(&server, head), "one");
    assert_eq!(upstream.count(head), 1);
    publish(&upstream, head, "two");
    server.get(&format!("/api/repo{member}")).expect_error(404);
    assert_eq!(get(&server, head), "two");
}

#[test]
fn names_with_a_checksum_are_never_asked_for_again() {
    let upstream = Upstream::start();
    let sum = sha256_hex(b"one");
    for (package, path) in [
        ("rpm", format!("/9/repodata/{sum}-primary.xml.gz")),
        ("deb", format!("/dists/stable/main/binary-amd64/by-hash/SHA256/{sum}")),
    ] {
        publish(&upstream, &path, "one");
        let remote = Remote::at(&upstream).package(package).index_ttl(0);
        let server = Setup::new().remote("repo", remote).start();
        for _ in 0..3 {
            assert_eq!(get(&server, &path), "one");
        }
        assert_eq!(upstream.count(&path), 1);
    }
}

#[test]
fn apt_escapes_lead_to_the_file() {
    let upstream = Upstream::start();
    publish(&upstream, "/pool/main/g/g%2B%2B/g%2B%2B_1%253a2~rc1_amd64.deb", "package");
    let server = Setup::new().remote("repo", Remote::at(&upstream).package("deb")).start();
    assert_eq!(get(&server, "/pool/main/g/g%2b%2b/g%2b%2b_1%253a2%7erc1_amd64.deb"), "package");
}

/// apt sends the `./` of sources.list and of `Filename: ./x.deb` as it is written there.
#[test]
fn a_flat_debian_repository_is_one_with_its_dot_segments_and_without() {
    let upstream = Upstream::start();
    for path in ["/InRelease", "/Packages.xz", "/tool_1.0_amd64.deb"] {
        publish(&upstream, path, path);
    }
    let remote = Remote::at(&upstream).package("deb").include(&["^tool_[^/]*\\.deb$"]);
    let server = Setup::new().remote("repo", remote).start();
    for path in ["/InRelease", "/Packages.xz", "/tool_1.0_amd64.deb"] {
        assert_eq!(get(&server, &format!("/.{path}")), path);
        assert_eq!(get(&server, path), path);
        assert_eq!(upstream.count(path), 1);
    }
    server.get("/api/repo/./../tool_1.0_amd64.deb").expect_error(400);
}
