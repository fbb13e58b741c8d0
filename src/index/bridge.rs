//! What stands in while the index is away: the objects, which describe themselves.
//!
//! A wrapper over an index that is far. While that does not answer, a row is what the object
//! under the artifact's predictable key says of itself, and rows that are put wait here, in
//! bounded memory, for [`BridgedIndex::catch_up`]. Scans, uses and removals are not stood in
//! for: they fail as the index does, and whoever asks does without.
//!
//! What waits here never overrules the store: a row is written late only if the object still
//! is of the version that it names.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::artifact::{ArtifactKey, BlobKey, Entry, RemoteName};
use crate::chain::chain;
use crate::index::{ArtifactIndex, IndexError, LeastUsed, Put, Row, Scan, Usage, Use};

/// Rows that wait at most, a few hundred bytes each; more are not recorded, and `reindex`
/// finds them.
const WAITING_MAX: usize = 10_000;
/// The generation of rows that stand in, "stand_in" in ASCII: an index counts from 1 and will
/// not come that far.
const STAND_IN: u64 = 0x7374_616e_645f_696e;

/// Says what the object under a key says of itself; `None` where there is none, or one that does
/// not say that it is this artifact. The entry's generation does not count.
pub type Describe = dyn Fn(&ArtifactKey, &BlobKey) -> Result<Option<Entry>, Box<dyn Error + Send + Sync>>
    + Send
    + Sync;

/// An index, and what stands in for it.
pub struct BridgedIndex {
    index: Arc<dyn ArtifactIndex>,
    describe: Box<Describe>,
    // Nothing else is taken while it is held, and nobody is asked under it.
    waiting: Mutex<BTreeMap<ArtifactKey, Entry>>,
}

impl fmt::Debug for BridgedIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BridgedIndex").field("index", &self.index).finish_non_exhaustive()
    }
}

impl BridgedIndex {
    /// Bridges `index` by what `describe` says.
    pub fn new(index: Arc<dyn ArtifactIndex>, describe: Box<Describe>) -> Self {
        Self { index, describe, waiting: Mutex::new(BTreeMap::new()) }
    }

    /// Writes the rows that wait; to be called every few seconds. Costs nothing while none
    /// does.
    ///
    /// # Errors
    /// [`IndexError`] where the index is still away, or the store is; what is left waits on.
    pub fn catch_up(&self) -> Result<(), IndexError> {
        let keys: Vec<ArtifactKey> = self.waiting().keys().cloned().collect();
        for key in keys {
            let Some(entry) = self.waiting().get(&key).cloned() else { continue };
            if !self.write_late(&key, &entry)? {
                tracing::info!(artifact = %key, "a row that waited is not written: its object was replaced, or a newer row stands there");
            }
            let mut waiting = self.waiting();
            // It may have been put once more meanwhile.
            if waiting.get(&key) == Some(&entry) {
                waiting.remove(&key);
            }
        }
        Ok(())
    }

    fn write_late(&self, key: &ArtifactKey, entry: &Entry) -> Result<bool, IndexError> {
        let there = (self.describe)(key, &entry.blob)
            .map_err(|source| IndexError::Unavailable { operation: "catch up", source })?;
        if there.is_none_or(|there| there.version != entry.version) {
            return Ok(false);
        }
        let row = self.index.get(key)?;
        let is_known = row.as_ref().is_some_and(|row| {
            row.version == entry.version && row.validated_at >= entry.validated_at
        });
        if is_known {
            return Ok(false);
        }
        let put = self.index.put(key, entry, row.map(|row| row.generation))?;
        Ok(matches!(put, Put::Stored(_)))
    }

    fn waiting(&self) -> MutexGuard<'_, BTreeMap<ArtifactKey, Entry>> {
        self.waiting.lock().expect("nothing can panic while it holds the rows")
    }

    /// The row without the index; `away` where that can't be told either.
    fn stand_in(&self, key: &ArtifactKey, away: IndexError) -> Result<Option<Entry>, IndexError> {
        let waiting = self.waiting().get(key).cloned();
        let found = match waiting {
            Some(entry) => Some(entry),
            None => (self.describe)(key, &BlobKey::of(key)).map_err(|_| away)?,
        };
        Ok(found.map(|entry| Entry { generation: STAND_IN, ..entry }))
    }

    fn wait(&self, key: &ArtifactKey, entry: &Entry, away: IndexError) -> Result<Put, IndexError> {
        let mut waiting = self.waiting();
        if waiting.len() >= WAITING_MAX && !waiting.contains_key(key) {
            return Err(away);
        }
        if waiting.is_empty() {
            tracing::warn!(artifact = %key, error = chain(&away), "the index does not take a row: it and those that follow wait in memory");
        }
        waiting.insert(key.clone(), Entry { generation: STAND_IN, ..entry.clone() });
        Ok(Put::Stored(STAND_IN))
    }
}

impl ArtifactIndex for BridgedIndex {
    fn get(&self, key: &ArtifactKey) -> Result<Option<Entry>, IndexError> {
        let row = match self.index.get(key) {
            Err(away @ IndexError::Unavailable { .. }) => return self.stand_in(key, away),
            row => row?,
        };
        // The index is back, and has not caught up yet.
        let waiting = self.waiting().get(key).cloned();
        Ok(match (waiting, row) {
            (Some(waiting), None) => Some(Entry { generation: STAND_IN, ..waiting }),
            (Some(waiting), Some(row)) if waiting.validated_at > row.validated_at => {
                Some(Entry { generation: row.generation, ..waiting })
            }
            (_, row) => row,
        })
    }

    fn recorded(&self, key: &ArtifactKey) -> Result<Option<Entry>, IndexError> {
        self.index.recorded(key)
    }

    fn put(
        &self,
        key: &ArtifactKey,
        entry: &Entry,
        replaces: Option<u64>,
    ) -> Result<Put, IndexError> {
        let put = if replaces == Some(STAND_IN) {
            // Read while the index was away: it replaces whatever stands there.
            self.index
                .get(key)
                .and_then(|row| self.index.put(key, entry, row.map(|row| row.generation)))
        } else {
            self.index.put(key, entry, replaces)
        };
        match put {
            Err(away @ IndexError::Unavailable { .. }) => self.wait(key, entry, away),
            put => {
                if matches!(put, Ok(Put::Stored(_))) {
                    self.waiting().remove(key);
                }
                put
            }
        }
    }

    fn remove(&self, key: &ArtifactKey, generation: u64) -> Result<bool, IndexError> {
        let waited = self.waiting().remove(key).is_some();
        if generation == STAND_IN {
            return Ok(waited);
        }
        self.index.remove(key, generation)
    }

    fn scan(
        &self,
        query: &Scan,
        visit: &mut dyn FnMut(Row) -> ControlFlow<()>,
    ) -> Result<(), IndexError> {
        self.index.scan(query, visit)
    }

    fn touch(&self, uses: &[Use]) -> Result<(), IndexError> {
        self.index.touch(uses)
    }

    fn usage(&self) -> Result<BTreeMap<RemoteName, Usage>, IndexError> {
        self.index.usage()
    }

    fn least_used(
        &self,
        query: &LeastUsed,
        visit: &mut dyn FnMut(Row) -> ControlFlow<()>,
    ) -> Result<(), IndexError> {
        self.index.least_used(query, visit)
    }

    /// Fails while the row waits: it would be lost with the process, and its artifact stay unknown
    /// until `reindex`.
    fn persist(&self, key: &ArtifactKey) -> Result<(), IndexError> {
        if self.waiting().contains_key(key) {
            let source = "it waits for the index to be back".into();
            return Err(IndexError::Unavailable { operation: "vouch for a row", source });
        }
        self.index.persist(key)
    }

    /// Also whether it has taken the rows that waited: one that is read-only or full answers.
    fn probe(&self) -> Result<(), IndexError> {
        self.index.probe()?;
        match self.waiting().len() {
            0 => Ok(()),
            rows => Err(IndexError::Unavailable {
                operation: "take rows",
                source: format!("{rows} wait in memory to be written").into(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::artifact::{ArtifactPath, BlobVersion, Digest, Validators};
    use crate::blob::{BlobStore, s3};
    use crate::index::memory::MemoryIndex;
    use crate::index::postgres::tests::Database;
    use crate::test_servers::{Private, eventually, shared};

    crate::index::conformance::index_conformance!(|| {
        let index = Arc::new(MemoryIndex::new());
        (BridgedIndex::new(index, Box::new(|_: &ArtifactKey, _: &BlobKey| Ok(None))), ())
    });

    /// An index that a test can take away.
    #[derive(Debug)]
    struct Far {
        inner: MemoryIndex,
        away: AtomicBool,
    }

    impl Far {
        fn there(&self) -> Result<&MemoryIndex, IndexError> {
            if self.away.load(Ordering::Relaxed) {
                return Err(IndexError::Unavailable { operation: "answer", source: "away".into() });
            }
            Ok(&self.inner)
        }
    }

    impl ArtifactIndex for Far {
        fn get(&self, key: &ArtifactKey) -> Result<Option<Entry>, IndexError> {
            self.there()?.get(key)
        }

        fn put(
            &self,
            key: &ArtifactKey,
            entry: &Entry,
            replaces: Option<u64>,
        ) -> Result<Put, IndexError> {
            self.there()?.put(key, entry, replaces)
        }

        fn remove(&self, key: &ArtifactKey, generation: u64) -> Result<bool, IndexError> {
            self.there()?.remove(key, generation)
        }

        fn scan(
            &self,
            query: &Scan,
            visit: &mut dyn FnMut(Row) -> ControlFlow<()>,
        ) -> Result<(), IndexError> {
            self.there()?.scan(query, visit)
        }

        fn touch(&self, uses: &[Use]) -> Result<(), IndexError> {
            self.there()?.touch(uses)
        }

        fn usage(&self) -> Result<BTreeMap<RemoteName, Usage>, IndexError> {
            self.there()?.usage()
        }

        fn least_used(
            &self,
            query: &LeastUsed,
            visit: &mut dyn FnMut(Row) -> ControlFlow<()>,
        ) -> Result<(), IndexError> {
            self.there()?.least_used(query, visit)
        }

        fn probe(&self) -> Result<(), IndexError> {
            self.there()?.probe()
        }
    }

    /// What the store describes, by artifact; none at all while it is away, too.
    type Store = Arc<Mutex<Option<BTreeMap<ArtifactKey, Entry>>>>;

    struct Bench {
        far: Arc<Far>,
        store: Store,
        index: BridgedIndex,
    }

    impl Bench {
        fn new() -> Self {
            let far = Arc::new(Far { inner: MemoryIndex::new(), away: AtomicBool::new(false) });
            let store: Store = Arc::new(Mutex::new(Some(BTreeMap::new())));
            let described = Arc::clone(&store);
            let describe = move |key: &ArtifactKey, blob: &BlobKey| {
                let store = described.lock().unwrap();
                let found = store.as_ref().ok_or("away")?.get(key);
                Ok(found.filter(|entry| entry.blob == *blob).cloned())
            };
            let index = BridgedIndex::new(Arc::clone(&far) as _, Box::new(describe));
            Self { far, store, index }
        }

        fn publish(&self, key: &ArtifactKey, entry: &Entry) {
            self.store.lock().unwrap().as_mut().unwrap().insert(key.clone(), entry.clone());
        }

        fn go_away(&self) {
            self.far.away.store(true, Ordering::Relaxed);
        }

        fn come_back(&self) {
            self.far.away.store(false, Ordering::Relaxed);
        }

        /// The row in the index itself.
        fn row(&self, key: &ArtifactKey) -> Option<Entry> {
            self.far.inner.get(key).unwrap()
        }
    }

    fn key(path: &str) -> ArtifactKey {
        let path = ArtifactPath::from_canonical(path).unwrap();
        ArtifactKey { remote: "r".parse().unwrap(), path }
    }

    fn entry(key: &ArtifactKey, version: &str, validated: u64) -> Entry {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        Entry {
            blob: BlobKey::of(key),
            version: BlobVersion(version.to_owned()),
            size: 1,
            digest: Digest::of(version.as_bytes()),
            content_type: None,
            content_encoding: None,
            validators: Validators::default(),
            stored_at: at(1),
            validated_at: at(validated),
            head: None,
            generation: STAND_IN,
            unproven: false,
        }
    }

    #[test]
    fn while_the_index_is_away_objects_say_what_they_are() {
        let bench = Bench::new();
        let (known, unknown) = (key("known"), key("unknown"));
        bench.publish(&known, &Entry { generation: 77, ..entry(&known, "v", 1) });
        assert_eq!(
            bench.index.get(&known).unwrap(),
            None,
            "the index is believed while it is there"
        );
        bench.go_away();
        assert_eq!(bench.index.get(&known).unwrap(), Some(entry(&known, "v", 1)));
        assert_eq!(bench.index.get(&unknown).unwrap(), None);
        assert!(bench.index.probe().is_err());
        assert!(bench.index.touch(&[]).is_err());
        *bench.store.lock().unwrap() = None;
        assert!(matches!(bench.index.get(&known), Err(IndexError::Unavailable { .. })));
    }

    #[test]
    fn rows_that_were_put_meanwhile_are_written_when_it_is_back() {
        let bench = Bench::new();
        let (new, old) = (key("new"), key("old"));
        bench.index.put(&old, &entry(&old, "v1", 1), None).unwrap();
        bench.go_away();
        for key in [&new, &old] {
            let entry = entry(key, "v2", 2);
            bench.publish(key, &entry);
            assert_eq!(bench.index.put(key, &entry, Some(5)).unwrap(), Put::Stored(STAND_IN));
            assert_eq!(bench.index.get(key).unwrap(), Some(entry));
        }
        assert!(bench.index.catch_up().is_err());
        assert!(bench.index.persist(&new).is_err(), "rows that wait are lost with the process");
        bench.come_back();
        let unwritten = bench.index.get(&old).unwrap().unwrap();
        assert_eq!(unwritten.version.0, "v2", "what waits is newer than the row");
        assert_ne!(unwritten.generation, STAND_IN);
        bench.index.catch_up().unwrap();
        bench.index.persist(&new).unwrap();
        for key in [&new, &old] {
            assert_eq!(bench.row(key).unwrap().version.0, "v2");
        }
        assert_eq!(bench.index.waiting().len(), 0);
    }

    #[test]
    fn what_waits_never_overrules_the_store_or_a_newer_row() {
        let bench = Bench::new();
        let (replaced, gone, confirmed) = (key("replaced"), key("gone"), key("confirmed"));
        bench.go_away();
        for key in [&replaced, &gone, &confirmed] {
            bench.index.put(key, &entry(key, "ours", 2), None).unwrap();
        }
        bench.come_back();
        bench.publish(&replaced, &entry(&replaced, "another replica's", 3));
        bench.publish(&confirmed, &entry(&confirmed, "ours", 2));
        bench.far.inner.put(&confirmed, &entry(&confirmed, "ours", 3), None).unwrap();
        bench.index.catch_up().unwrap();
        assert_eq!((bench.row(&replaced), bench.row(&gone)), (None, None));
        let row = bench.row(&confirmed).unwrap();
        assert_eq!(row.validated_at, entry(&confirmed, "ours", 3).validated_at);
        assert_eq!(bench.index.waiting().len(), 0);
    }

    #[test]
    fn a_row_whose_blob_lies_under_its_url_is_written_late_too() {
        let bench = Bench::new();
        let key = key("a");
        let blob = BlobKey::of_url("https://files.example.org/a").unwrap();
        let entry = Entry { blob, ..entry(&key, "v", 2) };
        bench.go_away();
        bench.publish(&key, &entry);
        bench.index.put(&key, &entry, None).unwrap();
        bench.come_back();
        bench.index.catch_up().unwrap();
        assert_eq!(bench.row(&key).unwrap().blob, entry.blob);
    }

    #[test]
    fn what_waits_does_not_hide_a_newer_row() {
        let bench = Bench::new();
        let key = key("a");
        bench.go_away();
        bench.index.put(&key, &entry(&key, "ours", 2), None).unwrap();
        bench.come_back();
        bench.far.inner.put(&key, &entry(&key, "another replica's", 3), None).unwrap();
        assert_eq!(bench.index.get(&key).unwrap().unwrap().version.0, "another replica's");
    }

    #[test]
    fn a_row_that_was_read_without_the_index_replaces_what_stands_there() {
        let bench = Bench::new();
        let key = key("a");
        bench.index.put(&key, &entry(&key, "v1", 1), None).unwrap();
        let put = bench.index.put(&key, &entry(&key, "v2", 2), Some(STAND_IN)).unwrap();
        assert!(matches!(put, Put::Stored(generation) if generation != STAND_IN), "{put:?}");
        assert_eq!(bench.row(&key).unwrap().version.0, "v2");
        assert!(!bench.index.remove(&key, STAND_IN).unwrap());
        assert!(bench.row(&key).is_some());
    }

    #[test]
    fn as_many_rows_wait_as_may_and_no_more() {
        let bench = Bench::new();
        bench.go_away();
        for number in 0..WAITING_MAX {
            let key = key(&number.to_string());
            bench.index.put(&key, &entry(&key, "v", 1), None).unwrap();
        }
        let more = key("one too many");
        assert!(bench.index.put(&more, &entry(&more, "v", 1), None).is_err());
        let again = key("0");
        assert!(bench.index.put(&again, &entry(&again, "w", 2), None).is_ok());
        assert!(bench.index.remove(&again, STAND_IN).unwrap());
        assert_eq!(bench.index.waiting().len(), WAITING_MAX - 1);
    }

    #[test]
    fn while_the_database_is_away_objects_in_s3_stand_in_and_rows_are_written_when_it_is_back() {
        let server = Private::start("postgres");
        let database = Database::on(server.variable("ARTIFACTAPI_TEST_POSTGRES"));
        let (store, _bucket) = s3::tests::Bucket::on(&shared("ARTIFACTAPI_TEST_S3"));
        let store = Arc::new(store);
        let described = Arc::clone(&store);
        let describe = move |key: &ArtifactKey, blob: &BlobKey| {
            let meta = described.stat(blob)?;
            Ok(meta.and_then(|meta| meta.entry_of(key)))
        };
        let index = BridgedIndex::new(Arc::new(database.index()), Box::new(describe));
        let publish = |path: &str| {
            let folder = tempfile::tempdir().unwrap();
            let sealed = s3::tests::sealed(&folder, path.as_bytes());
            let about = s3::tests::about(path, sealed.digest());
            let version = store.publish(&BlobKey::of(&key(path)), &sealed, &about).unwrap();
            let meta = store.stat(&BlobKey::of(&key(path))).unwrap().unwrap();
            assert_eq!(meta.version, version);
            meta.entry_of(&key(path)).unwrap()
        };
        let before = publish("before");
        index.put(&key("before"), &before, None).unwrap();

        server.tell("kill", "postgres");
        let found = index.get(&key("before")).unwrap().unwrap();
        assert_eq!((&found.version, found.digest), (&before.version, before.digest));
        assert_eq!(index.get(&key("meanwhile")).unwrap(), None, "a miss, which is fetched");
        let meanwhile = publish("meanwhile");
        index.put(&key("meanwhile"), &meanwhile, None).unwrap();
        let found = index.get(&key("meanwhile")).unwrap().unwrap();
        assert_eq!(found.version, meanwhile.version);

        server.tell("start", "postgres");
        eventually("the index catches up", || index.catch_up().is_ok());
        let row = database.index().get(&key("meanwhile")).unwrap().unwrap();
        assert_eq!(row.version, meanwhile.version);
        index.probe().unwrap();
    }
}
