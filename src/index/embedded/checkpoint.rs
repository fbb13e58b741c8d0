//! Folds the write-ahead log back into the file, beside the writer.
//!
//! SQLite would do it within a commit, and whoever writes would wait for all that this brings to
//! the disk. Here a thread of its own copies the pages and syncs them while the writer goes on.
//! Then the writer is kept out for a last pass over what was written meanwhile: only one that
//! reaches the log's end lets SQLite begin it anew, and syncs both files for that, with little
//! left to sync. <https://www.sqlite.org/wal.html#ckpt>

use std::fs::File;
use std::io;
use std::mem;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, bounded};
use rusqlite::{Connection, ErrorCode};

use super::open::LOG_PAGES_MAX;
use super::writer::SharedWriter;

/// Rows after whose writing the log is folded back; each takes up to four pages of it.
pub(super) const FOLD_ROWS: usize = 1_024;
/// Passes beside the writer: each takes what was written during the one before, until that is
/// at most so many pages. What a quick writer leaves after all of them is for the last pass.
const PASSES_MAX: usize = 4;
const REST_PAGES: i64 = 256;

/// The thread that folds. It ends when this is dropped, which waits for it.
#[derive(Debug)]
pub(super) struct Checkpointer {
    due: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What it works with.
#[derive(Debug)]
pub(super) struct Tools {
    /// The name of the index's file, for the log.
    pub(super) name: PathBuf,
    /// The file, to sync it. It must outlive every connection: closing it drops the locks that
    /// they hold on it (POSIX).
    pub(super) file: Arc<File>,
    /// A connection of its own.
    pub(super) connection: Connection,
    /// Who is kept out for the last pass.
    pub(super) writer: Arc<SharedWriter>,
}

impl Checkpointer {
    /// Starts it.
    ///
    /// # Errors
    /// What kept the thread from starting.
    pub(super) fn start(tools: Tools) -> io::Result<Self> {
        let (due, dues) = bounded(1);
        let work = move || tools.fold_when_due(&dues);
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

impl Drop for Checkpointer {
    fn drop(&mut self) {
        self.due = None;
        if let Some(thread) = self.thread.take() {
            thread.join().expect("folding does not panic");
        }
    }
}

/// How a pass went, in pages of the log since it began.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pass {
    written: i64,
    folded: i64,
}

/// Why the log was not folded back.
#[derive(Debug, thiserror::Error)]
enum FoldError {
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    #[error("the file cannot be synced")]
    Sync(#[from] io::Error),
}

impl Tools {
    fn fold_when_due(&self, dues: &Receiver<()>) {
        let name = self.name.display();
        let mut is_hindered = false;
        for () in dues {
            match self.fold() {
                Ok(Pass { written, folded }) if folded < written && written > LOG_PAGES_MAX => {
                    if !mem::replace(&mut is_hindered, true) {
                        tracing::warn!(file = %name, pages = written, "the log of the index grows: another process, such as sqlite3, has a transaction open that reads the file");
                    }
                }
                Ok(_) => is_hindered = false,
                // Commits fold it back themselves once it is long enough.
                Err(error) => {
                    tracing::warn!(file = %name, error = &error as &dyn std::error::Error, "the log of the index was not folded back");
                    self.doubt(&error);
                }
            }
        }
    }

    fn fold(&self) -> Result<Pass, FoldError> {
        let mut folded = 0;
        for _ in 0..PASSES_MAX {
            let before = mem::replace(&mut folded, pass(&self.connection)?.folded);
            if folded - before <= REST_PAGES {
                break;
            }
        }
        // SQLite does this only in a pass that reaches the end.
        self.file.sync_data()?;
        let _kept_out = self.writer.lock();
        Ok(pass(&self.connection)?)
    }

    fn doubt(&self, error: &FoldError) {
        let is_lost = match error {
            FoldError::Sync(_) => true,
            FoldError::Sqlite(error) => may_lose(error),
        };
        if is_lost && let Some(writer) = &mut *self.writer.lock() {
            writer.doubt();
        }
    }
}

/// Folds back what can be without waiting for anybody.
pub(super) fn pass(connection: &Connection) -> rusqlite::Result<Pass> {
    connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| {
        Ok(Pass { written: row.get(1)?, folded: row.get(2)? })
    })
}

/// Whether a pass that failed so may have lost pages.
pub(super) fn may_lose(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::SystemIoFailure)
}
