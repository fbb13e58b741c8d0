//! Connections to the S3 server, acknowledged at once. Built on ureq's unversioned interface, whose minor version Cargo.toml pins.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, ShutdownHandle, Transport,
};
use ureq::{Error, Timeout};

/// Opens TCP connections that acknowledge what they receive at once.
///
/// Several S3 servers send head and body apart without TCP_NODELAY; the kernel's delayed
/// acknowledgement then holds each small answer back for 40 ms.
#[derive(Debug)]
pub(super) struct QuickConnector {
    made: Arc<AtomicU64>,
}

impl QuickConnector {
    /// Counts the connections that it makes.
    pub(super) fn counting(made: Arc<AtomicU64>) -> Self {
        Self { made }
    }
}

impl Connector<()> for QuickConnector {
    type Out = QuickTransport;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        _chained: Option<()>,
    ) -> Result<Option<QuickTransport>, Error> {
        let config = details.config;
        let stream = Arc::new(connect_any(&details.addrs, details.timeout)?);
        self.made.fetch_add(1, Ordering::Relaxed);
        stream.set_nodelay(true)?;
        let handle: Arc<dyn ShutdownHandle> = Arc::clone(&stream) as _;
        (details.register_shutdown)(Arc::downgrade(&handle) as Weak<dyn ShutdownHandle>)?;
        Ok(Some(QuickTransport {
            stream,
            buffers: LazyBuffers::new(config.input_buffer_size(), config.output_buffer_size()),
            read_timeout: None,
            write_timeout: None,
        }))
    }
}

/// The first address that answers; all of them share the time.
fn connect_any(addresses: &[SocketAddr], timeout: NextTimeout) -> Result<TcpStream, Error> {
    let deadline = timeout.not_zero().map(|left| Instant::now() + *left);
    let mut last = Error::HostNotFound;
    for (at, address) in addresses.iter().enumerate() {
        let attempt = match deadline {
            None => TcpStream::connect(address),
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(Error::Timeout(timeout.reason));
                }
                let untried = u32::try_from(addresses.len() - at).unwrap_or(u32::MAX);
                TcpStream::connect_timeout(address, left / untried)
            }
        };
        match attempt {
            Ok(stream) => return Ok(stream),
            Err(error) if is_timeout(&error) => last = Error::Timeout(timeout.reason),
            Err(error) => last = Error::Io(error),
        }
    }
    Err(last)
}

/// A connection of [`QuickConnector`].
#[derive(Debug)]
pub(super) struct QuickTransport {
    stream: Arc<TcpStream>,
    buffers: LazyBuffers,
    // What the socket is set to, so that it is set only when that changes.
    read_timeout: Option<Duration>,
    write_timeout: Option<Duration>,
}

impl Transport for QuickTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let timeout = timeout.for_write();
        let wanted = limit(timeout)?;
        if wanted != self.write_timeout {
            self.stream.set_write_timeout(wanted)?;
            self.write_timeout = wanted;
        }
        let output = &self.buffers.output()[..amount];
        (&*self.stream).write_all(output).map_err(|error| ureq_error(error, timeout))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let timeout = timeout.for_read();
        let wanted = limit(timeout)?;
        if wanted != self.read_timeout {
            self.stream.set_read_timeout(wanted)?;
            self.read_timeout = wanted;
        }
        // The kernel forgets this after a while, so it is said before each read.
        rustix::net::sockopt::set_tcp_quickack(&*self.stream, true).map_err(io::Error::from)?;
        let input = self.buffers.input_append_buf();
        let received = loop {
            match (&*self.stream).read(input) {
                // A signal may make this wait begin again; signals are few.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                outcome => break outcome,
            }
        }
        .map_err(|error| ureq_error(error, timeout))?;
        self.buffers.input_appended(received);
        Ok(received > 0)
    }

    fn is_open(&mut self) -> bool {
        // Nothing may be there to read: neither an end nor bytes that nobody asked for.
        let waiting = self.stream.set_nonblocking(true).and_then(|()| {
            let seen = self.stream.peek(&mut [0]);
            self.stream.set_nonblocking(false)?;
            seen
        });
        waiting.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }
}

fn limit(timeout: NextTimeout) -> Result<Option<Duration>, Error> {
    if timeout.after.is_zero() {
        return Err(Error::Timeout(timeout.reason));
    }
    Ok(timeout.not_zero().map(|left| *left))
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

fn ureq_error(error: io::Error, timeout: NextTimeout) -> Error {
    if is_timeout(&error) { Error::Timeout(timeout.reason) } else { Error::Io(error) }
}

/// Whether trying again on another connection may do better: this one was closed, or none
/// could be made.
pub(super) fn is_broken_connection(error: &Error) -> bool {
    match error {
        Error::Io(error) => matches!(
            error.kind(),
            io::ErrorKind::ConnectionReset
                | io::ErrorKind::ConnectionAborted
                | io::ErrorKind::ConnectionRefused
                | io::ErrorKind::BrokenPipe
                | io::ErrorKind::UnexpectedEof
                | io::ErrorKind::NotConnected
        ),
        Error::ConnectionFailed | Error::HostNotFound => true,
        _ => false,
    }
}

/// Whether nobody answered in time.
pub(super) fn is_silence(error: &Error) -> bool {
    matches!(
        error,
        Error::Timeout(
            Timeout::Connect
                | Timeout::RecvResponse
                | Timeout::PerRead
                | Timeout::PerWrite
                | Timeout::Resolve
        )
    )
}
