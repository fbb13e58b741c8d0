use std::ops::ControlFlow;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, SystemTime};

use postgres::{Client, NoTls};

use super::*;
use crate::artifact::{ArtifactPath, BlobKey, BlobVersion, Validators};
use crate::chain::chain;
use crate::config::Secret;
use crate::config::env::SslMode;
use crate::test_servers::{Private, eventually, shared, unique_name};

/// A database of one test on a server, dropped with it.
pub(crate) struct Database {
    settings: PostgresSettings,
    admin: String,
}

impl Database {
    fn shared() -> Self {
        Self::on(&shared("ARTIFACTAPI_TEST_POSTGRES"))
    }

    /// `server` is `host:port:user:password:database`.
    pub(crate) fn on(server: &str) -> Self {
        let [host, port, user, password, database] =
            server.split(':').collect::<Vec<_>>().try_into().expect("five parts");
        let admin =
            format!("host={host} port={port} user={user} password={password} dbname={database}");
        let name = unique_name("test");
        let mut settings = PostgresSettings::new(host, user, Secret::new(password), &name);
        settings.port = port.parse().expect("a port");
        let this = Self { settings, admin };
        this.admin().batch_execute(&format!("CREATE DATABASE {name}")).unwrap();
        this
    }

    fn admin(&self) -> Client {
        Client::connect(&self.admin, NoTls).unwrap()
    }

    fn client(&self) -> Client {
        let parameters = format!("{} dbname={}", self.admin, self.settings.database);
        Client::connect(&parameters, NoTls).unwrap()
    }

    pub(crate) fn index(&self) -> PostgresIndex {
        PostgresIndex::open(&self.settings).unwrap()
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let drop = format!("DROP DATABASE {} WITH (FORCE)", self.settings.database);
        self.admin().batch_execute(&drop).unwrap();
    }
}

mod conformance {
    crate::index::conformance::index_conformance!(|| {
        let database = super::Database::shared();
        (database.index(), database)
    });
}

fn key(path: &str) -> ArtifactKey {
    let path = ArtifactPath::from_canonical(path).unwrap();
    ArtifactKey { remote: "r".parse().unwrap(), path }
}

fn entry(key: &ArtifactKey) -> Entry {
    Entry {
        blob: BlobKey::of(key),
        version: BlobVersion("\"v1\"".to_owned()),
        size: 5 << 30,
        digest: Digest::of(b"bytes"),
        content_type: Some("text/plain; charset=\"é\"".to_owned()),
        content_encoding: Some("gzip".to_owned()),
        validators: Validators { etag: Some("W/\"x\"".to_owned()), last_modified: None },
        stored_at: SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 123_456_000),
        validated_at: SystemTime::UNIX_EPOCH - Duration::new(3, 5_000),
        generation: 0,
        head: Some(Digest::of(b"head")),
        unproven: true,
    }
}

fn stored(put: Put) -> u64 {
    match put {
        Put::Stored(generation) => generation,
        Put::Superseded(by) => panic!("superseded by {by:?}"),
    }
}

fn paths(index: &PostgresIndex, query: &Scan) -> Vec<String> {
    let mut paths = Vec::new();
    index
        .scan(query, &mut |row| {
            paths.push(row.key.path.as_str().to_owned());
            ControlFlow::Continue(())
        })
        .unwrap();
    paths
}

#[test]
fn a_row_that_was_tampered_with_hides_no_other() {
    let database = Database::shared();
    let index = database.index();
    for path in ["a", "b", "c"] {
        assert!(matches!(index.put(&key(path), &entry(&key(path)), None), Ok(Put::Stored(_))));
    }
    database
        .client()
        .batch_execute(
            "UPDATE artifact SET blob_key = '..' WHERE path = 'b';
            INSERT INTO artifact SELECT ' ', path_sha256, path, blob_key, blob_version, size_bytes,
                sha256, content_type, content_encoding, etag, last_modified, stored_at_us,
                validated_at_us, head_sha256, generation, unproven, last_used_us, hits
            FROM artifact WHERE path = 'a'",
        )
        .unwrap();
    let error = index.get(&key("b")).unwrap_err();
    assert!(matches!(error, IndexError::Corrupt { .. }), "{error}");
    let mut shown = Vec::new();
    let mut visit = |row: Row| {
        shown.push(row.key.path.to_string());
        ControlFlow::Continue(())
    };
    index.scan(&Scan::default(), &mut visit).unwrap();
    let query = LeastUsed { remote: key("a").remote, behind: None };
    index.least_used(&query, &mut visit).unwrap();
    assert_eq!(shown, ["a", "c", "a", "c"]);
    let usage = index.usage().unwrap();
    assert_eq!(usage.into_keys().collect::<Vec<_>>(), [key("a").remote]);
}

#[test]
fn an_entry_comes_back_to_the_microsecond() {
    let database = Database::shared();
    let index = database.index();
    let key = key("dir/é 1.rpm?x=%2f");
    let generation = stored(index.put(&key, &entry(&key), None).unwrap());
    let expected = Entry { generation, ..entry(&key) };
    assert_eq!(index.get(&key).unwrap(), Some(expected));
}

#[test]
fn a_path_longer_than_an_index_tuple_is_stored_found_and_listed() {
    let database = Database::shared();
    let index = database.index();
    // Hexadecimal digits of digests do not compress to what an index tuple holds.
    let noise: String = (0..70).map(|n: u32| Digest::of(&n.to_le_bytes()).to_string()).collect();
    let long = [key(&noise[..4000]), key(&format!("{}z", &noise[..4000]))];
    for key in &long {
        stored(index.put(key, &entry(key), None).unwrap());
        assert!(index.get(key).unwrap().is_some());
    }
    let after = Scan { after: Some(noise[..4000].to_owned()), ..Scan::default() };
    assert_eq!(paths(&index, &after), [long[1].path.as_str()]);
}

#[test]
fn a_row_written_again_is_never_taken_for_the_one_that_was_removed() {
    let database = Database::shared();
    let index = database.index();
    let key = key("a");
    let first = stored(index.put(&key, &entry(&key), None).unwrap());
    assert!(index.remove(&key, first).unwrap());
    let second = stored(index.put(&key, &entry(&key), None).unwrap());
    assert_ne!(first, second);
    assert!(!index.remove(&key, first).unwrap());
    assert!(matches!(index.put(&key, &entry(&key), Some(first)), Ok(Put::Superseded(Some(_)))));
}

#[test]
fn a_scan_goes_on_over_pages_remotes_and_prefixes_in_byte_order() {
    let database = Database::shared();
    let index = database.index();
    let rows = usize::from(PAGE_ROWS) * 2 + 7;
    database
        .client()
        .execute(
            "INSERT INTO artifact (remote, path_sha256, path, blob_key, blob_version, \
                 size_bytes, sha256, stored_at_us, validated_at_us, unproven, last_used_us) \
             SELECT r, sha256(convert_to(p, 'UTF8')), p, r || '/0123456789abcdef/f', 'v', 1, \
                 sha256('x'), 0, 0, false, 0 \
             FROM (SELECT r, 'p/' || lpad(n::text, 6, '0') AS p \
                 FROM unnest(ARRAY['a', 'B']) AS r, generate_series(1, $1) AS n \
                 UNION ALL SELECT 'a', unnest(ARRAY['P', 'q', 'p', 'p/é', 'p0'])) AS made",
            &[&(rows as i32)],
        )
        .unwrap();
    let check = |remote: Option<&str>, prefix: &str, after: Option<&str>, expected: usize| {
        let remote = remote.map(|name| name.parse().unwrap());
        let query = Scan { remote, prefix: prefix.to_owned(), after: after.map(str::to_owned) };
        let mut seen = Vec::new();
        index
            .scan(&query, &mut |row| {
                seen.push(row.key);
                ControlFlow::Continue(())
            })
            .unwrap();
        assert!(seen.is_sorted() && seen.iter().all(|key| key.path.as_str().starts_with(prefix)));
        assert_eq!(seen.len(), expected, "{query:?}");
    };
    check(None, "", None, 2 * rows + 5);
    check(Some("a"), "", None, rows + 5);
    check(Some("a"), "p/", None, rows + 1);
    check(None, "p/", None, 2 * rows + 1);
    check(None, "p/", Some("p/000010"), 2 * (rows - 10) + 1);
    check(Some("B"), "p/", Some("a"), rows);
    check(Some("B"), "p/", Some("p/z"), 0);
    check(Some("B"), "q", None, 0);
    check(Some("none"), "", None, 0);
    let mut seen = 0;
    index
        .scan(&Scan::default(), &mut |_| {
            seen += 1;
            if seen == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .unwrap();
    assert_eq!(seen, 3);
}

#[test]
fn every_statement_of_a_large_index_follows_an_index() {
    let database = Database::shared();
    let _index = database.index();
    let mut client = database.client();
    client
        .batch_execute(
            "INSERT INTO artifact (remote, path_sha256, path, blob_key, blob_version, \
                 size_bytes, sha256, stored_at_us, validated_at_us, unproven, last_used_us) \
             SELECT 'r' || n % 3, sha256(convert_to(p, 'UTF8')), p, 'k', 'v', 1, sha256('x'), \
                 0, 0, false, 0 \
             FROM (SELECT n, 'pool/' || md5(n::text) AS p FROM generate_series(1, 20000) AS n) m; \
             ANALYZE artifact; SET plan_cache_mode = force_generic_plan",
        )
        .unwrap();
    let mut check = |sql: Sql, types: &str, values: &str, index: &str| {
        let name = format!("s{}", sql as usize);
        client.batch_execute(&format!("PREPARE {name} ({types}) AS {}", sql.text())).unwrap();
        let plan: Vec<String> = client
            .query(&format!("EXPLAIN EXECUTE {name} ({values})"), &[])
            .unwrap()
            .iter()
            .map(|row| row.get(0))
            .collect();
        let plan = plan.join("\n");
        assert!(plan.contains(index) && !plan.contains("Seq Scan"), "{sql:?}:\n{plan}");
    };
    check(Sql::Get, "text, bytea", "'r1', ''", "artifact_pkey");
    check(Sql::Remove, "text, bytea, bigint", "'r1', '', 1", "artifact_pkey");
    check(Sql::NextRemote, "text", "'r1'", "Index Only Scan");
    check(
        Sql::Page,
        "text, text, text, boolean, bigint",
        "'r1', 'pool/5', 'pool/5', true, 500",
        "Index Scan using artifact_scan",
    );
    check(
        Sql::Update,
        "text, bytea, text, text, text, bigint, bytea, text, text, text, text, bigint, bigint, \
         bytea, boolean, bigint",
        "'r1', '', '', '', '', 1, '', '', '', '', '', 1, 1, '', true, 1",
        "artifact_pkey",
    );
    check(
        Sql::Touch,
        "text[], bytea[], bigint[], bigint[]",
        "'{r1}', '{x}', '{1}', '{1}'",
        "artifact_pkey",
    );
}

#[test]
fn usage_is_known_without_looking_at_all_rows_from_the_migration_on() {
    let database = Database::shared();
    let mut client = database.client();
    let early = "CREATE TABLE artifactapi_schema (version integer PRIMARY KEY, \
         applied_at timestamptz NOT NULL DEFAULT now()); \
         INSERT INTO artifactapi_schema VALUES (1), (2); \
         INSERT INTO artifact (remote, path_sha256, path, blob_key, blob_version, \
             size_bytes, sha256, stored_at_us, validated_at_us, unproven, hits) \
         SELECT 'r' || n % 2, sha256(n::text::bytea), n::text, 'k', 'v', 10, sha256('x'), \
             0, 0, false, 1 FROM generate_series(1, 4) AS n";
    let schema = [include_str!("schema_1.sql"), include_str!("schema_2.sql"), early];
    client.batch_execute(&schema.join(";")).unwrap();
    let index = database.index();
    let known = || -> Vec<(String, Usage)> {
        index.usage().unwrap().into_iter().map(|(name, usage)| (name.to_string(), usage)).collect()
    };
    let of = |remote: &str, artifacts, bytes, hits| {
        (remote.to_owned(), Usage { artifacts, bytes, hits })
    };
    assert_eq!(known(), [of("r0", 2, 20, 2), of("r1", 2, 20, 2)]);
    // Whoever changes rows, and however many at once.
    client.batch_execute("UPDATE artifact SET size_bytes = 15, hits = hits + 1").unwrap();
    assert_eq!(known(), [of("r0", 2, 30, 4), of("r1", 2, 30, 4)]);
    client.batch_execute("UPDATE artifact SET remote = 'r2' WHERE path = '1'").unwrap();
    assert_eq!(known(), [of("r0", 2, 30, 4), of("r1", 1, 15, 2), of("r2", 1, 15, 2)]);
    client.batch_execute("DELETE FROM artifact WHERE remote = 'r0'").unwrap();
    assert_eq!(known(), [of("r1", 1, 15, 2), of("r2", 1, 15, 2)]);
    let plan = client.query(&format!("EXPLAIN {}", Sql::Usage.text()), &[]).unwrap();
    assert!(plan.iter().all(|row| !row.get::<_, String>(0).contains("on artifact ")), "{plan:?}");
    client.batch_execute("TRUNCATE artifact").unwrap();
    assert_eq!(known(), []);
}

#[test]
fn replicas_that_start_at_once_find_the_tables_made_once() {
    let database = Database::shared();
    let together = Barrier::new(8);
    thread::scope(|scope| {
        for replica in 0..8 {
            let (database, together) = (&database, &together);
            scope.spawn(move || {
                together.wait();
                let index = database.index();
                let key = key(&format!("of/{replica}"));
                stored(index.put(&key, &entry(&key), None).unwrap());
            });
        }
    });
    assert_eq!(paths(&database.index(), &Scan::default()).len(), 8);
    let applied = "SELECT count(*), max(version)::bigint FROM artifactapi_schema";
    let row = database.client().query_one(applied, &[]).unwrap();
    let (applied, newest): (i64, i64) = (row.get(0), row.get(1));
    assert_eq!(applied, newest, "each version once");
}

#[test]
fn tables_of_a_newer_release_stop_the_start() {
    let database = Database::shared();
    drop(database.index());
    database.client().execute("INSERT INTO artifactapi_schema (version) VALUES (99)", &[]).unwrap();
    let error = PostgresIndex::open(&database.settings).unwrap_err();
    assert!(matches!(error, PostgresError::Schema(SchemaError::Newer { found: 99, known: 3 })));
    assert!(error.to_string().contains("run the newer release"), "{error}");
}

#[test]
fn of_writers_that_race_for_a_row_one_wins_each_round() {
    let database = Database::shared();
    let index = database.index();
    let key = key("contended");
    let writers = 8;
    let mut current = None;
    for _round in 0..5 {
        let wins: Vec<Put> = thread::scope(|scope| {
            let racing: Vec<_> = (0..writers)
                .map(|_| scope.spawn(|| index.put(&key, &entry(&key), current).unwrap()))
                .collect();
            racing.into_iter().map(|writer| writer.join().unwrap()).collect()
        });
        let winners: Vec<u64> = wins
            .iter()
            .filter_map(|put| match put {
                Put::Stored(generation) => Some(*generation),
                Put::Superseded(_) => None,
            })
            .collect();
        assert_eq!(winners.len(), 1, "{wins:?}");
        current = Some(winners[0]);
        assert_eq!(index.get(&key).unwrap().map(|entry| entry.generation), current);
    }
}

#[test]
fn uses_from_two_replicas_add_up_and_never_lock_each_other_out() {
    let database = Database::shared();
    let replicas = [database.index(), database.index()];
    let keys: Vec<_> = (0..50).map(|n| key(&format!("used/{n}"))).collect();
    for key in &keys {
        stored(replicas[0].put(key, &entry(key), None).unwrap());
    }
    let last = entry(&keys[0]).stored_at + Duration::from_secs(9);
    let used = |key: &ArtifactKey| Use { key: key.clone(), hits: 2, last };
    thread::scope(|scope| {
        for (replica, index) in replicas.iter().enumerate() {
            let mut uses: Vec<Use> = keys.iter().map(used).collect();
            uses.push(used(&keys[0]));
            uses.push(used(&key("no/row")));
            if replica == 1 {
                uses.reverse();
            }
            scope.spawn(move || (0..10).for_each(|_| index.touch(&uses).unwrap()));
        }
    });
    let mut seen = Vec::new();
    replicas[0]
        .scan(&Scan::default(), &mut |row| {
            seen.push((row.hits, row.last_used));
            ControlFlow::Continue(())
        })
        .unwrap();
    seen.sort();
    let mut expected = vec![(40, last); 49];
    expected.push((80, last));
    assert_eq!(seen, expected);
}

#[test]
fn tls_is_insisted_on_as_far_as_the_mode_says() {
    let database = Database::shared();
    let ca = shared("ARTIFACTAPI_TEST_POSTGRES_CA");
    // The server's certificate is of a test authority, for the name localhost.
    let check = |mode: SslMode, host: &str, trusts: bool, connects: bool, encrypted: bool| {
        let settings = PostgresSettings {
            ssl_mode: mode,
            host: host.to_owned(),
            ca_file: trusts.then(|| (&ca).into()),
            ..database.settings.clone()
        };
        let index = PostgresIndex::open(&settings).unwrap();
        let answer = index.probe();
        assert_eq!(answer.is_ok(), connects, "{mode:?} to {host}: {answer:?}");
        if connects {
            let mut client = database.client();
            let row = client
                .query_one(
                    "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
                     WHERE application_name = 'artifactapi' AND datname = $1",
                    &[&settings.database],
                )
                .unwrap();
            assert_eq!(row.get::<_, Option<bool>>(0), Some(encrypted), "{mode:?} to {host}");
        }
        drop(index);
        eventually("the connections are closed", || {
            let mut client = database.client();
            let open = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'artifactapi' \
                 AND datname = $1";
            client.query(open, &[&settings.database]).unwrap().is_empty()
        });
    };
    check(SslMode::Disable, "127.0.0.1", true, true, false);
    check(SslMode::Prefer, "127.0.0.1", false, true, true);
    check(SslMode::Require, "127.0.0.1", false, true, true);
    check(SslMode::Require, "127.0.0.1", true, true, true);
    check(SslMode::VerifyCa, "127.0.0.1", true, true, true);
    check(SslMode::VerifyCa, "127.0.0.1", false, false, true);
    check(SslMode::VerifyFull, "localhost", true, true, true);
    check(SslMode::VerifyFull, "127.0.0.1", true, false, true);
    check(SslMode::VerifyFull, "localhost", false, false, true);
}

#[test]
fn certificates_that_cannot_be_read_stop_the_start() {
    let mut settings = PostgresSettings::new("127.0.0.1", "u", Secret::new("p"), "d");
    settings.ssl_mode = SslMode::VerifyFull;
    settings.ca_file = Some("/nowhere/ca.pem".into());
    let error = PostgresIndex::open(&settings).unwrap_err();
    assert!(error.to_string().contains("/nowhere/ca.pem"), "{error}");
    assert!(error.is_permanent());
}

#[test]
fn a_database_that_takes_no_rows_answers_and_is_not_well() {
    let database = Database::shared();
    let name = &database.settings.database;
    let set = format!("ALTER DATABASE {name} SET default_transaction_read_only = on");
    database.index().probe().unwrap();
    database.client().batch_execute(&set).unwrap();
    let index = database.index();
    assert_eq!(index.get(&key("a")).unwrap(), None);
    let error = chain(&index.probe().unwrap_err());
    assert!(error.contains("read-only"), "{error}");
}

/// Whether a look-up that must fail did so without the database being asked.
fn is_at_once(found: &Result<Option<Entry>, IndexError>) -> bool {
    match found {
        Err(error @ IndexError::Unavailable { .. }) => chain(error).contains("is not asked again"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn while_somebody_holds_the_table_callers_fail_at_once() {
    let mut database = Database::shared();
    database.settings.statement_timeout = Duration::from_millis(300);
    let index = database.index();
    let mut client = database.client();
    let mut holding = client.transaction().unwrap();
    holding.batch_execute("LOCK TABLE artifact IN ACCESS EXCLUSIVE MODE").unwrap();
    assert!(!is_at_once(&index.get(&key("a"))));
    assert!(is_at_once(&index.get(&key("a"))));
    holding.rollback().unwrap();
    eventually("it is asked again", || index.get(&key("a")).is_ok());
}

#[test]
fn a_restart_is_not_noticed_by_callers_that_come_after_it() {
    let server = Private::start("postgres");
    let database = Database::on(server.variable("ARTIFACTAPI_TEST_POSTGRES"));
    let index = database.index();
    let key = key("kept");
    let generation = stored(index.put(&key, &entry(&key), None).unwrap());
    for round in 1..=2 {
        server.tell("kill", "postgres");
        server.tell("start", "postgres");
        // The connection in the pool is broken, and this is its first use since.
        let found = index.get(&key).unwrap();
        assert_eq!(found.map(|entry| entry.generation), Some(generation), "round {round}");
    }
}

#[test]
fn while_the_database_is_away_callers_fail_at_once_and_its_return_is_noticed() {
    let server = Private::start("postgres");
    let database = Database::on(server.variable("ARTIFACTAPI_TEST_POSTGRES"));
    let index = database.index();
    let key = key("away");
    stored(index.put(&key, &entry(&key), None).unwrap());
    server.tell("kill", "postgres");
    let asking = (0..1000).filter(|_| !is_at_once(&index.get(&key))).count();
    assert!(asking < 10, "{asking} callers asked");
    server.tell("start", "postgres");
    eventually("the index answers again", || index.get(&key).is_ok());
}

#[test]
fn a_start_without_the_database_makes_the_tables_when_it_comes() {
    let server = Private::start("postgres");
    let database = Database::on(server.variable("ARTIFACTAPI_TEST_POSTGRES"));
    server.tell("kill", "postgres");
    let index = database.index();
    assert!(index.probe().is_err());
    server.tell("start", "postgres");
    eventually("the index answers", || index.probe().is_ok());
    let key = key("late");
    stored(index.put(&key, &entry(&key), None).unwrap());
}

#[test]
fn a_database_that_is_silent_is_given_up_by_every_caller_and_used_again_when_it_speaks() {
    let server = Private::start("postgres");
    let mut database = Database::on(server.variable("ARTIFACTAPI_TEST_POSTGRES"));
    database.settings.connections_max = 2;
    database.settings.connect_timeout = Duration::from_millis(500);
    database.settings.statement_timeout = Duration::from_millis(1500);
    let index = database.index();
    let key = key("silent");
    stored(index.put(&key, &entry(&key), None).unwrap());
    for _round in 0..2 {
        server.tell("pause", "postgres");
        // More callers than connections: none of them hangs.
        thread::scope(|scope| {
            for _ in 0..20 {
                scope.spawn(|| assert!(index.get(&key).is_err()));
            }
        });
        eventually("nobody asks", || is_at_once(&index.get(&key)));
        server.tell("resume", "postgres");
        eventually("the index answers again", || index.get(&key).is_ok());
    }
}
