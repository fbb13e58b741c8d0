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
//! | DELETE of a job | `write`; nothing while there is no token, as for beginning it |
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
    without_tokens: WithoutTokens,
}

/// What becomes of a request that needs a token, where none is configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WithoutTokens {
    Refused,
    /// Whoever may read may do it.
    AsReads,
}

impl<'a> Need<'a> {
    /// What a request needs; `target` is the remote that the route names, if there is one.
    pub(super) fn of(route: &Route<'a>, method: &str, target: Option<&Target>) -> Self {
        let reads = matches!(method, "GET" | "HEAD");
        let is_local = target.is_some_and(|target| target.remote.is_local());
        let (scope, remote) = match *route {
            Route::Health | Route::Live | Route::Ready => (None, None),
            Route::Root | Route::Metrics | Route::Stats | Route::Config | Route::Unknown => {
                (Some(Scope::Read), None)
            }
            // It may be somebody else's batch, and nobody can tell whose it is.
            Route::Job { .. } if !reads => (Some(Scope::Write), None),
            // A batch does no more than reads do, of whatever remotes it names.
            Route::CacheArtifact { .. } | Route::Jobs { .. } | Route::Job { .. } => {
                (Some(Scope::Read), None)
            }
            Route::Artifact { remote, .. } | Route::Artifacts { remote, .. } if reads => {
                (Some(Scope::Read), Some(remote))
            }
            Route::Artifact { remote, .. } => (Some(Scope::Write), Some(remote)),
            Route::Artifacts { remote, .. } if is_local => (Some(Scope::Admin), Some(remote)),
            Route::Artifacts { remote, .. } => (Some(Scope::Write), Some(remote)),
        };
        let without_tokens = match route {
            Route::Job { .. } => WithoutTokens::AsReads,
            _ => WithoutTokens::Refused,
        };
        Self { scope, remote, without_tokens }
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

impl Caller {
    /// The name of the token that let the request in.
    pub(super) fn token(&self) -> Option<&str> {
        match self {
            Self::Anonymous => None,
            Self::Token(name) => Some(name),
        }
    }
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
            return match (need.without_tokens, self.reads) {
                (WithoutTokens::AsReads, Reads::Anonymous) => Ok(Caller::Anonymous),
                _ => Err(Denied::NoTokens { scope }),
            };
        }
        let presented = match credential(head) {
            Credential::None => return Err(Denied::Credential { why: NONE }),
            Credential::Token(token) => Digest::of(token.as_bytes()),
            Credential::Unreadable(why) => {
                return Err(self.failed(head.client, "unreadable", why, now));
            }
        };
        self.attempts
            .admit(head.client, &presented, now)
            .map_err(|wait| Denied::TooOften { wait })?;
        let Some(token) = tokens.find(&presented) else {
            return Err(self.failed(head.client, "unknown", UNKNOWN, now));
        };
        self.attempts.succeeded(head.client, presented, now);
        if token.opens(scope, need.remote) {
            return Ok(Caller::Token(token.name.clone()));
        }
        Err(Denied::Forbidden {
            token: token.name.clone(),
            lack: if token.has(scope) { Lack::Remote } else { Lack::Scope },
            scope,
            remote: need.remote.map(str::to_owned),
        })
    }

    /// `what` is for the log, `why` for the client.
    fn failed(
        &self,
        client: Option<IpAddr>,
        what: &'static str,
        why: &'static str,
        now: Instant,
    ) -> Denied {
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
        Denied::Credential { why }
    }
}

/// What a client is told whose credential does not let it in.
const NONE: &str = "a token is needed: send it as `Authorization: Bearer TOKEN`, or as the password of basic authentication";
const UNKNOWN: &str = "this token is not known here: it is mistyped, or it was withdrawn";
const SEVERAL: &str = "there is more than one Authorization field: send one";
const NO_PASSWORD: &str = "the token must be the password of basic authentication, and the password is empty: with curl, `-u any:TOKEN`";
const NO_TOKEN: &str = "the Authorization field holds no token: send it as `Bearer TOKEN`, or as the password of basic authentication";

/// What a token that is known lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lack {
    /// The scope.
    Scope,
    /// Only this remote, or being good for more than single ones.
    Remote,
}

/// Why somebody is not let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Denied {
    /// There is no token that could open it.
    NoTokens {
        /// What would have to be opened.
        scope: Scope,
    },
    /// There is no credential, or none that is right.
    Credential {
        /// What is wrong with it, and what helps.
        why: &'static str,
    },
    /// The token does not open this.
    Forbidden {
        /// Its name.
        token: String,
        /// What it lacks.
        lack: Lack,
        /// What is needed.
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
            Self::Credential { why } => {
                Problem::new(401, *why).reply().header("WWW-Authenticate", CHALLENGE)
            }
            Self::Forbidden { token, lack, scope, remote } => forbidden(match (lack, remote) {
                (Lack::Scope, _) => {
                    format!("the token {token:?} does not have the scope {}", scope.as_str())
                }
                (Lack::Remote, Some(remote)) => {
                    format!("the token {token:?} is restricted to other remotes than {remote:?}")
                }
                (Lack::Remote, None) => format!(
                    "the token {token:?} is restricted to certain remotes: this needs a token with the scope {} that is not",
                    scope.as_str()
                ),
            }),
            Self::TooOften { wait } => {
                let detail = "too many wrong tokens came from this address";
                Problem { retry_after: Some(*wait), ..Problem::new(429, detail) }.reply()
            }
        }
    }
}

enum Credential {
    None,
    Token(String),
    Unreadable(&'static str),
}

/// The token of a request: a bearer's (RFC 6750), or the password of basic authentication (RFC
/// 7617), whatever its user is.
fn credential(head: &RequestHead) -> Credential {
    let mut values = head.headers.iter().filter(|(name, _)| name == "authorization");
    let Some((_, value)) = values.next() else { return Credential::None };
    if values.next().is_some() {
        return Credential::Unreadable(SEVERAL);
    }
    let (scheme, rest) = value.trim().split_once(' ').unwrap_or((value.trim(), ""));
    let rest = rest.trim();
    if scheme.eq_ignore_ascii_case("bearer") && !rest.is_empty() {
        return Credential::Token(rest.to_owned());
    }
    let password = || {
        let text = String::from_utf8(BASE64.decode(rest).ok()?).ok()?;
        Some(text.split_once(':')?.1.to_owned())
    };
    match scheme.eq_ignore_ascii_case("basic").then(password).flatten() {
        Some(token) if token.is_empty() => Credential::Unreadable(NO_PASSWORD),
        Some(token) => Credential::Token(token),
        None => Credential::Unreadable(NO_TOKEN),
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
        match judge(access, scope, Some("r"), &head(authorization)) {
            Ok(_) => 200,
            Err(denied) => denied.reply().status,
        }
    }

    fn judge(
        access: &Access,
        scope: Scope,
        remote: Option<&str>,
        head: &RequestHead,
    ) -> Result<Caller, Denied> {
        let need = Need { scope: Some(scope), remote, without_tokens: WithoutTokens::Refused };
        access.judge(&need, head, Instant::now())
    }

    #[test]
    fn whoever_is_refused_is_told_what_is_wrong() {
        let basic = |text: &str| format!("Basic {}", BASE64.encode(text));
        let two = RequestHead {
            headers: vec![("authorization".to_owned(), "Bearer right".to_owned()); 2],
            ..head(None)
        };
        let (read, write, admin) = (Scope::Read, Scope::Write, Scope::Admin);
        for (scope, remote, head, words) in [
            (write, Some("r"), head(None), "a token is needed"),
            (write, Some("r"), head(Some("Bearer wrong")), "not known"),
            (write, Some("r"), head(Some("Bearer")), "holds no token"),
            (write, Some("r"), head(Some("Digest right")), "holds no token"),
            (write, Some("r"), head(Some(&basic("right:"))), "must be the password"),
            (write, Some("r"), two, "more than one Authorization"),
            (admin, Some("r"), head(Some("Bearer right")), "not have the scope admin"),
            (write, Some("s"), head(Some("Bearer right")), "to other remotes than \"s\""),
            (read, None, head(Some("Bearer right")), "restricted to certain remotes"),
        ] {
            let denied = judge(&access(Reads::WithToken), scope, remote, &head).unwrap_err();
            let text = text_of(denied.reply());
            assert!(text.contains(words), "{words:?} is not in {text}");
        }
    }

    fn text_of(reply: Reply) -> String {
        let mut body = reply.body;
        String::from_utf8(crate::body::read_to_vec(&mut body, 10_000).unwrap())
            .unwrap()
            .replace("\\\"", "\"")
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
