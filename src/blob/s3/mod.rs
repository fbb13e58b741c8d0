//! The store on S3: any server that speaks it, addressed by path.
//!
//! rust-s3 gives credentials, signing and the answers' types; every request goes over one
//! pool of connections of our own ([`client`]). A version is the object's ETag, asked for
//! with `If-Match` and otherwise opaque. Each object describes itself in its metadata.
//! Nothing is remembered between calls, so any number of replicas may share a bucket.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use http::header::{
    CONTENT_LENGTH, HeaderMap, HeaderValue, IF_MATCH, IF_NONE_MATCH, LAST_MODIFIED, RANGE,
};
use http::{Method, Response, StatusCode};
use ureq::BodyReader;

pub(super) mod about;
mod answer;
mod body;
mod client;
#[cfg(test)]
mod scripted;
pub mod settings;
mod sign;
#[cfg(test)]
pub(crate) mod tests;
mod transport;
mod upload;

pub use client::S3Error;
pub use settings::S3Settings;
pub use sign::SignError;

use crate::artifact::{BlobKey, BlobVersion};
use crate::blob::{About, BlobError, BlobMeta, BlobStore};
use crate::body::Body;
use crate::staging::SealedFile;
use client::{Call, Payload, S3Client, finish, text};
use upload::{Upload, etag_of, part_bytes};

/// Where the health probe writes: no key of a blob has this form.
const PROBE_KEY: &str = ".artifactapi-probe";
/// What it writes.
const PROBE_BYTES: &[u8] = b"artifactapi asks whether this bucket can be written and read\n";

/// S3's word for an object that is not there. A 404 without it may be a proxy's, and proves nothing.
const NO_SUCH_KEY: &str = "NoSuchKey";

/// The store on S3.
#[derive(Debug)]
pub struct S3Store {
    inner: Arc<Inner>,
}

/// What bodies that are being read share with the store.
#[derive(Debug)]
struct Inner {
    client: S3Client,
    bucket: String,
    region: String,
    single_put_bytes_max: u64,
    part_bytes: u64,
    /// Whether the server compares `If-Match` of a write with an ETag without quotes.
    wants_bare_etags: AtomicBool,
}

impl S3Store {
    /// A store that asks nobody yet.
    ///
    /// # Errors
    /// [`S3Error`] where the settings can't be used.
    pub fn new(settings: &S3Settings) -> Result<Self, S3Error> {
        let inner = Inner {
            client: S3Client::new(settings)?,
            bucket: settings.bucket.clone(),
            region: settings.region.clone(),
            single_put_bytes_max: settings.single_put_bytes_max,
            part_bytes: settings.part_bytes,
            wants_bare_etags: AtomicBool::new(false),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Whether the store can be written and read: writes a small object and reads it back,
    /// which needs no other rights than serving does. Creates the bucket if it is missing and
    /// that is allowed. Costs two requests, so ask every few seconds at most.
    ///
    /// # Errors
    /// [`S3Error`]; [`S3Error::NoBucket`] says what to do.
    pub fn probe(&self) -> Result<(), S3Error> {
        let inner = &self.inner;
        inner.with_bucket(|| {
            let call = Call {
                payload: Payload::Bytes(PROBE_BYTES),
                ..Call::new(Method::PUT, Some(PROBE_KEY))
            };
            finish(inner.client.call(&call)?)
        })?;
        let read = text(inner.client.call(&Call::new(Method::GET, Some(PROBE_KEY)))?)?;
        if read.as_bytes() == PROBE_BYTES { Ok(()) } else { Err(S3Error::Forgetful) }
    }
}

impl BlobStore for S3Store {
    fn publish(
        &self,
        key: &BlobKey,
        sealed: &SealedFile,
        about: &About,
    ) -> Result<BlobVersion, BlobError> {
        match self.inner.write(key, sealed, about, &HeaderMap::new()) {
            Ok(Some(etag)) => Ok(version(&etag)),
            // Some servers name no ETag.
            Ok(None) => self.inner.written(key, sealed),
            Err(error) => Err(blob_error("publish", key, error)),
        }
    }

    /// By `If-None-Match: *` or `If-Match`, which AWS, SeaweedFS and, but for objects in parts, Ceph
    /// honour. A server that does not know them takes the object as any other.
    fn publish_over(
        &self,
        key: &BlobKey,
        there: Option<&BlobVersion>,
        sealed: &SealedFile,
        about: &About,
    ) -> Result<BlobVersion, BlobError> {
        for is_last in [false, true] {
            let is_bare = self.inner.wants_bare_etags.load(Ordering::Relaxed);
            let condition = match there {
                None => (IF_NONE_MATCH, HeaderValue::from_static("*")),
                Some(version) if is_bare => (IF_MATCH, header("publish", key, version.0.clone())?),
                Some(version) => (IF_MATCH, if_match("publish", key, version)?),
            };
            match self.inner.write(key, sealed, about, &HeaderMap::from_iter([condition])) {
                Ok(Some(etag)) => return Ok(version(&etag)),
                Ok(None) => return self.inner.written(key, sealed),
                Err(S3Error::Refused { status: 501, .. }) => {
                    return self.publish(key, sealed, about);
                }
                // AWS says the latter where it met another request under way.
                Err(error)
                    if error.status() == Some(412)
                        || error.is_code("ConditionalRequestConflict") => {}
                Err(error) => return Err(blob_error("publish", key, error)),
            }
            match self.stat(key)? {
                // Older Cephs compare with an ETag without its quotes.
                Some(found) if Some(&found.version) == there && !is_last => {
                    self.inner.wants_bare_etags.store(!is_bare, Ordering::Relaxed);
                }
                // A first attempt did it, whose answer was lost; or somebody else.
                Some(found) if Some(&found.version) != there && is_of(&found, sealed) => {
                    return Ok(found.version);
                }
                _ => break,
            }
        }
        Err(BlobError::Changed(key.clone()))
    }

    fn open(
        &self,
        key: &BlobKey,
        version: &BlobVersion,
        range: Range<u64>,
    ) -> Result<Body, BlobError> {
        if range.is_empty() {
            // S3 has no way to ask for no bytes.
            let meta = self.stat(key)?.ok_or_else(|| BlobError::Missing(key.clone()))?;
            if meta.version != *version {
                return Err(BlobError::Changed(key.clone()));
            }
            if range.end > meta.size {
                return Err(short(key, meta.size));
            }
            return Ok(Body::from_bytes([]));
        }
        let reader = self.inner.read(key, version, range.clone())?;
        let len = range.end - range.start;
        let reading = body::Reading::new(Arc::clone(&self.inner), key, version, range, reader);
        Ok(Body::new(Some(len), Box::new(reading)))
    }

    fn stat(&self, key: &BlobKey) -> Result<Option<BlobMeta>, BlobError> {
        self.inner.head(key).map_err(|error| blob_error("look up", key, error))
    }

    fn remove(&self, key: &BlobKey) -> Result<(), BlobError> {
        let removed = self.inner.delete(key, HeaderMap::new());
        removed.map_err(|error| blob_error("remove", key, error))
    }

    /// By `If-Match`, so that a request that was given up and is done late removes nothing that came
    /// after it. Servers that do not know it remove whatever is there.
    fn remove_version(&self, key: &BlobKey, version: &BlobVersion) -> Result<(), BlobError> {
        let only_this = HeaderMap::from_iter([(IF_MATCH, if_match("remove", key, version)?)]);
        match self.inner.delete(key, only_this) {
            Err(S3Error::Refused { status: 412, .. }) => Ok(()),
            Err(S3Error::Refused { status: 501, .. }) => self.remove(key),
            outcome => outcome.map_err(|error| blob_error("remove", key, error)),
        }
    }

    fn each(&self, visit: &mut dyn FnMut(BlobMeta) -> ControlFlow<()>) -> Result<(), BlobError> {
        let mut token: Option<String> = None;
        loop {
            let page = self.inner.page(token.as_deref()).map_err(|error| {
                let source = Box::new(error);
                BlobError::Unavailable { operation: "list", key: "(all)".to_owned(), source }
            })?;
            for object in page.contents {
                // Others may keep things in the bucket; they are not blobs.
                let Some(key) = BlobKey::from_listing(&object.key) else { continue };
                let meta = BlobMeta {
                    key,
                    version: version(object.e_tag.as_deref().unwrap_or_default()),
                    size: object.size,
                    published_at: answer::listed_time(&object.last_modified)
                        .unwrap_or(SystemTime::UNIX_EPOCH),
                    about: None,
                };
                if visit(meta).is_break() {
                    return Ok(());
                }
            }
            if !page.is_truncated {
                return Ok(());
            }
            // A list that does not go on would never end.
            if page.next_continuation_token.is_none() || page.next_continuation_token == token {
                let what = "a listing that goes on without saying where".to_owned();
                let source = Box::new(S3Error::Nonsense(what));
                let key = "(all)".to_owned();
                return Err(BlobError::Unavailable { operation: "list", key, source });
            }
            token = page.next_continuation_token;
        }
    }
}

impl Inner {
    /// Deletes an object where `conditions` hold; success too where there is none.
    fn delete(&self, key: &BlobKey, conditions: HeaderMap) -> Result<(), S3Error> {
        let call = Call { headers: conditions, ..Call::new(Method::DELETE, Some(key.as_str())) };
        match self.client.call(&call).and_then(finish) {
            Err(error) if error.is_code(NO_SUCH_KEY) => Ok(()),
            outcome => outcome,
        }
    }

    /// Writes an object where `conditions` hold; gives its ETag, where the answer names it.
    fn write(
        &self,
        key: &BlobKey,
        sealed: &SealedFile,
        about: &About,
        conditions: &HeaderMap,
    ) -> Result<Option<String>, S3Error> {
        let described = about::headers(about);
        self.with_bucket(|| {
            let described = described.clone();
            if sealed.len() <= self.single_put_bytes_max {
                self.put(key, sealed, described, conditions)
            } else {
                self.put_parts(key, sealed, described, conditions)
            }
        })
    }

    /// The version that lies under a key, if it has the digest of what was to be written there.
    fn written(&self, key: &BlobKey, sealed: &SealedFile) -> Result<BlobVersion, BlobError> {
        match self.head(key).map_err(|error| blob_error("look up", key, error))? {
            Some(meta) if is_of(&meta, sealed) => Ok(meta.version),
            _ => Err(BlobError::Changed(key.clone())),
        }
    }

    fn put(
        &self,
        key: &BlobKey,
        sealed: &SealedFile,
        mut described: HeaderMap,
        conditions: &HeaderMap,
    ) -> Result<Option<String>, S3Error> {
        described.extend(conditions.clone());
        let response = self.client.call(&Call {
            headers: described,
            payload: Payload::Region { file: sealed.file(), offset: 0, len: sealed.len() },
            ..Call::new(Method::PUT, Some(key.as_str()))
        })?;
        let etag = etag_of(response.headers());
        finish(response)?;
        Ok(etag)
    }

    fn put_parts(
        &self,
        key: &BlobKey,
        sealed: &SealedFile,
        described: HeaderMap,
        conditions: &HeaderMap,
    ) -> Result<Option<String>, S3Error> {
        let mut upload = Upload::begin(&self.client, key.as_str(), described)?;
        let part_bytes = part_bytes(sealed.len(), self.part_bytes);
        let mut offset = 0;
        while offset < sealed.len() {
            let len = part_bytes.min(sealed.len() - offset);
            upload.part(sealed, offset, len)?;
            offset += len;
        }
        match upload.complete(conditions) {
            // The answer was lost, perhaps behind success.
            Err(error) if !error.is_refusal() => match self.head(key) {
                Ok(Some(meta)) if is_of(&meta, sealed) => Ok(Some(meta.version.0)),
                _ => Err(error),
            },
            outcome => outcome,
        }
    }

    fn head(&self, key: &BlobKey) -> Result<Option<BlobMeta>, S3Error> {
        let response = match self.client.call(&Call::new(Method::HEAD, Some(key.as_str()))) {
            Ok(response) => response,
            Err(error) if error.status() == Some(404) => {
                return self.confirm_absence(key).map(|()| None);
            }
            Err(error) => return Err(error),
        };
        let headers = response.headers();
        let meta = etag_of(headers).zip(length_of(headers)).map(|(etag, size)| BlobMeta {
            key: key.clone(),
            version: version(&etag),
            size,
            published_at: modified(headers),
            about: about::read(headers),
        });
        finish(response)?;
        meta.map(Some)
            .ok_or_else(|| S3Error::Nonsense("an object without ETag or length".to_owned()))
    }

    /// Asks whether an object is not there in a way that is answered in words: the answer to a HEAD
    /// has none.
    fn confirm_absence(&self, key: &BlobKey) -> Result<(), S3Error> {
        let first_byte = HeaderMap::from_iter([(RANGE, HeaderValue::from_static("bytes=0-0"))]);
        let call = Call { headers: first_byte, ..Call::new(Method::GET, Some(key.as_str())) };
        match self.client.call(&call).and_then(finish) {
            Err(error) if error.is_code(NO_SUCH_KEY) => Ok(()),
            Err(error) => Err(error),
            Ok(()) => Err(S3Error::Nonsense("an object is there and is not".to_owned())),
        }
    }

    /// Begins to read a range, over 0 bytes, of one version.
    fn read(
        &self,
        key: &BlobKey,
        version: &BlobVersion,
        range: Range<u64>,
    ) -> Result<BodyReader<'static>, BlobError> {
        let mut call = Call::new(Method::GET, Some(key.as_str()));
        let last = range.end - 1;
        let range_wanted = header("open", key, format!("bytes={}-{last}", range.start))?;
        call.headers.insert(RANGE, range_wanted);
        call.headers.insert(IF_MATCH, if_match("open", key, version)?);
        let response = self.client.call(&call).map_err(|error| blob_error("open", key, error))?;
        check_range(key, &response, &range)?;
        // A server that does not know the condition gives what is there.
        match etag_of(response.headers()) {
            Some(etag) if self::version(&etag) != *version => Err(BlobError::Changed(key.clone())),
            _ => Ok(response.into_body().into_reader()),
        }
    }

    fn page(&self, token: Option<&str>) -> Result<answer::ListBucketResult, S3Error> {
        let mut query = vec![("list-type", "2"), ("max-keys", "1000")];
        // In the order of their names, as they are signed.
        if let Some(token) = token {
            query.insert(0, ("continuation-token", token));
        }
        let response = self.client.call(&Call { query: &query, ..Call::new(Method::GET, None) })?;
        answer::listing(&text(response)?).map_err(|error| S3Error::Nonsense(error.to_string()))
    }

    /// Does `work`; where the bucket is missing, creates it and does it again.
    fn with_bucket<T>(&self, work: impl Fn() -> Result<T, S3Error>) -> Result<T, S3Error> {
        match work() {
            Err(error) if error.is_code("NoSuchBucket") => {
                self.create_bucket().map_err(|why| S3Error::NoBucket {
                    bucket: self.bucket.clone(),
                    source: Box::new(why),
                })?;
                tracing::info!(bucket = self.bucket, "created the bucket");
                work()
            }
            outcome => outcome,
        }
    }

    fn create_bucket(&self) -> Result<(), S3Error> {
        let create = |body: &[u8]| {
            let payload = if body.is_empty() { Payload::Nothing } else { Payload::Bytes(body) };
            self.client.call(&Call { payload, ..Call::new(Method::PUT, None) }).and_then(finish)
        };
        // Ceph takes no location, other servers ignore it, and AWS insists on it elsewhere
        // than in its first region.
        let located = format!(
            "<CreateBucketConfiguration xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
             <LocationConstraint>{}</LocationConstraint></CreateBucketConfiguration>",
            self.region
        );
        let outcome = match create(&[]) {
            Err(error) if error.is_code("IllegalLocationConstraintException") => {
                create(located.as_bytes())
            }
            outcome => outcome,
        };
        match outcome {
            // Another replica was first.
            Err(error) if error.is_code("BucketAlreadyOwnedByYou") => Ok(()),
            outcome => outcome,
        }
    }
}

/// Whether an object says that it is this file.
fn is_of(meta: &BlobMeta, sealed: &SealedFile) -> bool {
    meta.size == sealed.len()
        && meta.about.as_ref().is_some_and(|about| about.digest == sealed.digest())
}

fn if_match(
    operation: &'static str,
    key: &BlobKey,
    version: &BlobVersion,
) -> Result<HeaderValue, BlobError> {
    header(operation, key, format!("\"{}\"", version.0))
}

fn header(operation: &'static str, key: &BlobKey, text: String) -> Result<HeaderValue, BlobError> {
    HeaderValue::try_from(text)
        .map_err(|error| blob_error(operation, key, S3Error::Request(SignError::Header(error))))
}

/// Holds what an answer promises against what was asked for.
fn check_range(
    key: &BlobKey,
    response: &Response<ureq::Body>,
    range: &Range<u64>,
) -> Result<(), BlobError> {
    let length = length_of(response.headers());
    let wanted = range.end - range.start;
    match (response.status(), length) {
        (StatusCode::PARTIAL_CONTENT, Some(length)) if length == wanted => Ok(()),
        (StatusCode::PARTIAL_CONTENT, Some(length)) if length < wanted => {
            Err(short(key, range.start + length))
        }
        // The whole, where the whole was asked for.
        (StatusCode::OK, Some(length)) if range.start == 0 && length == wanted => Ok(()),
        (StatusCode::OK, Some(length)) if length < range.end => Err(short(key, length)),
        (status, _) => {
            let what = format!("{status} to a request for bytes {range:?}");
            Err(blob_error("open", key, S3Error::Nonsense(what)))
        }
    }
}

fn short(key: &BlobKey, size: u64) -> BlobError {
    BlobError::Corrupt { key: key.clone(), reason: format!("it has only {size} bytes") }
}

/// What a store's caller needs to know of a failure.
fn blob_error(operation: &'static str, key: &BlobKey, error: S3Error) -> BlobError {
    let full = ["QuotaExceeded", "XMinioStorageFull", "InsufficientStorage"];
    match &error {
        // A bucket that is gone is not a blob that is gone.
        S3Error::Refused { code, .. } if code == NO_SUCH_KEY => BlobError::Missing(key.clone()),
        S3Error::Refused { status: 412, .. } => BlobError::Changed(key.clone()),
        S3Error::Refused { status: 416, .. } => {
            BlobError::Corrupt { key: key.clone(), reason: "it is shorter".to_owned() }
        }
        S3Error::Refused { status: 507, .. } => BlobError::Full(key.clone()),
        S3Error::Refused { code, .. } if full.contains(&code.as_str()) => {
            BlobError::Full(key.clone())
        }
        _ => BlobError::Unavailable { operation, key: key.to_string(), source: Box::new(error) },
    }
}

/// An ETag as a version: without its quotes, which some answers leave out.
fn version(etag: &str) -> BlobVersion {
    BlobVersion(etag.trim_start_matches("W/").trim_matches('"').to_owned())
}

fn length_of(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn modified(headers: &HeaderMap) -> SystemTime {
    headers
        .get(LAST_MODIFIED)
        .and_then(|value| httpdate::parse_http_date(value.to_str().ok()?).ok())
        .unwrap_or(SystemTime::UNIX_EPOCH)
}
