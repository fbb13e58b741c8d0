//! Who may do what: every route with every kind of credential, and what becomes of tokens.

use std::process::Command;

use rustix::process::Signal;

use crate::support::client::{Ask, Received};
use crate::support::remotes::Remote;
use crate::support::server::{PROGRAM, Server, Setup};
use crate::support::sha256_hex;
use crate::support::upstream::{Answer, Upstream};

const READ: &str = "token-that-reads";
const WRITE: &str = "token-that-writes";
const ADMIN: &str = "token-of-an-admin";
const OTHER: &str = "token-of-another-remote";
const WRONG: &str = "token-of-nobody";

fn tokens_file() -> String {
    let line = |token: &str, name: &str, rest: &str| {
        format!("{name} {} {rest}\n", sha256_hex(token.as_bytes()))
    };
    [
        "# of a test\n".to_owned(),
        line(READ, "reader", "read"),
        line(WRITE, "writer", "write"),
        line(ADMIN, "operator", "admin"),
        line(OTHER, "stranger", "admin elsewhere"),
    ]
    .concat()
}

fn setup(upstream: &Upstream) -> Setup {
    upstream.serve("/a", Answer::file(b"bytes"));
    Setup::files(Remote::at(upstream))
        .remote("own", Remote::local())
        .remote("elsewhere", Remote::local())
        .file("tokens", &tokens_file())
        .env("TOKENS_FILE", "tokens")
        .env("CONFIG_POLL_S", "0.1")
}

/// Nobody; nobody's token; the reader's; the writer's; the admin's; another remote's.
const CALLERS: [Option<&str>; 6] =
    [None, Some(WRONG), Some(READ), Some(WRITE), Some(ADMIN), Some(OTHER)];

/// Method, target, and the statuses for [`CALLERS`] with anonymous reads and without.
type Line = (&'static str, &'static str, [u16; 6], [u16; 6]);

const OPEN: [u16; 6] = [200; 6];
/// A file of a local repository.
const OWN: &str = "/api/own/kept";
const READS: [u16; 6] = [401, 401, 200, 403, 200, 403];

#[rustfmt::skip]
const MATRIX: &[Line] = &[
    ("GET",    "/health",                     OPEN,                           OPEN),
    ("GET",    "/",                           OPEN,                           READS),
    ("GET",    "/metrics",                    OPEN,                           READS),
    ("GET",    "/config",                     OPEN,                           READS),
    ("GET",    "/stats",                      OPEN,                           READS),
    ("GET",    "/artifacts/files",            OPEN,                           READS),
    ("GET",    "/artifacts/own",              OPEN,                           READS),
    ("GET",    "/artifacts/elsewhere",        OPEN,                           [401, 401, 200, 403, 200, 200]),
    ("GET",    "/artifacts/nowhere",          [404; 6],                       [401, 401, 404, 403, 404, 403]),
    ("GET",    "/api/files/a",                OPEN,                           READS),
    ("HEAD",   "/api/files/a",                OPEN,                           READS),
    ("GET",    OWN,                           OPEN,                           READS),
    ("GET",    "/api/nowhere/a",              [404; 6],                       [401, 401, 404, 403, 404, 403]),
    ("GET",    "/unknown",                    [404; 6],                       [401, 401, 404, 403, 404, 403]),
    ("PUT",    "/api/own/kept",               [401, 401, 403, 200, 200, 403], [401, 401, 403, 200, 200, 403]),
    ("PUT",    "/api/elsewhere/kept",         [401, 401, 403, 201, 200, 200], [401, 401, 403, 201, 200, 200]),
    ("PUT",    "/api/files/a",                [401, 401, 403, 405, 405, 403], [401, 401, 403, 405, 405, 403]),
    ("DELETE", "/api/own/absent",             [401, 401, 403, 404, 404, 403], [401, 401, 403, 404, 404, 403]),
    ("DELETE", "/api/files/absent",           [401, 401, 403, 404, 404, 403], [401, 401, 403, 404, 404, 403]),
    ("DELETE", "/artifacts/files?prefix=b",   [401, 401, 403, 200, 200, 403], [401, 401, 403, 200, 200, 403]),
    ("DELETE", "/artifacts/own?prefix=b",     [401, 401, 403, 403, 200, 403], [401, 401, 403, 403, 200, 403]),
    ("DELETE", "/artifacts/nowhere?prefix=b", [401, 401, 403, 404, 404, 403], [401, 401, 403, 404, 404, 403]),
    ("POST",   "/cache-artifact",             [400; 6],                       [401, 401, 400, 403, 400, 403]),
    ("GET",    "/jobs",                       OPEN,                           READS),
    ("GET",    "/jobs/0123456789abcdef",      [404; 6],                       [401, 401, 404, 403, 404, 403]),
    ("DELETE", "/jobs/0123456789abcdef",      [401, 401, 403, 404, 404, 403], [401, 401, 403, 404, 404, 403]),
    ("POST",   "/api/own/kept",               [405; 6],                       [405; 6]),
    ("DELETE", "/config",                     [405; 6],                       [405; 6]),
];

fn ask(method: &str, target: &str) -> Ask {
    if method == "PUT" { Ask::put(target, b"kept") } else { Ask::new(method, target) }
}

fn expect_challenge(answer: &Received) {
    let challenge = answer.header("www-authenticate").expect("a challenge");
    assert!(challenge.contains("Basic ") && challenge.contains("Bearer "), "{challenge}");
}

#[test]
fn every_route_lets_in_exactly_whom_it_should() {
    let upstream = Upstream::start();
    for anonymous in [true, false] {
        // One address fails often here, which is another test's matter.
        for (at, caller) in CALLERS.iter().enumerate() {
            let server = setup(&upstream).env("ANONYMOUS_READ", anonymous).start();
            server.ask(&Ask::put("/api/own/kept", b"kept").token(ADMIN)).expect_status(201);
            for (number, (method, target, open, closed)) in MATRIX.iter().enumerate() {
                if *target == "/api/elsewhere/kept" && at > 3 {
                    server.ask(&Ask::put(target, b"kept").token(ADMIN)).expect_status(201);
                }
                let expected = if anonymous { open[at] } else { closed[at] };
                let mut ask = ask(method, target);
                if let Some(token) = caller {
                    ask = ask.token(token);
                }
                let answer = server.ask(&ask);
                let found = answer.status();
                // Guesses are bounded; that they are refused is what counts here.
                let is_refused_guess = found == 429 && expected == 401 && number > 5;
                assert!(
                    found == expected || is_refused_guess,
                    "{method} {target} by {caller:?}, anonymous reads {anonymous}: {found} instead of {expected}"
                );
                if found == 401 {
                    expect_challenge(&answer);
                }
                if found < 300 {
                    // Only artifacts may be kept; by shared caches, where everybody may read.
                    let expected = match (*method, target.starts_with("/api/"), anonymous) {
                        // What may change under its name is asked about each time.
                        ("GET" | "HEAD", true, true) if *target == OWN => Some("no-cache"),
                        ("GET" | "HEAD", true, false) if *target == OWN => {
                            Some("no-cache, private")
                        }
                        ("GET" | "HEAD", true, true) => None,
                        ("GET" | "HEAD", true, false) => Some("private"),
                        _ => Some("no-store"),
                    };
                    assert_eq!(answer.header("cache-control"), expected, "{method} {target}");
                }
            }
        }
    }
}

#[test]
fn without_tokens_reads_are_open_and_changes_say_how_to_allow_them() {
    let upstream = Upstream::start();
    upstream.serve("/a", Answer::file(b"bytes"));
    let server = Setup::files(Remote::at(&upstream)).remote("own", Remote::local()).start();
    server.get("/api/files/a").expect(200, b"bytes");
    for ask in [
        Ask::put("/api/own/a", b"x"),
        Ask::put("/api/own/a", b"x").token(WRITE),
        Ask::delete("/api/own/a"),
        Ask::delete("/api/files/a"),
        Ask::delete("/artifacts/files?all=true"),
    ] {
        let answer = server.ask(&ask);
        answer.expect_error(403);
        let text = answer.text();
        assert!(text.contains("TOKENS_FILE") && text.contains("artifactapi token"), "{text}");
    }
    server.get("/api/files/a").expect_header("x-artifact-source", "cache");
    // Who may begin a batch may end it.
    server.ask(&Ask::delete("/jobs/0123456789abcdef")).expect_error(404);
}

#[test]
fn a_token_for_a_remote_that_is_not_there_is_warned_of() {
    let upstream = Upstream::start();
    let line = format!("ci {} read own,owm\n", sha256_hex(b"any"));
    let server = setup(&upstream).file("tokens", &line).start();
    server.wait_logged(&["WARN", "token=\"ci\"", "remote=owm", "TOKENS_FILE"]);
}

#[test]
fn a_token_may_come_as_the_password_of_basic_authentication() {
    let upstream = Upstream::start();
    let server = setup(&upstream).env("ANONYMOUS_READ", "false").start();
    // anybody:token-that-reads
    let basic = "Basic YW55Ym9keTp0b2tlbi10aGF0LXJlYWRz";
    server.ask(&Ask::get("/api/files/a").header("Authorization", basic)).expect(200, b"bytes");
    server.ask(&Ask::get("/api/files/a").header("Authorization", "Basic x")).expect_error(401);
}

#[test]
fn a_clients_authorization_never_reaches_the_upstream() {
    let upstream = Upstream::start();
    upstream.serve("/b", Answer::file(b"bytes"));
    for anonymous in [true, false] {
        let server = setup(&upstream).env("ANONYMOUS_READ", anonymous).start();
        for target in ["/api/files/a", "/api/files/b", "/api/files/absent"] {
            server.ask(&Ask::get(target).token(READ).header("Proxy-Authorization", "Basic eDp5"));
            server.ask(&Ask::get(target).token(READ).range("0-1"));
        }
    }
    assert!(upstream.total() >= 6);
    for seen in upstream.seen() {
        for name in ["authorization", "proxy-authorization"] {
            assert_eq!(seen.header(name), None, "{seen:?}");
        }
    }
}

fn may_write(server: &Server, token: &str) -> bool {
    server.ask(&Ask::put("/api/own/a", b"x").token(token)).status() < 300
}

#[test]
fn a_changed_tokens_file_comes_into_force_and_a_broken_one_does_not() {
    let upstream = Upstream::start();
    for by_signal in [true, false] {
        let poll = if by_signal { "0" } else { "0.1" };
        let server = setup(&upstream).env("CONFIG_POLL_S", poll).start();
        assert!(may_write(&server, WRITE));
        let rewrite = |text: &str| {
            server.rewrite("tokens", text);
            if by_signal {
                server.signal(Signal::HUP);
            }
        };
        rewrite("writer not-a-digest write\n");
        server.wait_logged(&["ERROR", "tokens:1", "writer"]);
        assert!(may_write(&server, WRITE));
        assert!(!server.log().concat().contains("not-a-digest"));
        rewrite(&format!("next {} write\n", sha256_hex(b"the-next-token")));
        // Not found out by guessing, which is bounded.
        server.wait_logged(&["the tokens were reloaded"]);
        assert!(may_write(&server, "the-next-token"));
        assert!(!may_write(&server, WRITE));
    }
}

#[test]
fn a_broken_tokens_file_or_admin_token_keeps_the_server_from_starting() {
    let upstream = Upstream::start();
    for (setup, sign) in [
        (setup(&upstream).file("tokens", "writer x write\n"), "tokens:1: writer"),
        (setup(&upstream).env("TOKENS_FILE", "nowhere"), "nowhere"),
        (setup(&upstream).env("ADMIN_TOKEN", "short-secret"), "ADMIN_TOKEN: *** is shorter"),
    ] {
        let log = setup.try_start().expect_err("it must not start").concat();
        assert!(log.contains(sign), "no {sign} in {log}");
        assert!(!log.contains("short-secret"), "{log}");
    }
}

#[test]
fn guessing_is_bounded_and_logged_without_the_guess() {
    let upstream = Upstream::start();
    let server = setup(&upstream).start();
    assert!(may_write(&server, WRITE));
    let statuses: Vec<u16> = (0..15)
        .map(|n| server.ask(&Ask::delete("/api/own/a").token(&format!("guess-{n}"))).status())
        .collect();
    assert_eq!(statuses[..10], [401; 10]);
    assert_eq!(statuses[10..], [429; 5]);
    let limited = server.ask(&Ask::delete("/api/own/a").token("guess"));
    limited.expect_error(429);
    assert!(limited.header("retry-after").is_some());
    // The one that was right before still is; another right one has to wait.
    assert!(may_write(&server, WRITE));
    server.ask(&Ask::delete("/api/own/a").token(ADMIN)).expect_error(429);
    server.get("/api/files/a").expect(200, b"bytes");
    let log = server.log().concat();
    assert!(log.contains("a credential was refused"), "{log}");
    for secret in ["guess-", WRITE, ADMIN] {
        assert!(!log.contains(secret), "{secret} in {log}");
    }
    assert!(log.contains("writer"), "who changed something is named: {log}");
}

#[test]
fn the_log_says_whose_token_downloaded_what_and_with_which_program() {
    let upstream = Upstream::start();
    let server = setup(&upstream).env("ANONYMOUS_READ", false).start();
    let agent = "curl/8.5.0 (\u{e9})";
    let ask = |path: &str| Ask::get(path).header("User-Agent", agent);
    server.ask(&ask("/api/files/a").token(READ)).expect(200, b"bytes");
    server.wait_logged(&["access", "/api/files/a", "token=\"reader\"", "agent=\"curl/8.5.0 (?"]);
    server.ask(&ask("/api/files/denied")).expect_error(401);
    server.wait_logged(&["access", "/api/files/denied", "denied", "agent=\"curl"]);
    let log = server.log();
    let denied = log.iter().find(|line| line.contains("/api/files/denied"));
    assert!(denied.is_some_and(|line| !line.contains("token=")), "{denied:?}");
}

#[test]
fn what_was_changed_is_logged_at_every_level_and_nothing_else_below_it() {
    let upstream = Upstream::start();
    let server = setup(&upstream).env("LOG_LEVEL", "error").start_silent();
    for (ask, words) in [
        (Ask::put("/api/own/b", b"bytes").token(WRITE), ["uploaded", "own", "token=\"writer\""]),
        (Ask::delete("/api/own/b").token(WRITE), ["removed", "own", "token=\"writer\""]),
        (Ask::delete("/artifacts/own?all=true").token(ADMIN), ["purged", "own", "operator"]),
    ] {
        assert!(server.ask(&ask).status() < 300, "{ask:?}");
        server.wait_logged(&words);
    }
    server.get("/api/files/a").expect(200, b"bytes");
    let log = server.log();
    assert!(log.iter().all(|line| line.contains(" change: ")), "{log:#?}");
}

#[test]
fn a_made_token_opens_what_it_was_made_for() {
    let output = Command::new(PROGRAM)
        .env_clear()
        // Nothing of the server's settings is needed, right or wrong.
        .env("WORKERS", "nonsense")
        .args(["token", "ci", "--scope", "read", "--scope", "write", "--remote", "own"])
        .output()
        .expect("the program can be started");
    assert!(output.status.success(), "{output:?}");
    // As it is appended to the file: one line, without the token.
    let file = String::from_utf8(output.stdout).expect("it is text");
    let shown = String::from_utf8(output.stderr).expect("it is text");
    let token = shown.lines().find(|line| line.starts_with("artifactapi_")).expect("a token");
    assert!(file.starts_with("ci ") && file.ends_with("own\n"), "{file}");
    assert!(file.lines().count() == 1 && !file.contains(token), "{file}");
    let upstream = Upstream::start();
    let server = setup(&upstream).env("ANONYMOUS_READ", "false").file("tokens", &file).start();
    assert!(may_write(&server, token));
    server.ask(&Ask::get("/api/own/a").token(token)).expect(200, b"x");
    server.ask(&Ask::get("/api/files/a").token(token)).expect_error(403);
    // A command that lacks one, or has one that does not open this, is told where it belongs.
    for presented in ["", token] {
        let warm = Command::new(PROGRAM)
            .env_clear()
            .env("LISTEN_ADDR", server.addr().to_string())
            .env("ARTIFACTAPI_TOKEN", presented)
            .args(["warm", "files"])
            .output()
            .expect("the program can be started");
        let told = String::from_utf8_lossy(&warm.stderr);
        assert!(!warm.status.success() && told.contains("; set ARTIFACTAPI_TOKEN"), "{told}");
    }
}
