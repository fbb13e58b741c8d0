//! Rows that are put at about the same time, written in one transaction.
//!
//! A transaction of its own costs a row more than everything else that writes it: each brings
//! the same pages to the log once more, and makes every reader read its pages anew. So who puts a
//! new row shortly after others waits a moment, and takes along the rows of all who come
//! meanwhile. Who puts rows alone does not wait, and neither does who replaces a row: that is a
//! confirmation by upstream, for which a client may wait.
//!
//! Locks are taken in this order: the writer, the line, a row's turn.

use std::collections::VecDeque;
use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::{Connection, TransactionBehavior, named_params};

use super::super::micros::micros_of;
use super::writer::Writer;
use super::{Closed, EmbeddedIndex, open_writer, sql_int, unavailable};
use crate::artifact::{ArtifactKey, Entry};
use crate::chain::chain;
use crate::index::{IndexError, Put};

/// How long lies between the beginnings of two transactions, where new rows come together.
const TOGETHER_EVERY: Duration = Duration::from_millis(1);

const INSERT: &str = "INSERT INTO artifact (remote, path, blob, version, size, sha256,
        content_type, etag, last_modified, content_encoding, head, stored_at, validated_at,
        generation, unproven)
    VALUES (:remote, :path, :blob, :version, :size, :sha256,
        :content_type, :etag, :last_modified, :content_encoding, :head, :stored_at, :validated_at,
        :generation, :unproven)
    ON CONFLICT DO NOTHING";
pub(super) const UPDATE: &str =
    "UPDATE artifact SET blob = :blob, version = :version, size = :size,
        sha256 = :sha256, content_type = :content_type, etag = :etag,
        last_modified = :last_modified, content_encoding = :content_encoding, head = :head,
        stored_at = :stored_at, validated_at = :validated_at,
        generation = :generation, unproven = :unproven
    WHERE remote = :remote AND path = :path AND generation = :replaces";

const OPERATION: &str = "write a row";

/// The rows that wait for the next transaction: one at most of each thread that puts.
#[derive(Debug, Default)]
pub(super) struct Puts {
    // Guards single steps.
    line: Mutex<Line>,
    // Wakes a leader that lets others come.
    hurry: Condvar,
}

#[derive(Debug, Default)]
struct Line {
    waiting: Vec<Arc<Asked>>,
    /// Whether one of those who wait, or whose rows are being written, leads.
    is_led: bool,
    /// Whether one of those who wait replaces a row.
    is_urgent: bool,
    /// Whether somebody came while another led, or rows were taken together, the last time.
    has_company: bool,
    /// When rows were last taken.
    last: Option<Instant>,
}

impl Line {
    /// How long the next transaction may still wait for others.
    fn rest(&self) -> Duration {
        match self.last {
            Some(last) if self.has_company && !self.is_urgent => {
                TOGETHER_EVERY.saturating_sub(last.elapsed())
            }
            _ => Duration::ZERO,
        }
    }
}

/// A row that somebody puts.
#[derive(Debug)]
struct Asked {
    key: ArtifactKey,
    entry: Entry,
    replaces: Option<u64>,
    // Guards single steps.
    turn: Mutex<Option<Turn>>,
    called: Condvar,
}

/// What who puts a row is called for.
#[derive(Debug)]
enum Turn {
    /// Write the rows that wait, the own one among them.
    Lead,
    End(Result<Put, IndexError>),
}

#[derive(Debug, thiserror::Error)]
#[error("writing it panicked")]
struct Panicked;

#[derive(Debug, thiserror::Error)]
#[error("no transaction can begin: {0}")]
struct NotBegun(String);

/// Why rows were not written together.
enum GroupError {
    NotBegun(rusqlite::Error),
    Failed(IndexError),
}

impl Asked {
    fn call(&self, turn: Turn) {
        *self.turn.lock().unwrap_or_else(PoisonError::into_inner) = Some(turn);
        self.called.notify_one();
    }

    fn wait(&self) -> Turn {
        let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match turn.take() {
                Some(called) => return called,
                None => turn = self.called.wait(turn).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

impl Puts {
    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place in the line, and the lead if nobody has it.
    fn join(&self, asked: &Arc<Asked>) -> Option<Lead<'_>> {
        let mut line = self.line();
        line.waiting.push(Arc::clone(asked));
        line.is_urgent |= asked.replaces.is_some();
        if !mem::replace(&mut line.is_led, true) {
            return Some(Lead { puts: self, own: Arc::clone(asked) });
        }
        line.has_company = true;
        if line.is_urgent {
            self.hurry.notify_one();
        }
        None
    }
}

/// Who writes the rows that wait; when dropped, one of those who came meanwhile.
struct Lead<'a> {
    puts: &'a Puts,
    own: Arc<Asked>,
}

impl Lead<'_> {
    /// Lets others come, if that is worth a wait.
    fn wait(&self) {
        let mut line = self.puts.line();
        loop {
            let rest = line.rest();
            if rest.is_zero() {
                return;
            }
            let waited = self.puts.hurry.wait_timeout(line, rest);
            line = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Takes the rows that wait, the own one among them.
    fn take(&self) -> Taken {
        let mut line = self.puts.line();
        line.last = Some(Instant::now());
        line.has_company = line.waiting.len() > 1;
        line.is_urgent = false;
        Taken(mem::take(&mut line.waiting).into())
    }
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        let mut line = self.puts.line();
        // It is there only if this thread panicked before it took the rows.
        line.waiting.retain(|row| !Arc::ptr_eq(row, &self.own));
        match line.waiting.first() {
            Some(next) => next.call(Turn::Lead),
            None => line.is_led = false,
        }
    }
}

/// Rows that are being written. Who is not answered before it is dropped learns
/// of a panic.
struct Taken(VecDeque<Arc<Asked>>);

impl Taken {
    /// Answers the rows one after the other.
    fn answer(&mut self, mut answer: impl FnMut(&Asked) -> Result<Put, IndexError>) {
        while let Some(row) = self.0.front().cloned() {
            let answered = answer(&row);
            self.0.pop_front();
            row.call(Turn::End(answered));
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.answer(|_| Err(unavailable(OPERATION)(Panicked)));
    }
}

impl EmbeddedIndex {
    /// Puts a row together with those of others: one of them leads and writes all, as soon as
    /// it may.
    pub(super) fn put_together(
        &self,
        key: &ArtifactKey,
        entry: &Entry,
        replaces: Option<u64>,
    ) -> Result<Put, IndexError> {
        let (key, entry) = (key.clone(), entry.clone());
        let (turn, called) = Default::default();
        let asked = Arc::new(Asked { key, entry, replaces, turn, called });
        let mut lead = self.puts.join(&asked);
        loop {
            if let Some(lead) = lead.take() {
                self.lead(&lead);
            }
            match asked.wait() {
                Turn::End(answer) => return answer,
                Turn::Lead => lead = Some(Lead { puts: &self.puts, own: Arc::clone(&asked) }),
            }
        }
    }

    fn lead(&self, lead: &Lead<'_>) {
        lead.wait();
        let mut writer = self.writer.lock();
        let mut taken = lead.take();
        let Ok(writer) = open_writer(&mut writer, OPERATION) else {
            return taken.answer(|_| Err(unavailable(OPERATION)(Closed)));
        };
        let rows = taken.0.len();
        match (rows > 1).then(|| self.put_in_one(writer, &taken.0)) {
            Some(Ok(puts)) => {
                let mut puts = puts.into_iter();
                taken.answer(|_| Ok(puts.next().expect("each row has an answer")));
            }
            Some(Err(GroupError::NotBegun(error))) => {
                let error = error.to_string();
                taken.answer(|_| Err(unavailable(OPERATION)(NotBegun(error.clone()))));
            }
            alone_or_failed => {
                if let Some(Err(GroupError::Failed(error))) = alone_or_failed {
                    // What is wrong with one row is no other's error.
                    tracing::debug!(rows, error = chain(&error), "rows are written one by one");
                }
                taken.answer(|row| {
                    writer.last_generation += 1;
                    let put = self.put_one(&writer.connection, writer.last_generation, row);
                    self.recent.forget(&row.key);
                    put
                });
            }
        }
        self.wrote(writer, rows);
    }

    fn put_in_one(
        &self,
        writer: &mut Writer,
        rows: &VecDeque<Arc<Asked>>,
    ) -> Result<Vec<Put>, GroupError> {
        let Writer { connection, last_generation, .. } = writer;
        let transaction = connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(GroupError::NotBegun)?;
        let puts = rows
            .iter()
            .map(|row| {
                *last_generation += 1;
                self.put_one(&transaction, *last_generation, row).map_err(GroupError::Failed)
            })
            .collect::<Result<_, _>>()?;
        let committed = transaction.commit();
        rows.iter().for_each(|row| self.recent.forget(&row.key));
        committed.map_err(|error| GroupError::Failed(self.failed(OPERATION)(error)))?;
        Ok(puts)
    }

    fn put_one(
        &self,
        connection: &Connection,
        generation: u64,
        row: &Asked,
    ) -> Result<Put, IndexError> {
        let Asked { key, entry, replaces, .. } = row;
        let sql = if replaces.is_some() { UPDATE } else { INSERT };
        let mut statement = connection.prepare_cached(sql).map_err(self.failed(OPERATION))?;
        let values = named_params! {
            ":remote": key.remote.as_str(),
            ":path": key.path.as_str(),
            ":blob": entry.blob.as_str(),
            ":version": entry.version.0,
            ":size": entry.size,
            ":sha256": entry.digest.to_string(),
            ":content_type": entry.content_type,
            ":etag": entry.validators.etag,
            ":last_modified": entry.validators.last_modified,
            ":content_encoding": entry.content_encoding,
            ":head": entry.head.map(|digest| digest.to_string()),
            ":stored_at": micros_of(entry.stored_at),
            ":validated_at": micros_of(entry.validated_at),
            ":generation": sql_int(generation),
            ":unproven": entry.unproven,
        };
        let written = match *replaces {
            None => statement.execute(values),
            Some(replaced) => {
                let replaced = sql_int(replaced);
                let mut all = values.to_vec();
                all.push((":replaces", &replaced));
                statement.execute(&all[..])
            }
        };
        match written.map_err(self.failed(OPERATION))? {
            1 => Ok(Put::Stored(generation)),
            _ => Ok(Put::Superseded(self.find(connection, key, OPERATION)?)),
        }
    }
}

#[cfg(test)]
mod tests;
