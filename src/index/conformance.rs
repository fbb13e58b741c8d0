//! What every [`ArtifactIndex`] must do.
//!
//! Plain functions over an empty index; [`index_conformance!`] turns each into one `#[test]`
//! of a backend. Times are compared to the microsecond, which is what an index keeps.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{ArtifactIndex, LeastUsed, Position, Put, Row, Scan, Usage, Use};
use crate::artifact::{ArtifactKey, ArtifactPath, BlobKey, BlobVersion, Digest, Entry, Validators};

/// One `#[test]` per function of the suite.
///
/// Takes what makes an empty index: a closure that gives `(index, guard)`, where the guard
/// lives as long as the test (a temporary folder, a schema of its own). Attributes before it
/// go to every test.
macro_rules! index_conformance {
    (@one [$(#[$attribute:meta])*] $fresh:expr; $name:ident) => {
        #[test]
        $(#[$attribute])*
        fn $name() {
            let (index, _guard) = ($fresh)();
            $crate::index::conformance::$name(&index);
        }
    };
    (@each $attributes:tt $fresh:expr; $($name:ident)+) => {
        $($crate::index::conformance::index_conformance! { @one $attributes $fresh; $name })+
    };
    ($(#[$attribute:meta])* $fresh:expr) => {
        $crate::index::conformance::index_conformance! { @each [$(#[$attribute])*] $fresh;
            a_row_is_read_back_exactly
            changes_can_be_persisted
            what_was_not_put_is_not_there
            keys_that_look_alike_are_kept_apart
            a_first_put_needs_an_empty_place
            a_put_replaces_only_the_generation_that_it_read
            a_put_over_a_removed_row_learns_that_it_is_gone
            a_removal_takes_only_the_generation_that_it_names
            no_generation_of_a_row_is_used_twice
            of_writers_that_race_exactly_one_stores
            of_a_writer_and_a_remover_exactly_one_wins
            no_change_is_lost_when_writers_retry
            readers_that_race_with_writers_see_whole_rows
            a_scan_goes_by_remote_and_path_in_byte_order
            a_scan_keeps_to_its_remote
            a_scan_keeps_to_its_prefix
            a_scan_goes_on_after_a_path
            a_scan_breaks_off_when_told
            a_scan_may_change_what_it_shows
            a_scan_shows_what_get_finds
            uses_add_up_and_the_last_one_counts
            uses_of_what_is_not_there_are_passed_over
            uses_change_no_generation_and_outlive_a_new_put
            uses_end_with_their_row
            usage_follows_every_change
            usage_is_exact_when_writers_race
            the_least_used_come_first_and_what_was_stored_anew_counts_as_used
            the_least_used_go_on_behind_a_position
            the_least_used_may_be_removed_while_they_are_shown
            it_answers
        }
    };
}
pub(crate) use index_conformance;

/// More than a backend should hold in memory at once.
const SCANNED: usize = 1_200;
/// Rounds of each thread in the races.
const ROUNDS: usize = 40;

/// Ends the other threads of a race, also when this one panics.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn at(micros: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_micros(micros)
}

fn key_in(remote: &str, path: &str) -> ArtifactKey {
    let path = ArtifactPath::from_canonical(path).expect("the suite's paths are canonical");
    ArtifactKey { remote: remote.parse().expect("a remote's name"), path }
}

fn key(path: &str) -> ArtifactKey {
    key_in("remote", path)
}

/// An entry of which every field says `text`, as far as it can.
fn entry(key: &ArtifactKey, text: &str) -> Entry {
    Entry {
        blob: BlobKey::of(key),
        version: BlobVersion(format!("version {text}")),
        size: text.len() as u64,
        digest: Digest::of(text.as_bytes()),
        content_type: Some(format!("type/{text}")),
        content_encoding: Some(format!("encoding {text}")),
        head: Some(Digest::of(format!("head of {text}").as_bytes())),
        validators: Validators {
            etag: Some(format!("\"{text}\"")),
            last_modified: Some(format!("once {text}")),
        },
        stored_at: at(1_700_000_000_000_001),
        validated_at: at(1_700_000_100_000_002),
        generation: 0,
        unproven: false,
    }
}

/// Puts a row where there is none; its entry as stored.
fn put(index: &dyn ArtifactIndex, key: &ArtifactKey, text: &str) -> Entry {
    stored(index, key, &entry(key, text), None)
}

fn stored(
    index: &dyn ArtifactIndex,
    key: &ArtifactKey,
    entry: &Entry,
    replaces: Option<u64>,
) -> Entry {
    match index.put(key, entry, replaces).expect("put") {
        Put::Stored(generation) => Entry { generation, ..entry.clone() },
        superseded => panic!("{key}: {superseded:?}"),
    }
}

fn get(index: &dyn ArtifactIndex, key: &ArtifactKey) -> Option<Entry> {
    index.get(key).expect("get")
}

fn rows(index: &dyn ArtifactIndex, query: &Scan) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut visit = |row| {
        rows.push(row);
        ControlFlow::Continue(())
    };
    index.scan(query, &mut visit).expect("scan");
    rows
}

fn paths(index: &dyn ArtifactIndex, query: &Scan) -> Vec<String> {
    rows(index, query).into_iter().map(|row| row.key.to_string()).collect()
}

pub(crate) fn changes_can_be_persisted(index: &dyn ArtifactIndex) {
    let key = key("kept");
    index.persist(&key).expect("persist nothing");
    let kept = put(index, &key, "kept");
    index.persist(&key).expect("persist a row");
    assert_eq!(get(index, &key), Some(kept.clone()));
    assert!(index.remove(&key, kept.generation).expect("remove"));
    index.persist(&key).expect("persist a removal");
    assert_eq!(get(index, &key), None);
}

pub(crate) fn a_row_is_read_back_exactly(index: &dyn ArtifactIndex) {
    let check = |name: &str, change: &dyn Fn(&mut Entry)| {
        let key = key(name);
        let mut given = entry(&key, name);
        change(&mut given);
        let stored = stored(index, &key, &given, None);
        assert_eq!(get(index, &key), Some(stored), "{name}");
    };
    check("plain", &|_| {});
    check("nothing optional", &|entry| {
        entry.content_type = None;
        entry.content_encoding = None;
        entry.head = None;
        entry.validators = Validators::default();
    });
    check("one validator", &|entry| entry.validators.etag = None);
    check("other validator", &|entry| entry.validators.last_modified = None);
    check("empty texts", &|entry| {
        entry.content_type = Some(String::new());
        entry.validators.etag = Some(String::new());
    });
    check("odd texts", &|entry| {
        entry.content_type = Some("a'b\"c\\d;--%_\u{e9}\u{1f4e6}\t".to_owned());
        entry.validators.etag = Some("W/\"'); DROP TABLE artifact; --\"".to_owned());
        entry.version = BlobVersion("\"d41d8cd9-2\" \u{e9}".to_owned());
    });
    check("no bytes", &|entry| entry.size = 0);
    check("many bytes", &|entry| entry.size = i64::MAX as u64);
    check("old", &|entry| {
        entry.stored_at = UNIX_EPOCH;
        entry.validated_at = UNIX_EPOCH - Duration::from_micros(1_500_001);
    });
    check("late", &|entry| entry.validated_at = at(9_999_999_999_999_999));
    check("ignored generation", &|entry| entry.generation = 77);

    // Finer times are cut to the microsecond, not rounded into the future.
    let key = key("fine");
    let fine = Entry { stored_at: at(5) + Duration::from_nanos(999), ..entry(&key, "fine") };
    stored(index, &key, &fine, None);
    assert_eq!(get(index, &key).map(|entry| entry.stored_at), Some(at(5)));
}

pub(crate) fn what_was_not_put_is_not_there(index: &dyn ArtifactIndex) {
    assert_eq!(get(index, &key("none")), None);
    assert!(rows(index, &Scan::default()).is_empty());
    assert!(!index.remove(&key("none"), 1).expect("remove"));
}

pub(crate) fn keys_that_look_alike_are_kept_apart(index: &dyn ArtifactIndex) {
    let keys = [
        key("a"),
        key("A"),
        key("a "),
        key(" a"),
        key("a/"),
        key("a%20"),
        key("a?b"),
        key("caf\u{e9}"),
        key("cafe\u{301}"),
        key("\u{1f4e6}"),
        key("a+b"),
        key("a b"),
        key_in("Remote", "a"),
        key_in("remote-a", "a"),
        key(&"x".repeat(4_096)),
    ];
    let stored: Vec<_> =
        keys.iter().enumerate().map(|(at, key)| put(index, key, &at.to_string())).collect();
    for (key, stored) in keys.iter().zip(stored) {
        assert_eq!(get(index, key), Some(stored), "{key}");
    }
}

pub(crate) fn a_first_put_needs_an_empty_place(index: &dyn ArtifactIndex) {
    let key = key("first");
    let first = put(index, &key, "first");
    let second = index.put(&key, &entry(&key, "second"), None).expect("put");
    assert_eq!(second, Put::Superseded(Some(first.clone())));
    assert_eq!(get(index, &key), Some(first));
}

pub(crate) fn a_put_replaces_only_the_generation_that_it_read(index: &dyn ArtifactIndex) {
    let key = key("replaced");
    let first = put(index, &key, "first");
    let bare = Entry {
        content_type: None,
        content_encoding: None,
        head: None,
        validators: Validators::default(),
        ..entry(&key, "second one")
    };
    let second = stored(index, &key, &bare, Some(first.generation));
    assert_ne!(second.generation, first.generation);
    assert_eq!(get(index, &key), Some(second.clone()), "no field is left of the first");
    for replaces in [first.generation, second.generation + 1, 0, u64::MAX] {
        let late = index.put(&key, &entry(&key, "late"), Some(replaces)).expect("put");
        assert_eq!(late, Put::Superseded(Some(second.clone())), "{replaces}");
    }
    assert_eq!(get(index, &key), Some(second));
}

pub(crate) fn a_put_over_a_removed_row_learns_that_it_is_gone(index: &dyn ArtifactIndex) {
    let key = key("gone");
    let first = put(index, &key, "first");
    assert!(index.remove(&key, first.generation).expect("remove"));
    let late = index.put(&key, &entry(&key, "late"), Some(first.generation)).expect("put");
    assert_eq!((late, get(index, &key)), (Put::Superseded(None), None));
}

pub(crate) fn a_removal_takes_only_the_generation_that_it_names(index: &dyn ArtifactIndex) {
    let key = key("removed");
    let first = put(index, &key, "first");
    let second = stored(index, &key, &entry(&key, "second"), Some(first.generation));
    assert!(!index.remove(&key, first.generation).expect("remove"));
    assert!(!index.remove(&key, u64::MAX).expect("remove"));
    assert_eq!(get(index, &key), Some(second.clone()));
    assert!(index.remove(&key, second.generation).expect("remove"));
    assert!(!index.remove(&key, second.generation).expect("remove again"));
    assert_eq!(get(index, &key), None);
}

pub(crate) fn no_generation_of_a_row_is_used_twice(index: &dyn ArtifactIndex) {
    let key = key("again");
    let mut used = BTreeSet::new();
    for _ in 0..20 {
        let first = put(index, &key, "first");
        let second = stored(index, &key, &entry(&key, "second"), Some(first.generation));
        assert!(used.insert(first.generation) && used.insert(second.generation));
        assert!(index.remove(&key, second.generation).expect("remove"));
        // Who read the row before its removal must not take the next one for it.
        let next = put(index, &key, "next");
        assert!(!index.remove(&key, second.generation).expect("remove"));
        assert!(used.insert(next.generation));
        assert!(index.remove(&key, next.generation).expect("remove"));
    }
}

pub(crate) fn of_writers_that_race_exactly_one_stores(index: &dyn ArtifactIndex) {
    let key = key("raced");
    let mut replaces = None;
    for round in 0..ROUNDS {
        let puts: Vec<(Put, Entry)> = thread::scope(|threads| {
            let write = |name: &str| {
                let (key, mine) = (&key, entry(&key, &format!("{name} {round}")));
                threads.spawn(move || (index.put(key, &mine, replaces).expect("put"), mine))
            };
            let racing = [write("one"), write("two"), write("three")];
            racing.into_iter().map(|one| one.join().expect("a writer is answered")).collect()
        });
        let now = get(index, &key).expect("one of them stored");
        let winners: Vec<_> = puts
            .iter()
            .filter(|(answer, _)| matches!(answer, Put::Stored(_)))
            .map(|(answer, mine)| match answer {
                Put::Stored(generation) => Entry { generation: *generation, ..mine.clone() },
                Put::Superseded(_) => unreachable!("filtered out"),
            })
            .collect();
        assert_eq!(winners, std::slice::from_ref(&now), "round {round}");
        for (answer, _) in puts.iter().filter(|(answer, _)| !matches!(answer, Put::Stored(_))) {
            assert_eq!(*answer, Put::Superseded(Some(now.clone())), "round {round}");
        }
        replaces = Some(now.generation);
    }
}

pub(crate) fn of_a_writer_and_a_remover_exactly_one_wins(index: &dyn ArtifactIndex) {
    for round in 0..ROUNDS {
        let key = key(&format!("raced/{round}"));
        let first = put(index, &key, "first");
        let (written, removed) = thread::scope(|threads| {
            let replacing = entry(&key, "second");
            let (key, generation) = (&key, first.generation);
            let writer =
                threads.spawn(move || index.put(key, &replacing, Some(generation)).expect("put"));
            let remover = threads.spawn(move || index.remove(key, generation).expect("remove"));
            (writer.join().expect("the writer"), remover.join().expect("the remover"))
        });
        match (written, get(index, &key)) {
            (Put::Stored(generation), Some(now)) => {
                assert_eq!((generation, removed), (now.generation, false));
            }
            (Put::Superseded(None), None) => assert!(removed),
            answers => panic!("removed: {removed}, {answers:?}"),
        }
    }
}

pub(crate) fn no_change_is_lost_when_writers_retry(index: &dyn ArtifactIndex) {
    let key = key("counted");
    put(index, &key, "");
    let threads_max = 3;
    thread::scope(|threads| {
        for _ in 0..threads_max {
            threads.spawn(|| {
                for _ in 0..ROUNDS {
                    let mut read = get(index, &key).expect("nobody removes it");
                    loop {
                        let more = Entry { size: read.size + 1, ..read.clone() };
                        match index.put(&key, &more, Some(read.generation)).expect("put") {
                            Put::Stored(_) => break,
                            Put::Superseded(now) => read = now.expect("nobody removes it"),
                        }
                    }
                }
            });
        }
    });
    let counted = get(index, &key).map(|entry| entry.size);
    assert_eq!(counted, Some((threads_max * ROUNDS) as u64));
}

pub(crate) fn readers_that_race_with_writers_see_whole_rows(index: &dyn ArtifactIndex) {
    let key = key("whole");
    let first = put(index, &key, "0");
    let written = AtomicBool::new(false);
    thread::scope(|threads| {
        let _ending = Ending(&written);
        threads.spawn(|| {
            let mut last_generation = 0;
            while !written.load(Ordering::Relaxed) {
                let seen = get(index, &key).expect("a row that is replaced is never away");
                let text = seen.version.0.strip_prefix("version ").expect("the suite's own");
                let whole = Entry { generation: seen.generation, ..entry(&key, text) };
                assert_eq!(seen, whole);
                assert!(seen.generation >= last_generation, "rows do not go back");
                last_generation = seen.generation;
            }
        });
        let mut generation = first.generation;
        for round in 1..4 * ROUNDS {
            let next = entry(&key, &"x".repeat(round));
            generation = stored(index, &key, &next, Some(generation)).generation;
        }
    });
}

pub(crate) fn a_scan_goes_by_remote_and_path_in_byte_order(index: &dyn ArtifactIndex) {
    // In byte order already.
    let ordered = [
        ("Z", "z"),
        ("a", "A/b"),
        ("a", "B"),
        ("a", "a"),
        ("a", "a b"),
        ("a", "a!"),
        ("a", "a-b"),
        ("a", "a.b"),
        ("a", "a/"),
        ("a", "a/b"),
        ("a", "aB"),
        ("a", "a_b"),
        ("a", "aa"),
        ("a", "b"),
        ("a", "\u{e9}"),
        ("a", "\u{65e5}"),
        ("a", "\u{ffee}"),
        ("a", "\u{1f4e6}"),
        ("a-b", "a"),
        ("a.b", "a"),
        ("a_b", "a"),
        ("aa", "a"),
        ("b", "a"),
    ]
    .map(|(remote, path)| key_in(remote, path));
    for key in ordered.iter().rev() {
        put(index, key, "x");
    }
    let expected: Vec<String> = ordered.iter().map(ToString::to_string).collect();
    assert_eq!(paths(index, &Scan::default()), expected);
}

pub(crate) fn a_scan_keeps_to_its_remote(index: &dyn ArtifactIndex) {
    for (remote, path) in [("a", "1"), ("b", "2"), ("a", "3"), ("ab", "4"), ("A", "5")] {
        put(index, &key_in(remote, path), "x");
    }
    let of = |remote: &str| Scan { remote: Some(remote.parse().unwrap()), ..Scan::default() };
    assert_eq!(paths(index, &of("a")), ["a/1", "a/3"]);
    assert_eq!(paths(index, &of("b")), ["b/2"]);
    assert!(paths(index, &of("c")).is_empty());
}

pub(crate) fn a_scan_keeps_to_its_prefix(index: &dyn ArtifactIndex) {
    let all = [
        "a%b/1",
        "a%b/2",
        "a_b/1",
        "aXb/1",
        "ab",
        "caf\u{e9}/1",
        "cafe/1",
        "dir",
        "dir/",
        "dir/a",
        "dir/b",
        "dir0",
        "\u{10ffff}/1",
    ];
    for path in all {
        put(index, &key(path), "x");
    }
    put(index, &key_in("another", "dir/a"), "x");
    let check = |prefix: &str, expected: &[&str]| {
        let remote = Some("remote".parse().expect("a remote's name"));
        let query = Scan { remote, prefix: prefix.to_owned(), after: None };
        let expected: Vec<String> = expected.iter().map(|path| format!("remote/{path}")).collect();
        assert_eq!(paths(index, &query), expected, "{prefix:?}");
    };
    check("a%", &["a%b/1", "a%b/2"]);
    check("a_", &["a_b/1"]);
    check("A", &[]);
    check("caf\u{e9}", &["caf\u{e9}/1"]);
    check("cafe", &["cafe/1"]);
    check("dir", &["dir", "dir/", "dir/a", "dir/b", "dir0"]);
    check("dir/", &["dir/", "dir/a", "dir/b"]);
    check("dir/a", &["dir/a"]);
    check("dir/ab", &[]);
    check("dir*", &[]);
    check("\u{10ffff}", &["\u{10ffff}/1"]);
    check("'", &[]);
    let everywhere = Scan { prefix: "dir/a".to_owned(), ..Scan::default() };
    assert_eq!(paths(index, &everywhere), ["another/dir/a", "remote/dir/a"]);
}

pub(crate) fn a_scan_goes_on_after_a_path(index: &dyn ArtifactIndex) {
    let numbered: Vec<String> = (0..SCANNED).map(|number| format!("dir/{number:05}")).collect();
    for path in &numbered {
        put(index, &key(path), "x");
    }
    for path in ["a", "dir", "dir0", "z"] {
        put(index, &key(path), "x");
    }
    put(index, &key_in("zoo", "dir/00000"), "x");
    assert_eq!(paths(index, &Scan::default()).len(), SCANNED + 5);
    let mut seen = Vec::new();
    let mut after = None;
    loop {
        let remote = Some("remote".parse().expect("a remote's name"));
        let query = Scan { remote, prefix: "dir/".to_owned(), after };
        let before = seen.len();
        let mut visit = |row: Row| {
            seen.push(row.key.path.as_str().to_owned());
            if seen.len() - before == 400 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        };
        index.scan(&query, &mut visit).expect("scan");
        if seen.len() == before {
            break;
        }
        after = seen.last().cloned();
    }
    assert!(seen == numbered, "each once, in order");
    let check = |prefix: &str, after: &str, first: Option<&str>, count: usize| {
        let remote = Some("remote".parse().expect("a remote's name"));
        let query = Scan { remote, prefix: prefix.to_owned(), after: Some(after.to_owned()) };
        let rows = rows(index, &query);
        let found = rows.first().map(|row| row.key.path.as_str());
        assert_eq!((found, rows.len()), (first, count), "{prefix:?} after {after:?}");
    };
    check("dir/", "dir", Some("dir/00000"), SCANNED);
    check("dir/", "dir/", Some("dir/00000"), SCANNED);
    check("dir/", "", Some("dir/00000"), SCANNED);
    check("dir/", "dir/0119", Some("dir/01190"), 10);
    check("dir/", "dir/01199", None, 0);
    check("dir/", "zzz", None, 0);
    check("", "dir/01199", Some("dir0"), 2);
    check("", "z", None, 0);
}

pub(crate) fn a_scan_breaks_off_when_told(index: &dyn ArtifactIndex) {
    for (remote, path) in [("a", "1"), ("a", "2"), ("b", "1"), ("c", "1")] {
        put(index, &key_in(remote, path), "x");
    }
    for stop_at in 1..=4 {
        let mut shown = 0;
        let mut visit = |_| {
            shown += 1;
            if shown == stop_at { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        index.scan(&Scan::default(), &mut visit).expect("scan");
        assert_eq!(shown, stop_at);
    }
}

pub(crate) fn a_scan_may_change_what_it_shows(index: &dyn ArtifactIndex) {
    for number in 0..SCANNED {
        put(index, &key(&format!("{number}")), "x");
    }
    let mut shown = 0;
    let mut visit = |row: Row| {
        shown += 1;
        assert!(index.remove(&row.key, row.entry.generation).expect("remove"));
        ControlFlow::Continue(())
    };
    index.scan(&Scan::default(), &mut visit).expect("scan");
    assert_eq!((shown, rows(index, &Scan::default())), (SCANNED, Vec::new()));
}

pub(crate) fn a_scan_shows_what_get_finds(index: &dyn ArtifactIndex) {
    let key = key("shown");
    let stored = put(index, &key, "shown");
    let row = Row { key, last_used: stored.stored_at, entry: stored, hits: 0 };
    assert_eq!(rows(index, &Scan::default()), [row]);
}

pub(crate) fn uses_add_up_and_the_last_one_counts(index: &dyn ArtifactIndex) {
    let (one, two) = (key("one"), key("two"));
    put(index, &one, "one");
    put(index, &two, "two");
    let used = |key: &ArtifactKey, hits, last| Use { key: key.clone(), hits, last: at(last) };
    index.touch(&[]).expect("touch");
    index.touch(&[used(&one, 2, 500), used(&two, 1, 600), used(&one, 3, 900)]).expect("touch");
    // A batch that comes late does not take the last use back.
    index.touch(&[used(&one, 10, 700)]).expect("touch");
    let found: Vec<_> = rows(index, &Scan::default())
        .into_iter()
        .map(|row| (row.key, row.hits, row.last_used))
        .collect();
    assert_eq!(found, [(one, 15, at(900)), (two, 1, at(600))]);
}

pub(crate) fn uses_of_what_is_not_there_are_passed_over(index: &dyn ArtifactIndex) {
    let known = key("known");
    put(index, &known, "known");
    let uses: Vec<Use> = ["none", "known", "other"]
        .iter()
        .map(|path| Use { key: key(path), hits: 1, last: at(5) })
        .collect();
    index.touch(&uses).expect("touch");
    let found: Vec<_> =
        rows(index, &Scan::default()).into_iter().map(|row| (row.key, row.hits)).collect();
    assert_eq!(found, [(known, 1)]);
}

pub(crate) fn uses_change_no_generation_and_outlive_a_new_put(index: &dyn ArtifactIndex) {
    let key = key("kept");
    let first = put(index, &key, "first");
    index.touch(&[Use { key: key.clone(), hits: 7, last: at(700) }]).expect("touch");
    assert_eq!(get(index, &key), Some(first.clone()));
    let second = stored(index, &key, &entry(&key, "second"), Some(first.generation));
    let row = Row { key, entry: second, last_used: at(700), hits: 7 };
    assert_eq!(rows(index, &Scan::default()), [row]);
}

pub(crate) fn uses_end_with_their_row(index: &dyn ArtifactIndex) {
    let key = key("ended");
    let first = put(index, &key, "first");
    index.touch(&[Use { key: key.clone(), hits: 7, last: at(700) }]).expect("touch");
    assert!(index.remove(&key, first.generation).expect("remove"));
    let second = put(index, &key, "second");
    let row = Row { key, last_used: second.stored_at, entry: second, hits: 0 };
    assert_eq!(rows(index, &Scan::default()), [row]);
}

/// `(artifacts, bytes, hits)` by remote.
fn usage(index: &dyn ArtifactIndex) -> BTreeMap<String, (u64, u64, u64)> {
    let usage = index.usage().expect("usage");
    let plain = |Usage { artifacts, bytes, hits }| (artifacts, bytes, hits);
    usage.into_iter().map(|(remote, usage)| (remote.to_string(), plain(usage))).collect()
}

pub(crate) fn usage_follows_every_change(index: &dyn ArtifactIndex) {
    let check = |expected: &[(&str, (u64, u64, u64))]| {
        let expected = expected.iter().map(|(remote, usage)| ((*remote).to_owned(), *usage));
        assert_eq!(usage(index), expected.collect());
    };
    check(&[]);
    let (one, two, other) = (key("one"), key("two"), key_in("other", "one"));
    let first = put(index, &one, "123");
    put(index, &two, "12345");
    put(index, &other, "");
    check(&[("other", (1, 0, 0)), ("remote", (2, 8, 0))]);
    // What changes nothing counts for nothing.
    index.put(&one, &entry(&one, "1234567"), None).expect("put");
    index.put(&one, &entry(&one, "1234567"), Some(first.generation + 100)).expect("put");
    index.remove(&one, first.generation + 100).expect("remove");
    check(&[("other", (1, 0, 0)), ("remote", (2, 8, 0))]);
    index.touch(&[Use { key: one.clone(), hits: 7, last: at(700) }]).expect("touch");
    index.touch(&[Use { key: key("none"), hits: 7, last: at(700) }]).expect("touch");
    check(&[("other", (1, 0, 0)), ("remote", (2, 8, 7))]);
    let grown = stored(index, &one, &entry(&one, "1234567"), Some(first.generation));
    check(&[("other", (1, 0, 0)), ("remote", (2, 12, 7))]);
    let shrunk = stored(index, &one, &entry(&one, "1"), Some(grown.generation));
    check(&[("other", (1, 0, 0)), ("remote", (2, 6, 7))]);
    assert!(index.remove(&one, shrunk.generation).expect("remove"));
    check(&[("other", (1, 0, 0)), ("remote", (1, 5, 0))]);
    let last = get(index, &two).expect("it is there").generation;
    assert!(index.remove(&two, last).expect("remove"));
    check(&[("other", (1, 0, 0))]);
}

pub(crate) fn usage_is_exact_when_writers_race(index: &dyn ArtifactIndex) {
    thread::scope(|threads| {
        for name in ["a", "b", "c"] {
            threads.spawn(move || {
                for round in 0..ROUNDS {
                    let own = key(&format!("{name}/{round}"));
                    let first = put(index, &own, "first");
                    let second = entry(&own, "the second one");
                    let second = stored(index, &own, &second, Some(first.generation));
                    if round % 2 == 0 {
                        assert!(index.remove(&own, second.generation).expect("remove"));
                    }
                }
            });
        }
    });
    let kept = 3 * (ROUNDS / 2) as u64;
    let expected = (kept, kept * "the second one".len() as u64, 0);
    assert_eq!(usage(index), BTreeMap::from([("remote".to_owned(), expected)]));
}

fn least_used(index: &dyn ArtifactIndex, behind: Option<Position>) -> Vec<Row> {
    let query = LeastUsed { remote: "remote".parse().expect("a remote's name"), behind };
    let mut rows = Vec::new();
    let mut visit = |row| {
        rows.push(row);
        ControlFlow::Continue(())
    };
    index.least_used(&query, &mut visit).expect("least_used");
    rows
}

pub(crate) fn the_least_used_come_first_and_what_was_stored_anew_counts_as_used(
    index: &dyn ArtifactIndex,
) {
    let store = |path: &str, stored_at: u64, used: Option<u64>| {
        let key = key(path);
        let given = Entry { stored_at: at(stored_at), ..entry(&key, path) };
        stored(index, &key, &given, None);
        if let Some(last) = used {
            index.touch(&[Use { key, hits: 1, last: at(last) }]).expect("touch");
        }
    };
    store("never used", 500, None);
    store("old, used late", 100, Some(900));
    store("used, then stored anew", 700, Some(50));
    store("same moment b", 300, None);
    store("same moment a", 10, Some(300));
    store("oldest", 5, Some(20));
    put(index, &key_in("another", "a"), "x");
    let shown = least_used(index, None);
    let seen: Vec<_> = shown.iter().map(|row| (row.key.path.as_str(), row.recency())).collect();
    let expected = [
        ("oldest", at(20)),
        ("same moment a", at(300)),
        ("same moment b", at(300)),
        ("never used", at(500)),
        ("used, then stored anew", at(700)),
        ("old, used late", at(900)),
    ];
    assert_eq!(seen, expected);
    let mut by_path = shown;
    by_path.sort_by(|one, other| one.key.cmp(&other.key));
    let remote = Some("remote".parse().expect("a remote's name"));
    assert_eq!(by_path, rows(index, &Scan { remote, ..Scan::default() }), "the same rows");
}

pub(crate) fn the_least_used_go_on_behind_a_position(index: &dyn ArtifactIndex) {
    for number in 0..SCANNED {
        let key = key(&format!("{number:05}"));
        // Several in each moment, the later paths in the earlier moments.
        let moment = 1_000 - number as u64 / 7;
        stored(index, &key, &Entry { stored_at: at(moment), ..entry(&key, "x") }, None);
    }
    let all = least_used(index, None);
    let position = |row: &Row| Position { recency: row.recency(), path: row.key.path.to_string() };
    assert_eq!(all.len(), SCANNED);
    assert!(all.is_sorted_by_key(position), "by moment, then by path");
    for cut in [0, 1, 6, 7, 300, SCANNED - 1] {
        assert!(least_used(index, Some(position(&all[cut]))) == all[cut + 1..], "behind {cut}");
    }
    let mut shown = 0;
    let mut visit = |_| {
        shown += 1;
        if shown == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let query = LeastUsed { remote: "remote".parse().expect("a remote's name"), behind: None };
    index.least_used(&query, &mut visit).expect("least_used");
    assert_eq!(shown, 3);
}

pub(crate) fn the_least_used_may_be_removed_while_they_are_shown(index: &dyn ArtifactIndex) {
    for number in 0..SCANNED {
        put(index, &key(&format!("{number}")), "x");
    }
    let mut visit = |row: Row| {
        assert!(index.remove(&row.key, row.entry.generation).expect("remove"));
        ControlFlow::Continue(())
    };
    let query = LeastUsed { remote: "remote".parse().expect("a remote's name"), behind: None };
    index.least_used(&query, &mut visit).expect("least_used");
    assert_eq!((least_used(index, None), usage(index)), (Vec::new(), BTreeMap::new()));
}

pub(crate) fn it_answers(index: &dyn ArtifactIndex) {
    index.probe().expect("probe");
}
