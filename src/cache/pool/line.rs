//! Which fetch begins next.
//!
//! Upstreams that are slow or dead must not take up everything, so each host has a share of the
//! threads, and of the places in which clients' fetches wait: three times what is free. That is
//! three quarters for the first one, and always leaves something to the next. What a host wants
//! beyond its share of the threads is held back, and what others want goes ahead. Of one host,
//! clients' fetches begin in the order in which they came; so do those of batches.
//!
//! A. K. Choudhury and E. L. Hahne, Dynamic queue length thresholds for shared-memory packet
//! switches, IEEE/ACM Transactions on Networking 6 (2), 1998.
//!
//! This knows no lock and no thread: see [`super::queue`].

use std::collections::{HashMap, VecDeque};

use super::Urgency;
use crate::artifact::ArtifactKey;
use crate::cache::fetch::Job;
use crate::config::{Kind, Remote};

/// What a thread takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Takes {
    /// Clients' fetches only.
    Clients,
    /// A batch's too, where no client's is due.
    Any,
}

/// How much runs and waits at most.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Fetches that run at once: one on each thread.
    pub(super) threads: usize,
    /// Those of them that are batches'.
    pub(super) batch_threads: usize,
    /// Clients' fetches that wait.
    pub(super) waiting: usize,
    /// Batches' fetches that wait.
    pub(super) batch_waiting: usize,
}

/// What runs, and what waits for a thread.
#[derive(Debug)]
pub(super) struct Line {
    bounds: Bounds,
    // By the hosts of configured remotes, which are few: an idle one's entry stays.
    hosts: HashMap<String, Usage>,
    // Clients' fetches that may begin.
    due: VecDeque<Job>,
    // What batches want fetched. Few, since a batch waits for its fetches: they are gone through
    // for one that may begin.
    batch: VecDeque<Job>,
    // Clients' fetches that wait, due or held back.
    waiting: usize,
    running: usize,
    // Threads that run a batch's fetch, or rest from one.
    batch_threads: usize,
}

/// What a host takes up.
#[derive(Debug, Default)]
struct Usage {
    // Threads of its share: of what runs, and of clients' fetches that are due.
    threads: usize,
    // Clients' fetches that wait, due or held back.
    waiting: usize,
    // Clients' fetches that are held back, because the host may take no thread for now.
    held: VecDeque<Job>,
}

/// How much of what is shared one host may have, for each part that is free then.
const SHARE_PER_FREE: usize = 3;

/// Whether a host that has so much of what is shared may take one more of what is free: the last
/// one only if it has none.
pub(super) fn may_take(has: usize, free: usize) -> bool {
    match free {
        0 => false,
        _ => has == 0 || has < SHARE_PER_FREE * (free - 1),
    }
}

impl Line {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            hosts: HashMap::new(),
            due: VecDeque::new(),
            batch: VecDeque::new(),
            waiting: 0,
            running: 0,
            batch_threads: 0,
        }
    }

    /// Takes a job in; gives it back where there is no room.
    pub(super) fn push(&mut self, job: Job, urgency: Urgency) -> Option<Job> {
        match urgency {
            Urgency::Client => self.push_client(job),
            // A client that joined before the job came here could not promote it.
            Urgency::Batch if job.writer.reader().is_urgent() => {
                self.push_client(job).and_then(|job| self.push_batch(job))
            }
            Urgency::Batch => self.push_batch(job),
        }
    }

    /// Threads that are in no host's share.
    fn free(&self) -> usize {
        self.bounds.threads - self.running - self.due.len()
    }

    fn push_client(&mut self, job: Job) -> Option<Job> {
        let free = self.free();
        let usage = usage_of(&mut self.hosts, &job.remote);
        if !may_take(usage.waiting, self.bounds.waiting - self.waiting) {
            return Some(job);
        }
        self.waiting += 1;
        usage.waiting += 1;
        if may_take(usage.threads, free) {
            usage.threads += 1;
            self.due.push_back(job);
        } else {
            usage.held.push_back(job);
        }
        None
    }

    fn push_batch(&mut self, job: Job) -> Option<Job> {
        if self.batch.len() == self.bounds.batch_waiting {
            return Some(job);
        }
        self.batch.push_back(job);
        None
    }

    /// Makes a batch's fetch that waits a client's. Where clients' have no room, it stays what
    /// and where it is, rather than failing.
    pub(super) fn promote(&mut self, key: &ArtifactKey) {
        let Some(at) = self.batch_position(key) else { return };
        let job = self.batch.remove(at).and_then(|job| self.push_client(job));
        if let Some(job) = job {
            self.batch.insert(at, job);
        }
    }

    /// Gives up a batch's fetch that waits.
    pub(super) fn withdraw(&mut self, key: &ArtifactKey) -> Option<Job> {
        let at = self.batch_position(key)?;
        self.batch.remove(at)
    }

    /// The fetch that begins now on a thread that is free. [`Line::ended`] must follow, and behind
    /// a batch's [`Line::rested`].
    pub(super) fn next(&mut self, takes: Takes) -> Option<(Job, Urgency)> {
        let next = match self.due.pop_front() {
            Some(job) => {
                self.waiting -= 1;
                usage_of(&mut self.hosts, &job.remote).waiting -= 1;
                (job, Urgency::Client)
            }
            None if takes == Takes::Any => {
                let job = self.next_batch().and_then(|at| self.batch.remove(at))?;
                usage_of(&mut self.hosts, &job.remote).threads += 1;
                self.batch_threads += 1;
                (job, Urgency::Batch)
            }
            None => return None,
        };
        self.running += 1;
        Some(next)
    }

    /// A fetch of this remote has ended, and its thread is free.
    pub(super) fn ended(&mut self, remote: &Remote) {
        self.running -= 1;
        usage_of(&mut self.hosts, remote).threads -= 1;
        // What waits and is not due is held back.
        while self.waiting > self.due.len() && self.release_one() {}
    }

    /// Lets one fetch that was held back begin, of the host that has the fewest threads; says
    /// whether there was one that may.
    fn release_one(&mut self) -> bool {
        let free = self.free();
        let holding = self.hosts.values_mut().filter(|usage| !usage.held.is_empty());
        let Some(usage) = holding.min_by_key(|usage| usage.threads) else { return false };
        if !may_take(usage.threads, free) {
            return false;
        }
        usage.threads += 1;
        self.due.extend(usage.held.pop_front());
        true
    }

    /// A thread that ran a batch's fetch has rested from it.
    pub(super) fn rested(&mut self) {
        self.batch_threads -= 1;
    }

    /// Whether a fetch may begin.
    pub(super) fn has_next(&self, urgency: Urgency) -> bool {
        match urgency {
            Urgency::Client => !self.due.is_empty(),
            Urgency::Batch => self.next_batch().is_some(),
        }
    }

    /// Clients' fetches that wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Batches' fetches that wait.
    #[cfg(test)]
    pub(super) fn batch_waiting(&self) -> usize {
        self.batch.len()
    }

    /// Where the batch's fetch is that may begin next.
    fn next_batch(&self) -> Option<usize> {
        // The last free thread is a client's too: a host that hangs may have the others.
        if self.batch_threads == self.bounds.batch_threads
            || self.running + 1 >= self.bounds.threads
        {
            return None;
        }
        let free = self.free();
        let has = |job: &Job| self.hosts.get(host_of(&job.remote)).map_or(0, |usage| usage.threads);
        self.batch.iter().position(|job| may_take(has(job), free))
    }

    fn batch_position(&self, key: &ArtifactKey) -> Option<usize> {
        self.batch.iter().position(|job| job.key == *key)
    }
}

/// Where a remote is fetched from: host and port. Remotes that share them share their slowness.
fn host_of(remote: &Remote) -> &str {
    match &remote.kind {
        Kind::Remote(origin) => origin.bases.first().map_or("", |base| base.authority()),
        // Nothing of it is fetched; what it proves is its own affair.
        Kind::Local => remote.name.as_str(),
    }
}

/// What a remote's host takes up. Its name is copied the first time only.
fn usage_of<'a>(hosts: &'a mut HashMap<String, Usage>, remote: &Remote) -> &'a mut Usage {
    let host = host_of(remote);
    if !hosts.contains_key(host) {
        hosts.insert(host.to_owned(), Usage::default());
    }
    hosts.get_mut(host).expect("it was put there if it was not")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::artifact::{ArtifactPath, BlobKey};
    use crate::cache::fetch::Task;
    use crate::cache::flight::{Flights, Joined};
    use crate::config::file::{Around, parse};
    use crate::formats::Class;

    const BOUNDS: Bounds = Bounds { threads: 4, batch_threads: 1, waiting: 2, batch_waiting: 4 };

    fn key(path: &str) -> ArtifactKey {
        let path = ArtifactPath::from_canonical(path).unwrap();
        ArtifactKey { remote: "a".parse().unwrap(), path }
    }

    /// A job of remote `a`, which is never run.
    fn job(path: &str) -> Job {
        let yaml = "remotes:\n  a: {base_url: https://example.org, include_patterns: ['.']}\n";
        let around = Around { regex_size_max: 1 << 20, env: &|_| None };
        let (remotes, _) = parse(yaml, "remotes.yaml", &around).unwrap();
        let key = key(path);
        let Joined::Lead(writer) = Arc::<Flights>::default().join(&key, None) else {
            panic!("nobody else flies")
        };
        Job {
            writer,
            blob: BlobKey::of(&key),
            class: Class::Immutable,
            task: Task::Fetch,
            remote: Arc::clone(&remotes.by_name[&key.remote]),
            upstream: None,
            key,
        }
    }

    fn push(line: &mut Line, path: &str, urgency: Urgency) -> bool {
        line.push(job(path), urgency).is_none()
    }

    fn next(line: &mut Line, takes: Takes) -> Option<(String, Urgency)> {
        line.next(takes).map(|(job, urgency)| (job.key.path.to_string(), urgency))
    }

    /// How much hosts get of so much, one after the other.
    fn shares(all: usize) -> Vec<usize> {
        let mut left = all;
        let mut shares = Vec::new();
        while left > 0 {
            let mut has = 0;
            while may_take(has, left - has) {
                has += 1;
            }
            shares.push(has);
            left -= has;
        }
        shares
    }

    #[test]
    fn a_host_gets_three_quarters_of_what_others_leave() {
        assert_eq!(shares(32), [24, 6, 1, 1]);
        assert_eq!(shares(256), [192, 48, 12, 3, 1]);
        assert_eq!(shares(8), [6, 1, 1]);
        assert_eq!(shares(4), [3, 1]);
        assert_eq!(shares(3), [2, 1]);
        assert_eq!(shares(1), [1]);
    }

    #[test]
    fn who_rests_from_a_batchs_fetch_keeps_its_place_from_other_batches_only() {
        let mut line = Line::new(BOUNDS);
        for path in ["1", "2"] {
            assert!(push(&mut line, path, Urgency::Batch));
        }
        assert_eq!(next(&mut line, Takes::Clients), None);
        assert_eq!(next(&mut line, Takes::Any), Some(("1".to_owned(), Urgency::Batch)));
        line.ended(&job("1").remote);
        assert_eq!(next(&mut line, Takes::Any), None);
        assert!(push(&mut line, "3", Urgency::Client));
        assert_eq!(next(&mut line, Takes::Clients), Some(("3".to_owned(), Urgency::Client)));
        line.rested();
        assert_eq!(next(&mut line, Takes::Any), Some(("2".to_owned(), Urgency::Batch)));
    }

    #[test]
    fn what_a_client_joins_stays_in_its_place_where_clients_have_no_room() {
        let mut line = Line::new(BOUNDS);
        for path in ["1", "2", "3"] {
            assert!(push(&mut line, path, Urgency::Batch));
        }
        assert!(push(&mut line, "4", Urgency::Client));
        line.promote(&key("2"));
        assert_eq!((line.waiting(), line.batch_waiting()), (1, 3));
        for path in ["4", "1"] {
            assert_eq!(next(&mut line, Takes::Any).unwrap().0, path);
        }
        line.promote(&key("3"));
        assert_eq!(next(&mut line, Takes::Any), Some(("3".to_owned(), Urgency::Client)));
        assert!(line.withdraw(&key("2")).is_some());
        assert!(line.withdraw(&key("3")).is_none(), "it is a client's");
    }
}
