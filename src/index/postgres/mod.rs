//! The index on PostgreSQL: one for any number of replicas.
//!
//! Every call fails within its own bound when the database is silent, and in far less than a
//! millisecond while it is known to be away; what to do then is for the rooms above. A call
//! whose connection breaks is made once more on another, so that a restart of the database
//! is not noticed by callers that come after it. Nothing here is remembered between calls.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

mod connection;
mod pool;
mod row;
mod schema;
mod settings;
#[cfg(test)]
pub(crate) mod tests;
mod tls;

pub use connection::PostgresError;
pub use schema::SchemaError;
pub use settings::PostgresSettings;
pub use tls::TlsError;

use crate::artifact::{ArtifactKey, Digest, Entry, RemoteName};
use crate::chain::chain;
use crate::index::micros::micros_of;
use crate::index::paging::{self, PAGE_ROWS, Page, Pages, Start, UsePlace, undamaged};
use crate::index::{ArtifactIndex, IndexError, LeastUsed, Put, Row, Scan, Usage, Use};
use connection::{Connection, Connector, Sql};
use pool::{Attempt, Pool};
use row::RowValues;

/// Uses that are added up in one statement.
const TOUCH_ROWS_MAX: usize = 1000;
/// Characters of a path in the index that scans follow; the schema says the same.
const SCAN_CHARACTERS: usize = 512;

/// The index on PostgreSQL.
#[derive(Debug)]
pub struct PostgresIndex {
    pool: Pool,
}

impl PostgresIndex {
    /// Opens the index and sees to its tables. A database that does not answer, or that
    /// another replica is migrating for longer than a call may take, is no error: the tables
    /// are seen to when it answers, and [`ArtifactIndex::probe`] tells.
    ///
    /// # Errors
    /// [`PostgresError`] where waiting does not help: certificates that can't be read, tables
    /// of a newer release.
    pub fn open(settings: &PostgresSettings) -> Result<Self, PostgresError> {
        let pool = Pool::new(settings, Connector::new(settings)?);
        match pool.call(|connection, _| takes_rows(connection)) {
            Err(error) if error.is_permanent() => Err(error),
            Err(error) => {
                tracing::warn!(error = %chain(&error), "starting without the index");
                Ok(Self { pool })
            }
            Ok(_) => Ok(Self { pool }),
        }
    }

    fn call<T: Send + 'static>(
        &self,
        operation: &'static str,
        work: impl FnMut(&mut Connection, Attempt) -> Result<T, PostgresError> + Send + 'static,
    ) -> Result<T, IndexError> {
        self.pool
            .call(work)
            .map_err(|error| IndexError::Unavailable { operation, source: Box::new(error) })
    }
}

impl Pages for PostgresIndex {
    fn remote_behind(&self, name: &str) -> Result<Option<String>, IndexError> {
        let name = name.to_owned();
        self.call("scan", move |connection, _| {
            let (client, statement) = connection.with(Sql::NextRemote)?;
            Ok(client.query_opt(&statement, &[&name])?.map(|row| row.get(0)))
        })
    }

    fn by_path(&self, remote: &RemoteName, start: &Start) -> Result<Page<String>, IndexError> {
        let (name, start) = (remote.as_str().to_owned(), start.clone());
        let page = self.call("scan", move |connection, _| {
            let (client, statement) = connection.with(Sql::Page)?;
            let indexed: String = start.path.chars().take(SCAN_CHARACTERS).collect();
            let rows = client.query(
                &statement,
                &[&name, &start.path, &indexed, &start.inclusive, &i64::from(PAGE_ROWS)],
            )?;
            row::all(&rows)
        })?;
        Ok(page.into_iter().map(|row| (row.path.clone(), row.into_row(remote))).collect())
    }

    fn by_use(&self, remote: &RemoteName, behind: &UsePlace) -> Result<Page<UsePlace>, IndexError> {
        let (name, (recency, path)) = (remote.as_str().to_owned(), behind.clone());
        let page = self.call("list by last use", move |connection, _| {
            let (client, statement) = connection.with(Sql::LeastUsed)?;
            let rows =
                client.query(&statement, &[&name, &recency, &path, &i64::from(PAGE_ROWS)])?;
            row::all(&rows)
        })?;
        let place = |row: &RowValues| (row.recency_us(), row.path.clone());
        Ok(page.into_iter().map(|row| (place(&row), row.into_row(remote))).collect())
    }
}

impl ArtifactIndex for PostgresIndex {
    fn get(&self, key: &ArtifactKey) -> Result<Option<Entry>, IndexError> {
        let place = Place::of(key);
        let found = self.call("look up", move |connection, _| {
            look_up(connection, &place).map_err(PostgresError::of_look_up)
        })?;
        found.map(|values| values.into_entry(&key.remote)).transpose()
    }

    fn put(
        &self,
        key: &ArtifactKey,
        entry: &Entry,
        replaces: Option<u64>,
    ) -> Result<Put, IndexError> {
        let (place, wanted) = (Place::of(key), RowValues::of(key, entry));
        let outcome = self.call("put", move |connection, attempt| {
            let generation = match replaces {
                None => insert(connection, &place, &wanted)?,
                Some(generation) => update(connection, &place, &wanted, generation)?,
            };
            if let Some(generation) = generation {
                return Ok(Ok(generation));
            }
            match look_up(connection, &place)? {
                // The connection broke after the first attempt had written the row.
                Some(found) if attempt == Attempt::Again && found.says_the_same(&wanted) => {
                    Ok(Ok(found.generation))
                }
                found => Ok(Err(found)),
            }
        })?;
        match outcome {
            Ok(generation) => Ok(Put::Stored(generation as u64)),
            Err(found) => {
                let entry = found.map(|values| values.into_entry(&key.remote)).transpose()?;
                Ok(Put::Superseded(entry))
            }
        }
    }

    fn remove(&self, key: &ArtifactKey, generation: u64) -> Result<bool, IndexError> {
        let place = Place::of(key);
        self.call("remove", move |connection, _| {
            let (client, statement) = connection.with(Sql::Remove)?;
            let generation = generation as i64;
            let removed =
                client.execute(&statement, &[&place.remote, &place.hash(), &generation])?;
            Ok(removed > 0)
        })
    }

    fn scan(
        &self,
        query: &Scan,
        visit: &mut dyn FnMut(Row) -> ControlFlow<()>,
    ) -> Result<(), IndexError> {
        paging::scan(self, query, visit)
    }

    fn touch(&self, uses: &[Use]) -> Result<(), IndexError> {
        for batch in row::merged(uses).chunks(TOUCH_ROWS_MAX) {
            let mut remotes = Vec::with_capacity(batch.len());
            let mut hashes = Vec::with_capacity(batch.len());
            let mut hits = Vec::with_capacity(batch.len());
            let mut lasts = Vec::with_capacity(batch.len());
            for used in batch {
                let place = Place::of(&used.key);
                remotes.push(place.remote);
                hashes.push(place.path_sha256.0.to_vec());
                hits.push(i64::try_from(used.hits).unwrap_or(i64::MAX));
                lasts.push(micros_of(used.last));
            }
            // Made again after a break it may count twice: hits are "about".
            self.call("count uses", move |connection, _| {
                let (client, statement) = connection.with(Sql::Touch)?;
                client.execute(&statement, &[&remotes, &hashes, &hits, &lasts])?;
                Ok(())
            })?;
        }
        Ok(())
    }

    fn usage(&self) -> Result<BTreeMap<RemoteName, Usage>, IndexError> {
        let sums = self.call("add up", move |connection, _| {
            let (client, statement) = connection.with(Sql::Usage)?;
            let rows = client.query(&statement, &[])?;
            let sum = |row: &postgres::Row| -> Result<(String, [i64; 3]), postgres::Error> {
                Ok((row.try_get(0)?, [row.try_get(1)?, row.try_get(2)?, row.try_get(3)?]))
            };
            Ok(rows.iter().map(sum).collect::<Result<Vec<_>, _>>()?)
        })?;
        let named = sums.into_iter().filter_map(|(name, sums)| {
            let [artifacts, bytes, hits] = sums.map(|sum| u64::try_from(sum).unwrap_or(0));
            Some((undamaged(name.parse())?, Usage { artifacts, bytes, hits }))
        });
        Ok(named.collect())
    }

    fn least_used(
        &self,
        query: &LeastUsed,
        visit: &mut dyn FnMut(Row) -> ControlFlow<()>,
    ) -> Result<(), IndexError> {
        paging::least_used(self, query, visit)
    }

    /// Also whether it takes rows: a standby does not.
    fn probe(&self) -> Result<(), IndexError> {
        let takes_rows = self.call("answer", |connection, _| {
            takes_rows(connection).map_err(PostgresError::of_look_up)
        })?;
        match takes_rows {
            true => Ok(()),
            false => Err(IndexError::Unavailable {
                operation: "take rows",
                source: "the database is read-only".into(),
            }),
        }
    }
}

/// The primary key of an artifact's row.
struct Place {
    remote: String,
    path_sha256: Digest,
}

impl Place {
    fn of(key: &ArtifactKey) -> Self {
        Self {
            remote: key.remote.as_str().to_owned(),
            path_sha256: Digest::of(key.path.as_str().as_bytes()),
        }
    }

    fn hash(&self) -> &[u8] {
        &self.path_sha256.0
    }
}

fn takes_rows(connection: &mut Connection) -> Result<bool, PostgresError> {
    let (client, statement) = connection.with(Sql::Probe)?;
    Ok(client.query_one(&statement, &[])?.try_get(0)?)
}

fn look_up(connection: &mut Connection, place: &Place) -> Result<Option<RowValues>, PostgresError> {
    let (client, statement) = connection.with(Sql::Get)?;
    let row = client.query_opt(&statement, &[&place.remote, &place.hash()])?;
    Ok(row.as_ref().map(RowValues::read).transpose()?)
}

fn insert(
    connection: &mut Connection,
    place: &Place,
    wanted: &RowValues,
) -> Result<Option<i64>, PostgresError> {
    let (client, statement) = connection.with(Sql::Insert)?;
    let hash = place.hash();
    let row = client.query_opt(&statement, &wanted.parameters(&place.remote, &hash))?;
    Ok(row.map(|row| row.get(0)))
}

fn update(
    connection: &mut Connection,
    place: &Place,
    wanted: &RowValues,
    generation: u64,
) -> Result<Option<i64>, PostgresError> {
    let (client, statement) = connection.with(Sql::Update)?;
    let (hash, generation) = (place.hash(), generation as i64);
    let mut parameters = wanted.parameters(&place.remote, &hash).to_vec();
    parameters.push(&generation);
    let row = client.query_opt(&statement, &parameters)?;
    Ok(row.map(|row| row.get(0)))
}
