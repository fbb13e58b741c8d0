//! The one place where concrete backends are named and put together.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::artifact::BlobKey;
use crate::blob::BlobStore;
use crate::blob::disk::{DiskBlobs, OpenDiskError, sync_folder};
use crate::cache::{Cache, CacheBounds, Ports, Target, chain};
use crate::clock::Clock;
use crate::config::env::Settings;
use crate::config::file::{self, Around};
use crate::config::problem::{ConfigErrors, Problem};
use crate::config::{Kind, Remotes};
use crate::coord::local::{LocalFreshness, LocalLeases};
use crate::front::Front;
use crate::front::catalog::{Catalog, Catalogs};
use crate::front::pools::Pools;
use crate::front::wire::tiny::TinyListener;
use crate::front::wire::{Bounds, Listener};
use crate::index::ArtifactIndex;
use crate::index::embedded::{
    DataDirLock, EmbeddedIndex, LockError, OpenIndexError, lock_data_dir,
};
use crate::ops::health::{Health, Probe};
use crate::ops::metrics::Metrics;
use crate::staging::Staging;
use crate::upstream::{Limits, ProxyEnv, SetupError, connect};

/// How often uses are written down.
const USES_INTERVAL: Duration = Duration::from_secs(10);
/// How often what was published is synced to disk, so that a crash of the machine puts little
/// in doubt.
const SYNC_INTERVAL: Duration = Duration::from_secs(5);
/// How often blobs without a row are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(3600);
/// How often a stop looks whether every fetch has landed.
const LANDING_POLL: Duration = Duration::from_millis(10);
/// How often upkeep looks whether something is due.
const UPKEEP_TICK: Duration = Duration::from_secs(1);

/// Why the program can't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// remotes.yaml or the environment can't be used.
    #[error(transparent)]
    Config(#[from] ConfigErrors),
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
    /// The data folder can't be used.
    #[error("cannot use the data folder {folder} (DATA_DIR)")]
    DataDir {
        /// Which folder.
        folder: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Another process uses the data folder.
    #[error(transparent)]
    Locked(#[from] LockError),
    /// The store of blobs can't be opened.
    #[error(transparent)]
    Blobs(#[from] OpenDiskError),
    /// The index can't be opened.
    #[error(transparent)]
    Index(#[from] OpenIndexError),
    /// The address can't be listened on.
    #[error("cannot listen on {address} (LISTEN_ADDR)")]
    Listen {
        /// Which address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// No thread can be started.
    #[error("cannot start a thread")]
    Thread(#[source] std::io::Error),
}

/// The program, put together and ready to run.
#[derive(Debug)]
pub struct App {
    settings: Settings,
    listener: TinyListener,
    address: SocketAddr,
    pools: Arc<Pools>,
    cache: Arc<Cache>,
    catalogs: Arc<Catalogs>,
    health: Health,
    index: Arc<EmbeddedIndex>,
    proxies: ProxyEnv,
    clock: Clock,
    // remotes.yaml as it was before it was read, so that no change is overlooked.
    watched: Watched,
    _lock: DataDirLock,
}

impl App {
    /// Puts the program together: configuration, backends, pools and listener.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left running then.
    pub fn start(settings: Settings) -> Result<Self, StartError> {
        let clock = Clock::system();
        let proxies = ProxyEnv::from_vars(variable).map_err(StartError::Proxy)?;
        let watched = Watched::of(&settings.config_path);
        let remotes = load_remotes(&settings)?;
        let catalog = build_catalog(remotes, &Catalog::default(), &settings, &proxies, &clock)?;
        let catalogs = Arc::new(Catalogs::new(catalog));

        let data_dir = &settings.data_dir;
        let in_data_dir = |source| StartError::DataDir { folder: data_dir.clone(), source };
        std::fs::create_dir_all(data_dir).map_err(in_data_dir)?;
        let lock = lock_data_dir(data_dir)?;
        let staging = Staging::open(&data_dir.join("staging"), settings.staging_bytes_max)
            .map_err(in_data_dir)?;
        let blobs: Arc<dyn BlobStore> = Arc::new(DiskBlobs::open(data_dir)?);
        let index = Arc::new(EmbeddedIndex::open(data_dir)?);
        let ports = Ports {
            blobs: Arc::clone(&blobs),
            index: Arc::clone(&index) as Arc<dyn ArtifactIndex>,
            freshness: Arc::new(LocalFreshness::new(clock.clone())),
            leases: Arc::new(LocalLeases::new(clock.clone())),
            staging,
            clock: clock.clone(),
        };
        let cache = Arc::new(Cache::new(ports, &cache_bounds(&settings)));
        let health = Health::watch(probes(blobs, Arc::clone(&index) as Arc<dyn ArtifactIndex>))
            .map_err(StartError::Thread)?;
        let pools = Arc::new(Pools::new(settings.workers, settings.queue_max));
        let front = Front {
            cache: Arc::clone(&cache),
            catalogs: Arc::clone(&catalogs),
            health: health.clone(),
            metrics: Metrics::new(cache.counters()),
            settings: settings.to_json(),
            pools: Arc::clone(&pools),
        };
        let listen = |source| StartError::Listen { address: settings.listen_addr, source };
        let listener = TinyListener::bind(
            settings.listen_addr,
            Arc::new(front),
            Arc::clone(&pools),
            front_bounds(&settings),
        )
        .map_err(listen)?;
        let address = listener.address().map_err(listen)?;
        Ok(Self {
            settings,
            listener,
            address,
            pools,
            cache,
            catalogs,
            health,
            index,
            proxies,
            clock,
            watched,
            _lock: lock,
        })
    }

    /// The address that clients connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accepts and serves until [`App::stop`].
    ///
    /// # Errors
    /// What made accepting impossible for good.
    pub fn serve(&self) -> std::io::Result<()> {
        self.listener.run()
    }

    /// Stops accepting; requests in flight go on.
    pub fn stop(&self) {
        // First, so that whoever still asks learns of it.
        self.health.stop();
        self.listener.stop();
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
        self.cache.record_uses();
        if let Err(error) = self.index.close_cleanly(|| sync_folder(&self.settings.data_dir)) {
            tracing::warn!(error = chain(&error), "the data folder was not closed cleanly");
        }
        finished
    }

    /// Reads remotes.yaml anew and puts it in force; a file that can't be used changes nothing.
    pub fn reload(&self) {
        let old = self.catalogs.current();
        let catalog =
            load_remotes(&self.settings).map_err(StartError::Config).and_then(|remotes| {
                build_catalog(remotes, &old, &self.settings, &self.proxies, &self.clock)
            });
        match catalog {
            Ok(catalog) => {
                tracing::info!(remotes = catalog.targets.len(), "the configuration was reloaded");
                self.catalogs.replace(catalog);
            }
            Err(error) => {
                tracing::error!(
                    error = chain(&error),
                    "the new configuration cannot be used; the old one stays in force"
                );
            }
        }
    }

    /// Does what is due from time to time, for as long as the program runs: watches
    /// remotes.yaml, records uses, syncs the data folder and sweeps orphans.
    pub fn upkeep(&self) -> ! {
        let started = Instant::now();
        let mut watched = self.watched;
        let due = |every: Duration| (every, started);
        let (mut uses, mut sync, mut sweep) =
            (due(USES_INTERVAL), due(SYNC_INTERVAL), due(SWEEP_INTERVAL));
        let mut poll = due(self.settings.config_poll);
        loop {
            std::thread::sleep(UPKEEP_TICK);
            if !self.settings.config_poll.is_zero() && is_due(&mut poll) {
                let seen = Watched::of(&self.settings.config_path);
                if seen != watched {
                    watched = seen;
                    self.reload();
                }
            }
            if is_due(&mut uses) {
                self.cache.record_uses();
            }
            if is_due(&mut sync)
                && let Err(error) = self.index.sync(|| sync_folder(&self.settings.data_dir))
            {
                tracing::warn!(error = chain(&error), "the data folder was not synced");
            }
            if is_due(&mut sweep) {
                match self.cache.sweep_orphans() {
                    Ok(0) => {}
                    Ok(removed) => tracing::info!(removed, "removed blobs without a row"),
                    Err(error) => tracing::warn!(error, "a sweep broke off"),
                }
            }
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

fn load_remotes(settings: &Settings) -> Result<Remotes, ConfigErrors> {
    let around = Around { regex_size_max: settings.regex_size_max, env: &variable };
    let (remotes, warnings) = file::load(&settings.config_path, &around)?;
    for warning in &warnings {
        warn(warning);
    }
    Ok(remotes)
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
    for (name, remote) in &remotes.by_name {
        let upstream = match &remote.kind {
            Kind::Local => None,
            Kind::Remote(origin) => {
                let kept = old.targets.get(name.as_str()).filter(
                    |target| matches!(&target.remote.kind, Kind::Remote(was) if was == origin),
                );
                match kept {
                    Some(target) => target.upstream.clone(),
                    None => {
                        let remote = name.to_string();
                        let failed = |source| StartError::Upstream { remote, source };
                        Some(connect(origin, &limits, proxies, clock).map_err(failed)?)
                    }
                }
            }
        };
        let target = Target { remote: Arc::clone(remote), upstream };
        targets.insert(name.to_string(), Arc::new(target));
    }
    Ok(Catalog { remotes: Arc::new(remotes), targets })
}

fn cache_bounds(settings: &Settings) -> CacheBounds {
    CacheBounds {
        fetch_threads: settings.fetch_threads,
        fetch_queue_max: settings.fetch_queue_max,
        lease_ttl: settings.lease_ttl,
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

fn probes(blobs: Arc<dyn BlobStore>, index: Arc<dyn ArtifactIndex>) -> Vec<(&'static str, Probe)> {
    let probe_key = BlobKey::from_listing("health/0000000000000000/probe")
        .expect("the probe's key has the form of a key");
    vec![
        (
            "blobs",
            Box::new(move || blobs.stat(&probe_key).map(drop).map_err(|error| chain(&error))),
        ),
        ("index", Box::new(move || index.probe().map_err(|error| chain(&error)))),
    ]
}
