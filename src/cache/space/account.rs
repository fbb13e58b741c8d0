//! What is stored, as far as one process knows: the index's figures and what came since.
//!
//! Pure book-keeping. A file counts from the moment it is about to be published until the
//! index's figures hold it, so it may count twice for a moment and never not at all.

use std::collections::BTreeMap;

use crate::artifact::RemoteName;
use crate::index::Usage;

type Bytes = BTreeMap<RemoteName, u64>;

/// Bytes by remote.
#[derive(Debug, Default)]
pub(super) struct Account {
    /// What the index said last, less what went since; `None` before it said anything.
    known: Option<BTreeMap<RemoteName, Usage>>,
    /// Being published.
    coming: Bytes,
    /// Recorded since the index was last asked.
    recorded: Bytes,
    /// Recorded before the question that is being asked: its answer holds them.
    asked: Bytes,
}

impl Account {
    pub(super) fn known(&self) -> Option<&BTreeMap<RemoteName, Usage>> {
        self.known.as_ref()
    }

    /// What a remote takes up, at most.
    pub(super) fn used(&self, remote: &RemoteName) -> u64 {
        let known = self.known.as_ref().and_then(|known| known.get(remote));
        let parts = [&self.coming, &self.recorded, &self.asked];
        let since = parts.into_iter().filter_map(|part| part.get(remote));
        since.fold(known.map_or(0, |usage| usage.bytes), |sum, part| sum.saturating_add(*part))
    }

    /// A file is about to be published.
    pub(super) fn begin(&mut self, remote: &RemoteName, bytes: u64) {
        add(&mut self.coming, remote, bytes);
    }

    /// It was not.
    pub(super) fn dropped(&mut self, remote: &RemoteName, bytes: u64) {
        take(&mut self.coming, remote, bytes);
    }

    /// It was, and its row is there.
    pub(super) fn recorded(&mut self, remote: &RemoteName, bytes: u64) {
        take(&mut self.coming, remote, bytes);
        add(&mut self.recorded, remote, bytes);
    }

    /// The index is about to be asked. Questions follow one another.
    pub(super) fn ask(&mut self) {
        for (remote, bytes) in std::mem::take(&mut self.recorded) {
            add(&mut self.asked, &remote, bytes);
        }
    }

    /// The index has answered, or (`None`) has not.
    pub(super) fn answered(&mut self, usage: Option<BTreeMap<RemoteName, Usage>>) {
        if let Some(usage) = usage {
            self.known = Some(usage);
            self.asked.clear();
        }
    }

    /// A stored file is gone.
    pub(super) fn freed(&mut self, remote: &RemoteName, bytes: u64) {
        if let Some(usage) = self.known.as_mut().and_then(|known| known.get_mut(remote)) {
            usage.bytes = usage.bytes.saturating_sub(bytes);
            usage.artifacts = usage.artifacts.saturating_sub(1);
        }
    }
}

fn add(to: &mut Bytes, remote: &RemoteName, bytes: u64) {
    if bytes > 0 {
        let sum = to.entry(remote.clone()).or_default();
        *sum = sum.saturating_add(bytes);
    }
}

fn take(from: &mut Bytes, remote: &RemoteName, bytes: u64) {
    match from.get_mut(remote) {
        Some(sum) if *sum > bytes => *sum -= bytes,
        _ => drop(from.remove(remote)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_counts_from_before_its_publish_until_the_index_counts_it() {
        let r: RemoteName = "r".parse().unwrap();
        let said =
            |bytes| Some(BTreeMap::from([(r.clone(), Usage { artifacts: 1, bytes, hits: 0 })]));
        let mut account = Account::default();
        assert!(account.known().is_none());
        account.ask();
        account.answered(said(100));
        account.begin(&r, 10);
        account.begin(&r, 5);
        assert_eq!(account.used(&r), 115);
        account.dropped(&r, 5);
        account.recorded(&r, 10);
        assert_eq!(account.used(&r), 110);
        // One that is recorded while the index is asked may be in the answer or not.
        account.ask();
        account.begin(&r, 7);
        account.recorded(&r, 7);
        assert_eq!(account.used(&r), 117);
        account.answered(said(110));
        assert_eq!(account.used(&r), 117);
        // A question without an answer forgets nothing.
        account.ask();
        account.answered(None);
        assert_eq!(account.used(&r), 117);
        account.ask();
        account.answered(said(117));
        assert_eq!(account.used(&r), 117);
        account.freed(&r, 17);
        assert_eq!(account.used(&r), 100);
        assert_eq!(account.used(&"other".parse().unwrap()), 0);
    }
}
