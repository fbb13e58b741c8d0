//! A request that comes between the row and the blob of a purge.

use std::ops::{ControlFlow, Range};
use std::sync::Mutex;
use std::thread::{self, JoinHandle};
use std::time::SystemTime;

use super::*;
use crate::artifact::{BlobKey, BlobVersion};
use crate::blob::{About, BlobError, BlobMeta, BlobStore};
use crate::body::Body;
use crate::cache::tests::{GENERIC, get, memory_ports, remotes, replica};
use crate::cache::{Outcome, Ports};
use crate::clock::Clock;
use crate::staging::SealedFile;
use crate::upstream::scripted::{File, Scripted};

/// Somebody who comes before a blob is removed.
type Visitor = Box<dyn FnOnce() + Send>;

#[derive(Debug)]
struct Visited(Arc<dyn BlobStore>, Arc<Visitors>);

#[derive(Default)]
struct Visitors(Mutex<Option<Visitor>>);

impl std::fmt::Debug for Visitors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Visitors")
    }
}

impl BlobStore for Visited {
    fn publish(
        &self,
        key: &BlobKey,
        sealed: &SealedFile,
        about: &About,
    ) -> Result<BlobVersion, BlobError> {
        self.0.publish(key, sealed, about)
    }

    fn persist(&self, key: &BlobKey) -> Result<(), BlobError> {
        self.0.persist(key)
    }

    fn open(
        &self,
        key: &BlobKey,
        version: &BlobVersion,
        range: Range<u64>,
    ) -> Result<Body, BlobError> {
        self.0.open(key, version, range)
    }

    fn stat(&self, key: &BlobKey) -> Result<Option<BlobMeta>, BlobError> {
        self.0.stat(key)
    }

    fn remove(&self, key: &BlobKey) -> Result<(), BlobError> {
        let visitor = self.1.0.lock().unwrap().take();
        if let Some(visitor) = visitor {
            visitor();
        }
        self.0.remove(key)
    }

    fn each(&self, visit: &mut dyn FnMut(BlobMeta) -> ControlFlow<()>) -> Result<(), BlobError> {
        self.0.each(visit)
    }
}

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
        let visitors = Arc::<Visitors>::default();
        let ports = memory_ports(folder.path(), 1 << 30, &clock);
        let blobs = Arc::new(Visited(Arc::clone(&ports.blobs), Arc::clone(&visitors)));
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
        *visitors.0.lock().unwrap() = Some(Box::new(visit));
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
