//! What an operator sets of the index on PostgreSQL.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::config::Secret;

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

/// How far to insist on TLS: libpq's names and meanings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SslMode {
    /// Never.
    Disable,
    /// Where the server offers it; its certificate is not checked.
    Prefer,
    /// Always; its certificate is checked only where root certificates are named: then as by
    /// `verify-ca`.
    Require,
    /// Always, with a certificate of a known authority, for whatever name.
    VerifyCa,
    /// Always, with a certificate of a known authority for this host.
    VerifyFull,
}

/// Why a text is not an [`SslMode`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no TLS mode: use disable, prefer, require, verify-ca or verify-full")]
pub struct BadSslMode(String);

impl FromStr for SslMode {
    type Err = BadSslMode;

    fn from_str(text: &str) -> Result<Self, BadSslMode> {
        match text {
            "disable" => Ok(Self::Disable),
            "prefer" => Ok(Self::Prefer),
            "require" => Ok(Self::Require),
            "verify-ca" => Ok(Self::VerifyCa),
            "verify-full" => Ok(Self::VerifyFull),
            _ => Err(BadSslMode(text.to_owned())),
        }
    }
}
