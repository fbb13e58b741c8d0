//! Access: who may do what.
//!
//! Every request is judged here before anything else is looked at, from what its route needs
//! and what its `Authorization` proves. A credential is looked at only where it is needed: a
//! client that sends some password along with an open read is served, and learns nothing of
//! it. Nothing of `Authorization` goes further than this file: upstreams have credentials of
//! their own, and the log names tokens, never their text.
//!
//! | what | needs |
//! |---|---|
//! | `/health` | nothing |
//! | GET, HEAD | `read`, unless reads are anonymous |
//! | PUT, DELETE of an artifact | `write` for its remote |
//! | DELETE of many | `write` for the remote, `admin` for a local repository |
//!
//! Pages of the whole program (`/`, `/config`, `/metrics`) need a token that is not restricted
//! to some remotes.

use std::net::IpAddr;
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::attempts::{Attempts, Counted};
use super::reply::Problem;
use super::route::Route;
use super::wire::{Reply, RequestHead};
use crate::artifact::Digest;
use crate::cache::Target;
use crate::config::Kind;
use crate::config::tokens::{Scope, Tokens};

/// What a client without a right credential is asked for. Basic comes first: it is what
/// package managers know.
const CHALLENGE: &str = r#"Basic realm="artifactapi", charset="UTF-8", Bearer realm="artifactapi""#;

/// Whether everybody may read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reads {
    /// Yes.
    Anonymous,
    /// Only with a token.
    WithToken,
}

/// What is needed to be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Need<'a> {
    scope: Option<Scope>,
    remote: Option<&'a str>,
}

impl<'a> Need<'a> {
    /// What a request needs; `target` is the remote that the route names, if there is one.
    pub(super) fn of(route: &Route<'a>, method: &str, target: Option<&Target>) -> Self {
        let reads = matches!(method, "GET" | "HEAD");
        let is_local = target.is_some_and(|target| matches!(target.remote.kind, Kind::Local));
        let (scope, remote) = match *route {
            Route::Health | Route::Live | Route::Ready => (None, None),
            Route::Root | Route::Metrics | Route::Stats | Route::Config | Route::Unknown => {
                (Some(Scope::Read), None)
            }
            // A batch does no more than reads do, of whatever remotes it names.
            Route::CacheArtifact { .. } | Route::Jobs | Route::Job { .. } => {
                (Some(Scope::Read), None)
            }
            Route::Artifact { remote, .. } | Route::Artifacts { remote, .. } if reads => {
                (Some(Scope::Read), Some(remote))
            }
            Route::Artifact { remote, .. } => (Some(Scope::Write), Some(remote)),
            Route::Artifacts { remote, .. } if is_local => (Some(Scope::Admin), Some(remote)),
            Route::Artifacts { remote, .. } => (Some(Scope::Write), Some(remote)),
        };
        Self { scope, remote }
    }
}

/// Who is let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Caller {
    /// Anybody.
    Anonymous,
    /// Who has this token.
    Token(String),
}

/// The gate.
#[derive(Debug)]
pub struct Access {
    reads: Reads,
    // Guards which tokens are in force; nothing else is taken while it is held.
    tokens: RwLock<Arc<Tokens>>,
    attempts: Attempts,
}

impl Access {
    /// A gate with these tokens.
    pub fn new(reads: Reads, tokens: Tokens) -> Self {
        Self { reads, tokens: RwLock::new(Arc::new(tokens)), attempts: Attempts::default() }
    }

    /// Puts other tokens in force.
    pub fn replace(&self, tokens: Tokens) {
        *self.tokens.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Arc::new(tokens);
    }

    /// Whether what is answered may depend on who asks.
    pub(super) fn is_private(&self, need: &Need<'_>) -> bool {
        need.scope.is_some() && self.reads == Reads::WithToken
    }

    /// Judges a request.
    pub(super) fn judge(
        &self,
        need: &Need<'_>,
        head: &RequestHead,
        now: Instant,
    ) -> Result<Caller, Denied> {
        let scope = match need.scope {
            None => return Ok(Caller::Anonymous),
            Some(Scope::Read) if self.reads == Reads::Anonymous => return Ok(Caller::Anonymous),
            Some(scope) => scope,
        };
        let tokens =
            Arc::clone(&self.tokens.read().unwrap_or_else(std::sync::PoisonError::into_inner));
        if tokens.is_empty() {
            return Err(Denied::NoTokens { scope });
        }
        let presented = match credential(head) {
            Credential::None => return Err(Denied::Unknown),
            Credential::Token(token) => Digest::of(token.as_bytes()),
            Credential::Unreadable => return Err(self.failed(head.client, "unreadable", now)),
        };
        self.attempts
            .admit(head.client, &presented, now)
            .map_err(|wait| Denied::TooOften { wait })?;
        let Some(token) = tokens.find(&presented) else {
            return Err(self.failed(head.client, "unknown", now));
        };
        self.attempts.succeeded(head.client, presented, now);
        if token.opens(scope, need.remote) {
            return Ok(Caller::Token(token.name.clone()));
        }
        Err(Denied::Forbidden {
            token: token.name.clone(),
            scope,
            remote: need.remote.map(str::to_owned),
        })
    }

    fn failed(&self, client: Option<IpAddr>, what: &'static str, now: Instant) -> Denied {
        let counted = self.attempts.failed(client, now);
        let client = client.map(tracing::field::display);
        match counted {
            // One line said so already.
            Counted::Beyond => {}
            Counted::Within => tracing::warn!(client, what, "a credential was refused"),
            Counted::Last => tracing::warn!(
                client,
                what,
                "a credential was refused; further ones from this address are not looked at for a while"
            ),
        }
        Denied::Unknown
    }
}

/// Why somebody is not let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Denied {
    /// There is no token that could open it.
    NoTokens {
        /// What would have to be opened.
        scope: Scope,
    },
    /// There is no credential, or a wrong one.
    Unknown,
    /// The token does not open this.
    Forbidden {
        /// Its name.
        token: String,
        /// What it lacks.
        scope: Scope,
        /// For which remote; `None` is the whole program.
        remote: Option<String>,
    },
    /// Too many wrong credentials came from there.
    TooOften {
        /// How long to wait.
        wait: Duration,
    },
}

impl Denied {
    /// As a reply. 401 means "another credential may help" (RFC 9110, section 15.5.2).
    pub(super) fn reply(&self) -> Reply {
        let forbidden = |detail: String| Problem::new(403, detail).reply();
        match self {
            Self::NoTokens { scope } => forbidden(format!(
                "this needs a token with the scope {}, and none is configured: make one with `artifactapi token NAME --scope {}`, put its line into a file and name that in TOKENS_FILE, or set ADMIN_TOKEN",
                scope.as_str(),
                scope.as_str(),
            )),
            Self::Unknown => Problem::new(
                401,
                "a token is needed: send it as `Authorization: Bearer TOKEN`, or as the password of basic authentication",
            )
            .reply()
            .header("WWW-Authenticate", CHALLENGE),
            Self::Forbidden { token, scope, remote } => forbidden(match remote {
                Some(remote) => format!(
                    "the token {token:?} does not have the scope {} for {remote:?}",
                    scope.as_str()
                ),
                None => format!(
                    "the token {token:?} does not have the scope {} for more than single remotes",
                    scope.as_str()
                ),
            }),
            Self::TooOften { wait } => Problem {
                status: 429,
                detail: "too many wrong tokens came from this address".to_owned(),
                retry_after: Some(*wait),
            }
            .reply(),
        }
    }
}

enum Credential {
    None,
    Token(String),
    Unreadable,
}

/// The token of a request: a bearer's (RFC 6750), or the password of basic authentication (RFC
/// 7617), whatever its user is.
fn credential(head: &RequestHead) -> Credential {
    let Some(value) = head.header("authorization") else { return Credential::None };
    let (scheme, rest) = value.trim().split_once(' ').unwrap_or((value.trim(), ""));
    let rest = rest.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return Credential::Token(rest.to_owned());
    }
    let password = || {
        let text = String::from_utf8(BASE64.decode(rest).ok()?).ok()?;
        Some(text.split_once(':')?.1.to_owned())
    };
    match scheme.eq_ignore_ascii_case("basic").then(password).flatten() {
        Some(token) => Credential::Token(token),
        None => Credential::Unreadable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "right";

    fn access(reads: Reads) -> Access {
        let line = format!("ci {} read,write r\n", Digest::of(TOKEN.as_bytes()));
        Access::new(reads, Tokens::parse(&line, "tokens").unwrap())
    }

    fn head(authorization: Option<&str>) -> RequestHead {
        let header = |value: &str| ("authorization".to_owned(), value.to_owned());
        RequestHead {
            method: "GET".to_owned(),
            target: "/".to_owned(),
            is_http_11: true,
            headers: authorization.map(header).into_iter().collect(),
            client: Some([192, 0, 2, 1].into()),
        }
    }

    fn status(access: &Access, scope: Scope, authorization: Option<&str>) -> u16 {
        let need = Need { scope: Some(scope), remote: Some("r") };
        match access.judge(&need, &head(authorization), Instant::now()) {
            Ok(_) => 200,
            Err(denied) => denied.reply().status,
        }
    }

    #[test]
    fn tokens_come_as_bearers_and_as_passwords() {
        let basic = |text: &str| format!("Basic {}", BASE64.encode(text));
        for (authorization, expected) in [
            (None, 401),
            (Some("Bearer right".to_owned()), 200),
            (Some("bearer  right ".to_owned()), 200),
            (Some("Bearer wrong".to_owned()), 401),
            (Some("Bearer".to_owned()), 401),
            (Some("Bearer ".to_owned()), 401),
            (Some("right".to_owned()), 401),
            (Some("Digest right".to_owned()), 401),
            (Some(basic("anybody:right")), 200),
            (Some(basic(":right")), 200),
            (Some(basic("right:")), 401),
            (Some(basic("right")), 401),
            (Some("Basic !!!".to_owned()), 401),
        ] {
            let access = access(Reads::WithToken);
            let found = status(&access, Scope::Read, authorization.as_deref());
            assert_eq!(found, expected, "{authorization:?}");
        }
    }

    #[test]
    fn guessing_ends_and_an_open_read_looks_at_no_credential() {
        let access = access(Reads::Anonymous);
        for _ in 0..100 {
            assert_eq!(status(&access, Scope::Read, Some("Bearer guess")), 200);
        }
        let mut statuses: Vec<u16> =
            (0..20).map(|_| status(&access, Scope::Write, Some("Bearer guess"))).collect();
        statuses.dedup();
        assert_eq!(statuses, [401, 429]);
        assert_eq!(status(&access, Scope::Write, Some("Bearer right")), 429);
    }

    #[test]
    fn without_tokens_the_answer_says_how_to_get_one() {
        let access = Access::new(Reads::Anonymous, Tokens::default());
        assert_eq!(status(&access, Scope::Read, None), 200);
        assert_eq!(status(&access, Scope::Write, Some("Bearer any")), 403);
    }
}
