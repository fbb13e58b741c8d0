//! TLS over loopback, with a CA that each test makes.

use std::io::{self, Read, Write};
use std::path::Path;

use super::super::raw_server::RawServer;
use super::{Ending, found, get, origin, read_all, upstream};
use crate::config::Origin;
use crate::upstream::UpstreamError;
use crate::upstream::own::{AskError, Server, post_json};

/// A server that speaks TLS with a certificate of its own CA, for `localhost`.
fn tls_server(answer: &'static str, farewell: Ending) -> (RawServer, String) {
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut ca = rcgen::CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let names = vec!["localhost".to_owned()];
    let certificate =
        rcgen::CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    let config = std::sync::Arc::new(config);
    let server = RawServer::start(move |connection, _| {
        let session = rustls::ServerConnection::new(std::sync::Arc::clone(&config)).unwrap();
        let mut tls = rustls::StreamOwned::new(session, connection.stream().try_clone().unwrap());
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            match tls.read(&mut byte) {
                Ok(1) => head.push(byte[0]),
                _ => return,
            }
        }
        // A body that is left unread would turn the end into a reset.
        let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
        let announced = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let len = announced.map_or(0, |len| len.parse().unwrap());
        tls.read_exact(&mut vec![0; len]).unwrap();
        tls.write_all(answer.as_bytes()).unwrap();
        if farewell == Ending::Close {
            tls.conn.send_close_notify();
        }
        tls.flush().unwrap();
    });
    (server, ca_pem)
}

fn tls_origin(server: &RawServer, ca_pem: &str) -> (Origin, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ca.pem");
    std::fs::write(&file, ca_pem).unwrap();
    let base = format!("https://localhost:{}/", server.address().port());
    (Origin { ca_file: Some(file), ..origin(&base) }, folder)
}

#[test]
fn a_certificate_of_the_ca_file_is_trusted_and_no_other() {
    let (server, ca) =
        tls_server("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", Ending::Close);
    let (trusting, _folder) = tls_origin(&server, &ca);
    let (_, mut body) = found(get(&upstream(&trusting), "f"));
    assert_eq!(read_all(body.as_mut()), (b"hello".to_vec(), None));

    let doubting = Origin { ca_file: None, ..trusting };
    let error = get(&upstream(&doubting), "f").unwrap_err();
    assert!(matches!(error, UpstreamError::Connect { .. }), "{error:?}");
    assert!(error.to_string().contains("certificate"), "{error}");
}

#[test]
fn the_command_line_trusts_what_upstreams_are_trusted_by() {
    let (server, ca) =
        tls_server("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{}\n", Ending::Close);
    let (trusting, _folder) = tls_origin(&server, &ca);
    let post = |ca_file: Option<&Path>| {
        let url = trusting.bases[0].as_str();
        post_json(Server { url, ca_file, token: None }, "/any", "{\"a\": 1}")
    };
    let mut text = String::new();
    let mut answer = post(trusting.ca_file.as_deref()).unwrap();
    assert_eq!(answer.status, 200);
    answer.body.read_to_string(&mut text).unwrap();
    assert_eq!(text, "{}\n");

    let error = post(None).unwrap_err();
    assert!(matches!(error, AskError::Silent { .. }), "{error:?}");
    assert!(error.to_string().contains("certificate"), "{error}");
    assert!(matches!(post(Some(Path::new("no/such.pem"))), Err(AskError::Setup(_))));
}

#[test]
fn a_body_that_tls_does_not_end_is_cut() {
    let check = |answer, farewell, end| {
        let (server, ca) = tls_server(answer, farewell);
        let (origin, _folder) = tls_origin(&server, &ca);
        let (_, mut body) = found(get(&upstream(&origin), "f"));
        assert_eq!(read_all(body.as_mut()), (b"hello".to_vec(), end), "{answer:?}");
    };
    let until_closed = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello";
    check(until_closed, Ending::Close, None);
    check(until_closed, Ending::Reset, Some(io::ErrorKind::ConnectionReset));
    let cut = "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello";
    check(cut, Ending::Reset, Some(io::ErrorKind::ConnectionReset));
}
