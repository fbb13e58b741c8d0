//! What judgement costs: the parts of a request that do no I/O. Run by `cargo bench`.
//!
//! Each figure is for one request; together they bound what `policy` and `artifact` add to a hit.
//! Deliberately not here: sockets, the index and the disk, which `scripts/bench` measures beside
//! other servers.

use std::hint::black_box;
use std::time::{Duration, SystemTime};

use artifactapi::artifact::{
    ArtifactKey, ArtifactPath, BlobKey, BlobVersion, Digest, Entry, Validators,
};
use artifactapi::formats::{self, Class};
use artifactapi::front::range;
use artifactapi::policy::lifetime::Lifetimes;
use artifactapi::policy::pattern::Patterns;
use artifactapi::policy::{self, Facts, Reach};
use divan::Bencher;

const PLAIN: &str = "v3.20/main/x86_64/curl-8.9.0-r0.apk";
const ESCAPED: &str = "pool/main/g/g%2b%2b/g%2b%2b_4%3a12.2.0-3_amd64.deb";
const TRICK: &str = "v3.20/%252e%252e/%2e%2e/etc/passwd";
/// As `REGEX_SIZE_MAX` is by default.
const REGEX_SIZE_MAX: usize = 10 << 20;

fn main() {
    divan::main();
}

#[divan::bench(args = [PLAIN, ESCAPED, TRICK])]
fn parse_a_path(raw: &str) -> bool {
    ArtifactPath::from_request(black_box(raw), None).is_ok()
}

#[divan::bench(args = [PLAIN])]
fn key_of_a_blob(bencher: Bencher<'_, '_>, path: &str) {
    let artifact = artifact(path);
    bencher.bench(|| BlobKey::of(black_box(&artifact)));
}

#[divan::bench(args = ["alpine", "deb", "rpm", "generic"])]
fn classify_a_path(bencher: Bencher<'_, '_>, format: &str) {
    let format = formats::named(format).expect("the four formats are built in");
    let path = path(PLAIN);
    bencher.bench(|| format.classify(black_box(&path)));
}

/// 1 and 500 patterns of the shape that remotes.yaml has, the last of which matches, or none.
#[divan::bench(args = [(1, true), (1, false), (500, true), (500, false)])]
fn allow_a_path(bencher: Bencher<'_, '_>, (count, matching): (usize, bool)) {
    let include: Vec<_> = (1..count)
        .map(|number| format!("^owner{number}/tool/releases/.*linux[-_]amd64.*\\.tar\\.gz$"))
        .chain([".*/x86_64/.*\\.apk$".to_owned()])
        .collect();
    let patterns = Patterns::new(&include, &[], &[], REGEX_SIZE_MAX).expect("they are regular");
    let format = formats::named("generic").expect("it is built in");
    let path = path(if matching { PLAIN } else { "owner1/other/1.0/tool-darwin-arm64.tar.gz" });
    assert_eq!(patterns.allow(format, &path), matching);
    bencher.bench(|| patterns.allow(format, black_box(&path)));
}

#[divan::bench(args = [Class::Immutable, Class::Head, Class::Member])]
fn decide(bencher: Bencher<'_, '_>, class: Class) {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let stored = entry(now - Duration::from_secs(60));
    let lifetimes = Lifetimes {
        file_ttl: Some(Duration::from_secs(86_400)),
        index_ttl: Duration::from_secs(300),
        stale_if_error: None,
        negative_ttl: Duration::from_secs(30),
    };
    let facts = Facts {
        class,
        stored: Some(&stored),
        fresh: Some(Duration::from_secs(240)),
        absent: false,
        head: stored.head,
        reach: Reach::Online,
    };
    bencher.bench(|| policy::decide(black_box(now), &lifetimes, black_box(&facts)));
}

#[divan::bench(args = ["bytes=0-499", "bytes=-500", "bytes=0-0,10-19,100-199,1000-", "lines=1-2"])]
fn resolve_a_range(header: &str) -> range::Resolved {
    range::resolve(black_box(header), black_box(10 << 20))
}

fn path(text: &str) -> ArtifactPath {
    ArtifactPath::from_canonical(text).expect("it is a plain path")
}

fn artifact(text: &str) -> ArtifactKey {
    ArtifactKey { remote: "alpine".parse().expect("it is a name"), path: path(text) }
}

fn entry(stored_at: SystemTime) -> Entry {
    Entry {
        blob: BlobKey::of(&artifact(PLAIN)),
        version: BlobVersion("1024-1.000000000".into()),
        size: 1024,
        digest: Digest::of(b"body"),
        content_type: Some("application/octet-stream".into()),
        content_encoding: None,
        validators: Validators::default(),
        stored_at,
        validated_at: stored_at,
        head: Some(Digest::of(b"head")),
        generation: 1,
        unproven: false,
    }
}
