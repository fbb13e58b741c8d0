//! Opening the index's file: whose it is, its schema's version, and the begin of a run.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior, params};

use super::doubt::{Doubts, Span, span_of};
use super::reserve::{Reserve, is_full};

const FILE: &str = "index.sqlite";
/// Marks the file as ours ("arti"), so that another program's is never migrated.
const APPLICATION_ID: i64 = 0x6172_7469;
/// What leads from each version of the schema to the next; the first from none. The version
/// is `PRAGMA user_version`. Never edit one that was released.
const MIGRATIONS: &[&str] = &[include_str!("../embedded.sql"), include_str!("../embedded_2.sql")];
/// How long a statement waits for another process, which can only be `sqlite3`.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Pages in memory, in KiB, of the writer and of each reader. They hold the upper levels of
/// the tree; the rest is in the kernel's page cache.
const WRITER_CACHE_KIB: i64 = 1_024;
const READER_CACHE_KIB: i64 = 1_024;
/// A commit folds the write-ahead log back itself when it has so many pages of 4 KiB, which is
/// only where `checkpoint.rs` does not keep up.
pub(super) const LOG_PAGES_MAX: i64 = 16_384;
/// What the log's file is cut to when it begins anew.
const LOG_BYTES_KEPT: i64 = 16 << 20;

/// Why the index can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenIndexError {
    /// The file is not an index that can be used.
    #[error(
        "{file} is damaged or not an artifactapi index ({reason}): move it away together with its -wal and -shm files, then run `artifactapi reindex` to rebuild it from the stored blobs"
    )]
    Damaged {
        /// The file.
        file: PathBuf,
        /// What gave it away.
        reason: String,
    },
    /// A later release has written it.
    #[error(
        "{file} has schema version {found}, and this artifactapi knows only up to {known}: run the release that wrote it or a later one, or move the file away and run `artifactapi reindex`"
    )]
    Newer {
        /// The file.
        file: PathBuf,
        /// Its schema's version.
        found: u64,
        /// The highest that this program knows.
        known: u64,
    },
    /// The folder can't be made.
    #[error("cannot make the folder of {file}")]
    Folder {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The disk is full.
    #[error(
        "cannot write to {file}, because its file system is full: make a few MiB of room on it"
    )]
    Full {
        /// The file.
        file: PathBuf,
        /// What SQLite says.
        source: rusqlite::Error,
    },
    /// SQLite refused for another reason.
    #[error("cannot use {file}")]
    Unusable {
        /// The file.
        file: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
    /// The file can't be opened beside SQLite.
    #[error("cannot open {file}")]
    File {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The thread that folds the log back can't be started.
    #[error("cannot start a thread for {file}")]
    Thread {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl OpenIndexError {
    pub(super) fn of(file: &Path, error: rusqlite::Error) -> Self {
        if is_full(&error) {
            return Self::Full { file: file.to_owned(), source: error };
        }
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                Self::Damaged { file: file.to_owned(), reason: error.to_string() }
            }
            _ => Self::Unusable { file: file.to_owned(), source: error },
        }
    }
}

/// An opened index at the begin of a run.
pub(super) struct Opened {
    pub(super) file: PathBuf,
    pub(super) writer: Connection,
    pub(super) readers: Vec<Connection>,
    pub(super) checkpointer: Connection,
    /// The file itself.
    pub(super) raw: File,
    pub(super) run: u64,
    pub(super) doubts: Doubts,
}

/// Opens the index and begins a run; on a full disk in the room that is kept for that.
pub(super) fn open(data_dir: &Path, readers: usize) -> Result<(Opened, Reserve), OpenIndexError> {
    let file = data_dir.join(FILE);
    fs::create_dir_all(data_dir)
        .map_err(|source| OpenIndexError::Folder { file: file.clone(), source })?;
    let mut reserve = Reserve::beside(&file);
    let opened = loop {
        // A try that fails closes what it opened, which folds the log back where it can.
        match open_file(&file, readers) {
            Err(OpenIndexError::Full { .. }) if reserve.give_up() => {}
            opened_or_failed => break opened_or_failed?,
        }
    };
    reserve.restore();
    Ok((opened, reserve))
}

fn open_file(file: &Path, readers: usize) -> Result<Opened, OpenIndexError> {
    let failed = |error| OpenIndexError::of(file, error);
    let flags = OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let read_write = flags | OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
    let mut writer = Connection::open_with_flags(file, read_write).map_err(failed)?;
    writer.busy_timeout(BUSY_TIMEOUT).map_err(failed)?;
    let version = version_of(&writer, file)?;
    set_up_writer(&writer).map_err(failed)?;
    migrate(&mut writer, version).map_err(failed)?;
    let (run, doubts) = begin_run(&mut writer).map_err(failed)?;
    let readers = (0..readers)
        .map(|_| {
            let reader =
                Connection::open_with_flags(file, flags | OpenFlags::SQLITE_OPEN_READ_ONLY)?;
            reader.busy_timeout(BUSY_TIMEOUT)?;
            reader.pragma_update(None, "cache_size", -READER_CACHE_KIB)?;
            Ok(reader)
        })
        .collect::<Result<_, _>>()
        .map_err(failed)?;
    let checkpointer = Connection::open_with_flags(file, read_write).map_err(failed)?;
    let raw = File::open(file)
        .map_err(|source| OpenIndexError::File { file: file.to_owned(), source })?;
    Ok(Opened { file: file.to_owned(), writer, readers, checkpointer, raw, run, doubts })
}

/// The version of the schema, 0 for a new file. Nothing is written before this has passed.
fn version_of(connection: &Connection, file: &Path) -> Result<u64, OpenIndexError> {
    let read = |sql: &str| {
        connection
            .query_row(sql, [], |row| row.get::<_, i64>(0))
            .map_err(|error| OpenIndexError::of(file, error))
    };
    let tables = read("SELECT count(*) FROM sqlite_schema")?;
    let version = read("PRAGMA user_version")?;
    if tables == 0 && version == 0 {
        return Ok(0);
    }
    let known = MIGRATIONS.len() as u64;
    if read("PRAGMA application_id")? != APPLICATION_ID {
        let reason = "it is another program's".to_owned();
        return Err(OpenIndexError::Damaged { file: file.to_owned(), reason });
    }
    match u64::try_from(version) {
        Ok(version) if (1..=known).contains(&version) => Ok(version),
        Ok(found) if found > known => {
            Err(OpenIndexError::Newer { file: file.to_owned(), found, known })
        }
        _ => {
            let reason = format!("its schema has version {version}");
            Err(OpenIndexError::Damaged { file: file.to_owned(), reason })
        }
    }
}

fn set_up_writer(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update(None, "cache_size", -WRITER_CACHE_KIB)?;
    connection.pragma_update_and_check(None, "wal_autocheckpoint", LOG_PAGES_MAX, |_| Ok(()))?;
    connection.pragma_update_and_check(None, "journal_size_limit", LOG_BYTES_KEPT, |_| Ok(()))
}

fn migrate(connection: &mut Connection, version: u64) -> rusqlite::Result<()> {
    for (done, step) in MIGRATIONS.iter().enumerate().skip(version as usize) {
        let transaction = immediate(connection)?;
        transaction.execute_batch(step)?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", done as i64 + 1)?;
        transaction.commit()?;
    }
    Ok(())
}

/// Doubts what the last run did not vouch for, and draws the number of this one.
fn begin_run(connection: &mut Connection) -> rusqlite::Result<(u64, Doubts)> {
    let transaction = immediate(connection)?;
    let (last_run, vouched): (u64, u64) =
        transaction.query_row("SELECT number, vouched FROM run", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })?;
    let mut spans = {
        let mut statement = transaction.prepare("SELECT first, last FROM doubt")?;
        statement
            .query_map([], |row| Ok(Span { first: row.get(0)?, last: row.get(1)? }))?
            .collect::<Result<Vec<_>, _>>()?
    };
    spans.push(Span { first: vouched + 1, last: span_of(last_run).last });
    let doubts = Doubts::new(spans);
    transaction.execute("DELETE FROM doubt", [])?;
    for span in doubts.spans() {
        transaction.execute("INSERT INTO doubt VALUES (?1, ?2)", params![span.first, span.last])?;
    }
    let run = last_run + 1;
    transaction.execute(
        "UPDATE run SET number = ?1, vouched = ?2",
        params![run, span_of(last_run).last],
    )?;
    transaction.commit()?;
    Ok((run, doubts))
}

fn immediate(connection: &mut Connection) -> rusqlite::Result<Transaction<'_>> {
    connection.transaction_with_behavior(TransactionBehavior::Immediate)
}
