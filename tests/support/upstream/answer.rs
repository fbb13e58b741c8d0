//! What the scripted upstream answers, and how badly.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::net::TcpStream;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use super::super::PATIENCE;
use super::{Next, Seen};

/// How much is written at once.
const PIECE: u64 = 16 << 10;
/// A throttled answer comes in so many pieces a second.
const PIECES_PER_SECOND: u64 = 50;

/// Answers in the order in which they are given; the last one is given for ever.
#[derive(Debug, Clone)]
pub(crate) struct Script(VecDeque<Answer>);

impl Script {
    pub(super) fn next(&mut self) -> Answer {
        if self.0.len() > 1 {
            self.0.pop_front().expect("there is more than one")
        } else {
            self.0.front().expect("a script has an answer").clone()
        }
    }
}

impl From<Answer> for Script {
    fn from(answer: Answer) -> Self {
        Self([answer].into())
    }
}

impl<const N: usize> From<[Answer; N]> for Script {
    fn from(answers: [Answer; N]) -> Self {
        assert!(N > 0, "a script has an answer");
        Self(answers.into())
    }
}

/// Holds answers until the test opens it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Gate(Arc<(Mutex<GateState>, Condvar)>);

#[derive(Debug, Default)]
struct GateState {
    is_open: bool,
    reached: usize,
}

impl Gate {
    /// A closed gate.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Lets every answer pass, now and later.
    pub(crate) fn open(&self) {
        let (state, changed) = &*self.0;
        state.lock().expect("nobody panics while holding it").is_open = true;
        changed.notify_all();
    }

    /// Waits until `answers` have come to the gate.
    pub(crate) fn wait_reached(&self, answers: usize) {
        let (state, changed) = &*self.0;
        let state = state.lock().expect("nobody panics while holding it");
        let (state, waited) = changed
            .wait_timeout_while(state, PATIENCE, |state| state.reached < answers)
            .expect("nobody panics while holding it");
        let reached = state.reached;
        assert!(!waited.timed_out(), "{reached} of {answers} answers came to the gate");
    }

    // Gives up with the test: whoever waits for the client then fails by name.
    fn pass(&self) {
        let (state, changed) = &*self.0;
        let mut state = state.lock().expect("nobody panics while holding it");
        state.reached += 1;
        changed.notify_all();
        let _ = changed.wait_timeout_while(state, PATIENCE, |state| !state.is_open);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Cut,
    Reset,
    Stall,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    Length,
    Claim(u64),
    Chunked,
    ChunkedWithoutEnd,
    UntilClose,
}

/// An answer.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Arc<[u8]>,
    etag: Option<String>,
    last_modified: Option<String>,
    honours_conditions: bool,
    honours_ranges: bool,
    framing: Framing,
    head_fault: Option<Fault>,
    body_fault: Option<(u64, Fault)>,
    head_gate: Option<Gate>,
    body_gate: Option<(u64, Gate)>,
    bytes_per_second: Option<u64>,
}

impl Answer {
    /// 200 with a file; ranges are honoured, and conditions once it has a validator.
    pub(crate) fn file(bytes: &[u8]) -> Self {
        Self { honours_conditions: true, honours_ranges: true, ..Self::whole(200, bytes.into()) }
    }

    /// A status with a line of text.
    pub(crate) fn status(status: u16) -> Self {
        Self::whole(status, format!("status {status}\n").into_bytes().into())
    }

    /// The same with another body.
    pub(crate) fn body(self, text: &str) -> Self {
        Self { body: text.as_bytes().into(), ..self }
    }

    /// 302 to another URL.
    pub(crate) fn redirect(location: &str) -> Self {
        Self::status(302).header("Location", location)
    }

    /// The connection is closed without an answer.
    pub(crate) fn closed() -> Self {
        Self { head_fault: Some(Fault::Cut), ..Self::status(200) }
    }

    /// The connection is reset without an answer.
    pub(crate) fn reset() -> Self {
        Self { head_fault: Some(Fault::Reset), ..Self::status(200) }
    }

    /// No answer comes, until the client gives up.
    pub(crate) fn stalled() -> Self {
        Self { head_fault: Some(Fault::Stall), ..Self::status(200) }
    }

    fn whole(status: u16, body: Arc<[u8]>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body,
            etag: None,
            last_modified: None,
            honours_conditions: false,
            honours_ranges: false,
            framing: Framing::Length,
            head_fault: None,
            body_fault: None,
            head_gate: None,
            body_gate: None,
            bytes_per_second: None,
        }
    }

    /// Adds a header.
    pub(crate) fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    /// Has an ETag, given with its quotes.
    pub(crate) fn etag(self, etag: &str) -> Self {
        Self { etag: Some(etag.to_owned()), ..self }
    }

    /// Has a Last-Modified.
    pub(crate) fn last_modified(self, date: &str) -> Self {
        Self { last_modified: Some(date.to_owned()), ..self }
    }

    /// Answers 200 with everything, whatever range is asked for.
    pub(crate) fn ignoring_ranges(self) -> Self {
        Self { honours_ranges: false, ..self }
    }

    /// Closes the connection after so many bytes of the body.
    pub(crate) fn cut_at(self, bytes: u64) -> Self {
        Self { body_fault: Some((bytes, Fault::Cut)), ..self }
    }

    /// Resets the connection after so many bytes of the body.
    pub(crate) fn reset_at(self, bytes: u64) -> Self {
        Self { body_fault: Some((bytes, Fault::Reset)), ..self }
    }

    /// Goes silent after so many bytes of the body, until the client gives up.
    pub(crate) fn stalled_at(self, bytes: u64) -> Self {
        Self { body_fault: Some((bytes, Fault::Stall)), ..self }
    }

    /// Holds the head until a gate is open.
    pub(crate) fn head_held_by(self, gate: &Gate) -> Self {
        Self { head_gate: Some(gate.clone()), ..self }
    }

    /// Holds the body after so many bytes until a gate is open.
    pub(crate) fn held_at(self, bytes: u64, gate: &Gate) -> Self {
        Self { body_gate: Some((bytes, gate.clone())), ..self }
    }

    /// Sends the body at a rate.
    pub(crate) fn throttled(self, bytes_per_second: u64) -> Self {
        Self { bytes_per_second: Some(bytes_per_second), ..self }
    }

    /// Announces another length than the body has, sends the body and closes.
    pub(crate) fn claiming_length(self, length: u64) -> Self {
        Self { framing: Framing::Claim(length), ..self }
    }

    /// Sends the body in chunks, without announcing a length.
    pub(crate) fn chunked(self) -> Self {
        Self { framing: Framing::Chunked, ..self }
    }

    /// Sends the body in chunks and closes without the last one.
    pub(crate) fn chunked_without_end(self) -> Self {
        Self { framing: Framing::ChunkedWithoutEnd, ..self }
    }

    /// Sends the body without length or chunks and closes.
    pub(crate) fn until_close(self) -> Self {
        Self { framing: Framing::UntilClose, ..self }
    }

    pub(super) fn send(
        &self,
        request: &Seen,
        mut stream: &TcpStream,
        is_wanted: &dyn Fn() -> bool,
    ) -> io::Result<Next> {
        if let Some(gate) = &self.head_gate {
            gate.pass();
        }
        if let Some(fault) = self.head_fault {
            return Ok(commit(fault, is_wanted));
        }
        let choice = self.choose(request);
        let is_bodiless = choice.status == 304 || request.method == "HEAD";
        stream.write_all(&self.head(&choice))?;
        if !is_bodiless
            && let Some(fault) = self.send_body(stream, &self.body[choice.part.clone()])?
        {
            return Ok(commit(fault, is_wanted));
        }
        Ok(match self.framing {
            Framing::Length | Framing::Chunked => Next::Request,
            Framing::Claim(_) | Framing::ChunkedWithoutEnd | Framing::UntilClose => Next::Close,
        })
    }

    fn send_body(&self, mut stream: &TcpStream, body: &[u8]) -> io::Result<Option<Fault>> {
        let begun = Instant::now();
        let is_chunked = matches!(self.framing, Framing::Chunked | Framing::ChunkedWithoutEnd);
        let piece_max =
            self.bytes_per_second.map_or(PIECE, |rate| (rate / PIECES_PER_SECOND).clamp(1, PIECE));
        let mut gate = self.body_gate.as_ref();
        let mut sent = 0;
        loop {
            if let Some((_, gate)) = gate.take_if(|(at, _)| *at <= sent) {
                gate.pass();
            }
            if let Some((_, fault)) = self.body_fault.filter(|(at, _)| *at <= sent) {
                return Ok(Some(fault));
            }
            let stops = [gate.map(|(at, _)| *at), self.body_fault.map(|(at, _)| at)];
            let end = stops.into_iter().flatten().fold(body.len() as u64, u64::min);
            let end = end.min(sent + piece_max);
            if end == sent {
                break;
            }
            let piece = &body[sent as usize..end as usize];
            if is_chunked {
                write!(stream, "{:x}\r\n", piece.len())?;
            }
            stream.write_all(piece)?;
            if is_chunked {
                stream.write_all(b"\r\n")?;
            }
            sent = end;
            if let Some(rate) = self.bytes_per_second {
                let due = begun + Duration::from_secs_f64(sent as f64 / rate as f64);
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
            }
        }
        if self.framing == Framing::Chunked {
            stream.write_all(b"0\r\n\r\n")?;
        }
        Ok(None)
    }

    fn head(&self, choice: &Choice) -> Vec<u8> {
        let length = (choice.part.end - choice.part.start) as u64;
        let mut head = format!("HTTP/1.1 {} Scripted\r\n", choice.status);
        let mut add = |name: &str, value: &str| head += &format!("{name}: {value}\r\n");
        add("Date", &httpdate::fmt_http_date(std::time::SystemTime::now()));
        for (name, value) in &self.headers {
            add(name, value);
        }
        if let Some(etag) = &self.etag {
            add("ETag", etag);
        }
        if let Some(date) = &self.last_modified {
            add("Last-Modified", date);
        }
        if self.honours_ranges {
            add("Accept-Ranges", "bytes");
        }
        let total = self.body.len();
        match choice.status {
            206 => add(
                "Content-Range",
                &format!("bytes {}-{}/{total}", choice.part.start, choice.part.end - 1),
            ),
            416 => add("Content-Range", &format!("bytes */{total}")),
            _ => (),
        }
        match self.framing {
            _ if choice.status == 304 => (),
            Framing::Length => add("Content-Length", &length.to_string()),
            Framing::Claim(claim) => add("Content-Length", &claim.to_string()),
            Framing::Chunked | Framing::ChunkedWithoutEnd => add("Transfer-Encoding", "chunked"),
            Framing::UntilClose => add("Connection", "close"),
        }
        head += "\r\n";
        head.into_bytes()
    }

    fn choose(&self, request: &Seen) -> Choice {
        let whole = Choice { status: self.status, part: 0..self.body.len() };
        if self.honours_conditions && self.is_known_to(request) {
            return Choice { status: 304, part: 0..0 };
        }
        match request.header("range").filter(|_| self.honours_ranges && self.range_applies(request))
        {
            Some(range) => self.part(range).unwrap_or(whole),
            None => whole,
        }
    }

    // RFC 9110, section 13.2.2: If-None-Match wins over If-Modified-Since.
    fn is_known_to(&self, request: &Seen) -> bool {
        if let Some(known) = request.header("if-none-match") {
            let strip = |etag: &str| etag.trim().trim_start_matches("W/").to_owned();
            return self.etag.as_deref().is_some_and(|etag| {
                known.trim() == "*" || known.split(',').any(|one| strip(one) == strip(etag))
            });
        }
        let since = request.header("if-modified-since").and_then(parse_date);
        let modified = self.last_modified.as_deref().and_then(parse_date);
        matches!((since, modified), (Some(since), Some(modified)) if modified <= since)
    }

    fn range_applies(&self, request: &Seen) -> bool {
        let Some(version) = request.header("if-range") else { return true };
        let strong = self.etag.as_deref().filter(|etag| !etag.starts_with("W/"));
        strong == Some(version) || self.last_modified.as_deref() == Some(version)
    }

    // One range; `None` where the header means nothing or names several.
    fn part(&self, range: &str) -> Option<Choice> {
        let total = self.body.len();
        let (from, to) = range.strip_prefix("bytes=")?.split_once('-')?;
        let part = match (from.is_empty(), to.is_empty()) {
            (true, _) => total.saturating_sub(to.parse().ok()?)..total,
            (false, true) => from.parse().ok()?..total,
            (false, false) => from.parse().ok()?..to.parse::<usize>().ok()?.min(total - 1) + 1,
        };
        if part.start >= part.end {
            return Some(Choice { status: 416, part: 0..0 });
        }
        Some(Choice { status: 206, part })
    }
}

/// Which part of the file goes out under which status.
#[derive(Debug)]
struct Choice {
    status: u16,
    part: Range<usize>,
}

fn commit(fault: Fault, is_wanted: &dyn Fn() -> bool) -> Next {
    match fault {
        Fault::Cut => Next::Close,
        Fault::Reset => Next::Reset,
        Fault::Stall => {
            while is_wanted() {}
            Next::Close
        }
    }
}

fn parse_date(text: &str) -> Option<std::time::SystemTime> {
    httpdate::parse_http_date(text).ok()
}
