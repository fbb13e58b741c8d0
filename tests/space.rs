//! Bounds on what is stored, held against the files on the disk.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::support::remotes::Remote;
use crate::support::server::{Server, Setup};
use crate::support::upstream::{Answer, Upstream};
use crate::support::{eventually, noise};

const KIB: usize = 1 << 10;

/// Serves `count` files of `size(number)` bytes as `/{number}`.
fn filled(upstream: &Upstream, count: usize, size: impl Fn(usize) -> usize) -> Vec<Vec<u8>> {
    let files: Vec<Vec<u8>> = (0..count).map(|at| noise(at as u64, size(at))).collect();
    for (number, bytes) in files.iter().enumerate() {
        upstream.serve(&format!("/{number}"), Answer::file(bytes));
    }
    files
}

/// Bytes of all blobs on the disk, each file once, whatever its names.
fn blob_bytes(server: &Server) -> u64 {
    // A file may go between its listing and this look at it.
    let found = server.blob_files().into_iter().filter_map(|path| path.metadata().ok());
    let by_inode: BTreeMap<u64, u64> = found.map(|file| (file.ino(), file.len())).collect();
    by_inode.values().sum()
}

fn stats(server: &Server) -> Value {
    let answer = server.get("/stats");
    answer.expect_status(200);
    answer.json()
}

fn stored(server: &Server, remote: &str) -> Vec<String> {
    let listing = server.get(&format!("/artifacts/{remote}")).json();
    let artifacts = listing["artifacts"].as_array().expect("a list of artifacts");
    artifacts.iter().map(|one| one["path"].as_str().expect("a path").to_owned()).collect()
}

/// Gets a file and waits until nothing is fetched any more.
#[track_caller]
fn get(server: &Server, target: &str, bytes: &[u8]) {
    server.get(target).expect(200, bytes);
    eventually("the fetch has landed", || server.metric("artifactapi_flights") == 0.0);
}

#[test]
fn a_full_cache_under_load_keeps_its_bound_and_answers_right() {
    const CLIENTS: usize = 6;
    const LARGEST: usize = 300 * KIB;
    let bound = 2 << 20;
    let upstream = Upstream::start();
    let files = filled(&upstream, 40, |number| KIB * (1 + number * 37 % 300));
    assert!(files.iter().map(Vec::len).sum::<usize>() > 2 * bound);
    let server = Setup::files(Remote::at(&upstream)).env("CACHE_MAX_BYTES", bound).start();
    let has_ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let (server, files) = (&server, &files);
                scope.spawn(move || {
                    for round in 0..40 {
                        let number = (client * 11 + round * (round + 3) / 2) % files.len();
                        server.get(&format!("/api/files/{number}")).expect(200, &files[number]);
                    }
                })
            })
            .collect();
        let watch = scope.spawn(|| {
            let mut peak = 0;
            while !has_ended.load(Ordering::Relaxed) {
                // A walk may see a file that goes and the one that takes its place.
                peak = peak.max(blob_bytes(&server));
            }
            peak
        });
        let ends: Vec<_> = clients.into_iter().map(|client| client.join()).collect();
        // The watch must end whatever the clients met.
        has_ended.store(true, Ordering::Relaxed);
        ends.into_iter().for_each(|end| end.expect("every answer was right"));
        let peak = watch.join().expect("the watch panics at nothing");
        assert!(peak <= (bound + CLIENTS * LARGEST) as u64, "{peak} bytes");
        assert!(peak > (bound / 2) as u64, "{peak} bytes: the cache was never full");
    });
    eventually("all fetches have landed", || server.metric("artifactapi_flights") == 0.0);
    assert!(blob_bytes(&server) <= bound as u64);
    let figures = stats(&server);
    let files = &figures["remotes"]["files"];
    assert_eq!(files["bytes"], blob_bytes(&server));
    assert!(files["evicted"].as_u64() > Some(0), "{figures}");
    assert_eq!(figures["totals"]["max_bytes"], bound);
    assert_eq!(server.metric("artifactapi_healed_total"), 0.0);
}

#[test]
fn pins_stay_and_what_was_used_lately_outlives_the_rest() {
    let upstream = Upstream::start();
    let files = filled(&upstream, 24, |_| 8 * KIB);
    let remote = Remote::at(&upstream).with("pin_patterns: ['^0$']");
    let server = Setup::files(remote).env("CACHE_MAX_BYTES", "128Ki").start();
    let fetch = |number: usize| get(&server, &format!("/api/files/{number}"), &files[number]);
    (0..16).for_each(fetch);
    assert_eq!(stored(&server, "files").len(), 16, "as much as fits");
    fetch(1);
    fetch(16);
    let kept = stored(&server, "files");
    for number in ["0", "1", "16"] {
        assert!(kept.contains(&number.to_owned()), "{number}: {kept:?}");
    }
    assert!(!kept.contains(&"2".to_owned()), "{kept:?}");
    (17..24).for_each(fetch);
    assert!(stored(&server, "files").contains(&"0".to_owned()));
    assert!(server.metric("artifactapi_evicted_total{remote=\"files\"}") >= 8.0);
}

#[test]
fn a_file_larger_than_the_bound_is_served_and_not_stored() {
    let upstream = Upstream::start();
    let bytes = noise(1, 200 * KIB);
    upstream.serve("/large", Answer::file(&bytes));
    let server = Setup::files(Remote::at(&upstream)).env("CACHE_MAX_BYTES", "100Ki").start();
    for count in [1, 2] {
        get(&server, "/api/files/large", &bytes);
        assert_eq!(upstream.count("/large"), count);
    }
    assert!(server.blob_files().is_empty());
}

#[test]
fn figures_outlast_a_restart_and_a_lower_bound_is_kept_at_once() {
    let upstream = Upstream::start();
    let files = filled(&upstream, 6, |_| 10_000);
    let mut server = Setup::files(Remote::at(&upstream)).start();
    for (number, bytes) in files.iter().enumerate() {
        get(&server, &format!("/api/files/{number}"), bytes);
    }
    (0..2).for_each(|_| get(&server, "/api/files/0", &files[0]));
    // Neither a listing nor an error is an artifact.
    server.get("/artifacts/files").expect_status(200);
    server.get("/api/files/absent").expect_error(404);
    let figures = stats(&server);
    let expected = json!({
        "type": "remote", "artifacts": 6, "bytes": 60_000, "hits": 2, "misses": 6,
        "hit_ratio": 0.25, "bytes_served": 80_000, "bytes_fetched": 60_000,
        "evicted": 0, "evicted_bytes": 0, "max_bytes": null, "keep_unused_for": null,
    });
    assert_eq!(figures["remotes"]["files"], expected);
    assert_eq!(figures["totals"]["artifacts"], 6);
    server.kill();
    server.start_again();
    let files = &stats(&server)["remotes"]["files"];
    assert_eq!((&files["artifacts"], &files["bytes"]), (&json!(6), &json!(60_000)));
    assert_eq!((&files["hits"], &files["hit_ratio"]), (&json!(0), &Value::Null));
    eventually("the gauge is set", || {
        server.metric("artifactapi_cache_bytes{remote=\"files\"}") == 60_000.0
    });
    let yaml = std::fs::read_to_string(server.config_path()).expect("the server reads it too");
    server.rewrite_config(&yaml.replace("cache:\n", "cache:\n      max_bytes: 30000\n"));
    eventually("the new bound is kept", || blob_bytes(&server) <= 30_000);
    eventually("and shown", || stats(&server)["remotes"]["files"]["max_bytes"] == 30_000);
}
