//! What every [`BlobStore`] must do, wrappers too.
//!
//! Plain functions over an empty store; [`blob_conformance!`] turns each into one `#[test]`
//! of a backend. Scratch files lie in a folder of each test's own, and the suite never looks
//! at how a backend keeps its bytes.

use std::collections::BTreeMap;
use std::io::{Read, Seek};
use std::ops::{ControlFlow, Range};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{About, BlobError, BlobMeta, BlobStore};
use crate::artifact::{ArtifactKey, ArtifactPath, BlobKey, BlobVersion, Validators};
use crate::body::{BodyError, read_to_vec};
use crate::staging::{Expect, SealedFile, Staging};

/// One `#[test]` per function of the suite.
///
/// Takes what makes an empty store: a closure that gives `(store, guard)`, where the guard
/// lives as long as the test (a temporary folder, a bucket of its own). Attributes before it
/// go to every test.
macro_rules! blob_conformance {
    (@one [$(#[$attribute:meta])*] $fresh:expr; $name:ident) => {
        #[test]
        $(#[$attribute])*
        fn $name() {
            let (store, _guard) = ($fresh)();
            $crate::blob::conformance::$name(&store);
        }
    };
    (@each $attributes:tt $fresh:expr; $($name:ident)+) => {
        $($crate::blob::conformance::blob_conformance! { @one $attributes $fresh; $name })+
    };
    ($(#[$attribute:meta])* $fresh:expr) => {
        $crate::blob::conformance::blob_conformance! { @each [$(#[$attribute])*] $fresh;
            what_was_published_is_read_back
            a_blob_without_bytes_is_a_blob
            a_blob_of_several_mebibytes_is_whole
            a_range_gives_exactly_its_bytes
            a_range_past_the_end_is_corrupt
            file_names_of_any_kind_are_kept_apart
            nothing_there_is_missing
            what_was_published_can_be_persisted
            publishing_twice_is_success
            publishing_replaces_and_the_earlier_version_is_changed
            an_opened_version_is_kept_to_the_end_though_the_key_is_replaced
            an_opened_version_is_kept_to_the_end_though_the_key_is_removed
            stat_tells_what_was_published
            removing_is_success_with_and_without_a_blob
            a_removed_blob_can_be_published_again
            a_listing_shows_every_blob_once
            a_listing_breaks_off_when_told
            a_listing_may_remove_what_it_shows
            publishing_leaves_the_sealed_file_to_its_readers
            staging_is_empty_afterwards
            readers_that_race_with_publishers_see_one_whole_version
            publishers_that_race_all_succeed_and_one_stays
            publishing_that_races_with_removal_succeeds
            a_listing_that_races_with_changes_succeeds
        }
    };
}
pub(crate) use blob_conformance;

/// More than one page of an object store's listing, which ends at 1,000.
const LISTED: usize = 1_100;
/// Rounds of each thread in the races.
const ROUNDS: usize = 60;
/// Longest blob that the suite reads back, in bytes.
const READ_MAX: usize = 16 << 20;

/// Ends the other threads of a race, also when this one panics.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Scratch space of one test.
struct Scratch {
    staging: Staging,
    folder: tempfile::TempDir,
}

impl Scratch {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let staging = Staging::open(folder.path(), 1 << 30).expect("it can be staged in");
        Self { staging, folder }
    }

    fn sealed(&self, bytes: &[u8]) -> SealedFile {
        let expect = Expect { len: Some(bytes.len() as u64), checksum: None };
        let mut staged = self.staging.begin(expect).expect("there is room to stage");
        staged.append_bytes(bytes).expect("there is room to stage");
        staged.seal().expect("every promised byte came")
    }

    fn publish(&self, store: &dyn BlobStore, path: &str, bytes: &[u8]) -> BlobVersion {
        let sealed = self.sealed(bytes);
        store.publish(&key(path), &sealed, &about(path, &sealed)).expect("publish")
    }
}

fn artifact(path: &str) -> ArtifactKey {
    let path = ArtifactPath::from_canonical(path).expect("the suite's paths are canonical");
    ArtifactKey { remote: "remote".parse().expect("a remote's name"), path }
}

fn key(path: &str) -> BlobKey {
    BlobKey::of(&artifact(path))
}

fn about(path: &str, sealed: &SealedFile) -> About {
    About {
        artifact: artifact(path),
        digest: sealed.digest(),
        content_type: Some("text/plain; charset=\"utf-8\"".to_owned()),
        content_encoding: Some("gzip".to_owned()),
        validators: Validators { etag: Some("W/\"a b+é\"".to_owned()), last_modified: None },
        stored_at: UNIX_EPOCH + Duration::from_micros(1_700_000_000_123_456),
    }
}

fn read(
    store: &dyn BlobStore,
    path: &str,
    version: &BlobVersion,
    range: Range<u64>,
) -> Result<Vec<u8>, BlobError> {
    let mut body = store.open(&key(path), version, range.clone())?;
    assert_eq!(body.len(), Some(range.end - range.start), "{path}: the body's length");
    Ok(read_to_vec(&mut body, READ_MAX).expect("an opened body is whole"))
}

fn listed(store: &dyn BlobStore) -> BTreeMap<BlobKey, BlobMeta> {
    let mut shown = BTreeMap::new();
    let mut times = 0;
    let mut visit = |meta: BlobMeta| {
        times += 1;
        shown.insert(meta.key.clone(), meta);
        ControlFlow::Continue(())
    };
    store.each(&mut visit).expect("each");
    assert_eq!(shown.len(), times, "no blob is shown twice");
    shown
}

/// Bytes that differ from place to place and from seed to seed.
fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|at| (at / 251) as u8 ^ (at as u8).wrapping_mul(7) ^ seed).collect()
}

pub(crate) fn what_was_published_is_read_back(store: &dyn BlobStore) {
    let scratch = Scratch::new();
    let bytes = pattern(1, 70_001);
    let version = scratch.publish(store, "dir/file.bin", &bytes);
    assert_eq!(read(store, "dir/file.bin", &version, 0..70_001).expect("open"), bytes);
}

pub(crate) fn a_blob_without_bytes_is_a_blob(store: &dyn BlobStore) {
    let version = Scratch::new().publish(store, "empty", b"");
    assert_eq!(read(store, "empty", &version, 0..0).expect("open"), b"");
    let meta = store.stat(&key("empty")).expect("stat").expect("it is there");
    assert_eq!((meta.size, meta.version), (0, version));
    assert_eq!(listed(store).len(), 1);
}

pub(crate) fn a_blob_of_several_mebibytes_is_whole(store: &dyn BlobStore) {
    let bytes = pattern(2, (9 << 20) + 1);
    let len = bytes.len() as u64;
    let version = Scratch::new().publish(store, "big", &bytes);
    assert!(read(store, "big", &version, 0..len).expect("open") == bytes);
    let tail = (8 << 20) - 3..len;
    assert!(read(store, "big", &version, tail).expect("open") == bytes[(8 << 20) - 3..]);
}

pub(crate) fn a_range_gives_exactly_its_bytes(store: &dyn BlobStore) {
    let bytes = pattern(3, 1_000);
    let version = Scratch::new().publish(store, "ranged", &bytes);
    let check = |range: Range<u64>| {
        let expected = &bytes[range.start as usize..range.end as usize];
        let found = read(store, "ranged", &version, range.clone()).expect("open");
        assert_eq!(found, expected, "{range:?}");
    };
    check(0..1_000);
    check(0..0);
    check(500..500);
    check(1_000..1_000);
    check(0..1);
    check(999..1_000);
    check(1..999);
    check(400..401);
    check(250..1_000);
}

pub(crate) fn a_range_past_the_end_is_corrupt(store: &dyn BlobStore) {
    let version = Scratch::new().publish(store, "short", b"0123456789");
    for range in [0..11, 9..11, 10..11, 11..11, 11..12, 0..u64::MAX, u64::MAX - 1..u64::MAX] {
        let found = store.open(&key("short"), &version, range.clone());
        assert!(matches!(found, Err(BlobError::Corrupt { .. })), "{range:?}: {found:?}");
    }
}

pub(crate) fn file_names_of_any_kind_are_kept_apart(store: &dyn BlobStore) {
    let scratch = Scratch::new();
    let long = format!("dir/{}.tar.gz", "x".repeat(400));
    let paths = [
        "a",
        "dir/a",
        "dir/A",
        "dir/a b",
        "dir/a+b",
        "dir/a%20b",
        "dir/a%2bb",
        "dir/ a ",
        "dir/..a",
        "dir/a..",
        "dir/.a",
        "dir/-a",
        "dir/~a",
        "dir/",
        "dir/a?x=1&y=/2",
        "dir/a#b",
        "dir/a&b=c;d,e",
        "dir/a*b[c]{d}|e",
        "dir/'a'\"b\"<c>$d`e`",
        "dir/caf\u{e9}",
        "dir/cafe\u{301}",
        "dir/\u{65e5}\u{672c}\u{8a9e}.bin",
        "dir/\u{1f4e6}",
        "dir/1:2.3~rc1-4_amd64.deb",
        &long,
    ];
    let versions: Vec<_> =
        paths.iter().map(|path| scratch.publish(store, path, path.as_bytes())).collect();
    for (path, version) in paths.iter().zip(&versions) {
        let len = path.len() as u64;
        assert_eq!(read(store, path, version, 0..len).expect(path), path.as_bytes(), "{path}");
    }
    let keys: Vec<_> = listed(store).into_keys().collect();
    let mut expected: Vec<_> = paths.iter().map(|path| key(path)).collect();
    expected.sort();
    assert_eq!(keys, expected);
    for path in paths {
        store.remove(&key(path)).expect(path);
        assert_eq!(store.stat(&key(path)).expect(path), None, "{path}");
    }
}

pub(crate) fn nothing_there_is_missing(store: &dyn BlobStore) {
    assert_eq!(store.stat(&key("none")).expect("stat"), None);
    assert!(listed(store).is_empty());
    let version = Scratch::new().publish(store, "some", b"some");
    for range in [0..4, 0..0] {
        let found = store.open(&key("none"), &version, range);
        assert!(matches!(&found, Err(BlobError::Missing(missing)) if *missing == key("none")));
        assert!(found.is_err_and(|error| error.is_gone()));
    }
}

pub(crate) fn what_was_published_can_be_persisted(store: &dyn BlobStore) {
    let scratch = Scratch::new();
    let version = scratch.publish(store, "kept", b"bytes");
    store.persist(&key("kept")).expect("persist");
    store.persist(&key("kept")).expect("persist again");
    // It is the same version afterwards: its row still means it.
    assert_eq!(read(store, "kept", &version, 0..5).expect("open"), b"bytes");
}

pub(crate) fn publishing_twice_is_success(store: &dyn BlobStore) {
    let scratch = Scratch::new();
    let sealed = scratch.sealed(b"twice");
    let about = about("twice", &sealed);
    store.publish(&key("twice"), &sealed, &about).expect("publish");
    let version = store.publish(&key("twice"), &sealed, &about).expect("publish again");
    assert_eq!(read(store, "twice", &version, 0..5).expect("open"), b"twice");
    drop(sealed);
    assert_eq!(read(store, "twice", &version, 0..5).expect("open"), b"twice");
    assert_eq!(listed(store).len(), 1);
}

pub(crate) fn publishing_replaces_and_the_earlier_version_is_changed(store: &dyn BlobStore) {
    let scratch = Scratch::new();
    let first = scratch.publish(store, "index", b"one");
    // Of the same length, so that only the version can tell them apart.
    let second = scratch.publish(store, "index", b"two");
    assert_ne!(first, second);
    assert_eq!(read(store, "index", &second, 0..3).expect("open"), b"two");
    for range in [0..3, 1..2, 0..0] {
        let found = store.open(&key("index"), &first, range.clone());
        assert!(matches!(&found, Err(BlobError::Changed(changed)) if *changed == key("index")));
        assert!(found.is_err_and(|error| error.is_gone()), "{range:?}");
    }
    assert_eq!(listed(store).len(), 1);
}

pub(crate) fn an_opened_version_is_kept_to_the_end_though_the_key_is_replaced(
    store: &dyn BlobStore,
) {
    let scratch = Scratch::new();
    let (small, big) = (pattern(4, 20_000), pattern(5, 6 << 20));
    let small_version = scratch.publish(store, "small", &small);
    let big_version = scratch.publish(store, "big", &big);
    let mut small_body = store.open(&key("small"), &small_version, 0..20_000).expect("open");
    let mut big_body = store.open(&key("big"), &big_version, 0..6 << 20).expect("open");
    scratch.publish(store, "small", &pattern(6, 20_000));
    scratch.publish(store, "big", &pattern(7, 6 << 20));
    assert!(read_to_vec(&mut small_body, READ_MAX).expect("an opened body is whole") == small);
    // A store across a network may have to break off a long one, but never mixes two.
    match read_to_vec(&mut big_body, READ_MAX) {
        Ok(bytes) => assert!(bytes == big),
        Err(BodyError::Cut(_) | BodyError::Io(_)) => {}
        Err(error) => panic!("{error}"),
    }
}

pub(crate) fn an_opened_version_is_kept_to_the_end_though_the_key_is_removed(
    store: &dyn BlobStore,
) {
    let bytes = pattern(8, 20_000);
    let version = Scratch::new().publish(store, "gone", &bytes);
    let mut body = store.open(&key("gone"), &version, 5..20_000).expect("open");
    store.remove(&key("gone")).expect("remove");
    assert!(read_to_vec(&mut body, READ_MAX).expect("an opened body is whole") == bytes[5..]);
}

pub(crate) fn stat_tells_what_was_published(store: &dyn BlobStore) {
    let scratch = Scratch::new();
    let path = "dir/caf\u{e9} 1+2.bin";
    let sealed = scratch.sealed(b"0123456789");
    let said = about(path, &sealed);
    // Seconds of slack: the clock may be another machine's.
    let slack = Duration::from_secs(120);
    let before = SystemTime::now() - slack;
    let version = store.publish(&key(path), &sealed, &said).expect("publish");
    let meta = store.stat(&key(path)).expect("stat").expect("it is there");
    assert_eq!((&meta.key, &meta.version, meta.size), (&key(path), &version, 10));
    assert!(before < meta.published_at && meta.published_at < SystemTime::now() + slack);
    if let Some(about) = meta.about {
        assert_eq!(about, said);
    }
    let listed = &listed(store)[&key(path)];
    assert_eq!((&listed.version, listed.size), (&version, 10));
}

pub(crate) fn removing_is_success_with_and_without_a_blob(store: &dyn BlobStore) {
    let scratch = Scratch::new();
    store.remove(&key("never")).expect("remove");
    let version = scratch.publish(store, "gone", b"gone");
    let stays = scratch.publish(store, "stays", b"stays");
    store.remove(&key("gone")).expect("remove");
    store.remove(&key("gone")).expect("remove again");
    let found = store.open(&key("gone"), &version, 0..4);
    assert!(matches!(found, Err(BlobError::Missing(_))), "{found:?}");
    assert_eq!(store.stat(&key("gone")).expect("stat"), None);
    assert_eq!(read(store, "stays", &stays, 0..5).expect("open"), b"stays");
    assert_eq!(listed(store).into_keys().collect::<Vec<_>>(), [key("stays")]);
}

pub(crate) fn a_removed_blob_can_be_published_again(store: &dyn BlobStore) {
    let scratch = Scratch::new();
    let first = scratch.publish(store, "again", b"one");
    store.remove(&key("again")).expect("remove");
    let second = scratch.publish(store, "again", b"two");
    assert_eq!(read(store, "again", &second, 0..3).expect("open"), b"two");
    let found = store.open(&key("again"), &first, 0..3);
    assert!(matches!(found, Err(BlobError::Changed(_))), "{found:?}");
}

pub(crate) fn a_listing_shows_every_blob_once(store: &dyn BlobStore) {
    let scratch = Scratch::new();
    let mut published = BTreeMap::new();
    for number in 0..LISTED {
        let path = format!("dir {}/{number}", number % 7);
        let bytes = number.to_string();
        let version = scratch.publish(store, &path, bytes.as_bytes());
        published.insert(key(&path), (version, bytes.len() as u64));
    }
    let listed: BTreeMap<_, _> = listed(store)
        .into_iter()
        .map(|(listed_key, meta)| (listed_key, (meta.version, meta.size)))
        .collect();
    assert!(listed == published);
}

pub(crate) fn a_listing_breaks_off_when_told(store: &dyn BlobStore) {
    let scratch = Scratch::new();
    for number in 0..5 {
        scratch.publish(store, &number.to_string(), b"x");
    }
    let mut shown = 0;
    let mut visit = |_| {
        shown += 1;
        if shown == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    store.each(&mut visit).expect("each");
    assert_eq!(shown, 2);
}

pub(crate) fn a_listing_may_remove_what_it_shows(store: &dyn BlobStore) {
    let scratch = Scratch::new();
    for number in 0..20 {
        scratch.publish(store, &number.to_string(), b"x");
    }
    let mut visit = |meta: BlobMeta| {
        store.remove(&meta.key).expect("remove");
        ControlFlow::Continue(())
    };
    store.each(&mut visit).expect("each");
    assert!(listed(store).is_empty());
}

pub(crate) fn publishing_leaves_the_sealed_file_to_its_readers(store: &dyn BlobStore) {
    let scratch = Scratch::new();
    let sealed = scratch.sealed(b"followed");
    let mut head = [0; 3];
    let mut reader = sealed.file();
    reader.rewind().expect("rewind");
    reader.read_exact(&mut head).expect("read");
    store.publish(&key("followed"), &sealed, &about("followed", &sealed)).expect("publish");
    store.remove(&key("followed")).expect("remove");
    let mut rest = Vec::new();
    reader.read_to_end(&mut rest).expect("read");
    assert_eq!(rest, b"lowed", "the cursor and the bytes are as they were");
}

pub(crate) fn staging_is_empty_afterwards(store: &dyn BlobStore) {
    let scratch = Scratch::new();
    for bytes in [&b"first"[..], b"second", b""] {
        scratch.publish(store, "staged", bytes);
    }
    assert_eq!(scratch.staging.reserved_bytes(), 0);
    assert_eq!(std::fs::read_dir(scratch.folder.path()).expect("read the folder").count(), 0);
}

pub(crate) fn readers_that_race_with_publishers_see_one_whole_version(store: &dyn BlobStore) {
    let scratch = Scratch::new();
    let versions_of_bytes = [pattern(10, 50_000), pattern(11, 50_000), pattern(12, 30_001)];
    scratch.publish(store, "raced", &versions_of_bytes[0]);
    let published = AtomicBool::new(false);
    thread::scope(|threads| {
        let ending = Ending(&published);
        let reader = threads.spawn(|| {
            while !published.load(Ordering::Relaxed) {
                let meta = store.stat(&key("raced")).expect("stat");
                let meta = meta.expect("a key that is replaced is never empty");
                match store.open(&key("raced"), &meta.version, 0..meta.size) {
                    Ok(mut body) => {
                        let bytes = read_to_vec(&mut body, READ_MAX).expect("a whole body");
                        assert!(versions_of_bytes.contains(&bytes), "one version, whole");
                    }
                    Err(BlobError::Changed(_)) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        });
        let publishers: Vec<_> = versions_of_bytes[1..]
            .iter()
            .map(|bytes| {
                threads.spawn(|| {
                    (0..ROUNDS).for_each(|_| drop(scratch.publish(store, "raced", bytes)))
                })
            })
            .collect();
        for publisher in publishers {
            publisher.join().expect("a publisher succeeds");
        }
        drop(ending);
        reader.join().expect("a reader succeeds");
    });
    let meta = store.stat(&key("raced")).expect("stat").expect("it is there");
    let bytes = read(store, "raced", &meta.version, 0..meta.size).expect("open");
    assert!(versions_of_bytes[1..].contains(&bytes), "one of the last two stays");
}

pub(crate) fn publishers_that_race_all_succeed_and_one_stays(store: &dyn BlobStore) {
    let scratch = Scratch::new();
    for round in 0..ROUNDS {
        let path = format!("race/{round}");
        let versions: Vec<(BlobVersion, Vec<u8>)> = thread::scope(|threads| {
            let publish = |seed: u8| {
                let (scratch, path) = (&scratch, &path);
                threads.spawn(move || {
                    let bytes = pattern(seed, 1_000);
                    (scratch.publish(store, path, &bytes), bytes)
                })
            };
            let racing = [publish(1), publish(2), publish(3)];
            racing.into_iter().map(|one| one.join().expect("a publisher succeeds")).collect()
        });
        let opened: Vec<_> = versions
            .iter()
            .filter_map(|(version, bytes)| match read(store, &path, version, 0..1_000) {
                Ok(found) => Some(found == *bytes),
                Err(BlobError::Changed(_)) => None,
                Err(error) => panic!("{error}"),
            })
            .collect();
        assert_eq!(opened, [true], "exactly one version stays, with its own bytes");
    }
}

pub(crate) fn publishing_that_races_with_removal_succeeds(store: &dyn BlobStore) {
    let scratch = Scratch::new();
    let published = AtomicBool::new(false);
    thread::scope(|threads| {
        let _ending = Ending(&published);
        threads.spawn(|| {
            while !published.load(Ordering::Relaxed) {
                store.remove(&key("flapping")).expect("remove");
            }
        });
        for round in 0..ROUNDS {
            let bytes = pattern(round as u8, 500);
            let version = scratch.publish(store, "flapping", &bytes);
            match store.open(&key("flapping"), &version, 0..500) {
                Ok(mut body) => {
                    assert!(read_to_vec(&mut body, READ_MAX).expect("whole") == bytes);
                }
                Err(BlobError::Missing(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
    });
    let version = scratch.publish(store, "flapping", b"last");
    assert_eq!(read(store, "flapping", &version, 0..4).expect("open"), b"last");
}

pub(crate) fn a_listing_that_races_with_changes_succeeds(store: &dyn BlobStore) {
    let scratch = Scratch::new();
    scratch.publish(store, "stays", b"stays");
    let published = AtomicBool::new(false);
    thread::scope(|threads| {
        let _ending = Ending(&published);
        threads.spawn(|| {
            while !published.load(Ordering::Relaxed) {
                assert!(listed(store).contains_key(&key("stays")));
            }
        });
        for round in 0..ROUNDS {
            let path = format!("moving/{}", round % 5);
            scratch.publish(store, &path, b"x");
            store.remove(&key(&path)).expect("remove");
        }
    });
}
