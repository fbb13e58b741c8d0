//! Operations: what an operator sees. Metrics, health, the access log and the views of what is
//! configured and cached; and the command line, whose `warm` and `health` ask a running server. Of
//! sockets and HTTP only what those two need.

pub mod access_log;
pub mod admin;
pub mod ask;
pub mod cli;
pub mod health;
pub mod metrics;
pub mod purge;
pub mod stats;
pub mod token;
pub mod upkeep;
pub mod warm;

use crate::cache::Outcome;

/// How a request ended: for the log line and the counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Answered {
    /// An artifact, met like this.
    Cache(Outcome),
    /// Refused: malformed, not allowed, unknown remote, wrong method.
    Refused,
    /// Upstream, or the local repository, has no such file.
    Absent,
    /// Something failed.
    Failed,
    /// There was no room.
    Shed,
    /// One of the program's own pages.
    Own,
    /// An upload was stored, or was there already.
    Uploaded,
    /// Something was removed.
    Purged,
    /// Refused for want of a right credential.
    Denied,
}

impl Answered {
    /// The ways in which an artifact is served.
    pub const SERVED: &[Self] = &[
        Self::Cache(Outcome::Hit),
        Self::Cache(Outcome::Stale),
        Self::Cache(Outcome::Revalidated),
        Self::Cache(Outcome::Miss),
        Self::Cache(Outcome::Collapsed),
        Self::Cache(Outcome::Pass),
    ];

    /// The word for it in logs and labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cache(Outcome::Hit) => "hit",
            Self::Cache(Outcome::Stale) => "stale",
            Self::Cache(Outcome::Revalidated) => "revalidated",
            Self::Cache(Outcome::Miss) => "miss",
            Self::Cache(Outcome::Collapsed) => "collapsed",
            Self::Cache(Outcome::Pass) => "pass",
            Self::Refused => "refused",
            Self::Absent => "absent",
            Self::Failed => "failed",
            Self::Shed => "shed",
            Self::Own => "own",
            Self::Uploaded => "uploaded",
            Self::Purged => "purged",
            Self::Denied => "denied",
        }
    }
}
