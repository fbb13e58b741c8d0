//! The index in one SQLite file, `DATA_DIR/index.sqlite`, for the `sqlite3` command too.
//!
//! One writer behind a lock and a few readers, which never wait for it (write-ahead log). Rows
//! that are put at the same time share a transaction (`embedded/puts.rs`).
//! Commits are not synced one by one: after a power failure the last of them may be missing,
//! which costs refetches; the file stays whole. Uploads ask for more
//! ([`ArtifactIndex::persist`]). What the blobs may have lost by the same power failure is the
//! affair of `embedded/doubt.rs`, whose head says why it counts and asks no clock.
//!
//! The rows that were looked up last are kept in memory too: a look-up of the file costs more than
//! all else that judges a hit. They are exact because nobody else writes: other artifactapi
//! processes are kept out by [`lock_data_dir`]. `sqlite3` is not, and may only read meanwhile.
//!
//! Deliberately not here: who else uses `DATA_DIR` ([`lock_data_dir`] sees to that), and how
//! a file system is synced (the caller of [`EmbeddedIndex::sync`] brings that).

mod checkpoint;
mod doubt;
mod lock;
mod open;
mod puts;
mod readers;
mod reserve;
mod writer;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::ops::{ControlFlow, RangeInclusive};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::available_parallelism;

use rusqlite::{Connection, OptionalExtension, ToSql, TransactionBehavior, params};

use self::checkpoint::{Checkpointer, FOLD_ROWS, Tools};
use self::doubt::{Doubts, span_of};
pub use self::lock::{DataDirLock, LockError, lock_data_dir};
pub use self::open::OpenIndexError;
use self::puts::Puts;
use self::readers::{Reader, Readers};
use self::writer::{SharedWriter, Writer};
use super::micros::{micros_of, time_of};
use super::paging::{self, PAGE_ROWS, Page, Pages, Start, UsePlace};
use super::{ArtifactIndex, IndexError, LeastUsed, Put, Row, Scan, Usage, Use};
use crate::artifact::{
    ArtifactKey, ArtifactPath, BlobKey, BlobVersion, Entry, RemoteName, Validators,
};
use crate::recent::Recent;

/// Connections that read: as many as processors, but not fewer and not more than these. A read
/// takes microseconds, so clients need none each; a few wait for the disk at times.
const READERS: RangeInclusive<usize> = 4..=8;
/// Uses in one transaction: a put waits for no more than these.
const TOUCH_BATCH: usize = 500;

/// Rows that are kept in memory, a few hundred bytes each: those that many clients ask for.
const RECENT_ROWS: usize = 256;

const GET: &str = "SELECT blob, version, size, sha256, content_type, etag, last_modified,
        content_encoding, head, stored_at, validated_at, generation, unproven
    FROM artifact WHERE remote = ?1 AND path = ?2";
const REMOVE: &str = "DELETE FROM artifact WHERE remote = ?1 AND path = ?2 AND generation = ?3";
// The sum can't leave SQLite's integers, where a STRICT column would refuse it.
const TOUCH: &str = "UPDATE artifact SET hits = min(hits, 9223372036854775807 - ?3) + ?3,
        last_used = max(coalesce(last_used, ?4), ?4)
    WHERE remote = ?1 AND path = ?2";
const NEXT_REMOTE: &str = "SELECT min(remote) FROM artifact WHERE remote > ?1";
const SCAN_FROM: &str = "SELECT blob, version, size, sha256, content_type, etag, last_modified,
        content_encoding, head, stored_at, validated_at, generation, unproven, path, last_used, hits
    FROM artifact WHERE remote = ?1 AND path >= ?2 ORDER BY path LIMIT ?3";
const SCAN_BEHIND: &str = "SELECT blob, version, size, sha256, content_type, etag, last_modified,
        content_encoding, head, stored_at, validated_at, generation, unproven, path, last_used, hits
    FROM artifact WHERE remote = ?1 AND path > ?2 ORDER BY path LIMIT ?3";
const LEAST_USED: &str = "SELECT blob, version, size, sha256, content_type, etag, last_modified,
        content_encoding, head, stored_at, validated_at, generation, unproven, path, last_used,
        hits, recency
    FROM artifact WHERE remote = ?1 AND (recency, path) > (?2, ?3)
    ORDER BY recency, path LIMIT ?4";
const USAGE: &str = "SELECT remote, artifacts, bytes, hits FROM usage";

/// The index in a file of the local disk.
///
/// Times are kept to the microsecond. [`Entry::unproven`] is set for a row whose blob a crash
/// of the machine may have taken, and stays set when such an entry is put again as it is: who
/// has hashed the blob puts it with `unproven: false`.
#[derive(Debug)]
pub struct EmbeddedIndex {
    file: PathBuf,
    doubts: Doubts,
    readers: Readers,
    // Exact, because nobody else writes to the file: `DATA_DIR` is locked.
    recent: Recent<ArtifactKey, Option<Entry>>,
    checkpointer: Checkpointer,
    puts: Puts,
    writer: Arc<SharedWriter>,
    /// Whether the log says already that the file is not under its name any more.
    is_gone: AtomicBool,
    // Closed last, after every connection: that would drop the locks that they hold.
    raw: Arc<File>,
}

#[derive(Debug, thiserror::Error)]
#[error("it is closed")]
struct Closed;

#[derive(Debug, thiserror::Error)]
#[error("all readers are busy")]
struct ReadersBusy;

#[derive(Debug, thiserror::Error)]
#[error("the disk failed to take what it was given before: see the log, and restart the server")]
struct MayHaveLost;

#[derive(Debug, thiserror::Error)]
#[error(
    "{0} was removed or replaced while the server runs, and what is recorded since will be lost: stop the server, put the file back or run `artifactapi reindex`, and start it again"
)]
struct Gone(PathBuf);

/// What makes a row unreadable.
struct Damage(String);

impl<E: std::error::Error> From<E> for Damage {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

impl EmbeddedIndex {
    /// Opens the index in `data_dir`, creating or migrating it if need be; nothing is scanned.
    /// Begins a run: what an earlier run that did not end by [`EmbeddedIndex::close_cleanly`]
    /// put after its last sync is unproven from now on.
    ///
    /// # Errors
    /// [`OpenIndexError`], which names the file and what to do.
    pub fn open(data_dir: &Path) -> Result<Self, OpenIndexError> {
        let processors = available_parallelism().map_or(1, usize::from);
        let readers = processors.clamp(*READERS.start(), *READERS.end());
        let (opened, reserve) = open::open(data_dir, readers)?;
        let writer = Writer {
            connection: opened.writer,
            run: opened.run,
            last_generation: span_of(opened.run).first,
            vouches: true,
            may_have_lost: false,
            unfolded: 0,
            reserve,
        };
        let writer = Arc::new(SharedWriter::new(writer));
        let (file, raw) = (opened.file, Arc::new(opened.raw));
        let checkpointer = Checkpointer::start(Tools {
            name: file.clone(),
            file: Arc::clone(&raw),
            connection: opened.checkpointer,
            writer: Arc::clone(&writer),
        })
        .map_err(|source| OpenIndexError::Thread { file: file.clone(), source })?;
        Ok(Self {
            file,
            doubts: opened.doubts,
            readers: Readers::new(opened.readers),
            recent: Recent::new(RECENT_ROWS),
            checkpointer,
            puts: Puts::default(),
            writer,
            is_gone: AtomicBool::new(false),
            raw,
        })
    }

    /// Runs `flush`, which must bring every blob that was published before to the disk, and
    /// records that the rows of these blobs need not be doubted after a crash. Call it
    /// periodically; writers go on meanwhile. Once it has failed, this run records no more.
    /// Also keeps room for removals again, where they had to give some up.
    ///
    /// # Errors
    /// What `flush` said, or why the record was not written.
    pub fn sync(&self, flush: impl FnOnce() -> io::Result<()>) -> Result<(), IndexError> {
        const OPERATION: &str = "record that the blobs are on the disk";
        // Before `flush`: a row that is put during it may mean a blob that came too late.
        let reached = open_writer(&mut self.writer.lock(), OPERATION)?.last_generation;
        let flushed = flush();
        let mut writer = self.writer.lock();
        let writer = open_writer(&mut writer, OPERATION)?;
        writer.reserve.restore();
        if let Err(error) = flushed {
            writer.vouches = false;
            return Err(unavailable(OPERATION)(error));
        }
        self.vouch(writer, reached, OPERATION)
    }

    /// Ends the run so that the next one doubts nothing: refuses writes from now on, runs
    /// `flush` as [`EmbeddedIndex::sync`] does, and records the end. Reads still work.
    ///
    /// # Errors
    /// What `flush` said, or why the record was not written; the index is closed all the same.
    pub fn close_cleanly(&self, flush: impl FnOnce() -> io::Result<()>) -> Result<(), IndexError> {
        const OPERATION: &str = "end its run cleanly";
        // Held over `flush`, so that no row comes after it: at the end of a run only.
        let mut writer = self.writer.lock();
        let mut writer = writer.take().ok_or_else(|| unavailable(OPERATION)(Closed))?;
        flush().map_err(unavailable(OPERATION))?;
        let last = span_of(writer.run).last;
        self.vouch(&mut writer, last, OPERATION)
    }

    /// Records that the blobs up to a generation are on the disk, if no sync has failed.
    fn vouch(
        &self,
        writer: &mut Writer,
        generation: u64,
        operation: &'static str,
    ) -> Result<(), IndexError> {
        if !writer.vouches {
            return Ok(());
        }
        let vouched = writer.with_reserve(|connection| {
            // Two syncs may overlap: the later record must not take back what the earlier says.
            connection
                .prepare_cached("UPDATE run SET vouched = max(vouched, ?1)")?
                .execute([sql_int(generation)])
        });
        vouched.map(drop).map_err(self.failed(operation))
    }

    /// What was not brought to the disk is not vouched for any more, nor is what comes after it.
    fn sync_failed(&self) {
        if let Some(writer) = self.writer.lock().as_mut() {
            writer.doubt();
        }
    }

    /// Notes that rows were written, and has the log folded back when they are many.
    fn wrote(&self, writer: &mut Writer, rows: usize) {
        writer.unfolded += rows;
        if writer.unfolded >= FOLD_ROWS {
            writer.unfolded = 0;
            self.checkpointer.fold();
        }
    }

    fn is_gone(&self) -> io::Result<bool> {
        let opened = self.raw.metadata()?;
        match fs::metadata(&self.file) {
            Ok(named) => Ok((named.dev(), named.ino()) != (opened.dev(), opened.ino())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
            Err(error) => Err(error),
        }
    }

    fn reader(&self, operation: &'static str) -> Result<Reader<'_>, IndexError> {
        self.readers.take().ok_or_else(|| unavailable(operation)(ReadersBusy))
    }

    fn failed(&self, operation: &'static str) -> impl Fn(rusqlite::Error) -> IndexError {
        let file = self.file.clone();
        move |error| unavailable(operation)(OpenIndexError::of(&file, error))
    }

    fn entry_of(&self, row: &rusqlite::Row<'_>) -> Result<Entry, Damage> {
        let blob: String = row.get(0)?;
        let blob = BlobKey::from_listing(&blob)
            .ok_or_else(|| Damage(format!("{blob:?} is not a blob's key")))?;
        let generation: u64 = row.get(11)?;
        Ok(Entry {
            blob,
            version: BlobVersion(row.get(1)?),
            size: row.get(2)?,
            digest: row.get_ref(3)?.as_str()?.parse()?,
            content_type: row.get(4)?,
            validators: Validators { etag: row.get(5)?, last_modified: row.get(6)? },
            content_encoding: row.get(7)?,
            head: row.get_ref(8)?.as_str_or_null()?.map(str::parse).transpose()?,
            stored_at: time_of(row.get(9)?),
            validated_at: time_of(row.get(10)?),
            generation,
            unproven: row.get(12)? || self.doubts.has(generation),
        })
    }

    fn shown_row(&self, remote: &RemoteName, row: &rusqlite::Row<'_>) -> Result<Row, Damage> {
        let path = ArtifactPath::from_canonical(row.get::<_, String>(13)?)?;
        let entry = self.entry_of(row)?;
        let last_used = row.get::<_, Option<i64>>(14)?.map_or(entry.stored_at, time_of);
        let key = ArtifactKey { remote: remote.clone(), path };
        Ok(Row { key, entry, last_used, hits: row.get(15)? })
    }

    fn find(
        &self,
        connection: &Connection,
        key: &ArtifactKey,
        operation: &'static str,
    ) -> Result<Option<Entry>, IndexError> {
        let mut statement = connection.prepare_cached(GET).map_err(self.failed(operation))?;
        let found = statement
            .query_row([key.remote.as_str(), key.path.as_str()], |row| Ok(self.entry_of(row)))
            .optional()
            .map_err(self.failed(operation))?;
        found
            .transpose()
            .map_err(|Damage(reason)| IndexError::Corrupt { key: key.to_string(), reason })
    }

    /// The rows that a statement gives, each with what `place` reads of it and its path.
    fn page<At>(
        &self,
        operation: &'static str,
        (sql, parameters): (&str, &[&dyn ToSql]),
        remote: &RemoteName,
        place: impl Fn(&rusqlite::Row<'_>, String) -> rusqlite::Result<At>,
    ) -> Result<Page<At>, IndexError> {
        let read = |row: &rusqlite::Row<'_>| {
            let path: String = row.get(13)?;
            let shown = self.shown_row(remote, row).map_err(|Damage(reason)| IndexError::Corrupt {
                key: format!("{remote}/{path}"),
                reason,
            });
            Ok((place(row, path)?, shown))
        };
        let reader = self.reader(operation)?;
        let mut statement = reader.prepare_cached(sql).map_err(self.failed(operation))?;
        let rows = statement.query_map(parameters, read).map_err(self.failed(operation))?;
        rows.collect::<Result<_, _>>().map_err(self.failed(operation))
    }
}

/// Between pages it holds no connection, so that a slow visitor neither keeps readers out nor the
/// write-ahead log from being folded back.
impl Pages for EmbeddedIndex {
    fn remote_behind(&self, name: &str) -> Result<Option<String>, IndexError> {
        const OPERATION: &str = "list remotes";
        let reader = self.reader(OPERATION)?;
        let mut statement = reader.prepare_cached(NEXT_REMOTE).map_err(self.failed(OPERATION))?;
        statement.query_row([name], |row| row.get(0)).map_err(self.failed(OPERATION))
    }

    fn by_path(&self, remote: &RemoteName, start: &Start) -> Result<Page<String>, IndexError> {
        let sql = if start.inclusive { SCAN_FROM } else { SCAN_BEHIND };
        let asked = (sql, params![remote.as_str(), start.path, PAGE_ROWS]);
        self.page("list rows", asked, remote, |_, path| Ok(path))
    }

    fn by_use(
        &self,
        remote: &RemoteName,
        (recency, path): &UsePlace,
    ) -> Result<Page<UsePlace>, IndexError> {
        let asked = (LEAST_USED, params![remote.as_str(), recency, path, PAGE_ROWS]);
        self.page("list rows by their last use", asked, remote, |row, path| {
            Ok((row.get(16)?, path))
        })
    }
}

impl ArtifactIndex for EmbeddedIndex {
    fn get(&self, key: &ArtifactKey) -> Result<Option<Entry>, IndexError> {
        const OPERATION: &str = "look a row up";
        if let Some(known) = self.recent.get(key) {
            return Ok(known);
        }
        let ticket = self.recent.ticket(key);
        let found = self.find(&*self.reader(OPERATION)?, key, OPERATION)?;
        match &found {
            Some(entry) => self.recent.keep_if_again(ticket, key, || Some(entry.clone())),
            // Who finds no row looks again before and after taking the lead of a fetch.
            None => self.recent.keep(ticket, key, None),
        }
        Ok(found)
    }

    fn put(
        &self,
        key: &ArtifactKey,
        entry: &Entry,
        replaces: Option<u64>,
    ) -> Result<Put, IndexError> {
        self.put_together(key, entry, replaces)
    }

    fn remove(&self, key: &ArtifactKey, generation: u64) -> Result<bool, IndexError> {
        const OPERATION: &str = "remove a row";
        let mut writer = self.writer.lock();
        let writer = open_writer(&mut writer, OPERATION)?;
        let row = params![key.remote.as_str(), key.path.as_str(), sql_int(generation)];
        let removed =
            writer.with_reserve(|connection| connection.prepare_cached(REMOVE)?.execute(row));
        self.recent.forget(key);
        self.wrote(writer, 1);
        Ok(removed.map_err(self.failed(OPERATION))? == 1)
    }

    fn scan(
        &self,
        query: &Scan,
        visit: &mut dyn FnMut(Row) -> ControlFlow<()>,
    ) -> Result<(), IndexError> {
        paging::scan(self, query, visit)
    }

    fn touch(&self, uses: &[Use]) -> Result<(), IndexError> {
        const OPERATION: &str = "add up uses";
        for batch in uses.chunks(TOUCH_BATCH) {
            let mut writer = self.writer.lock();
            let writer = open_writer(&mut writer, OPERATION)?;
            let transaction = writer
                .connection
                .transaction_with_behavior(TransactionBehavior::Immediate)
                .map_err(self.failed(OPERATION))?;
            let mut statement =
                transaction.prepare_cached(TOUCH).map_err(self.failed(OPERATION))?;
            for used in batch {
                let (remote, path) = (used.key.remote.as_str(), used.key.path.as_str());
                statement
                    .execute(params![remote, path, sql_int(used.hits), micros_of(used.last)])
                    .map_err(self.failed(OPERATION))?;
            }
            drop(statement);
            transaction.commit().map_err(self.failed(OPERATION))?;
            self.wrote(writer, batch.len());
        }
        Ok(())
    }

    fn usage(&self) -> Result<BTreeMap<RemoteName, Usage>, IndexError> {
        const OPERATION: &str = "add up what is stored";
        let reader = self.reader(OPERATION)?;
        let mut statement = reader.prepare_cached(USAGE).map_err(self.failed(OPERATION))?;
        let mut rows = statement.query([]).map_err(self.failed(OPERATION))?;
        let mut usage = BTreeMap::new();
        while let Some(row) = rows.next().map_err(self.failed(OPERATION))? {
            let read = || -> rusqlite::Result<(String, Usage)> {
                let (artifacts, bytes, hits) = (row.get(1)?, row.get(2)?, row.get(3)?);
                Ok((row.get(0)?, Usage { artifacts, bytes, hits }))
            };
            let (name, of_remote) = read().map_err(self.failed(OPERATION))?;
            match name.parse() {
                Ok(remote) => drop(usage.insert(remote, of_remote)),
                Err(error) => tracing::warn!(%error, "passing over damaged rows of the index"),
            }
        }
        Ok(usage)
    }

    fn least_used(
        &self,
        query: &LeastUsed,
        visit: &mut dyn FnMut(Row) -> ControlFlow<()>,
    ) -> Result<(), IndexError> {
        paging::least_used(self, query, visit)
    }

    /// Syncs the write-ahead log. It holds every commit until all of it is folded back and the
    /// main file is synced; only then does SQLite begin it anew. Its folder too: the log may be
    /// new.
    fn persist(&self, _key: &ArtifactKey) -> Result<(), IndexError> {
        const OPERATION: &str = "bring its rows to the disk";
        let vouched = || match open_writer(&mut self.writer.lock(), OPERATION)?.may_have_lost {
            true => Err(unavailable(OPERATION)(MayHaveLost)),
            false => Ok(()),
        };
        vouched()?;
        let log = self.file.with_extension("sqlite-wal");
        let folder = self.file.parent().unwrap_or(&self.file);
        for path in [log.as_path(), folder] {
            let file = File::open(path).map_err(unavailable(OPERATION))?;
            file.sync_all().map_err(|error| {
                self.sync_failed();
                unavailable(OPERATION)(error)
            })?;
        }
        // Another sync may have been told meanwhile of what this one was meant to bring there.
        vouched()
    }

    /// Also whether the file is still the one of its name: rows can be written to one that was
    /// removed, but nobody finds them there again.
    fn probe(&self) -> Result<(), IndexError> {
        const OPERATION: &str = "answer";
        self.reader(OPERATION)?
            .query_row("SELECT number FROM run", [], |_| Ok(()))
            .map_err(self.failed(OPERATION))?;
        let is_gone = self.is_gone().map_err(unavailable(OPERATION))?;
        let was_gone = self.is_gone.swap(is_gone, Ordering::Relaxed);
        if !is_gone {
            return Ok(());
        }
        let gone = Gone(self.file.clone());
        if !was_gone {
            tracing::error!("{gone}");
        }
        Err(unavailable(OPERATION)(gone))
    }
}

fn open_writer<'a>(
    writer: &'a mut Option<Writer>,
    operation: &'static str,
) -> Result<&'a mut Writer, IndexError> {
    writer.as_mut().ok_or_else(|| unavailable(operation)(Closed))
}

fn unavailable<E: std::error::Error + Send + Sync + 'static>(
    operation: &'static str,
) -> impl Fn(E) -> IndexError {
    move |error| IndexError::Unavailable { operation, source: Box::new(error) }
}

/// A number as SQLite can hold it. No stored one is that high, so that cutting it off at the
/// end makes it no other's equal.
fn sql_int(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
