//! One artifact of a batch, and what became of it.

use std::ops::ControlFlow;
use std::sync::Arc;

use serde_json::{Value, json};

use super::request::Options;
use crate::artifact::{ArtifactPath, BlobKey, Digest, Entry, RemoteName};
use crate::cache::{Cache, Filled, Target, Wish};
use crate::chain::chain;

/// One artifact to cache.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) target: Arc<Target>,
    pub(super) path: ArtifactPath,
    /// The URL that it was asked for by.
    pub(super) url: Option<String>,
    /// Where to store it, if not under its usual key.
    pub(super) blob: Option<BlobKey>,
    /// Its length, where a listing told it.
    pub(super) size: Option<u64>,
}

/// What became of one artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done {
    /// Its remote, where that is known.
    pub remote: Option<RemoteName>,
    /// Its path inside the remote, or what was asked for where it has none.
    pub path: String,
    /// The URL that it was asked for by, without any credential.
    pub url: Option<String>,
    /// How it ended.
    pub status: Status,
    /// Its length in bytes, where that is known.
    pub bytes: Option<u64>,
    /// Its digest, once it is stored.
    pub sha256: Option<Digest>,
    /// What went wrong.
    pub error: Option<String>,
}

/// How one artifact of a batch ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It was fetched and stored.
    Cached,
    /// It was stored already.
    AlreadyCached,
    /// It would be fetched (`dry_run`).
    WouldCache,
    /// It could not be fetched or stored.
    Failed,
    /// It may not be fetched.
    Refused,
    /// The batch was cancelled first.
    Cancelled,
}

impl Status {
    /// The word for it in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cached => "cached",
            Self::AlreadyCached => "already_cached",
            Self::WouldCache => "would_cache",
            Self::Failed => "failed",
            Self::Refused => "refused",
            Self::Cancelled => "cancelled",
        }
    }
}

impl Done {
    pub(super) fn refused(path: String, why: String) -> Self {
        let status = Status::Refused;
        let error = Some(why);
        Self { remote: None, path, url: None, status, bytes: None, sha256: None, error }
    }

    /// As `artifacts` lists it.
    pub fn to_json(&self) -> Value {
        json!({
            "remote": self.remote.as_ref().map(RemoteName::as_str),
            "path": self.path,
            "url": self.url,
            "status": self.status.as_str(),
            "bytes": self.bytes,
            "sha256": self.sha256.map(|digest| digest.to_string()),
            "error": self.error,
        })
    }
}

impl Item {
    /// Caches the artifact; `report` is told how many bytes have come.
    pub(super) fn run(
        &self,
        cache: &Cache,
        options: Options,
        report: &dyn Fn(u64) -> ControlFlow<()>,
    ) -> Done {
        let end = |status, bytes, sha256, error| Done {
            remote: Some(self.target.remote.name.clone()),
            path: self.path.to_string(),
            url: self.url.clone(),
            status,
            bytes,
            sha256,
            error,
        };
        let stored = |status, entry: Entry| end(status, Some(entry.size), Some(entry.digest), None);
        let without =
            |status, error: Option<&str>| end(status, self.size, None, error.map(str::to_owned));
        if report(0).is_break() {
            return without(Status::Cancelled, None);
        }
        if options.dry_run {
            return match cache.is_filled(&self.target, &self.path) {
                Some(entry) => stored(Status::AlreadyCached, entry),
                None => without(Status::WouldCache, None),
            };
        }
        let wish = if options.force { Wish::Confirmed } else { Wish::Fresh };
        match cache.fill(&self.target, &self.path, self.blob.as_ref(), wish, report) {
            Ok(Filled::Fetched(entry)) => stored(Status::Cached, entry),
            Ok(Filled::Already(entry)) => stored(Status::AlreadyCached, entry),
            Ok(Filled::Unstored) => {
                let why = "it cannot be stored: max_bytes, cache.max_bytes or CACHE_MAX_BYTES leaves no room for it, there is none to stage it, or see the log";
                without(Status::Failed, Some(why))
            }
            Ok(Filled::Cancelled) => without(Status::Cancelled, None),
            Err(error) => without(Status::Failed, Some(&chain(&error))),
        }
    }
}
