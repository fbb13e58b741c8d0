//! Local repositories: uploads that are stored whole, durable and once, or not at all.

use std::sync::Barrier;

use crate::support::client::{Ask, Connection, Received};
use crate::support::remotes::Remote;
use crate::support::server::{ADMIN_TOKEN as ADMIN, Server, Setup};
use crate::support::upstream::{Answer, Upstream};
use crate::support::{eventually, noise, sha256_hex};

fn setup(remote: Remote) -> Setup {
    Setup::new().remote("own", remote).env("ADMIN_TOKEN", ADMIN)
}

/// Both listeners: each frames bodies in its own way.
const LISTENERS: [&str; 2] = ["guarded", "tiny_http"];

fn server() -> Server {
    setup(Remote::local()).start()
}

fn put(path: &str, bytes: &[u8]) -> Ask {
    Ask::put(&format!("/api/own/{path}"), bytes).token(ADMIN)
}

fn put_chunked(path: &str, bytes: &[u8]) -> Ask {
    Ask::put_chunked(&format!("/api/own/{path}"), bytes).token(ADMIN)
}

fn delete(path: &str) -> Ask {
    Ask::delete(&format!("/api/own/{path}")).token(ADMIN)
}

fn get(server: &Server, path: &str) -> Received {
    server.get(&format!("/api/own/{path}"))
}

/// Nothing is stored under any name, and nothing is on its way.
#[track_caller]
fn assert_nothing_is_left(server: &Server) {
    eventually("staging is empty", || server.staging_files().is_empty());
    assert!(server.blob_files().is_empty(), "{:?}", server.blob_files());
    assert_eq!(server.get("/artifacts/own").json()["total_objects"], 0);
}

#[test]
fn an_upload_of_any_size_and_framing_is_served_as_it_was_sent() {
    for listener in LISTENERS {
        uploads_of_any_size_and_framing(
            &setup(Remote::local()).env("HTTP_FRONT", listener).start(),
        );
    }
}

fn uploads_of_any_size_and_framing(server: &Server) {
    for (number, len) in [0, 1, 9_999, 10_000, 10_001, 3_000_000].into_iter().enumerate() {
        let bytes = noise(number as u64, len);
        for (framing, ask) in [
            ("length", put(&format!("dir/length-{len}"), &bytes)),
            ("chunks", put_chunked(&format!("dir/chunks-{len}"), &bytes)),
        ] {
            let path = format!("dir/{framing}-{len}");
            let answer = server.ask(&ask.header("Content-Type", "application/x-of-test"));
            answer.expect_status(201);
            answer.expect_header("location", &format!("/api/own/{path}"));
            answer.expect_header("x-checksum-sha256", &sha256_hex(&bytes));
            assert_eq!(answer.json()["sha256"], sha256_hex(&bytes));
            assert_eq!(answer.json()["size"], len);
            let served = get(server, &path);
            served.expect(200, &bytes);
            served.expect_header("x-checksum-sha256", &sha256_hex(&bytes));
            served.expect_header("content-type", "application/x-of-test");
            served.expect_header("etag", answer.header("etag").expect("a validator"));
        }
    }
    assert!(server.staging_files().is_empty());
}

#[test]
fn a_name_keeps_its_content_unless_overwriting_is_allowed() {
    let server = setup(Remote::local())
        .remote("loose", Remote::local().with("allow_overwrite: true"))
        .start();
    for (remote, other_status, other_stays) in [("own", 409, false), ("loose", 201, true)] {
        let put =
            |bytes: &[u8]| server.ask(&Ask::put(&format!("/api/{remote}/a"), bytes).token(ADMIN));
        put(b"first").expect_status(201);
        put(b"first").expect_status(200);
        put(b"other").expect_status(other_status);
        let stays: &[u8] = if other_stays { b"other" } else { b"first" };
        server.get(&format!("/api/{remote}/a")).expect(200, stays);
    }
    assert!(server.staging_files().is_empty());
    assert_eq!(server.blob_files().len(), 2);
}

#[test]
fn an_upload_that_is_cut_leaves_nothing() {
    for listener in LISTENERS {
        let server = setup(Remote::local()).env("HTTP_FRONT", listener).start();
        // A connection that is reset before tiny_http looks at it takes one of that crate's
        // threads with it, and later clients are not answered: README says so.
        let ends: &[fn(Connection)] = match listener {
            "tiny_http" => &[half_close_and_wait],
            _ => &[half_close_and_wait, Connection::reset],
        };
        cut_uploads(&server, ends);
    }
}

fn cut_uploads(server: &Server, ends: &[fn(Connection)]) {
    let bytes = noise(1, 100_000);
    for ask in [put("a", &bytes), put_chunked("a", &bytes)] {
        let (head, body) = ask.wire(server.addr());
        // In the middle of a chunk's size, of its bytes, at its end, and before the last chunk.
        for cut in [0, 1, 3, 4, 5_000, 10_006, 10_008, body.len() - 5, body.len() - 1] {
            for end in ends {
                let mut connection = server.connect();
                connection.send_raw(&head);
                connection.send_raw(&body[..cut]);
                end(connection);
            }
        }
    }
    eventually("no worker is busy", || server.metric("artifactapi_busy_workers") == 0.0);
    get(server, "a").expect_error(404);
    assert_nothing_is_left(server);
    server.ask(&put("a", &bytes)).expect_status(201);
    get(server, "a").expect(200, &bytes);
}

/// Sends nothing more, and takes whatever comes as long as it is no success.
fn half_close_and_wait(connection: Connection) {
    connection.half_close();
    if let Ok(answer) = connection.incoming(false) {
        assert!(answer.head.status >= 400, "{:?}", answer.head);
    }
}

#[test]
fn a_digest_that_does_not_fit_stores_nothing() {
    let server = server();
    let right = sha256_hex(b"bytes");
    let wrong = sha256_hex(b"other");
    // The SHA-256 of "bytes" and of "other", and a SHA-512 of neither.
    let repr = "sha-256=:J3ULKzWGZ+5wRm/2K4iyRUq5ysYc2jYTLGcCWWixV2U=:";
    for (name, value, status) in [
        ("X-Checksum-Sha256", wrong.as_str(), 422),
        ("X-Checksum-Sha256", "abc", 400),
        ("Repr-Digest", repr, 422),
        ("Content-Digest", repr, 422),
        ("Repr-Digest", &format!("sha-512=:{}==:", "A".repeat(86)), 422),
        ("Repr-Digest", "sha-256=bytes", 400),
    ] {
        for ask in [put("a", b"bytes"), put_chunked("a", b"bytes")] {
            let answer = server.ask(&ask.header(name, value));
            answer.expect_error(status);
            let text = answer.text();
            assert_eq!(text.matches("expected").count(), usize::from(status == 422), "{text}");
        }
    }
    let both = put("a", b"bytes").header("X-Checksum-Sha256", right.as_str());
    server.ask(&both.clone().header("Repr-Digest", repr)).expect_error(422);
    assert_nothing_is_left(&server);
    server.ask(&both).expect_status(201);
}

/// Sends one upload for each content so that all of them end in the same moment.
fn race(server: &Server, path: &str, contents: &[Vec<u8>]) -> Vec<u16> {
    let start = Barrier::new(contents.len());
    std::thread::scope(|scope| {
        let racing: Vec<_> = contents
            .iter()
            .map(|content| {
                let (head, body) = put(path, content).wire(server.addr());
                let mut connection = server.connect();
                connection.send_raw(&head);
                let (most, last) = body.split_at(body.len() - 1);
                connection.send_raw(most);
                let (last, start) = (last.to_vec(), &start);
                scope.spawn(move || {
                    start.wait();
                    connection.send_raw(&last);
                    let answer = connection.incoming(false).expect("an answer").finish();
                    answer.status()
                })
            })
            .collect();
        racing.into_iter().map(|one| one.join().expect("it has not panicked")).collect()
    })
}

#[test]
fn of_racing_uploads_one_content_wins_whole_and_the_others_learn_it() {
    let server = server();
    for round in 0..10 {
        let path = format!("raced/{round}");
        let contents: Vec<Vec<u8>> = (0..6).map(|n| noise(round * 10 + n, 50_000)).collect();
        let statuses = race(&server, &path, &contents);
        let winners: Vec<usize> = (0..contents.len()).filter(|at| statuses[*at] == 201).collect();
        assert_eq!(winners.len(), 1, "{statuses:?}");
        assert_eq!(statuses.iter().filter(|status| **status == 409).count(), contents.len() - 1);
        get(&server, &path).expect(200, &contents[winners[0]]);
    }
    assert_eq!(server.blob_files().len(), 10);
    assert!(server.staging_files().is_empty());
}

#[test]
fn racing_uploads_of_one_content_all_succeed() {
    let server = server();
    let content = noise(1, 50_000);
    let mut statuses = race(&server, "a", &vec![content.clone(); 6]);
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 200, 200, 200, 200, 201]);
    get(&server, "a").expect(200, &content);
}

#[test]
fn while_a_name_is_overwritten_readers_get_one_content_whole() {
    let server = setup(Remote::local().with("allow_overwrite: true")).start();
    let contents: Vec<Vec<u8>> = (0..4).map(|n| noise(n, 200_000)).collect();
    server.ask(&put("a", &contents[0])).expect_status(201);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            for _ in 0..60 {
                let answer = get(&server, "a");
                answer.expect_status(200);
                let content = contents.iter().find(|content| **content == answer.body);
                assert!(content.is_some(), "a mixture of {} bytes", answer.body.len());
                answer.expect_header("x-checksum-sha256", &sha256_hex(&answer.body));
            }
        });
        let mut writes = 0;
        while !reader.is_finished() {
            server
                .ask(&put("a", &contents[writes % contents.len()]))
                .expect_status(if writes == 0 { 200 } else { 201 });
            writes += 1;
        }
    });
    let statuses = race(&server, "b", &contents);
    assert!(statuses.iter().all(|status| *status == 201), "{statuses:?}");
    let last = get(&server, "b");
    assert!(contents.contains(&last.body));
}

#[test]
fn ranges_and_validators_work_as_for_remotes() {
    let server = server();
    let bytes = noise(1, 100_000);
    server.ask(&put("a.bin", &bytes)).expect_status(201);
    let target = "/api/own/a.bin";
    let head = server.ask(&Ask::head(target));
    head.expect(200, b"");
    head.expect_header("content-length", "100000");
    head.expect_header("accept-ranges", "bytes");
    let etag = head.header("etag").expect("an ETag").to_owned();
    let modified = head.header("last-modified").expect("a date").to_owned();
    let part = server.ask(&Ask::get(target).range("10-19").header("If-Range", etag.as_str()));
    part.expect(206, &bytes[10..20]);
    part.expect_header("content-range", "bytes 10-19/100000");
    server.ask(&Ask::get(target).range("-5")).expect(206, &bytes[99_995..]);
    server.ask(&Ask::get(target).range("100000-")).expect_error(416);
    for (name, value, status) in [
        ("If-None-Match", etag.as_str(), 304),
        ("If-None-Match", "\"other\"", 200),
        ("If-Modified-Since", modified.as_str(), 304),
        ("If-Match", "\"other\"", 412),
    ] {
        server.ask(&Ask::get(target).header(name, value)).expect_status(status);
    }
}

#[test]
fn conditions_of_an_upload_hold_or_it_stores_nothing() {
    let server = setup(Remote::local().with("allow_overwrite: true")).start();
    let (earlier, later) = ("Sat, 01 Jan 2000 00:00:00 GMT", "Fri, 01 Jan 2100 00:00:00 GMT");
    let put = |name: &str, value: &str, bytes: &[u8]| {
        server.ask(&put("a", bytes).header(name, value)).status()
    };
    assert_eq!(put("If-Match", "*", b"one"), 412);
    assert_eq!(put("If-None-Match", "*", b"one"), 201);
    assert_eq!(put("If-None-Match", "*", b"one"), 412);
    let etag = get(&server, "a").header("etag").expect("an ETag").to_owned();
    assert_eq!(put("If-Match", "\"other\"", b"two"), 412);
    assert_eq!(put("If-None-Match", &etag, b"two"), 412);
    assert_eq!(put("If-Match", &etag, b"two"), 201);
    assert_eq!(put("If-Match", &etag, b"three"), 412);
    get(&server, "a").expect(200, b"two");
    // RFC 9110, section 13.1.3: only GET and HEAD look at it.
    assert_eq!(put("If-Modified-Since", later, b"four"), 201);
    assert_eq!(put("If-Unmodified-Since", earlier, b"five"), 412);
    assert_eq!(put("If-Unmodified-Since", later, b"five"), 201);

    server.ask(&delete("a").header("If-Match", etag.as_str())).expect_error(412);
    server.ask(&delete("a").header("If-Unmodified-Since", earlier)).expect_error(412);
    let unheeded = delete("a").header("If-Modified-Since", later).header("If-Match", "*");
    server.ask(&unheeded).expect_status(204);
}

#[test]
fn what_may_not_be_uploaded_is_refused_with_its_reason() {
    let upstream = Upstream::start();
    let server = setup(
        Remote::local().include(&["^dir/"]).with("max_bytes: 1000").with("exclude_patterns: [tmp]"),
    )
    .remote("cached", Remote::at(&upstream))
    .env("BODY_BYTES_MAX", 5000)
    .remote("wide", Remote::local())
    .start();
    let large = vec![b'x'; 1001];
    let larger = vec![b'x'; 5001];
    let wide = |ask: fn(&str, &[u8]) -> Ask, bytes: &[u8]| ask("/api/wide/a", bytes).token(ADMIN);
    for (ask, status) in [
        (Ask::put("/api/cached/a", b"x").token(ADMIN), 405),
        (Ask::put("/api/nowhere/a", b"x").token(ADMIN), 404),
        (put("other/a", b"x"), 403),
        (put("dir/a.tmp", b"x"), 403),
        (put("dir/", b"x"), 400),
        (put("dir/../b", b"x"), 400),
        (put("dir/a?version=1", b"x"), 400),
        (put("dir/a", b"x").header("Content-Range", "bytes 0-0/5"), 400),
        (Ask::new("PUT", "/api/own/dir/a").token(ADMIN), 411),
        (put("dir/a", &large), 413),
        (put_chunked("dir/a", &large), 413),
        (wide(Ask::put, &larger), 413),
        (wide(Ask::put_chunked, &larger), 413),
        (Ask::put("/artifacts/own", b"x").token(ADMIN), 405),
    ] {
        server.ask(&ask).expect_error(status);
    }
    assert_nothing_is_left(&server);
    assert_eq!(upstream.total(), 0);
    let log = server.log().concat();
    assert!(log.contains("status=405") && !log.contains("uploaded"), "nothing was: {log}");
    server.ask(&put("dir/a", &large[..1000])).expect_status(201);
    server.ask(&wide(Ask::put, &larger[..5000])).expect_status(201);
}

#[test]
fn a_name_that_a_lost_index_would_take_away_is_refused_before_the_body_is_sent() {
    let server = server();
    let segments = |count: usize| vec!["n".repeat(200); count].join("/");
    let answer = server.ask(&put(&segments(20), b"bytes"));
    answer.expect_error(414);
    assert!(answer.text().contains("shorter path"), "{}", answer.text());
    let typed = put(&segments(8), b"bytes").header("Content-Type", &*"t".repeat(1000));
    server.ask(&typed).expect_error(414);
    assert_nothing_is_left(&server);
    server.ask(&put(&segments(8), b"bytes")).expect_status(201);
    get(&server, &segments(8)).expect(200, b"bytes");
}

#[test]
fn a_local_repository_without_patterns_takes_every_path() {
    let server = setup(Remote::local().include(&[])).start();
    server.ask(&put("any/path.bin", b"bytes")).expect_status(201);
    get(&server, "any/path.bin").expect(200, b"bytes");
}

#[test]
fn a_client_that_waits_is_told_to_continue_only_if_its_body_is_wanted() {
    for listener in LISTENERS {
        let setup = setup(Remote::local().with("max_bytes: 1000"));
        uploads_that_wait(&setup.env("HTTP_FRONT", listener).start());
    }
}

fn uploads_that_wait(server: &Server) {
    let begin = |ask: Ask| {
        let (head, body) = ask.header("Expect", "100-continue").wire(server.addr());
        let mut connection = server.connect();
        connection.send_raw(&head);
        (connection, body)
    };
    let (mut wanted, body) = begin(put("a", b"bytes"));
    assert_eq!(wanted.is_told_to_continue(), Ok(true));
    wanted.send_raw(&body);
    wanted.incoming(false).expect("an answer").finish().expect_status(201);
    for (ask, status) in [
        (put("b", &[b'x'; 1001]), 413),
        (Ask::put("/api/own/b", &[b'x'; 900]), 401),
        (Ask::put("/api/own/b", &[b'x'; 1_000_000]), 401),
        (put("a", b"other").header("If-None-Match", "*"), 412),
    ] {
        let (mut refused, _) = begin(ask);
        assert_eq!(refused.is_told_to_continue(), Ok(false), "{status}");
        refused.incoming(false).expect("an answer").finish().expect_error(status);
    }
}

#[test]
fn a_deleted_name_is_free_again() {
    let server = server();
    server.ask(&delete("a")).expect_error(404);
    server.ask(&put("a", b"first")).expect_status(201);
    server.ask(&delete("a")).expect_status(204);
    get(&server, "a").expect_error(404);
    assert_nothing_is_left(&server);
    server.ask(&delete("a")).expect_error(404);
    server.ask(&put("a", b"second")).expect_status(201);
    get(&server, "a").expect(200, b"second");
}

#[test]
fn what_was_answered_outlives_a_kill_and_a_restart() {
    let mut server = server();
    let contents: Vec<Vec<u8>> = (0..5).map(|n| noise(n, 30_000 + n as usize)).collect();
    for (number, content) in contents.iter().enumerate() {
        server.ask(&put(&number.to_string(), content)).expect_status(201);
        server.kill();
        server.start_again();
        for (number, content) in contents[..=number].iter().enumerate() {
            get(&server, &number.to_string()).expect(200, content);
        }
    }
    server.ask(&delete("0")).expect_status(204);
    server.kill();
    server.start_again();
    get(&server, "0").expect_error(404);
    server.ask(&put("1", &contents[0])).expect_error(409);
    server.ask(&put("1", &contents[1])).expect_status(200);
}

#[test]
fn a_small_upload_in_chunks_needs_little_room() {
    let server = setup(Remote::local()).env("STAGING_BYTES_MAX", "1Mi").start();
    server.ask(&put_chunked("a", b"small")).expect_status(201);
    let large = server.ask(&put_chunked("b", &noise(1, 1_100_000)));
    large.expect_error(507);
    assert!(large.text().contains("STAGING_BYTES_MAX"), "{}", large.text());
    let failed = "artifactapi_requests_total{remote=\"own\",outcome=\"failed\"}";
    eventually("it is no refusal", || server.metric(failed) == 1.0);
}

#[test]
fn bytes_that_were_altered_by_hand_are_not_served_and_neither_they_nor_lost_ones_are_a_404() {
    let server = server();
    server.ask(&put("a", b"first")).expect_status(201);
    let [file] = &server.blob_files()[..] else { panic!("one blob") };
    let check = |words: &str| {
        let answer = get(&server, "a");
        answer.expect_error(500);
        assert!(answer.text().contains(words), "{}", answer.text());
        assert_eq!(answer.header("retry-after"), None);
        server.wait_logged(&["ERROR", words, "own/a", "artifactapi verify"]);
        let brought_back = server.ask(&put("a", b"first"));
        assert!(matches!(brought_back.status(), 200 | 201), "{brought_back:?}");
        get(&server, "a").expect(200, b"first");
    };
    std::fs::write(file, b"by hand").expect("the test may write there");
    server.ask(&put("a", b"by hand")).expect_error(409);
    check("not those that were uploaded");
    std::fs::remove_file(file).expect("the test may remove it");
    check("missing");
    std::fs::write(file, b"by hand").expect("the test may write there");
    server.ask(&delete("a")).expect_status(204);
    get(&server, "a").expect_error(404);
}

#[test]
fn an_older_index_and_a_name_that_is_missing_from_the_configuration_lose_no_upload() {
    let upstream = Upstream::start();
    upstream.serve("/known", Answer::file(b"known"));
    upstream.serve("/orphan", Answer::file(b"orphan"));
    let mut server = setup(Remote::local())
        .remote("files", Remote::at(&upstream))
        .env("SWEEP_INTERVAL_S", 1)
        .env("ORPHAN_AGE_S", 1)
        .start();
    server.get("/api/files/known").expect(200, b"known");
    stop(&mut server);
    let file = |server: &Server, name: &str| server.data_dir().join(format!("index.sqlite{name}"));
    let older = ["", "-wal", "-shm"].map(|name| (name, std::fs::read(file(&server, name)).ok()));
    server.start_again();
    server.get("/api/files/orphan").expect(200, b"orphan");
    server.ask(&put("a", b"kept")).expect_status(201);
    stop(&mut server);
    for (name, bytes) in older {
        match bytes {
            Some(bytes) => std::fs::write(file(&server, name), bytes).expect("it can be restored"),
            None => drop(std::fs::remove_file(file(&server, name))),
        }
    }
    let yaml = std::fs::read_to_string(server.config_path()).expect("the server reads it too");
    server.rewrite_config(&yaml.replace("own:", "renamed:"));
    server.start_again();
    server.wait_logged(&["WARN", "blobs without a row stay", "reindex"]);
    // What upstream has goes, and what nobody else has stays.
    let names = || -> Vec<_> {
        let mut names: Vec<_> = server
            .blob_files()
            .iter()
            .filter_map(|file| Some(file.file_name()?.to_str()?.to_owned()))
            .collect();
        names.sort_unstable();
        names
    };
    eventually("the orphan is swept", || names() == ["a", "known"]);
    server.rewrite_config(&yaml);
    stop(&mut server);
    assert!(server.command(&["reindex"]).status.success());
    server.start_again();
    get(&server, "a").expect(200, b"kept");
}

fn stop(server: &mut Server) {
    server.signal(rustix::process::Signal::TERM);
    assert!(server.wait_exit().success());
}
