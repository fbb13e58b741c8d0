//! The connections that nobody works on: idle, half-read, or lingering before their close.
//!
//! Each list is in the order in which its connections came, so that the first is the oldest
//! and, one bound of time holding for the whole list, the first to lapse. Every operation
//! takes constant time. Nothing here touches a socket.

use std::time::Instant;

use super::connection::Conn;

/// What a parked connection is watched for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Watch {
    /// The rest of its close: we have sent our last, and discard what still comes.
    Linger,
    /// The first byte of its next request.
    Idle,
    /// The rest of a request head; a new connection is here from the start.
    Head,
}

/// All watches, in the order in which room is made: who has least to lose goes first.
pub(super) const WATCHES: [Watch; 3] = [Watch::Linger, Watch::Idle, Watch::Head];

/// Names a parked connection; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Token(u64);

impl Token {
    /// A token from what the readiness call gives back.
    pub(super) const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// What the readiness call is to give back.
    pub(super) const fn bits(self) -> u64 {
        self.0
    }

    fn new(index: u32, generation: u32) -> Self {
        Self(u64::from(generation) << 32 | u64::from(index))
    }

    fn index(self) -> usize {
        (self.0 & u64::from(u32::MAX)) as usize
    }

    fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

const NONE: u32 = u32::MAX;
/// Generations stay below 2^31, which leaves the upper half of the tokens to others.
const GENERATION_MASK: u32 = u32::MAX >> 1;

#[derive(Debug)]
struct Slot {
    generation: u32,
    previous: u32,
    next: u32,
    watch: Watch,
    since: Instant,
    state: State,
}

#[derive(Debug)]
enum State {
    Free,
    // In the watcher's hands; the place in the list stays.
    Out,
    In(Box<Conn>),
}

#[derive(Debug, Clone, Copy)]
struct List {
    first: u32,
    last: u32,
}

/// The parked connections.
#[derive(Debug)]
pub(super) struct Table {
    slots: Vec<Slot>,
    free: Vec<u32>,
    lists: [List; WATCHES.len()],
}

impl Table {
    /// An empty table.
    pub(super) fn new() -> Self {
        let lists = [List { first: NONE, last: NONE }; WATCHES.len()];
        Self { slots: Vec::new(), free: Vec::new(), lists }
    }

    /// Parks a connection.
    pub(super) fn insert(&mut self, conn: Box<Conn>, watch: Watch, now: Instant) -> Token {
        let index = self.free.pop().unwrap_or_else(|| {
            let state = State::Free;
            let slot = Slot { generation: 0, previous: NONE, next: NONE, watch, since: now, state };
            self.slots.push(slot);
            (self.slots.len() - 1) as u32
        });
        self.link(index, watch, now);
        let slot = &mut self.slots[index as usize];
        slot.state = State::In(conn);
        Token::new(index, slot.generation)
    }

    /// The parked connection of a token.
    pub(super) fn get(&self, token: Token) -> Option<&Conn> {
        match &self.slots.get(token.index()).filter(|s| s.generation == token.generation())?.state {
            State::In(conn) => Some(conn),
            State::Free | State::Out => None,
        }
    }

    /// Takes a connection out for a look; its place is kept until [`Table::put_back`] or
    /// [`Table::vacate`], one of which must follow. Only the watcher may do this.
    pub(super) fn check_out(&mut self, token: Token) -> Option<(Box<Conn>, Watch)> {
        let slot = self.slots.get_mut(token.index())?;
        if slot.generation != token.generation() {
            return None;
        }
        match std::mem::replace(&mut slot.state, State::Out) {
            State::In(conn) => Some((conn, slot.watch)),
            other => {
                slot.state = other;
                None
            }
        }
    }

    /// Puts a connection back into its place, or at the end of another watch's list.
    pub(super) fn put_back(&mut self, token: Token, conn: Box<Conn>, watch: Watch, now: Instant) {
        let index = token.index();
        if self.slots[index].watch != watch {
            self.unlink(index as u32);
            self.link(index as u32, watch, now);
        }
        self.slots[index].state = State::In(conn);
    }

    /// Gives up the place of a connection that was taken out.
    pub(super) fn vacate(&mut self, token: Token) {
        let index = token.index() as u32;
        self.unlink(index);
        let slot = &mut self.slots[index as usize];
        slot.state = State::Free;
        slot.generation = slot.generation.wrapping_add(1) & GENERATION_MASK;
        self.free.push(index);
    }

    /// Removes a connection.
    pub(super) fn remove(&mut self, token: Token) -> Option<Box<Conn>> {
        let (conn, _) = self.check_out(token)?;
        self.vacate(token);
        Some(conn)
    }

    /// The connection that has been watched for longest, and since when.
    pub(super) fn oldest(&self, watch: Watch) -> Option<(Token, Instant)> {
        let first = self.lists[watch as usize].first;
        let slot = self.slots.get(first as usize)?;
        Some((Token::new(first, slot.generation), slot.since))
    }

    fn link(&mut self, index: u32, watch: Watch, now: Instant) {
        let list = &mut self.lists[watch as usize];
        let last = std::mem::replace(&mut list.last, index);
        match self.slots.get_mut(last as usize) {
            Some(last) => last.next = index,
            None => list.first = index,
        }
        let slot = &mut self.slots[index as usize];
        (slot.previous, slot.next, slot.watch, slot.since) = (last, NONE, watch, now);
    }

    fn unlink(&mut self, index: u32) {
        let slot = &self.slots[index as usize];
        let (previous, next, watch) = (slot.previous, slot.next, slot.watch);
        match self.slots.get_mut(previous as usize) {
            Some(previous) => previous.next = next,
            None => self.lists[watch as usize].first = next,
        }
        match self.slots.get_mut(next as usize) {
            Some(next) => next.previous = previous,
            None => self.lists[watch as usize].last = previous,
        }
    }
}
