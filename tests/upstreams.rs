//! How upstreams are asked: retries, mirrors, the breaker, redirects, credentials, proxies.

use std::net::Ipv4Addr;

use crate::support::client::Ask;
use crate::support::eventually;
use crate::support::remotes::Remote;
use crate::support::server::Setup;
use crate::support::upstream::{Answer, Upstream};

#[test]
fn a_failure_that_passes_is_retried() {
    let upstream = Upstream::start();
    let file = Answer::file(b"bytes");
    let server = Setup::files(Remote::at(&upstream).impatient("1")).start();
    for (name, fault) in [
        ("closed", Answer::closed()),
        ("reset", Answer::reset()),
        ("500", Answer::status(500)),
        ("503", Answer::status(503)),
        ("429", Answer::status(429)),
    ] {
        upstream.serve(&format!("/{name}"), [fault, file.clone()]);
        server.get(&format!("/api/files/{name}")).expect(200, b"bytes");
        let asked = upstream.count(&format!("/{name}"));
        assert_eq!(asked, 2, "{name}");
    }
}

#[test]
fn an_answer_that_was_meant_is_not_retried() {
    let upstream = Upstream::start();
    upstream.serve("/403", Answer::status(403));
    let server = Setup::files(Remote::at(&upstream)).start();
    server.get("/api/files/403").expect_error(502);
    server.get("/api/files/404").expect_error(404);
    assert_eq!((upstream.count("/403"), upstream.count("/404")), (1, 1));
}

#[test]
fn retries_are_bounded_by_their_variable() {
    for retries in [0, 3] {
        let upstream = Upstream::start();
        upstream.serve("/a", Answer::status(500));
        let server = Setup::files(Remote::at(&upstream)).env("RETRIES_MAX", retries).start();
        server.get("/api/files/a").expect_error(502);
        assert_eq!(upstream.count("/a"), retries + 1);
    }
}

#[test]
fn retry_after_is_honoured() {
    let upstream = Upstream::start();
    let busy = Answer::status(503).header("Retry-After", "1");
    upstream.serve("/a", [busy, Answer::file(b"bytes")]);
    let server = Setup::files(Remote::at(&upstream)).start();
    server.get("/api/files/a").expect(200, b"bytes");
    let seen = upstream.seen_for("/a");
    assert_eq!(seen.len(), 2);
    let waited = seen[1].at.duration_since(seen[0].at);
    assert!(waited.as_millis() >= 1000, "asked again after {waited:?}");
}

#[test]
fn a_kept_connection_that_upstream_has_closed_costs_no_error() {
    let upstream = Upstream::start();
    let server = Setup::files(Remote::at(&upstream)).env("RETRIES_MAX", 0).start();
    for round in 0..5 {
        upstream.serve(&format!("/{round}"), Answer::file(b"bytes"));
        server.get(&format!("/api/files/{round}")).expect(200, b"bytes");
        upstream.close_connections();
    }
}

#[test]
fn mirrors_stand_in_for_a_base_that_fails() {
    let (main, first, second) = (Upstream::start(), Upstream::start(), Upstream::start());
    let mirrors = format!("mirrors: ['{}', '{}/deep']", first.url(), second.url());
    for (path, mirrored) in [("/a", "/deep/a"), ("/b", "/deep/b")] {
        main.serve(path, Answer::status(500));
        first.serve(path, Answer::status(502));
        second.serve(mirrored, Answer::file(b"bytes"));
    }
    let remote = Remote::at(&main).with(&mirrors).impatient("1");
    let server = Setup::files(remote).env("RETRIES_MAX", 0).start();
    server.get("/api/files/a").expect(200, b"bytes");
    assert_eq!((main.count("/a"), first.count("/a"), second.count("/deep/a")), (1, 1, 1));
    main.go_down();
    first.go_down();
    server.get("/api/files/b").expect(200, b"bytes");
    server.get("/api/files/b").expect_header("x-artifact-source", "cache");
}

#[test]
fn an_upstream_that_keeps_failing_is_left_alone() {
    let upstream = Upstream::start();
    upstream.serve("/stored", Answer::file(b"bytes").etag("\"v1\""));
    let remote = Remote::at(&upstream).always_revalidated();
    let server = Setup::files(remote).env("RETRIES_MAX", 0).start();
    server.get("/api/files/stored").expect(200, b"bytes");
    upstream.serve("/cold", Answer::status(500));
    let mut blocked = None;
    for _ in 0..100 {
        let asked = upstream.total();
        let answer = server.get("/api/files/cold");
        answer.expect_error(if answer.status() == 503 { 503 } else { 502 });
        if answer.status() == 503 {
            assert_eq!(upstream.total(), asked, "a blocked upstream was asked");
            blocked = Some(answer);
            break;
        }
    }
    let blocked = blocked.expect("a hundred failures are enough to be left alone");
    let wait = blocked.header("retry-after").and_then(|value| value.parse::<u64>().ok());
    assert!(wait.is_some_and(|seconds| seconds > 0), "{:?}", blocked.head);
    // What is stored is served meanwhile.
    server.get("/api/files/stored").expect(200, b"bytes");

    upstream.serve("/cold", Answer::file(b"warm"));
    eventually("the upstream is asked again", || server.get("/api/files/cold").status() == 200);
}

#[test]
fn metrics_tell_of_an_upstream_that_keeps_failing() {
    let upstream = Upstream::start();
    upstream.serve("/down", Answer::closed());
    upstream.serve("/up", Answer::file(b"bytes"));
    let server = Setup::files(Remote::at(&upstream)).env("RETRIES_MAX", 0).start();
    let failing = || server.metric("artifactapi_upstreams_failing{remote=\"files\"}");
    server.get("/api/files/up").expect(200, b"bytes");
    assert_eq!(failing(), 0.0);
    for number in 0..5 {
        let path = format!("/down?{number}");
        upstream.serve(&path, Answer::closed());
        server.get(&format!("/api/files{path}")).expect_error(502);
    }
    assert_eq!(failing(), 1.0);
    upstream.serve("/later", Answer::file(b"bytes"));
    eventually("it is asked again", || server.get("/api/files/later").status() == 200);
    assert_eq!(failing(), 0.0);
    let asked = server.metric("artifactapi_upstream_head_seconds_count{remote=\"files\"}");
    assert_eq!(asked, 2.0, "those that answered");
}

#[test]
fn a_file_that_is_broken_upstream_blocks_no_other() {
    let upstream = Upstream::start();
    upstream.serve("/broken", Answer::status(500));
    let server = Setup::files(Remote::at(&upstream)).start();
    for number in 0..10 {
        let broken = server.get("/api/files/broken");
        broken.expect_error(if broken.status() == 503 { 503 } else { 502 });
        let path = format!("/good-{number}");
        upstream.serve(&path, Answer::file(b"good"));
        server.get(&format!("/api/files{path}")).expect(200, b"good");
    }
}

#[test]
fn a_redirect_that_leads_back_to_the_server_ends_there() {
    let upstream = Upstream::start();
    let server = Setup::files(Remote::at(&upstream)).start();
    upstream.serve("/a", Answer::redirect(&format!("http://{}/api/files/a", server.addr())));
    server.get("/api/files/a").expect_error(508);
    assert_eq!(upstream.count("/a"), 1, "nothing is tried again");
}

#[test]
fn redirects_are_followed_to_their_end() {
    let (upstream, store) = (Upstream::start(), Upstream::start_on(Ipv4Addr::new(127, 0, 0, 2)));
    upstream.serve("/release", Answer::redirect("/moved"));
    upstream.serve("/moved", Answer::redirect(&format!("{}/object?signature=x", store.url())));
    store.serve("/object?signature=x", Answer::file(b"bytes").etag("\"v1\""));
    let server = Setup::files(Remote::at(&upstream)).start();
    server.get("/api/files/release").expect(200, b"bytes");
    let hit = server.get("/api/files/release");
    hit.expect(200, b"bytes");
    hit.expect_header("x-artifact-source", "cache");
    hit.expect_header("etag", "\"v1\"");
    assert_eq!((upstream.total(), store.total()), (2, 1));
}

/// Its listing is not a file that could be kept for ever, and its links are relative.
#[test]
fn a_folder_without_its_slash_leads_to_the_folder() {
    let upstream = Upstream::start();
    upstream.serve("/pub/a", Answer::redirect(&format!("{}/pub/a/", upstream.url())));
    upstream.serve("/pub/a/", Answer::file(b"<a href=b>"));
    upstream.serve("/x:%20y?q=1", Answer::redirect("/x:%20y/"));
    let server = Setup::files(Remote::at(&upstream)).start();
    for _ in 0..2 {
        let answer = server.get("/api/files/pub/a");
        answer.expect_error(301);
        answer.expect_header("location", "./a/");
    }
    assert_eq!((upstream.count("/pub/a"), upstream.count("/pub/a/")), (2, 0));
    assert_eq!(server.blob_files().len(), 0);
    server.get("/api/files/pub/a/").expect(200, b"<a href=b>");
    // Servers escape what they need to, and we a little more.
    upstream.serve("/g%2B%2B", Answer::redirect("/g++/"));
    server.get("/api/files/g%2B%2B").expect_error(301);
    let answer = server.get("/api/files/x:%20y?q=1");
    answer.expect_error(301);
    answer.expect_header("location", "./x:%20y/?q=1");
    assert_eq!(server.metric("artifactapi_fetch_failures_total{remote=\"files\"}"), 0.0);
}

#[test]
fn ten_redirects_are_followed_and_no_more() {
    let upstream = Upstream::start();
    for number in 1..=11 {
        upstream.serve(&format!("/{number}"), Answer::redirect(&format!("/{}", number - 1)));
    }
    upstream.serve("/0", Answer::file(b"bytes"));
    upstream.serve("/loop", Answer::redirect("/loop"));
    let server = Setup::files(Remote::at(&upstream)).start();
    server.get("/api/files/10").expect(200, b"bytes");
    server.get("/api/files/11").expect_error(502);
    server.get("/api/files/loop").expect_error(502);
    assert!(upstream.count("/loop") <= 11);
}

#[test]
fn a_redirect_without_or_with_a_strange_target_is_an_error() {
    let upstream = Upstream::start();
    upstream.serve("/none", Answer::status(302));
    upstream.serve("/ftp", Answer::redirect("ftp://files.example.org/a"));
    upstream.serve("/file", Answer::redirect("file:///etc/hostname"));
    upstream.serve("/nonsense", Answer::redirect("http://"));
    let server = Setup::files(Remote::at(&upstream)).start();
    for path in ["none", "ftp", "file", "nonsense"] {
        server.get(&format!("/api/files/{path}")).expect_error(502);
    }
    assert_eq!(server.blob_files().len(), 0);
}

#[test]
fn credentials_go_to_the_remotes_own_host_only() {
    let upstream = Upstream::start();
    let other = Upstream::start_on(Ipv4Addr::new(127, 0, 0, 2));
    other.serve("/object", Answer::file(b"bytes"));
    upstream.serve("/same", Answer::redirect("/target"));
    upstream.serve("/target", Answer::file(b"bytes"));
    upstream.serve("/away", Answer::redirect(&format!("{}/object", other.url())));
    let server = Setup::new()
        .remote("basic", Remote::at(&upstream).with("auth: {basic: {user: u, password: '${PW}'}}"))
        .remote("bearer", Remote::at(&upstream).with("auth: {bearer: 's3cret-token'}"))
        .remote("headers", Remote::at(&upstream).with("auth: {headers: {X-Token: 's3cret-token'}}"))
        .env("PW", "s3cret-token")
        .start();
    for (remote, name, value) in [
        ("basic", "authorization", "Basic dTpzM2NyZXQtdG9rZW4="),
        ("bearer", "authorization", "Bearer s3cret-token"),
        ("headers", "x-token", "s3cret-token"),
    ] {
        let before = upstream.total();
        server.get(&format!("/api/{remote}/same")).expect(200, b"bytes");
        server.get(&format!("/api/{remote}/away")).expect(200, b"bytes");
        for seen in &upstream.seen()[before..] {
            assert_eq!(seen.header(name), Some(value), "{remote}: {seen:?}");
        }
    }
    assert_eq!(other.total(), 3);
    for seen in other.seen() {
        assert!(!format!("{seen:?}").contains("s3cret"), "{seen:?}");
        assert_eq!(seen.header("authorization"), None);
    }
    // Neither the log nor what is shown of the configuration gives it away.
    let shown = server.get("/config").text() + &server.log().join("\n");
    assert!(!shown.contains("s3cret") && !shown.contains("dTpzM2"), "{shown}");
}

#[test]
fn what_a_client_claims_to_be_is_not_passed_on() {
    let upstream = Upstream::start();
    upstream.serve("/a", Answer::file(b"bytes"));
    let server = Setup::files(Remote::at(&upstream)).start();
    let ask = Ask::get("/api/files/a")
        .header("Authorization", "Bearer of-the-client")
        .header("Cookie", "of=the-client")
        .header("X-Forwarded-Host", "evil.example.org")
        .header("Range", "bytes=0-1");
    server.ask(&ask).expect(206, b"by");
    let fill = &upstream.seen_for("/a")[0];
    for name in ["authorization", "cookie", "x-forwarded-host", "range"] {
        assert_eq!(fill.header(name), None, "{fill:?}");
    }
}

/// A remote on a public host, which is reached through a proxy that the test runs.
fn public_remote(proxy: &Upstream) -> Remote {
    Remote::at_url("http://files.example.org/pub").with(&format!("proxy: '{}'", proxy.url()))
}

#[test]
fn a_remote_may_be_reached_through_a_proxy() {
    let proxy = Upstream::start();
    proxy.serve("/pub/a", Answer::file(b"bytes"));
    let server = Setup::files(public_remote(&proxy)).start();
    server.get("/api/files/a").expect(200, b"bytes");
    let fill = &proxy.seen_for("/pub/a")[0];
    assert_eq!(fill.header("host"), Some("files.example.org"));
}

#[test]
fn a_redirect_into_the_private_network_is_refused() {
    let (proxy, inner) = (Upstream::start(), Upstream::start());
    inner.serve("/secret", Answer::file(b"secret"));
    let port = inner.addr().port();
    let hosts = [
        format!("127.0.0.1:{port}"),
        format!("127.1.2.3:{port}"),
        format!("localhost:{port}"),
        format!("[::1]:{port}"),
        format!("[::ffff:127.0.0.1]:{port}"),
        format!("2130706433:{port}"),
        format!("0x7f.1:{port}"),
        format!("0.0.0.0:{port}"),
        "169.254.169.254".to_owned(),
        "10.0.0.1".to_owned(),
        "172.16.0.1".to_owned(),
        "192.168.1.1".to_owned(),
        "[fe80::1]".to_owned(),
        "[fd00::1]".to_owned(),
        "[::ffff:10.0.0.1]".to_owned(),
    ];
    let server = Setup::files(public_remote(&proxy)).start();
    proxy.serve("/secret", Answer::file(b"secret"));
    for (number, host) in hosts.iter().enumerate() {
        proxy.serve(&format!("/pub/{number}"), Answer::redirect(&format!("http://{host}/secret")));
        server.get(&format!("/api/files/{number}")).expect_error(502);
    }
    assert_eq!(inner.connections(), 0);
    assert_eq!(proxy.count("/secret"), 0);
}

#[test]
fn a_redirect_into_the_private_network_is_followed_where_it_is_allowed() {
    let (proxy, inner) = (Upstream::start(), Upstream::start());
    for upstream in [&proxy, &inner] {
        upstream.serve("/object", Answer::file(b"bytes"));
    }
    proxy.serve("/pub/a", Answer::redirect(&format!("{}/object", inner.url())));
    let remote = public_remote(&proxy).with("allow_private_redirects: true");
    let server = Setup::files(remote).start();
    server.get("/api/files/a").expect(200, b"bytes");
}
