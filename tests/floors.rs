//! The rooms stand on their floors: who may use whom, read from the sources.
//!
//! A room uses lower floors only, but for the steps that [`SIDEWAYS`] lists. Some crates, and
//! every backend, are known to one place. What counts is each path that begins at the crate's
//! root, in `use` lines and elsewhere; the tests inside a module may name what they like.

use std::path::Path;

use crate::support::server::files_below;

/// Every room and its floor.
const FLOORS: &[(&str, u32)] = &[
    ("artifact", 0),
    ("body", 0),
    ("breaker", 0),
    ("chain", 0),
    ("recent", 0),
    ("roots", 0),
    ("seats", 0),
    ("names", 0),
    ("tcp", 0),
    ("waiting", 0),
    ("clock", 0),
    ("test_servers", 0),
    ("config", 1),
    ("discovery", 1),
    ("formats", 1),
    ("policy", 1),
    ("blob", 2),
    ("coord", 2),
    ("index", 2),
    ("staging", 2),
    ("upstream", 2),
    ("cache", 3),
    ("batch", 4),
    ("front", 4),
    ("ops", 4),
    ("main", 5),
    ("wiring", 5),
];

/// Steps on one floor that are allowed: from, to.
const SIDEWAYS: &[(&str, &str)] = &[
    ("names", "recent"),
    // A body says what of it is still to come.
    ("body", "waiting"),
    ("config", "formats"),
    ("config", "policy"),
    // A judgement is about a class, and classes are the formats'.
    ("policy", "formats"),
    ("blob", "staging"),
    ("front", "batch"),
    ("front", "ops"),
    ("main", "wiring"),
];

/// Crates that one place alone may name, and how the paths of its files begin.
const CRATES: &[(&str, &[&str])] = &[
    ("tiny_http", &["front/wire/tiny"]),
    ("socket2", &["front/wire", "ops/ask.rs", "upstream/http/raw_server.rs"]),
    ("ureq", &["upstream/", "blob/s3", "names.rs", "roots.rs", "tcp.rs"]),
    ("rusqlite", &["index/embedded"]),
    ("tokio_postgres_rustls", &["index/postgres"]),
    ("serde_yaml", &["config/"]),
];

/// Ports, and the files beside them that are no backends.
const PORTS: &[(&str, &[&str])] = &[
    ("blob", &["mod", "conformance"]),
    ("index", &["mod", "conformance"]),
    ("coord", &["mod", "conformance"]),
];

/// Rooms that judge: no I/O, and the time is an argument.
const PURE: &[&str] = &["artifact", "discovery", "formats", "policy"];
/// What gives away that a pure room is none.
const IMPURE: &[&str] =
    &["std::fs", "std::net", "std::process", "std::thread", "SystemTime::now", "Instant::now"];

/// A source file: its path below `src/`, and its text without comments and inner tests.
#[derive(Debug)]
struct Source {
    path: String,
    code: String,
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        let without_comment = |line: &str| match line.find("//") {
            // A URL in a string is no comment.
            Some(at) if !line[..at].ends_with(':') => line[..at].to_owned() + "\n",
            _ => line.to_owned() + "\n",
        };
        Self { path: path.to_owned(), code: code.lines().map(without_comment).collect() }
    }

    fn room(&self) -> &str {
        let first = self.path.split('/').next().unwrap_or_default();
        first.strip_suffix(".rs").unwrap_or(first)
    }

    /// Whether the whole file is test code.
    fn is_test(&self) -> bool {
        ["conformance.rs", "tests.rs", "scripted.rs"].iter().any(|name| self.path.ends_with(name))
    }

    /// Every path of the crate that the file names, without `crate::`.
    fn crate_paths(&self) -> Vec<String> {
        let mut paths = Vec::new();
        for root in ["crate::", "artifactapi::"] {
            for (at, _) in self.code.match_indices(root) {
                expand(&self.code[at + root.len()..], "", &mut paths);
            }
        }
        paths
    }

    /// How far the file's `super::` lead at most.
    fn supers(&self) -> usize {
        let mut longest = 0;
        let mut rest = self.code.as_str();
        while let Some(at) = rest.find("super::") {
            rest = &rest[at..];
            let mut count = 0;
            while let Some(after) = rest.strip_prefix("super::") {
                count += 1;
                rest = after;
            }
            longest = longest.max(count);
        }
        longest
    }

    /// How many `super::` lead to the crate's root.
    fn depth(&self) -> usize {
        let parts = self.path.split('/').count();
        if self.path.ends_with("/mod.rs") { parts - 1 } else { parts }
    }
}

/// Reads one use tree, as `a::{b, c::d}`, adds its paths, and gives what stands behind it.
fn expand<'a>(text: &'a str, prefix: &str, paths: &mut Vec<String>) -> &'a str {
    let text = text.trim_start();
    if let Some(mut inner) = text.strip_prefix('{') {
        loop {
            inner = inner.trim_start();
            match inner.chars().next() {
                Some('}') => return &inner[1..],
                Some(',') => inner = &inner[1..],
                Some(_) => {
                    let rest = expand(inner, prefix, paths);
                    // A renaming or something unknown: go on behind it.
                    inner = &rest[rest.find([',', '}']).unwrap_or(rest.len())..];
                }
                None => return inner,
            }
        }
    }
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    let path = format!("{prefix}{}", &text[..end]);
    match text[end..].strip_prefix("::") {
        Some(rest) => expand(rest, &format!("{path}::"), paths),
        None => {
            paths.push(path);
            &text[end..]
        }
    }
}

fn floor(room: &str) -> Option<u32> {
    FLOORS.iter().find(|(name, _)| *name == room).map(|(_, floor)| *floor)
}

/// Everything that is not as the tables say.
fn violations(sources: &[Source]) -> Vec<String> {
    let mut found = Vec::new();
    let backends = backends(sources);
    for source in sources.iter().filter(|source| source.path != "lib.rs") {
        let (path, room) = (&source.path, source.room());
        let Some(own_floor) = floor(room) else {
            found.push(format!("{path}: the room {room} has no floor"));
            continue;
        };
        for named in source.crate_paths() {
            let other = named.split("::").next().unwrap_or_default();
            let Some(other_floor) = floor(other) else { continue };
            let is_allowed = other == room
                || other_floor < own_floor
                || SIDEWAYS.contains(&(room, other)) && other_floor == own_floor;
            if !is_allowed {
                found.push(format!(
                    "{path}: {room} (floor {own_floor}) uses {named} (floor {other_floor})"
                ));
            }
            let is_backend = backends.iter().any(|(_, backend)| within(&named, backend));
            if is_backend && other != room && room != "wiring" && !source.is_test() {
                found.push(format!("{path}: {named} is a backend, which only wiring.rs names"));
            }
        }
        if source.supers() >= source.depth() {
            found.push(format!("{path}: super:: leads to the crate's root: write crate::"));
        }
        for (name, places) in CRATES {
            let is_place = places.iter().any(|place| path.starts_with(place));
            if !is_place && names_crate(&source.code, name) {
                found.push(format!("{path}: only {places:?} may name {name}"));
            }
        }
        if PURE.contains(&room) {
            for sign in IMPURE.iter().filter(|sign| source.code.contains(**sign)) {
                found.push(format!("{path}: {sign} in {room}, which is pure"));
            }
        }
    }
    found
}

/// Every backend module, as `blob::disk`, with its file.
fn backends(sources: &[Source]) -> Vec<(&str, String)> {
    let backend = |source: &'_ Source| {
        let (room, file) = source.path.split_once('/')?;
        let (_, others) = PORTS.iter().find(|(port, _)| *port == room)?;
        let module = file.split(['/', '.']).next()?;
        (!others.contains(&module)).then(|| format!("{room}::{module}"))
    };
    sources.iter().filter_map(|source| Some((source.path.as_str(), backend(source)?))).collect()
}

fn within(path: &str, module: &str) -> bool {
    path.strip_prefix(module).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

fn names_crate(code: &str, name: &str) -> bool {
    code.match_indices(&format!("{name}::"))
        .any(|(at, _)| !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':'))
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let rust =
        files_below(&root).into_iter().filter(|file| file.extension() == Some("rs".as_ref()));
    rust.map(|file| {
        let path = file.strip_prefix(&root).expect("it was found there");
        let text = std::fs::read_to_string(&file).expect("a source can be read");
        Source::new(path.to_str().expect("sources have plain names"), &text)
    })
    .collect()
}

#[test]
fn every_room_uses_lower_floors_only() {
    let sources = sources();
    assert!(sources.len() > 20, "the sources were not found");
    let found = violations(&sources);
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn the_table_names_no_room_that_is_gone() {
    let sources = sources();
    for (room, _) in FLOORS {
        assert!(sources.iter().any(|source| source.room() == *room), "there is no room {room}");
    }
}

#[track_caller]
fn check(path: &str, code: &str, expected: Option<&str>) {
    let backend = Source::new("blob/disk.rs", "");
    let found = violations(&[backend, Source::new(path, code)]);
    match expected {
        None => assert!(found.is_empty(), "{found:?}"),
        Some(part) => {
            assert!(found.len() == 1 && found[0].contains(part), "{found:?} without {part:?}");
        }
    }
}

#[test]
fn a_step_upwards_or_sideways_is_found_however_it_is_written() {
    check("formats/deb.rs", "use crate::artifact::Checksum;", None);
    check("formats/deb.rs", "use crate::front::wire::Reply;", Some("uses front::wire::Reply"));
    check(
        "cache/mod.rs",
        "use crate::{\n    body::Body,\n    blob::{BlobStore, BlobError as E},\n};",
        None,
    );
    check(
        "cache/mod.rs",
        "use crate::{body::{Body}, ops::{metrics::M}};",
        Some("uses ops::metrics::M"),
    );
    check("index/mod.rs", "fn f() { crate::coord::x() }", Some("uses coord::x"));
    check("blob/mod.rs", "use crate::staging::SealedFile;", None);
    check("staging.rs", "use super::blob::BlobStore;", Some("crate's root"));
    check("blob/s3/mod.rs", "use super::super::index::X;", Some("crate's root"));
    check("blob/s3/part.rs", "use super::super::BlobStore;", None);
    check("elsewhere.rs", "", Some("no floor"));
    check("main.rs", "use artifactapi::wiring;", None);
    check("policy/mod.rs", "// use crate::front::X;\n", None);
    check("policy/mod.rs", "#[cfg(test)]\nmod tests {\n use crate::cache::X; }", None);
}

#[test]
fn a_backend_or_a_guarded_crate_in_another_place_is_found() {
    check("cache/mod.rs", "use crate::blob::disk::Disk;", Some("only wiring.rs"));
    check("cache/mod.rs", "use crate::blob::{disk, BlobStore};", Some("only wiring.rs"));
    check("wiring.rs", "use crate::blob::disk::Disk;", None);
    check("front/wire/tiny.rs", "use tiny_http::Server;", None);
    check("front/mod.rs", "use tiny_http::Server;", Some("may name tiny_http"));
    check("cache/fetch.rs", "fn f(_: &ureq::Agent) {}", Some("may name ureq"));
    check("upstream/http.rs", "use ureq::Agent;", None);
    check("policy/mod.rs", "let now = SystemTime::now();", Some("which is pure"));
}
