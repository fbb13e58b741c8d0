//! The tables: created and migrated by the program itself.
//!
//! Any number of replicas may start at once: an advisory lock lets one migrate while the
//! others wait and then find it done. During a rolling upgrade older replicas go on with the
//! new tables, so a migration must leave their statements working: add, and remove a release
//! later.

use postgres::Client;
use postgres::error::SqlState;

/// The migrations in their order; version n is the nth. One that was released never changes.
const MIGRATIONS: &[&str] =
    &[include_str!("schema_1.sql"), include_str!("schema_2.sql"), include_str!("schema_3.sql")];
/// The advisory lock that one replica migrates under; any number that no other program uses.
const LOCK: i64 = 0x6172_7469_6661_6374;
/// How long a migration, and waiting for another replica's, may take.
const MIGRATION_SECONDS_MAX: u32 = 600;

/// Why the tables can't be used.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// A newer release has migrated them.
    #[error(
        "the database's tables are of version {found} and this release knows {known}: run the newer release, or give this one another database"
    )]
    Newer {
        /// Their version.
        found: i32,
        /// The last one that this release knows.
        known: i32,
    },
    /// The database refused, or broke off.
    #[error("cannot {step} the tables of the index")]
    Database {
        /// What was tried.
        step: &'static str,
        /// Why.
        source: postgres::Error,
    },
}

/// Brings the tables to the version that this release knows.
///
/// # Errors
/// [`SchemaError`]; nothing is left half done.
pub(super) fn migrate(client: &mut Client) -> Result<(), SchemaError> {
    migrate_to(client, MIGRATIONS)
}

fn migrate_to(client: &mut Client, migrations: &[&str]) -> Result<(), SchemaError> {
    let known = i32::try_from(migrations.len()).expect("there are a few migrations");
    // Mostly there is nothing to do, and that takes no lock.
    match version(client)? {
        Some(found) if found > known => return Err(SchemaError::Newer { found, known }),
        Some(found) if found == known => return Ok(()),
        _ => {}
    }
    let step = |step| move |source| SchemaError::Database { step, source };
    let mut transaction = client.transaction().map_err(step("migrate"))?;
    transaction
        .batch_execute(&format!(
            "SET LOCAL statement_timeout = '{MIGRATION_SECONDS_MAX}s'; \
             SELECT pg_advisory_xact_lock({LOCK}); \
             CREATE TABLE IF NOT EXISTS artifactapi_schema ( \
                 version integer PRIMARY KEY, \
                 applied_at timestamptz NOT NULL DEFAULT now())"
        ))
        .map_err(step("lock"))?;
    let found: i32 = transaction
        .query_one("SELECT coalesce(max(version), 0) FROM artifactapi_schema", &[])
        .map_err(step("read the version of"))?
        .get(0);
    if found > known {
        return Err(SchemaError::Newer { found, known });
    }
    for version in found + 1..=known {
        let sql = migrations[version as usize - 1];
        transaction.batch_execute(sql).map_err(step("migrate"))?;
        transaction
            .execute("INSERT INTO artifactapi_schema (version) VALUES ($1)", &[&version])
            .map_err(step("migrate"))?;
        tracing::info!(version, "migrated the tables of the index");
    }
    transaction.commit().map_err(step("migrate"))
}

fn version(client: &mut Client) -> Result<Option<i32>, SchemaError> {
    match client.query_one("SELECT max(version) FROM artifactapi_schema", &[]) {
        Ok(row) => Ok(row.get(0)),
        Err(error) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => Ok(None),
        Err(source) => Err(SchemaError::Database { step: "read the version of", source }),
    }
}
