//! Metrics in the Prometheus text format.
//!
//! Each metric is named once, in the table that shows it: a scrape builds its registry from what
//! is counted and what is measured at that moment, and throws it away.

use std::collections::BTreeMap;

use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::{Metric, Registry, Unit};

use super::Answered;
use crate::artifact::RemoteName;
use crate::blob::Tiers;
use crate::cache::counters::Counters;
use crate::index::Usage;

type Labelled = Family<Vec<(&'static str, String)>, Counter>;
/// Gauges by one label, whose values are bounded.
type By = Family<[(&'static str, String); 1], Gauge>;

/// The metrics of the program.
#[derive(Debug)]
pub struct Metrics {
    cache: Counters,
    tiers: Tiers,
    requests: Labelled,
    bytes: Labelled,
    refusals: Labelled,
    config_refused: By,
}

/// What is measured at the moment of asking.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Now {
    /// Fetches in the air.
    pub flights: usize,
    /// Fetches that wait for a thread.
    pub fetches_queued: usize,
    /// Workers that are serving.
    pub busy_workers: usize,
    /// Requests that wait for a worker.
    pub queued: usize,
    /// Requests that wait for upstream without a worker.
    pub waiting: usize,
    /// Bytes reserved in staging.
    pub staging_bytes: u64,
    /// What is stored of each remote that has something stored.
    pub usage: BTreeMap<RemoteName, Usage>,
    /// Base URLs that keep failing, of each remote that has an upstream.
    pub failing: BTreeMap<RemoteName, usize>,
    /// The backends that were asked already, and whether each answers.
    pub answering: Vec<(&'static str, bool)>,
}

impl Metrics {
    /// Shows the cache's counters and those of tiers before the store, beside those of the front.
    pub fn new(cache: &Counters, tiers: &Tiers) -> Self {
        Self {
            cache: cache.clone(),
            tiers: tiers.clone(),
            requests: Labelled::default(),
            bytes: Labelled::default(),
            refusals: Labelled::default(),
            config_refused: By::default(),
        }
    }

    /// Counts a request; `remote` is the name of a configured remote, or empty.
    pub fn count(&self, remote: &str, answered: Answered, body_bytes: u64) {
        let labels = labels(remote, answered);
        self.requests.get_or_create(&labels).inc();
        self.bytes.get_or_create(&labels).inc_by(body_bytes);
    }

    /// Counts an answer that the listener gave by itself; its statuses are a fixed few.
    pub fn count_refusal(&self, status: u16) {
        self.refusals.get_or_create(&vec![("status", status.to_string())]).inc();
    }

    /// How many requests of a remote ended like this since the start.
    pub fn requests(&self, remote: &str, answered: Answered) -> u64 {
        self.requests.get(&labels(remote, answered)).map_or(0, |counter| counter.get())
    }

    /// How many bytes of a remote's artifacts were sent to clients since the start; not those of
    /// listings, reports and errors.
    pub fn served_bytes(&self, remote: &str) -> u64 {
        let sent = Answered::SERVED.iter().filter_map(|answered| {
            self.bytes.get(&labels(remote, *answered)).map(|counter| counter.get())
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
        let mut text = String::new();
        text::encode(&mut text, &registry).expect("writing to a String does not fail");
        text
    }

    fn show_traffic(&self, to: &mut Registry) {
        let c = &self.cache;
        show(to, [("requests", "Requests by remote and outcome", &self.requests)]);
        let sent = "Bytes of bodies sent to clients, by remote and outcome";
        show_in(to, Unit::Bytes, [("sent", sent, &self.bytes)]);
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
        ("busy_workers", "Workers that are serving", wide(now.busy_workers)),
        ("queued", "Requests that wait for a worker", wide(now.queued)),
        ("waiting", "Requests that wait for upstream, without a worker", wide(now.waiting)),
        ("staging_bytes", "Bytes reserved in staging", now.staging_bytes),
    ] {
        to.register(name, help, ConstGauge::new(value));
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

fn labels(remote: &str, answered: Answered) -> Vec<(&'static str, String)> {
    vec![("remote", remote.to_owned()), ("outcome", answered.as_str().to_owned())]
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
        metrics.count("alpine", Answered::Cache(Outcome::Hit), 10);
        metrics.count("alpine", Answered::Cache(Outcome::Hit), 5);
        metrics.count("alpine", Answered::Own, 306);
        metrics.count("alpine", Answered::Absent, 40);
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
}
