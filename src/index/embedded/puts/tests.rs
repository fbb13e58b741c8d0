//! Rows of several threads that wait for the writer together.

use std::collections::BTreeSet;
use std::path::Path;
use std::thread;

use super::*;
use crate::chain::chain;
use crate::index::ArtifactIndex;
use crate::index::embedded::tests::{entry, key};
use crate::test_servers::eventually;

fn index() -> (tempfile::TempDir, EmbeddedIndex) {
    let data_dir = tempfile::tempdir().unwrap();
    let index = EmbeddedIndex::open(data_dir.path()).unwrap();
    (data_dir, index)
}

/// Puts each row on a thread of its own; the writer is held until all of them wait, and
/// `before` is done with it.
fn put_while_held(
    index: &EmbeddedIndex,
    rows: &[(ArtifactKey, Entry)],
    before: impl FnOnce(&mut Option<Writer>),
) -> Vec<Result<Put, IndexError>> {
    thread::scope(|scope| {
        let mut writer = index.writer.lock();
        let put = |(key, entry)| scope.spawn(move || index.put(key, entry, None));
        let puts: Vec<_> = rows.iter().map(|(key, entry)| put((key, entry))).collect();
        eventually("all of them wait", || index.puts.line().waiting.len() == rows.len());
        before(&mut writer);
        drop(writer);
        puts.into_iter().map(|put| put.join().unwrap()).collect()
    })
}

fn rows(paths: &[&str]) -> Vec<(ArtifactKey, Entry)> {
    paths.iter().map(|path| (key(path), entry(&key(path)))).collect()
}

/// Transactions in the log: of the last frame of each, the second number is not 0.
/// <https://www.sqlite.org/fileformat.html#the_write_ahead_log>
fn transactions(data_dir: &Path) -> usize {
    const FRAME_BYTES: usize = 24 + 4096;
    let log = std::fs::read(data_dir.join("index.sqlite-wal")).unwrap();
    log[32..].chunks(FRAME_BYTES).filter(|frame| frame[4..8] != [0; 4]).count()
}

#[test]
fn rows_that_wait_at_the_same_time_are_one_transaction() {
    let (data_dir, index) = index();
    let rows = rows(&["a", "b", "c", "d", "e", "f", "g", "h"]);
    let before = transactions(data_dir.path());
    let puts = put_while_held(&index, &rows, |_| {});
    assert_eq!(transactions(data_dir.path()), before + 1);
    let generations: BTreeSet<_> = puts.into_iter().map(stored).collect();
    let found = rows.iter().map(|(key, _)| index.get(key).unwrap().unwrap().generation);
    assert_eq!(generations, found.collect());
    assert_eq!(generations.len(), rows.len());
}

fn stored(put: Result<Put, IndexError>) -> u64 {
    match put.unwrap() {
        Put::Stored(generation) => generation,
        superseded => panic!("{superseded:?}"),
    }
}

#[test]
fn of_rows_of_one_artifact_the_first_is_written_and_the_other_learns_of_it() {
    let (_data_dir, index) = index();
    let puts = put_while_held(&index, &rows(&["same", "other", "same"]), |_| {});
    let row = index.get(&key("same")).unwrap();
    let [one, other, two] = <[_; 3]>::try_from(puts).unwrap().map(Result::unwrap);
    assert!(matches!(other, Put::Stored(_)));
    let generation = row.as_ref().unwrap().generation;
    let (first, second) = (Put::Stored(generation), Put::Superseded(row));
    let is_either_order = match &one {
        Put::Stored(_) => (one, two) == (first, second),
        Put::Superseded(_) => (two, one) == (first, second),
    };
    assert!(is_either_order);
}

#[test]
fn a_row_that_cannot_be_written_fails_alone() {
    let (_data_dir, index) = index();
    let mut rows = rows(&["a", "too large", "b"]);
    rows[1].1.size = u64::MAX;
    let puts = put_while_held(&index, &rows, |_| {});
    let failed: Vec<_> = puts.iter().map(Result::is_err).collect();
    assert_eq!(failed, [false, true, false]);
    let found: Vec<_> = rows.iter().map(|(key, _)| index.get(key).unwrap().is_some()).collect();
    assert_eq!(found, [true, false, true]);
}

#[test]
fn who_waits_while_the_index_is_closed_learns_of_it() {
    let (_data_dir, index) = index();
    let puts = put_while_held(&index, &rows(&["a", "b"]), |writer| drop(writer.take()));
    for put in puts {
        assert_eq!(chain(&put.unwrap_err()), "the index cannot write a row: it is closed");
    }
}

fn asked(path: &str, replaces: Option<u64>) -> Arc<Asked> {
    let (turn, called) = Default::default();
    Arc::new(Asked { key: key(path), entry: entry(&key(path)), replaces, turn, called })
}

#[test]
fn who_waits_for_a_writer_that_panics_learns_of_it() {
    for has_taken in [true, false] {
        let (_data_dir, index) = index();
        let lead = index.puts.join(&asked("a", None)).unwrap();
        let other = thread::scope(|scope| {
            let put = scope.spawn(|| index.put(&key("b"), &entry(&key("b")), None));
            eventually("the other waits", || index.puts.line().waiting.len() == 2);
            let panicking = scope.spawn(move || {
                let _taken = has_taken.then(|| lead.take());
                panic!("as if it wrote");
            });
            assert!(panicking.join().is_err());
            put.join().unwrap()
        });
        match has_taken {
            true => assert_eq!(
                chain(&other.unwrap_err()),
                "the index cannot write a row: writing it panicked"
            ),
            false => drop(stored(other)),
        }
        stored(index.put(&key("c"), &entry(&key("c")), None));
    }
}

#[test]
fn where_no_transaction_can_begin_all_learn_of_it_at_once() {
    let (data_dir, index) = index();
    let foreign = Connection::open(data_dir.path().join("index.sqlite")).unwrap();
    let rows = rows(&["a", "b", "c"]);
    let puts = put_while_held(&index, &rows, |writer| {
        writer.as_mut().unwrap().connection.busy_timeout(Duration::ZERO).unwrap();
        foreign.execute_batch("BEGIN IMMEDIATE").unwrap();
    });
    for put in puts {
        let error = chain(&put.unwrap_err());
        assert!(error.contains("no transaction can begin") && error.contains("locked"), "{error}");
    }
    foreign.execute_batch("ROLLBACK").unwrap();
    stored(index.put(&rows[0].0, &rows[0].1, None));
}

#[test]
fn who_puts_alone_does_not_wait_and_who_replaces_a_row_lets_nobody_wait() {
    let rest = |puts: &Puts| {
        let mut line = puts.line();
        // The clock is not what is tested.
        line.last = line.last.map(|_| Instant::now());
        line.rest()
    };
    let puts = Puts::default();
    for _ in 0..3 {
        let lead = puts.join(&asked("alone", None)).unwrap();
        assert!(rest(&puts).is_zero());
        lead.take().answer(|_| Ok(Put::Stored(1)));
    }
    let lead = puts.join(&asked("a", None)).unwrap();
    assert!(puts.join(&asked("b", None)).is_none());
    assert!(!rest(&puts).is_zero());
    assert!(puts.join(&asked("c", Some(1))).is_none());
    assert!(rest(&puts).is_zero());
    lead.take().answer(|_| Ok(Put::Stored(1)));
    drop(lead);
    let lead = puts.join(&asked("d", None)).unwrap();
    assert!(!rest(&puts).is_zero(), "there was company the last time");
    lead.take().answer(|_| Ok(Put::Stored(1)));
    drop(lead);
    let _lead = puts.join(&asked("e", None)).unwrap();
    assert!(rest(&puts).is_zero());
}

#[test]
fn the_lead_goes_from_one_to_the_next() {
    const EACH: usize = 100;
    let (_data_dir, index) = index();
    let put = |path: String| stored(index.put(&key(&path), &entry(&key(&path)), None));
    let generations: Vec<u64> = thread::scope(|scope| {
        let many = |name| move || (0..EACH).map(|at| put(format!("{name}{at}"))).collect();
        let threads = ["a", "b", "c", "d"].map(|name| scope.spawn(many(name)));
        threads.into_iter().flat_map(|thread| -> Vec<u64> { thread.join().unwrap() }).collect()
    });
    assert_eq!(generations.iter().collect::<BTreeSet<_>>().len(), 4 * EACH);
    assert!(!index.puts.line().is_led);
}
