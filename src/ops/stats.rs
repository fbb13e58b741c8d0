//! `GET /stats`: what each remote takes up and how well it serves.
//!
//! What is stored comes from the index and is that of all replicas; what was counted is this
//! process's, since its start.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::Answered;
use super::metrics::Metrics;
use crate::artifact::RemoteName;
use crate::cache::counters::ByRemote;
use crate::cache::space::SpacePlan;
use crate::cache::{Cache, Outcome};
use crate::config::Remote;
use crate::index::{IndexError, Usage};

/// The figures of every configured remote, of those that still have something stored, and
/// their totals, with the bounds in force.
///
/// # Errors
/// The index's.
pub fn stats(cache: &Cache, metrics: &Metrics) -> Result<Value, IndexError> {
    let plan = cache.space().plan();
    let usage = cache.ports().index.usage()?;
    let names = plan.remotes.by_name.keys().chain(usage.keys());
    let figures: BTreeMap<&RemoteName, Figures> =
        names.map(|name| (name, Figures::of(name, cache, metrics, &usage))).collect();
    let remotes: Map<String, Value> = figures
        .iter()
        .map(|(name, figures)| {
            let mut shown = figures.to_json();
            shown.append(&mut kept(plan.remotes.by_name.get(*name).map(|remote| &**remote)));
            (name.to_string(), Value::Object(shown))
        })
        .collect();
    let mut totals = figures.values().fold(Figures::default(), Figures::plus).to_json();
    totals.insert("bounded_bytes".to_owned(), json!(bounded(&plan, &usage)));
    totals.insert("max_bytes".to_owned(), json!(plan.bytes_max));
    Ok(json!({ "remotes": remotes, "totals": totals }))
}

/// What counts for the bound of the whole cache.
pub(super) fn bounded(plan: &SpacePlan, usage: &BTreeMap<RemoteName, Usage>) -> u64 {
    usage.iter().filter(|(name, _)| plan.has_cached(name)).map(|(_, usage)| usage.bytes).sum()
}

/// What holds for a remote; one that is not configured keeps what it has.
fn kept(remote: Option<&Remote>) -> Map<String, Value> {
    let kind = remote.map_or("not configured", |remote| remote.kind.as_str());
    let keeping = remote.filter(|remote| !remote.is_local()).map(|remote| &remote.keeping);
    let unused_for = keeping.and_then(|keeping| keeping.unused_for);
    let shown = [
        ("type", json!(kind)),
        ("max_bytes", json!(keeping.and_then(|keeping| keeping.max_bytes))),
        ("keep_unused_for", json!(unused_for.map(|time| time.as_secs_f64()))),
    ];
    shown.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// What is known of one remote, or of all.
#[derive(Debug, Clone, Copy, Default)]
struct Figures {
    artifacts: u64,
    bytes: u64,
    hits: u64,
    misses: u64,
    bytes_served: u64,
    bytes_fetched: u64,
    evicted: u64,
    evicted_bytes: u64,
}

impl Figures {
    fn of(
        name: &RemoteName,
        cache: &Cache,
        metrics: &Metrics,
        usage: &BTreeMap<RemoteName, Usage>,
    ) -> Self {
        let counted = |outcomes: &[Outcome]| {
            let each = outcomes.iter();
            each.map(|it| metrics.requests(name.as_str(), Answered::Cache(*it))).sum()
        };
        let stored = usage.get(name).copied().unwrap_or_default();
        let counters = cache.counters();
        Self {
            artifacts: stored.artifacts,
            bytes: stored.bytes,
            hits: counted(&[Outcome::Hit, Outcome::Stale, Outcome::Revalidated]),
            misses: counted(&[Outcome::Miss, Outcome::Collapsed, Outcome::Pass]),
            bytes_served: metrics.served_bytes(name.as_str()),
            bytes_fetched: counter(&counters.fetched_bytes, name),
            evicted: counter(&counters.evicted, name),
            evicted_bytes: counter(&counters.evicted_bytes, name),
        }
    }

    fn plus(self, other: &Self) -> Self {
        Self {
            artifacts: self.artifacts.saturating_add(other.artifacts),
            bytes: self.bytes.saturating_add(other.bytes),
            hits: self.hits + other.hits,
            misses: self.misses + other.misses,
            bytes_served: self.bytes_served + other.bytes_served,
            bytes_fetched: self.bytes_fetched + other.bytes_fetched,
            evicted: self.evicted + other.evicted,
            evicted_bytes: self.evicted_bytes + other.evicted_bytes,
        }
    }

    fn to_json(self) -> Map<String, Value> {
        let served = self.hits + self.misses;
        // Before the first request there is no ratio, not even 0.
        let hit_ratio = (served > 0).then(|| self.hits as f64 / served as f64);
        let shown = [
            ("artifacts", json!(self.artifacts)),
            ("bytes", json!(self.bytes)),
            ("hits", json!(self.hits)),
            ("misses", json!(self.misses)),
            ("hit_ratio", json!(hit_ratio)),
            ("bytes_served", json!(self.bytes_served)),
            ("bytes_fetched", json!(self.bytes_fetched)),
            ("evicted", json!(self.evicted)),
            ("evicted_bytes", json!(self.evicted_bytes)),
        ];
        shown.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

/// A counter's value, without making it if it was never counted up.
fn counter(family: &ByRemote, remote: &RemoteName) -> u64 {
    family.get(&vec![("remote", remote.to_string())]).map_or(0, |counter| counter.get())
}
