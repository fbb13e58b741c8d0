//! What only the file can show: runs that end badly, damage, migrations.

use std::cell::Cell;
use std::fs;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::time::UNIX_EPOCH;

use super::reserve::{PIECE_BYTES, RESERVE_BYTES};
use super::*;
use crate::artifact::Digest;
use crate::chain::chain;
use crate::test_servers::eventually;

crate::index::conformance::index_conformance!(|| {
    let data_dir = tempfile::tempdir().unwrap();
    (EmbeddedIndex::open(data_dir.path()).unwrap(), data_dir)
});

pub(super) fn key(path: &str) -> ArtifactKey {
    let path = ArtifactPath::from_canonical(path).unwrap();
    ArtifactKey { remote: "remote".parse().unwrap(), path }
}

pub(super) fn entry(key: &ArtifactKey) -> Entry {
    Entry {
        blob: BlobKey::of(key),
        version: BlobVersion("1-2.3".to_owned()),
        size: 1,
        digest: Digest::of(b"x"),
        content_type: None,
        content_encoding: None,
        head: None,
        validators: Validators::default(),
        stored_at: UNIX_EPOCH,
        validated_at: UNIX_EPOCH,
        generation: 0,
        unproven: false,
    }
}

fn put(index: &EmbeddedIndex, path: &str) -> u64 {
    let key = key(path);
    let replaces = index.get(&key).unwrap().map(|entry| entry.generation);
    match index.put(&key, &entry(&key), replaces).unwrap() {
        Put::Stored(generation) => generation,
        superseded => panic!("{superseded:?}"),
    }
}

/// The paths of the rows that are unproven, as `get` and as `scan` see them.
fn unproven(index: &EmbeddedIndex) -> Vec<String> {
    let mut unproven = Vec::new();
    let mut visit = |row: Row| {
        assert_eq!(index.get(&row.key).unwrap(), Some(row.entry.clone()));
        if row.entry.unproven {
            unproven.push(row.key.path.as_str().to_owned());
        }
        ControlFlow::Continue(())
    };
    index.scan(&Scan::default(), &mut visit).unwrap();
    unproven
}

fn no_space() -> io::Result<()> {
    Err(io::ErrorKind::StorageFull.into())
}

#[test]
fn after_an_unclean_end_what_came_after_the_last_sync_is_unproven() {
    let data_dir = tempfile::tempdir().unwrap();
    let index = EmbeddedIndex::open(data_dir.path()).unwrap();
    put(&index, "synced");
    put(&index, "synced, then put again");
    index.sync(|| Ok(())).unwrap();
    put(&index, "late");
    put(&index, "synced, then put again");
    assert!(unproven(&index).is_empty(), "the run itself doubts nothing that it put");
    drop(index);

    let index = EmbeddedIndex::open(data_dir.path()).unwrap();
    assert_eq!(unproven(&index), ["late", "synced, then put again"]);
    put(&index, "late");
    put(&index, "new");
    assert_eq!(unproven(&index), ["synced, then put again"]);
}

#[test]
fn a_clean_end_leaves_no_doubt_and_a_run_that_put_nothing_adds_none() {
    let data_dir = tempfile::tempdir().unwrap();
    let index = EmbeddedIndex::open(data_dir.path()).unwrap();
    put(&index, "a");
    index.sync(|| Ok(())).unwrap();
    put(&index, "b");
    index.close_cleanly(|| Ok(())).unwrap();
    drop(index);
    for _ in 0..3 {
        assert!(unproven(&EmbeddedIndex::open(data_dir.path()).unwrap()).is_empty());
    }
}

#[test]
fn doubt_outlasts_syncs_and_clean_ends_until_the_row_is_put_again() {
    let data_dir = tempfile::tempdir().unwrap();
    put(&EmbeddedIndex::open(data_dir.path()).unwrap(), "doubted");
    for _ in 0..3 {
        let index = EmbeddedIndex::open(data_dir.path()).unwrap();
        index.sync(|| Ok(())).unwrap();
        assert_eq!(unproven(&index), ["doubted"]);
        index.close_cleanly(|| Ok(())).unwrap();
    }
    let index = EmbeddedIndex::open(data_dir.path()).unwrap();
    put(&index, "doubted");
    index.close_cleanly(|| Ok(())).unwrap();
    drop(index);
    assert!(unproven(&EmbeddedIndex::open(data_dir.path()).unwrap()).is_empty());
}

#[test]
fn a_row_that_is_put_as_unproven_stays_so() {
    // A 304 renews a row without anybody having looked at its blob.
    let data_dir = tempfile::tempdir().unwrap();
    put(&EmbeddedIndex::open(data_dir.path()).unwrap(), "renewed");
    let index = EmbeddedIndex::open(data_dir.path()).unwrap();
    let doubted = index.get(&key("renewed")).unwrap().unwrap();
    let put = index.put(&key("renewed"), &doubted, Some(doubted.generation)).unwrap();
    assert!(matches!(put, Put::Stored(_)));
    assert_eq!(unproven(&index), ["renewed"]);
    index.close_cleanly(|| Ok(())).unwrap();
    drop(index);
    assert_eq!(unproven(&EmbeddedIndex::open(data_dir.path()).unwrap()), ["renewed"]);
}

#[test]
fn a_row_that_is_put_while_the_disk_is_synced_is_not_vouched_for() {
    let data_dir = tempfile::tempdir().unwrap();
    let index = EmbeddedIndex::open(data_dir.path()).unwrap();
    put(&index, "before");
    let meanwhile = || {
        put(&index, "meanwhile");
        Ok(())
    };
    index.sync(meanwhile).unwrap();
    drop(index);
    assert_eq!(unproven(&EmbeddedIndex::open(data_dir.path()).unwrap()), ["meanwhile"]);
}

#[test]
fn once_a_sync_has_failed_the_run_vouches_for_nothing_more() {
    let data_dir = tempfile::tempdir().unwrap();
    let index = EmbeddedIndex::open(data_dir.path()).unwrap();
    put(&index, "a");
    index.sync(|| Ok(())).unwrap();
    put(&index, "b");
    let error = index.sync(no_space).unwrap_err();
    assert!(error.to_string().contains("on the disk"), "{error}");
    index.sync(|| Ok(())).unwrap();
    index.close_cleanly(|| Ok(())).unwrap();
    drop(index);
    assert_eq!(unproven(&EmbeddedIndex::open(data_dir.path()).unwrap()), ["b"]);
}

#[test]
fn a_closed_index_reads_and_does_not_write() {
    let data_dir = tempfile::tempdir().unwrap();
    let index = EmbeddedIndex::open(data_dir.path()).unwrap();
    let generation = put(&index, "a");
    let error = index.close_cleanly(no_space).unwrap_err();
    assert!(error.to_string().contains("cleanly"), "{error}");
    assert_eq!(unproven(&index), [""; 0]);
    index.probe().unwrap();
    let used = Use { key: key("a"), hits: 1, last: UNIX_EPOCH };
    assert!(index.put(&key("b"), &entry(&key("b")), None).is_err());
    assert!(index.remove(&key("a"), generation).is_err());
    assert!(index.touch(&[used]).is_err());
    assert!(index.sync(|| Ok(())).is_err());
    assert!(index.close_cleanly(|| Ok(())).is_err());
    drop(index);
    assert_eq!(unproven(&EmbeddedIndex::open(data_dir.path()).unwrap()), ["a"]);
}

#[test]
fn generations_grow_from_run_to_run() {
    let data_dir = tempfile::tempdir().unwrap();
    let mut last = 0;
    for _ in 0..4 {
        let index = EmbeddedIndex::open(data_dir.path()).unwrap();
        for _ in 0..3 {
            let generation = put(&index, "a");
            assert!(generation > last);
            last = generation;
        }
    }
}

#[test]
fn rows_outlive_their_run() {
    let data_dir = tempfile::tempdir().unwrap();
    let index = EmbeddedIndex::open(data_dir.path()).unwrap();
    let stored = Entry { generation: put(&index, "a"), ..entry(&key("a")) };
    index.close_cleanly(|| Ok(())).unwrap();
    drop(index);
    let index = EmbeddedIndex::open(data_dir.path()).unwrap();
    assert_eq!(index.get(&key("a")).unwrap(), Some(stored));
}

#[test]
fn a_file_that_is_no_index_is_named_with_the_fix_and_left_as_it_is() {
    let foreign = tempfile::tempdir().unwrap();
    let other = Connection::open(foreign.path().join("other.sqlite")).unwrap();
    other.execute_batch("CREATE TABLE t (a); PRAGMA user_version = 1").unwrap();
    drop(other);
    let foreign = fs::read(foreign.path().join("other.sqlite")).unwrap();
    let mut damaged = foreign.clone();
    damaged[100..].fill(0x5a);
    let check = |what: &str, bytes: &[u8]| {
        let data_dir = tempfile::tempdir().unwrap();
        let file = data_dir.path().join("index.sqlite");
        fs::write(&file, bytes).unwrap();
        let error = EmbeddedIndex::open(data_dir.path()).unwrap_err();
        assert!(matches!(error, OpenIndexError::Damaged { .. }), "{what}: {error:?}");
        let said = error.to_string();
        assert!(said.contains("index.sqlite") && said.contains("artifactapi reindex"), "{said}");
        assert!(fs::read(&file).unwrap() == bytes, "{what}");
    };
    check("text", "not a database, by far ".repeat(100).as_bytes());
    check("another program's", &foreign);
    check("damaged", &damaged);
}

#[test]
fn a_newer_schema_stops_the_start_with_both_versions() {
    let data_dir = tempfile::tempdir().unwrap();
    let index = EmbeddedIndex::open(data_dir.path()).unwrap();
    index
        .writer
        .lock()
        .as_ref()
        .unwrap()
        .connection
        .pragma_update(None, "user_version", 99)
        .unwrap();
    drop(index);
    let error = EmbeddedIndex::open(data_dir.path()).unwrap_err();
    assert!(matches!(error, OpenIndexError::Newer { found: 99, known: 2, .. }), "{error:?}");
}

#[test]
fn a_row_that_was_tampered_with_is_corrupt_and_hides_no_other() {
    let data_dir = tempfile::tempdir().unwrap();
    let index = EmbeddedIndex::open(data_dir.path()).unwrap();
    for path in ["a", "b", "c"] {
        put(&index, path);
    }
    let tamper = |sql: &str| {
        index.writer.lock().as_ref().unwrap().connection.execute(sql, []).unwrap();
    };
    tamper("UPDATE artifact SET sha256 = 'x' WHERE path = 'b'");
    tamper(
        "INSERT INTO artifact SELECT ' ', path, blob, version, size, sha256, content_type, etag,
            last_modified, content_encoding, head, stored_at, validated_at, last_used, hits, generation, unproven
        FROM artifact WHERE path = 'a'",
    );
    let error = index.get(&key("b")).unwrap_err();
    assert!(matches!(&error, IndexError::Corrupt { key, .. } if key == "remote/b"), "{error}");
    let mut shown = Vec::new();
    let mut visit = |row: Row| {
        shown.push(row.key.path.as_str().to_owned());
        ControlFlow::Continue(())
    };
    index.scan(&Scan::default(), &mut visit).unwrap();
    assert_eq!(shown, ["a", "c"]);
}

#[test]
fn uses_past_what_sqlite_counts_stop_there() {
    let data_dir = tempfile::tempdir().unwrap();
    let index = EmbeddedIndex::open(data_dir.path()).unwrap();
    put(&index, "a");
    let used = Use { key: key("a"), hits: u64::MAX, last: UNIX_EPOCH };
    index.touch(&[used.clone(), used]).unwrap();
    let mut hits = 0;
    let mut visit = |row: Row| {
        hits = row.hits;
        ControlFlow::Continue(())
    };
    index.scan(&Scan::default(), &mut visit).unwrap();
    assert_eq!(hits, i64::MAX as u64);
}

#[test]
fn a_file_of_the_first_version_is_taken_over_with_its_sums() {
    let data_dir = tempfile::tempdir().unwrap();
    let old = Connection::open(data_dir.path().join("index.sqlite")).unwrap();
    old.execute_batch(include_str!("../embedded.sql")).unwrap();
    old.execute_batch(
        "PRAGMA application_id = 0x61727469; PRAGMA user_version = 1;
        WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5)
        INSERT INTO artifact (remote, path, blob, version, size, sha256, stored_at, validated_at,
            last_used, hits, generation)
        SELECT 'remote', 'p' || i, 'remote/0123456789abcdef/p', 'v', i * 10,
            printf('%064d', 0), 100 - i, 0, iif(i = 1, 200, NULL), i, i FROM n",
    )
    .unwrap();
    drop(old);
    let index = EmbeddedIndex::open(data_dir.path()).unwrap();
    let expected = Usage { artifacts: 5, bytes: 150, hits: 15 };
    assert_eq!(index.usage().unwrap(), BTreeMap::from([("remote".parse().unwrap(), expected)]));
    let mut shown = Vec::new();
    let mut visit = |row: Row| {
        shown.push(row.key.path.to_string());
        ControlFlow::Continue(())
    };
    let query = LeastUsed { remote: "remote".parse().unwrap(), behind: None };
    index.least_used(&query, &mut visit).unwrap();
    assert_eq!(shown, ["p5", "p4", "p3", "p2", "p1"]);
}

#[test]
fn the_order_of_the_last_use_is_read_from_its_index() {
    let data_dir = tempfile::tempdir().unwrap();
    let index = EmbeddedIndex::open(data_dir.path()).unwrap();
    let reader = index.reader("explain").unwrap();
    let mut statement = reader.prepare(&format!("EXPLAIN QUERY PLAN {LEAST_USED}")).unwrap();
    let detail: Vec<String> = statement
        .query_map(["x"; 4], |row| row.get("detail"))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    let plan =
        "SEARCH artifact USING INDEX artifact_by_recency (remote=? AND (recency,path)>(?,?))";
    assert_eq!(detail, [plan]);
}

#[test]
fn lookups_and_pages_go_by_the_key() {
    let data_dir = tempfile::tempdir().unwrap();
    let index = EmbeddedIndex::open(data_dir.path()).unwrap();
    let check = |sql: &str, plan: &str| {
        let reader = index.reader("explain").unwrap();
        let mut statement = reader.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
        let count = statement.parameter_count();
        let detail: Vec<String> = statement
            .query_map(rusqlite::params_from_iter(vec!["x"; count]), |row| row.get("detail"))
            .unwrap()
            .collect::<Result<_, _>>()
            .unwrap();
        assert_eq!(detail, [format!("SEARCH artifact USING {plan}")], "{sql}");
    };
    check(GET, "PRIMARY KEY (remote=? AND path=?)");
    check(super::puts::UPDATE, "PRIMARY KEY (remote=? AND path=?)");
    check(REMOVE, "PRIMARY KEY (remote=? AND path=?)");
    check(TOUCH, "PRIMARY KEY (remote=? AND path=?)");
    check(SCAN_FROM, "PRIMARY KEY (remote=? AND path>?)");
    check(SCAN_BEHIND, "PRIMARY KEY (remote=? AND path>?)");
    check(NEXT_REMOTE, "COVERING INDEX artifact_by_recency (remote>?)");
}

/// Puts a row for each number.
fn put_all(index: &EmbeddedIndex, numbers: Range<usize>) {
    for number in numbers {
        put(index, &number.to_string());
    }
}

#[test]
fn the_log_is_folded_back_beside_the_writer() {
    let data_dir = tempfile::tempdir().unwrap();
    let index = EmbeddedIndex::open(data_dir.path()).unwrap();
    let len = |name: &str| fs::metadata(data_dir.path().join(name)).unwrap().len();
    // Fewer than would make a commit fold it back.
    put_all(&index, 0..FOLD_ROWS - 1);
    let before = len("index.sqlite");
    put_all(&index, FOLD_ROWS..3 * FOLD_ROWS);
    eventually("rows are in the file", || len("index.sqlite") > before);
    // From a moment at which all is folded back the log begins anew.
    eventually("the log does not grow", || {
        let before = len("index.sqlite-wal");
        put_all(&index, 0..2 * FOLD_ROWS);
        len("index.sqlite-wal") == before
    });
}

#[test]
fn a_closed_index_leaves_no_log() {
    let data_dir = tempfile::tempdir().unwrap();
    let index = EmbeddedIndex::open(data_dir.path()).unwrap();
    put_all(&index, 0..FOLD_ROWS);
    drop(index);
    assert!(!data_dir.path().join("index.sqlite-wal").exists(), "nobody has it open");
}

#[test]
fn a_log_that_may_have_lost_pages_persists_nothing() {
    let data_dir = tempfile::tempdir().unwrap();
    let index = EmbeddedIndex::open(data_dir.path()).unwrap();
    put(&index, "kept");
    index.persist(&key("a")).unwrap();
    index.writer.lock().as_mut().unwrap().may_have_lost = true;
    let error = index.persist(&key("a")).unwrap_err();
    assert!(chain(&error).contains("restart the server"), "{error:?}");
}

fn sqlite_error(code: i32) -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None)
}

/// The room that is kept in a data folder, in bytes.
fn reserved(data_dir: &tempfile::TempDir) -> u64 {
    fs::metadata(data_dir.path().join("index.reserve")).unwrap().blocks() * 512
}

#[test]
fn on_a_full_disk_a_removal_folds_the_log_back_and_then_uses_the_room_that_is_kept() {
    let data_dir = tempfile::tempdir().unwrap();
    let index = EmbeddedIndex::open(data_dir.path()).unwrap();
    assert!(reserved(&data_dir) >= RESERVE_BYTES, "from the first start");
    let check = |fails: usize, error: i32, tries: usize, succeeds: bool, left: u64| {
        let tried = Cell::new(0);
        let least = Cell::new(RESERVE_BYTES);
        let written = index.writer.lock().as_mut().unwrap().with_reserve(|_| {
            least.set(least.get().min(reserved(&data_dir)));
            tried.set(tried.get() + 1);
            if tried.get() <= fails { Err(sqlite_error(error)) } else { Ok(()) }
        });
        assert_eq!((tried.get(), written.is_ok()), (tries, succeeds), "{fails} times {error}");
        assert!(least.get() <= left && (left == 0 || least.get() == left), "{}", least.get());
        assert!(reserved(&data_dir) >= RESERVE_BYTES, "there is room: it has grown back");
    };
    let (full, pieces) = (rusqlite::ffi::SQLITE_FULL, (RESERVE_BYTES / PIECE_BYTES) as usize);
    check(0, full, 1, true, RESERVE_BYTES);
    check(1, full, 2, true, RESERVE_BYTES);
    check(3, full, 4, true, RESERVE_BYTES - 2 * PIECE_BYTES);
    check(usize::MAX, full, 2 + pieces, false, 0);
    // Other errors are none of its business.
    check(1, rusqlite::ffi::SQLITE_IOERR_WRITE, 1, false, RESERVE_BYTES);
    check(1, rusqlite::ffi::SQLITE_READONLY, 1, false, RESERVE_BYTES);
}

#[test]
fn a_removed_or_replaced_file_is_noticed_and_named_with_the_fix() {
    let data_dir = tempfile::tempdir().unwrap();
    let index = EmbeddedIndex::open(data_dir.path()).unwrap();
    let (file, moved) = (data_dir.path().join("index.sqlite"), data_dir.path().join("moved"));
    let check = |what: &str| {
        let error = chain(&index.probe().unwrap_err());
        let is_named = error.contains("index.sqlite was removed") && error.contains("reindex");
        assert!(is_named, "{what}: {error}");
    };
    index.probe().unwrap();
    fs::rename(&file, &moved).unwrap();
    check("moved away");
    fs::write(&file, b"another").unwrap();
    check("another one");
    fs::rename(&moved, &file).unwrap();
    index.probe().unwrap();
    fs::remove_file(&file).unwrap();
    check("removed");
}
