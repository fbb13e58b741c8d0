//! Configuration as understood: what the rest of the program works with.
//!
//! `file` reads remotes.yaml as written, `env` the environment; both name the thing and the
//! fix in every error. The types here know neither YAML nor environment variables; what an
//! operator may set is described once, as [`key::Key`]s, from which reading, messages and the
//! documentation's tables come. The one I/O of this room is [`file::load`].

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use url::Url;

use crate::artifact::{ArtifactKey, ArtifactPath, RemoteName};
use crate::formats::PackageFormat;
use crate::policy::lifetime::Lifetimes;
use crate::policy::pattern::{Patterns, Pins};

pub mod env;
mod expressions;
mod fields;
pub mod file;
pub mod key;
mod origin;
pub mod problem;
mod shown;
pub mod tokens;
mod yaml;

/// Every remote of one reading of remotes.yaml.
#[derive(Debug, Default)]
pub struct Remotes {
    /// The remotes by name.
    pub by_name: BTreeMap<RemoteName, Arc<Remote>>,
}

impl Remotes {
    /// The same, none of which may ask its upstream.
    ///
    /// # Panics
    /// Where somebody else has one of them already.
    pub fn offline(mut self) -> Self {
        for remote in self.by_name.values_mut() {
            let remote = Arc::get_mut(remote).expect("they have just been read");
            if let Kind::Remote(origin) = &mut remote.kind {
                origin.offline = true;
            }
        }
        self
    }
}

/// One remote.
#[derive(Debug)]
pub struct Remote {
    /// Its name, the first segment behind `/api/`.
    pub name: RemoteName,
    /// What people should know about it; may be empty.
    pub description: String,
    /// The format of its packages.
    pub format: &'static dyn PackageFormat,
    /// Where its artifacts come from.
    pub kind: Kind,
    /// Which paths may be fetched.
    pub patterns: Patterns,
    /// How long what is stored may be served.
    pub lifetimes: Lifetimes,
    /// The largest artifact that is stored, in bytes; `None` is without limit.
    pub max_bytes: Option<u64>,
    /// Whether an upload to a local repository may replace other content under its name.
    pub allow_overwrite: bool,
    /// What of it stays stored; without effect on a local repository, which keeps everything.
    pub keeping: Keeping,
}

impl Remote {
    /// One of its artifacts.
    pub fn key(&self, path: ArtifactPath) -> ArtifactKey {
        ArtifactKey { remote: self.name.clone(), path }
    }

    /// Whether it is a local repository.
    pub fn is_local(&self) -> bool {
        matches!(self.kind, Kind::Local)
    }

    /// Whether it has an upstream that must not be asked.
    pub fn is_offline(&self) -> bool {
        matches!(&self.kind, Kind::Remote(origin) if origin.offline)
    }

    /// Whether a path may be fetched, or uploaded to a local repository.
    ///
    /// A local repository without include patterns takes every path that is not excluded: what
    /// is in it was put there on purpose, whereas a remote's upstream has anything.
    pub fn allows(&self, path: &ArtifactPath) -> bool {
        if self.is_local() && self.patterns.include().is_empty() {
            return !self.patterns.excludes(path);
        }
        self.patterns.allow(self.format, path)
    }
}

/// How much of a remote stays stored, and for how long.
#[derive(Debug, Default)]
pub struct Keeping {
    /// The most that its stored artifacts may take up together, in bytes; `None` is without
    /// limit of its own.
    pub max_bytes: Option<u64>,
    /// What was not used for this long goes; `None` stays.
    pub unused_for: Option<Duration>,
    /// What stays in spite of both, and of the bound of the whole cache.
    pub pins: Pins,
}

/// Where a remote's artifacts come from.
#[derive(Debug)]
pub enum Kind {
    /// From an upstream server, cached here.
    Remote(Box<Origin>),
    /// From uploads.
    Local,
}

impl Kind {
    /// The word of `type` in remotes.yaml.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Remote(_) => "remote",
            Self::Local => "local",
        }
    }
}

/// The upstream of a remote and how to speak with it.
#[derive(Clone, PartialEq, Eq)]
pub struct Origin {
    /// `base_url`, then `mirrors`, in the order in which they are tried; at least one. Each
    /// is http or https, has a host, its path ends in `/`, and it has neither a credential
    /// (that is in `auth`) nor a query nor a fragment.
    pub bases: Vec<Url>,
    /// Credentials, sent to the hosts of `bases` only.
    pub auth: Option<Auth>,
    /// Further root certificates, a PEM file.
    pub ca_file: Option<PathBuf>,
    /// An HTTP proxy to go through; may have a credential, which `Debug` masks.
    pub proxy: Option<Url>,
    /// Bounds on waiting.
    pub timeouts: Timeouts,
    /// Never ask upstream: serve what is stored.
    pub offline: bool,
    /// Redirects may lead to loopback, link-local and private addresses.
    pub allow_private_redirects: bool,
    /// Where releases are listed, as the operator says; like one of `bases`. See
    /// [`Origin::releases_api`].
    pub api_url: Option<Url>,
}

/// The host of GitHub, and where it lists its releases.
const GITHUB: (&str, &str) = ("github.com", "https://api.github.com/");

impl Origin {
    /// The address of the releases API: the operator's, or GitHub's for a base URL there.
    pub fn releases_api(&self) -> Option<Url> {
        let known = || self.is_github().then(|| Url::parse(GITHUB.1).expect("a constant URL"));
        self.api_url.clone().or_else(known)
    }

    /// Whether the base URL lies at GitHub itself.
    pub fn is_github(&self) -> bool {
        self.bases.first().is_some_and(|base| base.host_str() == Some(GITHUB.0))
    }
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let masked = |urls: &[Url]| urls.iter().map(shown::masked).collect::<Vec<_>>();
        f.debug_struct("Origin")
            .field("bases", &masked(&self.bases))
            .field("auth", &self.auth)
            .field("ca_file", &self.ca_file)
            .field("proxy", &masked(self.proxy.as_slice()))
            .field("timeouts", &self.timeouts)
            .field("offline", &self.offline)
            .field("allow_private_redirects", &self.allow_private_redirects)
            .field("api_url", &masked(self.api_url.as_slice()))
            .finish()
    }
}

/// Credentials for an upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Auth {
    /// Basic authentication (RFC 7617).
    Basic {
        /// The user.
        user: String,
        /// The password.
        password: Secret,
    },
    /// A bearer token (RFC 6750).
    Bearer(Secret),
    /// Header fields as given.
    Headers(Vec<(String, Secret)>),
}

/// A text that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    /// The secret itself, for the one place that sends it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Bounds on waiting for an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// For the connection, with name lookup and TLS.
    pub connect: Duration,
    /// From the request to the head of the answer.
    pub first_byte: Duration,
    /// For a silence inside the body; a slow body that moves is never cut.
    pub idle: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            first_byte: Duration::from_secs(60),
            idle: Duration::from_secs(60),
        }
    }
}
