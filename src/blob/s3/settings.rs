//! What an operator sets of the store on S3.

use std::path::PathBuf;
use std::time::Duration;

use url::Url;

use crate::config::Secret;

/// Where the bucket is and how to speak with its server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3Settings {
    /// `http` or `https`, host, port; a path is kept in front of the bucket's
    /// (`MINIO_ENDPOINT`, with `MINIO_SECURE` where it names no scheme: see [`endpoint`]).
    pub endpoint: Url,
    /// The access key (`MINIO_ACCESS_KEY`).
    pub access_key: String,
    /// The secret key (`MINIO_SECRET_KEY`).
    pub secret_key: Secret,
    /// The bucket (`MINIO_BUCKET`), addressed by path.
    pub bucket: String,
    /// The region that requests are signed for.
    pub region: String,
    /// Further root certificates, a PEM file, beside the platform's (`MINIO_CA_FILE`).
    pub ca_file: Option<PathBuf>,
    /// For a connection.
    pub connect_timeout: Duration,
    /// From a request to the head of its answer.
    pub first_byte_timeout: Duration,
    /// For a silence inside a body in either direction.
    pub idle_timeout: Duration,
    /// The largest file that goes in one request, of which S3 takes no more than 5 GiB; larger
    /// ones go in parts.
    pub single_put_bytes_max: u64,
    /// The size of a part, which S3 wants to be 5 MiB at least; it grows where 10,000 of it do
    /// not hold a file.
    pub part_bytes: u64,
}

impl S3Settings {
    /// Settings with the defaults: region `us-east-1`, 2 s to connect, 5 s to the first
    /// byte, 20 s of silence, one request up to 256 MiB, parts of 64 MiB.
    pub fn new(
        endpoint: Url,
        access_key: impl Into<String>,
        secret_key: Secret,
        bucket: impl Into<String>,
    ) -> Self {
        Self {
            endpoint,
            access_key: access_key.into(),
            secret_key,
            bucket: bucket.into(),
            region: "us-east-1".to_owned(),
            ca_file: None,
            connect_timeout: Duration::from_secs(2),
            first_byte_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(20),
            single_put_bytes_max: 256 << 20,
            part_bytes: 64 << 20,
        }
    }
}

/// Whether an endpoint that names no scheme is spoken to by TLS (`MINIO_SECURE`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Secure {
    /// `https`.
    Yes,
    /// `http`.
    No,
}

/// Why a text is not an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no S3 endpoint: write host:port, or a URL with http or https and a host")]
pub struct BadEndpoint(String);

/// Reads an endpoint as people write it, with its scheme or without.
///
/// ```
/// use artifactapi::blob::s3::settings::{Secure, endpoint};
/// assert_eq!(endpoint("minio:9000", Secure::No).unwrap().as_str(), "http://minio:9000/");
/// assert_eq!(endpoint("s3.example.org", Secure::Yes).unwrap().as_str(), "https://s3.example.org/");
/// assert_eq!(endpoint("https://s3.example.org/x", Secure::No).unwrap().path(), "/x");
/// assert!(endpoint("ftp://s3.example.org", Secure::No).is_err());
/// ```
///
/// # Errors
/// [`BadEndpoint`] where it has no host, another scheme, a credential or a query.
pub fn endpoint(text: &str, secure: Secure) -> Result<Url, BadEndpoint> {
    let bad = || BadEndpoint(text.to_owned());
    let scheme = match secure {
        Secure::Yes => "https",
        Secure::No => "http",
    };
    let spelled = if text.contains("://") { text.to_owned() } else { format!("{scheme}://{text}") };
    let url = Url::parse(&spelled).map_err(|_| bad())?;
    let plain = url.username().is_empty()
        && url.password().is_none()
        && url.query().is_none()
        && url.fragment().is_none();
    (matches!(url.scheme(), "http" | "https") && url.has_host() && plain)
        .then_some(url)
        .ok_or_else(bad)
}
