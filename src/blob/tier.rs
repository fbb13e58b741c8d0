//! What tiers before a store count; `ops::metrics` gives the counters their names.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

/// Labels of what is counted per tier. There are two at most.
type ByTier<Metric> = Family<Vec<(&'static str, String)>, Metric>;

/// The counters of all tiers, by tier.
#[derive(Debug, Clone, Default)]
pub struct Tiers {
    /// [`TierCounters::hits`].
    pub hits: ByTier<Counter>,
    /// [`TierCounters::misses`].
    pub misses: ByTier<Counter>,
    /// [`TierCounters::fills`].
    pub fills: ByTier<Counter>,
    /// [`TierCounters::failures`].
    pub failures: ByTier<Counter>,
    /// [`TierCounters::evictions`].
    pub evictions: ByTier<Counter>,
    /// [`TierCounters::bytes`].
    pub bytes: ByTier<Gauge>,
}

/// The counters of one tier, since the start.
#[derive(Debug, Clone, Default)]
pub struct TierCounters {
    /// Reads that were served from the tier.
    pub hits: Counter,
    /// Reads that went to the store behind.
    pub misses: Counter,
    /// Blobs that were brought into the tier.
    pub fills: Counter,
    /// Blobs that could not be brought there, or not be read.
    pub failures: Counter,
    /// Blobs that made room for others.
    pub evictions: Counter,
    /// Bytes in the tier or on their way there.
    pub bytes: Gauge,
}

impl Tiers {
    /// The counters of the tier of this name.
    pub fn of(&self, name: &str) -> TierCounters {
        let labels = vec![("tier", name.to_owned())];
        let counter = |family: &ByTier<Counter>| family.get_or_create_owned(&labels);
        TierCounters {
            hits: counter(&self.hits),
            misses: counter(&self.misses),
            fills: counter(&self.fills),
            failures: counter(&self.failures),
            evictions: counter(&self.evictions),
            bytes: self.bytes.get_or_create_owned(&labels),
        }
    }
}

impl TierCounters {
    /// Notes how many bytes the tier has now.
    pub(super) fn set_bytes(&self, bytes: u64) {
        self.bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }
}
