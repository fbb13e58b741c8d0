//! The servers that artifacts come from.
//!
//! [`Upstream`] is the port: one question, one answer. `http` is the real one (ureq),
//! `scripted` the tests'. What is done about a failure (another try, a mirror, a pause) is a
//! wrapper that is an `Upstream` as well, written once: `patient`, with a `breaker` for each
//! base URL, around `page`, which takes a web page in a file's place for a failure. [`connect`]
//! puts them together for a remote. This room knows nothing of stores, clients or flights.

use std::fmt::Debug;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use crate::artifact::{ArtifactPath, Validators};
use crate::clock::Clock;
use crate::config::Origin;
use crate::formats::PackageFormat;
use crate::roots::CaFileError;

pub mod address;
pub mod breaker;
pub mod http;
pub mod own;
pub mod page;
pub mod patient;
pub mod proxy;
pub mod redirect;
#[cfg(test)]
pub mod scripted;
pub mod via;

use self::http::HttpUpstream;
use self::page::NoPages;
use self::patient::{Patient, Pause};
pub use self::proxy::ProxyEnv;

/// How much is done for one request before it fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Redirects that are followed in a row; 0 follows none.
    pub redirects_max: u32,
    /// Further tries after quick failures, over all base URLs together.
    pub retries_max: u32,
}

/// Makes the upstream of a remote of a format: its base URLs, in order, with retries and
/// breakers. Nothing is connected before the first request.
///
/// # Errors
/// [`SetupError`] where the configuration can't be put to work.
pub fn connect(
    origin: &Origin,
    format: &'static dyn PackageFormat,
    limits: &Limits,
    proxies: &ProxyEnv,
    clock: &Clock,
) -> Result<Arc<dyn Upstream>, SetupError> {
    let mut upstreams = Vec::with_capacity(origin.bases.len());
    for base in &origin.bases {
        let upstream = HttpUpstream::new(origin, base, limits.redirects_max, proxies, clock)?;
        let host = http::host_of(base);
        let upstream = NoPages::new(Arc::new(upstream), host.clone(), format);
        upstreams.push((host, Arc::new(upstream) as Arc<dyn Upstream>));
    }
    if upstreams.is_empty() {
        return Err(SetupError::NoBase);
    }
    Ok(Arc::new(Patient::new(upstreams, limits.retries_max, clock.clone(), Pause::real())))
}

/// Makes the upstream that lists a remote's releases, where it has one: asked as the remote's
/// own is, with the same credentials, since the operator named it or it belongs to the host
/// that they are for.
///
/// # Errors
/// [`SetupError`] where the configuration can't be put to work.
pub fn connect_releases(
    origin: &Origin,
    format: &'static dyn PackageFormat,
    limits: &Limits,
    proxies: &ProxyEnv,
    clock: &Clock,
) -> Result<Option<Arc<dyn Upstream>>, SetupError> {
    let Some(api) = origin.releases_api() else { return Ok(None) };
    connect(&Origin { bases: vec![api], ..origin.clone() }, format, limits, proxies, clock)
        .map(Some)
}

/// Why an upstream can't be set up as configured.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// There is no base URL.
    #[error("an upstream needs a base URL")]
    NoBase,
    /// `auth` can't be sent.
    #[error("auth can't be used: {0}")]
    Auth(String),
    /// `ca_file` can't be used.
    #[error(transparent)]
    CaFile(#[from] CaFileError),
    /// A proxy can't be used.
    #[error("the proxy of {name} {why}")]
    Proxy {
        /// The configuration key or environment variable.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
}

/// One upstream of one remote: its base URL, or that with everything that stands in for it.
pub trait Upstream: Debug + Send + Sync {
    /// Asks for a path.
    ///
    /// Returns when the answer's head is there. The body is read by the caller, at its speed;
    /// dropping it early is allowed and costs the connection.
    ///
    /// # Errors
    /// [`UpstreamError`]; nothing of a body was given then.
    fn get(&self, request: &UpstreamRequest<'_>) -> Result<UpstreamReply, UpstreamError>;

    /// How many of its base URLs keep failing, and are asked only now and then.
    fn failing(&self) -> usize {
        0
    }
}

/// What is asked of an upstream.
#[derive(Debug, Clone, Copy)]
pub struct UpstreamRequest<'a> {
    /// Which artifact.
    pub path: &'a ArtifactPath,
    /// Ask for a body only if it differs from what these name.
    pub unless: Option<&'a Validators>,
    /// Ask for a part only.
    pub part: Option<Part<'a>>,
}

/// A part of a file: bytes from `from` to `to`, and only of the named version.
#[derive(Debug, Clone, Copy)]
pub struct Part<'a> {
    /// The first byte.
    pub from: u64,
    /// The byte behind the last one; `None` is the end of the file.
    pub to: Option<u64>,
    /// The version that the part must be of, for `If-Range`: a strong ETag, or a
    /// Last-Modified; `None` where upstream gave neither.
    pub of: Option<&'a str>,
}

/// An upstream's answer.
pub enum UpstreamReply {
    /// The whole file, or the part that was asked for (see [`UpstreamHead::part_from`]).
    Found(UpstreamHead, Box<dyn UpstreamBody>),
    /// What the request's `unless` named is still right.
    NotModified(UpstreamHead),
    /// There is no such file (404 or 410).
    Absent,
    /// The path is a folder's: upstream leads to the same path with a `/` at its end.
    Folder,
}

impl Debug for UpstreamReply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Found(head, _) => f.debug_tuple("Found").field(head).finish_non_exhaustive(),
            Self::NotModified(head) => f.debug_tuple("NotModified").field(head).finish(),
            Self::Absent => f.write_str("Absent"),
            Self::Folder => f.write_str("Folder"),
        }
    }
}

/// What stands before an upstream's body.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UpstreamHead {
    /// The body's length as announced; of a part, the part's.
    pub len: Option<u64>,
    /// Where the body begins in the file: `Some` only if upstream answered with a part
    /// (206) that begins where it was asked to.
    pub part_from: Option<u64>,
    /// The whole file's length, where a part's `Content-Range` tells it.
    pub full_len: Option<u64>,
    /// `ETag` and `Last-Modified`.
    pub validators: Validators,
    /// `Content-Type`.
    pub content_type: Option<String>,
    /// `Content-Encoding`, where it is not `identity`. We ask for none; an upstream that
    /// encodes all the same has its bytes kept as they came, and whoever serves them must
    /// say so.
    pub content_encoding: Option<String>,
    /// `Link` (RFC 8288), which some listings continue with.
    pub link: Option<String>,
}

/// A body that says at its end how it ended.
///
/// `read` returns 0 only for an end that the framing vouches for (all announced bytes, the
/// last chunk) or, without any framing, the connection's end; a cut body is an error.
pub trait UpstreamBody: Read + Send {
    /// Whether the framing can tell a whole body from a cut one. `false` for a body that
    /// only the connection's end delimits: it may be served but never stored.
    fn is_framed(&self) -> bool;
}

/// How often a batch waits for the same file or listing until upstream is asked again that has
/// failed a few times, and for how long at most: a hiccup, not an outage.
const BATCH_WAITS_MAX: usize = 4;
const BATCH_WAIT_MAX: Duration = Duration::from_secs(10);

/// Why an upstream gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// No connection: refused, unreachable, no such host, TLS.
    #[error("cannot connect to {host}: {reason}")]
    Connect {
        /// Which host.
        host: String,
        /// What went wrong.
        reason: String,
    },
    /// Nothing came in time.
    #[error("{host} was silent for {after:?} while {during}")]
    Timeout {
        /// Which host.
        host: String,
        /// The step: "connecting", "waiting for the head", "sending the body of the file".
        during: &'static str,
        /// The bound that ran out.
        after: Duration,
    },
    /// A status that says neither "here it is" nor "there is none".
    #[error("{host} answered {status}")]
    Status {
        /// Which host.
        host: String,
        /// The status code.
        status: u16,
        /// Its `Retry-After`, if it sent one.
        retry_after: Option<Duration>,
        /// The beginning of its body, which may say why; a stranger's text.
        said: Option<String>,
    },
    /// The answer makes no sense, or the connection broke in its head.
    #[error("{host} answered nonsense: {reason}")]
    Protocol {
        /// Which host.
        host: String,
        /// What was wrong.
        reason: String,
    },
    /// It sent a web page under the name of a file that is none.
    #[error("{host} sent a web page in place of the file: a login, a portal, a notice?")]
    Page {
        /// Which host.
        host: String,
    },
    /// A redirect that must not be followed.
    #[error("the redirect from {host} is refused: {reason}")]
    Redirect {
        /// Who sent it.
        host: String,
        /// Why.
        reason: String,
    },
    /// It failed so often that it is left alone for a while; nothing was asked.
    #[error("{host} keeps failing and is left alone for another {:.1} s", retry_after.as_secs_f64())]
    Blocked {
        /// Which host.
        host: String,
        /// When asking again makes sense.
        retry_after: Duration,
    },
}

impl UpstreamError {
    /// Whether another try, a mirror or a stale copy may help: everything but an answer that
    /// was meant (a 4xx other than 408 and 429, a refused redirect, a loop).
    pub fn is_failure(&self) -> bool {
        match self {
            Self::Status { status, .. } => matches!(status, 408 | 429 | 500..) && *status != 508,
            Self::Redirect { .. } => false,
            _ => true,
        }
    }

    /// Whether it answered, and the answer may be about the one file: not that it is overloaded
    /// or was asked too often.
    pub fn is_answer(&self) -> bool {
        match self {
            Self::Status { status, .. } => *status >= 500,
            Self::Protocol { .. } => true,
            _ => false,
        }
    }

    /// Whether it was the clock that gave up.
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::Timeout { .. })
    }

    /// How long a batch, which has time, waits before it asks again; `waits` is how often it has
    /// done so. `None` where that is over, or no use.
    pub fn pause(&self, waits: usize) -> Option<Duration> {
        match self {
            Self::Blocked { retry_after, .. }
                if waits < BATCH_WAITS_MAX && *retry_after <= BATCH_WAIT_MAX =>
            {
                Some(*retry_after)
            }
            _ => None,
        }
    }

    /// When asking again makes sense, where upstream or we know it.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            Self::Blocked { retry_after, .. } => Some(*retry_after),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use url::Url;

    use super::*;
    use crate::config::Timeouts;
    use crate::formats::FORMATS;

    #[test]
    fn short_pauses_are_waited_out_and_not_for_ever() {
        let check = |seconds, waits, is_waited_out: bool| {
            let retry_after = Duration::from_secs(seconds);
            let blocked = UpstreamError::Blocked { host: "h".to_owned(), retry_after };
            assert_eq!(blocked.pause(waits), is_waited_out.then_some(retry_after), "{seconds} s");
        };
        check(1, 0, true);
        check(10, 3, true);
        check(1, 4, false);
        check(11, 0, false);
    }

    #[test]
    fn a_remote_without_a_base_url_is_an_error_and_one_with_mirrors_is_not() {
        let make = |bases: &[&str]| {
            let origin = Origin {
                bases: bases.iter().map(|base| Url::parse(base).unwrap()).collect(),
                auth: None,
                ca_file: None,
                proxy: None,
                timeouts: Timeouts::default(),
                offline: false,
                allow_private_redirects: false,
                api_url: None,
            };
            let limits = Limits { redirects_max: 0, retries_max: 0 };
            connect(&origin, FORMATS[0], &limits, &ProxyEnv::default(), &Clock::system())
        };
        assert!(matches!(make(&[]), Err(SetupError::NoBase)));
        let upstream = make(&["http://a.example.org/", "https://b.example.org/m/"]).unwrap();
        let shown = format!("{upstream:?}");
        assert!(shown.contains("a.example.org") && shown.contains("b.example.org"), "{shown}");
    }
}
