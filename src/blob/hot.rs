//! A hot tier: the blobs that are used most, on the local disk before a store that is far.
//!
//! A wrapper over any store. The second use of a blob within a while brings it here, by a
//! thread of its own that reads it once more, so no reader waits for the tier. A version that
//! is here is served from here, also while the store behind does not answer. Whatever goes
//! wrong here falls through to the store; what is here can be lost at any time, and a start
//! begins with nothing.
//!
//! Another replica may replace or remove a blob meanwhile; what is here are still the bytes of
//! the version that was asked for. Who must know whether it is the latest asks the store itself
//! ([`BlobStore::open_current`]).

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, SystemTime};

#[cfg(test)]
mod tests;

use crossbeam_channel::{Receiver, Sender, bounded};
use sha2::{Digest as _, Sha256};

use crate::artifact::{BlobKey, BlobVersion, Digest};
use crate::blob::by_use::ByUse;
use crate::blob::open_files::OpenFiles;
use crate::blob::seen::Seen;
use crate::blob::{About, BlobError, BlobMeta, BlobStore, TierCounters};
use crate::body::{Body, BodyError};
use crate::chain::chain;
use crate::clock::Clock;
use crate::staging::SealedFile;

/// Threads that bring blobs here.
const FILL_THREADS: usize = 2;
/// Blobs that wait to be brought here; further ones wait for another use.
const FILLS_WAITING_MAX: usize = 64;
/// The largest blob that is brought here, as a part of the tier: one may not empty it.
const SHARE_OF_ONE: u64 = 4;
/// How long nothing is brought here after the local disk failed.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(60);
/// What the tier's files end with; others in its folder are left alone.
const SUFFIX: &str = ".hot";

/// Where the tier is and how large it may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HotSettings {
    /// Its folder, which it has for itself.
    pub folder: PathBuf,
    /// Most bytes in it (`HOT_BYTES`), over 0; for 0 use the store behind as it is. No blob
    /// over a quarter of this is brought here.
    pub bytes_max: u64,
}

/// A store with a hot tier before it.
#[derive(Debug)]
pub struct HotBlobs {
    tier: Arc<Tier>,
    // Only here, so that the threads end with the store.
    fills: Sender<Fill>,
}

#[derive(Debug)]
struct Tier {
    behind: Arc<dyn BlobStore>,
    clock: Clock,
    folder: PathBuf,
    bytes_max: u64,
    // Nothing else is taken while it is held, and no file is touched under it.
    table: Mutex<Table>,
    /// By their numbers, which no two files share.
    open_files: OpenFiles<u64>,
    counters: TierCounters,
}

/// A blob to be brought here.
#[derive(Debug)]
struct Fill {
    key: BlobKey,
    version: BlobVersion,
    ticket: u64,
}

#[derive(Debug)]
struct Table {
    here: ByUse<Held>,
    /// The tickets of blobs on their way; one that was called off has another or none.
    under_way: HashMap<BlobKey, u64>,
    seen: Seen,
    /// Bytes of `here`, and reserved for what is on its way; `shown` has them too.
    bytes: u64,
    shown: TierCounters,
    /// Numbers tickets and files.
    next: u64,
    paused_until: Option<SystemTime>,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    file: u64,
    size: u64,
}

impl HotBlobs {
    /// Puts an empty tier before `behind`; what an earlier run left is removed.
    ///
    /// # Errors
    /// What the file system says, or that no thread could be started.
    pub fn open(
        behind: Arc<dyn BlobStore>,
        settings: &HotSettings,
        clock: Clock,
        counters: TierCounters,
    ) -> io::Result<Self> {
        fs::create_dir_all(&settings.folder)?;
        for left_over in fs::read_dir(&settings.folder)? {
            let path = left_over?.path();
            if path.to_string_lossy().ends_with(SUFFIX) {
                fs::remove_file(path)?;
            }
        }
        let now = clock.now();
        let tier = Arc::new(Tier {
            behind,
            clock,
            folder: settings.folder.clone(),
            bytes_max: settings.bytes_max,
            table: Mutex::new(Table {
                here: ByUse::new(),
                under_way: HashMap::new(),
                seen: Seen::new(now),
                bytes: 0,
                shown: counters.clone(),
                next: 0,
                paused_until: None,
            }),
            open_files: OpenFiles::new(),
            counters,
        });
        let (fills, waiting) = bounded(FILLS_WAITING_MAX);
        for number in 0..FILL_THREADS {
            let (tier, waiting): (_, Receiver<Fill>) = (Arc::clone(&tier), waiting.clone());
            thread::Builder::new()
                .name(format!("hot-fill-{number}"))
                .spawn(move || waiting.iter().for_each(|fill| tier.fill(&fill)))?;
        }
        Ok(Self { tier, fills })
    }
}

impl BlobStore for HotBlobs {
    fn publish(
        &self,
        key: &BlobKey,
        sealed: &SealedFile,
        about: &About,
    ) -> Result<BlobVersion, BlobError> {
        let published = self.tier.behind.publish(key, sealed, about);
        // After a failure the store may hold either; then nothing is here.
        self.tier.forget(key, published.as_ref().ok());
        published
    }

    fn publish_over(
        &self,
        key: &BlobKey,
        there: Option<&BlobVersion>,
        sealed: &SealedFile,
        about: &About,
    ) -> Result<BlobVersion, BlobError> {
        let published = self.tier.behind.publish_over(key, there, sealed, about);
        self.tier.forget(key, published.as_ref().ok());
        published
    }

    fn open(
        &self,
        key: &BlobKey,
        version: &BlobVersion,
        range: Range<u64>,
    ) -> Result<Body, BlobError> {
        if let Some(body) = self.tier.open_here(key, version, &range) {
            return Ok(body);
        }
        let body = self.tier.behind.open(key, version, range.clone())?;
        self.tier.counters.misses.inc();
        if range.end <= self.tier.largest()
            && let Some(ticket) = self.tier.ticket(key)
        {
            let fill = Fill { key: key.clone(), version: version.clone(), ticket };
            if self.fills.try_send(fill).is_err() {
                self.tier.call_off(key);
            }
        }
        Ok(body)
    }

    fn open_current(
        &self,
        key: &BlobKey,
        version: &BlobVersion,
        range: Range<u64>,
    ) -> Result<Body, BlobError> {
        self.tier.behind.open_current(key, version, range)
    }

    fn stat(&self, key: &BlobKey) -> Result<Option<BlobMeta>, BlobError> {
        self.tier.behind.stat(key)
    }

    fn persist(&self, key: &BlobKey) -> Result<(), BlobError> {
        self.tier.behind.persist(key)
    }

    fn remove(&self, key: &BlobKey) -> Result<(), BlobError> {
        let removed = self.tier.behind.remove(key);
        self.tier.forget(key, None);
        removed
    }

    fn remove_version(&self, key: &BlobKey, version: &BlobVersion) -> Result<(), BlobError> {
        let removed = self.tier.behind.remove_version(key, version);
        self.tier.forget(key, None);
        removed
    }

    fn each(&self, visit: &mut dyn FnMut(BlobMeta) -> ControlFlow<()>) -> Result<(), BlobError> {
        self.tier.behind.each(visit)
    }
}

impl Tier {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("nothing can panic while it holds the table")
    }

    /// The largest blob that is brought here.
    fn largest(&self) -> u64 {
        self.bytes_max / SHARE_OF_ONE
    }

    fn path(&self, file: u64) -> PathBuf {
        self.folder.join(format!("{file:016x}{SUFFIX}"))
    }

    /// The blob from here, if this version of it is.
    fn open_here(&self, key: &BlobKey, version: &BlobVersion, range: &Range<u64>) -> Option<Body> {
        let Held { file, size } = *self.table().here.used(key, version)?;
        // A range past the end is for the store behind to refuse.
        if range.start > range.end || range.end > size {
            return None;
        }
        match self.open_file(file, size) {
            Ok(opened) => {
                self.counters.hits.inc();
                Some(Body::from_file(opened, range.start, range.end - range.start))
            }
            Err(error) => {
                // It may have been evicted since; else the disk lost it.
                if self.table().drop_file(key, file) {
                    self.counters.failures.inc();
                    tracing::warn!(%key, %error, "cannot read a blob in the hot tier");
                    self.remove(file);
                }
                None
            }
        }
    }

    /// Opens a file, or gives it as it was opened before; it must have its whole size still.
    fn open_file(&self, file: u64, size: u64) -> io::Result<Arc<File>> {
        let open = || {
            let opened = File::open(self.path(file))?;
            let metadata = opened.metadata()?;
            if metadata.len() == size {
                Ok((opened, metadata))
            } else {
                Err(cut(metadata.len(), size))
            }
        };
        let is_whole = |metadata: &fs::Metadata| metadata.len() == size;
        self.open_files.open(&file, is_whole, open).map(|(opened, _)| opened)
    }

    fn remove(&self, file: u64) {
        remove(&self.path(file));
        self.open_files.forget(&file);
    }

    /// Notes a use; a ticket to bring the blob here, if that is due.
    fn ticket(&self, key: &BlobKey) -> Option<u64> {
        let now = self.clock.now();
        let mut table = self.table();
        let again = table.seen.note(key, now);
        let paused = table.paused_until.is_some_and(|until| now < until);
        if !again || paused || table.under_way.contains_key(key) {
            return None;
        }
        let ticket = table.number();
        table.under_way.insert(key.clone(), ticket);
        Some(ticket)
    }

    fn call_off(&self, key: &BlobKey) {
        self.table().under_way.remove(key);
    }

    /// Forgets a blob but for `version`, whether it is here or on its way.
    fn forget(&self, key: &BlobKey, version: Option<&BlobVersion>) {
        let mut table = self.table();
        table.under_way.remove(key);
        let stays = table.here.get(key).is_some_and(|(here, _)| Some(here) == version);
        let dropped = if stays { None } else { table.take(key) };
        drop(table);
        if let Some(held) = dropped {
            self.remove(held.file);
        }
    }

    /// Brings a blob here; on a thread of the tier's own.
    fn fill(&self, fill: &Fill) {
        match self.try_fill(fill) {
            Ok(()) | Err(FillError::NotNow) => {}
            Err(FillError::Store(error)) => {
                self.counters.failures.inc();
                tracing::debug!(key = %fill.key, error, "cannot bring a blob into the hot tier");
            }
            Err(FillError::Disk(error)) => {
                self.counters.failures.inc();
                let until = self.clock.now() + PAUSE_AFTER_FAILURE;
                self.table().paused_until = Some(until);
                tracing::warn!(key = %fill.key, %error, "cannot write the hot tier; trying again in a minute");
            }
        }
        let mut table = self.table();
        if table.under_way.get(&fill.key) == Some(&fill.ticket) {
            table.under_way.remove(&fill.key);
        }
    }

    fn try_fill(&self, fill: &Fill) -> Result<(), FillError> {
        let Fill { key, version, ticket } = fill;
        let meta = self.behind.stat(key)?.filter(|meta| meta.version == *version);
        let meta = meta.ok_or(FillError::NotNow)?;
        if meta.size > self.largest() {
            return Err(FillError::NotNow);
        }
        let room = self.make_room(key, meta.size, *ticket)?;
        let mut body = self.behind.open(key, version, 0..meta.size)?;
        let digest = write_all(&mut body, &self.path(room.file))?;
        if let Some(about) = meta.about.filter(|about| about.digest != digest) {
            let why = format!("its bytes hash to {digest}, not to {}", about.digest);
            return Err(FillError::Store(why));
        }
        room.keep(key, version, *ticket)
    }

    /// Reserves bytes, and a file that is removed unless it is kept. The blobs that were not
    /// used for longest make room.
    fn make_room(&self, key: &BlobKey, size: u64, ticket: u64) -> Result<Room<'_>, FillError> {
        let mut table = self.table();
        if table.under_way.get(key) != Some(&ticket) {
            return Err(FillError::NotNow);
        }
        let mut evicted = Vec::new();
        while table.bytes + size > self.bytes_max {
            // What is on its way may hold all of it.
            let Some(least) = table.here.take_least_recent() else { break };
            table.release(least.size);
            self.counters.evictions.inc();
            evicted.push(least);
        }
        let fits = table.bytes + size <= self.bytes_max;
        let room = fits.then(|| {
            table.reserve(size);
            Room { tier: self, file: table.number(), size, kept: false }
        });
        drop(table);
        // Before anything is written, so that the disk is not asked for more than the bound.
        evicted.iter().for_each(|held| self.remove(held.file));
        room.ok_or(FillError::NotNow)
    }
}

impl Table {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn reserve(&mut self, bytes: u64) {
        self.bytes += bytes;
        self.shown.set_bytes(self.bytes);
    }

    fn release(&mut self, bytes: u64) {
        self.bytes -= bytes;
        self.shown.set_bytes(self.bytes);
    }

    fn take(&mut self, key: &BlobKey) -> Option<Held> {
        let held = self.here.take(key)?;
        self.release(held.size);
        Some(held)
    }

    /// Drops a blob if it is still in this file; says whether it was.
    fn drop_file(&mut self, key: &BlobKey, file: u64) -> bool {
        let is_there = self.here.get(key).is_some_and(|(_, held)| held.file == file);
        is_there && self.take(key).is_some()
    }
}

/// Reserved bytes and the file that they are for.
struct Room<'a> {
    tier: &'a Tier,
    file: u64,
    size: u64,
    kept: bool,
}

impl Room<'_> {
    /// Shows the blob to readers, unless it was called off meanwhile.
    fn keep(mut self, key: &BlobKey, version: &BlobVersion, ticket: u64) -> Result<(), FillError> {
        let mut table = self.tier.table();
        if table.under_way.get(key) != Some(&ticket) {
            return Err(FillError::NotNow);
        }
        let earlier = table.take(key);
        table.here.insert(key, version, Held { file: self.file, size: self.size });
        self.tier.counters.fills.inc();
        self.kept = true;
        drop(table);
        if let Some(earlier) = earlier {
            self.tier.remove(earlier.file);
        }
        Ok(())
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.tier.remove(self.file);
            self.tier.table().release(self.size);
        }
    }
}

/// Why a blob was not brought here.
#[derive(Debug)]
enum FillError {
    /// It changed, or there is no room, or it was called off.
    NotNow,
    /// The store behind did not give it.
    Store(String),
    /// The local disk did not take it.
    Disk(io::Error),
}

impl From<BlobError> for FillError {
    fn from(error: BlobError) -> Self {
        if error.is_gone() { Self::NotNow } else { Self::Store(chain(&error)) }
    }
}

impl From<BodyError> for FillError {
    fn from(error: BodyError) -> Self {
        Self::Store(chain(&error))
    }
}

/// Writes a body to a new file; the digest of its bytes.
fn write_all(body: &mut Body, path: &Path) -> Result<Digest, FillError> {
    let mut file = File::create_new(path).map_err(FillError::Disk)?;
    let mut hash = Sha256::new();
    let mut write = |bytes: &[u8]| {
        hash.update(bytes);
        file.write_all(bytes).map_err(FillError::Disk)
    };
    let mut buffer = Vec::new();
    while let Some(piece) = body.next_piece()? {
        piece.read_through(&mut buffer, |error| BodyError::Io(error).into(), &mut write)?;
    }
    Ok(Digest(hash.finalize().into()))
}

fn cut(len: u64, size: u64) -> io::Error {
    let what = format!("it has {len} of {size} bytes");
    io::Error::new(io::ErrorKind::UnexpectedEof, what)
}

/// Removes a file of the tier; one that stays is removed by the next start.
fn remove(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "cannot remove a file of the hot tier");
        }
        _ => {}
    }
}
