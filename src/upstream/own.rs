//! Asking another artifactapi, as the command line does.
//!
//! One request with a body, one answer that is read line by line; no redirects, no retries.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::time::Duration;

use ureq::Agent;
use url::Url;

use super::SetupError;
use crate::roots;

/// For the connection and for the head of the answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// For a silence between two lines; a server that lives sends one a second.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// The answer to a request.
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body. A connection that breaks, or one that is silent for a minute, is an error.
    pub body: Box<dyn BufRead>,
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answer").field("status", &self.status).finish_non_exhaustive()
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The address is none.
    #[error(
        "{server:?} is not the address of a server: {why}; write http://host:port or https://host:port"
    )]
    Address {
        /// As given.
        server: String,
        /// What is wrong with it.
        why: String,
    },
    /// TLS can't be set up.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// The server does not answer.
    #[error("{server} does not answer: {why}")]
    Silent {
        /// As given.
        server: String,
        /// What went wrong.
        why: String,
    },
}

/// Where a server is, and what it is asked with.
#[derive(Debug, Clone, Copy)]
pub struct Server<'a> {
    /// `http://host:port`, or `https://` where TLS stands before it.
    pub url: &'a str,
    /// Root certificates (PEM) that are trusted beside the system's.
    pub ca_file: Option<&'a Path>,
    /// A token.
    pub token: Option<&'a str>,
}

/// Sends JSON to a path of a server by POST.
///
/// # Errors
/// [`AskError`]; a refusal by the server is an answer.
pub fn post_json(to: Server<'_>, path: &str, json: &str) -> Result<Answer, AskError> {
    let server = to.url;
    let address = |why: String| AskError::Address { server: server.to_owned(), why };
    let base = Url::parse(server).map_err(|error| address(error.to_string()))?;
    if !matches!(base.scheme(), "http" | "https") || base.host_str().is_none() {
        return Err(address("it is no http or https URL".to_owned()));
    }
    let agent: Agent = Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .tls_config(roots::tls(to.ca_file).map_err(SetupError::from)?)
        // The server is the operator's own, most often on this very machine.
        .proxy(None)
        .timeout_connect(Some(CONNECT_TIMEOUT))
        .timeout_recv_response(Some(HEAD_TIMEOUT))
        .timeout_per_read(Some(SILENCE_MAX))
        .build()
        .into();
    let url = format!("{}{path}", base.as_str().trim_end_matches('/'));
    let mut request = agent.post(&url).content_type("application/json");
    if let Some(token) = to.token {
        request = request.header("Authorization", format!("Bearer {token}"));
    }
    let sent = request.send(json);
    let silent =
        |error: ureq::Error| AskError::Silent { server: server.to_owned(), why: error.to_string() };
    let (head, body) = sent.map_err(silent)?.into_parts();
    Ok(Answer { status: head.status.as_u16(), body: Box::new(BufReader::new(body.into_reader())) })
}
