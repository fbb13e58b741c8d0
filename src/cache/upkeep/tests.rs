//! Rebuilding and verifying over backends in memory and on disk, with somebody who interferes.

use std::collections::BTreeMap;
use std::fs;
use std::ops::{ControlFlow, Range};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::*;
use crate::artifact::{ArtifactPath, BlobVersion, Digest, Entry, RemoteName, Validators};
use crate::blob::disk::DiskBlobs;
use crate::blob::memory::MemoryBlobs;
use crate::blob::{About, BlobMeta, BlobStore};
use crate::body::Body;
use crate::cache::Ports;
use crate::clock::Clock;
use crate::coord::local::{LocalFreshness, LocalLeases};
use crate::index::memory::MemoryIndex;
use crate::index::{ArtifactIndex, LeastUsed, Put, Row, Scan, Usage, Use};
use crate::staging::{Expect, SealedFile, Staging};

type Hook = Box<dyn FnOnce() + Send>;

/// Backends whose answers somebody else may run ahead of.
#[derive(Default)]
pub(in crate::cache) struct Meddling {
    before_open: Mutex<Option<Hook>>,
    pub(in crate::cache) before_remove: Mutex<Option<Hook>>,
    before_write: Mutex<Option<Hook>>,
    pub(in crate::cache) store_is_away: Mutex<bool>,
}

impl std::fmt::Debug for Meddling {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Meddling")
    }
}

impl Meddling {
    fn meddle(hook: &Mutex<Option<Hook>>) {
        let hook = hook.lock().unwrap().take();
        if let Some(hook) = hook {
            hook();
        }
    }

    fn answer(&self) -> Result<(), BlobError> {
        match *self.store_is_away.lock().unwrap() {
            false => Ok(()),
            true => Err(BlobError::Unavailable {
                operation: "reach",
                key: "*".to_owned(),
                source: "the store is away".into(),
            }),
        }
    }
}

#[derive(Debug)]
pub(in crate::cache) struct MeddledBlobs(
    pub(in crate::cache) Arc<dyn BlobStore>,
    pub(in crate::cache) Arc<Meddling>,
);

impl BlobStore for MeddledBlobs {
    fn publish(
        &self,
        key: &BlobKey,
        sealed: &SealedFile,
        about: &About,
    ) -> Result<BlobVersion, BlobError> {
        self.0.publish(key, sealed, about)
    }

    fn open(
        &self,
        key: &BlobKey,
        version: &BlobVersion,
        range: Range<u64>,
    ) -> Result<Body, BlobError> {
        Meddling::meddle(&self.1.before_open);
        self.1.answer()?;
        self.0.open(key, version, range)
    }

    fn stat(&self, key: &BlobKey) -> Result<Option<BlobMeta>, BlobError> {
        self.1.answer()?;
        self.0.stat(key)
    }

    fn remove(&self, key: &BlobKey) -> Result<(), BlobError> {
        Meddling::meddle(&self.1.before_remove);
        self.0.remove(key)
    }

    fn each(&self, visit: &mut dyn FnMut(BlobMeta) -> ControlFlow<()>) -> Result<(), BlobError> {
        self.0.each(visit)
    }
}

#[derive(Debug)]
struct MeddledIndex(Arc<MemoryIndex>, Arc<Meddling>);

impl ArtifactIndex for MeddledIndex {
    fn get(&self, key: &ArtifactKey) -> Result<Option<Entry>, IndexError> {
        self.0.get(key)
    }

    fn put(
        &self,
        key: &ArtifactKey,
        entry: &Entry,
        replaces: Option<u64>,
    ) -> Result<Put, IndexError> {
        Meddling::meddle(&self.1.before_write);
        self.0.put(key, entry, replaces)
    }

    fn remove(&self, key: &ArtifactKey, generation: u64) -> Result<bool, IndexError> {
        Meddling::meddle(&self.1.before_write);
        self.0.remove(key, generation)
    }

    fn scan(
        &self,
        query: &Scan,
        visit: &mut dyn FnMut(Row) -> ControlFlow<()>,
    ) -> Result<(), IndexError> {
        self.0.scan(query, visit)
    }

    fn touch(&self, uses: &[Use]) -> Result<(), IndexError> {
        self.0.touch(uses)
    }

    fn usage(&self) -> Result<BTreeMap<RemoteName, Usage>, IndexError> {
        self.0.usage()
    }

    fn least_used(
        &self,
        query: &LeastUsed,
        visit: &mut dyn FnMut(Row) -> ControlFlow<()>,
    ) -> Result<(), IndexError> {
        self.0.least_used(query, visit)
    }

    fn probe(&self) -> Result<(), IndexError> {
        self.0.probe()
    }
}

/// What a run told.
#[derive(Debug, Default)]
struct Told {
    expected: Work,
    done: Work,
    findings: Vec<Finding>,
}

impl Watch for Told {
    fn began(&mut self, expected: Work) {
        self.expected = expected;
    }

    fn advanced(&mut self, done: Work) {
        self.done.files += done.files;
        self.done.bytes += done.bytes;
    }

    fn found(&mut self, finding: &Finding) {
        self.findings.push(finding.clone());
    }
}

impl Told {
    /// What was found of which path, in no order.
    fn whats(&self) -> Vec<(&'static str, String, bool)> {
        let path = |finding: &Finding| {
            finding.artifact.as_ref().map_or(String::new(), |artifact| artifact.path.to_string())
        };
        let mut whats: Vec<_> = self
            .findings
            .iter()
            .map(|finding| (finding.what.as_str(), path(finding), finding.is_mended))
            .collect();
        whats.sort();
        whats
    }
}

#[derive(Clone)]
struct World {
    ports: Ports,
    index: Arc<MemoryIndex>,
    meddling: Arc<Meddling>,
    folder: Arc<tempfile::TempDir>,
}

impl World {
    fn in_memory() -> Self {
        Self::over(|_| Arc::new(MemoryBlobs::new()))
    }

    fn on_disk() -> Self {
        Self::over(|folder| Arc::new(DiskBlobs::open(folder).unwrap()))
    }

    fn over(blobs: impl FnOnce(&std::path::Path) -> Arc<dyn BlobStore>) -> Self {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        let clock = Clock::system();
        let (meddling, index) = (Arc::<Meddling>::default(), Arc::new(MemoryIndex::new()));
        let blobs = MeddledBlobs(blobs(folder.path()), Arc::clone(&meddling));
        let ports = Ports {
            blobs: Arc::new(blobs),
            index: Arc::new(MeddledIndex(Arc::clone(&index), Arc::clone(&meddling))),
            freshness: Arc::new(LocalFreshness::new(clock.clone())),
            leases: Arc::new(LocalLeases::new(clock.clone())),
            staging: Staging::open(&folder.path().join("staging"), 1 << 30).unwrap(),
            clock,
        };
        Self { ports, index, meddling, folder }
    }

    /// Publishes without recording; gives the entry that belongs to it.
    fn publish_at(&self, blob: &BlobKey, key: &ArtifactKey, bytes: &[u8], second: u64) -> Entry {
        let expect = Expect { len: Some(bytes.len() as u64), checksum: None };
        let mut staged = self.ports.staging.begin(expect).unwrap();
        staged.append_bytes(bytes).unwrap();
        let sealed = staged.seal().unwrap();
        let stored_at = at(second);
        let about = About {
            artifact: key.clone(),
            digest: sealed.digest(),
            content_type: Some("text/plain".to_owned()),
            content_encoding: Some("br".to_owned()),
            validators: Validators {
                etag: Some("\"v1\"".to_owned()),
                last_modified: Some("Mon, 23 Nov 2026 08:00:00 GMT".to_owned()),
            },
            stored_at,
        };
        let version = self.ports.blobs.publish(blob, &sealed, &about).unwrap();
        about.entry(blob.clone(), version, bytes.len() as u64)
    }

    fn publish(&self, path: &str, bytes: &[u8]) -> Entry {
        self.publish_at(&BlobKey::of(&key(path)), &key(path), bytes, 1)
    }

    fn put(&self, path: &str, entry: &Entry) -> u64 {
        let replaces = self.row(path).map(|row| row.generation);
        match self.index.put(&key(path), entry, replaces).unwrap() {
            Put::Stored(generation) => generation,
            Put::Superseded(_) => panic!("nobody else writes"),
        }
    }

    /// Publishes and records.
    fn store(&self, path: &str, bytes: &[u8]) -> Entry {
        let entry = self.publish(path, bytes);
        let generation = self.put(path, &entry);
        Entry { generation, ..entry }
    }

    fn row(&self, path: &str) -> Option<Entry> {
        self.index.get(&key(path)).unwrap()
    }

    fn has_blob(&self, entry: &Entry) -> bool {
        let meta = self.ports.blobs.stat(&entry.blob).unwrap();
        meta.is_some_and(|meta| meta.version == entry.version)
    }

    fn file(&self, entry: &Entry) -> std::path::PathBuf {
        self.folder.path().join("blobs").join(entry.blob.as_str())
    }

    fn reindex(&self, writes: Writes) -> (Reindexed, Told) {
        let mut told = Told::default();
        let how = Reindex { writes, trust: Trust::Durable };
        (reindex(&self.ports, how, &mut told).unwrap(), told)
    }

    fn verify(&self, repair: Repair) -> (Verified, Told) {
        let mut told = Told::default();
        let what = Verify { remote: None, repair, fetchable: None };
        let done = verify(&self.ports, &what, &mut told).unwrap();
        assert_eq!(told.done, told.expected, "the bar ends where it should");
        (done, told)
    }
}

fn at(second: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_700_000_000 + second)
}

fn key(path: &str) -> ArtifactKey {
    let path = ArtifactPath::from_canonical(path).unwrap();
    ArtifactKey { remote: "r".parse().unwrap(), path }
}

fn found(what: What, path: &str, is_mended: bool) -> (&'static str, String, bool) {
    (what.as_str(), path.to_owned(), is_mended)
}

#[test]
fn lost_rows_come_back_as_the_blobs_describe_them() {
    for world in [World::in_memory(), World::on_disk()] {
        let entry = world.publish("dir/a b.zip", b"bytes");
        world.publish("dir/", b"");
        let (done, told) = world.reindex(Writes::Rows);
        let blobs = Work { files: 2, bytes: 5 };
        assert_eq!(done, Reindexed { blobs, recorded: 2, ..Reindexed::default() });
        assert_eq!((told.expected, told.done), (blobs, blobs));
        let expected =
            [found(What::Unrecorded, "dir/", true), found(What::Unrecorded, "dir/a b.zip", true)];
        assert_eq!(told.whats(), expected);
        let row = world.row("dir/a b.zip").unwrap();
        assert_eq!(row, Entry { generation: row.generation, ..entry });

        let (again, told) = world.reindex(Writes::Rows);
        assert_eq!(again, Reindexed { blobs, right: 2, ..Reindexed::default() });
        assert_eq!(told.whats(), []);
        assert_eq!(world.row("dir/a b.zip"), Some(row));
    }
}

#[test]
fn rows_of_a_store_that_a_crash_may_have_hurt_are_unproven() {
    let world = World::in_memory();
    world.publish("a", b"bytes");
    let how = Reindex { writes: Writes::Rows, trust: Trust::UntilCrash };
    reindex(&world.ports, how, &mut Told::default()).unwrap();
    assert!(world.row("a").unwrap().unproven);
    // Proven by a verification that may write.
    assert_eq!(world.verify(Repair::Nothing).0.proven, 0);
    assert!(world.row("a").unwrap().unproven);
    assert_eq!(world.verify(Repair::Drop).0.proven, 1);
    assert!(!world.row("a").unwrap().unproven);
}

#[test]
fn right_rows_stay_as_they_are_with_all_that_only_they_know() {
    let world = World::on_disk();
    let entry = world.publish("repodata/primary.xml", b"bytes");
    let entry = Entry { validated_at: at(99), head: Some(Digest::of(b"head")), ..entry };
    world.put("repodata/primary.xml", &entry);
    let before = world.row("repodata/primary.xml");
    let (done, _) = world.reindex(Writes::Rows);
    assert_eq!((done.right, done.recorded, done.removed), (1, 0, 0));
    assert_eq!(world.row("repodata/primary.xml"), before);
}

/// A store with one of everything that can be wrong. The rows `gone` and `tampered` dangle,
/// `older` means a version that was replaced, `lost` has no row, and two blobs are nobody's.
fn shambles() -> World {
    let world = World::on_disk();
    world.store("right", b"right");
    let gone = world.store("gone", b"gone");
    world.ports.blobs.remove(&gone.blob).unwrap();
    let tampered = world.store("tampered", b"tampered");
    fs::write(world.file(&tampered), b"elsewise").unwrap();
    world.store("older", b"old");
    world.publish("older", b"new");
    world.publish("lost", b"lost");
    let foreign = world.folder.path().join("blobs/r/0123456789abcdef");
    fs::create_dir_all(&foreign).unwrap();
    fs::write(foreign.join("foreign"), b"foreign").unwrap();
    world
}

#[test]
fn everything_that_is_wrong_is_put_right_and_what_is_nobodys_is_left_for_the_sweep() {
    let world = shambles();
    let (done, told) = world.reindex(Writes::Rows);
    let expected = Reindexed {
        blobs: Work { files: 5, bytes: 5 + 8 + 3 + 4 + 7 },
        right: 1,
        recorded: 2,
        removed: 2,
        unknown: 2,
        ..Reindexed::default()
    };
    assert_eq!(done, expected);
    assert!(!done.is_complete(), "two blobs are nobody's");
    let whats = [
        found(What::Dangling, "gone", true),
        found(What::Dangling, "tampered", true),
        found(What::Unknown, "", false),
        found(What::Unknown, "", false),
        found(What::Unrecorded, "lost", true),
        found(What::Unrecorded, "older", true),
    ];
    assert_eq!(told.whats(), whats);
    assert_eq!((world.row("gone"), world.row("tampered")), (None, None));
    assert_eq!(world.row("older").unwrap().digest, Digest::of(b"new"));
    assert!(world.folder.path().join("blobs/r/0123456789abcdef/foreign").exists());
    assert!(world.verify(Repair::Nothing).0.is_sound());
}

#[test]
fn a_dry_run_finds_the_same_and_writes_nothing() {
    let world = shambles();
    let rows = || ["right", "gone", "tampered", "older", "lost"].map(|path| world.row(path));
    let before = rows();
    let (dry, told) = world.reindex(Writes::Nothing);
    assert_eq!(rows(), before);
    assert!(told.findings.iter().all(|finding| !finding.is_mended));
    assert_eq!(world.reindex(Writes::Rows).0, dry);
}

#[test]
fn of_two_blobs_of_one_artifact_the_later_one_is_meant() {
    for later_first in [true, false] {
        let world = World::in_memory();
        // A blob may lie under another key than its artifact's own.
        let other = BlobKey::from_listing("a.example.org/0123456789abcdef/a").unwrap();
        let seconds = if later_first { (2, 1) } else { (1, 2) };
        world.publish_at(&other, &key("a"), b"at the host", seconds.0);
        world.publish_at(&BlobKey::of(&key("a")), &key("a"), b"at the remote", seconds.1);
        for _ in 0..2 {
            world.reindex(Writes::Rows);
            assert_eq!(world.row("a").unwrap().stored_at, at(2), "{later_first}");
        }
        let (done, told) = world.reindex(Writes::Rows);
        assert_eq!((done.right, done.spare), (1, 1));
        assert_eq!(told.whats(), [found(What::Spare, "a", false)]);
    }
}

#[test]
fn a_row_that_a_server_writes_meanwhile_is_not_overwritten() {
    let world = World::in_memory();
    world.publish("a", b"one");
    let server = world.clone();
    let hook: Hook = Box::new(move || {
        server.store("a", b"two");
    });
    *world.meddling.before_write.lock().unwrap() = Some(hook);
    let (done, told) = world.reindex(Writes::Rows);
    assert_eq!((done.recorded, done.overtaken, told.findings.len()), (0, 1, 0));
    assert_eq!(world.row("a").unwrap().digest, Digest::of(b"two"));
}

#[test]
fn a_store_that_is_away_condemns_nothing_and_ends_the_run() {
    let world = World::in_memory();
    for number in 0..3 * UNREADABLE_MAX {
        let path = format!("{number}");
        let entry = world.store(&path, path.as_bytes());
        if number % 2 == 0 {
            world.index.remove(&key(&path), entry.generation).unwrap();
        }
    }
    *world.meddling.store_is_away.lock().unwrap() = true;
    let mut told = Told::default();
    let how = Reindex { writes: Writes::Rows, trust: Trust::Durable };
    let ended = reindex(&world.ports, how, &mut told);
    assert!(matches!(ended, Err(UpkeepError::Unreadable)), "{ended:?}");
    assert_eq!(told.findings.len() as u64, UNREADABLE_MAX);

    let mut told = Told::default();
    let what = Verify { remote: None, repair: Repair::Drop, fetchable: None };
    let ended = verify(&world.ports, &what, &mut told);
    assert!(matches!(ended, Err(UpkeepError::Unreadable)), "{ended:?}");
    assert!(told.findings.iter().all(|finding| finding.what == What::Unreadable));
    *world.meddling.store_is_away.lock().unwrap() = false;
    let (done, _) = world.verify(Repair::Nothing);
    assert!(done.is_sound());
    assert_eq!(done.right, 3 * UNREADABLE_MAX / 2);
}

#[test]
fn a_file_of_many_strides_is_hashed_whole_and_its_progress_adds_up() {
    let world = World::on_disk();
    let bytes: Vec<u8> = (0..(20 << 20) + 7_u32).map(|at| (at >> 3) as u8).collect();
    world.store("big", &bytes);
    world.store("empty", b"");
    let (done, told) = world.verify(Repair::Nothing);
    let rows = Work { files: 2, bytes: bytes.len() as u64 };
    assert_eq!(done, Verified { rows, right: 2, ..Verified::default() });
    assert_eq!(told.findings, []);
}

#[test]
fn what_is_missing_changed_or_damaged_is_told_apart_and_dropped_if_asked() {
    let world = World::on_disk();
    let right = world.store("right", b"right");
    let missing = world.store("missing", b"missing");
    world.ports.blobs.remove(&missing.blob).unwrap();
    let changed = world.store("changed", b"old");
    fs::write(world.file(&changed), b"new").unwrap();
    // The process was killed between the blob and its row.
    world.store("unfinished", b"old");
    let newer = world.publish("unfinished", b"new");
    let damaged = world.store("damaged", b"whole");
    // A disk that forgets leaves length and time as they were.
    let modified = fs::metadata(world.file(&damaged)).unwrap().modified().unwrap();
    fs::write(world.file(&damaged), b"whale").unwrap();
    fs::File::open(world.file(&damaged)).unwrap().set_modified(modified).unwrap();
    assert!(world.has_blob(&damaged));

    let whats = |is_mended| {
        [
            found(What::Changed, "changed", is_mended),
            found(What::Damaged, "damaged", is_mended),
            found(What::Missing, "missing", is_mended),
        ]
    };
    let counted = Verified {
        rows: Work { files: 5, bytes: 5 + 7 + 3 + 3 + 5 },
        right: 2,
        missing: 1,
        changed: 1,
        damaged: 1,
        ..Verified::default()
    };
    let (done, told) = world.verify(Repair::Nothing);
    assert_eq!((done, told.whats()), (counted, whats(false).to_vec()));
    assert!(!done.is_sound());
    assert!(["missing", "changed", "damaged"].iter().all(|path| world.row(path).is_some()));

    let (done, told) = world.verify(Repair::Drop);
    assert_eq!((done, told.whats()), (Verified { dropped: 3, ..counted }, whats(true).to_vec()));
    assert!(done.is_sound());
    assert!(["missing", "changed", "damaged"].iter().all(|path| world.row(path).is_none()));
    assert!(!world.has_blob(&damaged));
    // Whole, as far as anybody knows.
    assert!(world.has_blob(&newer) && world.has_blob(&right));
    assert_eq!(world.verify(Repair::Nothing).0.right, 2);
}

#[test]
fn what_no_upstream_has_is_kept_and_stays_wrong() {
    let world = World::in_memory();
    let entry = world.publish("a", b"one");
    world.put("a", &Entry { digest: Digest::of(b"another"), ..entry });
    let check = |fetchable: &[&str], dropped: u64| {
        let fetchable = fetchable.iter().map(|remote| remote.parse().unwrap()).collect();
        let what = Verify { remote: None, repair: Repair::Drop, fetchable: Some(fetchable) };
        let mut told = Told::default();
        let done = verify(&world.ports, &what, &mut told).unwrap();
        assert_eq!((done.damaged, done.dropped, done.is_sound()), (1, dropped, dropped == 1));
        assert_eq!(world.row("a").is_none(), dropped == 1);
        told.findings[0].why.clone().unwrap()
    };
    let why = check(&["other"], 0);
    assert!(why.ends_with("; kept, because no upstream has it"), "{why}");
    check(&["other", "r"], 1);
}

#[test]
fn what_is_refreshed_while_it_is_judged_is_judged_anew() {
    let world = World::in_memory();
    world.store("a", b"one");
    let server = world.clone();
    *world.meddling.before_open.lock().unwrap() = Some(Box::new(move || {
        server.store("a", b"two");
    }));
    let (done, told) = world.verify(Repair::Drop);
    assert_eq!((done.right, done.dropped, told.findings.len()), (1, 0, 0));
    assert_eq!(world.row("a").unwrap().digest, Digest::of(b"two"));
}

#[test]
fn what_is_refreshed_before_it_is_dropped_stays() {
    let world = World::in_memory();
    let entry = world.publish("a", b"one");
    world.put("a", &Entry { digest: Digest::of(b"another"), ..entry });
    let server = world.clone();
    *world.meddling.before_write.lock().unwrap() = Some(Box::new(move || {
        server.store("a", b"two");
    }));
    let (done, told) = world.verify(Repair::Drop);
    assert_eq!((done.overtaken, done.dropped, told.findings.len()), (1, 0, 0));
    assert!(world.has_blob(&world.row("a").unwrap()));
    assert_eq!(world.verify(Repair::Nothing).0.right, 1);
}

#[test]
fn only_the_remote_that_was_asked_for_is_verified() {
    let world = World::in_memory();
    world.store("a", b"a");
    let check = |remote: &str, rows: u64| {
        let remote = Some(remote.parse().unwrap());
        let what = Verify { remote, repair: Repair::Nothing, fetchable: None };
        let done = verify(&world.ports, &what, &mut Told::default()).unwrap();
        assert_eq!(done.rows.files, rows);
    };
    check("r", 1);
    check("other", 0);
}
