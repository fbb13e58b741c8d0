//! What the cache counts; `ops::metrics` gives the counters their names and prints them.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;

use crate::artifact::RemoteName;

/// The label of what is counted per remote. Remotes are configured, so they are bounded.
type Label = Vec<(&'static str, String)>;
/// Counters per remote.
pub type ByRemote = Family<Label, Counter>;

/// Bounds of waits for an upstream in seconds: one next door, and one that runs into its timeout.
const WAITS: [f64; 10] = [0.005, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0];

/// Waits for upstreams, by remote.
#[derive(Debug, Clone)]
pub struct Waits(pub Family<Label, Histogram, fn() -> Histogram>);

impl Default for Waits {
    fn default() -> Self {
        Self(Family::new_with_constructor(|| Histogram::new(WAITS)))
    }
}

impl Waits {
    /// Counts one of a remote.
    pub fn observe(&self, remote: &RemoteName, wait: Duration) {
        let histogram = self.0.get_or_create_owned(&label(remote));
        histogram.observe(wait.as_secs_f64());
    }
}

/// The counters of one cache; a clone counts the same.
#[derive(Debug, Clone, Default)]
pub struct Counters {
    /// Fetches that asked upstream, by remote.
    pub fetches: ByRemote,
    /// Fetches that failed, by remote.
    pub fetch_failures: ByRemote,
    /// How long an upstream that answered took to do so, tries and redirects included, by remote.
    pub upstream_head: Waits,
    /// Bytes that came from upstream, by remote.
    pub fetched_bytes: ByRemote,
    /// Bodies that were cut and went on with a Range request.
    pub resumed: Counter,
    /// Bodies that came whole but could not be stored.
    pub unstored: Counter,
    /// Entries whose blob was missing, replaced or damaged, and that were forgotten.
    pub healed: Counter,
    /// Questions that the index did not answer.
    pub index_errors: Counter,
    /// Questions that the store did not answer.
    pub blob_errors: Counter,
    /// Blobs without a row that a sweep removed.
    pub orphans_removed: Counter,
    /// Artifacts taken out of the store to keep a bound, by remote.
    pub evicted: ByRemote,
    /// Their bytes, by remote.
    pub evicted_bytes: ByRemote,
    /// Bodies that came whole but found no room, by remote.
    pub without_room: ByRemote,
    /// Uses that were not recorded because too many artifacts were used between two batches.
    pub uses_dropped: Counter,
}

/// The counter of a remote.
pub fn of(family: &ByRemote, remote: &RemoteName) -> Counter {
    family.get_or_create_owned(&label(remote))
}

fn label(remote: &RemoteName) -> Label {
    vec![("remote", remote.to_string())]
}
