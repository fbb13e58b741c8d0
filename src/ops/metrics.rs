//! Metrics in the Prometheus text format.
//!
//! Each metric is named once, in the table that shows it: a scrape builds its registry from what
//! is counted and what is measured at that moment, and throws it away.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, LabelSetEncoder, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry, Unit};

use super::{Answered, process, stats};
use crate::artifact::RemoteName;
use crate::blob::Tiers;
use crate::cache::Cache;
use crate::cache::counters::Counters;
use crate::index::Usage;
use crate::staging::Disk;

/// Bounds of waits for a reply in seconds: a hit, and a fetch that ran into its timeout.
const WAITS: [f64; 10] = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 60.0];

/// Counters of requests.
type Ended = Family<Ending, Counter>;
/// Gauges by one label, whose values are bounded.
type By = Family<[(&'static str, String); 1], Gauge>;

/// The metrics of the program.
#[derive(Debug)]
pub struct Metrics {
    cache: Counters,
    tiers: Tiers,
    requests: Ended,
    bytes: Ended,
    reply_start: Family<How, Histogram, fn() -> Histogram>,
    refusals: Family<[(&'static str, String); 1], Counter>,
    config_refused: By,
    started: Option<f64>,
}

/// How a request ended, and whose it was: labels.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Ending {
    // The name of a configured remote, or empty: clients could make up any number.
    remote: String,
    how: How,
}

/// How a request ended: a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct How(Answered);

impl EncodeLabelSet for Ending {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        [("remote", self.remote.as_str())].encode(encoder)?;
        self.how.encode(encoder)
    }
}

impl EncodeLabelSet for How {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        [("outcome", self.0.as_str())].encode(encoder)
    }
}

/// What is measured at the moment of asking.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Now {
    /// Fetches in the air.
    pub flights: usize,
    /// Fetches that wait for a thread.
    pub fetches_queued: usize,
    /// Workers.
    pub workers: usize,
    /// Workers that are serving.
    pub busy_workers: usize,
    /// Requests that wait for a worker.
    pub queued: usize,
    /// Requests that wait for upstream without a worker.
    pub waiting: usize,
    /// Connections of clients, where they are counted.
    pub connections: Option<usize>,
    /// The most there may be of those.
    pub connections_max: Option<usize>,
    /// Bytes reserved in staging.
    pub staging_bytes: u64,
    /// The most there may be of those.
    pub staging_bytes_max: u64,
    /// The file system of the data folder.
    pub disk: Option<Disk>,
    /// What is stored of each remote that has something stored.
    pub usage: BTreeMap<RemoteName, Usage>,
    /// The most bytes that a remote may have stored, of those that have a bound of their own.
    pub usage_max: BTreeMap<RemoteName, u64>,
    /// Bytes that count for the bound of all remotes together.
    pub bounded_bytes: u64,
    /// That bound.
    pub bounded_bytes_max: Option<u64>,
    /// Base URLs that keep failing, of each remote that has an upstream.
    pub failing: BTreeMap<RemoteName, usize>,
    /// The backends that were asked already, and whether each answers.
    pub answering: Vec<(&'static str, bool)>,
}

impl Now {
    /// What is measured of a cache.
    pub fn of(cache: &Cache) -> Self {
        let staging = &cache.ports().staging;
        let (usage, plan) = (cache.space().usage(), cache.space().plan());
        let own_bounds = plan
            .remotes
            .by_name
            .values()
            .filter_map(|remote| Some((remote.name.clone(), remote.keeping.max_bytes?)));
        Self {
            flights: cache.flight_count(),
            fetches_queued: cache.fetches_queued(),
            staging_bytes: staging.reserved_bytes(),
            staging_bytes_max: staging.bytes_max(),
            disk: staging.disk(),
            usage_max: own_bounds.collect(),
            bounded_bytes: stats::bounded(&plan, &usage),
            bounded_bytes_max: plan.bytes_max,
            usage,
            ..Self::default()
        }
    }
}

impl Metrics {
    /// Shows the cache's counters and those of tiers before the store, beside those of the front.
    pub fn new(cache: &Counters, tiers: &Tiers) -> Self {
        Self {
            cache: cache.clone(),
            tiers: tiers.clone(),
            requests: Family::default(),
            bytes: Family::default(),
            reply_start: Family::new_with_constructor(|| Histogram::new(WAITS)),
            refusals: Family::default(),
            config_refused: By::default(),
            started: process::started(),
        }
    }

    /// Counts a request; `remote` is the name of a configured remote, or empty. Its reply began
    /// after it had `waited` so long.
    pub fn count(&self, remote: &str, answered: Answered, body_bytes: u64, waited: Duration) {
        let ending = ending(remote, answered);
        self.requests.get_or_create(&ending).inc();
        self.bytes.get_or_create(&ending).inc_by(body_bytes);
        self.reply_start.get_or_create(&ending.how).observe(waited.as_secs_f64());
    }

    /// Counts an answer that the listener gave by itself; its statuses are a fixed few.
    pub fn count_refusal(&self, status: u16) {
        self.refusals.get_or_create(&[("status", status.to_string())]).inc();
    }

    /// How many requests of a remote ended like this since the start.
    pub fn requests(&self, remote: &str, answered: Answered) -> u64 {
        self.requests.get(&ending(remote, answered)).map_or(0, |counter| counter.get())
    }

    /// How many bytes of a remote's artifacts were sent to clients since the start; not those of
    /// listings, reports and errors.
    pub fn served_bytes(&self, remote: &str) -> u64 {
        let sent = Answered::served().filter_map(|answered| {
            self.bytes.get(&ending(remote, answered)).map(|counter| counter.get())
        });
        sent.sum()
    }

    /// Says whether the newest version of a configuration file could be used.
    pub fn set_config_refused(&self, file: &'static str, is_refused: bool) {
        set(&self.config_refused, "file", file, u64::from(is_refused));
    }

    /// The text for a scrape.
    pub fn render(&self, now: &Now) -> String {
        let mut registry = Registry::with_prefix("artifactapi");
        self.show_traffic(&mut registry);
        self.show_cache(&mut registry, now);
        self.show_tiers(&mut registry);
        show_load(&mut registry, now);
        show_space(&mut registry, now);
        registry.register(
            "build",
            "1, by version",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        // All programs have the same names for these, without a prefix.
        let mut of_process = Registry::default();
        process::show(&mut of_process, self.started);
        let mut text = String::new();
        text::encode_registry(&mut text, &registry)
            .and_then(|()| text::encode(&mut text, &of_process))
            .expect("writing to a String does not fail");
        text
    }

    fn show_traffic(&self, to: &mut Registry) {
        let c = &self.cache;
        show(to, [("requests", "Requests by remote and outcome", &self.requests)]);
        let sent = "Bytes of bodies sent to clients, by remote and outcome";
        show_in(to, Unit::Bytes, [("sent", sent, &self.bytes)]);
        let start =
            "Times from a worker's taking a request to the beginning of its reply, by outcome";
        show_in(to, Unit::Seconds, [("reply_start", start, &self.reply_start)]);
        let refusals = "Answers of the listener itself to what never became a request, by status";
        show(to, [("refusals", refusals, &self.refusals)]);
        show(
            to,
            [
                ("fetches", "Fetches that asked upstream, by remote", &c.fetches),
                ("fetch_failures", "Fetches that failed, by remote", &c.fetch_failures),
            ],
        );
        let fetched = "Bytes that came from upstream, by remote";
        show_in(to, Unit::Bytes, [("fetched", fetched, &c.fetched_bytes)]);
        let head = "Waits for the head of upstream's answer, tries again and redirects included, by remote";
        show_in(to, Unit::Seconds, [("upstream_head", head, &c.upstream_head.0)]);
    }

    fn show_cache(&self, to: &mut Registry, now: &Now) {
        let c = &self.cache;
        show(
            to,
            [
                ("evicted", "Artifacts taken out to keep a bound, by remote", &c.evicted),
                ("without_room", "Whole bodies that found no room, by remote", &c.without_room),
            ],
        );
        let evicted = "Bytes of artifacts taken out to keep a bound, by remote";
        show_in(to, Unit::Bytes, [("evicted", evicted, &c.evicted_bytes)]);
        let stored = |figure: fn(&Usage) -> u64| {
            by("remote", now.usage.iter().map(|(remote, usage)| (remote.as_str(), figure(usage))))
        };
        let failing = now.failing.iter().map(|(remote, count)| (remote.as_str(), wide(*count)));
        let up = now.answering.iter().map(|(backend, answers)| (*backend, u64::from(*answers)));
        show(
            to,
            [
                (
                    "cache_bytes",
                    "Bytes of stored artifacts, by remote",
                    &stored(|usage| usage.bytes),
                ),
                (
                    "cache_bytes_max",
                    "The most bytes of stored artifacts, by remote that has cache.max_bytes",
                    &by(
                        "remote",
                        now.usage_max.iter().map(|(remote, max)| (remote.as_str(), *max)),
                    ),
                ),
                (
                    "cache_artifacts",
                    "Stored artifacts, by remote",
                    &stored(|usage| usage.artifacts),
                ),
                (
                    "upstreams_failing",
                    "Base URLs that keep failing and are asked only now and then, by remote",
                    &by("remote", failing),
                ),
                ("backend_up", "1 if it answers, as in /health, by backend", &by("backend", up)),
                (
                    "config_refused",
                    "1 if the newest version of the file cannot be used, and the one before is in force",
                    &self.config_refused,
                ),
            ],
        );
        show(
            to,
            [
                ("fetches_resumed", "Cut bodies that went on with a Range request", &c.resumed),
                ("unstored", "Whole bodies that were not stored", &c.unstored),
                ("healed", "Entries forgotten because their blob was gone", &c.healed),
                ("index_errors", "Questions the index did not answer", &c.index_errors),
                ("blob_errors", "Questions the store did not answer", &c.blob_errors),
                ("orphans_removed", "Blobs without a row that a sweep removed", &c.orphans_removed),
                ("uses_dropped", "Uses that were not recorded", &c.uses_dropped),
            ],
        );
    }

    fn show_tiers(&self, to: &mut Registry) {
        let t = &self.tiers;
        show(
            to,
            [
                ("tier_hits", "Reads that a tier before the store served, by tier", &t.hits),
                ("tier_misses", "Reads that went to the store behind, by tier", &t.misses),
                ("tier_fills", "Blobs that were brought into a tier, by tier", &t.fills),
                ("tier_failures", "Blobs that a tier could not take or give", &t.failures),
                ("tier_evictions", "Blobs that made room for others, by tier", &t.evictions),
            ],
        );
        show(to, [("tier_bytes", "Bytes in a tier now, by tier", &t.bytes)]);
    }
}

fn show_load(to: &mut Registry, now: &Now) {
    for (name, help, value) in [
        ("flights", "Fetches in the air", wide(now.flights)),
        ("fetches_queued", "Fetches that wait for a thread", wide(now.fetches_queued)),
        ("workers", "Workers", wide(now.workers)),
        ("busy_workers", "Workers that are serving", wide(now.busy_workers)),
        ("queued", "Requests that wait for a worker", wide(now.queued)),
        ("waiting", "Requests that wait for upstream, without a worker", wide(now.waiting)),
    ] {
        to.register(name, help, ConstGauge::new(value));
    }
    for (name, help, value) in [
        ("connections", "Connections of clients (guarded listener)", now.connections),
        ("connections_max", "The most connections of clients", now.connections_max),
    ] {
        value.inspect(|value| to.register(name, help, ConstGauge::new(wide(*value))));
    }
}

fn show_space(to: &mut Registry, now: &Now) {
    let (staged, staged_max) = (Some(now.staging_bytes), Some(now.staging_bytes_max));
    let (free, size) = now.disk.map(|disk| (disk.free_bytes, disk.size_bytes)).unzip();
    for (name, help, value) in [
        ("staging_bytes", "Bytes reserved in staging", staged),
        ("staging_bytes_max", "The most bytes reserved in staging", staged_max),
        (
            "cache_bounded_bytes",
            "Bytes of stored artifacts that count for CACHE_MAX_BYTES",
            Some(now.bounded_bytes),
        ),
        (
            "cache_bounded_bytes_max",
            "CACHE_MAX_BYTES; absent where that is unbounded",
            now.bounded_bytes_max,
        ),
        ("disk_free_bytes", "Bytes that are left on the file system of DATA_DIR", free),
        ("disk_size_bytes", "Bytes that the file system of DATA_DIR has", size),
    ] {
        value.inspect(|value| to.register(name, help, ConstGauge::new(*value)));
    }
}

/// Shows metrics of a kind: the name of each, what it tells, and what it is. A family says nothing
/// before it has a value.
fn show<M: Metric + Clone, const N: usize>(to: &mut Registry, table: [(&str, &str, &M); N]) {
    for (name, help, metric) in table {
        to.register(name, help, metric.clone());
    }
}

/// The same for metrics in a unit, which becomes the end of their names.
fn show_in<M: Metric + Clone, const N: usize>(
    to: &mut Registry,
    unit: Unit,
    table: [(&str, &str, &M); N],
) {
    for (name, help, metric) in table {
        to.register_with_unit(name, help, unit.clone(), metric.clone());
    }
}

/// Gauges of this moment by a label.
fn by<'a>(label: &'static str, values: impl Iterator<Item = (&'a str, u64)>) -> By {
    let family = By::default();
    values.for_each(|(of, value)| set(&family, label, of, value));
    family
}

fn set(family: &By, label: &'static str, of: &str, value: u64) {
    family.get_or_create(&[(label, of.to_owned())]).set(i64::try_from(value).unwrap_or(i64::MAX));
}

fn wide(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

fn ending(remote: &str, answered: Answered) -> Ending {
    Ending { remote: remote.to_owned(), how: How(answered) }
}

/// The media type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Outcome;

    #[test]
    fn counters_and_gauges_are_printed_with_their_labels() {
        let tiers = Tiers::default();
        tiers.of("memory").hits.inc();
        tiers.of("memory").bytes.set(9);
        let metrics = Metrics::new(&Counters::default(), &tiers);
        let waited = Duration::from_millis(2);
        metrics.count("alpine", Answered::Cache(Outcome::Hit), 10, waited);
        metrics.count("alpine", Answered::Cache(Outcome::Hit), 5, waited * 10);
        metrics.count("alpine", Answered::Own, 306, waited);
        metrics.count("alpine", Answered::Absent, 40, waited);
        metrics.count_refusal(431);
        let counted = |outcome| metrics.requests("alpine", Answered::Cache(outcome));
        assert_eq!((counted(Outcome::Hit), counted(Outcome::Miss)), (2, 0));
        assert_eq!((metrics.served_bytes("alpine"), metrics.served_bytes("deb")), (15, 0));
        let usage = |artifacts| Usage { artifacts, bytes: 7, hits: 0 };
        let [alpine, former] = ["alpine", "former"].map(|name| name.parse::<RemoteName>().unwrap());
        let stored = BTreeMap::from([(alpine.clone(), usage(1)), (former, usage(2))]);
        metrics.render(&Now { usage: stored, ..Now::default() });
        let (usage, failing) = (BTreeMap::from([(alpine.clone(), usage(3))]), [(alpine, 1)].into());
        let answering = vec![("blobs", true), ("index", false)];
        let text = metrics.render(&Now { flights: 2, usage, failing, answering, ..Now::default() });
        assert!(!text.contains("former") && !text.contains("outcome=\"miss\""), "{text}");
        for line in [
            "artifactapi_requests_total{remote=\"alpine\",outcome=\"hit\"} 2",
            "artifactapi_sent_bytes_total{remote=\"alpine\",outcome=\"hit\"} 15",
            "artifactapi_reply_start_seconds_bucket{le=\"0.003\",outcome=\"hit\"} 1",
            "artifactapi_reply_start_seconds_count{outcome=\"hit\"} 2",
            "artifactapi_refusals_total{status=\"431\"} 1",
            "artifactapi_flights 2",
            "artifactapi_cache_bytes{remote=\"alpine\"} 7",
            "artifactapi_cache_artifacts{remote=\"alpine\"} 3",
            "artifactapi_upstreams_failing{remote=\"alpine\"} 1",
            "artifactapi_backend_up{backend=\"blobs\"} 1",
            "artifactapi_backend_up{backend=\"index\"} 0",
            "artifactapi_healed_total 0",
            "artifactapi_tier_hits_total{tier=\"memory\"} 1",
            "artifactapi_tier_bytes{tier=\"memory\"} 9",
        ] {
            assert!(text.lines().any(|l| l == line), "no line {line:?} in:\n{text}");
        }
    }

    #[test]
    fn bounds_stand_beside_what_they_bound_and_are_absent_where_there_are_none() {
        let metrics = Metrics::new(&Counters::default(), &Tiers::default());
        let unbounded = metrics.render(&Now::default());
        let named = |text: &str, name: &str| text.contains(&format!("\nartifactapi_{name} "));
        for name in ["cache_bounded_bytes_max", "connections", "connections_max", "disk_free_bytes"]
        {
            assert!(!named(&unbounded, name), "{name} in {unbounded}");
        }
        let alpine: RemoteName = "alpine".parse().unwrap();
        let text = metrics.render(&Now {
            connections: Some(3),
            connections_max: Some(4),
            staging_bytes_max: 5,
            disk: Some(Disk { free_bytes: 6, size_bytes: 7 }),
            usage_max: BTreeMap::from([(alpine, 8)]),
            bounded_bytes: 9,
            bounded_bytes_max: Some(10),
            workers: 11,
            ..Now::default()
        });
        let version = env!("CARGO_PKG_VERSION");
        for line in [
            "connections 3",
            "connections_max 4",
            "staging_bytes_max 5",
            "disk_free_bytes 6",
            "disk_size_bytes 7",
            "cache_bytes_max{remote=\"alpine\"} 8",
            "cache_bounded_bytes 9",
            "cache_bounded_bytes_max 10",
            "workers 11",
            &format!("build_info{{version=\"{version}\"}} 1"),
        ] {
            let line = format!("artifactapi_{line}");
            assert!(text.lines().any(|l| l == line), "no line {line:?} in:\n{text}");
        }
    }

    /// OpenMetrics: one family of a name, and its unit at the end of the name.
    #[test]
    fn each_family_is_there_once_and_named_by_its_unit() {
        let text = Metrics::new(&Counters::default(), &Tiers::default()).render(&Now::default());
        let mut names = std::collections::BTreeSet::new();
        for line in text.lines() {
            let mut words = line.split(' ');
            match [words.next(), words.next(), words.next(), words.next()] {
                [Some("#"), Some("TYPE"), Some(name), _] => {
                    assert!(names.insert(name), "{name} is there twice");
                }
                [Some("#"), Some("UNIT"), Some(name), Some(unit)] => {
                    assert!(name.ends_with(&format!("_{unit}")), "{line}");
                }
                _ => {}
            }
        }
        assert!(names.contains("process_cpu_seconds"), "{text}");
        assert!(text.ends_with("\n# EOF\n") && text.matches("# EOF").count() == 1, "{text}");
    }
}
