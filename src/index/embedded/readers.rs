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
    state: Mutex<State>,
    given_back: Condvar,
}

#[derive(Debug)]
struct State {
    idle: Vec<Connection>,
    // Threads that wait for a connection. Without any, nobody is to be woken, which would take
    // a system call each time.
    waiting: usize,
}

impl Readers {
    pub(super) fn new(connections: Vec<Connection>) -> Self {
        let state = State { idle: connections, waiting: 0 };
        Self { state: Mutex::new(state), given_back: Condvar::new() }
    }

    /// An idle connection; `None` where none became idle in time.
    pub(super) fn take(&self) -> Option<Reader<'_>> {
        let mut state = self.state();
        if state.idle.is_empty() {
            state.waiting += 1;
            let none_idle = |state: &mut State| state.idle.is_empty();
            (state, _) = self
                .given_back
                .wait_timeout_while(state, READER_WAIT, none_idle)
                .unwrap_or_else(PoisonError::into_inner);
            state.waiting -= 1;
        }
        state.idle.pop().map(|connection| Reader { connection: Some(connection), readers: self })
    }

    fn give_back(&self, connection: Connection) {
        let mut state = self.state();
        state.idle.push(connection);
        if state.waiting > 0 {
            drop(state);
            self.given_back.notify_one();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
            self.readers.give_back(connection);
        }
    }
}
