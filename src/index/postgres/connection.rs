//! One connection and the statements that are prepared on it.

use std::error::Error as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use postgres::error::SqlState;
use postgres::{Client, Config, Statement};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::schema::{self, SchemaError};
use super::settings::PostgresSettings;
use super::tls::{self, TlsError};
use crate::breaker::Open;
use crate::config::env::SslMode;

/// How the database's own views name us.
const APPLICATION_NAME: &str = "artifactapi";
/// After how much silence the kernel asks whether the peer is still there.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
/// How long the kernel waits for what we sent to be acknowledged.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(10);

/// Why the database did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    /// No connection could be made.
    #[error("cannot connect to PostgreSQL at {address}")]
    Connect {
        /// Host and port.
        address: String,
        /// Why.
        source: postgres::Error,
    },
    /// A statement failed, or the connection broke under it.
    #[error("PostgreSQL failed")]
    Statement(#[from] postgres::Error),
    /// The server gave up what takes no time.
    #[error("the database is held up")]
    Stuck(#[source] postgres::Error),
    /// It was silent for too long.
    #[error("PostgreSQL did not answer within {} ms", .0.as_millis())]
    TimedOut(Duration),
    /// More callers wait for a connection than may.
    #[error("all connections to PostgreSQL are in use and too many callers wait")]
    Busy,
    /// It was not asked.
    #[error(transparent)]
    NotAsked(#[from] Open),
    /// Its tables can't be used.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// TLS can't be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// No thread could be started for a connection.
    #[error("cannot start a thread for a connection to PostgreSQL")]
    Thread(#[source] std::io::Error),
}

impl PostgresError {
    /// Whether starting goes wrong in a way that waiting does not mend.
    pub fn is_permanent(&self) -> bool {
        matches!(self, Self::Tls(_) | Self::Schema(SchemaError::Newer { .. }))
    }

    /// Whether the connection is of no more use, so that another one may do better.
    pub(super) fn is_broken(&self) -> bool {
        match self {
            Self::Statement(error) | Self::Schema(SchemaError::Database { source: error, .. }) => {
                breaks(error)
            }
            _ => false,
        }
    }

    /// Whether the database itself said so, which leaves the connection as it was.
    pub(super) fn is_an_answer(&self) -> bool {
        !self.is_broken() && matches!(self, Self::Statement(error) if error.as_db_error().is_some())
    }

    /// Whether the server is away, in contrast to one that answers "no".
    pub(super) fn is_absence(&self) -> bool {
        matches!(self, Self::Connect { .. } | Self::TimedOut(_) | Self::Stuck(_))
            || self.is_broken()
    }

    /// Of a look-up: given up by the server, it tells that somebody holds the table, and that the
    /// next one would wait as long.
    pub(super) fn of_look_up(self) -> Self {
        match self {
            Self::Statement(error) if error.code() == Some(&SqlState::QUERY_CANCELED) => {
                Self::Stuck(error)
            }
            other => other,
        }
    }
}

/// A connection that broke, or the server saying that it goes down or is not up yet.
fn breaks(error: &postgres::Error) -> bool {
    match error.code() {
        None => error.is_closed() || error.source().is_some_and(|why| why.is::<std::io::Error>()),
        Some(code) => {
            code.code().starts_with("08")
                || [
                    SqlState::ADMIN_SHUTDOWN,
                    SqlState::CRASH_SHUTDOWN,
                    SqlState::CANNOT_CONNECT_NOW,
                    SqlState::IDLE_SESSION_TIMEOUT,
                ]
                .contains(code)
        }
    }
}

/// Makes connections, and sees to the tables with the first.
pub(super) struct Connector {
    config: Config,
    tls: MakeRustlsConnect,
    address: String,
    statement_timeout: Duration,
    tables_are_there: AtomicBool,
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connector").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Connector {
    /// # Errors
    /// [`TlsError`] where certificates can't be read.
    pub(super) fn new(settings: &PostgresSettings) -> Result<Self, TlsError> {
        let mut config = Config::new();
        config
            .host(&settings.host)
            .port(settings.port)
            .user(&settings.user)
            .password(settings.password.reveal())
            .dbname(&settings.database)
            .application_name(APPLICATION_NAME)
            .connect_timeout(settings.connect_timeout)
            .keepalives_idle(KEEPALIVE_IDLE)
            .tcp_user_timeout(UNACKNOWLEDGED_MAX)
            .ssl_mode(match settings.ssl_mode {
                SslMode::Disable => postgres::config::SslMode::Disable,
                SslMode::Prefer => postgres::config::SslMode::Prefer,
                SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => {
                    postgres::config::SslMode::Require
                }
            });
        Ok(Self {
            config,
            tls: tls::connector(settings.ssl_mode, settings.ca_file.as_deref())?,
            address: format!("{}:{}", settings.host, settings.port),
            statement_timeout: settings.statement_timeout,
            tables_are_there: AtomicBool::new(false),
        })
    }

    /// A connection whose tables are there.
    pub(super) fn connect(&self) -> Result<Connection, PostgresError> {
        let connect_error =
            |source| PostgresError::Connect { address: self.address.clone(), source };
        let mut client = self.config.connect(self.tls.clone()).map_err(connect_error)?;
        let timeout_ms = self.statement_timeout.as_millis();
        client
            .batch_execute(&format!("SET statement_timeout = {timeout_ms}"))
            .map_err(connect_error)?;
        if !self.tables_are_there.load(Ordering::Acquire) {
            schema::migrate(&mut client)?;
            self.tables_are_there.store(true, Ordering::Release);
        }
        Ok(Connection { client, prepared: Default::default() })
    }
}

/// A connection, used by one thread.
pub(super) struct Connection {
    client: Client,
    prepared: [Option<Statement>; Sql::COUNT],
}

impl Connection {
    /// Whether it is known to be of no more use.
    pub(super) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// The client and a statement that is prepared on it, at its first use.
    pub(super) fn with(&mut self, sql: Sql) -> Result<(&mut Client, Statement), postgres::Error> {
        let slot = &mut self.prepared[sql as usize];
        let statement = match slot {
            Some(statement) => statement.clone(),
            None => slot.insert(self.client.prepare(sql.text())?).clone(),
        };
        Ok((&mut self.client, statement))
    }
}

/// Every statement of the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sql {
    Get,
    Insert,
    Update,
    Remove,
    NextRemote,
    Page,
    LeastUsed,
    Usage,
    Touch,
    Probe,
}

/// What a row is read from, in this order.
macro_rules! columns {
    () => {
        "path, blob_key, blob_version, size_bytes, sha256, content_type, content_encoding, etag, \
         last_modified, stored_at_us, validated_at_us, head_sha256, generation, unproven, \
         coalesce(last_used_us, stored_at_us), hits"
    };
}

impl Sql {
    const COUNT: usize = Self::Probe as usize + 1;

    pub(super) const fn text(self) -> &'static str {
        match self {
            Self::Get => concat!(
                "SELECT ",
                columns!(),
                " FROM artifact WHERE remote = $1 AND path_sha256 = $2"
            ),
            Self::Insert => {
                "INSERT INTO artifact (remote, path_sha256, path, blob_key, blob_version, \
                     size_bytes, sha256, content_type, content_encoding, etag, last_modified, \
                     stored_at_us, validated_at_us, head_sha256, unproven) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15) \
                 ON CONFLICT DO NOTHING RETURNING generation"
            }
            // The path is given for one list of parameters; equal hashes mean equal paths.
            Self::Update => {
                "UPDATE artifact SET path = $3, blob_key = $4, blob_version = $5, \
                     size_bytes = $6, sha256 = $7, content_type = $8, content_encoding = $9, \
                     etag = $10, last_modified = $11, stored_at_us = $12, validated_at_us = $13, \
                     head_sha256 = $14, unproven = $15, \
                     generation = nextval('artifact_generation') \
                 WHERE remote = $1 AND path_sha256 = $2 AND generation = $16 \
                 RETURNING generation"
            }
            Self::Remove => {
                "DELETE FROM artifact WHERE remote = $1 AND path_sha256 = $2 AND generation = $3"
            }
            Self::NextRemote => {
                "SELECT remote FROM artifact WHERE remote > $1 ORDER BY remote LIMIT 1"
            }
            // $2 is where the page begins, $3 its beginning as the index has it.
            Self::Page => concat!(
                "SELECT ",
                columns!(),
                " FROM artifact \
                 WHERE remote = $1 AND left(path, 512) >= $3 \
                     AND (path > $2 OR ($4 AND path = $2)) \
                 ORDER BY left(path, 512), path LIMIT $5"
            ),
            // $2 and $3 are the moment and the path that the page begins behind.
            Self::LeastUsed => concat!(
                "SELECT ",
                columns!(),
                ", greatest(stored_at_us, coalesce(last_used_us, stored_at_us)) AS recency_us \
                 FROM artifact WHERE remote = $1 \
                     AND greatest(stored_at_us, coalesce(last_used_us, stored_at_us)) >= $2 \
                     AND (greatest(stored_at_us, coalesce(last_used_us, stored_at_us)) > $2 \
                         OR path > $3) \
                 ORDER BY recency_us, path LIMIT $4"
            ),
            // Sums stop at what a bigint holds.
            Self::Usage => {
                "SELECT remote, sum(artifacts)::bigint, \
                     least(sum(bytes), 9223372036854775807)::bigint, \
                     least(sum(hits), 9223372036854775807)::bigint \
                 FROM artifact_usage GROUP BY remote HAVING sum(artifacts) > 0"
            }
            // Locked in one order, so that two replicas never wait for each other.
            Self::Touch => {
                "WITH used AS ( \
                     SELECT a.remote, a.path_sha256, u.hits, u.last_us \
                     FROM unnest($1::text[], $2::bytea[], $3::bigint[], $4::bigint[]) \
                         AS u(remote, path_sha256, hits, last_us) \
                     JOIN artifact a ON a.remote = u.remote AND a.path_sha256 = u.path_sha256 \
                     ORDER BY a.remote, a.path_sha256 FOR NO KEY UPDATE OF a) \
                 UPDATE artifact SET hits = artifact.hits + used.hits, \
                     last_used_us = greatest(artifact.last_used_us, used.last_us) \
                 FROM used \
                 WHERE artifact.remote = used.remote \
                     AND artifact.path_sha256 = used.path_sha256"
            }
            Self::Probe => "SELECT current_setting('transaction_read_only') = 'off'",
        }
    }
}
