//! Freshness and leases on Redis, shared by all replicas.
//!
//! Nothing fails here. A server that is away, slow or refusing is "not known" and "not
//! granted", within [`RedisSettings::timeout`] for whoever notices and at once for the
//! others, while a circuit breaker is open. It remembers nothing between calls, so Redis may
//! forget everything at any time, which costs work and never correctness.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use redis::{Client, Cmd, Connection, FromRedisValue, RedisError, TlsCertificates, cmd};

use crate::artifact::ArtifactKey;
use crate::breaker::Breaker;
use crate::config::Secret;
use crate::coord::{Acquired, Freshness, LeaseToken, Leases, Mark};
use crate::roots::{self, CaFileError};

/// Connections that are kept for the next call; more may be open while they are used.
const IDLE_CONNECTIONS_MAX: usize = 16;
/// Leases that are remembered to be given back.
const UNRELEASED_MAX: usize = 256;
/// What part of the timeout a new connection may take; a network that is in order answers in
/// a fraction of it, and one that lost a packet would not before a second.
const CONNECT_SHARE: u32 = 2;
/// The longest that a mark is kept: Redis refuses times that it can't count to.
const LIFETIME_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Takes the lease for ARGV[2] ms, if nobody has it or ARGV[1] has.
const ACQUIRE_AGAIN: &str = "if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) \
     or redis.call('GET', KEYS[1]) == ARGV[1] then return 'OK' else return false end";
/// Lets the lease end ARGV[2] ms from now if ARGV[1] still holds it.
const RENEW: &str = "if redis.call('GET', KEYS[1]) == ARGV[1] then \
     return redis.call('PEXPIRE', KEYS[1], ARGV[2]) else return 0 end";
/// Removes the lease if ARGV[1] still holds it.
const RELEASE: &str = "if redis.call('GET', KEYS[1]) == ARGV[1] then \
     return redis.call('DEL', KEYS[1]) else return 0 end";

/// Where Redis is and how patient to be with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisSettings {
    /// `redis://[user:password@]host[:port][/database]`, or `rediss://` for TLS (`REDIS_URL`).
    pub url: Secret,
    /// What every key begins with, so that others may use the same database.
    pub key_prefix: String,
    /// For one call with all it takes.
    pub timeout: Duration,
    /// Root certificates for `rediss://` instead of the platform's, a PEM file (`REDIS_CA_FILE`).
    pub ca_file: Option<PathBuf>,
}

impl RedisSettings {
    /// Settings with the defaults: prefix `artifactapi:`, 100 ms.
    pub fn new(url: Secret) -> Self {
        Self {
            url,
            key_prefix: "artifactapi:".to_owned(),
            timeout: Duration::from_millis(100),
            ca_file: None,
        }
    }
}

/// Why Redis can't be used as it was set.
#[derive(Debug, thiserror::Error)]
pub enum RedisSetupError {
    /// The URL is none. It may hold a password, so it is not shown.
    #[error("the URL of Redis is not of the form redis://[user:password@]host[:port][/database]")]
    Url(#[source] RedisError),
    /// The certificates can't be used.
    #[error(transparent)]
    CaFile(#[from] CaFileError),
}

/// Freshness and leases on Redis.
pub struct RedisCoord {
    client: Client,
    key_prefix: String,
    timeout: Duration,
    breaker: Breaker,
    // Nothing else is taken while it is held, and no connection is used under it.
    idle: Mutex<Vec<Connection>>,
    tokens: Tokens,
    // Leases that nobody holds and Redis may not know it of; taken for single steps.
    unreleased: Mutex<Vec<Unreleased>>,
}

/// A lease that was granted unheard, or whose release was: its key, and the token of its holder.
type Unreleased = (String, LeaseToken);

impl std::fmt::Debug for RedisCoord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisCoord")
            .field("key_prefix", &self.key_prefix)
            .field("breaker", &self.breaker)
            .finish_non_exhaustive()
    }
}

impl RedisCoord {
    /// Connects as it is used: a server that is away now is not an error.
    ///
    /// # Errors
    /// [`RedisSetupError`] where the settings can't be used.
    pub fn new(settings: &RedisSettings) -> Result<Self, RedisSetupError> {
        let url = settings.url.reveal();
        let client = match &settings.ca_file {
            None => Client::open(url),
            Some(file) => {
                let root_cert = Some(roots::pem(file)?);
                let certificates = TlsCertificates { client_tls: None, root_cert };
                Client::build_with_tls(url, certificates)
            }
        };
        Ok(Self {
            client: client.map_err(RedisSetupError::Url)?,
            key_prefix: settings.key_prefix.clone(),
            timeout: settings.timeout,
            breaker: Breaker::new("Redis"),
            idle: Mutex::new(Vec::new()),
            tokens: Tokens::new(),
            unreleased: Mutex::default(),
        })
    }

    /// Whether it answers now; asks it, unless it did not answer a moment ago. Where it does, gives
    /// back what could not be given back before. To be asked every few seconds.
    pub fn answers(&self) -> bool {
        let answers = self.call::<String>(|_| cmd("PING")).is_some();
        if answers {
            let late = std::mem::take(&mut *self.unreleased());
            late.into_iter().for_each(|(key, token)| self.give_back(key, token));
        }
        answers
    }

    /// Releases a lease, later where Redis does not say that it has.
    fn give_back(&self, key: String, token: LeaseToken) {
        let released: Option<i64> = self.call(|_| {
            let mut command = cmd("EVAL");
            command.arg(RELEASE).arg(1).arg(&key).arg(&token.0);
            command
        });
        if released.is_none() {
            self.give_back_later(key, token);
        }
    }

    fn give_back_later(&self, key: String, token: LeaseToken) {
        let mut unreleased = self.unreleased();
        // Beyond that they lapse.
        if unreleased.len() < UNRELEASED_MAX {
            unreleased.push((key, token));
        }
    }

    fn unreleased(&self) -> MutexGuard<'_, Vec<Unreleased>> {
        self.unreleased.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a command; `None` if Redis can't be asked. It is made once more on a new
    /// connection where a kept one turns out to be closed, as after a restart of Redis:
    /// `command` is told whether it may have been done already.
    fn call<T: FromRedisValue>(&self, command: impl Fn(Attempt) -> Cmd) -> Option<T> {
        let start = Instant::now();
        self.breaker.admit(start).ok()?;
        let outcome = match self.kept() {
            Some(mut connection) => match command(Attempt::First).query(&mut connection) {
                Ok(answer) => Ok((connection, answer)),
                Err(error) if error.is_connection_dropped() => {
                    self.call_anew(start, &command(Attempt::Again))
                }
                Err(error) => Err(error),
            },
            None => self.call_anew(start, &command(Attempt::First)),
        };
        match outcome {
            Ok((connection, answer)) => {
                self.breaker.succeeded();
                self.keep(connection);
                Some(answer)
            }
            // Whatever it was, the connection is gone: it may still get a late answer.
            Err(error) => {
                self.breaker.failed(Instant::now(), &error);
                None
            }
        }
    }

    fn call_anew<T: FromRedisValue>(
        &self,
        start: Instant,
        command: &Cmd,
    ) -> Result<(Connection, T), RedisError> {
        let (client, timeout) = (self.client.clone(), self.timeout / CONNECT_SHARE);
        let mut connection =
            within(self.timeout, move || client.get_connection_with_timeout(timeout))?;
        // What is left, and never nothing, which would mean "without limit".
        let left = self.timeout.saturating_sub(start.elapsed()).max(self.timeout / 10);
        set_timeouts(&connection, left)?;
        let answer = command.query(&mut connection)?;
        set_timeouts(&connection, self.timeout)?;
        Ok((connection, answer))
    }

    fn kept(&self) -> Option<Connection> {
        self.idle.lock().expect("nothing can panic while it holds the connections").pop()
    }

    fn keep(&self, connection: Connection) {
        let mut idle = self.idle.lock().expect("nothing can panic while it holds the connections");
        if idle.len() < IDLE_CONNECTIONS_MAX {
            idle.push(connection);
        }
    }

    fn mark_key(&self, key: &ArtifactKey, mark: Mark) -> String {
        format!("{}{}:{key}", self.key_prefix, mark.name())
    }

    fn lease_key(&self, key: &ArtifactKey) -> String {
        format!("{}lease:{key}", self.key_prefix)
    }
}

/// Whether a command was sent before, on a connection that broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attempt {
    First,
    Again,
}

/// Looking up a name has no timeout, so connecting runs on a thread of its own: who calls stops
/// waiting in time, and the thread ends by itself. The breaker sees to it that there are few.
fn within<T: Send + 'static>(
    timeout: Duration,
    work: impl FnOnce() -> Result<T, RedisError> + Send + 'static,
) -> Result<T, RedisError> {
    let (done, ended) = crossbeam_channel::bounded(1);
    std::thread::Builder::new().name("redis-connect".to_owned()).spawn(move || {
        // Nobody listens any more where it came too late.
        let _ = done.send(work());
    })?;
    let late = || io::Error::new(io::ErrorKind::TimedOut, "no connection in time");
    ended.recv_timeout(timeout).unwrap_or_else(|_| Err(late().into()))
}

fn set_timeouts(connection: &Connection, timeout: Duration) -> Result<(), RedisError> {
    connection.set_read_timeout(Some(timeout))?;
    connection.set_write_timeout(Some(timeout))
}

/// At least a millisecond: 0 is refused.
fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.min(LIFETIME_MAX).as_millis()).unwrap_or(u64::MAX).max(1)
}

impl Freshness for RedisCoord {
    fn remaining(&self, key: &ArtifactKey, mark: Mark) -> Option<Duration> {
        let key = self.mark_key(key, mark);
        let left: i64 = self.call(|_| {
            let mut command = cmd("PTTL");
            command.arg(&key);
            command
        })?;
        // Negative: there is no such key, or one without an end, which we never write.
        u64::try_from(left).ok().filter(|left| *left > 0).map(Duration::from_millis)
    }

    fn set(&self, key: &ArtifactKey, mark: Mark, lifetime: Duration) {
        let key = self.mark_key(key, mark);
        self.call::<()>(|_| {
            let mut command = cmd("SET");
            command.arg(&key).arg(1).arg("PX").arg(milliseconds(lifetime));
            command
        });
    }

    fn clear(&self, key: &ArtifactKey, mark: Mark) {
        let key = self.mark_key(key, mark);
        self.call::<()>(|_| {
            let mut command = cmd("DEL");
            command.arg(&key);
            command
        });
    }
}

impl Leases for RedisCoord {
    fn are_shared(&self) -> bool {
        true
    }

    fn try_acquire(&self, key: &ArtifactKey, ttl: Duration) -> Acquired {
        let key = self.lease_key(key);
        let token = self.tokens.next();
        let is_asked = !self.breaker.is_open();
        let before: Option<Option<String>> = self.call(|attempt| match attempt {
            Attempt::First => {
                let mut command = cmd("SET");
                command.arg(&key).arg(&token).arg("NX").arg("PX").arg(milliseconds(ttl));
                command
            }
            // It may be ours already.
            Attempt::Again => {
                let mut command = cmd("EVAL");
                command.arg(ACQUIRE_AGAIN).arg(1).arg(&key).arg(&token).arg(milliseconds(ttl));
                command
            }
        });
        match before {
            Some(Some(_ok)) => Acquired::Granted(LeaseToken(token)),
            Some(None) => Acquired::Held,
            None => {
                if is_asked {
                    // It may have been granted unheard, and would keep everybody out until it lapses.
                    self.give_back_later(key, LeaseToken(token));
                }
                Acquired::Unknown
            }
        }
    }

    fn renew(&self, key: &ArtifactKey, token: &LeaseToken, ttl: Duration) -> bool {
        let key = self.lease_key(key);
        self.call::<i64>(|_| {
            let mut command = cmd("EVAL");
            command.arg(RENEW).arg(1).arg(&key).arg(&token.0).arg(milliseconds(ttl));
            command
        })
        .is_some_and(|renewed| renewed == 1)
    }

    fn release(&self, key: &ArtifactKey, token: &LeaseToken) {
        self.give_back(self.lease_key(key), token.clone());
    }
}

/// Names that no other holder of a lease has, in this process or another.
#[derive(Debug)]
struct Tokens {
    process: String,
    next: AtomicU64,
}

impl Tokens {
    fn new() -> Self {
        // Each of them is keyed by the system's randomness.
        let random = || RandomState::new().hash_one(std::process::id());
        Self { process: format!("{:016x}{:016x}", random(), random()), next: AtomicU64::new(0) }
    }

    fn next(&self) -> String {
        format!("{}-{:x}", self.process, self.next.fetch_add(1, Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::artifact::{ArtifactPath, Digest};
    use crate::test_servers::{Private, eventually, shared, unique_name};

    const LONG: Duration = Duration::from_secs(600);
    const FRESH: Mark = Mark::Fresh(Digest([1; 32]));

    fn key(path: &str) -> ArtifactKey {
        let path = ArtifactPath::from_canonical(path).unwrap();
        ArtifactKey { remote: "r".parse().unwrap(), path }
    }

    fn settings(url: &str) -> RedisSettings {
        let mut settings = RedisSettings::new(Secret::new(url));
        settings.key_prefix = format!("{}:", unique_name("test"));
        // How busy the machine is, is not what is tested.
        settings.timeout = Duration::from_secs(1);
        settings
    }

    fn coord(url: &str) -> RedisCoord {
        RedisCoord::new(&settings(url)).unwrap()
    }

    fn on_shared() -> RedisCoord {
        coord(&shared("ARTIFACTAPI_TEST_REDIS"))
    }

    mod marks {
        crate::coord::conformance::freshness_conformance!(|| {
            (super::on_shared(), std::thread::sleep, ())
        });
    }

    mod leases {
        crate::coord::conformance::leases_conformance!(|| {
            (super::on_shared(), std::thread::sleep, ())
        });
    }

    fn granted(acquired: Acquired) -> LeaseToken {
        match acquired {
            Acquired::Granted(token) => token,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn marks_last_as_long_as_they_were_set_for() {
        let coord = on_shared();
        let key = key("é/x?y=%2f z");
        coord.set(&key, FRESH, LONG);
        let left = coord.remaining(&key, FRESH).unwrap();
        assert!(left <= LONG && left > LONG / 2, "{left:?}");
        assert_eq!(coord.remaining(&key, Mark::Absent), None);
        coord.clear(&key, FRESH);
        assert_eq!(coord.remaining(&key, FRESH), None);
        coord.set(&key, Mark::Absent, Duration::from_millis(30));
        eventually("the mark ends", || coord.remaining(&key, Mark::Absent).is_none());
        coord.set(&key, FRESH, Duration::MAX);
        coord.set(&key, Mark::Absent, Duration::from_nanos(1));
        assert!(coord.remaining(&key, FRESH).is_some());
        assert!(!coord.breaker.is_open());
    }

    #[test]
    fn prefixes_keep_two_installations_apart() {
        let (one, other) = (on_shared(), on_shared());
        one.set(&key("a"), FRESH, LONG);
        assert_eq!(other.remaining(&key("a"), FRESH), None);
    }

    #[test]
    fn of_replicas_that_race_for_a_lease_one_gets_it() {
        let coord = on_shared();
        let acquired: Vec<Acquired> = thread::scope(|scope| {
            let racing: Vec<_> =
                (0..16).map(|_| scope.spawn(|| coord.try_acquire(&key("a"), LONG))).collect();
            racing.into_iter().map(|replica| replica.join().unwrap()).collect()
        });
        let held = acquired.iter().filter(|acquired| **acquired == Acquired::Held).count();
        assert_eq!(held, 15, "{acquired:?}");
    }

    #[test]
    fn a_lease_is_renewed_and_released_by_its_holder_only() {
        let coord = on_shared();
        let token = granted(coord.try_acquire(&key("a"), LONG));
        let forged = LeaseToken("forged".to_owned());
        assert!(!coord.renew(&key("a"), &forged, LONG));
        coord.release(&key("a"), &forged);
        assert_eq!(coord.try_acquire(&key("a"), LONG), Acquired::Held);
        assert!(coord.renew(&key("a"), &token, LONG));
        coord.release(&key("a"), &token);
        assert!(!coord.renew(&key("a"), &token, LONG));
        assert_ne!(granted(coord.try_acquire(&key("a"), LONG)), token);
    }

    #[test]
    fn a_lease_that_was_granted_or_released_unheard_is_given_back_soon() {
        let coord = on_shared();
        let token = granted(coord.try_acquire(&key("a"), LONG));
        let forged = LeaseToken("another's".to_owned());
        coord.give_back_later(coord.lease_key(&key("a")), forged);
        assert!(coord.answers());
        assert_eq!(coord.try_acquire(&key("a"), LONG), Acquired::Held);
        coord.give_back_later(coord.lease_key(&key("a")), token);
        assert!(coord.answers());
        granted(coord.try_acquire(&key("a"), LONG));
        assert!(coord.unreleased().is_empty());
    }

    #[test]
    fn a_lease_that_is_not_renewed_ends_and_its_holder_learns_of_it() {
        let coord = on_shared();
        let lost = granted(coord.try_acquire(&key("a"), Duration::from_millis(30)));
        let mut next = Acquired::Held;
        eventually("the lease ends", || {
            next = coord.try_acquire(&key("a"), LONG);
            next != Acquired::Held
        });
        assert!(!coord.renew(&key("a"), &lost, LONG));
        coord.release(&key("a"), &lost);
        assert!(coord.renew(&key("a"), &granted(next), LONG));
    }

    #[test]
    fn acquiring_again_after_a_break_finds_the_lease_that_was_granted_unheard() {
        let coord = on_shared();
        let again = |token: &str| {
            let mut connection = coord.client.get_connection_with_timeout(LONG).unwrap();
            let mut command = cmd("EVAL");
            command.arg(ACQUIRE_AGAIN).arg(1).arg(coord.lease_key(&key("a")));
            command.arg(token).arg(10_000).query::<Option<String>>(&mut connection).unwrap()
        };
        assert!(again("ours").is_some());
        assert!(again("ours").is_some());
        assert_eq!(again("theirs"), None);
    }

    #[test]
    fn a_restart_is_not_noticed_by_callers_that_come_after_it() {
        let server = Private::start("redis");
        let coord = coord(server.variable("ARTIFACTAPI_TEST_REDIS"));
        assert!(coord.answers());
        server.tell("kill", "redis");
        server.tell("start", "redis");
        granted(coord.try_acquire(&key("a"), LONG));
        coord.set(&key("a"), FRESH, LONG);
        assert!(coord.remaining(&key("a"), FRESH).is_some());
        assert!(!coord.breaker.is_open());
    }

    #[test]
    fn while_redis_is_away_or_silent_nothing_is_known_and_hardly_anybody_asks() {
        let server = Private::start("redis");
        let coord = coord(server.variable("ARTIFACTAPI_TEST_REDIS"));
        for (leave, come_back) in [("kill", "start"), ("pause", "resume")] {
            let key = key("a");
            coord.set(&key, FRESH, LONG);
            server.tell(leave, "redis");
            let begun = Instant::now();
            for _ in 0..100 {
                assert_eq!(coord.remaining(&key, FRESH), None);
                assert_eq!(coord.try_acquire(&key, LONG), Acquired::Unknown);
                assert!(!coord.renew(&key, &LeaseToken("t".to_owned()), LONG));
                coord.release(&key, &LeaseToken("t".to_owned()));
                coord.set(&key, FRESH, LONG);
            }
            assert!(coord.breaker.is_open());
            // Who asks one that is silent waits for as long as is allowed.
            let waited = begun.elapsed();
            assert!(waited < 50 * coord.timeout, "for 500 calls: {waited:?}");
            server.tell(come_back, "redis");
            eventually("Redis is asked again", || coord.answers());
        }
    }

    #[test]
    fn a_connection_that_never_comes_is_waited_for_no_longer_than_allowed() {
        assert_eq!(within(Duration::from_secs(20), || Ok(1)).unwrap(), 1);
        let (hang, hung) = crossbeam_channel::bounded::<()>(0);
        let late = within(Duration::from_millis(10), move || {
            assert!(hung.recv().is_err());
            Ok(())
        });
        assert!(late.unwrap_err().is_timeout());
        drop(hang);
    }

    #[test]
    fn tls_is_spoken_with_a_certificate_of_the_named_authority_only() {
        let url = shared("ARTIFACTAPI_TEST_REDIS_TLS");
        let mut settings = settings(&url);
        settings.ca_file = Some(shared("ARTIFACTAPI_TEST_REDIS_CA").into());
        assert!(RedisCoord::new(&settings).unwrap().answers());
        settings.ca_file = None;
        assert!(!RedisCoord::new(&settings).unwrap().answers());
    }

    #[test]
    fn settings_that_cannot_be_used_are_refused_without_showing_the_password() {
        let error =
            RedisCoord::new(&RedisSettings::new(Secret::new("http://:hush@h/"))).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hush"), "{error:?}");
        let mut settings = RedisSettings::new(Secret::new("rediss://localhost"));
        assert_eq!(settings.timeout, Duration::from_millis(100));
        settings.ca_file = Some("/nowhere/ca.pem".into());
        let error = RedisCoord::new(&settings).unwrap_err();
        assert!(error.to_string().contains("/nowhere/ca.pem"), "{error}");
        assert!(!format!("{settings:?}").contains("localhost"));
    }
}
