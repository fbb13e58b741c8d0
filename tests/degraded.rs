//! README's table of what happens while a service is away, row by row: each service is killed,
//! and stopped so that it is there and never answers, while clients are being served.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::support::client::{Ask, Received};
use crate::support::remotes::Remote;
use crate::support::server::{Server, Setup, files_below};
use crate::support::services::{Private, Services};
use crate::support::upstream::{Answer, Upstream};
use crate::support::{eventually, noise};

/// The longest that an answer may take whose service is away, by far: README has 5 s for S3 and
/// 3 s for PostgreSQL, of which one request may meet both and meet one twice.
const WAIT_MAX: Duration = Duration::from_secs(30);
const CLIENTS: usize = 4;
/// More than what the server keeps of a file in memory.
const BYTES: usize = 100_000;
const SMALL_BYTES: usize = 1000;

/// How a service goes away, and comes back.
#[derive(Debug, Clone, Copy)]
enum Away {
    Killed,
    Stopped,
}

impl Away {
    const ALL: [Self; 2] = [Self::Killed, Self::Stopped];

    fn begin(self, private: &Private, service: &str) {
        private.tell(if matches!(self, Self::Killed) { "kill" } else { "pause" }, service);
    }

    fn end(self, private: &Private, service: &str) {
        private.tell(if matches!(self, Self::Killed) { "start" } else { "resume" }, service);
    }
}

/// The files that the upstream has: what they are called tells their bytes.
fn bytes_of(path: &str) -> Vec<u8> {
    let len = if path.contains("small") { SMALL_BYTES } else { BYTES };
    noise(path.bytes().fold(0, |seed: u64, byte| seed.wrapping_mul(31) + u64::from(byte)), len)
}

/// A path of this name that no round had before.
fn named(stem: &str, away: Away) -> String {
    format!("/{stem}-{away:?}")
}

struct Bench {
    upstream: Upstream,
    server: Server,
}

impl Bench {
    fn new(services: &Services, setup: impl FnOnce(&Upstream) -> Setup) -> Self {
        let upstream = Upstream::start();
        let server = services.under(setup(&upstream)).start();
        let bench = Self { upstream, server };
        bench.wait_healthy();
        bench
    }

    fn publish(&self, path: &str) {
        self.upstream.serve(path, Answer::file(&bytes_of(path)).etag("\"v\""));
    }

    /// Asks for a file and expects its bytes, in time.
    #[track_caller]
    fn get(&self, path: &str) -> Received {
        let began = Instant::now();
        let answer = self.server.ask(&Ask::get(&format!("/api/files{path}")));
        let took = began.elapsed();
        answer.expect(200, &bytes_of(path));
        assert!(took < WAIT_MAX, "{path} took {took:?}");
        answer
    }

    /// As [`Self::get`], and expects how `Cache-Status` begins.
    #[track_caller]
    fn get_as(&self, path: &str, status: &str) -> Received {
        let answer = self.get(path);
        let found = answer.header("cache-status").unwrap_or_default();
        assert!(found.starts_with(&format!("artifactapi; {status}")), "{path}: {found}");
        answer
    }

    /// Asks until the store has it.
    #[track_caller]
    fn wait_stored(&self, path: &str) {
        eventually(&format!("{path} is a hit"), || is_hit(&self.get(path)));
    }

    fn health(&self) -> serde_json::Value {
        self.server.ask(&Ask::get("/health")).json()
    }

    fn wait_healthy(&self) {
        eventually("everything is well", || self.health()["status"] == "ok");
    }

    fn wait_down(&self, backend: &str) {
        eventually(&format!("health misses {backend}"), || {
            let health = self.health();
            health["status"] == "degraded" && health["backends"][backend]["status"] != "ok"
        });
    }

    fn lists(&self, path: &str) -> bool {
        let answer = self.server.ask(&Ask::get("/artifacts/files"));
        answer.status() == 200 && answer.text().contains(path.trim_start_matches('/'))
    }

    /// Does something while clients ask for `path` all the time; each of their answers must be
    /// right and in time, and each client gets some before and after.
    fn under_load(&self, path: &str, work: impl FnOnce()) {
        let (is_over, served) = (AtomicBool::new(false), AtomicUsize::new(0));
        let more = || {
            let goal = served.load(Ordering::SeqCst) + CLIENTS * 2;
            eventually("clients are served", || served.load(Ordering::SeqCst) >= goal);
        };
        std::thread::scope(|scope| {
            let _end = EndWith(&is_over);
            for _ in 0..CLIENTS {
                scope.spawn(|| {
                    while !is_over.load(Ordering::SeqCst) {
                        self.get(path);
                        served.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
            more();
            work();
            more();
        });
    }
}

/// Ends the load when it is dropped, by a panic too.
struct EndWith<'a>(&'a AtomicBool);

impl Drop for EndWith<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

fn is_hit(answer: &Received) -> bool {
    answer.header("cache-status").is_some_and(|status| status.starts_with("artifactapi; hit"))
}

/// The head of an answer but for what time changes.
fn lasting_headers(answer: &Received) -> Vec<(String, String)> {
    let is_lasting = |(name, _): &&(String, String)| name != "date" && name != "age";
    answer.head.headers.iter().filter(is_lasting).cloned().collect()
}

#[test]
fn without_postgres_all_is_served_and_rows_are_written_later() {
    let private = Private::start("postgres");
    let services = Services::with_postgres(&private);
    let bench = Bench::new(&services, |upstream| Setup::files(Remote::at(upstream)));
    bench.publish("/kept");
    bench.get("/kept");
    bench.wait_stored("/kept");
    let before = lasting_headers(&bench.get("/kept"));
    for away in Away::ALL {
        let new = named("new", away);
        bench.publish(&new);
        bench.under_load("/kept", || away.begin(&private, "postgres"));
        let hit = bench.get_as("/kept", "hit");
        assert_eq!(lasting_headers(&hit), before, "{away:?}");
        bench.get_as(&new, "fwd=uri-miss");
        bench.wait_stored(&new);
        assert_eq!(bench.upstream.count(&new), 1);
        bench.server.ask(&Ask::get("/artifacts/files")).expect_error(503);
        bench.wait_down("index");
        bench.under_load("/kept", || away.end(&private, "postgres"));
        bench.wait_healthy();
        eventually("the row is written", || bench.lists(&new));
    }
    assert_eq!(bench.upstream.count("/kept"), 1);
}

fn hot_files(server: &Server) -> Vec<PathBuf> {
    let is_whole = |path: &PathBuf| path.metadata().is_ok_and(|about| about.len() == BYTES as u64);
    files_below(&server.data_dir().join("hot")).into_iter().filter(is_whole).collect()
}

#[test]
fn without_s3_the_hot_tier_serves_and_the_rest_is_passed_through() {
    let private = Private::start("seaweedfs");
    let services = Services::with_s3(&private);
    let bench = Bench::new(&services, |upstream| {
        Setup::files(Remote::at(upstream)).env("HOT_BYTES", "64Mi")
    });
    for path in ["/hot", "/cold"] {
        bench.publish(path);
        bench.server.get(&format!("/api/files{path}")).expect(200, &bytes_of(path));
    }
    eventually("the hot file is here", || {
        bench.get("/hot");
        hot_files(&bench.server).len() == 1
    });
    for away in Away::ALL {
        let new = named("new", away);
        bench.publish(&new);
        bench.under_load("/hot", || away.begin(&private, "seaweedfs"));
        bench.get_as("/hot", "hit");
        bench.under_load("/cold", || bench.wait_down("blobs"));
        bench.get_as("/cold", "fwd=bypass");
        for times in 1..=2 {
            bench.server.get(&format!("/api/files{new}")).expect(200, &bytes_of(&new));
            assert_eq!(bench.upstream.count(&new), times, "nothing was stored");
        }
        bench.under_load("/hot", || away.end(&private, "seaweedfs"));
        bench.wait_healthy();
        bench.wait_stored(&new);
        // A second use would bring it into the tier.
        if matches!(away, Away::Stopped) {
            bench.wait_stored("/cold");
        }
    }
    assert_eq!(bench.upstream.count("/hot"), 1);
}

#[test]
fn without_s3_small_files_are_served_from_memory() {
    let private = Private::start("seaweedfs");
    let services = Services::with_s3(&private);
    let bench = Bench::new(&services, |upstream| Setup::files(Remote::at(upstream)));
    for path in ["/small", "/large"] {
        bench.publish(path);
        bench.wait_stored(path);
        // The second use from the store brings a small one into memory.
        bench.get_as(path, "hit");
    }
    for away in Away::ALL {
        bench.under_load("/small", || away.begin(&private, "seaweedfs"));
        bench.get_as("/small", "hit");
        bench.under_load("/large", || bench.wait_down("blobs"));
        bench.get_as("/large", "fwd=bypass");
        bench.get_as("/small", "hit");
        bench.under_load("/small", || away.end(&private, "seaweedfs"));
        bench.wait_healthy();
        bench.wait_stored("/large");
    }
    assert_eq!(bench.upstream.count("/small"), 1);
    let metrics = bench.server.get("/metrics").text();
    let hits = metrics.lines().find_map(|line| {
        line.strip_prefix("artifactapi_tier_hits_total{tier=\"memory\"} ")?.parse::<u64>().ok()
    });
    assert!(hits.is_some_and(|hits| hits > 0), "{metrics}");
}

#[test]
fn without_redis_all_is_served_and_indexes_are_revalidated() {
    let private = Private::start("redis");
    let services = Services::with_redis(&private);
    let bench = Bench::new(&services, |upstream| {
        Setup::files(Remote::at(upstream).with("mutable_patterns: ['index']"))
    });
    for path in ["/kept", "/index"] {
        bench.publish(path);
        bench.get(path);
        bench.wait_stored(path);
    }
    for (round, away) in Away::ALL.into_iter().enumerate() {
        let logged = |part: &str| {
            let log = bench.server.log();
            log.iter().filter(|line| line.contains("Redis") && line.contains(part)).count()
        };
        let new = named("new", away);
        bench.publish(&new);
        let asked = bench.upstream.count("/index");
        bench.get_as("/index", "hit");
        assert_eq!(bench.upstream.count("/index"), asked);
        bench.under_load("/kept", || away.begin(&private, "redis"));
        bench.get_as("/index", "fwd=stale");
        assert!(bench.upstream.count("/index") > asked);
        bench.get_as("/kept", "hit");
        bench.get_as(&new, "fwd=uri-miss");
        bench.wait_stored(&new);
        assert_eq!(logged("the server does not answer"), round + 1);
        bench.under_load("/kept", || away.end(&private, "redis"));
        eventually("Redis is used again", || {
            bench.get("/kept");
            logged("the server answers again") > round
        });
        bench.wait_stored("/index");
        assert_eq!(logged("the server answers again"), round + 1);
        bench.wait_healthy();
    }
    assert_eq!(bench.upstream.count("/kept"), 1);
}

#[test]
fn with_all_away_at_the_start_it_serves_and_uses_each_when_it_comes() {
    let (postgres, redis, s3) =
        (Private::start("postgres"), Private::start("redis"), Private::start("seaweedfs"));
    let services = Services::private(&postgres, &redis, &s3);
    for away in Away::ALL {
        let all = [(&postgres, "postgres"), (&redis, "redis"), (&s3, "seaweedfs")];
        for (private, service) in all {
            away.begin(private, service);
        }
        let upstream = Upstream::start();
        let setup = Setup::files(Remote::at(&upstream)).remote("own", Remote::local());
        let server = services.under(setup).start();
        let bench = Bench { upstream, server };
        let path = named("file", away);
        bench.publish(&path);
        for times in 1..=2 {
            bench.server.get(&format!("/api/files{path}")).expect(200, &bytes_of(&path));
            assert_eq!(bench.upstream.count(&path), times, "nothing was stored");
        }
        // What may have been uploaded is not said to be absent.
        bench.server.get("/api/own/a").expect_error(503);
        for backend in ["blobs", "index", "coordination"] {
            bench.wait_down(backend);
        }
        away.end(&s3, "seaweedfs");
        // Without the index, the object tells what it is.
        bench.wait_stored(&path);
        assert_ne!(bench.health()["backends"]["index"]["status"], "ok");
        away.end(&postgres, "postgres");
        eventually("the row is written", || bench.lists(&path));
        away.end(&redis, "redis");
        bench.wait_healthy();
    }
}
