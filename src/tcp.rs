//! TCP connections of ureq's agents, with buffers that grow.
//!
//! ureq's own connections read into a buffer of one size. Here a connection that fills its
//! buffer, as a large body from a near server does, reads more at a time: fewer system calls
//! and acknowledgements for each byte, and still little memory for all other connections.
//! Built on ureq's `unversioned` interface, the reason for which Cargo.toml pins its minor
//! version.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use ureq::Error;
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, Either, NextTimeout, ShutdownHandle, Transport,
};

/// The largest buffer that a connection reads into, in bytes.
const INPUT_BYTES_MAX: usize = 256 << 10;
/// What of the input buffer is lent for a request's body on its way, at least.
const LENT_BYTES_MIN: usize = 16 << 10;

/// Opens TCP connections, where nothing before it in the chain has opened one.
#[derive(Debug, Default)]
pub struct TcpConnector {
    is_quick: bool,
}

impl TcpConnector {
    /// One whose connections acknowledge at once what they receive.
    ///
    /// Several S3 servers send head and body apart without TCP_NODELAY; the kernel's delayed
    /// acknowledgement then holds each small answer back for 40 ms.
    pub fn quick() -> Self {
        Self { is_quick: true }
    }
}

impl<In: Transport> Connector<In> for TcpConnector {
    type Out = Either<In, TcpTransport>;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        chained: Option<In>,
    ) -> Result<Option<Self::Out>, Error> {
        if let Some(connected) = chained {
            return Ok(Some(Either::A(connected)));
        }
        let config = details.config;
        let stream = Arc::new(connect_any(&details.addrs, details.timeout)?);
        stream.set_nodelay(true)?;
        let handle: Arc<dyn ShutdownHandle> = Arc::clone(&stream) as _;
        (details.register_shutdown)(Arc::downgrade(&handle) as Weak<dyn ShutdownHandle>)?;
        Ok(Some(Either::B(TcpTransport {
            stream,
            is_quick: self.is_quick,
            buffers: Growing::new(config.input_buffer_size(), config.output_buffer_size()),
            read_timeout: None,
            write_timeout: None,
        })))
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

/// A connection of [`TcpConnector`].
#[derive(Debug)]
pub struct TcpTransport {
    stream: Arc<TcpStream>,
    is_quick: bool,
    buffers: Growing,
    // What the socket is set to, so that it is set only when that changes.
    read_timeout: Option<Duration>,
    write_timeout: Option<Duration>,
}

impl Transport for TcpTransport {
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
        self.buffers.shrink();
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
        if self.is_quick {
            // The kernel forgets this after a while, so it is said before each read.
            rustix::net::sockopt::set_tcp_quickack(&*self.stream, true).map_err(io::Error::from)?;
        }
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

/// Buffers of a connection; the input's grows while reads fill it.
#[derive(Debug)]
struct Growing {
    input: Vec<u8>,
    // What of it was received and not consumed yet.
    begin: usize,
    end: usize,
    input_bytes: usize,
    output: Vec<u8>,
    output_bytes: usize,
    // Whether the last use of the input consumed anything: if not, more must come first.
    is_consuming: bool,
}

impl Growing {
    /// Buffers of these sizes, which are allocated as they are needed.
    fn new(input_bytes: usize, output_bytes: usize) -> Self {
        Self {
            input: Vec::new(),
            begin: 0,
            end: 0,
            input_bytes,
            output: Vec::new(),
            output_bytes,
            is_consuming: false,
        }
    }

    fn allocate(&mut self) {
        if self.output.is_empty() {
            self.output = vec![0; self.output_bytes];
        }
        if self.input.len() < self.input_bytes {
            self.input.resize(self.input_bytes, 0);
        }
    }

    /// Makes room behind what is left of the input; twice as much as before, if the last read
    /// filled all of it.
    fn make_room(&mut self) {
        self.allocate();
        let (is_empty, was_filled) = (self.begin == self.end, self.end == self.input.len());
        if is_empty {
            if was_filled && self.begin > 0 && self.input.len() < INPUT_BYTES_MAX {
                self.input = vec![0; (2 * self.input.len()).min(INPUT_BYTES_MAX)];
            }
            (self.begin, self.end) = (0, 0);
        } else if self.begin > 0 && self.end > self.input.len() / 2 {
            self.input.copy_within(self.begin..self.end, 0);
            (self.begin, self.end) = (0, self.end - self.begin);
        }
    }

    /// Gives up what it has grown by; between two requests, when the input is empty.
    fn shrink(&mut self) {
        if self.begin == self.end && self.input.len() > self.input_bytes {
            self.input = Vec::new();
            (self.begin, self.end) = (0, 0);
        }
    }
}

impl Buffers for Growing {
    fn output(&mut self) -> &mut [u8] {
        self.allocate();
        &mut self.output
    }

    fn input(&self) -> &[u8] {
        &self.input[self.begin..self.end]
    }

    fn input_append_buf(&mut self) -> &mut [u8] {
        self.make_room();
        &mut self.input[self.end..]
    }

    fn tmp_and_output(&mut self) -> (&mut [u8], &mut [u8]) {
        self.make_room();
        let least = self.end + LENT_BYTES_MIN;
        if self.input.len() < least {
            self.input.resize(least, 0);
        }
        (&mut self.input[self.end..], &mut self.output)
    }

    fn input_appended(&mut self, amount: usize) {
        self.end += amount;
    }

    fn input_consume(&mut self, amount: usize) {
        self.is_consuming = amount > 0;
        self.begin += amount;
    }

    fn can_use_input(&self) -> bool {
        self.is_consuming && self.begin < self.end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Receives so many bytes, at most what there is room for; how much room there was.
    fn receive(buffers: &mut Growing, bytes: usize) -> usize {
        let room = buffers.input_append_buf();
        let (len, got) = (room.len(), room.len().min(bytes));
        room[..got].fill(7);
        buffers.input_appended(got);
        len
    }

    #[test]
    fn the_input_grows_while_reads_fill_it_and_only_then() {
        let mut buffers = Growing::new(64 << 10, 1024);
        let mut rooms = Vec::new();
        for bytes in [1000, 64 << 10, 128 << 10, 100_000, 1 << 20, 1 << 20, 1 << 20] {
            rooms.push(receive(&mut buffers, bytes) >> 10);
            let received = buffers.input().len();
            buffers.input_consume(received);
            assert!(!buffers.can_use_input());
        }
        assert_eq!(rooms, [64, 64, 128, 256, 256, 256, 256]);
        buffers.shrink();
        assert_eq!(receive(&mut buffers, 10) >> 10, 64);
    }

    #[test]
    fn what_is_left_of_the_input_stays_where_more_comes() {
        let mut buffers = Growing::new(1000, 1000);
        receive(&mut buffers, 900);
        buffers.input_consume(800);
        assert!(buffers.can_use_input());
        assert_eq!(receive(&mut buffers, 50), 900);
        assert_eq!(buffers.input(), [7; 150]);
        buffers.input_consume(0);
        assert!(!buffers.can_use_input(), "more must come first");
        buffers.shrink();
        assert_eq!(buffers.input(), [7; 150]);
    }

    #[test]
    fn a_body_on_its_way_is_lent_room_though_input_waits() {
        let mut buffers = Growing::new(1000, 1000);
        receive(&mut buffers, 900);
        let (lent, output) = buffers.tmp_and_output();
        assert!(lent.len() >= LENT_BYTES_MIN);
        assert_eq!(output.len(), 1000);
        assert_eq!(buffers.input(), [7; 900]);
    }
}
