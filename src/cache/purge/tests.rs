//! A request that comes between the row and the blob of a purge.

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::SystemTime;

use super::*;
use crate::cache::tests::{GENERIC, get, memory_ports, remotes, replica};
use crate::cache::upkeep::tests::{MeddledBlobs, Meddling};
use crate::cache::{Outcome, Ports};
use crate::clock::Clock;
use crate::upstream::scripted::{File, Scripted};

/// Asks for the file as a client would.
fn client(cache: &Arc<Cache>, target: &Arc<Target>) -> JoinHandle<(Outcome, Vec<u8>)> {
    let (cache, target) = (Arc::clone(cache), Arc::clone(target));
    thread::spawn(move || get(&cache, &target, "a").unwrap())
}

#[test]
fn a_client_that_comes_in_between_fetches_the_file_for_all_who_follow() {
    for is_other in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let clock = Clock::set_by_hand(SystemTime::now());
        let meddling = Arc::<Meddling>::default();
        let ports = memory_ports(folder.path(), 1 << 30, &clock);
        let blobs = Arc::new(MeddledBlobs(Arc::clone(&ports.blobs), Arc::clone(&meddling)));
        let ports = Ports { blobs, ..ports };
        let [cache, other] = [replica(&ports), replica(&ports)];
        let remote = remotes(GENERIC, "index_ttl: 100").by_name.into_values().next().unwrap();
        let upstream = Scripted::new().file("a", File::of("bytes"));
        let target = Arc::new(Target { remote, upstream: Some(Arc::new(upstream)) });
        assert_eq!(client(&cache, &target).join().unwrap().0, Outcome::Miss);
        while cache.flight_count() > 0 {
            thread::yield_now();
        }
        let asks = if is_other { other } else { Arc::clone(&cache) };
        let (asked, answer) = crossbeam_channel::bounded(1);
        let visit = {
            let (asks, target) = (Arc::clone(&asks), Arc::clone(&target));
            let key = target.key(ArtifactPath::from_canonical("a").unwrap());
            move || {
                let client = client(&asks, &target);
                let deadline = Instant::now() + Duration::from_secs(20);
                // Until it has its file, or waits for the purge to end.
                let waits = || match asks.flights.find(&key) {
                    Some(flight) => is_other || flight.is_urgent(),
                    None => false,
                };
                while !client.is_finished() && !waits() {
                    assert!(Instant::now() < deadline, "it neither waits nor ends");
                    thread::yield_now();
                }
                asked.send(client).unwrap();
            }
        };
        *meddling.before_remove.lock().unwrap() = Some(Box::new(visit));
        let path = ArtifactPath::from_canonical("a").unwrap();
        let purged = cache.purge(&target, &path, &|_| true);
        assert!(matches!(purged, Ok(Purged::Removed(_))), "{purged:?}");
        let (_, bytes) = answer.recv().unwrap().join().unwrap();
        assert_eq!(bytes, b"bytes");
        while asks.flight_count() > 0 {
            thread::yield_now();
        }
        assert_eq!(client(&asks, &target).join().unwrap().0, Outcome::Hit, "other: {is_other}");
    }
}
