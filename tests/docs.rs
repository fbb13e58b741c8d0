//! The documentation says what the code does: README's tables are those of the code.
//!
//! `UPDATE_DOCS=1 scripts/test --test main docs` writes them anew.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use artifactapi::blob::Tiers;
use artifactapi::cache::counters::{self, Counters};
use artifactapi::config::env::{ENGINES, SETTINGS};
use artifactapi::config::{file, key};
use artifactapi::formats;
use artifactapi::index::Usage;
use artifactapi::ops::Answered;
use artifactapi::ops::metrics::{Metrics, Now};
use artifactapi::staging::Disk;

use crate::support::server::PROGRAM;

const README: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
const CONFIGMAP: &str = include_str!("../manifests/configmap.yaml");

/// The text with what stands between the marks of `name` replaced.
fn with_section(text: &str, name: &str, content: &str) -> String {
    let (begin, end) = (format!("<!-- {name}:begin -->\n"), format!("<!-- {name}:end -->"));
    let (head, rest) = text.split_once(&begin).unwrap_or_else(|| panic!("README has no {begin}"));
    let (_, tail) = rest.split_once(&end).unwrap_or_else(|| panic!("README has no {end}"));
    format!("{head}{begin}{}\n{end}{tail}", content.trim_end())
}

/// A scrape that has everything in it. Metrics with labels say nothing before they have counted
/// something.
fn scrape() -> String {
    let (counters, tiers) = (Counters::default(), Tiers::default());
    let remote = "alpine".parse().expect("it is a name");
    let by_remote = [
        &counters.fetches,
        &counters.fetch_failures,
        &counters.fetched_bytes,
        &counters.evicted,
        &counters.evicted_bytes,
        &counters.without_room,
    ];
    for family in by_remote {
        counters::of(family, &remote).inc();
    }
    counters.upstream_head.observe(&remote, Duration::ZERO);
    tiers.of("memory").hits.inc();
    let metrics = Metrics::new(&counters, &tiers);
    metrics.count("alpine", Answered::Own, 1, Duration::ZERO);
    metrics.count_refusal(400);
    metrics.set_config_refused("remotes", false);
    metrics.render(&Now {
        usage: BTreeMap::from([(remote.clone(), Usage::default())]),
        usage_max: BTreeMap::from([(remote.clone(), 0)]),
        failing: BTreeMap::from([(remote, 0)]),
        answering: vec![("index", true)],
        connections: Some(0),
        connections_max: Some(0),
        disk: Some(Disk::default()),
        bounded_bytes_max: Some(0),
        ..Now::default()
    })
}

/// The table of all metrics, from what a scrape says of each.
fn metrics() -> String {
    let text = scrape();
    let mut table = "| metric | what |\n|---|---|\n".to_owned();
    for line in text.lines().filter_map(|line| line.strip_prefix("# HELP ")) {
        let (name, help) = line.split_once(' ').expect("each has words");
        let is_a = |kind: &str| text.contains(&format!("# TYPE {name} {kind}\n"));
        let end = match () {
            () if is_a("counter") => "_total",
            () if is_a("info") => "_info",
            () => "",
        };
        table += &format!("| `{name}{end}` | {} |\n", help.trim_end_matches('.'));
    }
    table
}

/// The table of the values that the label `outcome` has.
fn outcomes() -> String {
    let row = |answered: &Answered| {
        format!("| `{}` | {} |\n", answered.as_str(), answered.meaning().trim_end_matches('.'))
    };
    let head = "| outcome | what |\n|---|---|\n".to_owned();
    head + &Answered::ALL.iter().map(row).collect::<String>()
}

#[test]
fn readme_has_the_tables_of_the_code() {
    let readme = std::fs::read_to_string(README).expect("there is a README");
    let mut right = with_section(&readme, "remotes", &file::reference());
    right = with_section(&right, "engines", &key::markdown(ENGINES));
    right = with_section(&right, "settings", &key::markdown(SETTINGS));
    right = with_section(&right, "formats", &formats::markdown());
    right = with_section(&right, "metrics", &metrics());
    right = with_section(&right, "outcomes", &outcomes());
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(README, &right).expect("README can be written");
    }
    assert!(
        readme == right,
        "README's tables are old: UPDATE_DOCS=1 scripts/test --test main docs"
    );
}

/// The metrics that a text names.
fn named(text: &str) -> BTreeSet<&str> {
    let is_part = |c: char| c.is_ascii_lowercase() || c == '_';
    let words = text.split(|c: char| !is_part(c));
    words.filter(|word| word.starts_with("artifactapi_") && !word.ends_with('_')).collect()
}

#[test]
fn every_metric_that_readme_names_is_there() {
    let readme = std::fs::read_to_string(README).expect("there is a README");
    let scrape = scrape();
    // The samples, and the histograms they belong to.
    let heads = scrape.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let histograms = heads.filter_map(|head| head.strip_suffix(" histogram"));
    let samples = scrape.lines().filter_map(|line| line.split(['{', ' ']).next());
    let known: BTreeSet<&str> = samples.chain(histograms).collect();
    let unknown: Vec<_> = named(&readme).difference(&known).copied().collect();
    assert!(unknown.is_empty(), "README names metrics that do not exist: {unknown:?}");
    let (_, alerts) = readme.split_once("```promql\n").expect("README has alerts");
    let (alerts, _) = alerts.split_once("\n```").expect("they end");
    let outcomes = alerts.split("outcome=\"").skip(1).filter_map(|rest| rest.split('"').next());
    for outcome in outcomes {
        let is_known = Answered::ALL.iter().any(|answered| answered.as_str() == outcome);
        assert!(is_known, "no outcome {outcome:?}");
    }
    assert!(named(alerts).len() >= 7, "{alerts}");
}

#[test]
fn the_remotes_of_the_manifests_can_be_used() {
    let (_, block) = CONFIGMAP.split_once("  remotes.yaml: |\n").expect("it has a remotes.yaml");
    let lines = block.lines().map(|line| line.strip_prefix("    ").unwrap_or_default());
    let yaml = lines.collect::<Vec<_>>().join("\n");
    assert!(yaml.contains("\nremotes:\n"), "{yaml}");
    let folder = tempfile::tempdir().expect("a folder for the test can be made");
    let file = folder.path().join("remotes.yaml");
    std::fs::write(&file, yaml).expect("the folder takes a file");
    let checked = std::process::Command::new(PROGRAM).arg("check").arg(&file).env_clear().output();
    let checked = checked.expect("the program starts");
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
}
