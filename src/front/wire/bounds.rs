//! The bounds that every listener keeps. Each listener's own stand beside it.

use std::time::Duration;

/// Bounds of the front, all from the environment.
#[derive(Debug, Clone)]
pub struct Bounds {
    /// Threads that answer requests.
    pub workers: usize,
    /// Requests that may wait for a worker; one more is answered 503.
    pub queue_max: usize,
    /// Bytes of a request head; more is answered 431.
    pub head_bytes_max: usize,
    /// Bytes of a request target; more is answered 414.
    pub url_bytes_max: usize,
    /// Header fields; more is answered 431.
    pub header_count_max: usize,
    /// Bytes of a request body; more is answered 413.
    pub body_bytes_max: u64,
    /// How long a connection may stay idle between requests.
    pub idle_timeout: Duration,
    /// How long a client may leave our bytes untaken.
    pub write_timeout: Duration,
    /// How long the stop waits for requests in flight.
    pub shutdown_grace: Duration,
}
