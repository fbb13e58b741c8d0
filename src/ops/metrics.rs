//! Metrics in the Prometheus text format.

use std::sync::Mutex;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::Answered;
use crate::cache::counters::Counters;

type Labelled = Family<Vec<(&'static str, String)>, Counter>;

/// The metrics of the program.
#[derive(Debug)]
pub struct Metrics {
    // Guards the registry, which is only read after the start; nothing else is taken meanwhile.
    registry: Mutex<Registry>,
    requests: Labelled,
    bytes: Labelled,
    refusals: Labelled,
    gauges: Gauges,
}

/// What is measured at the moment of asking.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Now {
    /// Fetches in the air.
    pub flights: usize,
    /// Fetches that wait for a thread.
    pub fetches_queued: usize,
    /// Workers that are serving.
    pub busy_workers: usize,
    /// Requests that wait for a worker.
    pub queued: usize,
    /// Bytes reserved in staging.
    pub staging_bytes: u64,
}

#[derive(Debug, Default)]
struct Gauges {
    flights: Gauge,
    fetches_queued: Gauge,
    busy_workers: Gauge,
    queued: Gauge,
    staging_bytes: Gauge,
}

impl Metrics {
    /// Names the cache's counters and those of the front.
    pub fn new(cache: &Counters) -> Self {
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
        for (name, help, gauge) in [
            ("flights", "Fetches in the air", &gauges.flights),
            ("fetches_queued", "Fetches that wait for a thread", &gauges.fetches_queued),
            ("busy_workers", "Workers that are serving", &gauges.busy_workers),
            ("queued", "Requests that wait for a worker", &gauges.queued),
            ("staging_bytes", "Bytes reserved in staging", &gauges.staging_bytes),
        ] {
            registry.register(name, help, gauge.clone());
        }
        Self { registry: Mutex::new(registry), requests, bytes, refusals, gauges }
    }

    /// Counts a request; `remote` is the name of a configured remote, or empty.
    pub fn count(&self, remote: &str, answered: Answered, body_bytes: u64) {
        let labels = vec![("remote", remote.to_owned()), ("outcome", answered.as_str().to_owned())];
        self.requests.get_or_create(&labels).inc();
        self.bytes.get_or_create(&labels).inc_by(body_bytes);
    }

    /// Counts an answer that the listener gave by itself; its statuses are a fixed few.
    pub fn count_refusal(&self, status: u16) {
        self.refusals.get_or_create(&vec![("status", status.to_string())]).inc();
    }

    /// The text for a scrape.
    pub fn render(&self, now: Now) -> String {
        let registry = self.registry.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let set = |gauge: &Gauge, value: u64| {
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        set(&self.gauges.flights, now.flights as u64);
        set(&self.gauges.fetches_queued, now.fetches_queued as u64);
        set(&self.gauges.busy_workers, now.busy_workers as u64);
        set(&self.gauges.queued, now.queued as u64);
        set(&self.gauges.staging_bytes, now.staging_bytes);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry)
            .expect("writing to a String does not fail");
        text
    }
}

/// The media type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Outcome;

    #[test]
    fn counters_and_gauges_are_printed_with_their_labels() {
        let metrics = Metrics::new(&Counters::default());
        metrics.count("alpine", Answered::Cache(Outcome::Hit), 10);
        metrics.count("alpine", Answered::Cache(Outcome::Hit), 5);
        metrics.count_refusal(431);
        let text = metrics.render(Now { flights: 2, ..Now::default() });
        for line in [
            "artifactapi_requests_total{remote=\"alpine\",outcome=\"hit\"} 2",
            "artifactapi_sent_bytes_total{remote=\"alpine\",outcome=\"hit\"} 15",
            "artifactapi_refusals_total{status=\"431\"} 1",
            "artifactapi_flights 2",
            "artifactapi_healed_total 0",
        ] {
            assert!(text.lines().any(|l| l == line), "no line {line:?} in:\n{text}");
        }
    }
}
