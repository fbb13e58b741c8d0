//! Name look-ups that are remembered for a moment.
//!
//! ureq looks a name up for every request, on a thread of its own so that the look-up can be
//! given up, even where the request then goes over a kept connection. For a small file that
//! costs more than all else. Built on ureq's unversioned interface, whose minor version
//! Cargo.toml pins.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ureq::Error;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

use crate::recent::Recent;

/// How long addresses are used without asking again: a server that moves is found as quickly.
const REMEMBERED_FOR: Duration = Duration::from_secs(10);
/// Names that are remembered: a server's own, and those that it redirects to.
const NAMES_MAX: usize = 64;

/// Remembers what another resolver found.
#[derive(Debug)]
pub struct Remembering<R> {
    resolver: R,
    known: Recent<String, (Vec<SocketAddr>, Instant)>,
}

impl<R> Remembering<R> {
    /// Remembers what `resolver` finds.
    pub fn new(resolver: R) -> Self {
        Self { resolver, known: Recent::new(NAMES_MAX) }
    }
}

impl<R: Resolver> Resolver for Remembering<R> {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, Error> {
        let authority = uri.authority().map(|authority| authority.as_str()).unwrap_or_default();
        let name = format!("{}://{authority}", uri.scheme_str().unwrap_or_default());
        let known = self.known.get(&name);
        let packed = |addresses: &[SocketAddr]| {
            let mut packed = self.empty();
            addresses.iter().for_each(|address| packed.push(*address));
            packed
        };
        if let Some((addresses, since)) = &known
            && since.elapsed() < REMEMBERED_FOR
        {
            return Ok(packed(addresses));
        }
        let ticket = self.known.ticket(&name);
        match self.resolver.resolve(uri, config, timeout) {
            Ok(found) => {
                self.known.keep(ticket, &name, (found.to_vec(), Instant::now()));
                Ok(found)
            }
            // A name server that is away need not take the servers with it.
            Err(error) => known.map(|(addresses, _)| packed(&addresses)).ok_or(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Finds one more address at each look-up, and fails for one name.
    #[derive(Debug, Default)]
    struct Counting(AtomicUsize);

    impl Resolver for Counting {
        fn resolve(
            &self,
            uri: &Uri,
            _: &Config,
            _: NextTimeout,
        ) -> Result<ResolvedSocketAddrs, Error> {
            let count = self.0.fetch_add(1, Ordering::SeqCst) + 1;
            if uri.host() == Some("absent.example.org") {
                return Err(Error::HostNotFound);
            }
            let mut found = self.empty();
            (0..count).for_each(|at| found.push(SocketAddr::from(([127, 0, 0, 1], at as u16))));
            Ok(found)
        }
    }

    #[test]
    fn a_name_is_looked_up_once_in_a_while_and_a_failure_each_time() {
        let resolver = Remembering::new(Counting::default());
        let agent = ureq::Agent::new_with_defaults();
        let timeout = || NextTimeout {
            after: ureq::unversioned::transport::time::Duration::NotHappening,
            reason: ureq::Timeout::Resolve,
            per_read: None,
            per_write: None,
        };
        let look_up = |uri: &str| {
            let found = resolver.resolve(&uri.parse().unwrap(), agent.config(), timeout());
            found.map(|found| found.to_vec().len()).ok()
        };
        assert_eq!(look_up("http://one.example.org/a"), Some(1));
        assert_eq!(look_up("http://one.example.org/b"), Some(1));
        // Another port, and another scheme with another default port, have other addresses.
        assert_eq!(look_up("http://one.example.org:81/"), Some(2));
        assert_eq!(look_up("https://one.example.org/"), Some(3));
        assert_eq!(look_up("http://absent.example.org/"), None);
        assert_eq!(look_up("http://absent.example.org/"), None);
        assert_eq!(resolver.resolver.0.load(Ordering::SeqCst), 5);
    }
}
