//! Signed requests over one pool of connections, with bounded retries.
//!
//! Knows HTTP and S3's way of refusing; does not know blobs.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use http::header::{CONTENT_LENGTH, HeaderMap, HeaderValue};
use http::{Method, Request, Response};
use time::OffsetDateTime;
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{Connector, RustlsConnector};
use ureq::{Agent, Body, SendBody};

use super::answer::{self, Refusal};
use super::settings::S3Settings;
use super::sign::{SignError, Signer};
use super::transport::{is_broken_connection, is_silence};
use crate::breaker::{Breaker, Open};
use crate::chain::chain;
use crate::names::Remembering;
use crate::roots::{self, CaFileError};
use crate::tcp::TcpConnector;

/// How often a request is made before its failure counts.
const ATTEMPTS_MAX: u32 = 3;
/// How long to wait before the second attempt; before the third, four times that.
const BACKOFF: Duration = Duration::from_millis(100);
/// Idle connections that are kept.
const IDLE_CONNECTIONS_MAX: usize = 64;
/// How long a connection is kept idle, less than servers do.
const IDLE_AGE_MAX: Duration = Duration::from_secs(15);
/// What a connection reads and writes at a time.
const BUFFER_BYTES: usize = 128 << 10;
/// The largest answer in XML: a page of 1,000 keys of 1 KiB with room for what is around.
const XML_BYTES_MAX: u64 = 8 << 20;
/// What is read of an answer that nobody wants, so that its connection can be kept.
const DRAINED_BYTES_MAX: u64 = 64 << 10;
/// How fast a server is expected to put away what it was sent, before it answers.
const STORED_BYTES_PER_SECOND: u64 = 4 << 20;
/// How long a read waits that tries whether a server is back: behind it is a client, who would
/// rather have the bytes from upstream. What writes may try for longer, the health probe for
/// one, so that a server that is only slow is found again.
const TRYING_TIMEOUT: Duration = Duration::from_secs(1);
/// The longest that a server may take to answer a request that it was sent whole, in addition
/// to the time for a first byte.
const STORING_MAX: Duration = Duration::from_secs(120);

/// Why S3 did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum S3Error {
    /// It was not asked.
    #[error(transparent)]
    NotAsked(#[from] Open),
    /// The request did not get through, or its answer did not.
    #[error("no answer from S3")]
    Transport(#[from] ureq::Error),
    /// It refused.
    #[error("S3 answered {status}{}", said(code, message))]
    Refused {
        /// The status.
        status: u16,
        /// S3's code, `NoSuchKey` for instance; empty where it gave none.
        code: String,
        /// What it says to people.
        message: String,
    },
    /// Its answer is not what S3 answers.
    #[error("S3 gave an answer that cannot be understood: {0}")]
    Nonsense(String),
    /// The bytes to send can't be read.
    #[error("cannot read what is to be sent to S3")]
    Source(#[source] io::Error),
    /// The request can't be made.
    #[error(transparent)]
    Request(#[from] SignError),
    /// The bucket is not there and can't be made.
    #[error(
        "the bucket {bucket:?} is not there and could not be created: create it, and let the credentials read, write, list and delete its objects"
    )]
    NoBucket {
        /// The bucket.
        bucket: String,
        /// Why it could not.
        source: Box<S3Error>,
    },
    /// What was written is not what is read.
    #[error("S3 gave back other bytes than were written to it")]
    Forgetful,
    /// The file with root certificates can't be used.
    #[error(transparent)]
    CaFile(#[from] CaFileError),
}

/// What a refusal says beside its status: nothing, where the request was for a head only.
fn said(code: &str, message: &str) -> String {
    match (code, message) {
        ("", "") => String::new(),
        (code, "") => format!(" {code}"),
        (code, message) => format!(" {code}: {message}"),
    }
}

impl S3Error {
    /// Its status, where it answered at all.
    pub(super) fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }

    pub(super) fn is_code(&self, wanted: &str) -> bool {
        matches!(self, Self::Refused { code, .. } if code == wanted)
    }

    /// Whether it was not done, and will not be: after any other failure it may have been, or be
    /// done late.
    pub(super) fn is_refusal(&self) -> bool {
        match self {
            // An upload that is not known may be one that was completed.
            Self::Refused { status, code, .. } => *status < 500 && code != "NoSuchUpload",
            Self::NotAsked(_) | Self::Source(_) | Self::Request(_) => true,
            _ => false,
        }
    }

    /// Whether it is worth asking again soon.
    fn is_passing(&self) -> bool {
        match self {
            Self::Transport(error) => is_broken_connection(error),
            Self::Refused { status, .. } => matches!(status, 429 | 500 | 502 | 503 | 504),
            _ => false,
        }
    }

    /// Whether nobody is there who does what is asked, in contrast to somebody who refuses this.
    fn is_absence(&self) -> bool {
        match self {
            Self::Transport(error) => is_broken_connection(error) || is_silence(error),
            // Who is only asked to slow down has somebody there.
            Self::Refused { status, code, .. } => matches!(status, 502..=504) && code != "SlowDown",
            _ => false,
        }
    }
}

/// What a request sends.
#[derive(Debug, Clone, Copy)]
pub(super) enum Payload<'a> {
    Nothing,
    Bytes(&'a [u8]),
    Region { file: &'a File, offset: u64, len: u64 },
}

/// When a request may be made again, since the first may have been obeyed unheard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    /// Always: twice is as good as once.
    Safe,
    /// Where it was answered: twice costs something.
    IfAnswered,
    /// Where somebody says that there is too much to do: twice does harm.
    IfNotBegun,
}

/// A request.
#[derive(Debug)]
pub(super) struct Call<'a> {
    pub(super) method: Method,
    pub(super) key: Option<&'a str>,
    pub(super) query: &'a [(&'a str, &'a str)],
    pub(super) headers: HeaderMap,
    pub(super) payload: Payload<'a>,
    pub(super) repeat: Repeat,
}

impl<'a> Call<'a> {
    /// A request without a body that may be made again.
    pub(super) fn new(method: Method, key: Option<&'a str>) -> Self {
        Self {
            method,
            key,
            query: &[],
            headers: HeaderMap::new(),
            payload: Payload::Nothing,
            repeat: Repeat::Safe,
        }
    }
}

/// The one who asks.
#[derive(Debug)]
pub(super) struct S3Client {
    agent: Agent,
    signer: Signer,
    breaker: Breaker,
    first_byte_timeout: Duration,
}

impl S3Client {
    /// # Errors
    /// [`S3Error`] where the settings can't be used; it asks nobody.
    pub(super) fn new(settings: &S3Settings) -> Result<Self, S3Error> {
        let tls = roots::tls(settings.ca_file.as_deref())?;
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(None)
            .tls_config(tls)
            .user_agent(concat!("artifactapi/", env!("CARGO_PKG_VERSION")))
            .input_buffer_size(BUFFER_BYTES)
            .output_buffer_size(BUFFER_BYTES)
            .max_idle_connections(IDLE_CONNECTIONS_MAX)
            .max_idle_connections_per_host(IDLE_CONNECTIONS_MAX)
            .max_idle_age(IDLE_AGE_MAX)
            .timeout_resolve(Some(settings.connect_timeout))
            .timeout_connect(Some(settings.connect_timeout))
            .timeout_recv_response(Some(settings.first_byte_timeout))
            .timeout_per_read(Some(settings.idle_timeout))
            .timeout_per_write(Some(settings.idle_timeout))
            .build();
        let connector = ().chain(TcpConnector::quick()).chain(RustlsConnector::default());
        Ok(Self {
            agent: Agent::with_parts(
                config,
                connector,
                Remembering::new(DefaultResolver::default()),
            ),
            signer: Signer::new(settings)?,
            breaker: Breaker::new("S3"),
            first_byte_timeout: settings.first_byte_timeout,
        })
    }

    /// Makes a request until it is answered well, within the bounds of repeating.
    ///
    /// # Errors
    /// [`S3Error`], among them `Refused` for every status that is not one of success.
    pub(super) fn call(&self, call: &Call<'_>) -> Result<Response<Body>, S3Error> {
        self.breaker.admit(Instant::now())?;
        let outcome = self.call_repeatedly(call);
        match &outcome {
            // One connection that broke proves nothing.
            Err(error) if error.is_passing() && call.repeat != Repeat::Safe => {}
            // Without a body it does not say whether it is only to be asked less.
            Err(error) if call.method == Method::HEAD && error.status() == Some(503) => {}
            Err(error) if error.is_absence() => {
                self.breaker.failed(Instant::now(), &chain(error));
            }
            // That says nothing of the server.
            Err(S3Error::Source(_) | S3Error::Request(_)) => {}
            Ok(_) | Err(_) => self.breaker.succeeded(),
        }
        outcome
    }

    fn call_repeatedly(&self, call: &Call<'_>) -> Result<Response<Body>, S3Error> {
        let mut attempt = 1;
        loop {
            let error = match self.call_once(call) {
                Ok(response) => return Ok(response),
                Err(error) => error,
            };
            let repeatable = match call.repeat {
                Repeat::Safe => true,
                Repeat::IfAnswered => error.status().is_some(),
                Repeat::IfNotBegun => matches!(error.status(), Some(429 | 503)),
            };
            if attempt == ATTEMPTS_MAX || !error.is_passing() || !repeatable {
                return Err(error);
            }
            tracing::debug!(method = %call.method, key = call.key, attempt, %error, "asking S3 again");
            // A kept connection that was closed meanwhile is no reason to wait.
            if attempt > 1 || error.status().is_some() {
                std::thread::sleep(BACKOFF * 4_u32.pow(attempt - 1));
            }
            attempt += 1;
        }
    }

    fn call_once(&self, call: &Call<'_>) -> Result<Response<Body>, S3Error> {
        let url = self.signer.url(call.key, call.query)?;
        let mut headers = call.headers.clone();
        self.signer.sign(call.method.as_str(), &url, &mut headers, OffsetDateTime::now_utc())?;
        let response = match call.payload {
            Payload::Nothing if call.method == Method::PUT || call.method == Method::POST => {
                headers.insert(CONTENT_LENGTH, HeaderValue::from(0));
                self.run(call, url.as_str(), headers, SendBody::none())?
            }
            Payload::Nothing => self.run(call, url.as_str(), headers, SendBody::none())?,
            Payload::Bytes(mut bytes) => {
                headers.insert(CONTENT_LENGTH, HeaderValue::from(bytes.len()));
                self.run(call, url.as_str(), headers, SendBody::from_reader(&mut bytes))?
            }
            Payload::Region { file, offset, len } => {
                headers.insert(CONTENT_LENGTH, HeaderValue::from(len));
                let mut region = Region { file, offset, left: len, failed: None };
                let sent =
                    self.run(call, url.as_str(), headers, SendBody::from_reader(&mut region));
                match region.failed {
                    Some(error) => return Err(S3Error::Source(error)),
                    None => sent?,
                }
            }
        };
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status().as_u16();
        // The status counts, whether what comes with it can be read or not.
        let text = text_of(response, DRAINED_BYTES_MAX).unwrap_or_default();
        let Refusal { code, message } = answer::refusal(&text);
        Err(S3Error::Refused { status, code, message })
    }

    fn run(
        &self,
        call: &Call<'_>,
        url: &str,
        headers: HeaderMap,
        body: SendBody<'_>,
    ) -> Result<Response<Body>, S3Error> {
        let mut request = Request::new(body);
        *request.method_mut() = call.method.clone();
        *request.uri_mut() =
            url.parse().map_err(|error: http::uri::InvalidUri| ureq::Error::Http(error.into()))?;
        *request.headers_mut() = headers;
        let is_read = call.method == Method::GET || call.method == Method::HEAD;
        if is_read && self.breaker.is_open() {
            let patience = TRYING_TIMEOUT.min(self.first_byte_timeout);
            let request = self
                .agent
                .configure_request(request)
                .timeout_connect(Some(patience))
                .timeout_recv_response(Some(patience))
                .build();
            return Ok(self.agent.run(request)?);
        }
        let storing = match call.payload {
            Payload::Region { len, .. } => {
                Duration::from_secs(len / STORED_BYTES_PER_SECOND).min(STORING_MAX)
            }
            // Completing an upload may copy all of it.
            Payload::Bytes(_) if call.method == Method::POST => STORING_MAX,
            Payload::Bytes(_) | Payload::Nothing => return Ok(self.agent.run(request)?),
        };
        let patience = self.first_byte_timeout + storing;
        let request = self
            .agent
            .configure_request(request)
            .timeout_recv_response(Some(patience))
            .timeout_per_read(Some(patience))
            .build();
        Ok(self.agent.run(request)?)
    }
}

/// The text of an answer in XML.
///
/// # Errors
/// [`S3Error`] where it breaks off or is longer than such answers are.
pub(super) fn text(response: Response<Body>) -> Result<String, S3Error> {
    text_of(response, XML_BYTES_MAX)
}

fn text_of(response: Response<Body>, bytes_max: u64) -> Result<String, S3Error> {
    let mut text = Vec::new();
    let mut body = response.into_body().into_reader();
    let read = (&mut body).take(bytes_max).read_to_end(&mut text);
    read.map_err(|error| S3Error::Transport(ureq::Error::from(error)))?;
    if text.len() as u64 == bytes_max {
        return Err(S3Error::Nonsense(format!("more than {bytes_max} bytes of text")));
    }
    // Reading to the very end is what gives the connection back.
    body.read(&mut [0]).map_err(|error| S3Error::Transport(ureq::Error::from(error)))?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// Reads what is left of an answer that has no body to speak of, for its connection.
pub(super) fn finish(response: Response<Body>) -> Result<(), S3Error> {
    text_of(response, DRAINED_BYTES_MAX).map(|_| ())
}

/// Exactly `left` bytes of a file from `offset` on, or an error: a body that ended early
/// would leave the server waiting.
struct Region<'a> {
    file: &'a File,
    offset: u64,
    left: u64,
    failed: Option<io::Error>,
}

impl Read for Region<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if wanted == 0 {
            return Ok(0);
        }
        let outcome = match self.file.read_at(&mut buffer[..wanted], self.offset) {
            Ok(0) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file was cut")),
            outcome => outcome,
        };
        match outcome {
            Ok(read) => {
                self.offset += read as u64;
                self.left -= read as u64;
                Ok(read)
            }
            Err(error) => {
                let kind = error.kind();
                self.failed = Some(error);
                Err(kind.into())
            }
        }
    }
}
