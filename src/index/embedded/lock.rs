//! One process per `DATA_DIR`.
//!
//! Two would each believe to know every generation, and the second one's start would clear
//! the first one's scratch files.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::reserve::is_no_space;

/// The file that is locked. It stays when the lock goes: removing it would let a third
/// process lock a new file while the second still holds this one.
const FILE: &str = "lock";
/// How much of the file is read for the number of its holder, in bytes.
const HOLDER_MAX: u64 = 32;

/// Holds a data folder until it is dropped, or until the process ends in any way.
#[derive(Debug)]
pub struct DataDirLock {
    _file: File,
}

/// Why a data folder can't be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process has it.
    #[error(
        "{data_dir} is in use by another artifactapi (process {holder}): stop that one, or give this one a DATA_DIR of its own"
    )]
    InUse {
        /// The data folder.
        data_dir: PathBuf,
        /// The process that says it has it, in its own numbering.
        holder: String,
    },
    /// The file system refused.
    #[error("cannot lock {data_dir}")]
    Io {
        /// The data folder.
        data_dir: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Takes a data folder for this process, creating it if need be. Does not wait.
///
/// # Errors
/// [`LockError`].
pub fn lock_data_dir(data_dir: &Path) -> Result<DataDirLock, LockError> {
    let io_error = |source| LockError::Io { data_dir: data_dir.to_owned(), source };
    fs::create_dir_all(data_dir).map_err(io_error)?;
    let path = data_dir.join(FILE);
    let mut options = OpenOptions::new();
    let mut file =
        options.read(true).write(true).create(true).truncate(false).open(path).map_err(io_error)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // Only for the message: a number that can't be read is not worth another error.
            let readable = file.take(HOLDER_MAX).read_to_string(&mut holder).is_ok();
            let known = readable && !holder.trim().is_empty();
            let holder = if known { holder.trim().to_owned() } else { "unknown".to_owned() };
            return Err(LockError::InUse { data_dir: data_dir.to_owned(), holder });
        }
        Err(TryLockError::Error(source)) => return Err(io_error(source)),
    }
    match file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())) {
        // Only for the message, too, and a full disk is to be started on.
        Err(error) if !is_no_space(&error) => return Err(io_error(error)),
        _ => {}
    }
    Ok(DataDirLock { _file: file })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_folder_is_had_once_and_again_after_its_holder_ended() {
        let parent = tempfile::tempdir().unwrap();
        let data_dir = parent.path().join("data");
        let held = lock_data_dir(&data_dir).unwrap();
        let refused = lock_data_dir(&data_dir).unwrap_err().to_string();
        let holder = format!("process {})", std::process::id());
        assert!(refused.contains(&holder) && refused.contains("DATA_DIR"), "{refused}");
        drop(held);
        lock_data_dir(&data_dir).unwrap();
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let parent = tempfile::tempdir().unwrap();
        let file = parent.path().join("file");
        fs::write(&file, b"").unwrap();
        let error = lock_data_dir(&file.join("data")).unwrap_err();
        assert!(matches!(error, LockError::Io { .. }) && error.to_string().contains("file/data"));
    }
}
