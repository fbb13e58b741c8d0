//! Files on their way in that are too large for one request.
//!
//! Parts go one after the other, each read from the sealed file at its offset, so that
//! memory does not grow with the file. An upload that does not end well is aborted, but for one
//! whose completion S3 may still be at: there an abort could take away the parts of the object.

use http::Method;
use http::header::HeaderMap;

use super::answer;
use super::client::{Call, Payload, Repeat, S3Client, S3Error, finish, text};
use crate::chain::chain;
use crate::staging::SealedFile;

/// S3's bound on parts of one object.
const PARTS_MAX: u64 = 10_000;

/// The size of the parts of a file of `len` bytes, all but the last: as set, or as large as
/// it takes.
pub(super) fn part_bytes(len: u64, set: u64) -> u64 {
    set.max(len.div_ceil(PARTS_MAX)).max(1)
}

/// An upload that is aborted unless it is completed.
#[derive(Debug)]
pub(super) struct Upload<'a> {
    client: &'a S3Client,
    key: &'a str,
    id: String,
    etags: Vec<String>,
    ended: bool,
}

impl<'a> Upload<'a> {
    /// Begins an upload of an object that `about` describes.
    pub(super) fn begin(
        client: &'a S3Client,
        key: &'a str,
        about: HeaderMap,
    ) -> Result<Self, S3Error> {
        let response = client.call(&Call {
            query: &[("uploads", "")],
            headers: about,
            // Made again, it may leave one behind that nobody knows of.
            repeat: Repeat::IfAnswered,
            ..Call::new(Method::POST, Some(key))
        })?;
        let answer = text(response)?;
        let id = answer::upload_id(&answer)
            .map_err(|error| S3Error::Nonsense(format!("no upload id: {error}")))?;
        Ok(Self { client, key, id, etags: Vec::new(), ended: false })
    }

    /// Sends the next part.
    pub(super) fn part(
        &mut self,
        sealed: &SealedFile,
        offset: u64,
        len: u64,
    ) -> Result<(), S3Error> {
        let number = (self.etags.len() + 1).to_string();
        let response = self.client.call(&Call {
            query: &[("partNumber", &number), ("uploadId", &self.id)],
            payload: Payload::Region { file: sealed.file(), offset, len },
            ..Call::new(Method::PUT, Some(self.key))
        })?;
        let etag = etag_of(response.headers());
        finish(response)?;
        self.etags.push(etag.ok_or_else(|| S3Error::Nonsense("a part without ETag".to_owned()))?);
        Ok(())
    }

    /// Makes the parts one object, where `conditions` hold; gives its ETag, where the answer names
    /// it.
    ///
    /// # Errors
    /// [`S3Error`]; it may have been done, or still be under way, unless that is a refusal.
    pub(super) fn complete(mut self, conditions: &HeaderMap) -> Result<Option<String>, S3Error> {
        let outcome = self.ask_to_complete(conditions);
        self.ended = !outcome.as_ref().is_err_and(S3Error::is_refusal);
        outcome
    }

    fn ask_to_complete(&self, conditions: &HeaderMap) -> Result<Option<String>, S3Error> {
        let request = answer::complete_request(&self.etags);
        let response = self.client.call(&Call {
            query: &[("uploadId", &self.id)],
            headers: conditions.clone(),
            payload: Payload::Bytes(request.as_bytes()),
            repeat: Repeat::IfNotBegun,
            ..Call::new(Method::POST, Some(self.key))
        })?;
        let answer = text(response)?;
        if let Some(refusal) = answer::late_refusal(&answer) {
            let answer::Refusal { code, message } = refusal;
            return Err(S3Error::Refused { status: 200, code, message });
        }
        Ok(answer::completed_etag(&answer))
    }
}

impl Drop for Upload<'_> {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let aborted = self.client.call(&Call {
            query: &[("uploadId", &self.id)],
            ..Call::new(Method::DELETE, Some(self.key))
        });
        if let Err(error) = aborted.and_then(finish)
            && !error.is_code("NoSuchUpload")
        {
            // Nothing more can be done here; a life-cycle rule of the bucket may.
            tracing::warn!(key = self.key, upload = self.id, error = %chain(&error), "cannot abort a multipart upload");
        }
    }
}

/// The ETag of an answer, as it came.
pub(super) fn etag_of(headers: &HeaderMap) -> Option<String> {
    headers.get(http::header::ETAG)?.to_str().ok().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::part_bytes;

    #[test]
    fn parts_grow_where_ten_thousand_do_not_hold_the_file() {
        const MIB: u64 = 1 << 20;
        for (len, set, expected) in [
            (100 * MIB, 64 * MIB, 64 * MIB),
            (640_000 * MIB, 64 * MIB, 64 * MIB),
            (640_000 * MIB + 1, 64 * MIB, 64 * MIB + 1),
            (0, 64 * MIB, 64 * MIB),
        ] {
            assert_eq!(part_bytes(len, set), expected, "{len}");
            assert!(len.div_ceil(expected) <= 10_000);
        }
    }
}
