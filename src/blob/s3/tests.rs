//! The store on real servers; what servers do wrong is in `scripted`.

use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use std::{fs, io, thread};

use super::*;
use crate::artifact::{ArtifactKey, ArtifactPath, Digest, Validators};
use crate::body::read_to_vec;
use crate::chain::chain;
use crate::config::Secret;
use crate::staging::{Expect, Staging};
use crate::test_servers::{Private, eventually, shared, unique_name};
use url::Url;

/// Settings for a bucket of its own; `server` is `URL,access key,secret key,bucket`.
pub(crate) fn settings(server: &str) -> S3Settings {
    let [url, access_key, secret_key, _] =
        server.split(',').collect::<Vec<_>>().try_into().expect("four parts");
    let bucket = unique_name("test").replace('_', "-");
    S3Settings::new(Url::parse(url).unwrap(), access_key, Secret::new(secret_key), bucket)
}

/// A bucket that goes with the test.
pub(crate) struct Bucket(S3Settings);

impl Bucket {
    pub(crate) fn on(server: &str) -> (S3Store, Self) {
        let settings = settings(server);
        let store = S3Store::new(&settings).unwrap();
        store.probe().unwrap();
        (store, Self(settings))
    }
}

impl Drop for Bucket {
    fn drop(&mut self) {
        let client = S3Client::new(&self.0).unwrap();
        let delete = |key: Option<&str>| {
            client.call(&Call::new(Method::DELETE, key)).and_then(finish).unwrap();
        };
        let inner = S3Store::new(&self.0).unwrap().inner;
        loop {
            let page = inner.page(None).unwrap();
            page.contents.iter().for_each(|object| delete(Some(&object.key)));
            if !page.is_truncated {
                break;
            }
        }
        delete(None);
    }
}

pub(crate) fn sealed(folder: &tempfile::TempDir, bytes: &[u8]) -> SealedFile {
    let staging = Staging::open(folder.path(), 1 << 30).unwrap();
    let mut staged = staging.begin(Expect::default()).unwrap();
    staged.append_bytes(bytes).unwrap();
    staged.seal().unwrap()
}

pub(crate) fn about(path: &str, digest: Digest) -> About {
    About {
        artifact: ArtifactKey {
            remote: "r".parse().unwrap(),
            path: ArtifactPath::from_canonical(path).unwrap(),
        },
        digest,
        content_type: Some("text/plain".to_owned()),
        content_encoding: None,
        validators: Validators { etag: Some("\"é, x\"".to_owned()), last_modified: None },
        stored_at: SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000),
    }
}

fn publish(store: &S3Store, path: &str, bytes: &[u8]) -> (BlobKey, BlobVersion) {
    let folder = tempfile::tempdir().unwrap();
    let sealed = sealed(&folder, bytes);
    let about = about(path, sealed.digest());
    let key = BlobKey::of(&about.artifact);
    let version = store.publish(&key, &sealed, &about).unwrap();
    (key, version)
}

fn read(store: &S3Store, key: &BlobKey, version: &BlobVersion, range: Range<u64>) -> Vec<u8> {
    read_to_vec(&mut store.open(key, version, range).unwrap(), 64 << 20).unwrap()
}

/// One `#[test]` per function and server.
macro_rules! on_each_server {
    ($($name:ident)+) => {
        mod seaweedfs {
            $(#[test] fn $name() { super::$name("ARTIFACTAPI_TEST_S3") })+
            crate::blob::conformance::blob_conformance!(|| {
                super::Bucket::on(&super::shared("ARTIFACTAPI_TEST_S3"))
            });
        }
        mod ceph {
            $(#[test] fn $name() { super::$name("ARTIFACTAPI_TEST_RGW") })+
            crate::blob::conformance::blob_conformance!(|| {
                super::Bucket::on(&super::shared("ARTIFACTAPI_TEST_RGW"))
            });
        }
    };
}

on_each_server! {
    objects_describe_themselves
    a_file_over_the_bound_goes_in_parts_and_leaves_no_upload_behind
    an_upload_that_fails_is_aborted
    a_missing_bucket_is_created_by_the_first_file
    what_others_keep_in_the_bucket_is_no_blob
    wrong_keys_are_refused_with_what_the_server_says
    small_reads_share_a_connection
    what_is_new_takes_nobodys_place
}

fn objects_describe_themselves(server: &str) {
    let (store, _bucket) = Bucket::on(&shared(server));
    for path in ["dir/é ü+%41?x=1&y=\"2\"", "日本/語.rpm", "dir/"] {
        let (key, version) = publish(&store, path, b"bytes");
        let meta = store.stat(&key).unwrap().unwrap();
        assert_eq!(meta.version, version);
        assert_eq!(meta.about, Some(about(path, Digest::of(b"bytes"))));
    }
}

fn what_is_new_takes_nobodys_place(server: &str) {
    let (store, bucket) = Bucket::on(&shared(server));
    let folder = tempfile::tempdir().unwrap();
    let parts =
        S3Settings { single_put_bytes_max: 1 << 20, part_bytes: 5 << 20, ..bucket.0.clone() };
    let in_parts = S3Store::new(&parts).unwrap();
    for (path, store, len) in [("whole", &store, 10), ("in parts", &in_parts, 6 << 20)] {
        let publish_over = |there: Option<&BlobVersion>, byte: u8| {
            let sealed = sealed(&folder, &vec![byte; len]);
            let about = about(path, sealed.digest());
            store.publish_over(&BlobKey::of(&about.artifact), there, &sealed, &about)
        };
        let first = publish_over(None, 1).unwrap();
        let again = publish_over(None, 1).unwrap();
        assert_eq!(again, first, "{path}: an attempt whose answer was lost");
        let key = BlobKey::of(&about(path, Digest::of(b"")).artifact);
        let other = BlobVersion("0123456789abcdef0123456789abcdef".to_owned());
        let is_ceph = server == "ARTIFACTAPI_TEST_RGW";
        // Ceph looks at no condition where parts become an object, nor where one is removed.
        if !is_ceph || path == "whole" {
            for there in [None, Some(&other)] {
                let refused = publish_over(there, 2);
                assert!(matches!(refused, Err(BlobError::Changed(_))), "{path} over {there:?}");
            }
            assert_eq!(read(store, &key, &first, 0..10), [1; 10]);
        }
        if !is_ceph {
            store.remove_version(&key, &other).unwrap();
            assert_eq!(read(store, &key, &first, 0..10), [1; 10]);
        }
        let first = match path {
            // Bytes that say they were those that come: they are not taken for them.
            "whole" => {
                let three = about(path, Digest::of(&vec![3; len]));
                store.publish(&key, &sealed(&folder, &vec![4; len]), &three).unwrap()
            }
            _ => first,
        };
        let first = publish_over(Some(&first), 3).unwrap();
        assert_eq!(read(store, &key, &first, 0..10), [3; 10]);
        store.remove_version(&key, &first).unwrap();
        assert_eq!(store.stat(&key).unwrap(), None, "{path}");
        store.remove_version(&key, &first).unwrap();
    }
}

fn uploads_under_way(store: &S3Store) -> usize {
    let call = Call { query: &[("uploads", "")], ..Call::new(Method::GET, None) };
    text(store.inner.client.call(&call).unwrap()).unwrap().matches("<UploadId>").count()
}

/// Settings under which 11 MiB go in three parts.
fn in_parts(server: &str) -> S3Settings {
    let part_bytes = 5 << 20;
    S3Settings { single_put_bytes_max: part_bytes, part_bytes, ..settings(&shared(server)) }
}

fn a_file_over_the_bound_goes_in_parts_and_leaves_no_upload_behind(server: &str) {
    let settings = in_parts(server);
    let store = S3Store::new(&settings).unwrap();
    store.probe().unwrap();
    let _bucket = Bucket(settings);
    let bytes: Vec<u8> = (0..11 << 20).map(|at: u32| (at / 4096) as u8).collect();
    for round in 0..2 {
        let (key, version) = publish(&store, "large", &bytes);
        assert!(read(&store, &key, &version, 0..bytes.len() as u64) == bytes, "round {round}");
        let over_a_seam = (5 << 20) - 3..(5 << 20) + 3;
        assert_eq!(
            read(&store, &key, &version, over_a_seam.start..over_a_seam.end),
            &bytes[over_a_seam.start as usize..over_a_seam.end as usize]
        );
        let meta = store.stat(&key).unwrap().unwrap();
        assert_eq!((meta.version, meta.size), (version, bytes.len() as u64));
        assert_eq!(meta.about, Some(about("large", Digest::of(&bytes))));
        assert_eq!(uploads_under_way(&store), 0);
    }
}

fn an_upload_that_fails_is_aborted(server: &str) {
    let settings = in_parts(server);
    let store = S3Store::new(&settings).unwrap();
    store.probe().unwrap();
    let _bucket = Bucket(settings);
    let folder = tempfile::tempdir().unwrap();
    let sealed = sealed(&folder, &vec![7; 11 << 20]);
    // The second part can't be read: the file was cut behind our back.
    fs::OpenOptions::new().write(true).open(sealed.path()).unwrap().set_len(6 << 20).unwrap();
    let about = about("cut", sealed.digest());
    let key = BlobKey::of(&about.artifact);
    let error = store.publish(&key, &sealed, &about).unwrap_err();
    assert!(matches!(error, BlobError::Unavailable { operation: "publish", .. }), "{error:?}");
    assert_eq!(uploads_under_way(&store), 0);
    assert_eq!(store.stat(&key).unwrap(), None);
}

fn a_missing_bucket_is_created_by_the_first_file(server: &str) {
    let settings = settings(&shared(server));
    let store = S3Store::new(&settings).unwrap();
    let (key, version) = publish(&store, "first", b"bytes");
    let _bucket = Bucket(settings.clone());
    assert_eq!(read(&store, &key, &version, 0..5), b"bytes");
    // Another replica finds it there.
    S3Store::new(&settings).unwrap().probe().unwrap();
}

fn what_others_keep_in_the_bucket_is_no_blob(server: &str) {
    let (store, _bucket) = Bucket::on(&shared(server));
    for key in ["README", "r/0123456789abcdeX/f", "a b/0123456789abcdef/f"] {
        let call = Call { payload: Payload::Bytes(b"x"), ..Call::new(Method::PUT, Some(key)) };
        finish(store.inner.client.call(&call).unwrap()).unwrap();
    }
    let (key, _) = publish(&store, "ours", b"x");
    let mut seen = Vec::new();
    store
        .each(&mut |meta| {
            seen.push(meta.key);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(seen, [key]);
}

fn wrong_keys_are_refused_with_what_the_server_says(server: &str) {
    let mut settings = settings(&shared(server));
    settings.secret_key = Secret::new("wrong");
    let store = S3Store::new(&settings).unwrap();
    let error = store.probe().unwrap_err();
    assert!(error.is_code("SignatureDoesNotMatch"), "{error:?}");
    assert!(error.to_string().starts_with("S3 answered 403 SignatureDoesNotMatch"), "{error}");
    let key = BlobKey::of(&about("a", Digest::of(b"")).artifact);
    assert!(matches!(store.stat(&key), Err(BlobError::Unavailable { .. })));
    let again = store.probe().unwrap_err();
    assert!(again.is_code("SignatureDoesNotMatch"), "a refusal is no absence: {again:?}");
}

fn small_reads_share_a_connection(server: &str) {
    let (_, bucket) = Bucket::on(&shared(server));
    let (endpoint, connections) = relay(&bucket.0.endpoint);
    let store = S3Store::new(&S3Settings { endpoint, ..bucket.0.clone() }).unwrap();
    let (key, version) = publish(&store, "small", &[1; 4096]);
    let before = connections.load(Ordering::Relaxed);
    for _ in 0..200 {
        assert_eq!(read(&store, &key, &version, 0..4096), [1; 4096]);
    }
    assert_eq!(connections.load(Ordering::Relaxed), before);
}

/// Passes on what is sent to a server and what it answers; counts the connections.
fn relay(server: &Url) -> (Url, Arc<AtomicUsize>) {
    let to = server.socket_addrs(|| None).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut relay = server.clone();
    relay.set_port(Some(listener.local_addr().unwrap().port())).unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&connections);
    // Both end with the test binary.
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            count.fetch_add(1, Ordering::Relaxed);
            let server = TcpStream::connect(&*to).unwrap();
            for (mut from, mut to) in
                [(client.try_clone(), server.try_clone()), (Ok(server), Ok(client))]
                    .map(|(from, to)| (from.unwrap(), to.unwrap()))
            {
                thread::spawn(move || {
                    // Whichever side ends it, the other is told.
                    let _ = io::copy(&mut from, &mut to);
                    let _ = to.shutdown(Shutdown::Write);
                });
            }
        }
    });
    (relay, connections)
}

#[test]
fn a_restart_of_the_server_is_not_noticed_by_callers_that_come_after_it() {
    let server = Private::start("seaweedfs");
    let settings = settings(server.variable("ARTIFACTAPI_TEST_S3"));
    let store = S3Store::new(&settings).unwrap();
    let (key, version) = publish(&store, "kept", b"bytes");
    server.tell("kill", "seaweedfs");
    assert!(store.open(&key, &version, 0..5).is_err());
    assert!(store.stat(&key).is_err());
    server.tell("start", "seaweedfs");
    eventually("S3 answers again", || store.probe().is_ok());
    let (again, version) = publish(&store, "kept", b"again");
    assert_eq!(again, key);
    assert_eq!(read(&store, &key, &version, 0..5), b"again");
}

#[test]
fn a_server_that_is_silent_is_given_up_and_then_hardly_anybody_asks() {
    let server = Private::start("seaweedfs");
    let mut settings = settings(server.variable("ARTIFACTAPI_TEST_S3"));
    settings.first_byte_timeout = Duration::from_secs(3);
    let store = S3Store::new(&settings).unwrap();
    eventually("S3 answers", || store.probe().is_ok());
    let (key, version) = publish(&store, "kept", b"bytes");
    server.tell("pause", "seaweedfs");
    let waited = (0..100)
        .map(|_| match store.open(&key, &version, 0..5) {
            Err(error @ BlobError::Unavailable { .. }) => chain(&error),
            other => panic!("{other:?}"),
        })
        .filter(|error| !error.contains("is not asked again"))
        .count();
    assert!(waited < 10, "{waited} callers waited");
    server.tell("resume", "seaweedfs");
    eventually("S3 answers again", || store.probe().is_ok());
    assert_eq!(read(&store, &key, &version, 0..5), b"bytes");
}
