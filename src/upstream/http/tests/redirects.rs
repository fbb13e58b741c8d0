//! Redirects over loopback: what goes along, and where they may not lead.
//!
//! A base URL with a public name is had by a proxy on loopback, which ends every tunnel at
//! the test's server.

use std::io;
use std::net::SocketAddr;

use url::Url;

use super::super::HttpUpstream;
use super::super::agent::Agents;
use super::super::raw_server::RawServer;
use super::super::vetted::OnlyPrivate;
use super::{found, get, ok, origin, read_all, upstream};
use crate::artifact::{ArtifactPath, Validators};
use crate::clock::Clock;
use crate::config::{Auth, Origin, Secret};
use crate::upstream::proxy::ProxyEnv;
use crate::upstream::{Part, Upstream, UpstreamError, UpstreamRequest};

fn redirect_to(location: &str) -> String {
    format!("HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 4\r\n\r\ngone")
}

/// A server that sends on from `/a` to `location`, and says hello elsewhere.
pub(super) fn sending_to(location: impl Into<String>) -> RawServer {
    let location = location.into();
    RawServer::start(move |connection, _| {
        while let Some(head) = connection.read_head() {
            let answer =
                if head.starts_with("GET /a ") { redirect_to(&location) } else { ok("hello") };
            connection.write(answer);
        }
    })
}

#[test]
fn a_redirect_keeps_what_was_asked_and_the_connection() {
    let server = sending_to("/b?token=1");
    let upstream = upstream(&origin(&server.url("")));
    let path = ArtifactPath::from_canonical("a").unwrap();
    let unless = Validators { etag: Some("\"1\"".to_owned()), last_modified: None };
    let part = Some(Part { from: 3, to: None, of: Some("\"1\"") });
    let request = UpstreamRequest { path: &path, unless: Some(&unless), part };
    let (_, mut body) = found(upstream.get(&request));
    assert_eq!(read_all(body.as_mut()).0, b"hello");
    assert_eq!(server.accepted(), 1);
    let heads = server.heads();
    assert!(heads[1].starts_with("GET /b?token=1 HTTP/1.1\r\n"), "{heads:?}");
    for field in ["range: bytes=3-\r\n", "if-range: \"1\"\r\n", "if-none-match: \"1\"\r\n"] {
        assert!(heads[1].to_ascii_lowercase().contains(field), "{heads:?}");
    }
}

#[test]
fn credentials_stay_at_home() {
    let auths = [
        Auth::Basic { user: "u".to_owned(), password: Secret::new("s3cret") },
        Auth::Bearer(Secret::new("s3cret")),
        Auth::Headers(vec![("X-Token".to_owned(), Secret::new("s3cret"))]),
    ];
    for auth in auths {
        let is_sent = |head: &str| {
            let head = head.to_ascii_lowercase();
            head.contains("authorization:") || head.contains("x-token:")
        };
        // Same host, another port: another origin.
        let away = RawServer::always(ok("hello"));
        let home = sending_to(away.url("x"));
        let origin = Origin { auth: Some(auth), ..origin(&home.url("")) };
        let upstream = upstream(&origin);
        found(get(&upstream, "a"));
        assert!(is_sent(&home.heads()[0]));
        assert!(!is_sent(&away.heads()[0]), "{:?}", away.heads());

        // Inside of the origin they go along.
        found(get(&upstream, "b"));
        assert!(is_sent(&home.heads()[1]));
    }
}

#[test]
fn credentials_that_left_home_do_not_come_back_with_a_redirect() {
    let away = RawServer::start(|connection, _| {
        let head = connection.read_head().unwrap();
        let back = head.split_once("/to/").unwrap().1.split_once(' ').unwrap().0.to_owned();
        connection.write(redirect_to(&format!("http://{back}/elsewhere")));
    });
    let away_address = away.address();
    let home = RawServer::start(move |connection, _| {
        while let Some(head) = connection.read_head() {
            let own = connection.stream().local_addr().unwrap();
            let there = redirect_to(&format!("http://{away_address}/to/{own}"));
            connection.write(if head.starts_with("GET /a ") { there } else { ok("hello") });
        }
    });
    let auth = Some(Auth::Bearer(Secret::new("s3cret")));
    found(get(&upstream(&Origin { auth, ..origin(&home.url("")) }), "a"));
    let heads = home.heads();
    assert!(heads[0].contains("s3cret"));
    assert!(heads[1].starts_with("GET /elsewhere ") && !heads[1].contains("s3cret"), "{heads:?}");
}

#[test]
fn redirects_end_at_their_bound() {
    let server = RawServer::always(redirect_to("/a"));
    let origin = origin(&server.url(""));
    let proxies = ProxyEnv::default();
    for redirects_max in [0, 3] {
        let clock = Clock::system();
        let upstream =
            HttpUpstream::new(&origin, &origin.bases[0], redirects_max, &proxies, &clock).unwrap();
        let before = server.heads().len();
        let error = get(&upstream, "a").unwrap_err();
        assert!(matches!(error, UpstreamError::Redirect { .. }), "{error:?}");
        assert_eq!(server.heads().len() - before, redirects_max as usize + 1);
    }
}

#[test]
fn a_long_body_of_a_redirect_costs_its_connection_only() {
    let server = RawServer::start(|connection, _| {
        while let Some(head) = connection.read_head() {
            connection.write(if head.starts_with("GET /a ") {
                "HTTP/1.1 302 X\r\nLocation: /b\r\nContent-Length: 9999999\r\n\r\n".to_owned()
                    + &"x".repeat(200_000)
            } else {
                ok("hello")
            });
        }
    });
    let (_, mut body) = found(get(&upstream(&origin(&server.url(""))), "a"));
    assert_eq!(read_all(body.as_mut()).0, b"hello");
    assert_eq!(server.accepted(), 2);
}

/// An upstream whose base URL has a public name, which is reached through a proxy on
/// loopback that ends every tunnel at `target`.
fn through_proxy(proxy: &RawServer, base: &str) -> HttpUpstream {
    let proxy = Some(Url::parse(&proxy.url("")).unwrap());
    upstream(&Origin { proxy, ..origin(base) })
}

fn tunnels_to(target: SocketAddr) -> RawServer {
    RawServer::start(move |connection, _| {
        let Some(_connect) = connection.read_head() else { return };
        connection.write("HTTP/1.1 200 OK\r\n\r\n");
        let server = std::net::TcpStream::connect(target).unwrap();
        let (mut from, mut to) = (connection.stream().try_clone().unwrap(), &server);
        let up = std::thread::spawn({
            let mut to = server.try_clone().unwrap();
            move || io::copy(&mut from, &mut to)
        });
        let _ = io::copy(&mut to, &mut connection.stream());
        let _ = connection.stream().shutdown(std::net::Shutdown::Both);
        let _ = up.join();
    })
}

#[test]
fn a_proxy_is_asked_to_connect_and_may_be_private() {
    let server = RawServer::always(ok("hello"));
    let proxy = tunnels_to(server.address());
    let upstream = through_proxy(&proxy, "http://files.example.org/");
    let (_, mut body) = found(get(&upstream, "f"));
    assert_eq!(read_all(body.as_mut()).0, b"hello");
    assert!(proxy.heads()[0].starts_with("CONNECT files.example.org:80 "), "{:?}", proxy.heads());
    assert!(server.heads()[0].contains("files.example.org"));
}

#[test]
fn a_redirect_to_another_public_host_goes_through_the_proxy_as_well() {
    let server = sending_to("http://store.example.org/b?token=1");
    let proxy = tunnels_to(server.address());
    let (_, mut body) = found(get(&through_proxy(&proxy, "http://files.example.org/"), "a"));
    assert_eq!(read_all(body.as_mut()).0, b"hello");
    assert!(proxy.heads()[1].starts_with("CONNECT store.example.org:80 "), "{:?}", proxy.heads());
}

#[test]
fn the_proxy_itself_is_known() {
    let proxy = Some(Url::parse("http://u:p@proxy.example.org:3128").unwrap());
    let origin = Origin { proxy, ..origin("https://files.example.org/") };
    let agents = Agents::new(&origin, &origin.bases[0], &ProxyEnv::default(), false).unwrap();
    let check = |url: &str, is_proxy: bool| {
        assert_eq!(agents.is_proxy(&Url::parse(url).unwrap()), is_proxy, "{url}");
    };
    check("http://proxy.example.org:3128/x", true);
    check("https://PROXY.example.org:3128/x", true);
    check("http://proxy.example.org/x", false);
    check("http://files.example.org:3128/x", false);
}

#[test]
fn a_name_that_leads_inside_is_blamed_on_who_sent_us_there() {
    let upstream = upstream(&origin("http://files.example.org/"));
    let inside = ureq::Error::Other(Box::new(OnlyPrivate));
    match upstream.explain("inside.example.org", None, "files.example.org", inside) {
        UpstreamError::Redirect { host, .. } => assert_eq!(host, "files.example.org"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_redirect_from_a_public_host_does_not_lead_inside() {
    let inside = RawServer::always(ok("inside"));
    let check = |location: &str| {
        let server = sending_to(location);
        let proxy = tunnels_to(server.address());
        let upstream = through_proxy(&proxy, "http://files.example.org/");
        match get(&upstream, "a") {
            Err(UpstreamError::Redirect { host, .. }) => assert_eq!(host, "files.example.org"),
            other => panic!("{location}: {other:?}"),
        }
    };
    let port = inside.address().port();
    check(&inside.url("x"));
    check(&format!("http://localhost:{port}/x"));
    check(&format!("http://[::ffff:127.0.0.1]:{port}/x"));
    check(&format!("http://2130706433:{port}/x"));
    check("http://169.254.169.254/latest/meta-data");
    assert_eq!(inside.accepted(), 0);
}

#[test]
fn a_name_behind_a_redirect_that_resolves_inside_is_not_connected_to() {
    use ureq::config::Config;
    use ureq::unversioned::resolver::Resolver;
    use ureq::unversioned::transport::NextTimeout;

    // `localhost` is the one name that resolves on every machine, and to loopback.
    let (uri, config) = ("http://localhost:1/".parse().unwrap(), Config::builder().build());
    let refused = super::super::vetted::PublicOnly::default()
        .resolve(&uri, &config, NextTimeout::default())
        .unwrap_err();
    assert!(matches!(refused, ureq::Error::Other(why) if why.is::<super::super::OnlyPrivate>()));
    // Written as an address, a public one passes without any lookup.
    let (uri, config) = ("http://1.1.1.1:1/".parse().unwrap(), Config::builder().build());
    let public = super::super::vetted::PublicOnly::default()
        .resolve(&uri, &config, NextTimeout::default())
        .unwrap();
    assert_eq!(public.iter().collect::<Vec<_>>(), [&"1.1.1.1:1".parse().unwrap()]);
}

#[test]
fn private_redirects_are_followed_where_the_operator_allows_them() {
    let server = sending_to("http://127.0.0.1:9/x");
    let proxy = tunnels_to(server.address());
    let proxy_url = Some(Url::parse(&proxy.url("")).unwrap());
    let origin = Origin {
        proxy: proxy_url,
        allow_private_redirects: true,
        ..origin("http://files.example.org/")
    };
    let (_, mut body) = found(get(&upstream(&origin), "a"));
    assert_eq!(read_all(body.as_mut()).0, b"hello");
    assert!(proxy.heads()[1].starts_with("CONNECT 127.0.0.1:9 "), "{:?}", proxy.heads());
}
