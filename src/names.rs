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
/// After a look-up that failed, how long until the next.
const REMEMBERED_FOR: Duration = Duration::from_secs(10);
/// How long addresses are used though look-ups fail: the servers may have moved by then.
const TRUSTED_FOR: Duration = Duration::from_secs(3600);
/// Names that are remembered: a server's own, and those that it redirects to.
const NAMES_MAX: usize = 64;

/// Remembers what another resolver found.
#[derive(Debug)]
pub struct Remembering<R> {
    resolver: R,
    known: Recent<String, Known>,
}

/// The addresses of a name.
#[derive(Debug, Clone)]
struct Known {
    addresses: Vec<SocketAddr>,
    found_at: Instant,
    /// When they were last asked for, whether that succeeded or not.
    asked_at: Instant,
}

impl<R> Remembering<R> {
    /// Remembers what `resolver` finds.
    pub fn new(resolver: R) -> Self {
        Self { resolver, known: Recent::new(NAMES_MAX) }
    }
}

impl<R: Resolver> Remembering<R> {
    fn resolve_with(
        &self,
        now: impl Fn() -> Instant,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, Error> {
        let authority = uri.authority().map(|authority| authority.as_str()).unwrap_or_default();
        let name = format!("{}://{authority}", uri.scheme_str().unwrap_or_default());
        let packed = |addresses: &[SocketAddr]| {
            let mut packed = self.empty();
            addresses.iter().for_each(|address| packed.push(*address));
            packed
        };
        if let Some(known) = self.known.get(&name)
            && now().saturating_duration_since(known.asked_at) < REMEMBERED_FOR
        {
            return Ok(packed(&known.addresses));
        }
        let ticket = self.known.ticket(&name);
        let found = self.resolver.resolve(uri, config, timeout);
        let asked_at = now();
        match found {
            Ok(found) => {
                let known = Known { addresses: found.to_vec(), found_at: asked_at, asked_at };
                self.known.keep(ticket, &name, known);
                Ok(found)
            }
            // A name server that is away need not take the servers with it, nor the time of
            // every request. Another thread may have had its answer meanwhile.
            Err(error) => {
                let is_trusted = |known: &Known| {
                    asked_at.saturating_duration_since(known.found_at) < TRUSTED_FOR
                };
                let known = self.known.get(&name).filter(is_trusted).ok_or(error)?;
                let addresses = packed(&known.addresses);
                self.known.keep(ticket, &name, Known { asked_at, ..known });
                Ok(addresses)
            }
        }
    }
}

impl<R: Resolver> Resolver for Remembering<R> {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, Error> {
        self.resolve_with(Instant::now, uri, config, timeout)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use super::*;

    /// Finds one more address at each look-up, and fails for one name, or for all.
    #[derive(Debug, Default)]
    struct Counting {
        count: AtomicUsize,
        is_away: AtomicBool,
    }

    impl Resolver for Counting {
        fn resolve(
            &self,
            uri: &Uri,
            _: &Config,
            _: NextTimeout,
        ) -> Result<ResolvedSocketAddrs, Error> {
            let count = self.count.fetch_add(1, Ordering::SeqCst) + 1;
            if uri.host() == Some("absent.example.org") || self.is_away.load(Ordering::SeqCst) {
                return Err(Error::HostNotFound);
            }
            let mut found = self.empty();
            (0..count).for_each(|at| found.push(SocketAddr::from(([127, 0, 0, 1], at as u16))));
            Ok(found)
        }
    }

    /// How many addresses are found at a moment.
    fn look_up(resolver: &Remembering<Counting>, now: Instant, uri: &str) -> Option<usize> {
        let timeout = NextTimeout {
            after: ureq::unversioned::transport::time::Duration::NotHappening,
            reason: ureq::Timeout::Resolve,
            per_read: None,
            per_write: None,
        };
        let agent = ureq::Agent::new_with_defaults();
        let uri = uri.parse().unwrap();
        let found = resolver.resolve_with(|| now, &uri, agent.config(), timeout);
        found.map(|found| found.to_vec().len()).ok()
    }

    #[test]
    fn a_name_is_looked_up_once_in_a_while_and_a_failure_each_time() {
        let resolver = Remembering::new(Counting::default());
        let now = Instant::now();
        let look_up = |uri: &str| look_up(&resolver, now, uri);
        assert_eq!(look_up("http://one.example.org/a"), Some(1));
        assert_eq!(look_up("http://one.example.org/b"), Some(1));
        // Another port, and another scheme with another default port, have other addresses.
        assert_eq!(look_up("http://one.example.org:81/"), Some(2));
        assert_eq!(look_up("https://one.example.org/"), Some(3));
        assert_eq!(look_up("http://absent.example.org/"), None);
        assert_eq!(look_up("http://absent.example.org/"), None);
        assert_eq!(resolver.resolver.count.load(Ordering::SeqCst), 5);
    }

    #[test]
    fn addresses_outlive_a_name_server_that_is_away_for_a_while_and_it_is_seldom_asked() {
        let resolver = Remembering::new(Counting::default());
        let now = Cell::new(Instant::now());
        let look_up = || {
            let found = look_up(&resolver, now.get(), "http://one.example.org/");
            (found, resolver.resolver.count.load(Ordering::SeqCst))
        };
        assert_eq!(look_up(), (Some(1), 1));
        resolver.resolver.is_away.store(true, Ordering::SeqCst);
        now.set(now.get() + REMEMBERED_FOR);
        assert_eq!(look_up(), (Some(1), 2));
        assert_eq!(look_up(), (Some(1), 2), "it was asked a moment ago");
        now.set(now.get() + REMEMBERED_FOR);
        assert_eq!(look_up(), (Some(1), 3));
        now.set(now.get() + TRUSTED_FOR);
        assert_eq!(look_up(), (None, 4));
        resolver.resolver.is_away.store(false, Ordering::SeqCst);
        assert_eq!(look_up(), (Some(5), 5));
    }
}
