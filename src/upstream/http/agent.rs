//! The ureq agents of one upstream: timeouts, TLS, proxies and pools.
//!
//! There are three, each with its own pool. The base URL's own origin is asked through
//! `home`, whatever its addresses are. Hops that a redirect chose go through the other two
//! (a proxy can depend on the scheme), which connect to public addresses only unless that
//! was allowed; a connection of `home` is never used for them.

use std::borrow::Cow;
use std::time::Duration;

use ureq::config::Config;
use ureq::http::Uri;
use ureq::tls::TlsConfig;
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{ConnectProxyConnector, Connector, RustlsConnector};
use ureq::{Agent, Proxy, ProxyProtocol};
use url::Url;

use super::idle::Watch;
use super::vetted::PublicOnly;
use crate::config::{Origin, Timeouts};
use crate::names::Remembering;
use crate::roots;
use crate::tcp::TcpConnector;
use crate::upstream::SetupError;
use crate::upstream::proxy::{ProxyChoice, ProxyEnv};

/// What an upstream is told that we are.
const USER_AGENT: &str = concat!("artifactapi/", env!("CARGO_PKG_VERSION"));
/// The largest head of an answer, in bytes. An answer has at most 100 fields as well, which
/// is a bound of ureq's.
const HEAD_BYTES_MAX: usize = 32 * 1024;
/// Read buffer of a connection, in bytes; larger than [`HEAD_BYTES_MAX`], which must fit. It
/// grows where a body fills it.
const INPUT_BUFFER_BYTES: usize = 64 * 1024;
/// Write buffer of a connection, in bytes: a request with the longest path and its
/// credentials fits.
const OUTPUT_BUFFER_BYTES: usize = 32 * 1024;
/// Idle connections that an agent keeps.
const IDLE_CONNECTIONS_MAX: usize = 32;
/// For how long it keeps them.
const IDLE_AGE_MAX: Duration = Duration::from_secs(15);

/// The agents of one upstream.
#[derive(Debug)]
pub(super) struct Agents {
    home: Agent,
    onward_http: Agent,
    onward_https: Agent,
}

/// Which hop of a request it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hop {
    /// The base URL's own origin.
    Home,
    /// Wherever a redirect led.
    Onward,
}

impl Agents {
    /// Makes the agents of one of an origin's bases.
    ///
    /// # Errors
    /// [`SetupError`] for a proxy or a `ca_file` that can't be used.
    pub(super) fn new(
        origin: &Origin,
        base: &Url,
        env: &ProxyEnv,
        private_allowed: bool,
    ) -> Result<Self, SetupError> {
        let tls = roots::tls(origin.ca_file.as_deref())?;
        let config = |scheme: &str| -> Result<Config, SetupError> {
            let proxy = env.choose(origin.proxy.as_ref(), scheme)?;
            let proxy = proxy.as_ref().map(proxy_of).transpose()?;
            Ok(config(&origin.timeouts, &tls, proxy))
        };
        let connector = || {
            ().chain(ConnectProxyConnector::default())
                .chain(TcpConnector::default())
                .chain(RustlsConnector::default())
                .chain(Watch { idle: origin.timeouts.idle })
        };
        let onward = |scheme: &str| -> Result<Agent, SetupError> {
            let config = config(scheme)?;
            Ok(if private_allowed {
                Agent::with_parts(config, connector(), Remembering::new(DefaultResolver::default()))
            } else {
                Agent::with_parts(config, connector(), Remembering::new(PublicOnly::default()))
            })
        };
        Ok(Self {
            home: Agent::with_parts(
                config(base.scheme())?,
                connector(),
                Remembering::new(DefaultResolver::default()),
            ),
            onward_http: onward("http")?,
            onward_https: onward("https")?,
        })
    }

    /// The agent for a hop to a URL.
    pub(super) fn for_hop(&self, hop: Hop, url: &Url) -> &Agent {
        match (hop, url.scheme()) {
            (Hop::Home, _) => &self.home,
            (Hop::Onward, "https") => &self.onward_https,
            (Hop::Onward, _) => &self.onward_http,
        }
    }

    /// Whether a URL is that of the proxy that a hop would go through. The proxy's address
    /// is not checked, so a redirect must not lead to the proxy itself.
    pub(super) fn is_proxy(&self, url: &Url) -> bool {
        let proxy = self.for_hop(Hop::Onward, url).config().proxy();
        proxy.is_some_and(|proxy| {
            Some(proxy.host()) == url.host_str()
                && Some(proxy.port()) == url.port_or_known_default()
        })
    }
}

fn config(timeouts: &Timeouts, tls: &TlsConfig, proxy: Option<Proxy>) -> Config {
    Agent::config_builder()
        .http_status_as_error(false)
        // We follow ourselves: credentials in fields of any name must stay at home, and every
        // hop is checked.
        .max_redirects(0)
        .proxy(proxy)
        .tls_config(tls.clone())
        .user_agent(USER_AGENT)
        // Bounds of phases, none of the whole: a large file may take hours. `Watch` bounds
        // the silences of a body.
        .timeout_resolve(Some(timeouts.connect))
        .timeout_connect(Some(timeouts.connect))
        .timeout_send_request(Some(timeouts.first_byte))
        .timeout_recv_response(Some(timeouts.first_byte))
        .max_response_header_size(HEAD_BYTES_MAX)
        .input_buffer_size(INPUT_BUFFER_BYTES)
        .output_buffer_size(OUTPUT_BUFFER_BYTES)
        .max_idle_connections(IDLE_CONNECTIONS_MAX)
        .max_idle_connections_per_host(IDLE_CONNECTIONS_MAX)
        .max_idle_age(IDLE_AGE_MAX)
        .build()
}

fn proxy_of(choice: &ProxyChoice) -> Result<Proxy, SetupError> {
    let uri: Uri = choice.url.as_str().parse().map_err(|_| bad_proxy("is not a URL"))?;
    let protocol = match uri.scheme_str() {
        Some("https") => ProxyProtocol::Https,
        _ => ProxyProtocol::Http,
    };
    let mut proxy = Proxy::builder(protocol).host(choice.url.host_str().unwrap_or_default());
    if let Some(port) = choice.url.port_or_known_default() {
        proxy = proxy.port(port);
    }
    if !choice.url.username().is_empty() {
        proxy = proxy.username(&decoded(choice.url.username())?);
        proxy = proxy.password(&decoded(choice.url.password().unwrap_or_default())?);
    }
    for pattern in &choice.except {
        proxy = proxy.no_proxy(pattern);
    }
    proxy.build().map_err(|_| bad_proxy("can't be used"))
}

fn decoded(text: &str) -> Result<Cow<'_, str>, SetupError> {
    let text = percent_encoding::percent_decode_str(text).decode_utf8();
    text.map_err(|_| bad_proxy("has a user or password that is not text"))
}

fn bad_proxy(why: &'static str) -> SetupError {
    SetupError::Proxy { name: "proxy".to_owned(), why }
}
