//! The connections that read.

use std::ops::Deref;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::Connection;

/// How long a read waits for a connection: longer than any page of a scan takes.
const READER_WAIT: Duration = Duration::from_secs(5);

/// Idle connections. The one that was used last is taken first, because it has the pages in
/// its cache that are asked for now.
#[derive(Debug)]
pub(super) struct Readers {
    // Guards who is idle; nothing else is taken while it is held.
    idle: Mutex<Vec<Connection>>,
    given_back: Condvar,
}

impl Readers {
    pub(super) fn new(connections: Vec<Connection>) -> Self {
        Self { idle: Mutex::new(connections), given_back: Condvar::new() }
    }

    /// An idle connection; `None` where none became idle in time.
    pub(super) fn take(&self) -> Option<Reader<'_>> {
        let none_idle = |idle: &mut Vec<Connection>| idle.is_empty();
        let (mut idle, _) = self
            .given_back
            .wait_timeout_while(self.idle(), READER_WAIT, none_idle)
            .unwrap_or_else(PoisonError::into_inner);
        idle.pop().map(|connection| Reader { connection: Some(connection), readers: self })
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection, given back when dropped.
pub(super) struct Reader<'a> {
    connection: Option<Connection>,
    readers: &'a Readers,
}

impl Deref for Reader<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.connection.as_ref().expect("it is there until the drop")
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.readers.idle().push(connection);
            self.readers.given_back.notify_one();
        }
    }
}
