//! Files that are opened again and again, kept open: opening a small file costs more than sending it.
//!
//! A kept file is looked at again before each use. It is used only while it still has a name, and
//! still is what was asked for, so that what is removed, replaced or written to behind our back
//! is seen as if the file were opened anew. Whoever removes or replaces a file says so
//! ([`OpenFiles::forget`]), because an open file keeps its space on the disk.

use std::fs::{File, Metadata};
use std::hash::Hash;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use crate::recent::Recent;

/// Files that a store keeps open: few of the descriptors that a process has by default (1,024).
/// The files that many clients ask for, indexes above all, are few.
const FILES_MAX: usize = 64;

/// Open files, the least recently used of which make room for others.
#[derive(Debug)]
pub(super) struct OpenFiles<K>(Recent<K, Arc<File>>);

impl<K: Hash + Eq + Clone> OpenFiles<K> {
    pub(super) fn new() -> Self {
        Self(Recent::new(FILES_MAX))
    }

    /// A file with its metadata as they are now: the one that is kept, if these `fit`, or what
    /// `open` gives, which is kept if it is opened again and again.
    ///
    /// # Errors
    /// Those of `open`.
    pub(super) fn open<E>(
        &self,
        key: &K,
        fit: impl Fn(&Metadata) -> bool,
        open: impl FnOnce() -> Result<(File, Metadata), E>,
    ) -> Result<(Arc<File>, Metadata), E> {
        if let Some(file) = self.0.get(key)
            && let Ok(metadata) = file.metadata()
            && metadata.nlink() > 0
            && fit(&metadata)
        {
            return Ok((file, metadata));
        }
        let ticket = self.0.ticket(key);
        let (file, metadata) = open()?;
        let file = Arc::new(file);
        self.0.keep_if_again(ticket, key, || Arc::clone(&file));
        Ok((file, metadata))
    }

    /// Closes a file that was removed or replaced.
    pub(super) fn forget(&self, key: &K) {
        self.0.forget(key);
    }

    /// Closes all files: of those that were removed behind our back, nobody tells.
    pub(super) fn forget_all(&self) {
        self.0.forget_all();
    }

    /// Whether a file is kept open, whatever became of it.
    #[cfg(test)]
    pub(super) fn keeps(&self, key: &K) -> bool {
        self.0.get(key).is_some()
    }
}
