//! The pool as the cache uses it: who begins, who waits and who is refused while a remote's
//! upstream hangs.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use super::line::may_take;
use super::shared_out;
use crate::artifact::ArtifactPath;
use crate::cache::tests::{get, memory_ports, wait_until};
use crate::cache::{Cache, CacheBounds, CacheError, FetchError, Filled, Outcome, Target, Wish};
use crate::clock::Clock;
use crate::config::Remotes;
use crate::config::file::{Around, parse};
use crate::upstream::scripted::{File, Gate, Scripted};

/// What a file's fetch is held by, until the test lets it go.
type Held<'a> = (&'a str, &'a Gate);

/// A cache of remotes whose names are letters. Every file of theirs begins with its remote's.
struct World {
    cache: Arc<Cache>,
    upstream: Scripted,
    remotes: Remotes,
    _folder: tempfile::TempDir,
}

impl World {
    fn new(fetch_threads: usize, fetch_queue_max: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let clock = Clock::set_by_hand(SystemTime::now());
        let ports = memory_ports(folder.path(), 1 << 30, &clock);
        let lease_ttl = Duration::from_secs(20);
        let bounds = CacheBounds { fetch_threads, fetch_queue_max, lease_ttl };
        // Of one host are `c` and `d` only.
        let remote = |name, host| {
            format!("  {name}: {{base_url: https://{host}.example.org, include_patterns: ['.']}}\n")
        };
        let remotes = [("a", "a"), ("b", "b"), ("c", "c"), ("d", "c")];
        let remotes: String = remotes.into_iter().map(|(name, host)| remote(name, host)).collect();
        let yaml = format!("remotes:\n{remotes}");
        let around = Around { regex_size_max: 1 << 20, env: &|_| None };
        let (remotes, _) = parse(&yaml, "remotes.yaml", &around).expect("it is right");
        let cache = Arc::new(Cache::new(ports, &bounds));
        Self { cache, upstream: Scripted::new(), remotes, _folder: folder }
    }

    fn target(&self, path: &str) -> Target {
        let remote = Arc::clone(&self.remotes.by_name[&path[..1].parse().unwrap()]);
        Target { remote, upstream: Some(Arc::new(self.upstream.clone())) }
    }

    /// What a client gets for a file that upstream gives at once.
    fn get(&self, path: &str) -> Outcome {
        self.upstream.put(path, File::of(path));
        let (outcome, bytes) = get(&self.cache, &self.target(path), path).unwrap();
        assert_eq!(bytes, path.as_bytes());
        outcome
    }

    /// A client asks for a file that is held.
    fn ask(&self, (path, gate): Held<'_>) -> JoinHandle<Outcome> {
        self.upstream.put(path, File::of(path).head_held_by(gate));
        let (cache, target, path) = (Arc::clone(&self.cache), self.target(path), path.to_owned());
        thread::spawn(move || get(&cache, &target, &path).unwrap().0)
    }

    /// A client asks for a file that is held, and its fetch begins.
    fn begin(&self, held: Held<'_>) -> JoinHandle<Outcome> {
        let client = self.ask(held);
        self.upstream.wait_for(held.0, 1);
        client
    }

    /// A client asks for a file that is held, and its fetch waits for a thread.
    fn queue(&self, held: Held<'_>) -> JoinHandle<Outcome> {
        let before = self.cache.fetches_queued();
        let client = self.ask(held);
        wait_until(|| self.cache.fetches_queued() == before + 1);
        client
    }

    /// A batch asks for a file that is held.
    fn fill(&self, (path, gate): Held<'_>) -> JoinHandle<Result<Filled, CacheError>> {
        self.upstream.put(path, File::of(path).head_held_by(gate));
        let (cache, target) = (Arc::clone(&self.cache), self.target(path));
        let path = ArtifactPath::from_canonical(path).unwrap();
        let patient = |_| ControlFlow::Continue(());
        thread::spawn(move || cache.fill(&target, &path, None, Wish::Fresh, &patient))
    }

    /// A batch asks for a file that is held, and its fetch begins.
    fn begin_fill(&self, held: Held<'_>) -> JoinHandle<Result<Filled, CacheError>> {
        let fill = self.fill(held);
        self.upstream.wait_for(held.0, 1);
        fill
    }

    /// A batch asks for a file that is held, and its fetch waits for a thread.
    fn queue_fill(&self, held: Held<'_>) -> JoinHandle<Result<Filled, CacheError>> {
        let before = self.cache.fetches.batch_queued();
        let fill = self.fill(held);
        wait_until(|| self.cache.fetches.batch_queued() == before + 1);
        fill
    }

    #[track_caller]
    fn expect_refused(&self, path: &str) {
        let path_of = ArtifactPath::from_canonical(path).unwrap();
        match self.cache.find(&self.target(path), &path_of) {
            Err(CacheError::Fetch(why)) => assert!(matches!(*why, FetchError::Overloaded), "{why}"),
            other => panic!("{other:?}"),
        }
    }

    /// What upstream was asked for so far, in order.
    fn asked(&self) -> Vec<String> {
        self.upstream.requests().into_iter().map(|asked| asked.path).collect()
    }
}

#[track_caller]
fn all_end(clients: impl IntoIterator<Item = JoinHandle<Outcome>>) {
    for client in clients {
        assert_eq!(client.join().unwrap(), Outcome::Miss);
    }
}

#[track_caller]
fn all_filled(fills: impl IntoIterator<Item = JoinHandle<Result<Filled, CacheError>>>) {
    for fill in fills {
        assert!(matches!(fill.join().unwrap(), Ok(Filled::Fetched(_))));
    }
}

#[test]
fn a_remote_that_hangs_leaves_threads_to_the_others() {
    let (world, gate) = (World::new(4, 8), Gate::at(0));
    let mut clients: Vec<_> = ["a1", "a2", "a3"].map(|path| world.begin((path, &gate))).into();
    clients.extend(["a4", "a5"].map(|path| world.queue((path, &gate))));
    assert_eq!(world.get("b1"), Outcome::Miss);
    assert_eq!(world.get("c1"), Outcome::Miss);
    assert_eq!(world.upstream.count("a4"), 0);
    gate.open();
    all_end(clients);
}

#[test]
fn two_remotes_that_hang_leave_a_thread_to_a_third() {
    let (world, gate) = (World::new(8, 16), Gate::at(0));
    let begin = |path| world.begin((path, &gate));
    let mut clients: Vec<_> = ["a1", "a2", "a3", "a4", "a5", "a6", "b1"].map(begin).into();
    clients.push(world.queue(("b2", &gate)));
    assert_eq!(world.get("c1"), Outcome::Miss);
    assert_eq!(world.upstream.count("b2"), 0);
    gate.open();
    all_end(clients);
}

#[test]
fn a_fetch_that_was_held_back_begins_when_another_remote_leaves_more() {
    let (world, first, second) = (World::new(8, 16), Gate::at(0), Gate::at(0));
    let begun = ["a1", "a2", "a3", "a4", "a5", "a6"].map(|path| world.begin((path, &first)));
    let other = world.begin(("b1", &second));
    let held = ["b2", "b3"].map(|path| world.queue((path, &second)));
    first.open();
    all_end(begun);
    wait_until(|| world.upstream.count("b2") + world.upstream.count("b3") == 2);
    second.open();
    all_end(held.into_iter().chain([other]));
}

#[test]
fn remotes_of_one_host_have_one_share() {
    let (world, gate) = (World::new(4, 8), Gate::at(0));
    let mut clients: Vec<_> = ["c1", "d1", "c2"].map(|path| world.begin((path, &gate))).into();
    clients.push(world.queue(("d2", &gate)));
    assert_eq!(world.get("a1"), Outcome::Miss);
    assert_eq!(world.upstream.count("d2"), 0);
    gate.open();
    all_end(clients);
}

#[test]
fn a_remote_that_hangs_leaves_places_in_the_queue_to_the_others() {
    let (world, gate) = (World::new(4, 4), Gate::at(0));
    let mut clients: Vec<_> = ["a1", "a2", "a3"].map(|path| world.begin((path, &gate))).into();
    clients.extend(["a4", "a5", "a6"].map(|path| world.queue((path, &gate))));
    world.expect_refused("a7");
    clients.push(world.begin(("b1", &gate)));
    clients.push(world.queue(("b2", &gate)));
    // Now the whole queue is full.
    world.expect_refused("b3");
    world.expect_refused("c1");
    gate.open();
    all_end(clients);
}

#[test]
fn a_queue_of_one_place_takes_one_fetch_of_any_remote() {
    let (world, gate) = (World::new(4, 1), Gate::at(0));
    let mut clients: Vec<_> =
        ["a1", "a2", "a3"].into_iter().map(|path| world.begin((path, &gate))).collect();
    clients.push(world.queue(("a4", &gate)));
    world.expect_refused("a5");
    gate.open();
    all_end(clients);
}

#[test]
fn the_fetches_of_a_remote_begin_in_the_order_in_which_they_came() {
    let (world, held, free) = (World::new(4, 16), Gate::at(0), Gate::at(0));
    free.open();
    let first = Gate::at(0);
    let mut clients =
        vec![world.begin(("a1", &held)), world.begin(("a2", &held)), world.begin(("a3", &first))];
    let waiting = ["a4", "a5", "a6", "a7", "a8"];
    clients.extend(waiting.map(|path| world.queue((path, &free))));
    // They go through the one place that gets free, one behind the other.
    first.open();
    world.upstream.wait_for("a8", 1);
    assert_eq!(world.asked()[3..], waiting);
    held.open();
    all_end(clients);
}

#[test]
fn a_fetch_that_waits_for_another_of_its_remote_begins_when_that_one_ends() {
    let (world, gate) = (World::new(4, 8), Gate::at(0));
    // Any of them, so that it does not matter which thread ran it.
    for ending in 0..3 {
        let gates = [Gate::at(0), Gate::at(0), Gate::at(0)];
        let name = |n: usize| format!("a{ending}-{n}");
        let running: Vec<_> =
            gates.iter().enumerate().map(|(n, gate)| world.begin((&name(n), gate))).collect();
        let waiting = world.queue((&name(3), &gate));
        gates[ending].open();
        world.upstream.wait_for(&name(3), 1);
        gates.iter().chain([&gate]).for_each(Gate::open);
        all_end(running.into_iter().chain([waiting]));
    }
}

#[test]
fn what_a_batch_runs_counts_for_its_remote() {
    let (world, gate, batch_gate) = (World::new(4, 8), Gate::at(0), Gate::at(0));
    let fills = ["a1", "a2"].map(|path| world.begin_fill((path, &batch_gate)));
    // There is a thread for a client of the same remote, and one for other remotes.
    let mut clients = vec![world.begin(("a3", &gate))];
    clients.push(world.queue(("a4", &gate)));
    assert_eq!(world.get("b1"), Outcome::Miss);
    assert_eq!(world.upstream.count("a4"), 0);
    batch_gate.open();
    world.upstream.wait_for("a4", 1);
    all_filled(fills);
    gate.open();
    all_end(clients);
}

#[test]
fn a_batch_waits_for_its_remote_and_another_overtakes_it() {
    let (world, gate, first) = (World::new(8, 8), Gate::at(0), Gate::at(0));
    let mut clients: Vec<_> = ["a1", "a2"].map(|path| world.begin((path, &first))).into();
    clients.extend(["a3", "a4", "a5", "a6"].map(|path| world.begin((path, &gate))));
    let waiting = world.queue_fill(("a7", &gate));
    let other = world.begin_fill(("b1", &gate));
    assert_eq!(world.upstream.count("a7"), 0);
    first.open();
    world.upstream.wait_for("a7", 1);
    gate.open();
    all_end(clients);
    all_filled([waiting, other]);
}

#[test]
fn a_batch_leaves_the_last_thread_to_clients() {
    let (world, gate, batch_gate) = (World::new(4, 8), Gate::at(0), Gate::at(0));
    let clients = ["a1", "a2", "a3"].map(|path| world.begin((path, &gate)));
    let fill = world.queue_fill(("b1", &batch_gate));
    assert_eq!(world.get("c1"), Outcome::Miss);
    assert_eq!(world.upstream.count("b1"), 0);
    gate.open();
    world.upstream.wait_for("b1", 1);
    batch_gate.open();
    all_filled([fill]);
    all_end(clients);
}

#[test]
fn one_thread_serves_a_batch_a_client_and_another_remote() {
    let (world, gate) = (World::new(1, 1), Gate::at(0));
    let fill = world.begin_fill(("a1", &gate));
    let client = world.begin(("a2", &gate));
    let waiting = world.queue(("a3", &gate));
    wait_until(|| world.cache.fetches_queued() == 1);
    gate.open();
    all_filled([fill]);
    all_end([client, waiting]);
    let gate = Gate::at(0);
    let fill = world.begin_fill(("a4", &gate));
    let client = world.begin(("a5", &gate));
    assert_eq!(world.get("b1"), Outcome::Miss);
    gate.open();
    all_filled([fill]);
    all_end([client]);
}

#[test]
fn a_batchs_fetch_that_a_client_joins_counts_as_a_clients() {
    let (world, gate) = (World::new(4, 8), Gate::at(0));
    let mut clients: Vec<_> = ["a1", "a2", "a3"].map(|path| world.begin((path, &gate))).into();
    let fill = world.queue_fill(("a4", &gate));
    let (cache, target) = (Arc::clone(&world.cache), world.target("a4"));
    let joined = thread::spawn(move || get(&cache, &target, "a4").unwrap().0);
    wait_until(|| world.cache.fetches_queued() == 1);
    assert_eq!(world.cache.fetches.batch_queued(), 0);
    clients.push(world.queue(("a5", &gate)));
    gate.open();
    all_end(clients);
    all_filled([fill]);
    assert_eq!(joined.join().unwrap(), Outcome::Collapsed);
}

#[test]
fn there_is_a_thread_for_a_batch_a_client_of_its_remote_and_another_remote() {
    for configured in 1..=4096 {
        let (threads, batch_threads) = shared_out(configured);
        let beside_batch = may_take(batch_threads, threads - batch_threads);
        let all_but_one = may_take(threads - 1, 1);
        assert!(beside_batch && !all_but_one, "{configured}");
        assert!(threads == configured || configured < 3, "{configured}");
    }
}

#[test]
fn batches_have_half_of_the_threads_at_most() {
    let (world, gate) = (World::new(4, 8), Gate::at(0));
    let fills = [world.begin_fill(("a1", &gate)), world.begin_fill(("b1", &gate))];
    let waiting = world.queue_fill(("c1", &gate));
    assert_eq!(world.get("c2"), Outcome::Miss);
    assert_eq!(world.upstream.count("c1"), 0);
    gate.open();
    all_filled(fills.into_iter().chain([waiting]));
}

#[test]
fn whatever_comes_and_ends_at_once_nothing_is_left_waiting() {
    const FILES: usize = 400;
    let world = World::new(4, 4 * FILES);
    let seen = thread::scope(|scope| {
        let workers: Vec<_> = ["a", "a", "b", "c"]
            .into_iter()
            .enumerate()
            .map(|(lane, remote)| {
                let world = &world;
                scope.spawn(move || {
                    for n in 0..FILES {
                        let path = format!("{remote}{lane}-{n}");
                        world.upstream.put(&path, File::of(path.as_str()));
                        let target = world.target(&path);
                        let patient = |_| ControlFlow::Continue(());
                        let key = ArtifactPath::from_canonical(&path).unwrap();
                        if n % 3 == 0 {
                            let filled =
                                world.cache.fill(&target, &key, None, Wish::Fresh, &patient);
                            assert!(matches!(filled, Ok(Filled::Fetched(_))), "{path}");
                        } else {
                            assert_eq!(get(&world.cache, &target, &path).unwrap().0, Outcome::Miss);
                        }
                    }
                })
            })
            .collect();
        workers.into_iter().for_each(|worker| worker.join().unwrap());
        world.asked()
    });
    assert_eq!(seen.iter().collect::<HashSet<_>>().len(), 4 * FILES);
}
