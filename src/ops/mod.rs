//! Operations: what an operator sees. Metrics, health, the access log and the views of what is
//! configured and cached; and the command line, whose `warm` and `health` ask a running server. Of
//! sockets and HTTP only what those two need.

pub mod access_log;
pub mod admin;
pub mod ask;
pub mod cli;
pub mod health;
pub mod metrics;
mod process;
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
    /// Every way.
    pub const ALL: &[Self] = &[
        Self::Cache(Outcome::Hit),
        Self::Cache(Outcome::Stale),
        Self::Cache(Outcome::Revalidated),
        Self::Cache(Outcome::Miss),
        Self::Cache(Outcome::Collapsed),
        Self::Cache(Outcome::Pass),
        Self::Absent,
        Self::Own,
        Self::Uploaded,
        Self::Purged,
        Self::Refused,
        Self::Denied,
        Self::Failed,
        Self::Shed,
    ];

    /// The ways in which an artifact is served.
    pub fn served() -> impl Iterator<Item = Self> {
        Self::ALL.iter().copied().filter(|answered| matches!(answered, Self::Cache(_)))
    }

    /// The word for it in logs and labels.
    pub fn as_str(self) -> &'static str {
        self.told().0
    }

    /// What the word means, for whoever reads logs and metrics.
    pub fn meaning(self) -> &'static str {
        self.told().1
    }

    // What is added here belongs into ALL as well, or README does not tell of it.
    fn told(self) -> (&'static str, &'static str) {
        match self {
            Self::Cache(Outcome::Hit) => ("hit", "From the store, without asking upstream."),
            Self::Cache(Outcome::Stale) => (
                "stale",
                "From the store although it lapsed: upstream failed, or must not be asked.",
            ),
            Self::Cache(Outcome::Revalidated) => {
                ("revalidated", "From the store, after upstream confirmed it.")
            }
            Self::Cache(Outcome::Miss) => ("miss", "Fetched for this request."),
            Self::Cache(Outcome::Collapsed) => {
                ("collapsed", "From a fetch for another request, which this one joined.")
            }
            Self::Cache(Outcome::Pass) => ("pass", "From upstream, without being stored."),
            Self::Absent => ("absent", "Upstream, or the local repository, has no such file."),
            Self::Own => ("own", "One of the program's own pages."),
            Self::Uploaded => ("uploaded", "An upload was stored, or was there already."),
            Self::Purged => ("purged", "Something was removed, or would be (`dry_run`)."),
            Self::Refused => (
                "refused",
                "Malformed, of an unknown remote, not allowed by its patterns, the wrong method, or against what is there already.",
            ),
            Self::Denied => ("denied", "For want of a right token."),
            Self::Failed => {
                ("failed", "Upstream, or something here, failed; or the client left first.")
            }
            Self::Shed => ("shed", "There was no room: 503."),
        }
    }
}
