//! Rows as the tables have them.

use std::collections::BTreeMap;

use postgres::types::ToSql;

use super::connection::PostgresError;
use crate::artifact::{
    ArtifactKey, ArtifactPath, BlobKey, BlobVersion, Digest, Entry, RemoteName, Validators,
};
use crate::index::micros::{micros_of, time_of};
use crate::index::{IndexError, Row, Use};

/// The columns of a row, but for its remote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RowValues {
    pub(super) path: String,
    blob_key: String,
    blob_version: String,
    size_bytes: i64,
    sha256: Vec<u8>,
    content_type: Option<String>,
    content_encoding: Option<String>,
    etag: Option<String>,
    last_modified: Option<String>,
    stored_at_us: i64,
    validated_at_us: i64,
    head_sha256: Option<Vec<u8>>,
    pub(super) generation: i64,
    unproven: bool,
    last_used_us: i64,
    hits: i64,
}

impl RowValues {
    /// What is written of an entry; the rest is the database's.
    pub(super) fn of(key: &ArtifactKey, entry: &Entry) -> Self {
        Self {
            path: key.path.as_str().to_owned(),
            blob_key: entry.blob.as_str().to_owned(),
            blob_version: entry.version.0.clone(),
            size_bytes: i64::try_from(entry.size).unwrap_or(i64::MAX),
            sha256: entry.digest.0.to_vec(),
            content_type: entry.content_type.clone(),
            content_encoding: entry.content_encoding.clone(),
            etag: entry.validators.etag.clone(),
            last_modified: entry.validators.last_modified.clone(),
            stored_at_us: micros_of(entry.stored_at),
            validated_at_us: micros_of(entry.validated_at),
            head_sha256: entry.head.map(|digest| digest.0.to_vec()),
            generation: 0,
            unproven: entry.unproven,
            last_used_us: 0,
            hits: 0,
        }
    }

    /// Reads the columns in the order in which every statement names them.
    pub(super) fn read(row: &postgres::Row) -> Result<Self, postgres::Error> {
        Ok(Self {
            path: row.try_get(0)?,
            blob_key: row.try_get(1)?,
            blob_version: row.try_get(2)?,
            size_bytes: row.try_get(3)?,
            sha256: row.try_get(4)?,
            content_type: row.try_get(5)?,
            content_encoding: row.try_get(6)?,
            etag: row.try_get(7)?,
            last_modified: row.try_get(8)?,
            stored_at_us: row.try_get(9)?,
            validated_at_us: row.try_get(10)?,
            head_sha256: row.try_get(11)?,
            generation: row.try_get(12)?,
            unproven: row.try_get(13)?,
            last_used_us: row.try_get(14)?,
            hits: row.try_get(15)?,
        })
    }

    /// The parameters of an insert, and the first of an update.
    pub(super) fn parameters<'a>(
        &'a self,
        remote: &'a String,
        path_sha256: &'a &[u8],
    ) -> [&'a (dyn ToSql + Sync); 15] {
        [
            remote,
            path_sha256,
            &self.path,
            &self.blob_key,
            &self.blob_version,
            &self.size_bytes,
            &self.sha256,
            &self.content_type,
            &self.content_encoding,
            &self.etag,
            &self.last_modified,
            &self.stored_at_us,
            &self.validated_at_us,
            &self.head_sha256,
            &self.unproven,
        ]
    }

    /// When it was last stored or served.
    pub(super) fn recency_us(&self) -> i64 {
        self.stored_at_us.max(self.last_used_us)
    }

    /// Whether two rows are alike in what a writer writes.
    pub(super) fn says_the_same(&self, other: &Self) -> bool {
        let written = |row: &Self| Self { generation: 0, last_used_us: 0, hits: 0, ..row.clone() };
        written(self) == written(other)
    }

    /// # Errors
    /// [`IndexError::Corrupt`] where the row can't be one that was written here.
    pub(super) fn into_entry(self, remote: &RemoteName) -> Result<Entry, IndexError> {
        let corrupt = |reason: &str| IndexError::Corrupt {
            key: format!("{remote}/{}", self.path),
            reason: reason.to_owned(),
        };
        let digest = |bytes: &[u8], what| bytes.try_into().map(Digest).map_err(|_| corrupt(what));
        Ok(Entry {
            blob: BlobKey::from_listing(&self.blob_key)
                .ok_or_else(|| corrupt("its blob_key is none"))?,
            size: u64::try_from(self.size_bytes).map_err(|_| corrupt("its size is negative"))?,
            digest: digest(&self.sha256, "its sha256 is none")?,
            head: self
                .head_sha256
                .as_deref()
                .map(|head| digest(head, "its head_sha256 is none"))
                .transpose()?,
            generation: u64::try_from(self.generation)
                .map_err(|_| corrupt("its generation is negative"))?,
            version: BlobVersion(self.blob_version),
            content_type: self.content_type,
            content_encoding: self.content_encoding,
            validators: Validators { etag: self.etag, last_modified: self.last_modified },
            stored_at: time_of(self.stored_at_us),
            validated_at: time_of(self.validated_at_us),
            unproven: self.unproven,
        })
    }

    /// # Errors
    /// [`IndexError::Corrupt`] where the row can't be one that was written here.
    pub(super) fn into_row(self, remote: &RemoteName) -> Result<Row, IndexError> {
        let path = ArtifactPath::from_canonical(self.path.clone()).map_err(|why| {
            IndexError::Corrupt { key: format!("{remote}/{}", self.path), reason: why.to_string() }
        })?;
        Ok(Row {
            key: ArtifactKey { remote: remote.clone(), path },
            last_used: time_of(self.last_used_us),
            hits: u64::try_from(self.hits).unwrap_or(0),
            entry: self.into_entry(remote)?,
        })
    }
}

/// Every row of an answer.
pub(super) fn all(rows: &[postgres::Row]) -> Result<Vec<RowValues>, PostgresError> {
    Ok(rows.iter().map(RowValues::read).collect::<Result<_, _>>()?)
}

/// Uses by artifact: one statement changes a row once.
pub(super) fn merged(uses: &[Use]) -> Vec<Use> {
    let mut merged = BTreeMap::<&ArtifactKey, Use>::new();
    for used in uses {
        merged
            .entry(&used.key)
            .and_modify(|sum| {
                sum.hits = sum.hits.saturating_add(used.hits);
                sum.last = sum.last.max(used.last);
            })
            .or_insert_with(|| used.clone());
    }
    merged.into_values().collect()
}
