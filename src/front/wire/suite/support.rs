//! The service that the suite serves, and the client that asks for it.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::body::{Body, BodyError, Piece, Source};
use crate::front::wire::{Lane, Refused, Reply, ReplyWriter, Request, RequestHead, Service};
use crate::waiting;

/// How long anything in a test may take; nothing here measures speed.
pub(in crate::front::wire) const PATIENCE: Duration = Duration::from_secs(60);

/// Waits for a condition.
pub(in crate::front::wire) fn within(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "in time: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The bytes that every body is made of, from `offset` on; no 64 KiB are like any other.
pub(in crate::front::wire) fn content(offset: u64, len: usize) -> Vec<u8> {
    let word = |index: u64| {
        let mixed = (index ^ 0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed ^ mixed >> 29).to_le_bytes()
    };
    let skip = (offset % 8) as usize;
    let mut bytes: Vec<u8> =
        (offset / 8..(offset + len as u64).div_ceil(8)).flat_map(word).collect();
    bytes.drain(..skip);
    bytes.truncate(len);
    bytes
}

/// A door that stays shut until it is opened, and the count of replies that were begun and
/// not told of.
#[derive(Debug, Default)]
pub(in crate::front::wire) struct Gate {
    is_open: Mutex<bool>,
    changed: Condvar,
    untold: AtomicUsize,
    // Statuses that the listener gave by itself.
    refused: Mutex<Vec<u16>>,
}

impl Gate {
    pub(in crate::front::wire) fn new() -> Arc<Self> {
        Arc::default()
    }

    pub(in crate::front::wire) fn open(&self) {
        *self.is_open.lock().unwrap() = true;
        self.changed.notify_all();
    }

    pub(in crate::front::wire) fn untold(&self) -> usize {
        self.untold.load(Ordering::SeqCst)
    }

    /// Statuses that the listener gave by itself since the last call.
    pub(in crate::front::wire) fn refused(&self) -> Vec<u16> {
        std::mem::take(&mut self.refused.lock().unwrap())
    }

    fn pass(&self) {
        let is_open = self.is_open.lock().unwrap();
        drop(self.changed.wait_timeout_while(is_open, PATIENCE, |is_open| !*is_open).unwrap());
    }
}

/// The service: its paths are the match in [`Service::serve`].
#[derive(Debug)]
pub(in crate::front::wire) struct Shelf {
    file: Mutex<File>,
    gate: Arc<Gate>,
}

impl Shelf {
    pub(in crate::front::wire) fn service() -> Arc<dyn Service> {
        Self::with_gate(&Gate::new())
    }

    pub(in crate::front::wire) fn with_gate(gate: &Arc<Gate>) -> Arc<dyn Service> {
        let file = Mutex::new(tempfile::tempfile().unwrap());
        Arc::new(Self { file, gate: Arc::clone(gate) })
    }

    /// The body of a path.
    pub(in crate::front::wire) fn body(path: &str) -> Body {
        let head = RequestHead {
            method: "GET".into(),
            target: path.into(),
            is_http_11: true,
            headers: Vec::new(),
            client: None,
        };
        let shelf = Self { file: Mutex::new(tempfile::tempfile().unwrap()), gate: Gate::new() };
        shelf.reply(&head, &mut io::empty()).unwrap().body
    }

    /// The file with at least `len` bytes of content.
    fn file(&self, len: u64) -> File {
        let mut file = self.file.lock().unwrap();
        let has = file.seek(SeekFrom::End(0)).unwrap();
        if has < len {
            file.write_all(&content(has, (len - has) as usize)).unwrap();
        }
        file.try_clone().unwrap()
    }

    fn reply(&self, head: &RequestHead, body: &mut dyn Read) -> Option<Reply> {
        let path = head.target.split('?').next().unwrap();
        let mut words = path.trim_start_matches('/').split('/');
        let (route, number) = (words.next().unwrap(), words.next());
        let number: usize = number.and_then(|word| word.parse().ok()).unwrap_or(0);
        let len = number as u64;
        let pieces = |announced, end| {
            let source = Pieces { given: 0, len: number, end, piece: Vec::new() };
            Reply::new(200, Body::new(announced, Box::new(source)))
        };
        Some(match route {
            "hello" => Reply::new(200, Body::from_bytes("hello")),
            "health" => Reply::new(200, Body::from_bytes("well")),
            "file" => Reply::new(200, Body::from_file(self.file(len), 0, len)),
            "unknown-file" => {
                let source = Regions { file: self.file(len).into(), offset: 0, len };
                Reply::new(200, Body::new(None, Box::new(source)))
            }
            "bytes" => pieces(Some(len), End::Whole),
            "unknown" => pieces(None, End::Whole),
            "cut" => pieces(Some(len + 1), End::Cut),
            "cut-unknown" => pieces(None, End::Cut),
            "panic-unknown" => pieces(None, End::Panic),
            "wait-unknown" => pieces(None, End::Wait(Arc::clone(&self.gate))),
            "status" => Reply::new(number as u16, Body::from_bytes("")),
            "echo" => match read_all(body) {
                Ok(bytes) => Reply::new(200, Body::from_bytes(bytes)),
                Err(error) => Reply::new(status_of(&error), Body::from_bytes("")),
            },
            "ignore" => Reply::new(200, Body::from_bytes("ignored")),
            "head" => Reply::new(200, Body::from_bytes(describe(head))),
            "split" => Reply::new(200, Body::from_bytes("hello"))
                .header("x-good", "kept")
                .header("x-bad", "a\r\nx-evil: evil")
                .header("x-worse", "a\nx-evil: evil")
                .header("x-nul", "a\0evil"),
            "gate" => {
                self.gate.pass();
                Reply::new(200, Body::from_bytes("through"))
            }
            "silent" => return None,
            "panic" => panic!("on purpose"),
            _ => Reply::new(404, Body::from_bytes("{\"detail\":\"not found\"}")),
        })
    }
}

impl Service for Shelf {
    fn lane(&self, head: &RequestHead) -> Lane {
        if head.target == "/health" { Lane::Fast } else { Lane::Main }
    }

    fn serve(&self, request: Request<'_>, writer: &mut dyn ReplyWriter) {
        if let Some(reply) = self.reply(&request.head, request.body) {
            self.gate.untold.fetch_add(1, Ordering::SeqCst);
            let gate = Arc::clone(&self.gate);
            let told = move |_| _ = gate.untold.fetch_sub(1, Ordering::SeqCst);
            writer.send(reply, Box::new(told));
        }
    }

    fn shed(&self, _head: &RequestHead, writer: &mut dyn ReplyWriter) {
        let reply = Reply::new(503, Body::from_bytes("{\"detail\":\"overload\"}"));
        writer.send(reply.header("retry-after", "1"), Box::new(drop));
    }

    fn refused(&self, refused: &Refused) {
        self.gate.refused.lock().unwrap().push(refused.status);
    }
}

/// What the front makes of an error while it reads a request body.
fn status_of(error: &io::Error) -> u16 {
    match error.kind() {
        io::ErrorKind::FileTooLarge => 413,
        io::ErrorKind::TimedOut => 408,
        _ => 400,
    }
}

fn read_all(body: &mut dyn Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    body.read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn describe(head: &RequestHead) -> String {
    let version = if head.is_http_11 { "1.1" } else { "1.0" };
    format!(
        "{} {} {version} host={} x-one={} client={}",
        head.method,
        head.target,
        head.header("host").unwrap_or_default(),
        head.header("x-one").unwrap_or_default(),
        head.client.map(|ip| ip.to_string()).unwrap_or_default(),
    )
}

/// What comes behind the pieces of a body.
#[derive(Debug)]
enum End {
    Whole,
    Cut,
    Panic,
    /// A wait for more that does not come, as long as anybody wants it.
    Wait(Arc<Gate>),
}

struct Pieces {
    given: usize,
    len: usize,
    end: End,
    piece: Vec<u8>,
}

impl Source for Pieces {
    fn next_piece(&mut self) -> Result<Option<Piece<'_>>, BodyError> {
        let len = (self.len - self.given).min(100_000);
        if len == 0 {
            return match &self.end {
                End::Whole => Ok(None),
                End::Wait(gate) => {
                    waiting::wait(|| gate.pass());
                    Ok(None)
                }
                End::Cut => Err(BodyError::Cut("on purpose".into())),
                End::Panic => panic!("on purpose"),
            };
        }
        self.piece = content(self.given as u64, len);
        self.given += len;
        Ok(Some(Piece::Bytes(&self.piece)))
    }

    fn buffered(&self) -> usize {
        self.piece.capacity()
    }
}

struct Regions {
    file: Arc<File>,
    offset: u64,
    len: u64,
}

impl Source for Regions {
    fn next_piece(&mut self) -> Result<Option<Piece<'_>>, BodyError> {
        let (offset, len) = (self.offset, (self.len - self.offset).min(100_000));
        self.offset += len;
        Ok((len > 0).then_some(Piece::Region { file: &self.file, offset, len }))
    }
}

/// A response as it came.
#[derive(Debug)]
pub(in crate::front::wire) struct Response {
    pub(in crate::front::wire) status: u16,
    pub(in crate::front::wire) headers: Vec<(String, String)>,
    pub(in crate::front::wire) body: Vec<u8>,
}

impl Response {
    pub(in crate::front::wire) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

/// A client that takes only what is framed well.
#[derive(Debug)]
pub(in crate::front::wire) struct Client {
    reader: BufReader<TcpStream>,
}

impl Client {
    pub(in crate::front::wire) fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { reader: BufReader::with_capacity(64 << 10, stream) }
    }

    pub(in crate::front::wire) fn stream(&mut self) -> &mut TcpStream {
        self.reader.get_mut()
    }

    /// Sends nothing more.
    pub(in crate::front::wire) fn half_close(&self) {
        self.reader.get_ref().shutdown(std::net::Shutdown::Write).unwrap();
    }

    pub(in crate::front::wire) fn send(&mut self, text: &str) {
        self.send_bytes(text.as_bytes());
    }

    pub(in crate::front::wire) fn send_bytes(&mut self, bytes: &[u8]) {
        self.stream().write_all(bytes).unwrap();
    }

    /// Sends a request without a body, and takes its response.
    pub(in crate::front::wire) fn exchange(
        &mut self,
        method: &str,
        target: &str,
        fields: &str,
    ) -> Response {
        self.send(&format!("{method} {target} HTTP/1.1\r\nHost: a\r\n{fields}\r\n"));
        self.response(method).unwrap()
    }

    /// Whether the server has closed, without another byte.
    pub(in crate::front::wire) fn is_at_end(&mut self) -> bool {
        self.reader.fill_buf().is_ok_and(<[u8]>::is_empty)
    }

    /// Takes a whole response.
    ///
    /// # Errors
    /// It is malformed, or not whole.
    pub(in crate::front::wire) fn response(&mut self, method: &str) -> io::Result<Response> {
        let first = self.line()?;
        let status = first
            .strip_prefix("HTTP/1.1 ")
            .and_then(|rest| rest.get(..3)?.parse().ok())
            .ok_or_else(|| malformed(&first))?;
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(": ").ok_or_else(|| malformed(&line))?;
            headers.push((name.to_ascii_lowercase(), value.to_owned()));
        }
        let mut response = Response { status, headers, body: Vec::new() };
        if method != "HEAD" && !matches!(status, 100..=199 | 204 | 304) {
            self.body(&mut response)?;
        }
        Ok(response)
    }

    fn body(&mut self, response: &mut Response) -> io::Result<()> {
        let length = response.header("content-length").map(|text| text.parse::<u64>());
        if response.header("transfer-encoding").is_some_and(|coding| coding == "chunked") {
            loop {
                let line = self.line()?;
                let size = u64::from_str_radix(&line, 16).map_err(|_| malformed(&line))?;
                self.take(size, &mut response.body)?;
                let end = self.line()?;
                if !end.is_empty() {
                    return Err(malformed(&end));
                }
                if size == 0 {
                    return Ok(());
                }
            }
        }
        match length {
            Some(length) => self.take(length.map_err(io::Error::other)?, &mut response.body),
            None => self.reader.read_to_end(&mut response.body).map(|_| ()),
        }
    }

    fn take(&mut self, len: u64, into: &mut Vec<u8>) -> io::Result<()> {
        let got = (&mut self.reader).take(len).read_to_end(into)? as u64;
        if got < len { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.reader.read_line(&mut line)?;
        let line = line.strip_suffix("\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(line.to_owned())
    }
}

fn malformed(line: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("malformed: {line:?}"))
}

/// A GET on a connection of its own.
pub(in crate::front::wire) fn get(address: SocketAddr, target: &str) -> Response {
    Client::connect(address).exchange("GET", target, "Connection: close\r\n")
}
