//! One base URL, asked over HTTP/1.1 with ureq.
//!
//! One request, one answer: redirects are followed here, and a request that a dying pooled
//! connection swallowed is sent once more. Trying again after a failure, mirrors and pauses
//! are `patient`'s. Only this folder knows ureq:
//!
//! - `agent` timeouts, TLS, proxies, pools
//! - `idle` silences and resets; `vetted` addresses behind redirects
//! - `auth` credentials as fields
//! - `answer` what a head means; `body` bytes with an honest end
//!
//! Errors name a host, never a URL: its query may be a token.

use percent_encoding::percent_decode_str;
use ureq::http::{HeaderMap, HeaderValue, Request, Response, Uri, header};
use ureq::{Body, Timeout};
use url::Url;

use super::proxy::ProxyEnv;
use super::redirect::{LEADS_INSIDE, RedirectRules, same_origin};
use super::via;
use super::{Part, SetupError, Upstream, UpstreamError, UpstreamReply, UpstreamRequest};
use crate::artifact::ArtifactPath;
use crate::clock::Clock;
use crate::config::{Origin, Timeouts};

mod agent;
mod answer;
mod auth;
mod body;
mod idle;
mod vetted;

#[cfg(test)]
mod raw_server;
#[cfg(test)]
mod tests;

use agent::{Agents, Hop};
use answer::Answer;
use body::HttpBody;
use idle::{StaleConnection, is_gone};
use vetted::OnlyPrivate;

/// How often a request is sent, where kept connections turn out to be closed: once more on
/// the next one.
const SENDS_MAX: u32 = 2;

/// One base URL of a remote.
#[derive(Debug)]
pub struct HttpUpstream {
    /// Without credentials; its path ends in `/`.
    base: Url,
    credentials: HeaderMap,
    rules: RedirectRules,
    redirects_max: u32,
    timeouts: Timeouts,
    agents: Agents,
    clock: Clock,
}

impl HttpUpstream {
    /// Prepares to ask `base`, which is one of the origin's bases; nothing is connected yet.
    ///
    /// At most `redirects_max` redirects in a row are followed.
    ///
    /// # Errors
    /// [`SetupError`] for credentials, a proxy or a `ca_file` that can't be used.
    pub fn new(
        origin: &Origin,
        base: &Url,
        redirects_max: u32,
        proxies: &ProxyEnv,
        clock: &Clock,
    ) -> Result<Self, SetupError> {
        let rules = RedirectRules::of(base, origin.allow_private_redirects);
        Ok(Self {
            credentials: auth::headers(origin.auth.as_ref(), base)?,
            agents: Agents::new(origin, base, proxies, rules.private_allowed())?,
            base: without_credentials(base),
            rules,
            redirects_max,
            timeouts: origin.timeouts,
            clock: clock.clone(),
        })
    }

    /// Sends the request to one hop, to which `led_by` sent us; a connection of the pool that had
    /// died costs one more try (RFC 9112, section 9.3.1), since GET may be repeated.
    fn ask(
        &self,
        hop: Hop,
        led_by: &str,
        url: &Url,
        request: &UpstreamRequest<'_>,
    ) -> Result<Response<Body>, UpstreamError> {
        let mut sends = 0;
        loop {
            sends += 1;
            let message = self.message(hop, url, request)?;
            match self.agents.for_hop(hop, url).run(message) {
                Err(ureq::Error::Other(cause))
                    if cause.is::<StaleConnection>() && sends < SENDS_MAX => {}
                answered => {
                    let explained =
                        |error| self.explain(&host_of(url), self.proxy(hop, url), led_by, error);
                    return answered.map_err(explained);
                }
            }
        }
    }

    fn message(
        &self,
        hop: Hop,
        url: &Url,
        request: &UpstreamRequest<'_>,
    ) -> Result<Request<()>, UpstreamError> {
        let unfit = |what: &str| protocol(&host_of(url), format!("{what} can't be sent"));
        let mut message =
            Request::get(url.as_str()).body(()).map_err(|_| unfit("the path or its query"))?;
        let fields = message.headers_mut();
        fields.insert(header::ACCEPT, HeaderValue::from_static("*/*"));
        // What is stored is what upstream has, not an encoding of it.
        fields.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        fields.insert(header::VIA, HeaderValue::from_static(via::value()));
        let value = |text: &str| HeaderValue::from_str(text).map_err(|_| unfit("a validator"));
        if let Some(unless) = request.unless {
            if let Some(etag) = &unless.etag {
                fields.insert(header::IF_NONE_MATCH, value(etag)?);
            }
            if let Some(date) = &unless.last_modified {
                fields.insert(header::IF_MODIFIED_SINCE, value(date)?);
            }
        }
        if let Some(part) = &request.part {
            fields.insert(header::RANGE, value(&range_of(part))?);
            if let Some(version) = part.of {
                fields.insert(header::IF_RANGE, value(version)?);
            }
        }
        if hop == Hop::Home {
            for name in self.credentials.keys() {
                fields.remove(name);
            }
            for (name, value) in &self.credentials {
                fields.append(name, value.clone());
            }
        }
        Ok(message)
    }

    fn reply(
        &self,
        answer: Answer,
        body: Body,
        host: &str,
    ) -> Result<UpstreamReply, UpstreamError> {
        match answer {
            Answer::Found(head, framing) => {
                let reader = unlimited(body);
                let body = HttpBody::new(reader, framing, head.len, self.timeouts.idle);
                Ok(UpstreamReply::Found(head, Box::new(body)))
            }
            Answer::Status(status, retry_after) => {
                let said = body::drain_and_tell(unlimited(body));
                Err(UpstreamError::Status { host: host.to_owned(), status, retry_after, said })
            }
            Answer::NotModified(head) => {
                body::drain(unlimited(body));
                Ok(UpstreamReply::NotModified(head))
            }
            Answer::Absent | Answer::Elsewhere(_) => {
                body::drain(unlimited(body));
                Ok(UpstreamReply::Absent)
            }
        }
    }

    /// The proxy that a hop goes through, without its credentials.
    fn proxy(&self, hop: Hop, url: &Url) -> Option<String> {
        let proxy = self.agents.for_hop(hop, url).config().proxy()?;
        let uri: Uri = url.as_str().parse().ok()?;
        (!proxy.is_no_proxy(&uri)).then(|| format!("{}:{}", proxy.host(), proxy.port()))
    }

    fn explain(
        &self,
        host: &str,
        proxy: Option<String>,
        led_by: &str,
        error: ureq::Error,
    ) -> UpstreamError {
        use ureq::Error;
        let host = host.to_owned();
        // Whether it is the proxy or the host behind it that cannot be reached, nobody says.
        let by_way = proxy.map(|proxy| format!("by way of the proxy {proxy}: "));
        let by_way = by_way.unwrap_or_default();
        let connect = |host, reason: String| UpstreamError::Connect {
            host,
            reason: format!("{by_way}{reason}"),
        };
        let timeout = |host, during, after| UpstreamError::Timeout { host, during, after };
        match error {
            Error::Timeout(Timeout::Resolve | Timeout::Connect) => {
                timeout(host, "connecting", self.timeouts.connect)
            }
            Error::Timeout(Timeout::SendRequest | Timeout::PerWrite) => {
                timeout(host, "sending the request", self.timeouts.first_byte)
            }
            Error::Timeout(_) => timeout(host, "waiting for the head", self.timeouts.first_byte),
            Error::Io(error) if is_gone(&error) => {
                protocol(&host, "the connection broke before the head was there".to_owned())
            }
            Error::Io(error) => connect(host, error.to_string()),
            Error::HostNotFound => connect(host, "there is no such host".to_owned()),
            Error::ConnectionFailed => connect(host, "nothing answered".to_owned()),
            Error::ConnectProxyFailed(reason) => connect(host, format!("it refused: {reason}")),
            Error::Tls(reason) => connect(host, reason.to_owned()),
            Error::Rustls(error) => connect(host, error.to_string()),
            Error::Other(cause) if cause.is::<OnlyPrivate>() => {
                UpstreamError::Redirect { host: led_by.to_owned(), reason: LEADS_INSIDE.to_owned() }
            }
            Error::LargeResponseHeader(_, max) => {
                protocol(&host, format!("the head is larger than {max} bytes"))
            }
            // These can't quote a URL.
            error @ (Error::Protocol(_) | Error::Other(_)) => protocol(&host, error.to_string()),
            // The rest might; what they are about was checked before.
            _ => protocol(&host, "the request could not be made".to_owned()),
        }
    }
}

impl Upstream for HttpUpstream {
    fn get(&self, request: &UpstreamRequest<'_>) -> Result<UpstreamReply, UpstreamError> {
        let asked = url_of(&self.base, request.path)?;
        let mut url = asked.clone();
        let mut hop = Hop::Home;
        let mut led_by = host_of(&url);
        for _ in 0..=self.redirects_max {
            let host = host_of(&url);
            let (head, body) = self.ask(hop, &led_by, &url, request)?.into_parts();
            let answer = answer::read(&head, request, self.clock.now())
                .map_err(|reason| protocol(&host, reason))?;
            let Answer::Elsewhere(location) = answer else {
                return self.reply(answer, body, &host);
            };
            let refused = |reason: &str| UpstreamError::Redirect {
                host: host.clone(),
                reason: reason.to_owned(),
            };
            let next = self.rules.next(&url, &location).map_err(refused)?;
            if is_folder_of(&next, &asked) {
                body::drain(unlimited(body));
                return Ok(UpstreamReply::Folder);
            }
            // Credentials that have left home once don't come back: whoever is there now
            // chose what they would be sent to.
            if hop == Hop::Onward || !same_origin(&next, &self.base) {
                if !self.rules.private_allowed() && self.agents.is_proxy(&next) {
                    return Err(refused(LEADS_INSIDE));
                }
                hop = Hop::Onward;
            }
            body::drain(unlimited(body));
            (led_by, url) = (host, next);
        }
        Err(UpstreamError::Redirect {
            host: host_of(&self.base),
            reason: format!("there were more than {} in a row", self.redirects_max),
        })
    }
}

/// ureq bounds some ways to read a body, but not this one; the bounds on what is kept are
/// the caller's.
fn unlimited(body: Body) -> ureq::BodyReader<'static> {
    body.into_reader()
}

fn range_of(part: &Part<'_>) -> String {
    match part.to {
        Some(to) => format!("bytes={}-{}", part.from, to.saturating_sub(1)),
        None => format!("bytes={}-", part.from),
    }
}

fn url_of(base: &Url, path: &ArtifactPath) -> Result<Url, UpstreamError> {
    // Not `join`: a path may look like a URL of its own ("x:y").
    let url = format!("{base}{}", path.upstream_form());
    let unfit = |_| protocol(&host_of(base), "the path can't be made a URL".to_owned());
    let mut url = Url::parse(&url).map_err(unfit)?;
    url.set_fragment(None);
    Ok(url)
}

/// Whether a URL is that of another as a folder: the same path with a `/` at its end, however
/// each of the two is escaped.
fn is_folder_of(folder: &Url, url: &Url) -> bool {
    let folder: Vec<u8> = percent_decode_str(folder.path()).collect();
    folder
        .strip_suffix(b"/")
        .is_some_and(|name| percent_decode_str(url.path()).eq(name.iter().copied()))
}

fn without_credentials(base: &Url) -> Url {
    let mut base = base.clone();
    // Both fail only for URLs without a host, which can't have credentials.
    let _ = base.set_username("");
    let _ = base.set_password(None);
    base
}

/// The host as errors and logs name it, with its port where that is not the scheme's.
pub fn host_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

fn protocol(host: &str, reason: String) -> UpstreamError {
    UpstreamError::Protocol { host: host.to_owned(), reason }
}
