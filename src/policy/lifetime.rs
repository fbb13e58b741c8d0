//! How long what is stored may be served.

use std::time::Duration;

/// The lifetimes of a remote, as remotes.yaml gives them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lifetimes {
    /// For immutable files; `None` is for ever (`file_ttl: 0`).
    pub file_ttl: Option<Duration>,
    /// For heads and members; zero is "revalidate every time" (`index_ttl: 0`).
    pub index_ttl: Duration,
    /// How long after its lifetime a copy may stand in for a failing upstream; `None` is
    /// without limit.
    pub stale_if_error: Option<Duration>,
    /// How long an upstream's "not found" is remembered; zero is not at all.
    pub negative_ttl: Duration,
}
