//! Root certificates: the system's, and those of a file beside them.

use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

/// A file with root certificates that can't be used.
#[derive(Debug, thiserror::Error)]
#[error("the root certificates of {} can't be used: {why}", file.display())]
pub struct CaFileError {
    file: PathBuf,
    why: String,
}

/// The certificates of a PEM file, each of which can be a root.
///
/// # Errors
/// [`CaFileError`] where it can't be read, has none, or has one that would have no effect.
pub fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, CaFileError> {
    Ok(read(file)?.1)
}

/// The PEM file itself, once it is known to be one that [`certificates`] takes.
///
/// # Errors
/// [`CaFileError`].
pub fn pem(file: &Path) -> Result<Vec<u8>, CaFileError> {
    Ok(read(file)?.0)
}

fn read(file: &Path) -> Result<(Vec<u8>, Vec<CertificateDer<'static>>), CaFileError> {
    let unusable = |why: String| CaFileError { file: file.to_owned(), why };
    let pem = std::fs::read(file).map_err(|error| unusable(error.to_string()))?;
    let found = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| unusable(format!("it is not PEM: {error}")))?;
    if found.is_empty() {
        return Err(unusable("it has no certificate".to_owned()));
    }
    for certificate in &found {
        RootCertStore::empty()
            .add(certificate.clone())
            .map_err(|error| unusable(format!("a certificate in it is unusable: {error}")))?;
    }
    Ok((pem, found))
}

/// What connections over ureq trust: the system's roots, and a file's beside them.
///
/// # Errors
/// [`CaFileError`] for a file that can't be used.
pub fn tls(ca_file: Option<&Path>) -> Result<TlsConfig, CaFileError> {
    // The process has one TLS provider; an error says that there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let roots = match ca_file {
        None => RootCerts::PlatformVerifier,
        // ureq takes either the platform's verifier or a list. On Linux the verifier has no
        // other roots than these, and both honour SSL_CERT_FILE and SSL_CERT_DIR.
        Some(file) => {
            let native = rustls_native_certs::load_native_certs();
            for error in &native.errors {
                tracing::warn!(%error, "a root certificate of the system can't be read");
            }
            let all = certificates(file)?.into_iter().chain(native.certs);
            let all: Vec<_> = all.map(|der| Certificate::from_der(&der).to_owned()).collect();
            RootCerts::new_with_certs(&all)
        }
    };
    Ok(TlsConfig::builder().root_certs(roots).build())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_a_usable_certificate_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let check = |content: Option<&str>, why: &str| {
            let file = folder.path().join("ca.pem");
            if let Some(content) = content {
                std::fs::write(&file, content).unwrap();
            }
            let error = tls(Some(&file)).unwrap_err().to_string();
            assert!(error.contains("ca.pem") && error.contains(why), "{error}");
        };
        check(None, "No such file");
        check(Some("not PEM"), "no certificate");
        let of = |kind: &str, text: &str| {
            format!("-----BEGIN {kind}-----\n{text}\n-----END {kind}-----\n")
        };
        check(Some(&of("CERTIFICATE", "AAAA")), "unusable");
        check(Some(&of("CERTIFICATE", "?")), "not PEM");
        check(Some(&of("PRIVATE KEY", "AAAA")), "no certificate");
    }
}
