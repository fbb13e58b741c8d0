//! What errors of a connection to the S3 server mean.

use std::io;

use ureq::{Error, Timeout};

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
