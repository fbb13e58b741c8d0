//! What a worker does with a connection: answer a request, and look for the next.
//!
//! A worker keeps the connection while requests are there or come within a moment, so that a
//! busy client costs no hand-over; then the watcher has it back. Side lanes never wait.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::body::{BodyReader, Unread};
use super::census::Kind;
use super::connection::{Conn, Next, Ready};
use super::head::{BodyFraming, Parsed};
use super::reply::{Asked, Ending, Writer};
use super::stream::Pace;
use super::table::Watch;
use super::{DRAIN_BYTES_MAX, Shared};
use crate::front::wire::{Lane, Request};

/// How long a worker that nobody waits for looks for the connection's next request.
const LOOK_FOR_NEXT: Duration = Duration::from_millis(2);
/// Requests of one connection that a worker answers in a row while other jobs wait.
const IN_A_ROW_MAX: usize = 16;
/// How long a worker waits for the rest of an unread body, all in all.
const DRAIN_PATIENCE: Duration = Duration::from_millis(500);
/// How long a client of a side lane may leave our bytes untaken: two threads serve them all.
const SIDE_LANE_STALL: Duration = Duration::from_secs(1);
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

/// Hands a request to its lane, or to the shed lane where that has no room; closes the
/// connection where not even that has.
pub(super) fn dispatch(shared: &Arc<Shared>, conn: Box<Conn>, ready: Box<Ready>) {
    let lane = ready.lane;
    // A reserved seat is for the fast lane only.
    let sheds = conn.kind() == Kind::Reserved && lane == Lane::Main;
    let no_room = Arc::new(AtomicBool::new(sheds));
    let job = Box::new({
        let (shared, no_room) = (Arc::clone(shared), Arc::clone(&no_room));
        move || {
            let place = match (no_room.load(Ordering::Relaxed), lane) {
                (true, _) => Place::Shed,
                (false, Lane::Main) => Place::Main,
                (false, Lane::Fast) => Place::Fast,
            };
            let mut gather = GATHER.take();
            serve(&shared, conn, ready.parsed, place, &mut gather);
            gather.clear();
            if gather.capacity() <= GATHER_KEPT_MAX {
                GATHER.set(gather);
            }
        }
    });
    let refused = match sheds {
        true => Err(job as _),
        false => shared.pools.submit(lane, job),
    };
    if let Err(job) = refused {
        no_room.store(true, Ordering::Relaxed);
        if let Err(job) = shared.pools.submit_shed(job) {
            // Drops the connection, which never blocks: its socket does not.
            drop(job);
        }
    }
}

fn serve(
    shared: &Arc<Shared>,
    mut conn: Box<Conn>,
    mut parsed: Parsed,
    place: Place,
    gather: &mut Vec<u8>,
) {
    for in_a_row in 1.. {
        match answer(shared, &mut conn, parsed, place, gather) {
            After::Keep => {}
            After::Linger => {
                if conn.begin_linger() {
                    shared.park(conn, Watch::Linger);
                }
                return;
            }
            After::Drop => return,
        }
        let ready = match next(shared, &mut conn, place) {
            Next::Ready(ready) => ready,
            Next::Partial => {
                let watch = conn.rest();
                return shared.park(conn, watch);
            }
            Next::Refused(refusal) => {
                if conn.refuse(&refusal) {
                    shared.park(conn, Watch::Linger);
                }
                return;
            }
            Next::Gone => return,
        };
        // Behind the others, unless the queue is full: whom we serve already is not shed.
        let others_wait = in_a_row >= IN_A_ROW_MAX
            && (1..shared.bounds.queue_max).contains(&shared.pools.queued());
        if place != Place::Main || others_wait {
            return dispatch(shared, conn, ready);
        }
        parsed = ready.parsed;
    }
}

/// The next request, if it is here or comes within a moment in which nobody else waits.
fn next(shared: &Shared, conn: &mut Conn, place: Place) -> Next {
    let mut next = conn.take_buffered(shared);
    while matches!(next, Next::Partial) {
        // Once more workers are busy than the machine can run, waiting here costs a switch of
        // threads for each request, where the watcher finds many requests at a time.
        let may_wait = place == Place::Main
            && conn.is_before_request()
            && shared.pools.queued() == 0
            && shared.pools.busy()
                <= shared.parallelism.min(shared.bounds.workers.saturating_sub(1))
            && !shared.is_stopping();
        if !may_wait || !conn.stream.wait_readable(LOOK_FOR_NEXT).unwrap_or(false) {
            break;
        }
        next = conn.receive(shared);
    }
    next
}

enum After {
    Keep,
    Linger,
    Drop,
}

fn answer(
    shared: &Shared,
    conn: &mut Conn,
    parsed: Parsed,
    place: Place,
    gather: &mut Vec<u8>,
) -> After {
    let Parsed { head, body: framing, wants_keep_alive, expects_continue } = parsed;
    let asked = Asked {
        is_head: head.method == "HEAD",
        is_http_11: head.is_http_11,
        may_keep: wants_keep_alive
            && conn.requests() < shared.guarded.requests_per_connection_max
            && conn.kind() == Kind::Ordinary,
        may_drain: place == Place::Main,
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
    let (stream, input) = (&conn.stream, &mut conn.input);
    let mut body = BodyReader::new(stream, input, &unread, framing, bytes_max, pace(read_stall));
    let mut writer =
        Writer::new(stream, gather, &unread, asked, pace(write_stall), &shared.stopping);
    if place == Place::Shed {
        shared.service.shed(&head, &mut writer);
    } else {
        shared.service.serve(Request { head, body: &mut body }, &mut writer);
    }
    if writer.ending() == Ending::Unanswered {
        writer.answer_for_service();
    }
    match writer.ending() {
        Ending::Keep => match unread.get() {
            Unread::Nothing => After::Keep,
            _ if body
                .drain(DRAIN_BYTES_MAX, Pace::new(DRAIN_PATIENCE, DRAIN_PATIENCE, u64::MAX)) =>
            {
                After::Keep
            }
            _ => After::Linger,
        },
        // A client that asked for the close, and has sent nothing more, needs no lingering.
        Ending::Close
            if !wants_keep_alive
                && unread.get() == Unread::Nothing
                && conn.input.bytes().is_empty() =>
        {
            After::Drop
        }
        Ending::Close => After::Linger,
        Ending::Lost | Ending::Unanswered => After::Drop,
    }
}
