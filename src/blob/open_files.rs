//! Files that are opened again and again, kept open: opening a small file costs more than sending it.
//!
//! A kept file is looked at again before each use. It is used only while it still has a name,
//! and still is the version that was asked for, so that what is removed, replaced or written to
//! behind our back is seen as if the file were opened anew. Whoever removes or replaces a blob
//! says so ([`OpenFiles::forget`]), because an open file keeps its space on the disk.

use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use super::version_of;
use crate::artifact::{BlobKey, BlobVersion};
use crate::recent::{Recent, Ticket};

/// Files that are kept open: few of the descriptors that a process has by default (1,024). The
/// files that many clients ask for, indexes above all, are few.
const FILES_MAX: usize = 64;

/// Open files, the least recently used of which make room for others.
#[derive(Debug)]
pub(super) struct OpenFiles(Recent<BlobKey, Arc<Kept>>);

#[derive(Debug)]
struct Kept {
    version: BlobVersion,
    file: Arc<File>,
    stamp: Stamp,
}

/// What changes when a file is written to.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    len: u64,
    modified: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self { len: metadata.len(), modified: (metadata.mtime(), metadata.mtime_nsec()) }
    }
}

impl OpenFiles {
    pub(super) fn new() -> Self {
        Self(Recent::new(FILES_MAX))
    }

    /// The file of a version of a blob, and its length, if it is kept.
    pub(super) fn get(&self, key: &BlobKey, version: &BlobVersion) -> Option<(Arc<File>, u64)> {
        let kept = self.0.get(key).filter(|kept| kept.version == *version)?;
        let metadata = kept.file.metadata().ok()?;
        let is_as_opened = metadata.nlink() > 0 && Stamp::of(&metadata) == kept.stamp;
        is_as_opened.then(|| (Arc::clone(&kept.file), kept.stamp.len))
    }

    /// A ticket to keep a file that is opened after this call.
    pub(super) fn ticket(&self, key: &BlobKey) -> Ticket {
        self.0.ticket(key)
    }

    /// Keeps a file that was opened after the ticket was drawn, if it is opened again and again.
    pub(super) fn keep(
        &self,
        ticket: Ticket,
        key: &BlobKey,
        file: &Arc<File>,
        metadata: &Metadata,
    ) {
        self.0.keep_if_again(ticket, key, || {
            let (version, stamp) = (version_of(metadata), Stamp::of(metadata));
            Arc::new(Kept { version, file: Arc::clone(file), stamp })
        });
    }

    /// Closes the file of a blob that was removed or replaced.
    pub(super) fn forget(&self, key: &BlobKey) {
        self.0.forget(key);
    }

    /// Closes all files: of those that were removed behind our back, nobody tells.
    pub(super) fn forget_all(&self) {
        self.0.forget_all();
    }
}
