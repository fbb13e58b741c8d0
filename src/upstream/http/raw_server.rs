//! A server for tests that puts exact bytes on the wire and breaks off where it is told.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How long a connection waits for its client before it is given up.
const PATIENCE: Duration = Duration::from_secs(20);

/// A server on a free port of loopback, ended when it is dropped.
pub(super) struct RawServer {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    accepted: AtomicUsize,
    heads: Mutex<Vec<String>>,
    over: AtomicBool,
}

/// One accepted connection.
pub(super) struct Connection {
    stream: TcpStream,
    shared: Arc<Shared>,
}

impl RawServer {
    /// Serves every connection in a thread of its own with `serve`, which is given the
    /// connection and its number, from 0 on.
    pub(super) fn start(serve: impl Fn(&mut Connection, usize) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let (serve, ours) = (Arc::new(serve), Arc::clone(&shared));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                if ours.over.load(Ordering::SeqCst) {
                    return;
                }
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                stream.set_nodelay(true).unwrap();
                let number = ours.accepted.fetch_add(1, Ordering::SeqCst);
                let mut connection = Connection { stream, shared: Arc::clone(&ours) };
                let serve = Arc::clone(&serve);
                std::thread::spawn(move || serve(&mut connection, number));
            }
        });
        Self { address, shared }
    }

    /// Answers every request, on connections that stay open, with the same bytes.
    pub(super) fn always(answer: impl Into<Vec<u8>>) -> Self {
        let answer = answer.into();
        Self::start(move |connection, _| {
            while connection.read_head().is_some() {
                connection.write(&answer);
            }
        })
    }

    /// Answers each connection's first request with these bytes and closes.
    pub(super) fn once(answer: impl Into<Vec<u8>>) -> Self {
        let answer = answer.into();
        Self::start(move |connection, _| {
            connection.read_head();
            connection.write(&answer);
        })
    }

    /// `127.0.0.1:port`.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// A URL on it.
    pub(super) fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.address)
    }

    /// How many connections were accepted.
    pub(super) fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// The heads of all requests so far.
    pub(super) fn heads(&self) -> Vec<String> {
        self.shared.heads.lock().unwrap().clone()
    }
}

impl Drop for RawServer {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        // Wakes the accepting thread; if that is gone, so much the better.
        let _ = TcpStream::connect(self.address);
    }
}

impl Connection {
    /// Reads one request's head and records it; `None` once the client has closed.
    pub(super) fn read_head(&mut self) -> Option<String> {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            match self.stream.read(&mut byte) {
                Ok(1) => head.push(byte[0]),
                _ => return None,
            }
        }
        let head = String::from_utf8(head).unwrap();
        self.shared.heads.lock().unwrap().push(head.clone());
        Some(head)
    }

    /// Writes bytes; a client that is gone is no failure of the server.
    pub(super) fn write(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.stream.write_all(bytes.as_ref());
    }

    /// Says nothing until the client closes.
    pub(super) fn stall(&mut self) {
        let _ = self.stream.read(&mut [0; 64]);
    }

    /// Closes with a reset instead of an end.
    pub(super) fn reset(&mut self) {
        let socket = socket2::SockRef::from(&self.stream);
        socket.set_linger(Some(Duration::ZERO)).unwrap();
    }

    /// The socket, to speak something else over it.
    pub(super) fn stream(&self) -> &TcpStream {
        &self.stream
    }
}
