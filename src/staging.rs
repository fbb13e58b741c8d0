//! Bytes on their way in: scratch files under a quota, hashed as they are written.
//!
//! A [`StagedFile`] grows while readers follow it. [`StagedFile::seal`] turns it into a
//! [`SealedFile`] only if every promised byte arrived and hashed as expected, and only a
//! sealed file can be published. The last of them and of the readers removes the [`Scratch`] file
//! and gives its reservation back: however slow the readers are, the quota bounds what lies on
//! the disk. What a store has taken is the store's.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use sha2::Digest as _;

use self::hashing::Hashing;
use crate::artifact::{Checksum, Digest};

mod hashing;

/// How much a file of unknown length reserves at first, and at most at a time. In between, as
/// much again as it has: small files hold up nobody, and large ones ask seldom.
const RESERVATION_MIN_BYTES: u64 = 256 << 10;
const RESERVATION_STEP_BYTES: u64 = 8 << 20;
/// From this length on the file system is asked whether it has room: a small file is sooner
/// written than asked about.
const ASKED_ABOUT_BYTES_MIN: u64 = 1 << 20;
/// Scratch files end with this; others in the folder are left alone.
const SUFFIX: &str = ".part";

/// The scratch folder and its quota.
#[derive(Debug, Clone)]
pub struct Staging {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    folder: PathBuf,
    bytes_max: u64,
    reserved: AtomicU64,
    next: AtomicU64,
}

/// What a body must be to be sealed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Expect {
    /// Its length; `None` where upstream did not announce one.
    pub len: Option<u64>,
    /// Its checksum; `None` where nothing names one.
    pub checksum: Option<Checksum>,
}

/// How much a file system holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Disk {
    /// Bytes that are left for us.
    pub free_bytes: u64,
    /// Bytes that it has.
    pub size_bytes: u64,
}

/// Why bytes can't be staged.
#[derive(Debug, thiserror::Error)]
pub enum StagingError {
    /// The quota or the disk is used up.
    #[error("no space to stage {wanted} more bytes: {}", who_is_full(*wanted, *reserved, *bytes_max))]
    Full {
        /// How much more was wanted.
        wanted: u64,
        /// How much is reserved.
        reserved: u64,
        /// The quota.
        bytes_max: u64,
    },
    /// More bytes came than were announced.
    #[error("the body is longer than the announced {0} bytes")]
    TooLong(u64),
    /// The file system refused.
    #[error("cannot write a scratch file in {folder}")]
    Io {
        /// The scratch folder.
        folder: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl StagingError {
    /// Whether it is the scratch space that fails, for want of room or otherwise, and not the body.
    pub fn is_of_scratch_space(&self) -> bool {
        matches!(self, Self::Full { .. } | Self::Io { .. })
    }
}

/// Why a body was not sealed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// Fewer bytes came than were announced.
    #[error("{written} of {expected} bytes came")]
    Short {
        /// How many came.
        written: u64,
        /// How many were announced.
        expected: u64,
    },
    /// The bytes are not those that were asked for.
    #[error("the body's checksum is {found}, expected {expected}")]
    Checksum {
        /// What the bytes hash to.
        found: String,
        /// What they should.
        expected: String,
    },
}

impl Staging {
    /// Opens the scratch folder, creating it if need be, and removes what an earlier run left.
    ///
    /// # Errors
    /// What the file system says.
    pub fn open(folder: &Path, bytes_max: u64) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        for left_over in fs::read_dir(folder)? {
            let path = left_over?.path();
            if path.to_string_lossy().ends_with(SUFFIX) {
                fs::remove_file(path)?;
            }
        }
        let inner = Inner {
            folder: folder.to_owned(),
            bytes_max,
            reserved: AtomicU64::new(0),
            next: AtomicU64::new(0),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Begins a scratch file and reserves room for the announced length.
    ///
    /// # Errors
    /// [`StagingError::Full`] where the quota does not allow it, or the file system has no room
    /// for all of it, though what others write meanwhile may still take that; or the file
    /// system's.
    pub fn begin(&self, expect: Expect) -> Result<StagedFile, StagingError> {
        let len = expect.len.unwrap_or(0);
        if len >= ASKED_ABOUT_BYTES_MIN && self.disk().is_some_and(|disk| disk.free_bytes < len) {
            return Err(self.full(len));
        }
        let reservation = Reservation { staging: self.clone(), bytes: AtomicU64::new(0) };
        reservation.grow_to(len)?;
        let number = self.inner.next.fetch_add(1, Ordering::Relaxed);
        let path = self.inner.folder.join(format!("{number:016x}{SUFFIX}"));
        let file = self.create(&path).map_err(|source| self.io_error(source))?;
        Ok(StagedFile {
            scratch: Arc::new(Scratch {
                file: Arc::new(file),
                path,
                is_moved: AtomicBool::new(false),
                reservation,
            }),
            written: 0,
            expect,
            hashing: Hashing::begin(matches!(expect.checksum, Some(Checksum::Sha512(_)))),
        })
    }

    /// The file system that staged files lie on; `None` where it does not say.
    pub fn disk(&self) -> Option<Disk> {
        let disk = rustix::fs::statvfs(&self.inner.folder).ok()?;
        let bytes = |blocks: u64| blocks.saturating_mul(disk.f_frsize);
        Some(Disk { free_bytes: bytes(disk.f_bavail), size_bytes: bytes(disk.f_blocks) })
    }

    /// Creates a file, in a new folder where somebody took the folder away.
    fn create(&self, path: &Path) -> io::Result<File> {
        let create = || OpenOptions::new().read(true).write(true).create_new(true).open(path);
        match create() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(&self.inner.folder)?;
                create()
            }
            created_or_failed => created_or_failed,
        }
    }

    /// Bytes that are reserved now.
    pub fn reserved_bytes(&self) -> u64 {
        self.inner.reserved.load(Ordering::Relaxed)
    }

    /// The quota in bytes.
    pub fn bytes_max(&self) -> u64 {
        self.inner.bytes_max
    }

    fn io_error(&self, source: io::Error) -> StagingError {
        if is_no_space(&source) {
            return self.full(1);
        }
        StagingError::Io { folder: self.inner.folder.clone(), source }
    }

    /// The file system has no room for so many more bytes, whatever the quota says.
    fn full(&self, wanted: u64) -> StagingError {
        let (reserved, bytes_max) = (self.reserved_bytes(), self.inner.bytes_max);
        StagingError::Full { wanted, reserved, bytes_max }
    }
}

/// Says what has to grow: a file system that is full has room in the quota.
fn who_is_full(wanted: u64, reserved: u64, bytes_max: u64) -> String {
    if wanted <= bytes_max.saturating_sub(reserved) {
        return "the file system of DATA_DIR/staging is full".to_owned();
    }
    format!("{reserved} of {bytes_max} are in use; STAGING_BYTES_MAX allows no more")
}

/// Whether the file system is full, or the quota of its user is, or a file would be larger than
/// the process may make one (`RLIMIT_FSIZE`).
pub fn is_no_space(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

/// Room in the quota, given back when dropped.
#[derive(Debug)]
struct Reservation {
    staging: Staging,
    // Only who writes the file makes it grow.
    bytes: AtomicU64,
}

impl Reservation {
    /// Makes room for a file that grows to `bytes` and will, as far as one knows, grow on. What
    /// comes may be little, so where there is no room for more, it gets what it needs.
    fn grow_on_to(&self, bytes: u64) -> Result<(), StagingError> {
        let has = self.bytes.load(Ordering::Relaxed);
        if bytes <= has {
            return Ok(());
        }
        let step = has.clamp(RESERVATION_MIN_BYTES, RESERVATION_STEP_BYTES);
        self.grow_to(bytes.max(has + step)).or_else(|_| self.grow_to(bytes))
    }

    fn grow_to(&self, bytes: u64) -> Result<(), StagingError> {
        let wanted = bytes.saturating_sub(self.bytes.load(Ordering::Relaxed));
        let inner = &self.staging.inner;
        let grown = inner.reserved.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |reserved| {
            reserved.checked_add(wanted).filter(|sum| *sum <= inner.bytes_max)
        });
        match grown {
            Ok(_) => {
                self.bytes.fetch_add(wanted, Ordering::Relaxed);
                Ok(())
            }
            Err(reserved) => {
                Err(StagingError::Full { wanted, reserved, bytes_max: inner.bytes_max })
            }
        }
    }

    fn give_back(&self) {
        let bytes = self.bytes.swap(0, Ordering::Relaxed);
        self.staging.inner.reserved.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.give_back();
    }
}

/// A scratch file on the disk: removed when dropped, unless it was moved.
#[derive(Debug)]
pub struct Scratch {
    // Closed before the room is given back: whoever clones it holds on to the scratch file too.
    file: Arc<File>,
    path: PathBuf,
    is_moved: AtomicBool,
    reservation: Reservation,
}

impl Scratch {
    /// The bytes. Readers read at offsets and do not move the cursor.
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// A file that lies in no scratch folder.
    #[cfg(test)]
    pub fn of(file: File) -> Self {
        let staging = Staging { inner: Arc::default() };
        let reservation = Reservation { staging, bytes: AtomicU64::new(0) };
        Self {
            file: Arc::new(file),
            path: PathBuf::new(),
            is_moved: AtomicBool::new(true),
            reservation,
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if *self.is_moved.get_mut() {
            return;
        }
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove a scratch file; the next start will");
        }
    }
}

/// A file that grows.
#[derive(Debug)]
pub struct StagedFile {
    scratch: Arc<Scratch>,
    written: u64,
    expect: Expect,
    hashing: Hashing,
}

impl StagedFile {
    /// The file for readers, who may read at any offset below [`StagedFile::written`].
    pub fn share(&self) -> Arc<Scratch> {
        Arc::clone(&self.scratch)
    }

    /// How many bytes are written.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// What the body must be.
    pub fn expect(&self) -> Expect {
        self.expect
    }

    /// Appends the first `len` bytes of a buffer. It may be another buffer afterwards, as long
    /// as one that was given before: a large file is hashed on a thread of its own, which takes
    /// what is written.
    ///
    /// # Errors
    /// [`StagingError`]: the quota, the announced length or the file system ended.
    pub fn append(&mut self, buffer: &mut Vec<u8>, len: usize) -> Result<(), StagingError> {
        let end = self.written + len as u64;
        match self.expect.len {
            Some(len) if end > len => return Err(StagingError::TooLong(len)),
            Some(_) => {}
            None => self.scratch.reservation.grow_on_to(end)?,
        }
        let staging = &self.scratch.reservation.staging;
        (&**self.scratch.file())
            .write_all(&buffer[..len])
            .map_err(|source| staging.io_error(source))?;
        self.hashing.add(buffer, len);
        self.written = end;
        Ok(())
    }

    /// Appends these bytes.
    #[cfg(test)]
    pub fn append_bytes(&mut self, bytes: &[u8]) -> Result<(), StagingError> {
        self.append(&mut bytes.to_vec(), bytes.len())
    }

    /// Ends the file, if it is what was expected.
    ///
    /// # Errors
    /// [`SealError`]; the scratch file is gone then, unless somebody reads it.
    pub fn seal(self) -> Result<SealedFile, SealError> {
        if let Some(expected) = self.expect.len.filter(|len| *len != self.written) {
            return Err(SealError::Short { written: self.written, expected });
        }
        let sums = self.hashing.finish();
        let digest = Digest(sums.sha256.finalize().into());
        if let Some(expected) = self.expect.checksum {
            let found = match sums.sha512 {
                Some(sha512) => Checksum::Sha512(sha512.finalize().into()),
                None => Checksum::Sha256(digest),
            };
            if found != expected {
                return Err(SealError::Checksum {
                    found: found.to_string(),
                    expected: expected.to_string(),
                });
            }
        }
        Ok(SealedFile { scratch: self.scratch, len: self.written, digest })
    }
}

/// A whole body: every promised byte is there and hashed as expected.
#[derive(Debug)]
pub struct SealedFile {
    scratch: Arc<Scratch>,
    len: u64,
    digest: Digest,
}

impl SealedFile {
    /// The bytes. A store reads at offsets and does not move the cursor.
    pub fn file(&self) -> &File {
        self.scratch.file()
    }

    /// Moves the scratch file to `path`, over what is there, for a store that keeps it as it is.
    /// From then on it is the store's and takes no room of the quota; [`SealedFile::file`] stays
    /// open.
    ///
    /// # Errors
    /// What the file system says; the scratch file is where it was then.
    pub fn move_to(&self, path: &Path) -> io::Result<()> {
        fs::rename(&self.scratch.path, path)?;
        self.scratch.is_moved.store(true, Ordering::Relaxed);
        self.scratch.reservation.give_back();
        Ok(())
    }

    /// Whether it was moved.
    pub fn is_moved(&self) -> bool {
        self.scratch.is_moved.load(Ordering::Relaxed)
    }

    /// Where the scratch file lies.
    #[cfg(test)]
    pub fn path(&self) -> &Path {
        &self.scratch.path
    }

    /// Their length.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Their digest.
    pub fn digest(&self) -> Digest {
        self.digest
    }
}

#[cfg(test)]
mod tests {
    use sha2::Sha512;

    use super::*;

    fn staging(bytes_max: u64) -> (tempfile::TempDir, Staging) {
        let folder = tempfile::tempdir().unwrap();
        let staging = Staging::open(folder.path(), bytes_max).unwrap();
        (folder, staging)
    }

    fn files_in(folder: &tempfile::TempDir) -> usize {
        fs::read_dir(folder.path()).unwrap().count()
    }

    fn expecting(len: u64) -> Expect {
        Expect { len: Some(len), checksum: None }
    }

    #[test]
    fn only_what_was_promised_is_sealed() {
        let (folder, staging) = staging(100);
        let mut whole = staging.begin(expecting(4)).unwrap();
        whole.append_bytes(b"ab").unwrap();
        whole.append_bytes(b"cd").unwrap();
        let sealed = whole.seal().unwrap();
        assert_eq!((sealed.len(), sealed.digest()), (4, Digest::of(b"abcd")));
        drop(sealed);

        let mut short = staging.begin(expecting(4)).unwrap();
        short.append_bytes(b"abc").unwrap();
        assert_eq!(short.seal().unwrap_err(), SealError::Short { written: 3, expected: 4 });

        let mut long = staging.begin(expecting(4)).unwrap();
        assert!(matches!(long.append_bytes(b"abcde"), Err(StagingError::TooLong(4))));
        drop(long);
        assert_eq!((files_in(&folder), staging.reserved_bytes()), (0, 0));
    }

    #[test]
    fn checksums_of_both_algorithms_are_held_against_the_bytes() {
        let (_folder, staging) = staging(100 << 20);
        let sha512 = Checksum::Sha512(Sha512::digest(b"abc").into());
        let sha256 = Checksum::Sha256(Digest::of(b"abc"));
        for (checksum, bytes, fits) in [
            (sha512, b"abc", true),
            (sha512, b"abd", false),
            (sha256, b"abc", true),
            (sha256, b"abd", false),
        ] {
            let mut staged = staging.begin(Expect { len: None, checksum: Some(checksum) }).unwrap();
            staged.append_bytes(bytes).unwrap();
            assert_eq!(staged.seal().is_ok(), fits, "{checksum}");
        }
    }

    #[test]
    fn the_quota_bounds_announced_and_unannounced_bytes() {
        let (folder, staging) = staging(RESERVATION_MIN_BYTES);
        let held = staging.begin(expecting(11)).unwrap();
        let refused = staging.begin(expecting(RESERVATION_MIN_BYTES)).unwrap_err();
        assert!(matches!(refused, StagingError::Full { .. }));
        assert!(refused.to_string().contains("STAGING_BYTES_MAX"), "{refused}");
        // What does not find room for a step gets what it needs, and not a byte beyond the quota.
        let mut unannounced = staging.begin(Expect::default()).unwrap();
        unannounced.append_bytes(b"x").unwrap();
        assert_eq!(staging.reserved_bytes(), 12);
        let rest = vec![0; RESERVATION_MIN_BYTES as usize - 12];
        unannounced.append_bytes(&rest).unwrap();
        assert!(matches!(unannounced.append_bytes(b"x"), Err(StagingError::Full { .. })));
        drop(held);
        unannounced.append_bytes(b"x").unwrap();
        drop(unannounced);
        assert_eq!((files_in(&folder), staging.reserved_bytes()), (0, 0));
    }

    #[test]
    fn what_is_unannounced_reserves_little_for_a_small_file_and_steps_for_a_large_one() {
        let (_folder, staging) = staging(1 << 30);
        let mut growing = staging.begin(Expect::default()).unwrap();
        growing.append_bytes(b"small").unwrap();
        assert_eq!(staging.reserved_bytes(), RESERVATION_MIN_BYTES);
        let mut reservations = 1;
        while growing.written() < 24 << 20 {
            let before = staging.reserved_bytes();
            growing.append_bytes(&[0; 128 << 10]).unwrap();
            let after = staging.reserved_bytes();
            assert!(after - growing.written() <= RESERVATION_STEP_BYTES);
            reservations += usize::from(after > before);
        }
        assert!(reservations <= 9, "{reservations}");
    }

    #[test]
    fn room_is_kept_until_the_last_reader_has_gone() {
        let (folder, staging) = staging(4);
        let mut staged = staging.begin(expecting(4)).unwrap();
        staged.append_bytes(b"abcd").unwrap();
        let readers = [staged.share(), staged.share()];
        drop(staged.seal().unwrap());
        for reader in readers {
            assert!(matches!(staging.begin(expecting(1)), Err(StagingError::Full { .. })));
            drop(reader);
        }
        assert_eq!((files_in(&folder), staging.reserved_bytes()), (0, 0));
    }

    #[test]
    fn what_a_store_has_taken_needs_no_room_though_it_is_read() {
        let (folder, staging) = staging(4);
        let mut staged = staging.begin(expecting(4)).unwrap();
        staged.append_bytes(b"abcd").unwrap();
        let reader = staged.share();
        let sealed = staged.seal().unwrap();
        assert!(sealed.move_to(Path::new("/nowhere/at/all")).is_err());
        assert_eq!(staging.reserved_bytes(), 4);
        sealed.move_to(&folder.path().join("stored")).unwrap();
        assert_eq!(staging.reserved_bytes(), 0);
        drop((sealed, reader));
        assert_eq!((files_in(&folder), staging.reserved_bytes()), (1, 0));
    }

    #[test]
    fn a_folder_that_vanished_is_made_again() {
        let (folder, _) = staging(1);
        let staging = Staging::open(&folder.path().join("staging"), 4).unwrap();
        fs::remove_dir(folder.path().join("staging")).unwrap();
        let mut staged = staging.begin(expecting(4)).unwrap();
        staged.append_bytes(b"abcd").unwrap();
        assert!(staged.seal().is_ok());
        assert_eq!(staging.reserved_bytes(), 0);
    }

    #[test]
    fn a_full_file_system_is_told_from_a_full_quota() {
        let (_folder, staging) = staging(100);
        let error = staging.io_error(io::ErrorKind::StorageFull.into()).to_string();
        assert!(error.contains("file system") && !error.contains("STAGING_BYTES_MAX"), "{error}");
    }

    #[test]
    fn an_absurd_announced_length_is_refused_not_allocated() {
        let (_folder, staging) = staging(u64::MAX - 1);
        assert!(staging.begin(expecting(u64::MAX)).is_err());
    }

    #[test]
    fn left_overs_of_an_earlier_run_go_and_other_files_stay() {
        let (folder, _staging) = staging(10);
        fs::write(folder.path().join("0000.part"), b"x").unwrap();
        fs::write(folder.path().join("README"), b"x").unwrap();
        Staging::open(folder.path(), 10).unwrap();
        assert_eq!(files_in(&folder), 1);
    }
}
