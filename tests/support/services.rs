//! Real PostgreSQL, Redis and S3 behind the server under test.
//!
//! Each test has a database, a bucket and a prefix of its own on the servers that all share;
//! one that takes a server away has a private one for that.

use artifactapi::blob::s3::settings::{Secure, endpoint};
use artifactapi::blob::s3::{S3Settings, S3Store};
use artifactapi::config::Secret;
use artifactapi::index::postgres::{PostgresIndex, PostgresSettings};

use super::server::Setup;

// The same door to `scripts/services` that the tests beside the sources use.
#[allow(dead_code, reason = "these tests wait with `support::eventually`")]
#[path = "../../src/test_servers.rs"]
mod test_servers;

pub(crate) use test_servers::Private;
use test_servers::{shared, unique_name};

const POSTGRES: &str = "ARTIFACTAPI_TEST_POSTGRES";
const REDIS: &str = "ARTIFACTAPI_TEST_REDIS";
const S3: &str = "ARTIFACTAPI_TEST_S3";

/// What a test has of the services.
#[derive(Debug)]
pub(crate) struct Services {
    // host:port:user:password:database, the last one of the server's own.
    postgres: String,
    redis: String,
    // url,access key,secret key,bucket
    s3: String,
    name: String,
}

impl Services {
    /// A part of the shared servers that no other test has.
    pub(crate) fn shared() -> Self {
        Self::of(shared(POSTGRES), shared(REDIS), shared(S3))
    }

    /// The same with a PostgreSQL server of the test's own.
    pub(crate) fn with_postgres(private: &Private) -> Self {
        Self::of(private.variable(POSTGRES).to_owned(), shared(REDIS), shared(S3))
    }

    /// The same with a Redis server of the test's own.
    pub(crate) fn with_redis(private: &Private) -> Self {
        Self::of(shared(POSTGRES), private.variable(REDIS).to_owned(), shared(S3))
    }

    /// The same with an S3 server of the test's own.
    pub(crate) fn with_s3(private: &Private) -> Self {
        Self::of(shared(POSTGRES), shared(REDIS), private.variable(S3).to_owned())
    }

    /// Nothing shared.
    pub(crate) fn private(postgres: &Private, redis: &Private, s3: &Private) -> Self {
        let [postgres, redis, s3] = [(postgres, POSTGRES), (redis, REDIS), (s3, S3)]
            .map(|(private, variable)| private.variable(variable).to_owned());
        Self::of(postgres, redis, s3)
    }

    fn of(postgres: String, redis: String, s3: String) -> Self {
        let services = Self { postgres, redis, s3, name: unique_name("replicas") };
        let [host, port, user, password, database] = services.postgres_parts();
        let mut client = postgres::Config::new()
            .host(host)
            .port(port.parse().expect("a port is a number"))
            .user(user)
            .password(password)
            .dbname(database)
            .connect(postgres::NoTls)
            .expect("the test's PostgreSQL server answers");
        client
            .batch_execute(&format!("CREATE DATABASE {}", services.name))
            .expect("the database is new");
        services
    }

    /// Has a server use them.
    pub(crate) fn under(&self, setup: Setup) -> Setup {
        let [host, port, user, password, _] = self.postgres_parts();
        let [endpoint, access_key, secret_key, _] = self.s3_parts();
        setup
            .env("DBHOST", host)
            .env("DBPORT", port)
            .env("DBUSER", user)
            .env("DBPASS", password)
            .env("DBNAME", &self.name)
            .env("REDIS_URL", &self.redis)
            .env("REDIS_PREFIX", format!("{}:", self.name))
            .env("MINIO_ENDPOINT", endpoint)
            .env("MINIO_ACCESS_KEY", access_key)
            .env("MINIO_SECRET_KEY", secret_key)
            .env("MINIO_BUCKET", self.bucket())
    }

    /// The index, for a look past the server.
    pub(crate) fn index(&self) -> PostgresIndex {
        let [host, port, user, password, _] = self.postgres_parts();
        let settings = PostgresSettings::new(host, user, Secret::new(password), &self.name);
        let port = port.parse().expect("a port is a number");
        PostgresIndex::open(&PostgresSettings { port, ..settings }).expect("the index opens")
    }

    /// The store, for a look past the server.
    pub(crate) fn store(&self) -> S3Store {
        let [address, access_key, secret_key, _] = self.s3_parts();
        let address = endpoint(address, Secure::No).expect("it is an endpoint");
        let settings = S3Settings::new(address, access_key, Secret::new(secret_key), self.bucket());
        S3Store::new(&settings).expect("the store opens")
    }

    fn postgres_parts(&self) -> [&str; 5] {
        parts(&self.postgres, ':')
    }

    fn s3_parts(&self) -> [&str; 4] {
        parts(&self.s3, ',')
    }

    // A bucket's name has no underscore.
    fn bucket(&self) -> String {
        self.name.replace('_', "-")
    }
}

fn parts<const N: usize>(text: &str, separator: char) -> [&str; N] {
    let found: Vec<_> = text.split(separator).collect();
    found.try_into().unwrap_or_else(|found| panic!("{text}: {N} parts expected, not {found:?}"))
}
