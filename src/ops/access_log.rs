//! The access log: one line a request.

use std::net::IpAddr;
use std::time::Duration;

use super::Answered;

/// What a line says.
#[derive(Debug)]
pub struct Line<'a> {
    /// The method.
    pub method: &'a str,
    /// The target as sent, printable ASCII.
    pub target: &'a str,
    /// The remote, where there is one of that name.
    pub remote: Option<&'a str>,
    /// The status code.
    pub status: u16,
    /// How it was met.
    pub answered: Answered,
    /// Bytes of the body that were sent.
    pub bytes: u64,
    /// From the request to the last byte.
    pub took: Duration,
    /// From the request to the beginning of the reply: upstream's part, where it took part.
    pub waited: Duration,
    /// The client.
    pub client: Option<IpAddr>,
    /// Whether the whole reply was sent.
    pub whole: Wholeness,
}

/// Whether a whole reply was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wholeness {
    /// It was.
    Whole,
    /// The client went away or was too slow.
    ClientLeft,
    /// The body broke off, and the client saw it.
    BrokeOff,
}

/// Writes a line.
pub fn write(line: &Line<'_>) {
    let whole = match line.whole {
        Wholeness::Whole => None,
        Wholeness::ClientLeft => Some("client left"),
        Wholeness::BrokeOff => Some("body broke off"),
    };
    tracing::info!(
        target: "access",
        method = line.method,
        path = line.target,
        remote = line.remote,
        status = line.status,
        outcome = line.answered.as_str(),
        bytes = line.bytes,
        ms = millis(line.took),
        upstream_ms = millis(line.waited),
        client = line.client.map(tracing::field::display),
        ended = whole,
        "request"
    );
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
