//! What an operator sets of the index on PostgreSQL.

use std::path::PathBuf;
use std::time::Duration;

use crate::config::Secret;
use crate::config::env::SslMode;

/// Where the database is and how patient to be with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PostgresSettings {
    /// Host name or address (`DBHOST`).
    pub host: String,
    /// Port (`DBPORT`), 5432 as a rule.
    pub port: u16,
    /// Role (`DBUSER`).
    pub user: String,
    /// Its password (`DBPASS`); empty for none.
    pub password: Secret,
    /// Database (`DBNAME`), which must exist; the tables are created in it.
    pub database: String,
    /// How far to insist on TLS (`DBSSLMODE`).
    pub ssl_mode: SslMode,
    /// Further root certificates, a PEM file, beside the platform's.
    pub ca_file: Option<PathBuf>,
    /// Most connections at once.
    pub connections_max: usize,
    /// For a connection.
    pub connect_timeout: Duration,
    /// For one statement. The server enforces it; a server that is silent
    /// altogether is given up after this and `connect_timeout` together.
    pub statement_timeout: Duration,
}

impl PostgresSettings {
    /// Settings with the defaults: port 5432, `prefer`, 8 connections, 1 s to connect, 2 s for
    /// a statement.
    pub fn new(
        host: impl Into<String>,
        user: impl Into<String>,
        password: Secret,
        database: impl Into<String>,
    ) -> Self {
        Self {
            host: host.into(),
            port: 5432,
            user: user.into(),
            password,
            database: database.into(),
            ssl_mode: SslMode::Prefer,
            ca_file: None,
            connections_max: 8,
            connect_timeout: Duration::from_secs(1),
            statement_timeout: Duration::from_secs(2),
        }
    }
}
