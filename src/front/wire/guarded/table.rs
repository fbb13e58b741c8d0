//! The connections that nobody works on: idle, half-read, with a reply that waits for its
//! client or for its bytes, or lingering before their close.
//!
//! Each list is in the order in which its connections came, so that the first is the oldest
//! and, one bound of time holding for the whole list, the first to lapse. Every operation
//! but [`Table::find`] takes constant time. Nothing here touches a socket.

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
    /// Room for the rest of a reply.
    Reply,
    /// Its client's leaving; otherwise somebody calls when its reply can go on.
    Call,
    /// The same, and its client sends nothing any more. Most that do so have gone.
    SilentCall,
}

/// All watches.
pub(super) const WATCHES: [Watch; 6] =
    [Watch::Linger, Watch::Idle, Watch::Head, Watch::Reply, Watch::Call, Watch::SilentCall];

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
    // What of the sum of its list it stands for: what a connection takes can change while it is
    // here, as others begin or end to use what its reply is made of.
    buffered: usize,
    state: State,
}

#[derive(Debug)]
enum State {
    Free,
    // In the hands of who looks after it; the place in the list stays.
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
    // Bytes that the connections of each list take beside themselves.
    buffered: [usize; WATCHES.len()],
    lists: [List; WATCHES.len()],
}

impl Table {
    /// An empty table.
    pub(super) fn new() -> Self {
        let lists = [List { first: NONE, last: NONE }; WATCHES.len()];
        Self { slots: Vec::new(), free: Vec::new(), buffered: [0; WATCHES.len()], lists }
    }

    /// Parks a connection.
    pub(super) fn insert(&mut self, conn: Box<Conn>, watch: Watch, now: Instant) -> Token {
        let index = self.free.pop().unwrap_or_else(|| {
            let state = State::Free;
            let (previous, next, buffered) = (NONE, NONE, 0);
            let slot = Slot { generation: 0, previous, next, watch, since: now, buffered, state };
            self.slots.push(slot);
            (self.slots.len() - 1) as u32
        });
        self.link(index, watch, now);
        self.put_in(index, conn);
        Token::new(index, self.slots[index as usize].generation)
    }

    /// The parked connection of a token.
    pub(super) fn get(&self, token: Token) -> Option<&Conn> {
        match &self.slots.get(token.index()).filter(|s| s.generation == token.generation())?.state {
            State::In(conn) => Some(conn),
            State::Free | State::Out => None,
        }
    }

    /// Takes a connection out for a look; its place is kept, and passed over by everything
    /// here, until [`Table::put_back`] or [`Table::vacate`], one of which must follow.
    pub(super) fn check_out(&mut self, token: Token) -> Option<(Box<Conn>, Watch)> {
        let slot = self.slots.get_mut(token.index())?;
        if slot.generation != token.generation() {
            return None;
        }
        match std::mem::replace(&mut slot.state, State::Out) {
            State::In(conn) => {
                self.buffered[slot.watch as usize] -= std::mem::take(&mut slot.buffered);
                Some((conn, slot.watch))
            }
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
        self.put_in(index as u32, conn);
    }

    fn put_in(&mut self, index: u32, conn: Box<Conn>) {
        let slot = &mut self.slots[index as usize];
        slot.buffered = conn.buffered();
        self.buffered[slot.watch as usize] += slot.buffered;
        slot.state = State::In(conn);
    }

    /// Watches a parked connection for something else, as the last of its list; says whether it
    /// was there, and watched for `from`.
    pub(super) fn watch_for(&mut self, token: Token, from: Watch, to: Watch, now: Instant) -> bool {
        let Some((conn, watch)) = self.check_out(token) else { return false };
        self.put_back(token, conn, if watch == from { to } else { watch }, now);
        watch == from
    }

    /// A connection of a list that is as `is_it` says: of several, the oldest.
    pub(super) fn find(&self, watch: Watch, is_it: impl Fn(&Conn) -> bool) -> Option<Token> {
        let mut at = self.lists[watch as usize].first;
        loop {
            let slot = self.slots.get(at as usize)?;
            if let State::In(conn) = &slot.state
                && is_it(conn)
            {
                return Some(Token::new(at, slot.generation));
            }
            at = slot.next;
        }
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

    /// Removes a connection, unless it was taken out for a look.
    pub(super) fn remove(&mut self, token: Token) -> Option<Box<Conn>> {
        let (conn, _) = self.check_out(token)?;
        self.vacate(token);
        Some(conn)
    }

    /// Bytes that the connections of a list take beside themselves.
    pub(super) fn buffered(&self, watch: Watch) -> usize {
        self.buffered[watch as usize]
    }

    /// The connection that has been watched for longest, and since when; of those that are
    /// here, and what is out for a look is few.
    pub(super) fn oldest(&self, watch: Watch) -> Option<(Token, Instant)> {
        let token = self.find(watch, |_| true)?;
        Some((token, self.slots[token.index()].since))
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

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::super::census::{Census, Kind};
    use super::super::stream::Stream;
    use super::*;

    struct Parked {
        table: Table,
        now: Instant,
    }

    impl Parked {
        fn new() -> Self {
            Self { table: Table::new(), now: Instant::now() }
        }

        fn insert(&mut self, watch: Watch) -> Token {
            self.now += Duration::from_secs(1);
            let (ours, _theirs) = UnixStream::pair().unwrap();
            let seat = Census::new(1, 0, 1).seat(Kind::Ordinary, None).unwrap();
            let conn = Conn::new(Stream::new(ours.into()), None, seat);
            self.table.insert(conn, watch, self.now)
        }

        fn drain(&mut self, watch: Watch) -> Vec<Token> {
            let mut order = Vec::new();
            while let Some((token, _)) = self.table.oldest(watch) {
                order.push(token);
                self.table.remove(token);
            }
            order
        }
    }

    #[test]
    fn each_list_is_in_the_order_of_coming() {
        let mut parked = Parked::new();
        let idle: Vec<Token> = (0..5).map(|_| parked.insert(Watch::Idle)).collect();
        let head: Vec<Token> = (0..5).map(|_| parked.insert(Watch::Head)).collect();
        assert!(parked.table.remove(idle[2]).is_some() && parked.table.remove(head[0]).is_some());
        assert_eq!(parked.drain(Watch::Idle), [idle[0], idle[1], idle[3], idle[4]]);
        assert_eq!(parked.drain(Watch::Head), head[1..]);
        assert_eq!(parked.drain(Watch::Linger), []);
    }

    #[test]
    fn a_look_keeps_the_place_and_a_change_of_watch_takes_the_last() {
        let mut parked = Parked::new();
        let tokens: Vec<Token> = (0..3).map(|_| parked.insert(Watch::Head)).collect();
        let idle = parked.insert(Watch::Idle);
        let now = parked.now;
        for (token, watch) in [(tokens[1], Watch::Head), (tokens[0], Watch::Idle)] {
            let (conn, was) = parked.table.check_out(token).unwrap();
            assert_eq!(was, Watch::Head);
            assert!(parked.table.get(token).is_none() && parked.table.check_out(token).is_none());
            parked.table.put_back(token, conn, watch, now);
        }
        assert_eq!(parked.drain(Watch::Head), [tokens[1], tokens[2]]);
        assert_eq!(parked.drain(Watch::Idle), [idle, tokens[0]]);
    }

    #[test]
    fn a_token_of_the_past_names_nobody() {
        let mut parked = Parked::new();
        let past = parked.insert(Watch::Idle);
        drop(parked.table.remove(past).unwrap());
        let present = parked.insert(Watch::Idle);
        assert_ne!(past, present);
        assert!(parked.table.get(past).is_none() && parked.table.remove(past).is_none());
        assert!(parked.table.get(present).is_some());
        assert_eq!(Token::from_bits(present.bits()), present);
    }

    #[test]
    fn what_is_out_for_a_look_is_passed_over() {
        let mut parked = Parked::new();
        let (out, next) = (parked.insert(Watch::Head), parked.insert(Watch::Head));
        let (conn, _) = parked.table.check_out(out).unwrap();
        assert!(parked.table.remove(out).is_none());
        assert_eq!(parked.drain(Watch::Head), [next]);
        parked.table.put_back(out, conn, Watch::Head, parked.now);
        assert_eq!(parked.drain(Watch::Head), [out]);
    }

    #[test]
    fn a_place_whose_connection_was_lost_can_be_given_up() {
        let mut parked = Parked::new();
        let (lost, next) = (parked.insert(Watch::Head), parked.insert(Watch::Head));
        drop(parked.table.check_out(lost).unwrap());
        parked.table.vacate(lost);
        assert_eq!(parked.drain(Watch::Head), [next]);
    }
}
