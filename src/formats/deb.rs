//! The `deb` format: Debian repositories with `dists/` and `pool/`, and flat ones, as apt and
//! debootstrap read them.
//!
//! A suite's `InRelease` (or `Release` with `Release.gpg`) names every other index file of the
//! suite with its checksum. It does not know the images of the installer: those are heads like
//! everything unknown, and need an include pattern.

use std::borrow::Cow;

use super::{Class, PackageFormat, folder, in_folder, last_segment};
use crate::artifact::{ArtifactPath, Checksum, Digest};

/// Folders that are tried as the suite of a member. A suite is nearly always `dists/<x>`, but
/// names with slashes exist (`dists/<x>/updates`); each gives two candidates.
const SUITE_FOLDERS_MAX: usize = 4;

/// Ways in which an index file may be compressed.
const COMPRESSIONS: [&str; 6] = [".gz", ".xz", ".bz2", ".zst", ".lz4", ".lzma"];

/// Index files of a suite, as prefix and suffix around a name without a dot.
const LISTS: [(&str, &str); 5] = [
    ("Contents-", ""),
    ("Translation-", ""),
    ("Components-", ".yml"),
    ("Commands-", ""),
    ("icons-", ".tar"),
];

/// Folders of `by-hash`, with the digits of their checksums.
const BY_HASH: [(&str, usize); 4] = [("MD5Sum", 32), ("SHA1", 40), ("SHA256", 64), ("SHA512", 128)];

/// The `deb` format.
#[derive(Debug)]
pub(super) struct Deb;

/// What a path is, which all answers follow from.
enum Kind<'a> {
    /// An index with a lifetime of its own.
    Head,
    /// The detached signature of the `Release` beside it.
    Signature,
    /// A file that a suite's head names.
    Member,
    /// An index file under its checksum, in hexadecimal digits.
    ByHash(&'a str),
    /// A difference between two versions of an index file, both of which its name has.
    Patch,
    /// A package, or a part of a source package.
    Package,
    /// Anything else.
    Unknown,
}

fn kind(path: &ArtifactPath) -> Kind<'_> {
    let (folder, name) = (folder(path), path.file_name());
    // First, so that nothing that ends like a package is ever reachable as an index.
    if is_package(folder, name) {
        return Kind::Package;
    }
    match name {
        // The `Release` of one component and architecture is named by that of the suite.
        "Release" if is_in_component(folder) => Kind::Member,
        "InRelease" | "Release" | "Release.key" => Kind::Head,
        "Release.gpg" if !is_in_component(folder) => Kind::Signature,
        _ if is_by_hash(folder, name) => Kind::ByHash(name),
        _ if is_list(folder, name) => Kind::Member,
        "Index" if below_dists(folder).is_some() => Kind::Member,
        _ if patched_folder(folder).is_none() => Kind::Unknown,
        "Index" => Kind::Member,
        _ if !COMPRESSIONS.iter().any(|end| name.ends_with(end)) => Kind::Unknown,
        _ if name.starts_with("T-") && name.contains("-F-") => Kind::Patch,
        // A patch whose name does not fix both ends may be made anew under its name.
        _ => Kind::Member,
    }
}

/// Whether the file is part of a package: everything of that kind in a pool, elsewhere only
/// what has its version in its name. Vendors keep changing files such as
/// `tool_current_amd64.deb` outside of pools.
fn is_package(folder: &str, name: &str) -> bool {
    let is_source_archive = |name: &str| {
        let name = name.strip_suffix(".asc").unwrap_or(name);
        [".tar.gz", ".tar.xz", ".tar.bz2", ".tar.zst", ".tar.lzma"]
            .iter()
            .any(|end| name.ends_with(end))
    };
    let is_part = [".deb", ".udeb", ".ddeb", ".dsc", ".diff.gz"].iter().any(|e| name.ends_with(e))
        || is_source_archive(name);
    let has_version = || {
        // Debian policy, section 5.6.12: a version begins with a digit.
        name.split_once('_').is_some_and(|(_, version)| {
            version.bytes().next().is_some_and(|first| first.is_ascii_digit())
        })
    };
    is_part && (folder.split('/').any(|segment| segment == "pool") || has_version())
}

fn is_by_hash(folder: &str, name: &str) -> bool {
    BY_HASH.iter().any(|&(algorithm, digits)| {
        let in_place = folder
            .strip_suffix('/')
            .and_then(|folder| folder.strip_suffix(algorithm))
            .and_then(|folder| folder.strip_suffix('/'))
            .is_some_and(|folder| folder == "by-hash" || folder.ends_with("/by-hash"));
        in_place && name.len() == digits && name.bytes().all(|digit| digit.is_ascii_hexdigit())
    })
}

/// Whether a head names files of this name, in any compression.
fn is_list(folder: &str, name: &str) -> bool {
    let plain = COMPRESSIONS.iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
    let fits = |(prefix, suffix): &(&str, &str)| {
        plain
            .strip_prefix(prefix)
            .and_then(|rest| rest.strip_suffix(suffix))
            .is_some_and(|middle| !middle.is_empty() && !middle.contains('.'))
    };
    match plain {
        "Packages" | "Sources" => true,
        _ if below_dists(folder).is_some() => LISTS.iter().any(fits),
        // In a flat repository apt looks for nothing else.
        _ => fits(&LISTS[0]),
    }
}

/// The folder of the index file that `folder` has patches for: `x/` for `x/Packages.diff/`.
fn patched_folder(folder: &str) -> Option<&str> {
    let list = last_segment(folder).strip_suffix(".diff")?;
    let parent = &folder[..folder.len() - list.len() - ".diff/".len()];
    is_list(parent, list).then_some(parent)
}

/// Splits a folder behind `dists/`; `None` where there is no such segment.
fn below_dists(folder: &str) -> Option<(&str, &str)> {
    let at = if folder.starts_with("dists/") {
        "dists/".len()
    } else {
        folder.find("/dists/")? + "/dists/".len()
    };
    Some(folder.split_at(at))
}

/// Whether the folder is that of one component and architecture, so deep that no suite is
/// there. The first segment below `dists/` is part of a suite's name whatever it is.
fn is_in_component(folder: &str) -> bool {
    below_dists(folder).is_some_and(|(_, below)| {
        below.split('/').skip(1).any(|name| name == "source" || name.starts_with("binary-"))
    })
}

/// Whether a folder of this name is below the components of a suite.
fn ends_the_suite(name: &str) -> bool {
    matches!(name, "source" | "i18n" | "dep11" | "cnf" | "debian-installer")
        || name.starts_with("binary-")
        || name.ends_with(".diff")
}

/// The folders in which the suite's head may be, most likely first, at most
/// [`SUITE_FOLDERS_MAX`].
fn suite_folders(folder: &str) -> Vec<&str> {
    let Some((start, below)) = below_dists(folder).filter(|(_, below)| !below.is_empty()) else {
        // A flat repository has its head beside the index files.
        return vec![patched_folder(folder).unwrap_or(folder)];
    };
    let mut end = start.len();
    below
        .split_inclusive('/')
        .enumerate()
        .take_while(|(depth, segment)| {
            *depth == 0 || !ends_the_suite(&segment[..segment.len() - 1])
        })
        .take(SUITE_FOLDERS_MAX)
        .map(|(_, segment)| {
            end += segment.len();
            &folder[..end]
        })
        .collect()
}

impl PackageFormat for Deb {
    fn name(&self) -> &'static str {
        "deb"
    }

    fn classify(&self, path: &ArtifactPath) -> Class {
        match kind(path) {
            Kind::Head | Kind::Unknown => Class::Head,
            // Beside a newer Release an older signature would not verify.
            Kind::Member | Kind::Signature => Class::Member,
            Kind::ByHash(_) | Kind::Patch | Kind::Package => Class::Immutable,
        }
    }

    fn is_index(&self, path: &ArtifactPath) -> bool {
        !matches!(kind(path), Kind::Package | Kind::Unknown)
    }

    fn heads_of(&self, path: &ArtifactPath) -> Vec<ArtifactPath> {
        let folder = folder(path);
        match kind(path) {
            Kind::Signature => in_folder(folder, "Release", path).into_iter().collect(),
            Kind::Member | Kind::ByHash(_) => suite_folders(folder)
                .into_iter()
                .flat_map(|suite| ["InRelease", "Release"].map(|name| (suite, name)))
                .filter_map(|(suite, name)| in_folder(suite, name, path))
                .collect(),
            _ => Vec::new(),
        }
    }

    /// From the `SHA256` field of a Release, signed or not: a line `digest size name` for each file,
    /// named from the Release's folder.
    fn stated(&self, head: &ArtifactPath, text: &str, member: &ArtifactPath) -> Option<Digest> {
        let wanted = member.without_query().strip_prefix(folder(head))?;
        let mut is_inside = false;
        for line in text.lines() {
            if !line.starts_with(' ') {
                is_inside = line.trim_end().eq_ignore_ascii_case("SHA256:");
            } else if is_inside {
                let mut words = line.split_ascii_whitespace();
                let (digest, name) = (words.next()?, words.nth(1)?);
                if name.strip_prefix("./").unwrap_or(name) == wanted {
                    return digest.parse().ok();
                }
            }
        }
        None
    }

    /// Without its `.` segments. apt joins URLs without resolving them (RFC 3986, section
    /// 5.2.4): of a flat repository it asks for `./InRelease`, where sources.list says `./`,
    /// and for `./x_1.deb`, where `Packages` says so, as dpkg-scanpackages writes it.
    fn meant<'a>(&self, sent: &'a str) -> Cow<'a, str> {
        let is_dot = |segment: &&str| segment.strip_suffix('/') == Some(".");
        if !sent.split_inclusive('/').any(|segment| is_dot(&segment)) {
            return Cow::Borrowed(sent);
        }
        sent.split_inclusive('/').filter(|segment| !is_dot(segment)).collect()
    }

    /// SHA-256 and SHA-512 only; a name that is an MD5 or a SHA-1 is immutable and not verified.
    fn digest_in(&self, path: &ArtifactPath) -> Option<Checksum> {
        match kind(path) {
            Kind::ByHash(digits) => Checksum::from_hex(digits),
            _ => None,
        }
    }

    fn examples(&self) -> &'static [(&'static str, Class)] {
        &[
            ("dists/bookworm/InRelease", Class::Head),
            ("dists/bookworm/Release", Class::Head),
            ("dists/bookworm/updates/InRelease", Class::Head),
            ("flat/InRelease", Class::Head),
            ("Release.key", Class::Head),
            ("dists/bookworm/main/installer-amd64/current/images/SHA256SUMS", Class::Head),
            ("flat/tool_current_amd64.deb", Class::Head),
            ("pool/main/h/hello/", Class::Head),
            ("dists/bookworm/Release.gpg", Class::Member),
            ("dists/bookworm/main/binary-amd64/Packages.xz", Class::Member),
            ("dists/bookworm/main/binary-amd64/Release", Class::Member),
            ("dists/bookworm/main/source/Sources.gz", Class::Member),
            ("dists/bookworm/main/Contents-amd64.gz", Class::Member),
            ("dists/bookworm/main/i18n/Translation-zh_CN.bz2", Class::Member),
            ("dists/bookworm/main/i18n/Index", Class::Member),
            ("dists/bookworm/main/dep11/Components-amd64.yml.gz", Class::Member),
            ("dists/bookworm/main/dep11/icons-64x64@2.tar.gz", Class::Member),
            ("dists/bookworm/main/cnf/Commands-amd64.xz", Class::Member),
            ("dists/bookworm/main/binary-amd64/Packages.diff/Index", Class::Member),
            ("dists/bookworm/main/binary-amd64/Packages.diff/2026-01-02-0801.10.gz", Class::Member),
            ("flat/Packages.gz", Class::Member),
            (
                "dists/bookworm/main/binary-amd64/Packages.diff/T-2026-01-02-1401.11-F-2026-01-02-0801.10.gz",
                Class::Immutable,
            ),
            (
                "dists/bookworm/main/binary-amd64/by-hash/SHA256/e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
                Class::Immutable,
            ),
            (
                "dists/bookworm/main/binary-amd64/by-hash/MD5Sum/d41d8cd98f00b204e9800998ecf8427e",
                Class::Immutable,
            ),
            ("pool/main/h/hello/hello_2.10-3_amd64.deb", Class::Immutable),
            ("pool/main/d/dpkg/dpkg_1%3a1.21-1_amd64.udeb", Class::Immutable),
            ("pool/main/h/hello/hello_2.10-3.dsc", Class::Immutable),
            ("pool/main/h/hello/hello_2.10.orig.tar.xz", Class::Immutable),
            ("pool/main/h/hello/hello_2.10.orig.tar.xz.asc", Class::Immutable),
            ("pool/main/h/hello/hello_2.10-3.diff.gz", Class::Immutable),
            ("dists/bookworm/pool/stable/amd64/tool-ce_24.0.7-1_amd64.deb", Class::Immutable),
            ("flat/tool_1.85.1-1702462158_amd64.deb", Class::Immutable),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::Digest;

    fn path(text: &str) -> ArtifactPath {
        ArtifactPath::from_canonical(text).unwrap()
    }

    #[test]
    fn the_index_is_reachable_and_nothing_else_is() {
        let check = |text: &str, is_index: bool| {
            assert_eq!(Deb.is_index(&path(text)), is_index, "{text}");
        };
        check("dists/bookworm/InRelease", true);
        check("dists/bookworm/Release.gpg", true);
        check("InRelease", true);
        check("Packages", true);
        check("flat/Contents-amd64.gz", true);
        check("Release.key", true);
        check("dists/bookworm/main/binary-amd64/Packages.lz4", true);
        check("dists/bookworm/main/binary-amd64/Packages.diff/Index", true);
        check("dists/bookworm/main/binary-amd64/Packages.diff/T-2-F-1.gz", true);
        check(
            "dists/bookworm/main/binary-amd64/by-hash/SHA1/da39a3ee5e6b4b0d3255bfef95601890afd80709",
            true,
        );
        check("dists/bookworm/main/i18n/Translation-en", true);
        check("pool/main/h/hello/hello_2.10-3_amd64.deb", false);
        check("dists/bookworm/Contents-x_1.deb", false);
        check("pool/Packages.diff/x_1.deb", false);
        check("flat/tool_1.0_amd64.deb", false);
        check("flat/tool_current_amd64.deb", false);
        check("Packages.diff/tool.deb", false);
        check("flat/Index", false);
        check("flat/Translation-en", false);
        check("flat/icons-64x64.tar.gz", false);
        check("dists/bookworm/Contents-.gz", false);
        check("dists/bookworm/Contents-a.iso", false);
        check("dists/bookworm/Packages.exe", false);
        check("dists/bookworm/packages.gz", false);
        check("dists/bookworm/main/binary-amd64/Packages.diff/", false);
        check("dists/bookworm/main/binary-amd64/Release.gpg", false);
        check("dists/bookworm/main/installer-amd64/current/images/netboot/mini.iso", false);
        check("other.diff/Index", false);
        check("by-hash/SHA256/short", false);
        check("mydists/x/main/i18n/Translation-en", false);
        check("secret.txt?x=/dists/bookworm/InRelease", false);
    }

    #[test]
    fn names_under_by_hash_are_verified_where_the_hash_proves_something() {
        let digest = Digest::of(b"");
        let check = |text: String, class: Class, checksum: Option<Checksum>| {
            let path = path(&text);
            assert_eq!((Deb.classify(&path), Deb.digest_in(&path)), (class, checksum), "{text}");
        };
        let sha256 = Some(Checksum::Sha256(digest));
        check(format!("dists/x/by-hash/SHA256/{digest}"), Class::Immutable, sha256);
        check(format!("by-hash/SHA256/{digest}"), Class::Immutable, sha256);
        check(
            format!("dists/x/by-hash/SHA512/{}", "0f".repeat(64)),
            Class::Immutable,
            Some(Checksum::Sha512([0x0f; 64])),
        );
        check(format!("dists/x/by-hash/SHA1/{}", "a".repeat(40)), Class::Immutable, None);
        check(format!("dists/x/by-hash/MD5Sum/{}", "a".repeat(32)), Class::Immutable, None);
        // Not what the folder says: unknown, so it is asked for again.
        check(format!("dists/x/by-hash/SHA1/{digest}"), Class::Head, None);
        check(format!("dists/x/by-hash/SHA256/{}", "g".repeat(64)), Class::Head, None);
        check(format!("dists/x/by-hash/SHA999/{digest}"), Class::Head, None);
        check(format!("dists/x/my-by-hash/SHA256/{digest}"), Class::Head, None);
        check(format!("dists/x/SHA256/{digest}"), Class::Head, None);
    }

    #[test]
    fn a_member_belongs_to_the_heads_of_its_suite() {
        let check = |text: &str, heads: &[&str]| {
            let expected: Vec<_> = heads.iter().map(|head| path(head)).collect();
            assert_eq!(Deb.heads_of(&path(text)), expected, "{text}");
        };
        check(
            "dists/bookworm/Contents-amd64.gz",
            &["dists/bookworm/InRelease", "dists/bookworm/Release"],
        );
        check(
            "debian/dists/bookworm/main/binary-amd64/Packages.xz?k=1",
            &[
                "debian/dists/bookworm/InRelease?k=1",
                "debian/dists/bookworm/Release?k=1",
                "debian/dists/bookworm/main/InRelease?k=1",
                "debian/dists/bookworm/main/Release?k=1",
            ],
        );
        check(
            "dists/buster/updates/main/debian-installer/binary-amd64/Packages.gz",
            &[
                "dists/buster/InRelease",
                "dists/buster/Release",
                "dists/buster/updates/InRelease",
                "dists/buster/updates/Release",
                "dists/buster/updates/main/InRelease",
                "dists/buster/updates/main/Release",
            ],
        );
        check("dists/source/Sources", &["dists/source/InRelease", "dists/source/Release"]);
        check("dists/Packages", &["dists/InRelease", "dists/Release"]);
        check("flat/x/Packages", &["flat/x/InRelease", "flat/x/Release"]);
        check("flat/Packages.diff/Index", &["flat/InRelease", "flat/Release"]);
        check("Packages.diff/Index", &["InRelease", "Release"]);
        check("dists/bookworm/Release.gpg", &["dists/bookworm/Release"]);
        check("Release.gpg", &["Release"]);
        check("dists/bookworm/InRelease", &[]);
        check("pool/main/h/hello/hello_2.10-3_amd64.deb", &[]);
    }

    #[test]
    fn what_apt_sends_of_a_flat_repository_means_the_plain_path() {
        let check = |sent: &str, meant: &str| assert_eq!(Deb.meant(sent), meant, "{sent}");
        check("./InRelease", "InRelease");
        check("x86_64/./tool_1.0_amd64.deb", "x86_64/tool_1.0_amd64.deb");
        check("././a/././b", "a/b");
        check("./", "");
        check("pool/a%20b/x_1.deb", "pool/a%20b/x_1.deb");
        check(".a/b./.../", ".a/b./.../");
        // No client sends these: they stay, and are refused.
        check("a/.", "a/.");
        check("a/%2e/b", "a/%2e/b");
        check("./../b", "../b");
        check(".//b", "/b");
    }

    #[test]
    fn the_number_of_candidates_is_bounded() {
        let deep = path(&format!("dists/{}Packages", "x/".repeat(500)));
        assert_eq!(Deb.heads_of(&deep).len(), 2 * SUITE_FOLDERS_MAX);
    }
}
