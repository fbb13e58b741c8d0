//! Blobs in memory: the reference that tests of the rooms above run on.
//!
//! It holds whole blobs, so it is for tests only. A version is a number that is never used
//! twice.

use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{About, BlobError, BlobMeta, BlobStore};
use crate::artifact::{BlobKey, BlobVersion};
use crate::body::Body;
use crate::clock::Clock;
use crate::staging::SealedFile;

/// A store of blobs in memory.
#[derive(Debug, Default)]
pub struct MemoryBlobs {
    clock: Clock,
    // Guards the table for single steps only; nothing else is taken under it.
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    published: u64,
    blobs: BTreeMap<BlobKey, (Arc<[u8]>, BlobMeta)>,
}

impl MemoryBlobs {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts bytes in place, unless `judge` says of what lies there that it stays.
    fn put(
        &self,
        key: &BlobKey,
        sealed: &SealedFile,
        about: &About,
        judge: impl FnOnce(&BlobMeta) -> Result<Option<BlobVersion>, BlobError>,
    ) -> Result<BlobVersion, BlobError> {
        let mut bytes = vec![0; sealed.len() as usize];
        sealed.file().read_exact_at(&mut bytes, 0).map_err(|source| BlobError::Unavailable {
            operation: "publish",
            key: key.to_string(),
            source: source.into(),
        })?;
        let mut table = self.table();
        if let Some((_, there)) = table.blobs.get(key)
            && let Some(version) = judge(there)?
        {
            return Ok(version);
        }
        table.published += 1;
        let version = BlobVersion(table.published.to_string());
        let meta = BlobMeta {
            key: key.clone(),
            version: version.clone(),
            size: sealed.len(),
            published_at: self.clock.now(),
            about: Some(about.clone()),
        };
        table.blobs.insert(key.clone(), (bytes.into(), meta));
        Ok(version)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BlobStore for MemoryBlobs {
    fn publish(
        &self,
        key: &BlobKey,
        sealed: &SealedFile,
        about: &About,
    ) -> Result<BlobVersion, BlobError> {
        self.put(key, sealed, about, |_| Ok(None))
    }

    fn publish_over(
        &self,
        key: &BlobKey,
        there: Option<&BlobVersion>,
        sealed: &SealedFile,
        about: &About,
    ) -> Result<BlobVersion, BlobError> {
        self.put(key, sealed, about, |found| {
            let is_same = |found: &About| found.digest == about.digest;
            match found.about.as_ref().is_some_and(is_same) {
                _ if Some(&found.version) == there => Ok(None),
                true => Ok(Some(found.version.clone())),
                false => Err(BlobError::Changed(key.clone())),
            }
        })
    }

    fn open(
        &self,
        key: &BlobKey,
        version: &BlobVersion,
        range: Range<u64>,
    ) -> Result<Body, BlobError> {
        let table = self.table();
        let (bytes, meta) = table.blobs.get(key).ok_or_else(|| BlobError::Missing(key.clone()))?;
        if meta.version != *version {
            return Err(BlobError::Changed(key.clone()));
        }
        let asked = bytes.get(range.start as usize..range.end as usize).ok_or_else(|| {
            BlobError::Corrupt {
                key: key.clone(),
                reason: format!("it has {} bytes, not {range:?}", bytes.len()),
            }
        })?;
        Ok(Body::from_bytes(asked))
    }

    fn stat(&self, key: &BlobKey) -> Result<Option<BlobMeta>, BlobError> {
        Ok(self.table().blobs.get(key).map(|(_, meta)| meta.clone()))
    }

    fn remove(&self, key: &BlobKey) -> Result<(), BlobError> {
        self.table().blobs.remove(key);
        Ok(())
    }

    fn remove_version(&self, key: &BlobKey, version: &BlobVersion) -> Result<(), BlobError> {
        let mut table = self.table();
        if table.blobs.get(key).is_some_and(|(_, there)| there.version == *version) {
            table.blobs.remove(key);
        }
        Ok(())
    }

    fn each(&self, visit: &mut dyn FnMut(BlobMeta) -> ControlFlow<()>) -> Result<(), BlobError> {
        // A copy, because `visit` may come back to the store.
        let shown: Vec<BlobMeta> =
            self.table().blobs.values().map(|(_, meta)| meta.clone()).collect();
        let _broken_off = shown.into_iter().try_for_each(visit);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::MemoryBlobs;

    crate::blob::conformance::blob_conformance!(|| (MemoryBlobs::new(), ()));
}
