//! The repository's own remotes.yaml: it is right, and it is the reference of every key.

use std::collections::BTreeSet;

use super::*;
use crate::artifact::ArtifactPath;

/// The repository's own file.
pub(super) const EXAMPLE: &str = include_str!("../../../remotes.yaml");

fn parsed(text: &str) -> Result<(Remotes, Vec<Problem>), ConfigErrors> {
    let env = |name: &str| (name == "FILES_PASSWORD").then(|| "hunter2".to_owned());
    parse(text, "remotes.yaml", &Around { regex_size_max: 1 << 20, env: &env })
}

#[test]
fn the_repositorys_own_file_allows_what_it_says_and_nothing_else() {
    let (remotes, warnings) = parsed(EXAMPLE).unwrap_or_else(|errors| panic!("{errors}"));
    let warnings: Vec<&str> = warnings.iter().map(|warning| warning.key.as_str()).collect();
    assert_eq!(warnings, ["remotes.almalinux.base_url"], "plain http, on purpose");
    for (name, allowed, refused) in [
        (
            "github",
            &[
                "gruntwork-io/terragrunt/releases/download/v0.67.4/terragrunt_linux_amd64",
                "lxc/incus/releases/download/v6.6.0/bin.linux.incus.x86_64",
                "prometheus/node_exporter/releases/download/v1.8.2/node_exporter-1.8.2.linux-amd64.tar.gz",
            ][..],
            &[
                "evil/terragrunt/releases/download/v0.67.4/terragrunt_linux_amd64",
                "prometheus/node_exporter/releases/download/v1.8.2/node_exporter-1.8.2.darwin-amd64.tar.gz",
                "x/lxc/incus/releases/download/v6.6.0/bin.linux.incus.x86_64",
            ][..],
        ),
        (
            "hashicorp-releases",
            &[
                "terraform/1.9.5/terraform_1.9.5_linux_amd64.zip",
                "vault/1.17.3/vault_1.17.3_linux_amd64.zip",
                "consul/1.19.1/consul_1.19.1_linux_amd64.zip",
            ],
            &[
                "terraform/1.9.5/terraform_1.9.5_linux_arm64.zip",
                "nomad/1.8.3/nomad_1.8.3_linux_amd64.zip",
            ],
        ),
        (
            "alpine",
            &["alpine/v3.20/main/x86_64/curl-8.9.0-r0.apk"],
            &["alpine/v3.20/main/aarch64/curl-8.9.0-r0.apk", "alpine/v3.20/main/x86_64/curl.txt"],
        ),
        (
            "almalinux",
            &[
                "9/BaseOS/x86_64/os/Packages/bash-5.1.8-9.el9.x86_64.rpm",
                "9/AppStream/x86_64/os/Packages/ansible-core-2.14.14-1.el9.noarch.rpm",
            ],
            &["9/BaseOS/aarch64/os/Packages/bash-5.1.8-9.el9.aarch64.rpm"],
        ),
        ("local-generic", &["team/tool.tar.gz"], &["tool.tar.gz"]),
    ] {
        let remote = &remotes.by_name[&name.parse().unwrap()];
        for (paths, expected) in [(allowed, true), (refused, false)] {
            for path in paths {
                let path = ArtifactPath::from_canonical(*path).unwrap();
                assert_eq!(remote.patterns.allow(remote.format, &path), expected, "{name} {path}");
            }
        }
    }
    assert_eq!(remotes.by_name.len(), 5);
    let alpine = &remotes.by_name[&"alpine".parse().unwrap()];
    assert_eq!(alpine.lifetimes.index_ttl, Duration::from_secs(7200));
    assert_eq!(alpine.lifetimes.file_ttl, None);
}

#[test]
fn the_reference_in_the_repositorys_file_lists_every_key_and_is_right() {
    let block = EXAMPLE.split_once("  # example:").expect("the reference is there").1;
    let reference: String = block
        .lines()
        .map(|line| line.strip_prefix("  # ").unwrap_or(line))
        .fold(String::from("remotes:\n  example:"), |text, line| text + "  " + line + "\n");
    let (remotes, warnings) =
        parsed(&reference).unwrap_or_else(|errors| panic!("{errors}\n{reference}"));
    assert_eq!((remotes.by_name.len(), warnings), (1, vec![]));
    let written: BTreeSet<&str> = block
        .lines()
        .filter_map(|line| line.trim_start_matches(['#', ' ']).split_once(':'))
        .map(|(key, _)| key)
        .collect();
    let tables =
        [REMOTE_KEYS, CACHE_KEYS, origin::AUTH_KEYS, origin::BASIC_KEYS, origin::TIMEOUT_KEYS];
    for key in tables.into_iter().flatten() {
        assert!(written.contains(key.name), "{} is not in the reference", key.name);
    }
}
