//! Turns: work on what all replicas share, done by one of them at a time.
//!
//! A turn is a lease under a reserved name, and like every lease it only saves work: what is
//! done in a turn must stay right when two replicas do it at once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::artifact::{ArtifactKey, ArtifactPath};
use crate::coord::{Lease, Leases};

/// How long a replica that vanished in its turn holds up the others.
const TURN_TTL: Duration = Duration::from_secs(60);
/// How often a turn that lasts is prolonged.
const RENEW_EVERY: Duration = Duration::from_secs(15);

/// This replica's turn, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    // None where the coordination does not answer: then the work is done all the same.
    lease: Option<Lease>,
    renewed: Instant,
}

impl Turn {
    /// Takes the turn at `work`, unless another replica has it.
    pub(super) fn take(leases: &Arc<dyn Leases>, work: &'static str) -> Option<Self> {
        let key = reserved(work);
        let lease = Lease::take(leases, &key, TURN_TTL).ok()?;
        Some(Self { lease, renewed: Instant::now() })
    }

    /// To be called in between; `false` once another replica may have taken over.
    pub(super) fn goes_on(&mut self) -> bool {
        let Some(lease) = &self.lease else { return true };
        if self.renewed.elapsed() < RENEW_EVERY {
            return true;
        }
        self.renewed = Instant::now();
        lease.renew()
    }
}

/// A key that no sensible artifact has. If one had it, its fetch would wait a little.
fn reserved(work: &'static str) -> ArtifactKey {
    ArtifactKey {
        remote: "artifactapi".parse().expect("it is a remote's name"),
        path: ArtifactPath::from_canonical(format!("turn?{work}")).expect("it is a path"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::coord::local::LocalLeases;

    #[test]
    fn one_replica_at_a_time_has_a_turn_at_each_work() {
        let leases: Arc<dyn Leases> = Arc::new(LocalLeases::new(Clock::system()));
        let mut turn = Turn::take(&leases, "sweep").unwrap();
        assert!(turn.goes_on());
        assert!(Turn::take(&leases, "sweep").is_none());
        assert!(Turn::take(&leases, "other").is_some());
        drop(turn);
        assert!(Turn::take(&leases, "sweep").is_some());
    }
}
