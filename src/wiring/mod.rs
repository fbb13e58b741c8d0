//! The one place where concrete backends are named and put together.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crate::artifact::RemoteName;
use crate::batch::Batches;
use crate::cache::space::SpacePlan;
use crate::cache::sweep::Swept;
use crate::cache::{Cache, CacheBounds, Target};
use crate::chain::chain;
use crate::clock::Clock;
use crate::config::env::{Engines, HttpFront, Settings};
use crate::config::file::{self, Around};
use crate::config::problem::{ConfigErrors, Problem};
use crate::config::tokens::{Token, Tokens};
use crate::config::{Kind, Remotes};
use crate::front::Front;
use crate::front::access::{Access, Reads};
use crate::front::batch::BatchApi;
use crate::front::catalog::{Catalog, Catalogs};
use crate::front::pools::Pools;
use crate::front::wire::guarded::{
    self, BindError, Guarded, GuardedBounds, ListenAddr, ListenAddrError, ProxyError,
    TrustedProxies,
};
use crate::front::wire::tiny::TinyListener;
use crate::front::wire::{Bounds, Listener, Service};
use crate::index::IndexError;
use crate::ops::access_log::Refusals;
use crate::ops::health::Health;
use crate::ops::metrics::Metrics;
use crate::seats::{Seats, SizedSeats};
use crate::upstream::{Limits, ProxyEnv, SetupError, connect, connect_releases};

pub mod doors;
pub mod ports;
pub mod unused;

use ports::{Backends, OpenedPorts, PortsError};

/// The configuration files, as metrics call them.
const REMOTES: &str = "remotes";
const TOKENS: &str = "tokens";
/// How often uses are written down.
const USES_INTERVAL: Duration = Duration::from_secs(10);
/// How often what was published is synced to disk, so that a crash of the machine puts little
/// in doubt.
const SYNC_INTERVAL: Duration = Duration::from_secs(5);
/// How often a stop looks whether every fetch has landed.
const LANDING_POLL: Duration = Duration::from_millis(10);
/// How often upkeep looks whether something is due.
const UPKEEP_TICK: Duration = Duration::from_secs(1);

/// Why the program can't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// More is to be kept free than there is.
    #[error(
        "CACHE_MIN_FREE_BYTES is {min}, and the file system of DATA_DIR has {size} bytes in all: nothing could be stored"
    )]
    NeverFree {
        /// What is to be kept free, in bytes.
        min: u64,
        /// The size of the file system, in bytes.
        size: u64,
    },
    /// remotes.yaml or the environment can't be used.
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    /// A local repository that has files was given an upstream.
    #[error(
        "the local repository {0:?} has files, which would be evicted as a remote's: give the remote another name, or delete them first (DELETE /artifacts/{0}?all=true)"
    )]
    HasUploads(String),
    /// The index does not tell what a local repository has that was given an upstream.
    #[error("cannot tell whether local repositories that become remotes have files")]
    Usage(#[source] IndexError),
    /// An upstream can't be set up as configured.
    #[error("remote {remote:?} cannot be set up")]
    Upstream {
        /// Which remote.
        remote: String,
        /// Why.
        source: SetupError,
    },
    /// The proxies of the environment can't be used.
    #[error("the proxy variables of the environment cannot be used")]
    Proxy(#[source] SetupError),
    /// A backend can't be opened.
    #[error(transparent)]
    Ports(#[from] PortsError),
    /// `LISTEN_ADDR` names something that is no address.
    #[error("LISTEN_ADDR cannot be understood")]
    ListenAddr(#[from] ListenAddrError),
    /// `TRUSTED_PROXIES` names something that is no proxy.
    #[error("TRUSTED_PROXIES cannot be understood")]
    TrustedProxies(#[from] ProxyError),
    /// The address can't be listened on.
    #[error("cannot listen on LISTEN_ADDR")]
    Listen(#[from] BindError),
    /// The address can't be listened on with tiny_http.
    #[error("cannot listen on {address} (LISTEN_ADDR)")]
    ListenTiny {
        /// Which address.
        address: String,
        /// Why.
        source: std::io::Error,
    },
    /// tiny_http listens on one address and port only.
    #[error("HTTP_FRONT=tiny_http takes one address and port as LISTEN_ADDR, not {0:?}")]
    OneAddress(String),
    /// No thread can be started.
    #[error("cannot start a thread")]
    Thread(#[source] std::io::Error),
}

/// The program, put together and ready to run.
#[derive(Debug)]
pub struct App {
    settings: Settings,
    listener: Arc<dyn Listener>,
    addresses: String,
    pools: Arc<Pools>,
    cache: Arc<Cache>,
    batches: Arc<Batches>,
    catalogs: Arc<Catalogs>,
    metrics: Arc<Metrics>,
    health: Health,
    access: Arc<Access>,
    opened: OpenedPorts,
    proxies: ProxyEnv,
    clock: Clock,
    // remotes.yaml and the tokens as they were before they were read, so that no change is overlooked.
    watched: Watched,
    tokens_watched: Option<Watched>,
}

impl App {
    /// Puts the program together: configuration, backends, pools and listener.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left running then.
    pub fn start(mut settings: Settings, engines: &Engines) -> Result<Self, StartError> {
        let clock = Clock::system();
        if engines.minio_endpoint.is_some() && settings.free_bytes_min.take().is_some() {
            tracing::warn!("CACHE_MIN_FREE_BYTES has no effect: the files are in S3");
        }
        let addresses = ListenAddr::parse_list(&settings.listen_addr)?;
        let trusted_proxies = settings.trusted_proxies.parse()?;
        let proxies = ProxyEnv::from_vars(variable).map_err(StartError::Proxy)?;
        let watched = Watched::of(&settings.config_path);
        let remotes = load_remotes(&settings)?;
        let catalog = build_catalog(remotes, &Catalog::default(), &settings, &proxies, &clock)?;
        let catalogs = Arc::new(Catalogs::new(catalog));
        let tokens_watched = tokens_of(&settings);
        let reads = if settings.anonymous_read { Reads::Anonymous } else { Reads::WithToken };
        let access = Arc::new(Access::new(reads, load_tokens(&settings, &catalogs.current())?));

        let opened = ports::open(&settings, engines, &clock)?;
        if let (Some(min), Some(disk)) = (settings.free_bytes_min, opened.ports.staging.disk())
            && min > disk.size_bytes
        {
            return Err(StartError::NeverFree { min, size: disk.size_bytes });
        }
        let cache = Arc::new(Cache::new(opened.ports.clone(), &cache_bounds(&settings)));
        cache.space().govern(space_plan(&settings, &catalogs.current()));
        let health = Health::watch(opened.probes()).map_err(StartError::Thread)?;
        let batches = Arc::new(Batches::start(Arc::clone(&cache)));
        let metrics = Arc::new(Metrics::new(cache.counters(), &opened.tiers));
        for file in [REMOTES, TOKENS] {
            metrics.set_config_refused(file, false);
        }
        let pools = Arc::new(Pools::new(settings.workers, settings.queue_max));
        let reports = SizedSeats::beside_workers();
        let front = Front {
            cache: Arc::clone(&cache),
            catalogs: Arc::clone(&catalogs),
            batches: BatchApi::new(Arc::clone(&batches), settings.workers, reports.clone()),
            far_ranges: Seats::of(settings.workers),
            reports,
            health: health.clone(),
            metrics: Arc::clone(&metrics),
            settings: serde_json::json!([settings.to_json(), engines.to_json()]),
            pools: Arc::clone(&pools),
            listener: OnceLock::new(),
            refusals: Refusals::default(),
            access: Arc::clone(&access),
            body_bytes_max: settings.body_bytes_max,
        };
        let front = Arc::new(front);
        let (service, queue) = (Arc::clone(&front), Arc::clone(&pools));
        let (listener, addresses) = listen(addresses, trusted_proxies, &settings, service, queue)?;
        // Weak, because the listener has the front.
        let watched_by_front = front.listener.set(Arc::downgrade(&listener));
        debug_assert!(watched_by_front.is_ok(), "nobody else sets it");
        Ok(Self {
            settings,
            listener,
            addresses,
            pools,
            cache,
            batches,
            catalogs,
            metrics,
            health,
            access,
            opened,
            proxies,
            clock,
            watched,
            tokens_watched,
        })
    }

    /// The addresses that clients connect to, with the ports that were chosen.
    pub fn addresses(&self) -> &str {
        &self.addresses
    }

    /// Which backends are in use.
    pub fn backends(&self) -> Backends {
        self.opened.backends()
    }

    /// Accepts and serves until [`App::stop`].
    ///
    /// # Errors
    /// What made accepting impossible for good.
    pub fn serve(&self) -> std::io::Result<()> {
        self.listener.run()
    }

    /// Stops accepting and cancels batches; requests in flight go on.
    pub fn stop(&self) {
        // First, so that whoever still asks learns of it.
        self.health.stop();
        self.listener.stop();
        self.batches.stop();
    }

    /// Waits for the requests and fetches in flight, then writes down what must outlive the process. Says
    /// whether every request ended within the grace period.
    pub fn finish(&self) -> bool {
        let deadline = Instant::now() + self.settings.shutdown_grace;
        let mut finished = self.pools.drain(self.settings.shutdown_grace);
        // The clients have their bytes; what they fetched is worth keeping.
        while finished && self.cache.flight_count() > 0 {
            finished = Instant::now() < deadline;
            std::thread::sleep(LANDING_POLL);
        }
        self.cache.space().close();
        self.cache.record_uses();
        self.opened.close();
        finished
    }

    /// Reads remotes.yaml anew and puts it in force; a file that can't be used changes nothing.
    pub fn reload(&self) {
        let old = self.catalogs.current();
        let catalog =
            load_remotes(&self.settings).map_err(StartError::Config).and_then(|remotes| {
                self.keep_uploads(&old.remotes, &remotes)?;
                build_catalog(remotes, &old, &self.settings, &self.proxies, &self.clock)
            });
        match catalog {
            Ok(catalog) => {
                let remotes = catalog.targets.len();
                self.cache.space().govern(space_plan(&self.settings, &catalog));
                self.catalogs.replace(catalog);
                self.metrics.set_config_refused(REMOTES, false);
                tracing::info!(remotes, "the configuration was reloaded");
            }
            Err(error) => {
                self.metrics.set_config_refused(REMOTES, true);
                tracing::error!(
                    error = chain(&error),
                    "the new configuration cannot be used; the old one stays in force"
                );
            }
        }
    }

    /// Refuses to make a remote of a local repository that has files: they would be evicted, and
    /// served as if they were upstream's.
    fn keep_uploads(&self, old: &Remotes, new: &Remotes) -> Result<(), StartError> {
        let is_local = |remotes: &Remotes, name: &RemoteName| {
            remotes.by_name.get(name).map(|remote| remote.is_local())
        };
        let becomes_remote = |name: &&RemoteName| {
            is_local(old, name) == Some(true) && is_local(new, name) == Some(false)
        };
        let mut become_remotes = new.by_name.keys().filter(becomes_remote).peekable();
        if become_remotes.peek().is_none() {
            return Ok(());
        }
        let stored = self.cache.ports().index.usage().map_err(StartError::Usage)?;
        match become_remotes.find(|name| stored.contains_key(name)) {
            Some(name) => Err(StartError::HasUploads(name.to_string())),
            None => Ok(()),
        }
    }

    /// Reads the tokens anew and puts them in force; a file that can't be used changes nothing.
    pub fn reload_tokens(&self) {
        match load_tokens(&self.settings, &self.catalogs.current()) {
            Ok(tokens) => {
                self.access.replace(tokens);
                self.metrics.set_config_refused(TOKENS, false);
                if self.settings.tokens_file.is_some() {
                    tracing::info!("the tokens were reloaded");
                }
            }
            Err(error) => {
                self.metrics.set_config_refused(TOKENS, true);
                tracing::error!(
                    error = chain(&error),
                    "the new tokens cannot be used; the old ones stay in force"
                );
            }
        }
    }

    /// Does what is due from time to time, for as long as the program runs: watches
    /// remotes.yaml and the tokens, records uses and syncs the data folder.
    pub fn upkeep(&self) -> ! {
        let started = Instant::now();
        let mut watched = self.watched;
        let mut tokens = self.tokens_watched;
        let due = |every: Duration| (every, started);
        let (mut uses, mut sync) = (due(USES_INTERVAL), due(SYNC_INTERVAL));
        let mut poll = due(self.settings.config_poll);
        loop {
            std::thread::sleep(UPKEEP_TICK);
            if !self.settings.config_poll.is_zero() && is_due(&mut poll) {
                let seen = Watched::of(&self.settings.config_path);
                if seen != watched {
                    watched = seen;
                    self.reload();
                }
                let seen = tokens_of(&self.settings);
                if seen != tokens {
                    tokens = seen;
                    self.reload_tokens();
                }
            }
            if is_due(&mut uses) {
                self.cache.record_uses();
            }
            if is_due(&mut sync) {
                self.opened.sync();
            }
        }
    }

    /// Sweeps orphans from time to time, for as long as the program runs: on a thread of its
    /// own, because it walks over everything that is stored.
    pub fn sweep(&self) -> ! {
        // How many it left the last time: the same ones need no line in the log every hour.
        let mut left_before = 0;
        loop {
            std::thread::sleep(self.settings.sweep_interval);
            let swept = match self.cache.sweep_orphans(self.settings.orphan_age) {
                Ok(swept) => swept,
                Err(error) => {
                    tracing::warn!(error, "a sweep broke off");
                    continue;
                }
            };
            let Swept { blobs, rows, left } = swept;
            if blobs + rows == 0 {
                tracing::debug!("a sweep found nothing to remove");
            } else {
                tracing::info!(blobs, rows, "removed blobs without a row and rows without a blob");
            }
            if left > left_before {
                tracing::warn!(
                    blobs = left,
                    "blobs without a row stay, because no upstream is known to have them: uploads that were broken off by a crash, or files of a remote that is missing in remotes.yaml. `artifactapi reindex` makes rows of those that say what they are, and what nobody wants can be removed by hand"
                );
            }
            left_before = left;
        }
    }
}

fn is_due((every, last): &mut (Duration, Instant)) -> bool {
    let due = last.elapsed() >= *every;
    if due {
        *last = Instant::now();
    }
    due
}

/// What tells that a file was changed; a file that is gone for a moment changes too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Watched(Option<(std::time::SystemTime, u64, u64)>);

impl Watched {
    fn of(path: &std::path::Path) -> Self {
        use std::os::unix::fs::MetadataExt;
        let seen = std::fs::metadata(path).ok();
        Self(seen.and_then(|seen| Some((seen.modified().ok()?, seen.len(), seen.ino()))))
    }
}

/// A variable of the environment.
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Judges a file without using it, for `artifactapi check`.
pub fn check(path: &std::path::Path, regex_size_max: usize) -> crate::config::problem::Report {
    file::check(path, &Around { regex_size_max, env: &variable })
}

fn tokens_of(settings: &Settings) -> Option<Watched> {
    settings.tokens_file.as_deref().map(Watched::of)
}

fn load_tokens(settings: &Settings, catalog: &Catalog) -> Result<Tokens, ConfigErrors> {
    let tokens = settings.tokens_file.as_deref().map(Tokens::load).transpose()?;
    let tokens = tokens.unwrap_or_default();
    for (token, remote) in tokens.restrictions() {
        if !catalog.remotes.by_name.contains_key(remote) {
            tracing::warn!(token, %remote, "a token is restricted to a remote that is not in remotes.yaml: is it mistyped in TOKENS_FILE?");
        }
    }
    let tokens = match &settings.admin_token {
        Some(secret) => tokens.with(Token::admin(secret)?),
        None => tokens,
    };
    if tokens.is_empty() && !settings.anonymous_read {
        tracing::warn!(
            "nobody can read: ANONYMOUS_READ is false and there is no token in TOKENS_FILE or ADMIN_TOKEN"
        );
    }
    Ok(tokens)
}

/// The remotes of remotes.yaml that have an upstream, which has what they lose.
///
/// # Errors
/// What is wrong in remotes.yaml.
pub fn fetchable(settings: &Settings) -> Result<BTreeSet<RemoteName>, ConfigErrors> {
    let remotes = load_remotes(settings)?.by_name;
    let fetchable = remotes.into_iter().filter(|(_, remote)| !remote.is_local());
    Ok(fetchable.map(|(name, _)| name).collect())
}

/// Refuses a name that no remote of remotes.yaml has: for a command that found nothing of it.
///
/// # Errors
/// [`NoRemoteError`].
pub fn expect_remote(settings: &Settings, name: &RemoteName) -> Result<(), NoRemoteError> {
    let remotes = load_remotes(settings)?;
    if remotes.by_name.contains_key(name) {
        return Ok(());
    }
    let file = settings.config_path.display().to_string();
    Err(NoRemoteError::Unknown { name: name.clone(), file })
}

/// Why a remote that a command names is none.
#[derive(Debug, thiserror::Error)]
pub enum NoRemoteError {
    /// remotes.yaml can't be used, so nobody knows.
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    /// It is in remotes.yaml under no such name.
    #[error("no remote {name:?} is in {file}, and nothing is stored of one: is it mistyped?", name = name.as_str())]
    Unknown {
        /// The name.
        name: RemoteName,
        /// The file that was looked into.
        file: String,
    },
}

fn load_remotes(settings: &Settings) -> Result<Remotes, ConfigErrors> {
    let around = Around { regex_size_max: settings.regex_size_max, env: &variable };
    let (remotes, warnings) = file::load(&settings.config_path, &around)?;
    for warning in &warnings {
        warn(warning);
    }
    Ok(if settings.offline { remotes.offline() } else { remotes })
}

fn warn(warning: &Problem) {
    tracing::warn!(target: "config", "{warning}");
}

/// Makes targets of remotes. What did not change keeps its upstream, with its connections and
/// what it knows of failures.
fn build_catalog(
    remotes: Remotes,
    old: &Catalog,
    settings: &Settings,
    proxies: &ProxyEnv,
    clock: &Clock,
) -> Result<Catalog, StartError> {
    let limits =
        Limits { redirects_max: settings.redirects_max, retries_max: settings.retries_max };
    let mut targets = std::collections::BTreeMap::new();
    let mut releases = std::collections::BTreeMap::new();
    for (name, remote) in &remotes.by_name {
        let upstream = match &remote.kind {
            Kind::Local => None,
            Kind::Remote(origin) if origin.offline => None,
            Kind::Remote(origin) => {
                let kept = old.targets.get(name.as_str()).filter(|target| {
                    let was = &target.remote;
                    was.format.name() == remote.format.name()
                        && matches!(&was.kind, Kind::Remote(was) if was == origin)
                });
                let failed = |source| StartError::Upstream { remote: name.to_string(), source };
                let (upstream, lists_releases) = match kept {
                    Some(target) => {
                        (target.upstream.clone(), old.releases.get(name.as_str()).cloned())
                    }
                    None => (
                        Some(
                            connect(origin, remote.format, &limits, proxies, clock)
                                .map_err(failed)?,
                        ),
                        connect_releases(origin, remote.format, &limits, proxies, clock)
                            .map_err(failed)?,
                    ),
                };
                releases.extend(lists_releases.map(|upstream| (name.to_string(), upstream)));
                upstream
            }
        };
        let target = Target { remote: Arc::clone(remote), upstream };
        targets.insert(name.to_string(), Arc::new(target));
    }
    Ok(Catalog { remotes: Arc::new(remotes), targets, releases })
}

fn cache_bounds(settings: &Settings) -> CacheBounds {
    CacheBounds {
        fetch_threads: settings.fetch_threads,
        fetch_queue_max: settings.fetch_queue_max,
        lease_ttl: settings.lease_ttl,
    }
}

fn space_plan(settings: &Settings, catalog: &Catalog) -> SpacePlan {
    SpacePlan {
        bytes_max: settings.cache_bytes_max,
        free_bytes_min: settings.free_bytes_min,
        remotes: Arc::clone(&catalog.remotes),
    }
}

/// Opens the listener of `HTTP_FRONT`, and says where it listens.
fn listen(
    addresses: Vec<ListenAddr>,
    trusted_proxies: TrustedProxies,
    settings: &Settings,
    service: Arc<dyn Service>,
    pools: Arc<Pools>,
) -> Result<(Arc<dyn Listener>, String), StartError> {
    match settings.http_front {
        HttpFront::Guarded => {
            let unix = addresses.iter().filter(|it| matches!(it, ListenAddr::Unix(_)));
            let unix: Vec<_> = unix.map(ListenAddr::to_string).collect();
            let settings = guarded::Settings {
                addresses,
                bounds: front_bounds(settings),
                guarded: guarded_bounds(settings),
                trusted_proxies,
            };
            let listener = Guarded::bind(settings, pools, service)?;
            let chosen = listener.addresses().iter().map(SocketAddr::to_string);
            let named: Vec<_> = chosen.chain(unix).collect();
            Ok((Arc::new(listener), named.join(", ")))
        }
        HttpFront::TinyHttp => {
            let [ListenAddr::Tcp(address)] = addresses[..] else {
                return Err(StartError::OneAddress(settings.listen_addr.clone()));
            };
            let failed = |source| StartError::ListenTiny { address: address.to_string(), source };
            let bounds = front_bounds(settings);
            let listener = TinyListener::bind(address, service, pools, bounds).map_err(failed)?;
            let chosen = listener.address().map_err(failed)?.to_string();
            Ok((Arc::new(listener), chosen))
        }
    }
}

fn guarded_bounds(settings: &Settings) -> GuardedBounds {
    GuardedBounds {
        connections_max: settings.connections_max,
        connections_reserved: settings.connections_reserved,
        connections_per_address_max: settings.connections_per_address_max,
        head_timeout: settings.head_timeout,
        body_idle_timeout: settings.body_idle_timeout,
        rate_min_bytes_per_second: settings.rate_min,
        rate_window: settings.rate_window,
        requests_per_connection_max: settings.requests_per_connection_max,
        ..GuardedBounds::default()
    }
}

fn front_bounds(settings: &Settings) -> Bounds {
    Bounds {
        workers: settings.workers,
        queue_max: settings.queue_max,
        head_bytes_max: settings.head_bytes_max,
        url_bytes_max: settings.url_bytes_max,
        header_count_max: settings.header_count_max,
        body_bytes_max: settings.body_bytes_max,
        idle_timeout: settings.idle_timeout,
        write_timeout: settings.write_timeout,
        shutdown_grace: settings.shutdown_grace,
    }
}
