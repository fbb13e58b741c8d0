//! The environment variables: one table for reading, messages and documentation.
//!
//! The variables come through a lookup function, so that nothing here touches the process.
//! A variable that is set to nothing counts as not set, as containers often do that.

use std::fmt::Debug;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use super::Secret;
use super::key::{Key, Kind, Misfit};
use super::problem::{ConfigErrors, Problem, Report, nearest, quoted};
use super::shown;

/// The longest wait that can be set, in milliseconds.
const HOUR_MS: u64 = 3_600_000;

/// A group of settings from a table: the struct, the table of its keys, and how it is read.
///
/// Each line is `field: type = "VARIABLE", "default", kind, "sentence";`. Another backend's
/// settings are another group.
macro_rules! settings {
    ($(#[$doc:meta])* $seen:vis $Group:ident, $TABLE:ident {
        $($field:ident: $kind_of:ty = $name:literal, $default:literal, $kind:expr, $about:literal;)*
    }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        $seen struct $Group {
            $(#[doc = $about] $seen $field: $kind_of,)*
        }

        #[doc = concat!("The variables of [`", stringify!($Group), "`].")]
        $seen const $TABLE: &[Key] = &[
            $(Key { name: $name, kind: $kind, default: $default, about: $about },)*
        ];

        impl $Group {
            /// Reads every variable of the group; one that is absent or empty has its default.
            ///
            /// # Errors
            /// One for each value that cannot be understood, with variable, value and fix.
            $seen fn read(env: &dyn Fn(&str) -> Option<String>) -> Result<Self, ConfigErrors> {
                let mut errors = Vec::new();
                let mut keys = $TABLE.iter();
                $(let $field = keys.next().and_then(|key| setting(key, env, &mut errors));)*
                match ($($field,)*) {
                    ($(Some($field),)*) => Ok(Self { $($field,)* }),
                    _ => Err(ConfigErrors { report: Report { errors, ..Report::default() } }),
                }
            }

            /// The values in force by variable, secrets masked; times in seconds, sizes in
            /// bytes.
            $seen fn to_json(&self) -> Value {
                json!({ $($name: self.$field.shown(),)* })
            }
        }

        impl Default for $Group {
            fn default() -> Self {
                Self::read(&|_| None).expect("every default is within its bounds, as a test shows")
            }
        }
    };
}

settings! {
    /// What the environment sets for the whole program.
    pub Settings, SETTINGS {
        listen_addr: String = "LISTEN_ADDR", "0.0.0.0:8000", Kind::Text,
            "Where clients connect: addresses with ports, `unix:/path`, or `systemd` for passed sockets, with commas between.";
        http_front: HttpFront = "HTTP_FRONT", "guarded", Kind::OneOf(HttpFront::WORDS),
            "The listener: see \"Listeners\".";
        data_dir: PathBuf = "DATA_DIR", "data", Kind::Path,
            "The folder of the cache: blobs, index, staging.";
        config_path: PathBuf = "CONFIG_PATH", "remotes.yaml", Kind::Path,
            "The file that lists the remotes.";
        config_poll: Duration = "CONFIG_POLL_S", "5", Kind::Seconds { min_ms: 0, max_ms: 24 * HOUR_MS },
            "How often that file and TOKENS_FILE are looked at for changes; 0 is never (SIGHUP reloads them too).";
        log_format: LogFormat = "LOG_FORMAT", "text", Kind::OneOf(LogFormat::WORDS),
            "How log lines are written.";
        log_level: LogLevel = "LOG_LEVEL", "info", Kind::OneOf(LogLevel::WORDS),
            "The least important lines that are logged. `change` lines, which say who uploaded, removed or purged what, always are.";
        workers: usize = "WORKERS", "256", Kind::Count { min: 1, max: 4096 },
            "Threads that answer requests; each serves one client at a time, and others while that one or its upstream is slow.";
        queue_max: usize = "QUEUE_MAX", "1024", Kind::Count { min: 1, max: 1_000_000 },
            "Requests that may wait for a worker; one more is answered 503.";
        fetch_threads: usize = "FETCH_THREADS", "32", Kind::Count { min: 1, max: 4096 },
            "Threads that fetch from upstream, three at least; each runs one fetch at a time. One upstream host gets three quarters at most of those that other hosts leave.";
        fetch_queue_max: usize = "FETCH_QUEUE_MAX", "256", Kind::Count { min: 1, max: 1_000_000 },
            "Fetches that may wait for such a thread, shared among hosts likewise; a miss beyond that is answered 503.";
        staging_bytes_max: u64 = "STAGING_BYTES_MAX", "20Gi", Kind::Bytes { min: 1 << 20, max: 1 << 60 },
            "Disk space for files on their way in.";
        cache_bytes_max: Option<u64> = "CACHE_MAX_BYTES", "", Kind::Bytes { min: 1, max: 1 << 60 },
            "The most that stored artifacts take up together; the least recently used go first. None is without limit. Local repositories are not counted.";
        free_bytes_min: Option<u64> = "CACHE_MIN_FREE_BYTES", "", Kind::Bytes { min: 1, max: 1 << 60 },
            "What the file system of DATA_DIR keeps free: the least recently used artifacts go where it has less. Looked at every 10 seconds; without effect on files in S3. None is not looked at.";
        head_bytes_max: usize = "HEAD_BYTES_MAX", "32Ki", Kind::Bytes { min: 1 << 10, max: 1 << 20 },
            "Bytes of a request's head; more is answered 431.";
        url_bytes_max: usize = "URL_BYTES_MAX", "8Ki", Kind::Bytes { min: 256, max: 1 << 20 },
            "Bytes of a request's target; more is answered 414, and so is a decoded path of over 4,096 with its query.";
        header_count_max: usize = "HEADER_COUNT_MAX", "100", Kind::Count { min: 8, max: 256 },
            "Header fields of a request; more is answered 431.";
        body_bytes_max: u64 = "BODY_BYTES_MAX", "10Gi", Kind::Bytes { min: 0, max: 1 << 60 },
            "Bytes of a request's body; more is answered 413.";
        idle_timeout: Duration = "IDLE_TIMEOUT_S", "60", Kind::Seconds { min_ms: 100, max_ms: HOUR_MS },
            "How long a connection may stay idle between requests.";
        write_timeout: Duration = "WRITE_TIMEOUT_S", "60", Kind::Seconds { min_ms: 100, max_ms: HOUR_MS },
            "How long a client may leave our bytes untaken.";
        connections_max: usize = "CONNECTIONS_MAX", "8192", Kind::Count { min: 8, max: 1_000_000 },
            "Connections in all, cut to a third of the descriptors that the process may have, because each may have a file open too; beyond, the longest idle one is closed (guarded).";
        connections_reserved: usize = "CONNECTIONS_RESERVED", "32", Kind::Count { min: 1, max: 1000 },
            "Of these, how many are kept for health and metrics, at most half (guarded).";
        connections_per_address_max: usize = "CONNECTIONS_PER_ADDRESS_MAX", "2048", Kind::Count { min: 1, max: 1_000_000 },
            "Connections from one address, or one /64 of IPv6; one more is answered 503 (guarded).";
        requests_per_connection_max: u32 = "REQUESTS_PER_CONNECTION_MAX", "100000", Kind::Count { min: 1, max: 1_000_000_000 },
            "Requests that one connection carries before it is closed (guarded).";
        head_timeout: Duration = "HEAD_TIMEOUT_S", "15", Kind::Seconds { min_ms: 100, max_ms: HOUR_MS },
            "How long a request's head may take to come; then it is answered 408 (guarded).";
        body_idle_timeout: Duration = "BODY_IDLE_TIMEOUT_S", "30", Kind::Seconds { min_ms: 100, max_ms: HOUR_MS },
            "The longest silence inside a request's body (guarded).";
        rate_min: u64 = "RATE_MIN_BYTES_PER_S", "1024", Kind::Bytes { min: 0, max: 1 << 30 },
            "What a client must take or give a second, on average over RATE_WINDOW_S; 0 asks for nothing (guarded).";
        rate_window: Duration = "RATE_WINDOW_S", "30", Kind::Seconds { min_ms: 1000, max_ms: HOUR_MS },
            "The window for that (guarded).";
        trusted_proxies: String = "TRUSTED_PROXIES", "", Kind::Text,
            "Whose `X-Forwarded-For` is believed: addresses, networks like 10.0.0.0/8, `unix`, with commas between (guarded).";
        shutdown_grace: Duration = "SHUTDOWN_GRACE_S", "30", Kind::Seconds { min_ms: 0, max_ms: HOUR_MS },
            "How long a stop waits for requests in flight.";
        regex_size_max: usize = "REGEX_SIZE_MAX", "10Mi", Kind::Bytes { min: 1 << 10, max: 1 << 30 },
            "Memory of each compiled list of patterns.";
        redirects_max: u32 = "REDIRECTS_MAX", "10", Kind::Count { min: 0, max: 10 },
            "Redirects of an upstream that are followed.";
        retries_max: u32 = "RETRIES_MAX", "2", Kind::Count { min: 0, max: 10 },
            "Further tries of a fetch that failed, over all base URLs together.";
        offline: bool = "OFFLINE", "false", Kind::Switch,
            "Never ask any upstream, as `offline: true` of each remote: for a machine without a network, whose cache was filled elsewhere.";
        anonymous_read: bool = "ANONYMOUS_READ", "true", Kind::Switch,
            "Whether everybody may read; otherwise reading needs a token with the scope read.";
        tokens_file: Option<PathBuf> = "TOKENS_FILE", "", Kind::Path,
            "The file that lists the tokens; read again when it changes.";
        admin_token: Option<Secret> = "ADMIN_TOKEN", "", Kind::Secret,
            "A token that may do everything, of at least 16 characters.";
        sweep_interval: Duration = "SWEEP_INTERVAL_S", "3600", Kind::Seconds { min_ms: 1000, max_ms: 24 * HOUR_MS },
            "How often files without a row and rows without a file are looked for.";
        orphan_age: Duration = "ORPHAN_AGE_S", "3600", Kind::Seconds { min_ms: 1000, max_ms: 24 * HOUR_MS },
            "How old they must be to be removed: longer than the longest upload to the store takes.";
        lease_ttl: Duration = "LEASE_TTL_S", "30", Kind::Seconds { min_ms: 1000, max_ms: HOUR_MS },
            "How long a replica that vanished in mid-fetch holds up the others; a fetch that lasts longer is made by one replica more, and after twice that by all that wait.";
    }
}

settings! {
    /// Which services stand behind the cache; without them it is embedded.
    pub Engines, ENGINES {
        minio_endpoint: Option<String> = "MINIO_ENDPOINT", "", Kind::Text,
            "An S3 server for the files, as host:port or URL; needs the next three. Without it they are in DATA_DIR.";
        minio_access_key: Option<String> = "MINIO_ACCESS_KEY", "", Kind::Text,
            "Its access key.";
        minio_secret_key: Option<Secret> = "MINIO_SECRET_KEY", "", Kind::Secret,
            "Its secret key.";
        minio_bucket: Option<String> = "MINIO_BUCKET", "", Kind::Text,
            "Its bucket; made if it is missing and that is allowed.";
        minio_secure: bool = "MINIO_SECURE", "false", Kind::Switch,
            "Whether it is spoken to by TLS where MINIO_ENDPOINT names no scheme.";
        minio_region: String = "MINIO_REGION", "us-east-1", Kind::Text,
            "The region that requests are signed for.";
        minio_ca_file: Option<PathBuf> = "MINIO_CA_FILE", "", Kind::Path,
            "Further root certificates for it (PEM).";
        hot_bytes: u64 = "HOT_BYTES", "0", Kind::Bytes { min: 0, max: 1 << 60 },
            "Local disk space for the most used files of the S3 server that never change, in DATA_DIR/hot; 0 is none.";
        hot_memory_bytes: u64 = "HOT_MEMORY_BYTES", "16Mi", Kind::Bytes { min: 0, max: 1 << 40 },
            "Memory for those of its files of up to 64 KiB that were used last and never change; 0 is none.";
        db_host: Option<String> = "DBHOST", "", Kind::Text,
            "A PostgreSQL server for the index; needs DBUSER, DBPASS and DBNAME. Without it the index is in DATA_DIR.";
        db_port: u16 = "DBPORT", "5432", Kind::Count { min: 1, max: 65_535 },
            "Its port.";
        db_user: Option<String> = "DBUSER", "", Kind::Text,
            "Its user.";
        db_password: Option<Secret> = "DBPASS", "", Kind::Secret,
            "Its password.";
        db_name: Option<String> = "DBNAME", "", Kind::Text,
            "Its database; the tables are made and migrated by the program.";
        db_ssl_mode: SslMode = "DBSSLMODE", "prefer", Kind::OneOf(SslMode::WORDS),
            "Whether TLS is used, and how its certificate is judged.";
        db_ca_file: Option<PathBuf> = "DBSSLROOTCERT", "", Kind::Path,
            "Further root certificates for it (PEM): with them, require means verify-ca, as for libpq.";
        db_connections_max: usize = "DB_CONNECTIONS_MAX", "8", Kind::Count { min: 1, max: 100 },
            "Connections to it that are kept.";
        redis_url: Option<Secret> = "REDIS_URL", "", Kind::Secret,
            "A Redis server for freshness and leases between replicas: redis:// or rediss://, with user and password in it. Without it they are in memory.";
        redis_ca_file: Option<PathBuf> = "REDIS_CA_FILE", "", Kind::Path,
            "Root certificates for rediss:// instead of the system's (PEM).";
        redis_prefix: String = "REDIS_PREFIX", "artifactapi:", Kind::Text,
            "What each of its keys begins with.";
    }
}

/// What a variable takes that names one of a few things: the enum and its words.
macro_rules! words {
    ($(#[$about:meta])* $Words:ident { $($(#[$meaning:meta])* $Word:ident = $word:literal,)* }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $Words {
            $($(#[$meaning])* $Word,)*
        }

        impl $Words {
            /// The words that the variable takes.
            pub const WORDS: &[&str] = &[$($word,)*];
        }

        impl Setting for $Words {
            fn from_text(text: &str, kind: &Kind) -> Result<Self, Misfit> {
                one_of(text, kind).map(|at| [$(Self::$Word,)*][at])
            }

            fn shown(&self) -> Value {
                json!(Self::WORDS[*self as usize])
            }
        }
    };
}

words! {
    /// Which listener serves.
    HttpFront {
        /// Our own.
        Guarded = "guarded",
        /// tiny_http.
        TinyHttp = "tiny_http",
    }
}

words! {
    /// How log lines are written.
    LogFormat {
        /// For people.
        Text = "text",
        /// One JSON object a line.
        Json = "json",
    }
}

words! {
    /// The least important lines that are logged.
    LogLevel {
        /// An answer was wrong or data lost.
        Error = "error",
        /// Somebody should look.
        Warn = "warn",
        /// One line a request, one a fetch.
        Info = "info",
        /// What led to a decision.
        Debug = "debug",
        /// Everything.
        Trace = "trace",
    }
}

words! {
    /// How far to insist on TLS towards a database: libpq's names and meanings.
    SslMode {
        /// Never.
        Disable = "disable",
        /// Where the server offers it; its certificate is not checked.
        Prefer = "prefer",
        /// Always; its certificate is checked only where root certificates are named: then as by
        /// `verify-ca`.
        Require = "require",
        /// Always, with a certificate of a known authority, for whatever name.
        VerifyCa = "verify-ca",
        /// Always, with a certificate of a known authority for this host.
        VerifyFull = "verify-full",
    }
}

/// Reads one variable, or records why it cannot be understood.
fn setting<T: Setting>(
    key: &Key,
    env: &dyn Fn(&str) -> Option<String>,
    errors: &mut Vec<Problem>,
) -> Option<T> {
    let given = env(key.name).filter(|value| !value.trim().is_empty());
    let text = given.as_deref().unwrap_or(key.default).trim();
    match T::from_text(text, &key.kind) {
        Ok(value) => Some(value),
        Err(Misfit { what, fix }) => {
            let value = if key.kind == Kind::Secret { "***".to_owned() } else { quoted(text) };
            let fix = match key.default {
                "" => fix,
                default => format!("{fix} (the default is {default})"),
            };
            let key = key.name.to_owned();
            errors.push(Problem { key, value: Some(value), what, fix, ..Problem::default() });
            None
        }
    }
}

/// A type that a variable can have.
trait Setting: Sized {
    /// Reads a text that is not empty, or the default.
    fn from_text(text: &str, kind: &Kind) -> Result<Self, Misfit>;
    /// The value for `GET /config`.
    fn shown(&self) -> Value;
}

/// Numbers, bounded by their kind.
macro_rules! number_settings {
    ($($number:ty),*) => {$(
        impl Setting for $number {
            fn from_text(text: &str, kind: &Kind) -> Result<Self, Misfit> {
                let misfit = || Misfit { what: format!("is not {}", kind.noun()), fix: kind.fix() };
                Self::try_from(kind.number(text)?).map_err(|_| misfit())
            }

            fn shown(&self) -> Value {
                json!(self)
            }
        }
    )*};
}
number_settings!(usize, u64, u32, u16);

impl Setting for Duration {
    fn from_text(text: &str, kind: &Kind) -> Result<Self, Misfit> {
        kind.number(text).map(Self::from_millis)
    }

    fn shown(&self) -> Value {
        shown::seconds(*self)
    }
}

impl Setting for PathBuf {
    fn from_text(text: &str, _kind: &Kind) -> Result<Self, Misfit> {
        Ok(Self::from(text))
    }

    fn shown(&self) -> Value {
        json!(self.display().to_string())
    }
}

impl Setting for String {
    fn from_text(text: &str, _kind: &Kind) -> Result<Self, Misfit> {
        Ok(text.to_owned())
    }

    fn shown(&self) -> Value {
        json!(self)
    }
}

impl Setting for Secret {
    fn from_text(text: &str, _kind: &Kind) -> Result<Self, Misfit> {
        Ok(Self::new(text))
    }

    fn shown(&self) -> Value {
        json!("***")
    }
}

impl Setting for bool {
    fn from_text(text: &str, kind: &Kind) -> Result<Self, Misfit> {
        let misfit = |_| Misfit { what: format!("is not {}", kind.noun()), fix: kind.fix() };
        text.to_ascii_lowercase().parse().map_err(misfit)
    }

    fn shown(&self) -> Value {
        json!(self)
    }
}

/// A variable without a default.
impl<T: Setting> Setting for Option<T> {
    fn from_text(text: &str, kind: &Kind) -> Result<Self, Misfit> {
        if text.is_empty() { Ok(None) } else { T::from_text(text, kind).map(Some) }
    }

    fn shown(&self) -> Value {
        self.as_ref().map_or(Value::Null, T::shown)
    }
}

/// Which of a kind's words a text is; case does not matter.
fn one_of(text: &str, kind: &Kind) -> Result<usize, Misfit> {
    let Kind::OneOf(words) = kind else { unreachable!("only words are asked for here") };
    words.iter().position(|word| word.eq_ignore_ascii_case(text)).ok_or_else(|| Misfit {
        what: format!("is not {}", kind.noun()),
        fix: match nearest(text, words.iter().copied()) {
            Some(near) => format!("did you mean {near}?"),
            None => kind.fix(),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::key;
    use proptest::prelude::*;

    fn read(variables: &[(&str, &str)]) -> Result<Settings, ConfigErrors> {
        let owned: Vec<(String, String)> =
            variables.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        Settings::read(&move |name| {
            owned.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
        })
    }

    settings! {
        /// A group with every further type that a backend may need.
        Further, FURTHER {
            password: Secret = "PASSWORD", "none", Kind::Secret, "A secret.";
            token: Option<Secret> = "TOKEN", "", Kind::Secret, "A secret that may be absent.";
            host: Option<String> = "HOST", "", Kind::Text, "A text that may be absent.";
            secure: bool = "SECURE", "true", Kind::Switch, "A switch.";
        }
    }

    #[test]
    fn the_defaults_are_those_of_the_documentation() {
        let settings = Settings::default();
        assert_eq!(settings.listen_addr.to_string(), "0.0.0.0:8000");
        assert_eq!(settings.config_path, PathBuf::from("remotes.yaml"));
        assert_eq!(settings.staging_bytes_max, 20 << 30);
        assert_eq!(settings.head_bytes_max, 32 << 10);
        assert_eq!(settings.idle_timeout, Duration::from_secs(60));
        assert_eq!(settings.log_level, LogLevel::Info);
        assert_eq!(read(&[("WORKERS", ""), ("DATA_DIR", "  ")]), Ok(settings));
    }

    #[test]
    fn values_are_taken_with_units_and_in_any_case() {
        let settings = read(&[
            ("LISTEN_ADDR", "[::1]:80"),
            ("WORKERS", " 8 "),
            ("STAGING_BYTES_MAX", "5 GiB"),
            ("IDLE_TIMEOUT_S", "0.5"),
            ("LOG_FORMAT", "JSON"),
            ("LOG_LEVEL", "Warn"),
        ])
        .unwrap();
        assert_eq!(settings.listen_addr, "[::1]:80");
        assert_eq!(settings.workers, 8);
        assert_eq!(settings.staging_bytes_max, 5 << 30);
        assert_eq!(settings.idle_timeout, Duration::from_millis(500));
        assert_eq!(settings.log_format, LogFormat::Json);
        assert_eq!(settings.log_level, LogLevel::Warn);
    }

    #[test]
    fn every_value_that_cannot_be_understood_is_named_with_its_fix() {
        let errors = read(&[
            ("HTTP_FRONT", "tiny"),
            ("WORKERS", "0"),
            ("LOG_LEVEL", "warning"),
            ("HEAD_BYTES_MAX", "lots"),
            ("REDIRECTS_MAX", "11"),
            ("WRITE_TIMEOUT_S", "30s"),
        ])
        .unwrap_err();
        let expected = [
            r#"HTTP_FRONT: "tiny" is not one of the known words; did you mean tiny_http? (the default is guarded)"#,
            r#"LOG_LEVEL: "warning" is not one of the known words; did you mean warn? (the default is info)"#,
            r#"WORKERS: "0" is below 1; give 1 to 4096 (the default is 256)"#,
            r#"HEAD_BYTES_MAX: "lots" is not a number of bytes; give 1 KiB to 1 MiB, as a number or with Ki, Mi, Gi, Ti, K, M, G, T (the default is 32Ki)"#,
            r#"WRITE_TIMEOUT_S: "30s" is not a number of seconds; give 0.1 to 3600 seconds (the default is 60)"#,
            r#"REDIRECTS_MAX: "11" is above 10; give 0 to 10 (the default is 10)"#,
        ];
        let found = errors.report.to_string();
        assert_eq!(found.lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn secrets_show_nowhere() {
        let env = |name: &str| Some(format!("{name} hunter2"));
        let further =
            Further::read(&|name| if name == "SECURE" { None } else { env(name) }).unwrap();
        let shown = format!("{further:?} {}", further.to_json());
        assert!(shown.contains("HOST hunter2"));
        assert!(!shown.contains("PASSWORD hunter2") && !shown.contains("TOKEN hunter2"), "{shown}");
        assert_eq!(further.token.unwrap().reveal(), "TOKEN hunter2");
        let defaults = Further::default();
        assert_eq!((defaults.token, defaults.host, defaults.secure), (None, None, true));
        assert_eq!(Further::read(&env).unwrap_err().report.errors[0].key, "SECURE");
    }

    #[test]
    fn what_is_in_force_is_shown_by_variable() {
        let shown = Settings::default().to_json();
        assert_eq!(shown["WORKERS"], 256);
        assert_eq!(shown["STAGING_BYTES_MAX"], 20_u64 << 30);
        assert_eq!(shown["CONFIG_POLL_S"], 5);
        assert_eq!(shown["HTTP_FRONT"], "guarded");
        assert_eq!(shown.as_object().unwrap().len(), SETTINGS.len());
    }

    #[test]
    fn the_documentation_names_every_variable() {
        let table = key::markdown(SETTINGS);
        assert_eq!(table.lines().count(), SETTINGS.len() + 2);
        let line = "| `URL_BYTES_MAX` | `8Ki` | 256 bytes to 1 MiB | Bytes of a request's target; more is answered 414, and so is a decoded path of over 4,096 with its query. |";
        assert!(table.lines().any(|other| other == line), "{table}");
    }

    proptest! {
        #[test]
        fn no_value_makes_the_reading_panic(value in "\\PC*", which in 0..SETTINGS.len()) {
            let _ = read(&[(SETTINGS[which].name, &value)]);
        }
    }
}
