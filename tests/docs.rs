//! The documentation says what the code does: README's tables are those of the code.
//!
//! `UPDATE_DOCS=1 scripts/test --test main docs` writes them anew.

use artifactapi::config::env::{ENGINES, SETTINGS};
use artifactapi::config::{file, key};
use artifactapi::formats;

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

#[test]
fn readme_has_the_tables_of_the_code() {
    let readme = std::fs::read_to_string(README).expect("there is a README");
    let mut right = with_section(&readme, "remotes", &file::reference());
    right = with_section(&right, "engines", &key::markdown(ENGINES));
    right = with_section(&right, "settings", &key::markdown(SETTINGS));
    right = with_section(&right, "formats", &formats::markdown());
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(README, &right).expect("README can be written");
    }
    assert!(
        readme == right,
        "README's tables are old: UPDATE_DOCS=1 scripts/test --test main docs"
    );
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
