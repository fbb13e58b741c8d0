//! Discovery: what an upstream says that it has.
//!
//! Each module reads one kind of listing: the indexes of package repositories ([`apk`],
//! [`rpm`], [`deb`]), HTML listings of folders ([`html`]), and the JSON of two kinds of release
//! hosts ([`hashicorp`], [`github`]). All of them are pure and stream: bytes in, one
//! [`Listed`] after another out, and no more in memory than one line, tag or record. Nothing
//! here asks anybody for anything, and nothing here knows what is done with a listing.
//!
//! A listing is a stranger's text. It never leads out of the remote: a name becomes an
//! [`ArtifactPath`] or is left out, and a URL counts only below one of the remote's base URLs
//! ([`links`]); what an index of releases has at another host, as mirrors keep it, is taken for
//! the file of the same place in the remote. Lines, tags and unpacked bytes are bounded; whoever calls bounds the bytes that
//! come in, the entries and the time.

use std::io;
use std::ops::ControlFlow;

use crate::artifact::ArtifactPath;

pub mod apk;
pub mod deb;
pub mod github;
pub mod hashicorp;
pub mod html;
mod lines;
pub mod links;
mod markup;
pub mod prefix;
pub mod rpm;
mod tar;
pub mod unpack;

/// One file that a listing names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Where it is inside the remote.
    pub path: ArtifactPath,
    /// Its length in bytes, where the listing tells it.
    pub size: Option<u64>,
}

/// Takes one file after another; a `Break` ends the reading early, which is no error.
pub type Visit<'a> = &'a mut dyn FnMut(Listed) -> ControlFlow<()>;

/// Why a listing can't be read. Whoever knows its name adds it.
#[derive(Debug, thiserror::Error)]
pub enum ListingError {
    /// Its bytes did not come, could not be unpacked, or were too many.
    #[error("it cannot be read: {0}")]
    Read(#[from] io::Error),
    /// It is not what it should be.
    #[error("it is malformed: {0}")]
    Malformed(String),
}

impl ListingError {
    fn malformed(why: impl Into<String>) -> Self {
        Self::Malformed(why.into())
    }
}

impl From<serde_json::Error> for ListingError {
    fn from(error: serde_json::Error) -> Self {
        match error.io_error_kind() {
            Some(kind) => Self::Read(io::Error::new(kind, error)),
            None => Self::Malformed(format!("it is not the JSON that was expected: {error}")),
        }
    }
}

/// A file below a folder that is empty or ends in `/`, named as it is, without any encoding;
/// `None` for a name that leads elsewhere.
fn in_folder(folder: &str, name: &str) -> Option<ArtifactPath> {
    // A query would make it another artifact than the file that the listing means.
    if name.contains('?') {
        return None;
    }
    let name = name.strip_prefix("./").unwrap_or(name);
    ArtifactPath::from_canonical(format!("{folder}{name}")).ok()
}

#[cfg(test)]
mod tests;
