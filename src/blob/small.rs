//! Small blobs in memory, before a store that is far: asking it costs more than sending them.
//!
//! A wrapper over any store. What it reads of a small blob's beginning it reads at once and
//! keeps; the blobs that were not used for longest make room. So a slow client holds no
//! connection of the store, and one that breaks off is known before anything is sent.
//!
//! Another replica may replace or remove a blob meanwhile. That does not matter: whoever asks
//! names a version, and the bytes of a version never change.

use std::ops::{ControlFlow, Range};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::artifact::{BlobKey, BlobVersion};
use crate::blob::by_use::ByUse;
use crate::blob::{About, BlobError, BlobMeta, BlobStore, TierCounters};
use crate::body::{Body, read_to_vec};
use crate::staging::SealedFile;

/// The largest beginning of a blob that is kept.
const BEGINNING_BYTES_MAX: usize = 64 << 10;
/// What a blob takes beside its bytes, about: its key twice, its version, and its places.
const BESIDE_BYTES: u64 = 512;

/// A store with small blobs in memory before it.
#[derive(Debug)]
pub struct SmallBlobs {
    behind: Arc<dyn BlobStore>,
    bytes_max: u64,
    // Guards single steps; nothing else is taken under it.
    table: Mutex<Table>,
    counters: TierCounters,
}

#[derive(Debug)]
struct Table {
    /// Beginnings of blobs.
    here: ByUse<Arc<[u8]>>,
    /// What `here` takes.
    bytes: u64,
}

impl SmallBlobs {
    /// Keeps at most `bytes_max` bytes of blobs before `behind`.
    pub fn new(behind: Arc<dyn BlobStore>, bytes_max: u64, counters: TierCounters) -> Self {
        let table = Table { here: ByUse::new(), bytes: 0 };
        Self { behind, bytes_max, table: Mutex::new(table), counters }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("nothing can panic while it holds the table")
    }

    /// A run of bytes from here, if the beginning that is here has all of them.
    fn open_here(
        &self,
        key: &BlobKey,
        version: &BlobVersion,
        range: &Range<usize>,
    ) -> Option<Body> {
        let bytes = Arc::clone(self.table().here.used(key, version)?);
        (range.end <= bytes.len()).then(|| Body::from_shared(bytes, range.clone()))
    }

    fn keep(&self, key: &BlobKey, version: &BlobVersion, bytes: &Arc<[u8]>) {
        let mut table = self.table();
        // Another reader may have been quicker, and have read more.
        let known = table.here.get(key).filter(|(here, _)| *here == version);
        let is_known = known.is_some_and(|(_, known)| known.len() >= bytes.len());
        if is_known || taken(bytes) > self.bytes_max {
            return;
        }
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

/// A range that a beginning which is kept can have, in numbers of this machine.
fn within_beginning(range: &Range<u64>) -> Option<Range<usize>> {
    let (start, end) = (usize::try_from(range.start).ok()?, usize::try_from(range.end).ok()?);
    (start <= end && end <= BEGINNING_BYTES_MAX).then_some(start..end)
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

    fn persist(&self, key: &BlobKey) -> Result<(), BlobError> {
        self.behind.persist(key)
    }

    fn open(
        &self,
        key: &BlobKey,
        version: &BlobVersion,
        range: Range<u64>,
    ) -> Result<Body, BlobError> {
        let within = within_beginning(&range);
        if let Some(range) = &within
            && let Some(body) = self.open_here(key, version, range)
        {
            self.counters.hits.inc();
            return Ok(body);
        }
        let mut body = self.behind.open(key, version, range)?;
        self.counters.misses.inc();
        match within {
            Some(range) if range.start == 0 => {
                let bytes = read_to_vec(&mut body, BEGINNING_BYTES_MAX).map_err(|error| {
                    let (operation, key) = ("read", key.to_string());
                    BlobError::Unavailable { operation, key, source: error.into() }
                })?;
                let bytes = Arc::from(bytes);
                self.keep(key, version, &bytes);
                Ok(Body::from_shared(bytes, range))
            }
            _ => Ok(body),
        }
    }

    fn stat(&self, key: &BlobKey) -> Result<Option<BlobMeta>, BlobError> {
        self.behind.stat(key)
    }

    fn remove(&self, key: &BlobKey) -> Result<(), BlobError> {
        let removed = self.behind.remove(key);
        self.forget(key);
        removed
    }

    fn each(&self, visit: &mut dyn FnMut(BlobMeta) -> ControlFlow<()>) -> Result<(), BlobError> {
        self.behind.each(visit)
    }
}

#[cfg(test)]
mod tests;
