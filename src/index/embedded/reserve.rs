//! Room on the disk that is kept for what the index must write once there is no other.
//!
//! A removal is written to the log before it frees anything, so on a full disk nothing could
//! go, and no run could begin. A file beside the index therefore takes up [`RESERVE_BYTES`].
//! Removals, the begin of a run and the records of its syncs shorten it where they find no
//! room, a piece at a time, and it grows back at the next removal or sync, if there is some then.
//! Puts and uses get none of it: a cache can do without them.
//!
//! The file is opened anew for each step: whoever removes it by hand shall have its room.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rusqlite::{ErrorCode, ffi};
use rustix::fs::{FallocateFlags, fallocate, fstatvfs};

/// The file, beside the index.
const FILE: &str = "index.reserve";
/// How long it is. Before the log begins anew, the index's file may have to grow by some hundred
/// pages of 4 KiB, and each start takes about 100 KiB.
pub(super) const RESERVE_BYTES: u64 = 4 << 20;
/// How much is given up at a time. A removal takes some ten pages; what is given up beyond that
/// may go to whoever is quickest.
pub(super) const PIECE_BYTES: u64 = 256 << 10;

/// The room that is kept.
#[derive(Debug)]
pub(super) struct Reserve {
    file: PathBuf,
    /// Whether some of it was given up and has not grown back.
    is_given: bool,
    /// Whether the log says already that no room can be kept.
    has_warned: bool,
}

impl Reserve {
    /// The one of the index in this file, as it was left.
    pub(super) fn beside(index: &Path) -> Self {
        Self { file: index.with_file_name(FILE), is_given: false, has_warned: false }
    }

    /// Gives a piece of it to the file system; says whether there was one.
    pub(super) fn give_up(&mut self) -> bool {
        let shorten = |file: File| {
            let len = file.metadata()?.len();
            file.set_len(len.saturating_sub(PIECE_BYTES))?;
            Ok(len > 0)
        };
        let given = OpenOptions::new().write(true).open(&self.file).and_then(shorten);
        let has_given = match given {
            Ok(has_given) => has_given,
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => {
                tracing::warn!(file = %self.file.display(), %error, "the room that is kept on the disk cannot be given up");
                false
            }
        };
        if has_given && !std::mem::replace(&mut self.is_given, true) {
            tracing::warn!(file = %self.file.display(), "the disk is full: the index writes into room that was kept for that; purge something, or make room otherwise");
        }
        has_given
    }

    /// Lets it grow back as far as there is room.
    pub(super) fn restore(&mut self) {
        match self.grow() {
            Ok(true) if self.is_given => {
                tracing::info!(file = %self.file.display(), "the disk has room again, and some of it is kept as before");
                self.is_given = false;
            }
            Ok(_) => {}
            // A signal may break it off: the next sync is soon enough, too.
            Err(error) if is_no_space(&error) || error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                if !std::mem::replace(&mut self.has_warned, true) {
                    tracing::warn!(file = %self.file.display(), %error, "no room can be kept on the disk for the index: once it is full, nothing can be purged and no server starts; said once");
                }
            }
        }
    }

    /// The same where some of it was given up: nearly free elsewhere.
    pub(super) fn restore_given(&mut self) {
        if self.is_given {
            self.restore();
        }
    }

    /// Says whether it is whole.
    fn grow(&self) -> io::Result<bool> {
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).open(&self.file)?;
        // Not its length: a copy of the folder may have left holes.
        let has = file.metadata()?.blocks() * 512;
        let missing = RESERVE_BYTES.saturating_sub(has);
        let disk = fstatvfs(&file)?;
        let grows = missing.min(disk.f_bavail.saturating_mul(disk.f_frsize));
        if grows > 0 {
            fallocate(&file, FallocateFlags::empty(), 0, has + grows)?;
        }
        Ok(grows == missing)
    }
}

/// Whether a write failed for want of room on the disk, and for nothing else.
pub(super) fn is_full(error: &rusqlite::Error) -> bool {
    error.sqlite_error().is_some_and(|error| {
        // The second is about the index of the log, which is mapped and so made in advance.
        error.code == ErrorCode::DiskFull || error.extended_code == ffi::SQLITE_IOERR_SHMSIZE
    })
}

/// The same of the file system.
pub(super) fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn reserve() -> (Reserve, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        (Reserve::beside(&folder.path().join("index.sqlite")), folder)
    }

    fn taken(reserve: &Reserve) -> u64 {
        fs::metadata(&reserve.file).unwrap().blocks() * 512
    }

    #[test]
    fn it_takes_up_room_gives_it_up_piece_by_piece_and_grows_back() {
        let (mut reserve, _folder) = reserve();
        assert!(!reserve.give_up(), "there is nothing yet");
        reserve.restore();
        assert!(taken(&reserve) >= RESERVE_BYTES, "really allocated");
        let mut pieces = 0;
        while reserve.give_up() {
            pieces += 1;
        }
        assert_eq!(pieces, RESERVE_BYTES / PIECE_BYTES);
        assert_eq!(fs::metadata(&reserve.file).unwrap().len(), 0);
        reserve.restore_given();
        assert!(taken(&reserve) >= RESERVE_BYTES && !reserve.is_given);
    }

    #[test]
    fn holes_are_filled_and_a_removed_file_comes_back() {
        let (mut reserve, _folder) = reserve();
        File::create(&reserve.file).unwrap().set_len(RESERVE_BYTES).unwrap();
        reserve.restore();
        assert!(taken(&reserve) >= RESERVE_BYTES);
        fs::remove_file(&reserve.file).unwrap();
        assert!(!reserve.give_up());
        reserve.restore();
        assert!(taken(&reserve) >= RESERVE_BYTES);
    }

    #[test]
    fn only_a_full_disk_is_one() {
        let check = |code, expected| {
            let error = rusqlite::Error::SqliteFailure(ffi::Error::new(code), None);
            assert_eq!(is_full(&error), expected, "{error}");
        };
        check(ffi::SQLITE_FULL, true);
        check(ffi::SQLITE_IOERR_SHMSIZE, true);
        check(ffi::SQLITE_IOERR_WRITE, false);
        check(ffi::SQLITE_READONLY, false);
        check(ffi::SQLITE_CANTOPEN, false);
    }
}
