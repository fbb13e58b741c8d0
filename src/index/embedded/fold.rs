//! Folds the write-ahead log back into the file, beside the writer.
//!
//! SQLite would do it within a commit, and whoever writes would wait for two syncs of the disk.
//! Here a thread of its own does nearly all of it while the writer goes on; only for the rest,
//! what was written meanwhile, the writer is kept out, because the log begins anew only from a
//! moment at which all of it is folded back. <https://www.sqlite.org/wal.html#ckpt>

use std::io;
use std::mem;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, bounded};
use rusqlite::Connection;

use super::SharedWriter;

/// Rows after whose writing the log is folded back; each takes about four pages of it.
pub(super) const FOLD_ROWS: usize = 1_024;
/// Passes beside the writer: each takes what was written during the one before, until that is
/// at most so many pages, for which the writer can be kept out.
const PASSES_MAX: usize = 4;
const REST_PAGES: i64 = 256;

/// The thread that folds. It ends when this is dropped, which waits for it.
#[derive(Debug)]
pub(super) struct Folder {
    due: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Folder {
    /// Starts it, with a connection of its own.
    ///
    /// # Errors
    /// What kept the thread from starting.
    pub(super) fn start(
        file: PathBuf,
        connection: Connection,
        writer: Arc<SharedWriter>,
    ) -> io::Result<Self> {
        let (due, dues) = bounded(1);
        let work = move || fold_when_due(&dues, &file, &connection, &writer);
        let thread = thread::Builder::new().name("index-fold".to_owned()).spawn(work)?;
        Ok(Self { due: Some(due), thread: Some(thread) })
    }

    /// Has it fold soon.
    pub(super) fn fold(&self) {
        if let Some(due) = &self.due {
            // It is to fold already, if there is no room.
            let _ = due.try_send(());
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        self.due = None;
        if let Some(thread) = self.thread.take() {
            thread.join().expect("folding does not panic");
        }
    }
}

fn fold_when_due(dues: &Receiver<()>, file: &Path, connection: &Connection, writer: &SharedWriter) {
    for () in dues {
        if let Err(error) = fold(connection, writer) {
            // Commits fold it back themselves once it is long enough.
            tracing::warn!(file = %file.display(), %error, "the log of the index was not folded back");
        }
    }
}

fn fold(connection: &Connection, writer: &SharedWriter) -> rusqlite::Result<()> {
    let mut folded = 0;
    for _ in 0..PASSES_MAX {
        let before = mem::replace(&mut folded, pass(connection)?);
        if folded - before <= REST_PAGES {
            break;
        }
    }
    let _kept_out = writer.lock();
    pass(connection).map(drop)
}

/// Folds back what can be without waiting for anybody; the pages of the log that are now.
fn pass(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| row.get(2))
}
