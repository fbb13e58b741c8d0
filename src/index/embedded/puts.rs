//! Rows that are put at about the same time, written in one transaction.
//!
//! A transaction of its own costs a row more than everything else that writes it: each brings
//! the same pages to the log once more, and makes every reader read its pages anew. So who puts
//! a row while another was put less than [`TOGETHER_EVERY`] ago waits for the rest of that time,
//! and takes along the rows of all who come meanwhile. A row that comes alone is written at once.

use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::{Connection, Transaction, TransactionBehavior, named_params};

use super::super::micros::micros_of;
use super::writer::Writer;
use super::{Closed, EmbeddedIndex, open_writer, sql_int, unavailable};
use crate::artifact::{ArtifactKey, Entry};
use crate::index::{IndexError, Put};

/// How long lies between two transactions, at least.
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
    // Guards single steps; a row's turn is set under it.
    line: Mutex<Line>,
}

#[derive(Debug, Default)]
struct Line {
    waiting: Vec<Arc<Asked>>,
    /// Whether one of those who wait, or whose rows are being written, leads.
    is_led: bool,
    /// When rows were last taken.
    last: Option<Instant>,
}

/// A row that somebody puts.
#[derive(Debug)]
struct Asked {
    key: ArtifactKey,
    entry: Entry,
    replaces: Option<u64>,
    turn: Mutex<Turn>,
    called: Condvar,
}

/// What who puts a row is to do.
#[derive(Debug)]
enum Turn {
    Wait,
    /// Write the rows that wait, the own one among them.
    Lead,
    End(Result<Put, IndexError>),
}

#[derive(Debug, thiserror::Error)]
#[error("writing it panicked")]
struct Panicked;

impl Asked {
    fn call(&self, turn: Turn) {
        *self.turn.lock().unwrap_or_else(PoisonError::into_inner) = turn;
        self.called.notify_one();
    }

    fn wait(&self) -> Turn {
        let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let waits = |turn: &mut Turn| matches!(turn, Turn::Wait);
        let called = self.called.wait_while(turn, waits);
        mem::replace(&mut *called.unwrap_or_else(PoisonError::into_inner), Turn::Wait)
    }
}

impl Puts {
    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place in the line, and the lead if nobody has it.
    fn join(&self, asked: &Arc<Asked>) -> Turn {
        let mut line = self.line();
        line.waiting.push(Arc::clone(asked));
        if mem::replace(&mut line.is_led, true) { Turn::Wait } else { Turn::Lead }
    }
}

/// Who writes the rows that wait; when dropped, one of those who came meanwhile.
struct Lead<'a>(&'a Puts);

impl Lead<'_> {
    /// Waits until it is time for another transaction.
    fn wait(&self) {
        let last = self.0.line().last;
        if let Some(rest) = last.and_then(|last| TOGETHER_EVERY.checked_sub(last.elapsed())) {
            thread::sleep(rest);
        }
    }

    /// Takes the rows that wait, the own one among them.
    fn take(&self) -> Taken {
        let mut line = self.0.line();
        line.last = Some(Instant::now());
        Taken(mem::take(&mut line.waiting))
    }
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        let mut line = self.0.line();
        match line.waiting.first() {
            Some(next) => next.call(Turn::Lead),
            None => line.is_led = false,
        }
    }
}

/// Rows that are being written. Who is not answered before it is dropped learns of a panic.
struct Taken(Vec<Arc<Asked>>);

impl Taken {
    fn answer(&mut self, mut answer: impl FnMut() -> Result<Put, IndexError>) {
        for row in self.0.drain(..) {
            row.call(Turn::End(answer()));
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.answer(|| Err(unavailable(OPERATION)(Panicked)));
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
        let (turn, called) = (Mutex::new(Turn::Wait), Condvar::new());
        let asked = Arc::new(Asked { key, entry, replaces, turn, called });
        let mut turn = self.puts.join(&asked);
        loop {
            turn = match turn {
                Turn::Wait => asked.wait(),
                Turn::End(answer) => return answer,
                Turn::Lead => {
                    self.lead(Lead(&self.puts));
                    asked.wait()
                }
            };
        }
    }

    fn lead(&self, lead: Lead<'_>) {
        lead.wait();
        let mut writer = self.writer.lock();
        let mut taken = lead.take();
        match open_writer(&mut writer, OPERATION) {
            Ok(writer) => self.put_all(writer, &mut taken),
            Err(_closed) => taken.answer(|| Err(unavailable(OPERATION)(Closed))),
        }
    }

    /// Writes rows and answers them: in one transaction, or each in its own if that fails, so
    /// that what is wrong with one is no other's error.
    fn put_all(&self, writer: &mut Writer, taken: &mut Taken) {
        let rows = &taken.0;
        let together = match rows.len() {
            1 => None,
            _ => self.put_in_one(writer, rows).ok(),
        };
        let answers = together.map(|puts| puts.into_iter().map(Ok).collect());
        let answers: Vec<_> = answers.unwrap_or_else(|| {
            rows.iter()
                .map(|row| {
                    writer.last_generation += 1;
                    self.put_one(&writer.connection, writer.last_generation, row)
                })
                .collect()
        });
        self.wrote(writer, rows.len());
        let mut answers = answers.into_iter();
        for row in rows {
            self.recent.forget(&row.key);
        }
        taken.answer(|| answers.next().expect("each row has an answer"));
    }

    fn put_in_one(&self, writer: &mut Writer, rows: &[Arc<Asked>]) -> Result<Vec<Put>, IndexError> {
        let transaction =
            Transaction::new_unchecked(&writer.connection, TransactionBehavior::Immediate)
                .map_err(self.failed(OPERATION))?;
        let puts = rows
            .iter()
            .map(|row| {
                writer.last_generation += 1;
                self.put_one(&transaction, writer.last_generation, row)
            })
            .collect::<Result<_, _>>()?;
        transaction.commit().map_err(self.failed(OPERATION))?;
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
