//! Blobs as files: `DATA_DIR/blobs/{remote}/{path_hash}/{filename}`, for `ls` and `sha256sum`.
//!
//! Publishing moves the sealed scratch file, so a blob is never copied and never seen half
//! written: a name leads to a whole file or to none. A file is not written again once it is
//! published; replacing a blob moves another file over its name, and whoever has opened the
//! earlier one keeps it.
//!
//! A version is the file's size and the time of its last change, as
//! `stat -c %s-%.9Y FILE` prints them. That time is set at publishing, never the same twice in
//! a process, so equal sizes do not make equal versions; it survives copies that keep times.
//!
//! A file describes itself in the extended attribute `user.artifactapi`
//! (`getfattr -n user.artifactapi FILE`), so that a lost index can be rebuilt. Where the file
//! system takes none, or the text is too long, the blob is stored without: it is served as any
//! other, but only its row knows what it is.
//!
//! Deliberately not here: syncing when publishing. A cached artifact may be lost with the
//! machine's power, so that a small miss does not wait for the disk. Whoever has to know calls
//! [`sync_folder`], or [`BlobStore::persist`] for a single blob.

use std::fmt;
use std::fs::{self, File, Metadata, OpenOptions};
use std::ops::{ControlFlow, Range};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use std::{io, iter};

use rustix::fs::{OFlags, XattrFlags, fgetxattr, fsetxattr};
use rustix::io::Errno;

use super::about::{ABOUT_BYTES_MAX, decode, encode};
use super::open_files::OpenFiles;
use super::{About, BlobError, BlobMeta, BlobStore};
use crate::artifact::{BlobKey, BlobVersion};
use crate::body::Body;
use crate::clock::Clock;
use crate::staging::{SealedFile, is_no_space};

/// The store's folder inside `DATA_DIR`.
pub const FOLDER: &str = "blobs";
/// Where names wait until they are moved over a blob's. It is no remote's name, so no blob
/// can lie in it; what a crash leaves in it goes at the next start.
const INCOMING: &str = ".incoming";
/// The extended attribute in which a file describes itself.
const ABOUT_NAME: &str = "user.artifactapi";
/// Buffer of a copy between file systems, in bytes.
const COPY_BUFFER_BYTES: usize = 256 << 10;

/// The last time given to a published file, in microseconds since 1970. Of the whole process,
/// because two stores may share a folder.
static LAST_STAMP_MICROS: AtomicU64 = AtomicU64::new(0);
/// Makes names in [`INCOMING`] unique.
static NEXT_INCOMING: AtomicU64 = AtomicU64::new(0);

/// Blobs in a folder of the local disk.
#[derive(Debug)]
pub struct DiskBlobs {
    folder: PathBuf,
    // Held shared from making a blob's folder to naming the blob in it, exclusively while an
    // empty folder is removed: otherwise a removal could take a new folder away each time
    // before its blob is there. Two short system calls; nothing else is taken under it.
    folders: RwLock<()>,
    open_files: OpenFiles<BlobKey>,
    // Whether the log says already that a blob does not describe itself: once is enough.
    has_warned: AtomicBool,
}

/// Why the store can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenDiskError {
    /// The file system refused.
    #[error("cannot open the blob store in {folder}")]
    Io {
        /// The store's folder.
        folder: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Versions could not be told apart.
    #[error(
        "the file system of {folder} does not keep file times to the microsecond: put DATA_DIR on one that does, such as ext4 or xfs"
    )]
    CoarseTimes {
        /// The store's folder.
        folder: PathBuf,
    },
}

impl DiskBlobs {
    /// Opens the store in `data_dir`, creating it if need be. Staging should be on the same
    /// file system: otherwise every blob is copied.
    ///
    /// # Errors
    /// [`OpenDiskError`] where the folder can't be written or its file system is not fit.
    pub fn open(data_dir: &Path) -> Result<Self, OpenDiskError> {
        let folder = data_dir.join(FOLDER);
        let store = Self {
            folder: folder.clone(),
            folders: RwLock::default(),
            open_files: OpenFiles::new(),
            has_warned: AtomicBool::new(false),
        };
        match store.prepare() {
            Ok(true) => Ok(store),
            Ok(false) => Err(OpenDiskError::CoarseTimes { folder }),
            Err(source) => Err(OpenDiskError::Io { folder, source }),
        }
    }

    /// Clears what a crash left, and says whether the file system keeps times well enough.
    fn prepare(&self) -> io::Result<bool> {
        let incoming = self.folder.join(INCOMING);
        fs::create_dir_all(&incoming)?;
        for left_over in fs::read_dir(&incoming)? {
            fs::remove_file(left_over?.path())?;
        }
        let probe = Incoming::new(&self.folder);
        let file = File::create_new(&probe.path)?;
        let stamped = UNIX_EPOCH + Duration::from_micros(1_700_000_000_123_457);
        file.set_modified(stamped)?;
        Ok(file.metadata()?.modified()? == stamped)
    }

    fn path(&self, key: &BlobKey) -> PathBuf {
        self.folder.join(key.as_str())
    }

    fn move_in(&self, path: &Path, sealed: &SealedFile, about: &About) -> io::Result<BlobVersion> {
        let version = self.stamp(sealed.file(), about)?;
        self.place(path, || sealed.move_to(path))?;
        Ok(version)
    }

    fn copy_in(&self, path: &Path, sealed: &SealedFile, about: &About) -> io::Result<BlobVersion> {
        let incoming = Incoming::new(&self.folder);
        make_parent(&incoming.path)?;
        let copy = File::create_new(&incoming.path)?;
        let mut buffer = vec![0; COPY_BUFFER_BYTES];
        let mut copied = 0;
        while copied < sealed.len() {
            let len = (sealed.len() - copied).min(COPY_BUFFER_BYTES as u64) as usize;
            sealed.file().read_exact_at(&mut buffer[..len], copied)?;
            copy.write_all_at(&buffer[..len], copied)?;
            copied += len as u64;
        }
        let version = self.stamp(&copy, about)?;
        self.place(path, || fs::rename(&incoming.path, path))?;
        Ok(version)
    }

    /// Makes a file that is not published yet a version of its own, which describes itself.
    fn stamp(&self, file: &File, about: &About) -> io::Result<BlobVersion> {
        file.set_modified(next_stamp())?;
        let version = version_of(&file.metadata()?);
        self.describe(file, about, &version);
        Ok(version)
    }

    /// Writes beside the bytes what they are. A blob without that is worth as much to every
    /// request, so nothing that goes wrong here keeps it from being published.
    fn describe(&self, file: &File, about: &About, version: &BlobVersion) {
        let reason = match encode(about, version) {
            None => format!("the description is longer than {ABOUT_BYTES_MAX} bytes"),
            Some(text) => match fsetxattr(file, ABOUT_NAME, &text, XattrFlags::empty()) {
                Ok(()) => return,
                Err(errno) => format!("cannot set the extended attribute {ABOUT_NAME}: {errno}"),
            },
        };
        if !self.has_warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                folder = %self.folder.display(),
                artifact = %about.artifact,
                reason,
                "a blob does not describe itself, so `artifactapi reindex` could not find out what it is; said once, there may be more"
            );
        }
    }

    /// Opens what is under a key, with its metadata as an open file has it: the name may lead
    /// elsewhere a moment later.
    fn open_file(&self, key: &BlobKey) -> io::Result<(File, Metadata)> {
        // A link in the store leads out of it: whoever put it there could have us serve any
        // file. Without NONBLOCK, a named pipe would hold the thread for ever.
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(self.path(key))?;
        let metadata = file.metadata()?;
        Ok((file, metadata))
    }

    /// Opens a version of a blob, which must be a plain file.
    fn open_version(
        &self,
        key: &BlobKey,
        version: &BlobVersion,
    ) -> Result<(File, Metadata), BlobError> {
        let (file, metadata) = match self.open_file(key) {
            Ok(opened) => opened,
            Err(error) if is_link(&error) => {
                return Err(corrupt(key, "it is a symbolic link".to_owned()));
            }
            Err(error) => return Err(failed("open", key, error)),
        };
        if !metadata.is_file() {
            return Err(corrupt(key, "it is not a file".to_owned()));
        }
        if !is_version(&metadata, version) {
            return Err(BlobError::Changed(key.clone()));
        }
        Ok((file, metadata))
    }

    /// Runs `name_it`, in a new folder if the blob's is not there.
    fn place(&self, path: &Path, name_it: impl Fn() -> io::Result<()>) -> io::Result<()> {
        match name_it() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let _kept = self.folders.read().unwrap_or_else(PoisonError::into_inner);
                make_parent(path)?;
                name_it()
            }
            named_or_failed => named_or_failed,
        }
    }

    fn show_remote(
        &self,
        remote: &fs::DirEntry,
        visit: &mut dyn FnMut(BlobMeta) -> ControlFlow<()>,
    ) -> io::Result<ControlFlow<()>> {
        let remote_name = remote.file_name();
        for hash in folders_in(&remote.path())? {
            let hash = hash?;
            let hash_name = hash.file_name();
            for file in entries_of(&hash.path())? {
                let file = file?;
                let name = file.file_name();
                let parts = (remote_name.to_str(), hash_name.to_str(), name.to_str());
                let (Some(remote), Some(hash), Some(name)) = parts else { continue };
                let Some(key) = BlobKey::from_listing(&format!("{remote}/{hash}/{name}")) else {
                    continue;
                };
                let Some(metadata) = unless_missing(file.metadata())? else { continue };
                if metadata.is_file() && visit(meta_of(key, &metadata)?).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}

impl BlobStore for DiskBlobs {
    /// As the port says. A sealed file that was published already is copied: moving it once more
    /// would take that blob away.
    fn publish(
        &self,
        key: &BlobKey,
        sealed: &SealedFile,
        about: &About,
    ) -> Result<BlobVersion, BlobError> {
        let path = self.path(key);
        let moved = (!sealed.is_moved()).then(|| self.move_in(&path, sealed, about));
        let published = match moved {
            Some(Err(error)) if error.kind() == io::ErrorKind::CrossesDevices => None,
            moved => moved,
        };
        let published = published.unwrap_or_else(|| self.copy_in(&path, sealed, about));
        self.open_files.forget(key);
        published.map_err(|error| failed("publish", key, error))
    }

    /// Syncs the file, then every folder from its own up to the data folder's entry for the
    /// store: a new name is as durable as the last folder that was synced.
    fn persist(&self, key: &BlobKey) -> Result<(), BlobError> {
        let path = self.path(key);
        let chain = path.ancestors().skip(1).take_while(|folder| folder.starts_with(&self.folder));
        let data_dir = self.folder.parent();
        for path in iter::once(path.as_path()).chain(chain).chain(data_dir) {
            let opened = File::open(path).map_err(|error| failed("persist", key, error))?;
            let unsynced = |source| BlobError::Unsynced { key: key.clone(), source };
            opened.sync_all().map_err(unsynced)?;
        }
        Ok(())
    }

    fn open(
        &self,
        key: &BlobKey,
        version: &BlobVersion,
        range: Range<u64>,
    ) -> Result<Body, BlobError> {
        let is_asked_for = |metadata: &Metadata| is_version(metadata, version);
        let (file, metadata) =
            self.open_files.open(key, is_asked_for, || self.open_version(key, version))?;
        let len = metadata.len();
        if range.start > range.end || range.end > len {
            return Err(corrupt(key, format!("it has {len} bytes, not {range:?}")));
        }
        Ok(Body::from_file(file, range.start, range.end - range.start))
    }

    fn stat(&self, key: &BlobKey) -> Result<Option<BlobMeta>, BlobError> {
        let (file, metadata) = match self.open_file(key) {
            Ok(opened) => opened,
            Err(error) if is_missing(&error) || is_link(&error) || is_socket(&error) => {
                return Ok(None);
            }
            Err(error) => return Err(failed("stat", key, error)),
        };
        if !metadata.is_file() {
            return Ok(None);
        }
        let meta = meta_of(key.clone(), &metadata).map_err(|error| failed("stat", key, error))?;
        let about = described(&file, &meta.version);
        Ok(Some(BlobMeta { about, ..meta }))
    }

    fn remove(&self, key: &BlobKey) -> Result<(), BlobError> {
        let path = self.path(key);
        let removed = unless_missing(fs::remove_file(&path));
        self.open_files.forget(key);
        removed.map_err(|error| failed("remove", key, error))?;
        let folder = path.parent().expect("a key has three parts");
        let _alone = self.folders.write().unwrap_or_else(PoisonError::into_inner);
        match fs::remove_dir(folder) {
            Ok(()) => {}
            // A publish was quicker, or another removal.
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
            Err(error) if is_missing(&error) => {}
            // The blob is gone, which is what was asked.
            Err(error) => {
                tracing::warn!(folder = %folder.display(), %error, "cannot remove an empty folder");
            }
        }
        Ok(())
    }

    fn each(&self, visit: &mut dyn FnMut(BlobMeta) -> ControlFlow<()>) -> Result<(), BlobError> {
        let failed = |error: io::Error| BlobError::Unavailable {
            operation: "list",
            key: format!("{}/*", self.folder.display()),
            source: error.into(),
        };
        self.open_files.forget_all();
        for remote in folders_in(&self.folder).map_err(failed)? {
            let shown = remote.and_then(|remote| self.show_remote(&remote, visit));
            if shown.map_err(failed)?.is_break() {
                break;
            }
        }
        Ok(())
    }
}

/// Brings to the disk whatever was written on the file system of `folder` before the call.
///
/// After an error the kernel may hold lost pages for written: a later success proves nothing
/// about what was written before the error.
///
/// # Errors
/// What the file system says.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    Ok(rustix::fs::syncfs(File::open(folder)?)?)
}

/// A name in [`INCOMING`], removed when dropped unless it was moved away.
struct Incoming {
    path: PathBuf,
}

impl Incoming {
    fn new(folder: &Path) -> Self {
        let number = NEXT_INCOMING.fetch_add(1, Ordering::Relaxed);
        Self { path: folder.join(INCOMING).join(format!("{number:016x}")) }
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if let Err(error) = unless_missing(fs::remove_file(&self.path)) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove a temporary name; the next start will");
        }
    }
}

/// A time for a published file: now, but never one that was given before. In microseconds,
/// because not every file system keeps nanoseconds.
fn next_stamp() -> SystemTime {
    let now = Clock::system().now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = now.as_micros() as u64;
    let later = |last: u64| Some(now.max(last + 1));
    let last = LAST_STAMP_MICROS
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, later)
        .expect("there is always a later time");
    UNIX_EPOCH + Duration::from_micros(now.max(last + 1))
}

fn version_of(metadata: &Metadata) -> BlobVersion {
    let mut version = String::new();
    write_version(metadata, &mut version).expect("a string takes everything");
    BlobVersion(version)
}

/// Whether this is the version of a file: without making one, because each hit asks.
fn is_version(metadata: &Metadata, version: &BlobVersion) -> bool {
    /// Takes what it is said to begin with off a text.
    struct Rest<'a>(&'a str);
    impl fmt::Write for Rest<'_> {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            self.0 = self.0.strip_prefix(text).ok_or(fmt::Error)?;
            Ok(())
        }
    }
    let mut rest = Rest(&version.0);
    write_version(metadata, &mut rest).is_ok() && rest.0.is_empty()
}

fn write_version(metadata: &Metadata, to: &mut impl fmt::Write) -> fmt::Result {
    let (size, seconds, nanos) = (metadata.len(), metadata.mtime(), metadata.mtime_nsec());
    write!(to, "{size}-{seconds}.{nanos:09}")
}

/// What a file says of itself, if that is about this version of it.
fn described(file: &File, version: &BlobVersion) -> Option<About> {
    let mut text = [0; ABOUT_BYTES_MAX];
    // Whatever the reason, there is no description then: no attribute, no file system that
    // keeps any, or one that is longer than ours are.
    let len = fgetxattr(file, ABOUT_NAME, &mut text).ok()?;
    decode(&text[..len], version)
}

/// Metadata without a description, which takes an open file.
fn meta_of(key: BlobKey, metadata: &Metadata) -> io::Result<BlobMeta> {
    Ok(BlobMeta {
        key,
        version: version_of(metadata),
        size: metadata.len(),
        published_at: metadata.modified()?,
        about: None,
    })
}

/// Makes the folder of `path`. It tries the innermost one first: the outer ones are there,
/// nearly always.
fn make_parent(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path.parent().expect("it lies in the store's folder"))
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn is_link(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::LOOP.raw_os_error())
}

/// A socket's name can't be opened.
fn is_socket(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::NXIO.raw_os_error())
}

fn unless_missing<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The entries of a folder, which may be gone: then there are none.
fn entries_of(folder: &Path) -> io::Result<impl Iterator<Item = io::Result<fs::DirEntry>>> {
    Ok(unless_missing(fs::read_dir(folder))?.into_iter().flatten())
}

/// The folders in a folder. Links are passed over, and so is [`INCOMING`].
fn folders_in(folder: &Path) -> io::Result<impl Iterator<Item = io::Result<fs::DirEntry>>> {
    Ok(entries_of(folder)?.filter(|entry| match entry {
        Ok(entry) => {
            entry.file_type().is_ok_and(|kind| kind.is_dir()) && entry.file_name() != INCOMING
        }
        Err(_) => true,
    }))
}

fn corrupt(key: &BlobKey, reason: String) -> BlobError {
    BlobError::Corrupt { key: key.clone(), reason }
}

fn failed(operation: &'static str, key: &BlobKey, error: io::Error) -> BlobError {
    if is_no_space(&error) {
        return BlobError::Full(key.clone());
    }
    if operation == "open" && is_missing(&error) {
        return BlobError::Missing(key.clone());
    }
    BlobError::Unavailable { operation, key: key.to_string(), source: error.into() }
}

#[cfg(test)]
mod tests;
