//! Small blobs in memory, before a store that is far: asking it costs more than sending them.
//!
//! A wrapper over any store. The second use of a small blob within a while reads all of it,
//! holds it against the digest that it describes itself by, and keeps it; the blobs that were
//! not used for longest make room. A version that is here is served from here, also while the
//! store behind does not answer.
//!
//! Another replica may replace or remove a blob meanwhile; what is here are still the bytes of
//! the version that was asked for. Who must know whether it is the latest asks the store itself
//! ([`BlobStore::open_current`]).

use std::ops::{ControlFlow, Range};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::artifact::{BlobKey, BlobVersion, Digest};
use crate::blob::by_use::ByUse;
use crate::blob::seen::Seen;
use crate::blob::{About, BlobError, BlobMeta, BlobStore, TierCounters};
use crate::body::{Body, read_to_vec};
use crate::clock::Clock;
use crate::staging::SealedFile;

/// The largest blob that is kept.
const BLOB_BYTES_MAX: usize = 64 << 10;
/// What a blob takes beside its bytes, about: its key twice, its version, and its places.
const BESIDE_BYTES: u64 = 512;

/// A store with small blobs in memory before it.
#[derive(Debug)]
pub struct SmallBlobs {
    behind: Arc<dyn BlobStore>,
    clock: Clock,
    bytes_max: u64,
    // Guards single steps; nothing else is taken under it.
    table: Mutex<Table>,
    counters: TierCounters,
}

#[derive(Debug)]
struct Table {
    here: ByUse<Arc<[u8]>>,
    /// What `here` takes.
    bytes: u64,
    seen: Seen,
}

impl SmallBlobs {
    /// Keeps at most `bytes_max` bytes of blobs before `behind`.
    pub fn new(
        behind: Arc<dyn BlobStore>,
        bytes_max: u64,
        clock: Clock,
        counters: TierCounters,
    ) -> Self {
        let table = Table { here: ByUse::new(), bytes: 0, seen: Seen::new(clock.now()) };
        Self { behind, clock, bytes_max, table: Mutex::new(table), counters }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("nothing can panic while it holds the table")
    }

    /// A run of bytes from here, if the blob has all of them.
    fn open_here(
        &self,
        key: &BlobKey,
        version: &BlobVersion,
        range: &Range<usize>,
    ) -> Option<Body> {
        let bytes = Arc::clone(self.table().here.used(key, version)?);
        (range.end <= bytes.len()).then(|| Body::from_shared(bytes, range.clone()))
    }

    /// Brings a blob of `len` bytes here; `None` where it is longer, and where it does not say
    /// what its digest is.
    fn fetch(
        &self,
        key: &BlobKey,
        version: &BlobVersion,
        len: usize,
    ) -> Result<Option<Arc<[u8]>>, BlobError> {
        let meta = self.behind.stat(key)?.filter(|meta| meta.version == *version);
        let about = meta.filter(|meta| meta.size == len as u64).and_then(|meta| meta.about);
        let Some(about) = about else { return Ok(None) };
        let mut body = self.behind.open(key, version, 0..len as u64)?;
        let bytes = read_to_vec(&mut body, BLOB_BYTES_MAX).map_err(|error| {
            let (operation, key) = ("read", key.to_string());
            BlobError::Unavailable { operation, key, source: error.into() }
        })?;
        let digest = Digest::of(&bytes);
        if digest != about.digest {
            self.counters.failures.inc();
            let reason = format!("its bytes hash to {digest}, not to {}", about.digest);
            return Err(BlobError::Corrupt { key: key.clone(), reason });
        }
        let bytes = Arc::from(bytes);
        self.keep(key, version, &bytes);
        Ok(Some(bytes))
    }

    fn keep(&self, key: &BlobKey, version: &BlobVersion, bytes: &Arc<[u8]>) {
        if taken(bytes) > self.bytes_max {
            return;
        }
        let mut table = self.table();
        table.bytes += taken(bytes);
        let replaced = table.here.insert(key, version, Arc::clone(bytes));
        table.bytes -= replaced.as_ref().map_or(0, taken);
        while table.bytes > self.bytes_max {
            let Some(least) = table.here.take_least_recent() else { break };
            table.bytes -= taken(&least);
            self.counters.evictions.inc();
        }
        self.counters.fills.inc();
        self.counters.set_bytes(table.bytes);
    }

    fn forget(&self, key: &BlobKey) {
        let mut table = self.table();
        let forgotten = table.here.take(key);
        table.bytes -= forgotten.as_ref().map_or(0, taken);
        self.counters.set_bytes(table.bytes);
    }
}

fn taken(bytes: &Arc<[u8]>) -> u64 {
    bytes.len() as u64 + BESIDE_BYTES
}

/// A range that a small blob can have, in numbers of this machine.
fn small(range: &Range<u64>) -> Option<Range<usize>> {
    let (start, end) = (usize::try_from(range.start).ok()?, usize::try_from(range.end).ok()?);
    (start <= end && end <= BLOB_BYTES_MAX).then_some(start..end)
}

impl BlobStore for SmallBlobs {
    fn publish(
        &self,
        key: &BlobKey,
        sealed: &SealedFile,
        about: &About,
    ) -> Result<BlobVersion, BlobError> {
        let published = self.behind.publish(key, sealed, about);
        self.forget(key);
        published
    }

    fn publish_over(
        &self,
        key: &BlobKey,
        there: Option<&BlobVersion>,
        sealed: &SealedFile,
        about: &About,
    ) -> Result<BlobVersion, BlobError> {
        let published = self.behind.publish_over(key, there, sealed, about);
        self.forget(key);
        published
    }

    fn persist(&self, key: &BlobKey) -> Result<(), BlobError> {
        self.behind.persist(key)
    }

    fn open(
        &self,
        key: &BlobKey,
        version: &BlobVersion,
        range: Range<u64>,
    ) -> Result<Body, BlobError> {
        let Some(run) = small(&range) else { return self.behind.open(key, version, range) };
        if let Some(body) = self.open_here(key, version, &run) {
            self.counters.hits.inc();
            return Ok(body);
        }
        self.counters.misses.inc();
        let is_used_again = run.start == 0 && self.table().seen.note(key, self.clock.now());
        if is_used_again && let Some(bytes) = self.fetch(key, version, run.end)? {
            return Ok(Body::from_shared(bytes, run));
        }
        self.behind.open(key, version, range)
    }

    fn open_current(
        &self,
        key: &BlobKey,
        version: &BlobVersion,
        range: Range<u64>,
    ) -> Result<Body, BlobError> {
        self.behind.open_current(key, version, range)
    }

    fn stat(&self, key: &BlobKey) -> Result<Option<BlobMeta>, BlobError> {
        self.behind.stat(key)
    }

    fn remove(&self, key: &BlobKey) -> Result<(), BlobError> {
        let removed = self.behind.remove(key);
        self.forget(key);
        removed
    }

    fn remove_version(&self, key: &BlobKey, version: &BlobVersion) -> Result<(), BlobError> {
        let removed = self.behind.remove_version(key, version);
        self.forget(key);
        removed
    }

    fn each(&self, visit: &mut dyn FnMut(BlobMeta) -> ControlFlow<()>) -> Result<(), BlobError> {
        self.behind.each(visit)
    }
}

#[cfg(test)]
mod tests;
