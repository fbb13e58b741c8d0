//! Requests with a signature (AWS Signature Version 4), made by rust-s3's signing functions.
//!
//! The body is left out of the signature (`UNSIGNED-PAYLOAD`), which every S3 server accepts
//! and which needs no second reading. Only `host` and `x-amz-*` are signed, so that nothing
//! that a proxy may touch breaks a signature.

use hmac::Mac;
use http::header::{AUTHORIZATION, HOST, HeaderMap, HeaderName, HeaderValue};
use s3::Region;
use s3::creds::Credentials;
use s3::error::S3Error as SigningError;
use s3::signing::{
    HmacSha256, authorization_header, canonical_request, signed_header_string, signing_key,
    string_to_sign, uri_encode,
};
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use url::Url;

use super::settings::S3Settings;
use crate::artifact::Digest;

const UNSIGNED: &str = "UNSIGNED-PAYLOAD";
const DATE: &[BorrowedFormatItem<'_>] =
    format_description!("[year][month][day]T[hour][minute][second]Z");

/// Makes URLs and signs requests for them.
#[derive(Debug)]
pub(super) struct Signer {
    access_key: String,
    credentials: Credentials,
    region: Region,
    /// With the bucket's name and no `/` behind it.
    bucket_url: String,
    host: HeaderValue,
}

/// Why a request can't be signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The keys can't be used.
    #[error("the S3 credentials cannot be used")]
    Credentials(#[from] s3::creds::error::CredentialsError),
    /// The URL that follows from the settings is none.
    #[error("the S3 endpoint and bucket give no URL")]
    Url(#[from] url::ParseError),
    /// The host, or what describes an object, can't be a header.
    #[error("a header of a request to S3 is not valid")]
    Header(#[from] http::header::InvalidHeaderValue),
    /// Signing failed.
    #[error("a request to S3 cannot be signed")]
    Signing(#[from] SigningError),
}

impl Signer {
    pub(super) fn new(settings: &S3Settings) -> Result<Self, SignError> {
        let secret = settings.secret_key.reveal();
        let access_key = settings.access_key.clone();
        let credentials = Credentials::new(Some(&access_key), Some(secret), None, None, None)?;
        let endpoint = settings.endpoint.as_str().trim_end_matches('/');
        let host = settings.endpoint.host_str().ok_or(url::ParseError::EmptyHost)?;
        // As ureq would write it: the port only where it is not the scheme's own.
        let host = match settings.endpoint.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        };
        Ok(Self {
            access_key,
            credentials,
            region: Region::Custom {
                region: settings.region.clone(),
                endpoint: endpoint.to_owned(),
            },
            bucket_url: format!("{endpoint}/{}", uri_encode(&settings.bucket, true)),
            host: HeaderValue::from_str(&host)?,
        })
    }

    /// The URL of an object, or of the bucket. Queries are signed in the order of their names.
    pub(super) fn url(&self, key: Option<&str>, query: &[(&str, &str)]) -> Result<Url, SignError> {
        let mut url = self.bucket_url.clone();
        if let Some(key) = key {
            url.push('/');
            url.push_str(&uri_encode(key, false));
        }
        for (at, (name, value)) in query.iter().enumerate() {
            url.push(if at == 0 { '?' } else { '&' });
            url.push_str(&uri_encode(name, true));
            url.push('=');
            url.push_str(&uri_encode(value, true));
        }
        Ok(Url::parse(&url)?)
    }

    /// Adds what makes a request authentic at `now`.
    pub(super) fn sign(
        &self,
        method: &str,
        url: &Url,
        headers: &mut HeaderMap,
        now: OffsetDateTime,
    ) -> Result<(), SignError> {
        let date = now.format(DATE).map_err(SigningError::from)?;
        headers.insert(HOST, self.host.clone());
        headers.insert(HeaderName::from_static("x-amz-date"), HeaderValue::from_str(&date)?);
        headers.insert(
            HeaderName::from_static("x-amz-content-sha256"),
            HeaderValue::from_static(UNSIGNED),
        );
        let signed: HeaderMap = headers
            .iter()
            .filter(|(name, _)| *name == HOST || name.as_str().starts_with("x-amz-"))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        let request = canonical_request(method, url, &signed, UNSIGNED)?;
        let secret = self.credentials.secret_key.as_deref().unwrap_or_default();
        let key = signing_key(&now, secret, &self.region, "s3")?;
        let mut mac = HmacSha256::new_from_slice(&key).map_err(SigningError::from)?;
        mac.update(string_to_sign(&now, &self.region, &request)?.as_bytes());
        let signature = Digest(mac.finalize().into_bytes().into()).to_string();
        let names = signed_header_string(&signed);
        let authorization =
            authorization_header(&self.access_key, &now, &self.region, &names, &signature)?;
        headers.insert(AUTHORIZATION, HeaderValue::from_str(&authorization)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;

    fn signer(endpoint: &str) -> Signer {
        let endpoint = Url::parse(endpoint).unwrap();
        let settings = S3Settings::new(endpoint, "AKID", Secret::new("hush"), "bucket");
        Signer::new(&settings).unwrap()
    }

    #[test]
    fn urls_spell_every_key_as_the_signature_does() {
        let check = |key: &str, path: &str| {
            let url = signer("http://s3.example.org:9000/").url(Some(key), &[]).unwrap();
            assert_eq!(url.path(), format!("/bucket/{path}"));
            assert_eq!(s3::signing::canonical_uri_string(&url), url.path());
        };
        check("r/0123456789abcdef/a-b_c.d~e", "r/0123456789abcdef/a-b_c.d~e");
        check("r/h/a b+c%2f", "r/h/a%20b%2Bc%252f");
        check(
            "r/h/é\"<>`{}|^[]#?'*()!$&,;=:@",
            "r/h/%C3%A9%22%3C%3E%60%7B%7D%7C%5E%5B%5D%23%3F%27%2A%28%29%21%24%26%2C%3B%3D%3A%40",
        );
        check("r/h/%2e%2e", "r/h/%252e%252e");
        check("r/h/...", "r/h/...");
    }

    #[test]
    fn the_host_is_signed_as_it_is_sent() {
        let check = |endpoint: &str, host: &str| {
            let signer = signer(endpoint);
            assert_eq!(signer.host, host);
            let url = signer.url(None, &[("list-type", "2"), ("prefix", "a b")]).unwrap();
            assert!(url.as_str().ends_with("/bucket?list-type=2&prefix=a%20b"), "{url}");
            let mut headers = HeaderMap::new();
            headers.insert("range", HeaderValue::from_static("bytes=0-1"));
            signer.sign("GET", &url, &mut headers, OffsetDateTime::UNIX_EPOCH).unwrap();
            let authorization = headers[AUTHORIZATION].to_str().unwrap();
            assert!(
                authorization.contains("Credential=AKID/19700101/us-east-1/s3/aws4_request")
                    && authorization
                        .contains("SignedHeaders=host;x-amz-content-sha256;x-amz-date,"),
                "{authorization}"
            );
        };
        check("http://s3.example.org", "s3.example.org");
        check("https://s3.example.org:443/", "s3.example.org");
        check("https://s3.example.org:9000/in/front", "s3.example.org:9000");
        check("http://[::1]:9000", "[::1]:9000");
    }
}
