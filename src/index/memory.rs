//! Rows in memory: the reference that tests of the rooms above run on.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::micros::{micros_of, time_of};
use super::{ArtifactIndex, IndexError, LeastUsed, Position, Put, Row, Scan, Usage, Use};
use crate::artifact::{ArtifactKey, Entry, RemoteName};

/// An index in memory.
#[derive(Debug, Default)]
pub struct MemoryIndex {
    // Guards the table for single steps only; nothing else is taken under it.
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    last_generation: u64,
    rows: BTreeMap<ArtifactKey, Row>,
}

impl MemoryIndex {
    /// An empty index.
    pub fn new() -> Self {
        Self::default()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ArtifactIndex for MemoryIndex {
    fn get(&self, key: &ArtifactKey) -> Result<Option<Entry>, IndexError> {
        Ok(self.table().rows.get(key).map(|row| row.entry.clone()))
    }

    fn put(
        &self,
        key: &ArtifactKey,
        entry: &Entry,
        replaces: Option<u64>,
    ) -> Result<Put, IndexError> {
        let mut table = self.table();
        let found = table.rows.get(key);
        if found.map(|row| row.entry.generation) != replaces {
            return Ok(Put::Superseded(found.map(|row| row.entry.clone())));
        }
        let used = found.filter(|row| row.hits > 0).map(|row| (row.last_used, row.hits));
        table.last_generation += 1;
        let generation = table.last_generation;
        let entry = Entry {
            stored_at: time_of(micros_of(entry.stored_at)),
            validated_at: time_of(micros_of(entry.validated_at)),
            generation,
            ..entry.clone()
        };
        let (last_used, hits) = used.unwrap_or((entry.stored_at, 0));
        table.rows.insert(key.clone(), Row { key: key.clone(), entry, last_used, hits });
        Ok(Put::Stored(generation))
    }

    fn remove(&self, key: &ArtifactKey, generation: u64) -> Result<bool, IndexError> {
        let mut table = self.table();
        let fits = table.rows.get(key).is_some_and(|row| row.entry.generation == generation);
        Ok(fits && table.rows.remove(key).is_some())
    }

    fn scan(
        &self,
        query: &Scan,
        visit: &mut dyn FnMut(Row) -> ControlFlow<()>,
    ) -> Result<(), IndexError> {
        let asked_for = |row: &&Row| {
            let path = row.key.path.as_str();
            query.remote.as_ref().is_none_or(|remote| row.key.remote == *remote)
                && path.starts_with(&query.prefix)
                && query.after.as_ref().is_none_or(|after| path > after.as_str())
        };
        // A copy, because `visit` may come back to the index.
        let shown: Vec<Row> = self.table().rows.values().filter(asked_for).cloned().collect();
        let _broken_off = shown.into_iter().try_for_each(visit);
        Ok(())
    }

    fn touch(&self, uses: &[Use]) -> Result<(), IndexError> {
        let mut table = self.table();
        for used in uses {
            if let Some(row) = table.rows.get_mut(&used.key) {
                let last = time_of(micros_of(used.last));
                row.last_used = if row.hits == 0 { last } else { row.last_used.max(last) };
                row.hits = row.hits.saturating_add(used.hits);
            }
        }
        Ok(())
    }

    fn usage(&self) -> Result<BTreeMap<RemoteName, Usage>, IndexError> {
        let mut usage = BTreeMap::<RemoteName, Usage>::new();
        for row in self.table().rows.values() {
            let of_remote = usage.entry(row.key.remote.clone()).or_default();
            of_remote.artifacts += 1;
            of_remote.bytes = of_remote.bytes.saturating_add(row.entry.size);
            of_remote.hits = of_remote.hits.saturating_add(row.hits);
        }
        Ok(usage)
    }

    fn least_used(
        &self,
        query: &LeastUsed,
        visit: &mut dyn FnMut(Row) -> ControlFlow<()>,
    ) -> Result<(), IndexError> {
        let position =
            |row: &Row| Position { recency: row.recency(), path: row.key.path.to_string() };
        let asked_for = |row: &&Row| {
            row.key.remote == query.remote
                && query.behind.as_ref().is_none_or(|behind| position(row) > *behind)
        };
        let mut shown: Vec<Row> = self.table().rows.values().filter(asked_for).cloned().collect();
        shown.sort_by_cached_key(position);
        let _broken_off = shown.into_iter().try_for_each(visit);
        Ok(())
    }

    fn probe(&self) -> Result<(), IndexError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::MemoryIndex;

    crate::index::conformance::index_conformance!(|| (MemoryIndex::new(), ()));
}
