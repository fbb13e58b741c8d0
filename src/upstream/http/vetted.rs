//! Name lookups for hops that a redirect chose.
//!
//! What is connected to is what was checked: the addresses go from here straight to the
//! connector, so a name that resolves to something else a moment later (DNS rebinding)
//! gains nothing.

use std::fmt;

use ureq::Error;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

use crate::upstream::address::is_public;

/// Gives only public addresses, and an error where a name has no other.
#[derive(Debug, Default)]
pub(super) struct PublicOnly(DefaultResolver);

/// A name that has none but private addresses.
#[derive(Debug)]
pub(super) struct OnlyPrivate;

impl fmt::Display for OnlyPrivate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the host has no public address")
    }
}

impl std::error::Error for OnlyPrivate {}

impl Resolver for PublicOnly {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, Error> {
        let found = self.0.resolve(uri, config, timeout)?;
        // The proxy is the operator's choice, wherever it stands. A redirect that names the
        // proxy itself was refused before.
        if config.proxy().is_some_and(|proxy| proxy.uri() == uri) {
            return Ok(found);
        }
        let mut public = self.empty();
        for address in found.iter().filter(|address| is_public(address.ip())) {
            public.push(*address);
        }
        if public.is_empty() { Err(Error::Other(Box::new(OnlyPrivate))) } else { Ok(public) }
    }
}
