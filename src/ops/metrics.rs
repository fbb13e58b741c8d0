//! Metrics in the Prometheus text format.

use std::collections::BTreeMap;
use std::sync::Mutex;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::Answered;
use crate::artifact::RemoteName;
use crate::blob::Tiers;
use crate::cache::counters::Counters;
use crate::index::Usage;

type Labelled = Family<Vec<(&'static str, String)>, Counter>;
/// Gauges of remotes that have something stored.
type ByRemoteNow = Family<Vec<(&'static str, String)>, Gauge>;

/// Gauges that are 0 or 1.
type Switches = Family<Vec<(&'static str, &'static str)>, Gauge>;

/// The metrics of the program.
#[derive(Debug)]
pub struct Metrics {
    // Guards the registry, which is only read after the start, and the gauges while they are set
    // and read; nothing else is taken meanwhile.
    registry: Mutex<Registry>,
    requests: Labelled,
    bytes: Labelled,
    refusals: Labelled,
    gauges: Gauges,
    cache_bytes: ByRemoteNow,
    cache_artifacts: ByRemoteNow,
    upstreams_failing: ByRemoteNow,
    backend_up: Switches,
    config_refused: Switches,
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

#[derive(Debug, Default)]
struct Gauges {
    flights: Gauge,
    fetches_queued: Gauge,
    busy_workers: Gauge,
    queued: Gauge,
    waiting: Gauge,
    staging_bytes: Gauge,
}

impl Metrics {
    /// Names the cache's counters, those of tiers before the store, and those of the front.
    pub fn new(cache: &Counters, tiers: &Tiers) -> Self {
        let mut registry = Registry::with_prefix("artifactapi");
        let (requests, bytes, gauges) =
            (Labelled::default(), Labelled::default(), Gauges::default());
        registry.register("requests", "Requests by remote and outcome", requests.clone());
        registry.register_with_unit(
            "sent",
            "Bytes of bodies sent to clients, by remote and outcome",
            Unit::Bytes,
            bytes.clone(),
        );
        let refusals = Labelled::default();
        registry.register(
            "refusals",
            "Answers of the listener itself to what never became a request, by status",
            refusals.clone(),
        );
        let c = cache;
        registry.register("fetches", "Fetches that asked upstream, by remote", c.fetches.clone());
        registry.register(
            "fetch_failures",
            "Fetches that failed, by remote",
            c.fetch_failures.clone(),
        );
        registry.register_with_unit(
            "fetched",
            "Bytes that came from upstream, by remote",
            Unit::Bytes,
            c.fetched_bytes.clone(),
        );
        registry.register_with_unit(
            "upstream_head",
            "Waits for the head of upstream's answer, tries again and redirects included, by remote",
            Unit::Seconds,
            c.upstream_head.0.clone(),
        );
        for (name, help, family) in [
            ("evicted", "Artifacts taken out to keep a bound, by remote", &c.evicted),
            ("without_room", "Whole bodies that found no room, by remote", &c.without_room),
        ] {
            registry.register(name, help, family.clone());
        }
        registry.register_with_unit(
            "evicted",
            "Bytes of artifacts taken out to keep a bound, by remote",
            Unit::Bytes,
            c.evicted_bytes.clone(),
        );
        let (cache_bytes, cache_artifacts) = (ByRemoteNow::default(), ByRemoteNow::default());
        for (name, help, family) in [
            ("cache_bytes", "Bytes of stored artifacts, by remote", &cache_bytes),
            ("cache_artifacts", "Stored artifacts, by remote", &cache_artifacts),
        ] {
            registry.register(name, help, family.clone());
        }
        let upstreams_failing = ByRemoteNow::default();
        registry.register(
            "upstreams_failing",
            "Base URLs that keep failing and are asked only now and then, by remote",
            upstreams_failing.clone(),
        );
        let (backend_up, config_refused) = (Switches::default(), Switches::default());
        for (name, help, family) in [
            ("backend_up", "1 if it answers, as in /health, by backend", &backend_up),
            (
                "config_refused",
                "1 if the newest version of the file cannot be used, and the one before is in force",
                &config_refused,
            ),
        ] {
            registry.register(name, help, family.clone());
        }
        for (name, help, counter) in [
            ("fetches_resumed", "Cut bodies that went on with a Range request", &c.resumed),
            ("unstored", "Whole bodies that were not stored", &c.unstored),
            ("healed", "Entries forgotten because their blob was gone", &c.healed),
            ("index_errors", "Questions the index did not answer", &c.index_errors),
            ("blob_errors", "Questions the store did not answer", &c.blob_errors),
            ("orphans_removed", "Blobs without a row that a sweep removed", &c.orphans_removed),
            ("uses_dropped", "Uses that were not recorded", &c.uses_dropped),
        ] {
            registry.register(name, help, counter.clone());
        }
        for (name, help, family) in [
            ("tier_hits", "Reads that a tier before the store served, by tier", &tiers.hits),
            ("tier_misses", "Reads that went to the store behind, by tier", &tiers.misses),
            ("tier_fills", "Blobs that were brought into a tier, by tier", &tiers.fills),
            ("tier_failures", "Blobs that a tier could not take or give", &tiers.failures),
            ("tier_evictions", "Blobs that made room for others, by tier", &tiers.evictions),
        ] {
            registry.register(name, help, family.clone());
        }
        registry.register("tier_bytes", "Bytes in a tier now, by tier", tiers.bytes.clone());
        for (name, help, gauge) in [
            ("flights", "Fetches in the air", &gauges.flights),
            ("fetches_queued", "Fetches that wait for a thread", &gauges.fetches_queued),
            ("busy_workers", "Workers that are serving", &gauges.busy_workers),
            ("queued", "Requests that wait for a worker", &gauges.queued),
            ("waiting", "Requests that wait for upstream, without a worker", &gauges.waiting),
            ("staging_bytes", "Bytes reserved in staging", &gauges.staging_bytes),
        ] {
            registry.register(name, help, gauge.clone());
        }
        Self {
            registry: Mutex::new(registry),
            requests,
            bytes,
            refusals,
            gauges,
            cache_bytes,
            cache_artifacts,
            upstreams_failing,
            backend_up,
            config_refused,
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
        self.config_refused.get_or_create(&vec![("file", file)]).set(i64::from(is_refused));
    }

    /// The text for a scrape.
    pub fn render(&self, now: &Now) -> String {
        // Held to the end: of two scrapes at once, none sees what the other puts in place.
        let registry = self.registry.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let set = |gauge: &Gauge, value: u64| {
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        let set_of = |family: &ByRemoteNow, remote: &RemoteName, value: u64| {
            set(&family.get_or_create_owned(&vec![("remote", remote.to_string())]), value);
        };
        // A remote that is gone is not shown with what it had.
        self.cache_bytes.clear();
        self.cache_artifacts.clear();
        for (remote, usage) in &now.usage {
            set_of(&self.cache_bytes, remote, usage.bytes);
            set_of(&self.cache_artifacts, remote, usage.artifacts);
        }
        self.upstreams_failing.clear();
        for (remote, count) in &now.failing {
            set_of(&self.upstreams_failing, remote, *count as u64);
        }
        for (backend, answers) in &now.answering {
            self.backend_up.get_or_create(&vec![("backend", backend)]).set(i64::from(*answers));
        }
        set(&self.gauges.flights, now.flights as u64);
        set(&self.gauges.fetches_queued, now.fetches_queued as u64);
        set(&self.gauges.busy_workers, now.busy_workers as u64);
        set(&self.gauges.queued, now.queued as u64);
        set(&self.gauges.waiting, now.waiting as u64);
        set(&self.gauges.staging_bytes, now.staging_bytes);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry)
            .expect("writing to a String does not fail");
        text
    }
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
