//! A client of HTTP/1.1 over a plain socket that reports what a strict client sees.
//!
//! It judges a body by its framing alone: whole, or broken and why. It never repairs, never
//! reconnects and never follows anything. A server that neither goes on nor closes makes it
//! fail the test: a client left hanging is no answer.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::{PATIENCE, assert_same_bytes};

/// Largest response head that is read.
const HEAD_MAX: usize = 64 << 10;
/// Bytes of a chunk that is sent.
const CHUNK: usize = 10_000;
/// How much is read from the socket at once.
const PIECE: usize = 64 << 10;

/// A request.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    method: String,
    target: String,
    version: &'static str,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Ask {
    /// A request of HTTP/1.1 with a method and a target, exactly as they are to be sent.
    pub(crate) fn new(method: &str, target: &str) -> Self {
        Self {
            method: method.to_owned(),
            target: target.to_owned(),
            version: "HTTP/1.1",
            headers: Vec::new(),
            body: Vec::new(),
        }
    }

    /// `PUT target` with a body and its length.
    pub(crate) fn put(target: &str, body: &[u8]) -> Self {
        let ask = Self::new("PUT", target).header("Content-Length", body.len().to_string());
        Self { body: body.to_vec(), ..ask }
    }

    /// `PUT target` with a body in chunks.
    pub(crate) fn put_chunked(target: &str, body: &[u8]) -> Self {
        let ask = Self::new("PUT", target).header("Transfer-Encoding", "chunked");
        let mut chunks = Vec::new();
        for chunk in body.chunks(CHUNK) {
            chunks.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
            chunks.extend(chunk);
            chunks.extend(b"\r\n");
        }
        chunks.extend(b"0\r\n\r\n");
        Self { body: chunks, ..ask }
    }

    /// `DELETE target`.
    pub(crate) fn delete(target: &str) -> Self {
        Self::new("DELETE", target)
    }

    /// Presents a token.
    pub(crate) fn token(self, token: &str) -> Self {
        self.header("Authorization", format!("Bearer {token}"))
    }

    /// Everything that goes over the wire: head and body, for who sends it in pieces.
    pub(crate) fn wire(&self, host: SocketAddr) -> (Vec<u8>, Vec<u8>) {
        (self.head_bytes(host), self.body.clone())
    }

    /// `GET target`.
    pub(crate) fn get(target: &str) -> Self {
        Self::new("GET", target)
    }

    /// `HEAD target`.
    pub(crate) fn head(target: &str) -> Self {
        Self::new("HEAD", target)
    }

    /// Adds a header.
    pub(crate) fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// Asks for a byte range, as `0-9`, `100-`, `-5` or several with commas.
    pub(crate) fn range(self, range: &str) -> Self {
        self.header("Range", format!("bytes={range}"))
    }

    /// Speaks HTTP/1.0.
    pub(crate) fn http_10(mut self) -> Self {
        self.version = "HTTP/1.0";
        self
    }

    fn head_bytes(&self, host: SocketAddr) -> Vec<u8> {
        let mut head = format!("{} {} {}\r\n", self.method, self.target, self.version);
        if !self.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            head += &format!("Host: {host}\r\n");
        }
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += "\r\n";
        head.into_bytes()
    }
}

/// A connection to the server.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    to: SocketAddr,
    // Bytes that came and belong to what was not read yet.
    unread: Vec<u8>,
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// What the system says, for example that nobody listens.
    pub(crate) fn open(to: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(to)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, to, unread: Vec::new() })
    }

    /// Sends bytes as they are. A server that has closed already is no error here: its answer
    /// or the lack of one tells.
    pub(crate) fn send_raw(&mut self, bytes: &[u8]) {
        match self.stream.write_all(bytes) {
            Ok(()) => (),
            Err(error) if is_closed(&error) => (),
            Err(error) => panic!("cannot send a request: {error}"),
        }
    }

    /// Sends a request and reads the head of its answer.
    ///
    /// # Errors
    /// Why there is no head: the connection was closed or reset first.
    pub(crate) fn begin(mut self, ask: &Ask) -> Result<Incoming, String> {
        self.send_raw(&ask.head_bytes(self.to));
        self.send_raw(&ask.body);
        self.incoming(ask.method == "HEAD")
    }

    /// Reads the head of an answer to what was sent raw.
    ///
    /// # Errors
    /// As [`Connection::begin`].
    pub(crate) fn incoming(mut self, to_head: bool) -> Result<Incoming, String> {
        let head = loop {
            let head = self.read_head()?;
            if !(100..200).contains(&head.status) {
                break head;
            }
        };
        let framing = head.framing(to_head);
        Ok(Incoming { connection: self, head, framing, body: Vec::new(), end: None })
    }

    /// Whether the server closes the connection without another byte.
    pub(crate) fn closes_without_a_byte(mut self) -> bool {
        let mut byte = [0; 1];
        self.unread.is_empty()
            && match self.stream.read(&mut byte) {
                Ok(taken) => taken == 0,
                Err(error) => is_closed(&error),
            }
    }

    /// Says that nothing more will be sent, and goes on reading.
    pub(crate) fn half_close(&self) {
        self.stream.shutdown(std::net::Shutdown::Write).expect("the connection is open");
    }

    /// Whether the server sends `100 Continue` now; `false` if it sends another status.
    ///
    /// # Errors
    /// As [`Connection::begin`].
    pub(crate) fn is_told_to_continue(&mut self) -> Result<bool, String> {
        loop {
            if self.unread.starts_with(b"HTTP/1.1 100") {
                return self.read_head().map(|_| true);
            }
            if self.unread.len() > 12 {
                return Ok(false);
            }
            if self.fill()? == 0 {
                return Err("the connection was closed without an answer".to_owned());
            }
        }
    }

    /// Ends the connection with a reset, as a client does that is killed.
    pub(crate) fn reset(self) {
        let socket = socket2::SockRef::from(&self.stream);
        socket.set_linger(Some(Duration::ZERO)).expect("a socket takes SO_LINGER");
    }

    fn read_head(&mut self) -> Result<Head, String> {
        loop {
            if let Some(at) = find(&self.unread, b"\r\n\r\n") {
                let rest = self.unread.split_off(at + 4);
                let head = std::mem::replace(&mut self.unread, rest);
                return Head::parse(&head[..at]);
            }
            if self.unread.len() > HEAD_MAX {
                return Err("the head of the answer is too long".to_owned());
            }
            if self.fill()? == 0 {
                let got = self.unread.len();
                return Err(format!("the connection was closed after {got} bytes of a head"));
            }
        }
    }

    // Reads once from the socket; 0 is its end.
    fn fill(&mut self) -> Result<usize, String> {
        let had = self.unread.len();
        self.unread.resize(had + PIECE, 0);
        let taken = self.stream.read(&mut self.unread[had..]);
        self.unread.truncate(had + *taken.as_ref().unwrap_or(&0));
        match taken {
            Ok(taken) => Ok(taken),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                panic!("the server left the client hanging for {PATIENCE:?}")
            }
            Err(error) => Err(format!("the connection broke: {error}")),
        }
    }
}

fn is_closed(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted
    )
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// The head of an answer.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    /// The status code.
    pub(crate) status: u16,
    /// `HTTP/1.1` or `HTTP/1.0`.
    pub(crate) version: String,
    /// Header fields in their order, names in lower case.
    pub(crate) headers: Vec<(String, String)>,
}

impl Head {
    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(bytes).map_err(|_| "the head is not text".to_owned())?;
        let mut lines = text.split("\r\n");
        let status_line = lines.next().unwrap_or_default();
        let mut words = status_line.splitn(3, ' ');
        let version = words.next().unwrap_or_default().to_owned();
        let status = words.next().and_then(|word| word.parse().ok());
        let (true, Some(status)) = (version.starts_with("HTTP/1."), status) else {
            return Err(format!("{status_line:?} is no status line"));
        };
        let mut headers = Vec::new();
        for line in lines {
            let Some((name, value)) = line.split_once(':') else {
                return Err(format!("{line:?} is no header field"));
            };
            if line.contains(['\r', '\n', '\0']) || name.is_empty() || name.contains([' ', '\t']) {
                return Err(format!("{line:?} is a malformed header field"));
            }
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        Ok(Self { status, version, headers })
    }

    /// The value of a header that stands there once.
    #[track_caller]
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str());
        let first = values.next();
        assert!(values.next().is_none(), "the header {name} stands there twice: {self:?}");
        first
    }

    // RFC 9112, section 6.3.
    fn framing(&self, to_head: bool) -> Framing {
        let encodings = self.header("transfer-encoding");
        let length = self.header("content-length");
        if to_head || self.status == 204 || self.status == 304 {
            return Framing::Length(0);
        }
        match (encodings, length) {
            (Some(_), Some(_)) => Framing::Nonsense("both Transfer-Encoding and Content-Length"),
            (Some(coding), None) if coding.eq_ignore_ascii_case("chunked") => {
                if self.version == "HTTP/1.0" {
                    Framing::Nonsense("chunks in HTTP/1.0")
                } else {
                    Framing::Chunks(Chunks::Size)
                }
            }
            (Some(_), None) => Framing::Nonsense("an unknown transfer coding"),
            (None, Some(length)) => match length.parse() {
                Ok(length) => Framing::Length(length),
                Err(_) => Framing::Nonsense("a Content-Length that is no number"),
            },
            (None, None) => Framing::UntilClose,
        }
    }
}

#[derive(Debug, Clone)]
enum Framing {
    // So many bytes are still to come.
    Length(u64),
    Chunks(Chunks),
    UntilClose,
    Nonsense(&'static str),
}

#[derive(Debug, Clone, Copy)]
enum Chunks {
    Size,
    Data(u64),
    DataEnd,
    Trailer,
}

/// How an answer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// The framing says that it is whole.
    Whole,
    /// The connection was closed in good order, and no framing says what should have come.
    Closed,
    /// A strict client sees an error.
    Broken(String),
}

/// An answer whose body is still coming.
#[derive(Debug)]
pub(crate) struct Incoming {
    connection: Connection,
    /// The head.
    pub(crate) head: Head,
    framing: Framing,
    body: Vec<u8>,
    end: Option<End>,
}

impl Incoming {
    /// Reads until `bytes` of the body are there or it ended.
    pub(crate) fn read_to(&mut self, bytes: usize) -> &[u8] {
        while self.end.is_none() && self.body.len() < bytes {
            self.advance();
        }
        &self.body
    }

    /// Reads to the end.
    pub(crate) fn finish(self) -> Received {
        self.finish_keeping().0
    }

    /// Reads to the end and gives the connection back for the next request.
    pub(crate) fn finish_keeping(mut self) -> (Received, Connection) {
        while self.end.is_none() {
            self.advance();
        }
        let end = self.end.expect("the loop above ended");
        (Received { head: self.head, body: self.body, end }, self.connection)
    }

    /// Goes away in the middle, with a reset.
    pub(crate) fn abort(self) {
        self.connection.reset();
    }

    // Takes what is there, or waits for more; sets `end` at the end.
    fn advance(&mut self) {
        if let Framing::Length(0) = self.framing {
            self.end = Some(End::Whole);
            return;
        }
        if let Framing::Nonsense(what) = self.framing {
            self.end = Some(End::Broken(what.to_owned()));
            return;
        }
        match self.take_buffered() {
            Ok(true) => return,
            Ok(false) => (),
            Err(why) => {
                self.end = Some(End::Broken(why));
                return;
            }
        }
        match self.connection.fill() {
            Ok(0) => self.end = Some(self.end_by_close()),
            Ok(_) => (),
            Err(why) => self.end = Some(End::Broken(why)),
        }
    }

    fn end_by_close(&self) -> End {
        match self.framing {
            Framing::UntilClose => End::Closed,
            Framing::Length(missing) => End::Broken(format!("closed {missing} bytes too early")),
            _ => End::Broken("closed before the last chunk".to_owned()),
        }
    }

    // Whether something could be taken from what came already.
    fn take_buffered(&mut self) -> Result<bool, String> {
        let unread = &mut self.connection.unread;
        match &mut self.framing {
            Framing::Nonsense(_) => Ok(false),
            Framing::UntilClose => {
                let some = !unread.is_empty();
                self.body.append(unread);
                Ok(some)
            }
            Framing::Length(missing) => Ok(move_bytes(unread, &mut self.body, missing)),
            Framing::Chunks(Chunks::Data(missing)) => {
                let moved = move_bytes(unread, &mut self.body, missing);
                if *missing == 0 {
                    self.framing = Framing::Chunks(Chunks::DataEnd);
                }
                Ok(moved)
            }
            Framing::Chunks(state) => {
                let Some(at) = find(unread, b"\r\n") else {
                    return if unread.len() > HEAD_MAX {
                        Err("a chunk's line without end".to_owned())
                    } else {
                        Ok(false)
                    };
                };
                let line: Vec<u8> = unread.drain(..at + 2).take(at).collect();
                *state = match state {
                    Chunks::Size => match chunk_size(&line)? {
                        0 => Chunks::Trailer,
                        size => Chunks::Data(size),
                    },
                    Chunks::DataEnd if line.is_empty() => Chunks::Size,
                    Chunks::DataEnd => return Err("a chunk longer than its size".to_owned()),
                    Chunks::Trailer => {
                        if line.is_empty() {
                            self.end = Some(End::Whole);
                        }
                        Chunks::Trailer
                    }
                    Chunks::Data(_) => unreachable!("the arm above takes a chunk's data"),
                };
                Ok(true)
            }
        }
    }
}

fn chunk_size(line: &[u8]) -> Result<u64, String> {
    let digits = line.split(|&byte| byte == b';').next().unwrap_or_default();
    let well_formed = !digits.is_empty() && digits.iter().all(u8::is_ascii_hexdigit);
    std::str::from_utf8(digits)
        .ok()
        .filter(|_| well_formed)
        .and_then(|text| u64::from_str_radix(text, 16).ok())
        .ok_or_else(|| format!("{:?} is no chunk size", String::from_utf8_lossy(line)))
}

fn move_bytes(from: &mut Vec<u8>, to: &mut Vec<u8>, missing: &mut u64) -> bool {
    let count = usize::try_from(*missing).unwrap_or(usize::MAX).min(from.len());
    if count == from.len() {
        to.append(from);
    } else {
        to.extend(from.drain(..count));
    }
    *missing -= count as u64;
    count > 0
}

/// An answer and how it ended.
#[derive(Debug)]
pub(crate) struct Received {
    /// The head.
    pub(crate) head: Head,
    /// What came of the body, unframed.
    pub(crate) body: Vec<u8>,
    /// How it ended.
    pub(crate) end: End,
}

impl Received {
    /// The status code.
    pub(crate) fn status(&self) -> u16 {
        self.head.status
    }

    /// The value of a header.
    #[track_caller]
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.header(name)
    }

    /// Whether a client takes this for a complete answer.
    pub(crate) fn looks_whole(&self) -> bool {
        !matches!(self.end, End::Broken(_))
    }

    /// Fails unless this is a whole answer with a status and a body.
    #[track_caller]
    pub(crate) fn expect(&self, status: u16, body: &[u8]) {
        self.expect_status(status);
        assert_same_bytes(&self.body, body);
    }

    /// Fails unless this is a whole answer with a status.
    #[track_caller]
    pub(crate) fn expect_status(&self, status: u16) {
        assert!(
            self.status() == status && self.looks_whole(),
            "{status} and a whole body were expected, this came: {:?}, {:?}, {} bytes: {:?}",
            self.head,
            self.end,
            self.body.len(),
            String::from_utf8_lossy(&self.body[..self.body.len().min(400)]),
        );
    }

    /// Fails unless a header has a value.
    #[track_caller]
    pub(crate) fn expect_header(&self, name: &str, value: &str) {
        assert_eq!(self.header(name), Some(value), "{name} of {:?}", self.head);
    }

    /// Fails unless this is an error of a status, whose body is JSON with a `detail`.
    #[track_caller]
    pub(crate) fn expect_error(&self, status: u16) {
        self.expect_status(status);
        self.expect_header("content-type", "application/json");
        let detail = self.json()["detail"].as_str().map(str::len);
        assert!(detail > Some(0), "an error without a detail: {:?}", self.json());
    }

    /// The body as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("not JSON, {error}: {:?}", self.text()))
    }

    /// The body as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}
