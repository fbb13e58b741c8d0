//! Which backends stand behind the ports: embedded ones, or the services that the environment
//! names, each by its own variables and in any mixture.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Access, access, statvfs};

use super::unused::unused;
use super::variable;
use crate::artifact::BlobKey;
use crate::blob::BlobStore;
use crate::blob::Tiers;
use crate::blob::disk::{self, DiskBlobs, OpenDiskError, sync_folder};
use crate::blob::hot::{HotBlobs, HotSettings};
use crate::blob::s3::settings::{BadEndpoint, Secure, endpoint};
use crate::blob::s3::{S3Error, S3Settings, S3Store};
use crate::blob::small::SmallBlobs;
use crate::cache::Ports;
use crate::cache::upkeep::Trust;
use crate::chain::chain;
use crate::clock::Clock;
use crate::config::env::{Engines, Settings};
use crate::coord::local::{LocalFreshness, LocalLeases};
use crate::coord::redis::{RedisCoord, RedisSettings, RedisSetupError};
use crate::coord::{Freshness, Leases};
use crate::index::ArtifactIndex;
use crate::index::bridge::BridgedIndex;
use crate::index::embedded::{
    DataDirLock, EmbeddedIndex, LockError, OpenIndexError, lock_data_dir,
};
use crate::index::postgres::{PostgresError, PostgresIndex, PostgresSettings};
use crate::ops::health::Probe;
use crate::staging::Staging;

/// Why a backend can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum PortsError {
    /// Some variables of a service are set and others are missing.
    #[error("{missing} is missing: {given} is set, and {service} needs both")]
    Missing {
        /// Which service.
        service: &'static str,
        /// A variable that is set.
        given: &'static str,
        /// The variable that is not.
        missing: &'static str,
    },
    /// The data folder can't be used.
    #[error("cannot use the data folder {folder} (DATA_DIR)")]
    DataDir {
        /// Which folder.
        folder: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A command on what is stored was given a data folder that nothing was ever stored in.
    #[error(
        "DATA_DIR {folder} has no artifacts: is it mistyped? (there is no folder {blobs} in it)"
    )]
    NothingStored {
        /// Which folder.
        folder: PathBuf,
        /// What it has not.
        blobs: &'static str,
    },
    /// Another process uses the data folder.
    #[error(transparent)]
    Locked(#[from] LockError),
    /// The folder of blobs can't be opened.
    #[error(transparent)]
    Disk(#[from] OpenDiskError),
    /// The embedded index can't be opened.
    #[error(transparent)]
    Embedded(#[from] OpenIndexError),
    /// `MINIO_ENDPOINT` is none.
    #[error("MINIO_ENDPOINT cannot be understood")]
    Endpoint(#[from] BadEndpoint),
    /// The S3 store can't be set up.
    #[error("the S3 store cannot be set up (MINIO_*)")]
    S3(#[from] S3Error),
    /// Postgres can't be used as it is set.
    #[error("the index on PostgreSQL cannot be used (DB*)")]
    Postgres(#[from] PostgresError),
    /// Redis can't be used as it is set.
    #[error("Redis cannot be used (REDIS_URL)")]
    Redis(#[from] RedisSetupError),
}

/// The ports, opened, and what must be done about them from time to time.
#[derive(Debug)]
pub struct OpenedPorts {
    /// The ports.
    pub ports: Ports,
    /// What the tiers before the store of blobs count; none where it is on the local disk.
    pub tiers: Tiers,
    /// What the store of blobs promises, for a rebuild of the index.
    pub trust: Trust,
    embedded: Option<Arc<EmbeddedIndex>>,
    bridge: Option<Arc<BridgedIndex>>,
    s3: Option<Arc<S3Store>>,
    redis: Option<Arc<RedisCoord>>,
    data_dir: PathBuf,
    // Other processes keep out as long as this lives.
    _lock: DataDirLock,
}

/// Which backends are in use, in words for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backends {
    /// Where files are.
    pub files: &'static str,
    /// Where the index is.
    pub index: &'static str,
    /// Where freshness and leases are.
    pub coordination: &'static str,
}

/// For a command on what is stored: refuses a `DATA_DIR` that no server has used, before
/// [`open`] makes one of it.
///
/// # Errors
/// [`PortsError::NothingStored`].
pub fn expect_stored(settings: &Settings, engines: &Engines) -> Result<(), PortsError> {
    let folder: &Path = &settings.data_dir;
    if engines.minio_endpoint.is_some() || folder.join(disk::FOLDER).is_dir() {
        return Ok(());
    }
    Err(PortsError::NothingStored { folder: folder.to_owned(), blobs: disk::FOLDER })
}

/// Opens every port.
///
/// A service that does not answer does not hinder the start: it is asked again as soon as it
/// is needed.
///
/// # Errors
/// [`PortsError`] where waiting would not help.
pub fn open(
    settings: &Settings,
    engines: &Engines,
    clock: &Clock,
) -> Result<OpenedPorts, PortsError> {
    for told in unused(&variable) {
        tracing::warn!("{told}");
    }
    let data_dir = settings.data_dir.clone();
    let in_data_dir = |source| PortsError::DataDir { folder: data_dir.clone(), source };
    std::fs::create_dir_all(&data_dir).map_err(in_data_dir)?;
    let lock = lock_data_dir(&data_dir)?;
    let staging =
        Staging::open(&data_dir.join(STAGING), settings.staging_bytes_max).map_err(in_data_dir)?;

    let s3 = s3_settings(engines)?.as_ref().map(S3Store::new).transpose()?.map(Arc::new);
    let tiers = Tiers::default();
    let blobs: Arc<dyn BlobStore> = match &s3 {
        None => Arc::new(DiskBlobs::open(&data_dir)?),
        Some(s3) => {
            let mut blobs: Arc<dyn BlobStore> = Arc::clone(s3) as _;
            if engines.hot_bytes > 0 {
                let (folder, bytes_max) = (data_dir.join("hot"), engines.hot_bytes);
                let hot = HotSettings { folder, bytes_max };
                blobs = Arc::new(
                    HotBlobs::open(blobs, &hot, clock.clone(), tiers.of("disk"))
                        .map_err(in_data_dir)?,
                );
            }
            if engines.hot_memory_bytes > 0 {
                blobs = Arc::new(SmallBlobs::new(
                    blobs,
                    engines.hot_memory_bytes,
                    clock.clone(),
                    tiers.of("memory"),
                ));
            }
            blobs
        }
    };

    let (mut embedded, mut bridge) = (None, None);
    let index: Arc<dyn ArtifactIndex> = match postgres_settings(engines)? {
        None => Arc::clone(embedded.insert(Arc::new(EmbeddedIndex::open(&data_dir)?))) as _,
        Some(postgres) => {
            let far = Arc::new(PostgresIndex::open(&postgres)?);
            let described = Arc::clone(&blobs);
            let describe = move |key: &_, blob: &BlobKey| match described.stat(blob) {
                Ok(meta) => Ok(meta.and_then(|meta| meta.entry_of(key))),
                Err(error) => Err(error.into()),
            };
            Arc::clone(bridge.insert(Arc::new(BridgedIndex::new(far, Box::new(describe))))) as _
        }
    };

    let redis = match &engines.redis_url {
        None => None,
        Some(url) => {
            let (key_prefix, ca_file) =
                (engines.redis_prefix.clone(), engines.redis_ca_file.clone());
            let settings = RedisSettings { key_prefix, ca_file, ..RedisSettings::new(url.clone()) };
            Some(Arc::new(RedisCoord::new(&settings)?))
        }
    };
    let (freshness, leases): (Arc<dyn Freshness>, Arc<dyn Leases>) = match &redis {
        Some(redis) => (Arc::clone(redis) as _, Arc::clone(redis) as _),
        None => (
            Arc::new(LocalFreshness::new(clock.clone())),
            Arc::new(LocalLeases::new(clock.clone())),
        ),
    };

    // On the local disk, which files were synced is known to the index alone.
    let trust = if s3.is_some() { Trust::Durable } else { Trust::UntilCrash };
    let ports = Ports { blobs, index, freshness, leases, staging, clock: clock.clone() };
    Ok(OpenedPorts { ports, tiers, trust, embedded, bridge, s3, redis, data_dir, _lock: lock })
}

/// The folder of scratch files in the data folder.
const STAGING: &str = "staging";

/// Whether files can be written to a folder, as far as that shows without writing.
fn takes_files(folder: &Path) -> std::io::Result<()> {
    access(folder, Access::WRITE_OK | Access::EXEC_OK)?;
    match statvfs(folder)?.f_bavail {
        0 => Err(std::io::ErrorKind::StorageFull.into()),
        _ => Ok(()),
    }
}

impl OpenedPorts {
    /// Which backends these are.
    pub fn backends(&self) -> Backends {
        Backends {
            files: if self.s3.is_some() { "S3" } else { "disk" },
            index: if self.bridge.is_some() { "PostgreSQL" } else { "SQLite" },
            coordination: if self.redis.is_some() { "Redis" } else { "memory" },
        }
    }

    /// What tells how each backend is.
    pub fn probes(&self) -> Vec<(&'static str, Probe)> {
        let (s3, data_dir) = (self.s3.clone(), self.data_dir.clone());
        let blobs: Probe = Box::new(move || {
            if let Some(s3) = &s3 {
                s3.probe().map_err(|error| chain(&error))?;
            }
            let on_disk = if s3.is_some() { &[STAGING][..] } else { &[disk::FOLDER, STAGING] };
            on_disk.iter().map(|name| data_dir.join(name)).try_for_each(|folder| {
                takes_files(&folder).map_err(|error| format!("{}: {error}", folder.display()))
            })
        });
        let index = Arc::clone(&self.ports.index);
        let index: Probe = Box::new(move || index.probe().map_err(|error| chain(&error)));
        let mut probes = vec![("blobs", blobs), ("index", index)];
        if let Some(redis) = &self.redis {
            let redis = Arc::clone(redis);
            let answers = move || match redis.answers() {
                true => Ok(()),
                false => Err("Redis does not answer".to_owned()),
            };
            probes.push(("coordination", Box::new(answers)));
        }
        probes
    }

    /// Brings the data folder to disk, and writes rows that wait for an index that was away.
    pub fn sync(&self) {
        if let Some(embedded) = &self.embedded
            && let Err(error) = embedded.sync(|| sync_folder(&self.data_dir))
        {
            tracing::warn!(error = chain(&error), "the data folder was not synced");
        }
        if let Some(bridge) = &self.bridge
            && let Err(error) = bridge.catch_up()
        {
            tracing::debug!(error = chain(&error), "rows wait for the index");
        }
    }

    /// Ends cleanly, so that the next start doubts nothing.
    pub fn close(&self) {
        self.sync();
        if let Some(embedded) = &self.embedded
            && let Err(error) = embedded.close_cleanly(|| sync_folder(&self.data_dir))
        {
            tracing::warn!(error = chain(&error), "the data folder was not closed cleanly");
        }
    }
}

/// `given` is set; so must be what it needs.
fn needed<'a, T>(
    value: &'a Option<T>,
    service: &'static str,
    given: &'static str,
    missing: &'static str,
) -> Result<&'a T, PortsError> {
    value.as_ref().ok_or(PortsError::Missing { service, given, missing })
}

fn s3_settings(engines: &Engines) -> Result<Option<S3Settings>, PortsError> {
    const GIVEN: &str = "MINIO_ENDPOINT";
    let Some(address) = &engines.minio_endpoint else { return Ok(None) };
    let secure = if engines.minio_secure { Secure::Yes } else { Secure::No };
    let settings = S3Settings::new(
        endpoint(address, secure)?,
        needed(&engines.minio_access_key, "S3", GIVEN, "MINIO_ACCESS_KEY")?,
        needed(&engines.minio_secret_key, "S3", GIVEN, "MINIO_SECRET_KEY")?.clone(),
        needed(&engines.minio_bucket, "S3", GIVEN, "MINIO_BUCKET")?,
    );
    let (region, ca_file) = (engines.minio_region.clone(), engines.minio_ca_file.clone());
    Ok(Some(S3Settings { region, ca_file, ..settings }))
}

fn postgres_settings(engines: &Engines) -> Result<Option<PostgresSettings>, PortsError> {
    const GIVEN: &str = "DBHOST";
    let Some(host) = &engines.db_host else { return Ok(None) };
    let settings = PostgresSettings::new(
        host,
        needed(&engines.db_user, "PostgreSQL", GIVEN, "DBUSER")?,
        needed(&engines.db_password, "PostgreSQL", GIVEN, "DBPASS")?.clone(),
        needed(&engines.db_name, "PostgreSQL", GIVEN, "DBNAME")?,
    );
    Ok(Some(PostgresSettings {
        port: engines.db_port,
        ssl_mode: engines.db_ssl_mode,
        ca_file: engines.db_ca_file.clone(),
        connections_max: engines.db_connections_max,
        ..settings
    }))
}
