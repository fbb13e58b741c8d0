//! Threads with a connection each, and callers that wait no longer than they said.
//!
//! The client library can't stop waiting for a server that is silent but connected (stopped,
//! or behind a firewall that forgot it). So a connection lives on a thread of its own, takes
//! work from a queue, and whoever handed it in waits with a deadline. A thread that does not
//! come back is written off and replaced, up to a bound; if it does come back, it ends.

use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded};

use super::connection::{Connection, Connector, PostgresError};
use super::settings::PostgresSettings;
use crate::breaker::Breaker;
use crate::chain::chain;

/// How many callers may wait for a connection, for each one there may be.
const WAITING_PER_CONNECTION: usize = 64;
/// How many threads that do not come back are replaced, for each connection there may be.
const WRITTEN_OFF_PER_CONNECTION: usize = 2;
/// After how long without work a connection is closed.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// Whether the work was begun before, on a connection that broke: then it may have been done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attempt {
    First,
    Again,
}

/// The connections.
#[derive(Debug)]
pub(super) struct Pool {
    shared: Arc<Shared>,
    // Only here, so that the threads end with the pool.
    queue: Sender<Job>,
    connections_max: usize,
    answer_timeout: Duration,
}

#[derive(Debug)]
struct Shared {
    connector: Connector,
    breaker: Breaker,
    waiting: Receiver<Job>,
    // Nothing else is taken while it is held, and nobody waits under it.
    seats: Mutex<Seats>,
    written_off_max: usize,
}

#[derive(Debug, Default)]
struct Seats {
    /// Threads that take work.
    live: usize,
    /// Work that was handed in and is not done.
    outstanding: usize,
    /// Threads that were given up and have not come back.
    written_off: usize,
}

/// Work for whichever thread is free.
struct Job {
    task: Box<dyn Task>,
    phase: Arc<Mutex<Phase>>,
}

trait Task: Send {
    fn run(&mut self, connection: &mut Option<Connection>, connector: &Connector);
    /// Tells the caller; apart from `run`, so that the place is free before the caller knows.
    fn answer(self: Box<Self>);
}

struct Call<T, W> {
    work: W,
    outcome: Option<Result<T, PostgresError>>,
    answer: Sender<Result<T, PostgresError>>,
}

impl<T, W> Task for Call<T, W>
where
    T: Send,
    W: FnMut(&mut Connection, Attempt) -> Result<T, PostgresError> + Send,
{
    fn run(&mut self, connection: &mut Option<Connection>, connector: &Connector) {
        self.outcome =
            Some(match run_once(connection, connector, &mut self.work, Attempt::First) {
                Err(error) if error.is_broken() => {
                    run_once(connection, connector, &mut self.work, Attempt::Again)
                }
                outcome => outcome,
            });
    }

    fn answer(self: Box<Self>) {
        if let Some(outcome) = self.outcome {
            // The caller may have gone; then nobody wants the answer.
            let _ = self.answer.send(outcome);
        }
    }
}

fn run_once<T>(
    seat: &mut Option<Connection>,
    connector: &Connector,
    work: &mut impl FnMut(&mut Connection, Attempt) -> Result<T, PostgresError>,
    attempt: Attempt,
) -> Result<T, PostgresError> {
    let mut connection = match seat.take().filter(|connection| !connection.is_closed()) {
        Some(connection) => connection,
        None => connector.connect()?,
    };
    let outcome = work(&mut connection, attempt);
    // Only a connection in a known state is kept.
    if outcome.as_ref().map_or_else(PostgresError::is_an_answer, |_| true) {
        *seat = Some(connection);
    }
    outcome
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Waiting,
    Running,
    Done,
    /// Its caller has gone.
    Abandoned,
    /// Its caller has gone and its thread was replaced.
    WrittenOff,
}

impl Pool {
    /// A pool that connects as it is used.
    pub(super) fn new(settings: &PostgresSettings, connector: Connector) -> Self {
        let connections_max = settings.connections_max.max(1);
        let (queue, waiting) = bounded(connections_max * WAITING_PER_CONNECTION);
        let shared = Arc::new(Shared {
            connector,
            breaker: Breaker::new("PostgreSQL"),
            waiting,
            seats: Mutex::new(Seats::default()),
            written_off_max: connections_max * WRITTEN_OFF_PER_CONNECTION,
        });
        // The work may have to connect first.
        let answer_timeout = settings.connect_timeout + settings.statement_timeout;
        Self { shared, queue, connections_max, answer_timeout }
    }

    /// Runs `work` on a connection; once more on a new one if the first breaks under it.
    pub(super) fn call<T: Send + 'static>(
        &self,
        work: impl FnMut(&mut Connection, Attempt) -> Result<T, PostgresError> + Send + 'static,
    ) -> Result<T, PostgresError> {
        self.shared.breaker.admit(Instant::now())?;
        let outcome = self.call_within(self.answer_timeout, work);
        match &outcome {
            Err(error) if error.is_absence() => {
                self.shared.breaker.failed(Instant::now(), &chain(error));
            }
            // It was not asked, which tells nothing.
            Err(PostgresError::Busy | PostgresError::Thread(_)) => {}
            Ok(_) | Err(_) => self.shared.breaker.succeeded(),
        }
        outcome
    }

    pub(super) fn call_within<T: Send + 'static>(
        &self,
        patience: Duration,
        work: impl FnMut(&mut Connection, Attempt) -> Result<T, PostgresError> + Send + 'static,
    ) -> Result<T, PostgresError> {
        let (answer, answered) = bounded(1);
        let phase = Arc::new(Mutex::new(Phase::Waiting));
        let task = Box::new(Call { work, outcome: None, answer });
        self.hand_in(Job { task, phase: Arc::clone(&phase) })?;
        match answered.recv_timeout(patience) {
            Ok(outcome) => outcome,
            Err(RecvTimeoutError::Disconnected) => Err(PostgresError::TimedOut(patience)),
            Err(RecvTimeoutError::Timeout) => {
                self.shared.give_up(&phase);
                // It may have been answered in this very moment.
                answered.try_recv().unwrap_or(Err(PostgresError::TimedOut(patience)))
            }
        }
    }

    fn hand_in(&self, job: Job) -> Result<(), PostgresError> {
        let mut seats = self.shared.seats();
        match self.queue.try_send(job) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                return Err(PostgresError::Busy);
            }
        }
        seats.outstanding += 1;
        if seats.outstanding > seats.live && seats.live < self.connections_max {
            seats.live += 1;
            drop(seats);
            let shared = Arc::clone(&self.shared);
            let started = thread::Builder::new()
                .name("postgres".to_owned())
                .spawn(move || Seat { shared, holds: Holds::Place }.work());
            if let Err(error) = started {
                // What was handed in waits for another thread, or for its deadline.
                self.shared.seats().live -= 1;
                return Err(PostgresError::Thread(error));
            }
        }
        Ok(())
    }
}

impl Shared {
    fn seats(&self) -> MutexGuard<'_, Seats> {
        self.seats.lock().expect("nothing can panic while it holds the seats")
    }

    /// Notes that nobody waits for this work any more, and makes room for another thread if
    /// one is stuck in it.
    fn give_up(&self, phase: &Mutex<Phase>) {
        let mut phase = lock(phase);
        *phase = match *phase {
            Phase::Waiting => Phase::Abandoned,
            Phase::Running => {
                let mut seats = self.seats();
                if seats.written_off < self.written_off_max {
                    seats.written_off += 1;
                    seats.live -= 1;
                    seats.outstanding -= 1;
                    Phase::WrittenOff
                } else {
                    Phase::Abandoned
                }
            }
            ended => ended,
        };
    }
}

/// Guards one phase; the seats may be taken after it.
fn lock(phase: &Mutex<Phase>) -> MutexGuard<'_, Phase> {
    phase.lock().expect("nothing can panic while it holds a phase")
}

/// A thread's place among the live; given back when the thread ends, however it does.
struct Seat {
    shared: Arc<Shared>,
    holds: Holds,
}

enum Holds {
    Nothing,
    Place,
    PlaceAndWork(Arc<Mutex<Phase>>),
}

impl Seat {
    fn work(mut self) {
        let mut connection = None;
        while !matches!(self.holds, Holds::Nothing) {
            match self.shared.waiting.recv_timeout(IDLE_MAX) {
                Ok(job) => self.run(job, &mut connection),
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    // Under the lock under which work is handed in: none is left behind.
                    let mut seats = self.shared.seats();
                    if self.shared.waiting.is_empty() {
                        seats.live -= 1;
                        self.holds = Holds::Nothing;
                    }
                }
            }
        }
    }

    fn run(&mut self, mut job: Job, connection: &mut Option<Connection>) {
        {
            let mut phase = lock(&job.phase);
            if *phase == Phase::Abandoned {
                self.shared.seats().outstanding -= 1;
                return;
            }
            *phase = Phase::Running;
        }
        self.holds = Holds::PlaceAndWork(Arc::clone(&job.phase));
        job.task.run(connection, &self.shared.connector);
        self.end_work(&job.phase);
        job.task.answer();
    }

    fn end_work(&mut self, phase: &Mutex<Phase>) {
        let mut phase = lock(phase);
        let mut seats = self.shared.seats();
        if *phase == Phase::WrittenOff {
            // The place was given to another thread.
            seats.written_off -= 1;
            self.holds = Holds::Nothing;
        } else {
            seats.outstanding -= 1;
            self.holds = Holds::Place;
        }
        *phase = Phase::Done;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        // A panic in the work ends up here with both.
        if let Holds::PlaceAndWork(phase) = &self.holds {
            let phase = Arc::clone(phase);
            self.end_work(&phase);
        }
        if matches!(self.holds, Holds::Place) {
            self.shared.seats().live -= 1;
        }
    }
}
