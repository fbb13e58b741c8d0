//! What a connection must tell apart and ureq does not: a silent body from a slow one, a
//! reset from an end, a connection that had died in the pool from one that broke.
//!
//! A [`Watched`] transport sits outermost, so it sees one request after the other on a
//! connection of the pool. This is ureq's `unversioned` API, the reason for which its minor
//! version is pinned.

use std::fmt;
use std::io;
use std::time::Duration;

use ureq::Error;
use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, NextTimeout, Transport};

/// Wraps every connection that its chain made.
#[derive(Debug)]
pub(super) struct Watch {
    /// The longest silence inside a body.
    pub(super) idle: Duration,
}

impl<In: Transport> Connector<In> for Watch {
    type Out = Watched<In>;

    fn connect(
        &self,
        _details: &ConnectionDetails,
        chained: Option<In>,
    ) -> Result<Option<Self::Out>, Error> {
        Ok(chained.map(|inner| Watched { inner, idle: self.idle, use_: Use::Fresh }))
    }
}

/// A connection that is watched.
#[derive(Debug)]
pub(super) struct Watched<In> {
    inner: In,
    idle: Duration,
    use_: Use,
}

/// How far the use of a connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    /// Nothing was heard yet.
    Fresh,
    /// The present request was answered, or began to be.
    Answered,
    /// Another request was sent, and nothing was heard since.
    AskedAgain,
}

/// The other side had closed a connection of the pool before it heard the request.
#[derive(Debug)]
pub(super) struct StaleConnection;

/// The connection was reset, or closed without TLS's farewell, inside a body.
#[derive(Debug)]
pub(super) struct BrokenBody;

impl fmt::Display for StaleConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a kept connection had been closed")
    }
}

impl fmt::Display for BrokenBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the connection was reset")
    }
}

impl std::error::Error for StaleConnection {}
impl std::error::Error for BrokenBody {}

/// Whether an error of a connection means that the other side is gone.
pub(super) fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
    )
}

impl<In: Transport> Transport for Watched<In> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.inner.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        if self.use_ == Use::Answered {
            self.use_ = Use::AskedAgain;
        }
        match self.inner.transmit_output(amount, timeout) {
            Err(Error::Io(error)) if self.use_ == Use::AskedAgain && is_gone(&error) => {
                Err(Error::Other(Box::new(StaleConnection)))
            }
            sent => sent,
        }
    }

    fn await_input(&mut self, mut timeout: NextTimeout) -> Result<bool, Error> {
        // Connecting and the head have a bound each; only a body is waited for without one.
        let in_body = timeout.after.is_not_happening();
        if in_body {
            // Per read at the socket, not per read of ours: a TLS record that drips in is
            // slow, not silent.
            timeout.per_read = Some(self.idle.into());
        }
        match (self.inner.await_input(timeout), self.use_) {
            (Ok(true), _) => {
                self.use_ = Use::Answered;
                Ok(true)
            }
            (Ok(false), Use::AskedAgain) => Err(Error::Other(Box::new(StaleConnection))),
            (Err(Error::Io(error)), Use::AskedAgain) if is_gone(&error) => {
                Err(Error::Other(Box::new(StaleConnection)))
            }
            // ureq takes these for the end of a body that only the end delimits.
            (Err(Error::Io(error)), _) if in_body && is_gone(&error) => {
                Err(Error::Other(Box::new(BrokenBody)))
            }
            (other, _) => other,
        }
    }

    fn is_open(&mut self) -> bool {
        self.inner.is_open()
    }

    fn is_tls(&self) -> bool {
        self.inner.is_tls()
    }
}
