//! An upstream for tests: files and answers by path, bodies that the test holds, cuts or lets
//! go, and a record of everything that was asked.
//!
//! A [`Scripted`] is a handle: clones share their script, so a test keeps one and gives
//! another to what it tests. It answers conditional and ranged requests as a correct server
//! would. Nothing here sleeps; whoever waits, waits for an event and fails after
//! [`PATIENCE`]. It does not pretend to be HTTP: `http` is tested over sockets.
//!
//! ```text
//! let gate = Gate::at(1000);
//! let upstream = Scripted::new()
//!     .file("a.deb", File::of(bytes).etag("\"v1\"").held_by(&gate))
//!     .on("b.deb", |_, nth| if nth == 1 { Err(status(503)) } else { found(File::of("b")) });
//! // … start a fetch with Arc::new(upstream.clone()) …
//! gate.wait_until_held();      // 1,000 bytes were given, the reader wants more
//! gate.open();
//! assert_eq!(upstream.count("a.deb"), 1);
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io::{self, Read};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use super::{
    Part, Upstream, UpstreamBody, UpstreamError, UpstreamHead, UpstreamReply, UpstreamRequest,
};
use crate::artifact::Validators;

/// How long anything here waits for the other side before the test fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The host that errors of a script name.
pub const HOST: &str = "scripted.example.org";

type Handler =
    Arc<dyn Fn(&UpstreamRequest<'_>, usize) -> Result<UpstreamReply, UpstreamError> + Send + Sync>;

/// An upstream that follows a script.
#[derive(Clone, Default)]
pub struct Scripted {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// Guards the script and the record; nothing else is locked while it is held.
    state: Mutex<State>,
    asked: Condvar,
}

#[derive(Default)]
struct State {
    answers: BTreeMap<String, Answer>,
    requests: Vec<Asked>,
    down: bool,
}

#[derive(Clone)]
enum Answer {
    File(File),
    Handler(Handler),
}

/// A request as it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// The canonical path.
    pub path: String,
    /// The validators of a conditional request.
    pub unless: Option<Validators>,
    /// The part that was wanted.
    pub part: Option<AskedPart>,
}

/// A [`Part`] that owns its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AskedPart {
    /// The first byte.
    pub from: u64,
    /// The byte behind the last one.
    pub to: Option<u64>,
    /// The version it must be of.
    pub of: Option<String>,
}

impl Scripted {
    /// An upstream that has no file.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a file at a path, or replaces what is there; works while others ask, too.
    pub fn file(self, path: &str, file: impl Into<File>) -> Self {
        self.put(path, file);
        self
    }

    /// Lets a function answer for a path. It is given the request and how many requests for
    /// the path there were, this one included. [`found`], [`status`], [`refused`] and
    /// [`timed_out`] make its answers.
    pub fn on(
        self,
        path: &str,
        answer: impl Fn(&UpstreamRequest<'_>, usize) -> Result<UpstreamReply, UpstreamError>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        self.set(path, Answer::Handler(Arc::new(answer)));
        self
    }

    /// As [`Scripted::file`], on a handle that is in use.
    pub fn put(&self, path: &str, file: impl Into<File>) {
        self.set(path, Answer::File(file.into()));
    }

    /// Takes a path away: it is absent from now on.
    pub fn remove(&self, path: &str) {
        self.state().answers.remove(path);
    }

    /// From now on every request is refused a connection.
    pub fn go_down(&self) {
        self.state().down = true;
    }

    /// Ends [`Scripted::go_down`].
    pub fn come_back(&self) {
        self.state().down = false;
    }

    /// Everything that was asked, in order.
    pub fn requests(&self) -> Vec<Asked> {
        self.state().requests.clone()
    }

    /// How often a path was asked for.
    pub fn count(&self, path: &str) -> usize {
        self.state().count(path)
    }

    /// Waits until a path was asked for `times` times.
    ///
    /// # Panics
    /// If that takes longer than [`PATIENCE`].
    pub fn wait_for(&self, path: &str, times: usize) {
        let (state, late) = self
            .shared
            .asked
            .wait_timeout_while(self.state(), PATIENCE, |state| state.count(path) < times)
            .expect("no holder of the script panics");
        assert!(!late.timed_out(), "{path} was asked for {} times, not {times}", state.count(path));
    }

    fn set(&self, path: &str, answer: Answer) {
        self.state().answers.insert(path.to_owned(), answer);
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.shared.state.lock().expect("no holder of the script panics")
    }
}

impl State {
    fn count(&self, path: &str) -> usize {
        self.requests.iter().filter(|asked| asked.path == path).count()
    }
}

impl Upstream for Scripted {
    fn get(&self, request: &UpstreamRequest<'_>) -> Result<UpstreamReply, UpstreamError> {
        let path = request.path.as_str();
        let (answer, nth) = {
            let mut state = self.state();
            state.requests.push(Asked {
                path: path.to_owned(),
                unless: request.unless.cloned(),
                part: request.part.map(|part| AskedPart {
                    from: part.from,
                    to: part.to,
                    of: part.of.map(str::to_owned),
                }),
            });
            self.shared.asked.notify_all();
            if state.down {
                return Err(refused());
            }
            (state.answers.get(path).cloned(), state.count(path))
        };
        match answer {
            None => Ok(UpstreamReply::Absent),
            Some(Answer::File(file)) => file.answer(request),
            Some(Answer::Handler(handler)) => handler(request, nth),
        }
    }
}

impl fmt::Debug for Scripted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scripted")
    }
}

/// A file of a [`Scripted`] upstream and the manner in which it is sent.
#[derive(Debug, Clone, Default)]
pub struct File {
    bytes: Arc<Vec<u8>>,
    head: UpstreamHead,
    announced: Announced,
    framing: Framing,
    read_max: Option<usize>,
    gate: Option<Gate>,
    head_gate: Option<Gate>,
    /// Shared by clones: each cut is used once.
    cuts: Arc<Mutex<VecDeque<(u64, io::ErrorKind)>>>,
}

#[derive(Debug, Clone, Copy, Default)]
enum Announced {
    #[default]
    Truth,
    Nothing,
    Lie(u64),
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
enum Framing {
    #[default]
    Framed,
    UntilClosed,
}

impl File {
    /// A file of these bytes, with a length and without validators.
    pub fn of(bytes: impl Into<Vec<u8>>) -> Self {
        Self { bytes: Arc::new(bytes.into()), ..Self::default() }
    }

    /// Its `ETag`, with the quotes.
    pub fn etag(mut self, etag: &str) -> Self {
        self.head.validators.etag = Some(etag.to_owned());
        self
    }

    /// Its `Last-Modified`.
    pub fn last_modified(mut self, date: &str) -> Self {
        self.head.validators.last_modified = Some(date.to_owned());
        self
    }

    /// Its `Content-Type`.
    pub fn content_type(mut self, content_type: &str) -> Self {
        self.head.content_type = Some(content_type.to_owned());
        self
    }

    /// Sent without a length, as chunks: the end can be trusted.
    pub fn chunked(mut self) -> Self {
        self.announced = Announced::Nothing;
        self
    }

    /// Sent without any framing: the end can't be trusted.
    pub fn until_closed(mut self) -> Self {
        (self.announced, self.framing) = (Announced::Nothing, Framing::UntilClosed);
        self
    }

    /// Announced with a wrong length. If it is larger than the file, the body is cut at the
    /// file's end; if it is smaller, the body ends there, as HTTP's would.
    pub fn announced_as(mut self, len: u64) -> Self {
        self.announced = Announced::Lie(len);
        self
    }

    /// Every read gives at most this many bytes.
    pub fn in_pieces_of(mut self, bytes_max: usize) -> Self {
        self.read_max = Some(bytes_max);
        self
    }

    /// The body goes no further than the gate allows.
    pub fn held_by(mut self, gate: &Gate) -> Self {
        self.gate = Some(gate.clone());
        self
    }

    /// `get` itself does not return before the gate is opened (whatever byte it is at).
    pub fn head_held_by(mut self, gate: &Gate) -> Self {
        self.head_gate = Some(gate.clone());
        self
    }

    /// The next body breaks with this error when it has come to byte `at` of the file. Used
    /// once; called again, it breaks the body after that one, and so on.
    ///
    /// `UnexpectedEof` and `ConnectionReset` are a cut, `TimedOut` is a stall.
    pub fn broken_at(self, at: u64, kind: io::ErrorKind) -> Self {
        self.cuts.lock().expect("no holder of the cuts panics").push_back((at, kind));
        self
    }

    /// What a correct server would answer.
    ///
    /// # Errors
    /// 416 for a part that begins behind the end, and what the head's gate was failed with.
    pub fn answer(&self, request: &UpstreamRequest<'_>) -> Result<UpstreamReply, UpstreamError> {
        if let Some(gate) = &self.head_gate {
            gate.pass(u64::MAX - 1, 0).map_err(|error| UpstreamError::Protocol {
                host: HOST.to_owned(),
                reason: error.to_string(),
            })?;
        }
        if request.unless.is_some_and(|validators| self.is_still(validators)) {
            return Ok(UpstreamReply::NotModified(self.head.clone()));
        }
        let full_len = match self.announced {
            Announced::Lie(len) => len,
            _ => self.bytes.len() as u64,
        };
        let part = request.part.filter(|part| self.is_version(part));
        if part.is_some_and(|part| part.from >= full_len) {
            return Err(status(416));
        }
        let from = part.map_or(0, |part| part.from);
        let end = part.and_then(|part| part.to).map_or(full_len, |to| to.min(full_len));
        let mut head = self.head.clone();
        head.part_from = part.map(|part| part.from);
        head.full_len = part.map(|_| full_len);
        head.len = match self.announced {
            Announced::Nothing => None,
            _ => Some(end - from),
        };
        let cut = self.cuts.lock().expect("no holder of the cuts panics").pop_front();
        let body = ScriptedBody { file: self.clone(), at: from, end, cut };
        Ok(UpstreamReply::Found(head, Box::new(body)))
    }

    fn is_still(&self, asked: &Validators) -> bool {
        let opaque = |etag: &str| etag.trim_start_matches("W/").to_owned();
        match (&asked.etag, &self.head.validators.etag) {
            (Some(theirs), Some(ours)) => opaque(theirs) == opaque(ours),
            (Some(_), None) => false,
            (None, _) => {
                asked.last_modified.is_some()
                    && asked.last_modified == self.head.validators.last_modified
            }
        }
    }

    fn is_version(&self, part: &Part<'_>) -> bool {
        let ours = &self.head.validators;
        part.of.is_none_or(|of| {
            Some(of) == ours.strong_etag() || Some(of) == ours.last_modified.as_deref()
        })
    }
}

impl<T: Into<Vec<u8>>> From<T> for File {
    fn from(bytes: T) -> Self {
        Self::of(bytes)
    }
}

struct ScriptedBody {
    file: File,
    /// Offsets in the file, not in the part.
    at: u64,
    end: u64,
    cut: Option<(u64, io::ErrorKind)>,
}

impl Read for ScriptedBody {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let real_end = self.file.bytes.len() as u64;
        if let Some((at, kind)) = self.cut.filter(|(at, _)| self.at >= *at) {
            return Err(io::Error::new(kind, format!("the script breaks the body at byte {at}")));
        }
        if self.at == self.end || buf.is_empty() {
            return Ok(0);
        }
        if self.at >= real_end {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the script's file is over"));
        }
        let mut end = self.end.min(real_end);
        end = end.min(self.cut.map_or(end, |(at, _)| at));
        if let Some(gate) = &self.file.gate {
            end = end.min(gate.pass(self.at, self.at)?);
        }
        let len = usize::try_from(end - self.at).unwrap_or(usize::MAX).min(buf.len());
        let len = len.min(self.file.read_max.unwrap_or(len));
        let start = usize::try_from(self.at).expect("the file is in memory");
        buf[..len].copy_from_slice(&self.file.bytes[start..start + len]);
        self.at += len as u64;
        Ok(len)
    }
}

impl UpstreamBody for ScriptedBody {
    fn is_framed(&self) -> bool {
        self.file.framing == Framing::Framed
    }
}

/// Holds bodies at a byte of their file until the test lets them go on.
#[derive(Debug, Clone, Default)]
pub struct Gate {
    shared: Arc<(Mutex<GateState>, Condvar)>,
}

#[derive(Debug, Default)]
struct GateState {
    allowed: u64,
    held: usize,
    broken: Option<io::ErrorKind>,
}

impl Gate {
    /// A gate that lets the first `bytes` bytes of a file through.
    pub fn at(bytes: u64) -> Self {
        let gate = Self::default();
        gate.allow(bytes);
        gate
    }

    /// Lets bodies go on to byte `bytes`.
    pub fn allow(&self, bytes: u64) {
        self.change(|state| state.allowed = bytes);
    }

    /// Lets everything through from now on.
    pub fn open(&self) {
        self.allow(u64::MAX);
    }

    /// Breaks whatever is held and whatever comes, with this error.
    pub fn break_with(&self, kind: io::ErrorKind) {
        self.change(|state| state.broken = Some(kind));
    }

    /// Waits until a reader has everything that the gate allows and wants more.
    ///
    /// # Panics
    /// If that takes longer than [`PATIENCE`].
    pub fn wait_until_held(&self) {
        let (lock, changed) = &*self.shared;
        let state = lock.lock().expect("no holder of the gate panics");
        let (_state, late) = changed
            .wait_timeout_while(state, PATIENCE, |state| state.held == 0)
            .expect("no holder of the gate panics");
        assert!(!late.timed_out(), "nobody came to the gate");
    }

    fn change(&self, how: impl FnOnce(&mut GateState)) {
        let (lock, changed) = &*self.shared;
        how(&mut lock.lock().expect("no holder of the gate panics"));
        changed.notify_all();
    }

    /// Waits until more than `above` bytes are allowed; returns how many are, at least `at`.
    fn pass(&self, above: u64, at: u64) -> io::Result<u64> {
        let (lock, changed) = &*self.shared;
        let mut state = lock.lock().expect("no holder of the gate panics");
        state.held += 1;
        changed.notify_all();
        let (mut state, late) = changed
            .wait_timeout_while(state, PATIENCE, |s| s.allowed <= above && s.broken.is_none())
            .expect("no holder of the gate panics");
        state.held -= 1;
        match state.broken {
            Some(kind) => Err(io::Error::new(kind, "the test broke the gate")),
            None if late.timed_out() => {
                Err(io::Error::new(io::ErrorKind::TimedOut, "nobody opened the gate"))
            }
            None => Ok(state.allowed.max(at)),
        }
    }
}

/// The whole of a file, whatever was asked: for [`Scripted::on`].
///
/// # Errors
/// None; the type is that of an answer.
pub fn found(file: impl Into<File>) -> Result<UpstreamReply, UpstreamError> {
    let path = crate::artifact::ArtifactPath::from_canonical("any").expect("a plain name");
    file.into().answer(&UpstreamRequest { path: &path, unless: None, part: None })
}

/// A status error.
pub fn status(status: u16) -> UpstreamError {
    UpstreamError::Status { host: HOST.to_owned(), status, retry_after: None, said: None }
}

/// A refused connection.
pub fn refused() -> UpstreamError {
    UpstreamError::Connect { host: HOST.to_owned(), reason: "connection refused".to_owned() }
}

/// A silence of a minute.
pub fn timed_out() -> UpstreamError {
    UpstreamError::Timeout {
        host: HOST.to_owned(),
        during: "waiting for the head",
        after: Duration::from_secs(60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::ArtifactPath;

    fn ask(
        upstream: &Scripted,
        path: &str,
        unless: Option<&Validators>,
        part: Option<Part<'_>>,
    ) -> Result<UpstreamReply, UpstreamError> {
        let path = ArtifactPath::from_canonical(path).unwrap();
        upstream.get(&UpstreamRequest { path: &path, unless, part })
    }

    fn body(reply: UpstreamReply) -> (UpstreamHead, Box<dyn UpstreamBody>) {
        match reply {
            UpstreamReply::Found(head, body) => (head, body),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn it_answers_as_a_correct_server_would_and_remembers_what_was_asked() {
        let upstream = Scripted::new().file("a", File::of("0123456789").etag("\"1\""));
        let stale = Validators { etag: Some("\"0\"".into()), last_modified: None };
        let same = Validators { etag: Some("\"1\"".into()), last_modified: None };
        let part = |of, to| Some(Part { from: 4, to, of });

        let (head, mut all) = body(ask(&upstream, "a", Some(&stale), None).unwrap());
        assert_eq!((head.len, head.part_from), (Some(10), None));
        assert_eq!(io::read_to_string(&mut all).unwrap(), "0123456789");

        let same = ask(&upstream, "a", Some(&same), None).unwrap();
        assert!(matches!(same, UpstreamReply::NotModified(_)), "{same:?}");

        let (head, mut rest) =
            body(ask(&upstream, "a", None, part(Some("\"1\""), Some(8))).unwrap());
        assert_eq!((head.len, head.part_from, head.full_len), (Some(4), Some(4), Some(10)));
        assert_eq!(io::read_to_string(&mut rest).unwrap(), "4567");

        let (head, _) = body(ask(&upstream, "a", None, part(Some("\"0\""), None)).unwrap());
        assert_eq!((head.len, head.part_from), (Some(10), None));

        assert!(matches!(ask(&upstream, "b", None, None), Ok(UpstreamReply::Absent)));
        assert_eq!((upstream.count("a"), upstream.count("b")), (4, 1));
        let of = Some("\"1\"".to_owned());
        assert_eq!(upstream.requests()[2].part, Some(AskedPart { from: 4, to: Some(8), of }));
    }

    #[test]
    fn a_body_stops_at_its_gate_and_breaks_where_the_script_says() {
        let gate = Gate::at(3);
        let file =
            File::of("0123456789").held_by(&gate).broken_at(5, io::ErrorKind::ConnectionReset);
        let upstream = Scripted::new().file("a", file);
        let (_, mut first) = body(ask(&upstream, "a", None, None).unwrap());
        let mut buf = [0; 10];
        assert_eq!(first.read(&mut buf).unwrap(), 3);
        std::thread::scope(|threads| {
            let reader = threads.spawn(|| first.read(&mut buf).unwrap());
            gate.wait_until_held();
            gate.open();
            assert_eq!(reader.join().unwrap(), 2);
        });
        assert_eq!(first.read(&mut buf).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        let (_, mut second) = body(ask(&upstream, "a", None, None).unwrap());
        assert_eq!(io::read_to_string(&mut second).unwrap(), "0123456789");
    }

    #[test]
    fn a_lie_about_the_length_is_a_cut_at_the_files_end() {
        let upstream = Scripted::new().file("a", File::of("0123").announced_as(6));
        let (head, mut cut) = body(ask(&upstream, "a", None, None).unwrap());
        assert_eq!(head.len, Some(6));
        let error = io::read_to_string(&mut cut).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn an_upstream_that_is_down_comes_back() {
        let upstream = Scripted::new().on("a", |_, nth| match nth {
            1 | 2 => Err(status(503)),
            _ => found("x"),
        });
        assert!(ask(&upstream, "a", None, None).is_err_and(|e| e.is_failure()));
        upstream.go_down();
        assert!(matches!(ask(&upstream, "a", None, None), Err(UpstreamError::Connect { .. })));
        upstream.come_back();
        assert!(ask(&upstream, "a", None, None).is_ok());
        upstream.wait_for("a", 3);
    }
}
