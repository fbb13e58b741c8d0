//! The connection that writes, and how it gets through on a full disk.

use std::sync::{Mutex, MutexGuard, PoisonError};

use rusqlite::Connection;

use super::checkpoint;
use super::reserve::{Reserve, is_full};

/// The writer; `None` once closed. The lock guards the order of generations, which are drawn
/// and committed under it; no reader is taken meanwhile.
#[derive(Debug)]
pub(super) struct SharedWriter(Mutex<Option<Writer>>);

impl SharedWriter {
    pub(super) fn new(writer: Writer) -> Self {
        Self(Mutex::new(Some(writer)))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Option<Writer>> {
        // A panic under the lock rolled its statement or transaction back.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
pub(super) struct Writer {
    pub(super) connection: Connection,
    pub(super) run: u64,
    pub(super) last_generation: u64,
    /// Whether no sync has failed. The kernel reports lost pages once and then calls them
    /// clean, so that after a failure a later success proves nothing.
    pub(super) vouches: bool,
    /// Whether a sync of the log has failed: what it held may not be on the disk.
    pub(super) may_have_lost: bool,
    /// Rows that were written since the log was last to be folded back.
    pub(super) unfolded: usize,
    pub(super) reserve: Reserve,
}

impl Writer {
    /// Runs a write that must get through on a full disk as well: after folding the log back,
    /// for then it begins anew in the room that it has, or else in the room that is kept.
    pub(super) fn with_reserve<T>(
        &mut self,
        write: impl Fn(&Connection) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        // What an earlier removal led to, before others take it.
        self.reserve.restore_given();
        let mut written = write(&self.connection);
        if written.as_ref().is_err_and(is_full) {
            self.fold_back();
            written = write(&self.connection);
        }
        while written.as_ref().is_err_and(is_full) && self.reserve.give_up() {
            written = write(&self.connection);
            // The index's file may grow into what is left of it, and then the next one needs none.
            self.fold_back();
        }
        self.reserve.restore_given();
        written
    }

    fn fold_back(&mut self) {
        // On a full disk it fails where the index's file has to grow.
        if let Err(error) = checkpoint::pass(&self.connection)
            && checkpoint::may_lose(&error)
        {
            self.doubt();
        }
    }

    /// The kernel tells once of pages that it could not write: later syncs prove nothing.
    pub(super) fn doubt(&mut self) {
        self.vouches = false;
        self.may_have_lost = true;
    }
}
