//! What servers do wrong, by a front that does it on command.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use super::tests::{about, sealed};
use super::*;
use crate::artifact::Digest;
use crate::body::{BodyError, read_to_vec};
use crate::config::Secret;
use url::Url;

/// How long the store waits: long enough for a front on a busy machine.
const PATIENCE: Duration = Duration::from_secs(2);

/// What the front does with one request.
#[derive(Clone)]
enum Act {
    /// Sends this and goes on.
    Answer(String),
    /// Sends this and closes the connection.
    Break(String),
    /// Sends this and then nothing more, until the client has gone.
    Hold(String),
}
use Act::{Answer, Break, Hold};

/// One request as the front saw it: `METHOD path`, its headers, its body's length.
#[derive(Debug, Clone)]
struct Seen {
    line: String,
    headers: String,
    body: usize,
}

/// A server that follows a script, one act for each request, in the order of requests.
struct Front {
    settings: S3Settings,
    seen: Arc<Mutex<Vec<Seen>>>,
    connections: Arc<AtomicUsize>,
    address: SocketAddr,
    stopping: Arc<AtomicBool>,
}

impl Front {
    fn start(script: &[Act]) -> (S3Store, Self) {
        let front = Self::dressed(script, "http", |stream| stream);
        (S3Store::new(&front.settings).unwrap(), front)
    }

    /// A front that speaks through what `dress` makes of each connection.
    fn dressed<S: Read + Write>(
        script: &[Act],
        scheme: &str,
        dress: impl Fn(TcpStream) -> S + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let url = Url::parse(&format!("{scheme}://localhost:{}", address.port())).unwrap();
        let mut settings = S3Settings::new(url, "key", Secret::new("secret"), "bucket");
        settings.idle_timeout = PATIENCE;
        settings.first_byte_timeout = PATIENCE;
        let front = Self {
            settings,
            seen: Arc::default(),
            connections: Arc::default(),
            address,
            stopping: Arc::default(),
        };
        let script = Arc::new(Mutex::new(script.iter().cloned().collect::<VecDeque<_>>()));
        let (seen, stopping) = (Arc::clone(&front.seen), Arc::clone(&front.stopping));
        let connections = Arc::clone(&front.connections);
        let dress = Arc::new(dress);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if stopping.load(Ordering::Relaxed) {
                    return;
                }
                connections.fetch_add(1, Ordering::Relaxed);
                let (script, seen) = (Arc::clone(&script), Arc::clone(&seen));
                let dress = Arc::clone(&dress);
                thread::spawn(move || {
                    let socket = stream.try_clone().unwrap();
                    // The client may hang up whenever it likes.
                    let _ = serve(dress(stream), &script, &seen);
                    let _ = socket.shutdown(Shutdown::Both);
                });
            }
        });
        front
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// How many were made to it.
    fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// The requests' lines.
    fn lines(&self) -> Vec<String> {
        self.seen().into_iter().map(|seen| seen.line).collect()
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        // Wakes the listener, which then ends.
        let _ = TcpStream::connect(self.address);
    }
}

fn serve(
    stream: impl Read + Write,
    script: &Mutex<VecDeque<Act>>,
    seen: &Mutex<Vec<Seen>>,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head)? == 0 {
                return Ok(());
            }
        }
        let (line, headers) = head.split_once("\r\n").unwrap();
        let headers = headers.to_ascii_lowercase();
        let length = headers
            .lines()
            .find_map(|header| header.strip_prefix("content-length: "))
            .map_or(0, |length| length.parse().unwrap());
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let line = line.trim_end_matches(" HTTP/1.1").to_owned();
        seen.lock().unwrap().push(Seen { line, headers, body: body.len() });
        let act = script.lock().unwrap().pop_front();
        match act {
            Some(Answer(text)) => write(reader.get_mut(), &text)?,
            Some(Break(text)) => return write(reader.get_mut(), &text),
            Some(Hold(text)) => {
                write(reader.get_mut(), &text)?;
                std::io::copy(&mut reader, &mut std::io::sink())?;
                return Ok(());
            }
            // The script is at its end: nobody is there any more.
            None => return Ok(()),
        }
    }
}

fn write(stream: &mut impl Write, text: &str) -> std::io::Result<()> {
    stream.write_all(text.as_bytes())?;
    stream.flush()
}

fn response(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len())
}

fn refusal(status: &str, code: &str) -> Act {
    let body = format!("<Error><Code>{code}</Code><Message>because</Message></Error>");
    Answer(response(status, "", &body))
}

fn head(status: &str, length: usize) -> String {
    format!("HTTP/1.1 {status}\r\nETag: \"v\"\r\nContent-Length: {length}\r\n\r\n")
}

fn key() -> BlobKey {
    BlobKey::of(&about("file", Digest::of(b"")).artifact)
}

fn version() -> BlobVersion {
    BlobVersion("v".to_owned())
}

fn read(store: &S3Store, range: Range<u64>) -> Result<Vec<u8>, BodyError> {
    read_to_vec(&mut store.open(&key(), &version(), range).unwrap(), 1 << 20)
}

fn publish(store: &S3Store, bytes: &[u8]) -> Result<BlobVersion, BlobError> {
    let folder = tempfile::tempdir().unwrap();
    let sealed = sealed(&folder, bytes);
    store.publish(&key(), &sealed, &about("file", sealed.digest()))
}

#[test]
fn a_body_that_is_cut_goes_on_from_there_in_the_same_version() {
    for cut in [
        Break(head("206 Partial Content", 10) + "0123"),
        Hold(head("206 Partial Content", 10) + "0123"),
    ] {
        let rest = Answer(response("206 Partial Content", "ETag: \"v\"\r\n", "456789"));
        let (store, front) = Front::start(&[cut, rest]);
        assert_eq!(read(&store, 5..15).unwrap(), b"0123456789");
        let seen = front.seen();
        assert!(seen[0].headers.contains("range: bytes=5-14"), "{seen:?}");
        assert!(seen[1].headers.contains("range: bytes=9-14"), "{seen:?}");
        assert!(seen.iter().all(|seen| seen.headers.contains("if-match: \"v\"")), "{seen:?}");
    }
}

#[test]
fn a_body_that_cannot_go_on_is_an_error_and_never_an_end() {
    let cut = || Break(head("206 Partial Content", 10) + "0123");
    for script in [
        vec![cut(), refusal("412 Precondition Failed", "PreconditionFailed")],
        vec![cut(), refusal("404 Not Found", "NoSuchKey")],
        vec![cut(), Break(head("206 Partial Content", 6)), Break(head("206 Partial Content", 6))],
        vec![cut(), Answer(response("206 Partial Content", "", "4567"))],
        vec![cut(), Answer(response("200 OK", "", "0123456789abcdef"))],
    ] {
        let (store, _front) = Front::start(&script);
        let outcome = read(&store, 5..15);
        assert!(matches!(outcome, Err(BodyError::Cut(_))), "{outcome:?}");
    }
}

#[test]
fn each_refusal_means_what_the_caller_does_about_it() {
    let check = |status: &str, code: &str, expected: fn(&BlobError) -> bool| {
        let (store, _front) = Front::start(&[refusal(status, code)]);
        let error = store.open(&key(), &version(), 0..5).unwrap_err();
        assert!(expected(&error), "{status} {code}: {error:?}");
    };
    check("404 Not Found", "NoSuchKey", |error| matches!(error, BlobError::Missing(_)));
    check("404 Not Found", "NoSuchBucket", |error| matches!(error, BlobError::Unavailable { .. }));
    // Not S3's word: a proxy's before it, say.
    check("404 Not Found", "", |error| matches!(error, BlobError::Unavailable { .. }));
    check("412 Precondition Failed", "PreconditionFailed", |error| {
        matches!(error, BlobError::Changed(_))
    });
    check("416 Range Not Satisfiable", "InvalidRange", |error| {
        matches!(error, BlobError::Corrupt { .. })
    });
    check("507 Insufficient Storage", "", |error| matches!(error, BlobError::Full(_)));
    check("400 Bad Request", "QuotaExceeded", |error| matches!(error, BlobError::Full(_)));
    check("403 Forbidden", "AccessDenied", |error| matches!(error, BlobError::Unavailable { .. }));
    check("301 Moved Permanently", "PermanentRedirect", |error| {
        matches!(error, BlobError::Unavailable { .. })
    });
}

#[test]
fn answers_that_do_not_fit_the_range_are_not_served() {
    let check = |answer: String, expected: fn(&BlobError) -> bool| {
        let (store, _front) = Front::start(&[Answer(answer)]);
        let error = store.open(&key(), &version(), 2..6).unwrap_err();
        assert!(expected(&error), "{error:?}");
    };
    let corrupt = |error: &BlobError| matches!(error, BlobError::Corrupt { .. });
    let unavailable = |error: &BlobError| matches!(error, BlobError::Unavailable { .. });
    check(response("206 Partial Content", "", "abc"), corrupt);
    check(response("206 Partial Content", "", "abcdefgh"), unavailable);
    check(response("200 OK", "", "abcd"), corrupt);
    check(response("200 OK", "", "abcdefgh"), unavailable);
    check(
        "HTTP/1.1 206 Partial Content\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(),
        unavailable,
    );
    check(response("204 No Content", "", ""), unavailable);
}

#[test]
fn a_server_that_stumbles_is_asked_again_and_one_that_falls_is_given_up() {
    let stumble = || refusal("503 Slow Down", "SlowDown");
    let found = || Answer(response("206 Partial Content", "", "bytes"));
    for script in [
        vec![stumble(), stumble(), found()],
        vec![Break(String::new()), found()],
        vec![Break(String::new()), Break(String::new()), found()],
        vec![refusal("500 Internal Server Error", "InternalError"), found()],
    ] {
        let (store, front) = Front::start(&script);
        assert_eq!(read(&store, 0..5).unwrap(), b"bytes");
        assert_eq!(front.lines().len(), script.len());
    }
    // A head has no body that would say what is meant.
    let (store, front) = Front::start(&[stumble(), stumble(), stumble(), found()]);
    assert!(store.stat(&key()).is_err());
    assert_eq!(read(&store, 0..5).unwrap(), b"bytes");
    assert_eq!(front.lines().len(), 4);
    let away = || refusal("503 Service Unavailable", "ServiceUnavailable");
    let (store, front) = Front::start(&[away(), away(), away(), found()]);
    let error = store.open(&key(), &version(), 0..5).unwrap_err();
    assert!(matches!(error, BlobError::Unavailable { operation: "open", .. }), "{error:?}");
    assert!(store.open(&key(), &version(), 0..5).is_err());
    assert_eq!(front.lines().len(), 3, "who comes next does not wait for it");
}

#[test]
fn a_head_that_does_not_come_is_waited_for_once_and_then_nobody_asks() {
    let (store, front) = Front::start(&[Hold(String::new())]);
    for _ in 0..50 {
        let found = store.stat(&key());
        assert!(matches!(found, Err(BlobError::Unavailable { .. })), "{found:?}");
    }
    assert_eq!(front.lines().len(), 1);
}

#[test]
fn only_s3s_own_word_is_proof_that_an_object_is_not_there() {
    let without_body = || Answer("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_owned());
    let object = format!("/bucket/{}", key());
    let (store, front) =
        Front::start(&[without_body(), refusal("404 Not Found", "NoSuchKey"), without_body()]);
    assert_eq!(store.stat(&key()).unwrap(), None);
    assert_eq!(front.lines(), [format!("HEAD {object}"), format!("GET {object}")]);
    store.remove(&key()).expect_err("a 404 of somebody else removes nothing");
    for then in [refusal("404 Not Found", ""), Answer(response("206 Partial Content", "", "b"))] {
        let (store, _front) = Front::start(&[without_body(), then]);
        assert!(matches!(store.stat(&key()), Err(BlobError::Unavailable { .. })));
    }
}

#[test]
fn another_version_is_not_served_by_a_server_that_ignores_conditions() {
    let other = Answer(response("206 Partial Content", "ETag: \"another\"\r\n", "bytes"));
    let (store, _front) = Front::start(&[other]);
    assert!(matches!(store.open(&key(), &version(), 0..5), Err(BlobError::Changed(_))));
}

#[test]
fn a_kept_connection_that_the_server_closed_is_replaced_unnoticed() {
    let found = || Answer(response("206 Partial Content", "", "bytes"));
    let close = Break(response("206 Partial Content", "", "bytes"));
    let (store, front) = Front::start(&[found(), close, found()]);
    for _ in 0..3 {
        assert_eq!(read(&store, 0..5).unwrap(), b"bytes");
    }
    assert_eq!((front.lines().len(), front.connections()), (3, 2));
}

#[test]
fn a_file_goes_as_one_request_of_known_length_without_asking_to_continue() {
    let stumble = refusal("500 Internal Server Error", "InternalError");
    let stored = Answer(response("200 OK", "ETag: \"w\"\r\n", ""));
    let (store, front) = Front::start(&[stumble, stored]);
    assert_eq!(publish(&store, b"bytes").unwrap(), BlobVersion("w".to_owned()));
    for seen in front.seen() {
        assert_eq!((seen.line.as_str(), seen.body), (format!("PUT /bucket/{}", key()).as_str(), 5));
        assert!(
            seen.headers.contains("x-amz-content-sha256: unsigned-payload")
                && seen.headers.contains("x-amz-meta-artifact: r/file")
                && !seen.headers.contains("expect")
                && !seen.headers.contains("transfer-encoding"),
            "{seen:?}"
        );
    }
}

#[test]
fn a_bucket_that_is_missing_is_created_or_the_error_says_what_to_do() {
    let missing = || refusal("404 Not Found", "NoSuchBucket");
    let (store, front) = Front::start(&[
        missing(),
        refusal("400 Bad Request", "IllegalLocationConstraintException"),
        Answer(response("200 OK", "", "")),
        Answer(response("200 OK", "ETag: \"w\"\r\n", "")),
    ]);
    publish(&store, b"bytes").unwrap();
    let seen = front.seen();
    assert_eq!((seen[1].line.as_str(), seen[1].body), ("PUT /bucket", 0));
    assert!(seen[2].line == "PUT /bucket" && seen[2].body > 0, "{seen:?}");

    let (store, _front) = Front::start(&[missing(), refusal("403 Forbidden", "AccessDenied")]);
    let error = store.probe().unwrap_err();
    let text = format!("{error}: {}", std::error::Error::source(&error).unwrap());
    assert!(
        text.starts_with("the bucket \"bucket\" is not there and could not be created: create it")
            && text.ends_with("S3 answered 403 AccessDenied: because"),
        "{text}"
    );
}

/// A store that sends 11 MiB in three parts, to a front that follows `script`.
fn publish_in_parts(script: &[Act]) -> (Result<BlobVersion, BlobError>, Vec<String>) {
    let (_, front) = Front::start(script);
    let part_bytes = 5 << 20;
    let settings =
        S3Settings { single_put_bytes_max: part_bytes, part_bytes, ..front.settings.clone() };
    let outcome = publish(&S3Store::new(&settings).unwrap(), &vec![7; 11 << 20]);
    let object = format!("/bucket/{}", key());
    (outcome, front.lines().iter().map(|line| line.replace(&object, "")).collect())
}

#[test]
fn an_upload_in_parts_is_completed_or_aborted() {
    let begun = || {
        let body = "<InitiateMultipartUploadResult><Bucket>b</Bucket><Key>k</Key>\
            <UploadId>id/1</UploadId></InitiateMultipartUploadResult>";
        Answer(response("200 OK", "", body))
    };
    let part = || Answer(response("200 OK", "ETag: \"p\"\r\n", ""));
    let done = |etag: &str| {
        let body = format!(
            "<CompleteMultipartUploadResult><ETag>{etag}</ETag></CompleteMultipartUploadResult>"
        );
        Answer(response("200 OK", "", &body))
    };
    let gone = || Answer("HTTP/1.1 204 No Content\r\n\r\n".to_owned());
    let found = |digest: Digest| {
        let about = super::about::headers(&about("file", digest));
        let mut text = format!("ETag: \"now\"\r\nContent-Length: {}\r\n", 11 << 20);
        for (name, value) in about.iter() {
            text.push_str(&format!("{name}: {}\r\n", value.to_str().unwrap()));
        }
        Answer(format!("HTTP/1.1 200 OK\r\n{text}\r\n"))
    };
    let ours = Digest::of(&vec![7; 11 << 20]);
    let stumble = || refusal("503 Slow Down", "SlowDown");
    let complete = [
        "POST ?uploads=",
        "PUT ?partNumber=1&uploadId=id%2F1",
        "PUT ?partNumber=2&uploadId=id%2F1",
        "PUT ?partNumber=3&uploadId=id%2F1",
        "POST ?uploadId=id%2F1",
    ];
    let with = |more: &[&'static str]| [complete.as_slice(), more].concat();
    let check = |name: &str, script: &[Act], version: Option<&str>, lines: &[&str]| {
        let (outcome, seen) = publish_in_parts(script);
        let got = outcome.as_ref().ok().map(|version| version.0.as_str());
        assert_eq!(got, version, "{name}: {outcome:?}");
        assert_eq!(seen, lines, "{name}");
    };
    check("whole", &[begun(), part(), part(), part(), done("\"x-3\"")], Some("x-3"), &complete);
    check(
        "a part is sent again",
        &[begun(), part(), stumble(), part(), part(), done("\"x-3\"")],
        Some("x-3"),
        &[complete[0], complete[1], complete[2], complete[2], complete[3], complete[4]],
    );
    check(
        "a part is refused",
        &[begun(), part(), refusal("400 Bad Request", "EntityTooSmall"), gone()],
        None,
        &[complete[0], complete[1], complete[2], "DELETE ?uploadId=id%2F1"],
    );
    check(
        "refused behind a head of success",
        &[
            begun(),
            part(),
            part(),
            part(),
            Answer(response(
                "200 OK",
                "",
                "<?xml version=\"1.0\"?>\n<Error><Code>InternalError</Code></Error>",
            )),
            gone(),
        ],
        None,
        &with(&["DELETE ?uploadId=id%2F1"]),
    );
    check(
        "the answer was lost behind success",
        &[begun(), part(), part(), part(), Break(String::new()), found(ours)],
        Some("now"),
        &with(&["HEAD "]),
    );
    // Completion may still be under way: an abort could take its parts away.
    check(
        "the answer was lost and another file is there",
        &[begun(), part(), part(), part(), Break(String::new()), found(Digest::of(b"other"))],
        None,
        &with(&["HEAD "]),
    );
    check(
        "a proxy gave up waiting for the answer",
        &[begun(), part(), part(), part(), refusal("504 Gateway Timeout", ""), found(ours)],
        Some("now"),
        &with(&["HEAD "]),
    );
    check(
        "too busy, and then done by an attempt that nobody heard of",
        &[
            begun(),
            part(),
            part(),
            part(),
            stumble(),
            refusal("404 Not Found", "NoSuchUpload"),
            found(ours),
        ],
        Some("now"),
        &with(&[complete[4], "HEAD "]),
    );
    check(
        "no ETag in the answer",
        &[begun(), part(), part(), part(), done(""), found(ours)],
        Some("now"),
        &with(&["HEAD "]),
    );
    check("it does not begin", &[Break(String::new())], None, &complete[..1]);
}

#[test]
fn a_listing_that_does_not_go_on_ends_in_an_error() {
    let page = |token: &str| {
        let body = format!(
            "<ListBucketResult><Name>b</Name><IsTruncated>true</IsTruncated>{token}</ListBucketResult>"
        );
        Answer(response("200 OK", "", &body))
    };
    let same = "<NextContinuationToken>t</NextContinuationToken>";
    for script in [vec![page("")], vec![page(same), page(same)]] {
        let (store, front) = Front::start(&script);
        let outcome = store.each(&mut |_| ControlFlow::Continue(()));
        assert!(matches!(outcome, Err(BlobError::Unavailable { .. })), "{outcome:?}");
        assert_eq!(front.lines().len(), script.len());
    }
}

#[test]
fn a_read_that_tries_whether_the_server_is_back_is_impatient() {
    let nobody = Break(String::new());
    let script = [nobody.clone(), nobody.clone(), nobody, Hold(String::new())];
    let mut front = Front::dressed(&script, "http", |stream| stream);
    front.settings.first_byte_timeout = Duration::from_secs(60);
    let store = S3Store::new(&front.settings).unwrap();
    let began = std::time::Instant::now();
    // At first nobody is there, then nobody is asked, then one read tries.
    while front.lines().len() < script.len() {
        assert!(matches!(store.open(&key(), &version(), 0..5), Err(BlobError::Unavailable { .. })));
        thread::sleep(Duration::from_millis(20));
    }
    assert!(began.elapsed() < front.settings.first_byte_timeout, "{:?}", began.elapsed());
}

#[test]
fn tls_is_spoken_with_a_certificate_of_the_named_authority_only() {
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut ca = rcgen::CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["localhost".to_owned()])
        .unwrap()
        .signed_by(&key, &rcgen::Issuer::new(ca, ca_key))
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            rustls::pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        )
        .unwrap();
    let config = Arc::new(config);
    let found = || Answer(response("206 Partial Content", "", "bytes"));
    let mut front = Front::dressed(&[found(), found()], "https", move |stream| {
        let session = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
        rustls::StreamOwned::new(session, stream)
    });
    // How fast a debug build shakes hands is not what is tested.
    front.settings.first_byte_timeout = Duration::from_secs(20);
    front.settings.connect_timeout = Duration::from_secs(20);
    let stranger = S3Store::new(&front.settings).unwrap();
    assert!(matches!(stranger.stat(&self::key()), Err(BlobError::Unavailable { .. })));

    let folder = tempfile::tempdir().unwrap();
    let ca_file = folder.path().join("ca.pem");
    std::fs::write(&ca_file, ca_pem).unwrap();
    let trusting = S3Settings { ca_file: Some(ca_file), ..front.settings.clone() };
    let store = S3Store::new(&trusting).unwrap();
    for _ in 0..2 {
        assert_eq!(read(&store, 0..5).unwrap(), b"bytes");
    }
    assert_eq!(front.connections(), 2, "the stranger's and one");

    let missing = S3Settings { ca_file: Some("/nowhere/ca.pem".into()), ..trusting };
    let error = S3Store::new(&missing).unwrap_err();
    assert!(error.to_string().contains("/nowhere/ca.pem"), "{error}");
}
