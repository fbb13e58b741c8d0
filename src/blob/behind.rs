//! What stands behind a wrapper in its tests.

use std::io;
use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::SystemTime;

use super::memory::MemoryBlobs;
use super::{About, BlobError, BlobMeta, BlobStore};
use crate::artifact::{ArtifactKey, ArtifactPath, BlobKey, BlobVersion, Validators};
use crate::body::Body;
use crate::staging::{Expect, SealedFile, Staging};

/// A store that a test can take away, or have lie.
#[derive(Debug, Default)]
pub(super) struct Behind {
    inner: MemoryBlobs,
    pub(super) away: AtomicBool,
    pub(super) lies: AtomicBool,
    /// How often it was asked for bytes.
    pub(super) opened: AtomicU64,
}

impl Behind {
    fn there<T>(&self, answer: Result<T, BlobError>) -> Result<T, BlobError> {
        if self.away.load(Ordering::Relaxed) {
            let source = Box::new(io::Error::from(io::ErrorKind::ConnectionRefused));
            return Err(BlobError::Unavailable { operation: "ask", key: "any".to_owned(), source });
        }
        answer
    }
}

impl BlobStore for Behind {
    fn publish(
        &self,
        key: &BlobKey,
        sealed: &SealedFile,
        about: &About,
    ) -> Result<BlobVersion, BlobError> {
        self.there(self.inner.publish(key, sealed, about))
    }

    fn publish_over(
        &self,
        key: &BlobKey,
        there: Option<&BlobVersion>,
        sealed: &SealedFile,
        about: &About,
    ) -> Result<BlobVersion, BlobError> {
        self.there(self.inner.publish_over(key, there, sealed, about))
    }

    fn remove_version(&self, key: &BlobKey, version: &BlobVersion) -> Result<(), BlobError> {
        self.there(self.inner.remove_version(key, version))
    }

    fn open(
        &self,
        key: &BlobKey,
        version: &BlobVersion,
        range: Range<u64>,
    ) -> Result<Body, BlobError> {
        self.opened.fetch_add(1, Ordering::Relaxed);
        let len = range.end - range.start;
        let body = self.there(self.inner.open(key, version, range))?;
        if self.lies.load(Ordering::Relaxed) {
            return Ok(Body::from_bytes(vec![0; len as usize]));
        }
        Ok(body)
    }

    fn stat(&self, key: &BlobKey) -> Result<Option<BlobMeta>, BlobError> {
        self.there(self.inner.stat(key))
    }

    fn remove(&self, key: &BlobKey) -> Result<(), BlobError> {
        self.there(self.inner.remove(key))
    }

    fn each(&self, visit: &mut dyn FnMut(BlobMeta) -> ControlFlow<()>) -> Result<(), BlobError> {
        self.there(self.inner.each(visit))
    }
}

/// A wrapper passes on what must not take somebody's place.
pub(super) fn check_that_nobodys_place_is_taken(store: &dyn BlobStore, scratch: &Path) {
    let (key, first) = publish(store, scratch, "a", b"one");
    let (sealed, about) = staged(scratch, "a", b"two");
    let other = BlobVersion("another".to_owned());
    for there in [None, Some(&other)] {
        let refused = store.publish_over(&key, there, &sealed, &about);
        assert!(matches!(refused, Err(BlobError::Changed(_))), "{there:?}");
    }
    store.remove_version(&key, &other).unwrap();
    assert_eq!(store.stat(&key).unwrap().unwrap().version, first);
    store.remove_version(&key, &first).unwrap();
    assert_eq!(store.stat(&key).unwrap(), None);
    store.publish_over(&key, None, &sealed, &about).unwrap();
}

/// Publishes bytes under a path of the remote `r`, staged in `scratch`.
pub(super) fn publish(
    store: &dyn BlobStore,
    scratch: &Path,
    path: &str,
    bytes: &[u8],
) -> (BlobKey, BlobVersion) {
    let (sealed, about) = staged(scratch, path, bytes);
    let key = BlobKey::of(&about.artifact);
    let version = store.publish(&key, &sealed, &about).unwrap();
    (key, version)
}

fn staged(scratch: &Path, path: &str, bytes: &[u8]) -> (SealedFile, About) {
    let staging = Staging::open(scratch, 1 << 30).unwrap();
    let mut staged = staging.begin(Expect::default()).unwrap();
    staged.append_bytes(bytes).unwrap();
    let sealed = staged.seal().unwrap();
    let artifact = ArtifactKey {
        remote: "r".parse().unwrap(),
        path: ArtifactPath::from_canonical(path).unwrap(),
    };
    let about = About {
        artifact,
        digest: sealed.digest(),
        content_type: None,
        content_encoding: None,
        validators: Validators::default(),
        stored_at: SystemTime::UNIX_EPOCH,
    };
    (sealed, about)
}
