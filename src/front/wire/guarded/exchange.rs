//! What a worker does with a connection: answer a request, and look for the next.
//!
//! A worker keeps the connection while whole requests are there; then it parks it, and looks
//! out for what comes next on any connection (`lookout`), so that a busy client costs no
//! hand-over.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::body::{BodyReader, Unread};
use super::census::Kind;
use super::connection::{Conn, Next, Ready};
use super::head::{BodyFraming, Parsed};
use super::refusal::Refusal;
use super::reply::{Asked, Ending, Writer};
use super::stream::Pace;
use super::table::Watch;
use super::transfer::Wait;
use super::{DRAIN_BYTES_MAX, Room, Shared};
use crate::front::pools::Job;
use crate::front::wire::{Lane, Request};

/// Requests of one connection that a worker answers in a row while other jobs wait.
const IN_A_ROW_MAX: usize = 16;
/// How long a worker waits for the rest of an unread body, all in all.
const DRAIN_PATIENCE: Duration = Duration::from_millis(500);
/// How long a client of a side lane may leave our bytes untaken: two threads serve them all.
const SIDE_LANE_STALL: Duration = Duration::from_secs(1);
/// How long a worker waits for a client that takes nothing, or for an upstream that gives
/// nothing, before it turns to others.
const TURN_TO_OTHERS_AFTER: Duration = Duration::from_millis(5);
/// Bytes of gathering buffer that a thread keeps between jobs.
const GATHER_KEPT_MAX: usize = 64 << 10;

thread_local! {
    // Taken while a job runs; a job that panics costs no more than a new buffer.
    static GATHER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Where a job runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Main,
    Fast,
    Shed,
}

/// What a job has to do on its connection.
enum Work {
    /// Answer a request.
    Request(Parsed),
    /// Go on with what the connection is not finished with.
    Unfinished,
}

/// What is due on a connection.
pub(super) struct Due {
    conn: Box<Conn>,
    work: Work,
    lane: Lane,
}

impl Due {
    /// A request is to be answered.
    pub(super) fn request(conn: Box<Conn>, ready: Ready) -> Self {
        Self { conn, work: Work::Request(ready.parsed), lane: ready.lane }
    }

    /// Something is to be gone on with, because its client takes bytes again, or what it was put
    /// off for has come. Only a worker of the main lane does that: it may take as long as the
    /// client.
    pub(super) fn unfinished(conn: Box<Conn>) -> Self {
        Self { conn, work: Work::Unfinished, lane: Lane::Main }
    }

    /// Whether a worker of the main lane serves it. A reserved seat is for the fast lane only.
    pub(super) fn is_for_workers(&self) -> bool {
        self.lane == Lane::Main && self.conn.kind() != Kind::Reserved
    }
}

/// What is due as a job for a worker of the main lane.
pub(super) fn job(shared: &Arc<Shared>, due: Due) -> Job {
    let shared = Arc::clone(shared);
    Box::new(move || serve(&shared, due.conn, due.work, Place::Main))
}

/// Hands what is due to its lane. A request that finds no room there goes to the shed lane;
/// where not even that has room, its connection is closed. What is begun always finds room: there
/// is at most one for each connection.
pub(super) fn hand_over(shared: &Arc<Shared>, due: Due) {
    if matches!(due.work, Work::Unfinished) {
        shared.pools.submit_begun(job(shared, due));
        return wake_watcher_for_a_job(shared);
    }
    let sheds = due.lane == Lane::Main && !due.is_for_workers();
    let Due { conn, work, lane } = due;
    let peer = conn.peer();
    let no_room = Arc::new(AtomicBool::new(sheds));
    let job = Box::new({
        let (shared, no_room) = (Arc::clone(shared), Arc::clone(&no_room));
        move || {
            let place = match (no_room.load(Ordering::Relaxed), lane) {
                (true, _) => Place::Shed,
                (false, Lane::Main) => Place::Main,
                (false, Lane::Fast) => Place::Fast,
            };
            serve(&shared, conn, work, place);
        }
    });
    let refused = match sheds {
        true => Err(job as _),
        false => shared.pools.submit(lane, job),
    };
    wake_watcher_for_a_job(shared);
    if let Err(job) = refused {
        no_room.store(true, Ordering::Relaxed);
        if let Err(job) = shared.pools.submit_shed(job) {
            // Drops the connection, which never blocks: its socket does not.
            drop(job);
            shared.tell_refused(&Refusal::NO_ANSWER_AT_ALL, peer);
        }
    }
}

/// Wakes a watcher that sleeps without ticks: a job that was just handed over may wait behind
/// workers that are blocked without anybody's knowing yet.
fn wake_watcher_for_a_job(shared: &Shared) {
    if shared.duty.must_be_woken() {
        shared.wake_watcher();
    }
}

fn serve(shared: &Arc<Shared>, conn: Box<Conn>, work: Work, place: Place) {
    let mut gather = GATHER.take();
    serve_with(shared, conn, work, place, &mut gather);
    gather.clear();
    if gather.capacity() <= GATHER_KEPT_MAX {
        GATHER.set(gather);
    }
}

fn serve_with(
    shared: &Arc<Shared>,
    mut conn: Box<Conn>,
    mut work: Work,
    place: Place,
    gather: &mut Vec<u8>,
) {
    for in_a_row in 1.. {
        let after = match work {
            Work::Request(parsed) => answer(shared, &mut conn, parsed, place, gather),
            Work::Unfinished => go_on(shared, &mut conn, gather),
        };
        match after {
            After::Keep => {}
            After::PutDown => {
                // While we are stopping, this thread sees the reply to its end.
                let Some(back) = shared.park(conn, Watch::Reply) else { return };
                (conn, work) = (back, Work::Unfinished);
                continue;
            }
            After::PutOff => {
                let Some(back) = shared.park_until_called(conn) else { return };
                (conn, work) = (back, Work::Unfinished);
                continue;
            }
            After::Linger => {
                if conn.begin_linger() {
                    let _stopping = shared.park(conn, Watch::Linger);
                }
                return;
            }
            After::Drop => return,
        }
        let ready = match conn.take_buffered(shared) {
            Next::Ready(ready) => ready,
            Next::Partial => {
                let watch = conn.rest();
                let _stopping = shared.park(conn, watch);
                return;
            }
            Next::Refused(refusal) => {
                if conn.refuse(shared, &refusal) {
                    let _stopping = shared.park(conn, Watch::Linger);
                }
                return;
            }
            Next::Gone => return,
        };
        // Behind the others, unless the queue is full: whom we serve already is not shed.
        let others_wait = in_a_row >= IN_A_ROW_MAX
            && (1..shared.bounds.queue_max).contains(&shared.pools.queued());
        if place != Place::Main || others_wait {
            return hand_over(shared, Due::request(conn, *ready));
        }
        work = Work::Request(ready.parsed);
    }
}

/// How long a worker of the main lane waits for a client, or for what a reply waits for.
fn wait_of_workers(shared: &Shared, room: Room) -> Wait {
    let wait = Wait::at_most(TURN_TO_OTHERS_AFTER);
    match room {
        _ if shared.is_stopping() => Wait::TO_THE_END,
        Room::Left => wait,
        // What a client leaves untaken may be much; what waits for a body is not.
        Room::Full => Wait { for_client: Duration::MAX, ..wait },
    }
}

/// Goes on with what was put down or off. The connection keeps it until it has ended.
fn go_on(shared: &Shared, conn: &mut Conn, gather: &mut Vec<u8>) -> After {
    let Conn { stream, unfinished, .. } = conn;
    unfinished.end_wait();
    let mut wait = wait_of_workers(shared, shared.room());
    if shared.pools.queued() > 0 && !shared.is_stopping() {
        // It has had its turn already: a herd that is called at once must not hold the workers
        // for as long as each of them waits for the next bytes.
        wait.for_others = Duration::ZERO;
    }
    let ending = match (unfinished.request.take(), &mut unfinished.reply) {
        (Some(request), _) => request.go_on(stream, gather, wait, &shared.stopping, unfinished),
        (None, Some(reply)) => {
            let (ending, broken) = reply.go_on(stream, gather, wait);
            if !ending.is_to_go_on()
                && let Some(reply) = unfinished.reply.take()
            {
                reply.tell(broken);
            }
            ending
        }
        (None, None) => return After::Drop,
    };
    ending.into()
}

/// What to do with a connection behind a reply.
enum After {
    /// Look for its next request.
    Keep,
    /// Wait for the client to take the rest of the reply.
    PutDown,
    /// Wait for what was put off to be called for.
    PutOff,
    /// Close it in a way that leaves the client its answer.
    Linger,
    /// Close it.
    Drop,
}

impl From<Ending> for After {
    fn from(ending: Ending) -> Self {
        match ending {
            Ending::Keep => Self::Keep,
            Ending::Close => Self::Linger,
            Ending::PutDown => Self::PutDown,
            Ending::PutOff => Self::PutOff,
            Ending::Lost | Ending::Unanswered => Self::Drop,
        }
    }
}

fn answer(
    shared: &Shared,
    conn: &mut Conn,
    parsed: Parsed,
    place: Place,
    gather: &mut Vec<u8>,
) -> After {
    let Parsed { head, body: framing, wants_keep_alive, expects_continue } = parsed;
    let room = shared.room();
    let asked = Asked {
        is_head: head.method == "HEAD",
        is_http_11: head.is_http_11,
        may_keep: wants_keep_alive
            && conn.requests() < shared.guarded.requests_per_connection_max
            && conn.kind() == Kind::Ordinary,
        // Nobody sends a body with these to any purpose, and it must not hold a worker while the
        // answer waits for upstream.
        may_drain: place == Place::Main && !matches!(head.method.as_str(), "GET" | "HEAD"),
        has_room: room == Room::Left,
        wait: match place {
            Place::Main => wait_of_workers(shared, room),
            Place::Fast | Place::Shed => Wait::TO_THE_END,
        },
    };
    let (write_stall, read_stall) = match place {
        Place::Main => (shared.bounds.write_timeout, shared.guarded.body_idle_timeout),
        Place::Fast | Place::Shed => (
            shared.bounds.write_timeout.min(SIDE_LANE_STALL),
            shared.guarded.body_idle_timeout.min(SIDE_LANE_STALL),
        ),
    };
    let pace = |stall| {
        Pace::new(stall, shared.guarded.rate_window, shared.guarded.rate_min_bytes_per_second)
    };
    let unread = Cell::new(match (framing, expects_continue) {
        (BodyFraming::None, _) => Unread::Nothing,
        (_, true) => Unread::AwaitsContinue,
        (BodyFraming::Length(length), false) => Unread::Bytes(length),
        (BodyFraming::Chunked, false) => Unread::Chunks,
    });
    let bytes_max = shared.bounds.body_bytes_max;
    let Conn { stream, input, unfinished, .. } = conn;
    let mut body = BodyReader::new(stream, input, &unread, framing, bytes_max, pace(read_stall));
    let stopping = &shared.stopping;
    let mut writer =
        Writer::new(stream, gather, &unread, asked, pace(write_stall), stopping, unfinished);
    if place == Place::Shed {
        shared.service.shed(&head, &mut writer);
    } else {
        shared.service.serve(Request { head, body: &mut body }, &mut writer);
    }
    if writer.ending() == Ending::Unanswered {
        writer.answer_for_service();
    }
    match writer.ending() {
        Ending::Keep
            if unread.get() != Unread::Nothing
                && !body.drain(
                    DRAIN_BYTES_MAX,
                    Pace::new(DRAIN_PATIENCE, DRAIN_PATIENCE, u64::MAX),
                ) =>
        {
            After::Linger
        }
        // A client that asked for the close, and has sent nothing more, needs no lingering.
        Ending::Close
            if !wants_keep_alive
                && unread.get() == Unread::Nothing
                && conn.input.bytes().is_empty() =>
        {
            After::Drop
        }
        ending => ending.into(),
    }
}
