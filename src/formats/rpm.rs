//! The `rpm` format: repositories with a `repodata` folder, as createrepo_c makes them and
//! dnf and zypper read them.
//!
//! `repodata/repomd.xml` names every other index file with its checksum. It does not know
//! the index of old installation media (`content`, `suse/setup/descr`): those files are
//! heads like everything unknown, and need an include pattern.

use percent_encoding::percent_decode_str;
use serde::Deserialize;

use super::{Class, PackageFormat, folder, in_folder, last_segment};
use crate::artifact::{ArtifactPath, Checksum, Digest};

/// Digits of the checksums that lead a name in `repodata`: MD5, SHA-1, SHA-224, SHA-256,
/// SHA-384 and SHA-512. Another number of digits is not taken for a checksum.
const CHECKSUM_DIGITS: [usize; 6] = [32, 40, 56, 64, 96, 128];

/// The `rpm` format.
#[derive(Debug)]
pub(super) struct Rpm;

/// A repomd.xml, as far as it states what its members are.
#[derive(Deserialize)]
struct Repomd {
    #[serde(default)]
    data: Vec<Data>,
}

#[derive(Deserialize)]
struct Data {
    location: Option<Location>,
    checksum: Option<StatedChecksum>,
}

#[derive(Deserialize)]
struct Location {
    #[serde(rename = "@href")]
    href: String,
}

#[derive(Deserialize)]
struct StatedChecksum {
    #[serde(rename = "@type")]
    kind: String,
    #[serde(rename = "$text")]
    digits: String,
}

/// What a path is, which all answers follow from.
enum Kind<'a> {
    /// An index with a lifetime of its own.
    Head,
    /// A file that `repomd.xml` names or, as a detached signature, covers.
    Member,
    /// A file that `repomd.xml` names under the checksum in its name, in hexadecimal digits.
    Hashed(&'a str),
    /// A package or a delta of one.
    Package,
    /// Anything else.
    Unknown,
}

fn kind(path: &ArtifactPath) -> Kind<'_> {
    let (folder, name) = (folder(path), path.file_name());
    if name.is_empty() {
        return Kind::Unknown;
    }
    // First, so that nothing that ends like a package is ever reachable as an index.
    if name.ends_with(".rpm") || name.ends_with(".drpm") {
        return Kind::Package;
    }
    match last_segment(folder) {
        // The signature is a member: beside a newer repomd.xml it would not verify.
        "repodata" if name == "repomd.xml" || name == "repomd.xml.key" => Kind::Head,
        "repodata" => leading_checksum(name).map_or(Kind::Member, Kind::Hashed),
        "media.1" => Kind::Head,
        _ if matches!(name, "treeinfo" | ".treeinfo" | "mirrorlist" | "metalink") => Kind::Head,
        _ if name.starts_with("RPM-GPG-KEY") => Kind::Head,
        _ if folder.starts_with("mirrorlist/") || folder.starts_with("metalink/") => Kind::Head,
        _ => Kind::Unknown,
    }
}

/// The checksum in `<digits>-primary.xml.gz`.
fn leading_checksum(name: &str) -> Option<&str> {
    let (digits, _) = name.split_once('-')?;
    let is_checksum = CHECKSUM_DIGITS.contains(&digits.len())
        && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    is_checksum.then_some(digits)
}

impl PackageFormat for Rpm {
    fn name(&self) -> &'static str {
        "rpm"
    }

    fn classify(&self, path: &ArtifactPath) -> Class {
        match kind(path) {
            Kind::Head | Kind::Unknown => Class::Head,
            Kind::Member => Class::Member,
            Kind::Hashed(_) | Kind::Package => Class::Immutable,
        }
    }

    fn is_index(&self, path: &ArtifactPath) -> bool {
        matches!(kind(path), Kind::Head | Kind::Member | Kind::Hashed(_))
    }

    fn heads_of(&self, path: &ArtifactPath) -> Vec<ArtifactPath> {
        match kind(path) {
            Kind::Member | Kind::Hashed(_) => {
                in_folder(folder(path), "repomd.xml", path).into_iter().collect()
            }
            _ => Vec::new(),
        }
    }

    /// From the `data` element of repomd.xml that has the member as its location.
    fn stated(&self, head: &ArtifactPath, text: &str, member: &ArtifactPath) -> Option<Digest> {
        let root = folder(head).strip_suffix("repodata/")?;
        let wanted = member.without_query().strip_prefix(root)?;
        let is_at = |location: &Location| {
            percent_decode_str(&location.href).decode_utf8().is_ok_and(|inside| inside == wanted)
        };
        let repomd = quick_xml::de::from_str::<Repomd>(text).ok()?;
        let is_named = |data: &Data| data.location.as_ref().is_some_and(is_at);
        let named = repomd.data.into_iter().find(is_named)?;
        let is_sha256 = |checksum: &StatedChecksum| checksum.kind == "sha256";
        named.checksum.filter(is_sha256)?.digits.trim().parse().ok()
    }

    /// SHA-256 and SHA-512 only; a name with a weaker checksum is immutable and not verified.
    fn digest_in(&self, path: &ArtifactPath) -> Option<Checksum> {
        match kind(path) {
            Kind::Hashed(digits) => Checksum::from_hex(digits),
            _ => None,
        }
    }

    fn examples(&self) -> &'static [(&'static str, Class)] {
        &[
            ("9/BaseOS/x86_64/os/repodata/repomd.xml", Class::Head),
            ("9/BaseOS/x86_64/os/repodata/repomd.xml.key", Class::Head),
            ("9/BaseOS/x86_64/os/media.1/media", Class::Head),
            ("9/BaseOS/x86_64/os/.treeinfo", Class::Head),
            ("9/BaseOS/x86_64/os/treeinfo", Class::Head),
            ("mirrorlist?repo=baseos&arch=x86_64", Class::Head),
            ("mirrorlist/9/baseos", Class::Head),
            ("metalink?repo=baseos-9&arch=x86_64", Class::Head),
            ("RPM-GPG-KEY-example-9", Class::Head),
            ("9/BaseOS/x86_64/os/images/boot.iso", Class::Head),
            ("9/BaseOS/x86_64/os/", Class::Head),
            ("9/BaseOS/x86_64/os/repodata/repomd.xml.asc", Class::Member),
            ("9/BaseOS/x86_64/os/repodata/primary.xml.gz", Class::Member),
            ("9/BaseOS/x86_64/os/repodata/filelists.xml.zck", Class::Member),
            ("9/BaseOS/x86_64/os/repodata/other.sqlite.bz2", Class::Member),
            ("9/BaseOS/x86_64/os/repodata/comps-BaseOS.x86_64.xml", Class::Member),
            ("9/BaseOS/x86_64/os/repodata/modules.yaml.xz", Class::Member),
            ("9/BaseOS/x86_64/os/repodata/updateinfo.xml.zst", Class::Member),
            ("9/BaseOS/x86_64/os/repodata/prestodelta.xml.gz", Class::Member),
            (
                "9/BaseOS/x86_64/os/repodata/e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855-primary.xml.gz",
                Class::Immutable,
            ),
            (
                "9/BaseOS/x86_64/os/repodata/da39a3ee5e6b4b0d3255bfef95601890afd80709-comps.xml",
                Class::Immutable,
            ),
            ("9/BaseOS/x86_64/os/Packages/bash-5.1.8-9.el9.x86_64.rpm", Class::Immutable),
            ("9/BaseOS/source/tree/Packages/bash-5.1.8-9.el9.src.rpm", Class::Immutable),
            ("9/updates/x86_64/drpms/bash-5.1.8-8_5.1.8-9.x86_64.drpm", Class::Immutable),
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
            assert_eq!(Rpm.is_index(&path(text)), is_index, "{text}");
        };
        check("os/repodata/repomd.xml", true);
        check("repodata/repomd.xml", true);
        check("os/repodata/repomd.xml.asc", true);
        check("os/repodata/repomd.xml.key", true);
        check("os/repodata/primary.xml.gz", true);
        check("os/repodata/da39a3ee5e6b4b0d3255bfef95601890afd80709-comps.xml", true);
        check("os/media.1/products", true);
        check("os/.treeinfo", true);
        check("mirrorlist?repo=baseos", true);
        check("mirrorlist/9/appstream", true);
        check("pub/metalink", true);
        check("RPM-GPG-KEY-example-9", true);
        check("os/repodata/bash-5.1.8-9.el9.x86_64.rpm", false);
        check("mirrorlist/bash-5.1.8-9.el9.x86_64.rpm", false);
        check("media.1/bash-5.1.8-9.el9.x86_64.rpm", false);
        check("os/repodata/", false);
        check("os/repodata/sub/primary.xml.gz", false);
        check("os/myrepodata/primary.xml.gz", false);
        check("os/repodata2/primary.xml.gz", false);
        check("os/Repodata/repomd.xml", false);
        check("os/images/pxeboot/vmlinuz", false);
        check("os/repomd.xml", false);
        check("secret.txt?x=/repodata/repomd.xml", false);
    }

    #[test]
    fn only_whole_checksums_make_a_name_immutable() {
        let check = |digits: usize, class: Class| {
            let text = format!("repodata/{}-primary.xml.gz", "a".repeat(digits));
            assert_eq!(Rpm.classify(&path(&text)), class, "{digits} digits");
        };
        for digits in CHECKSUM_DIGITS {
            check(digits, Class::Immutable);
        }
        for digits in [8, 31, 33, 63, 65, 127, 129, 256] {
            check(digits, Class::Member);
        }
        let not_hex = format!("repodata/{}g-primary.xml.gz", "a".repeat(63));
        assert_eq!(Rpm.classify(&path(&not_hex)), Class::Member);
        let no_name = format!("repodata/{}", "a".repeat(64));
        assert_eq!(Rpm.classify(&path(&no_name)), Class::Member);
    }

    #[test]
    fn strong_checksums_in_names_are_verified() {
        let digest = Digest::of(b"");
        let named = path(&format!("os/repodata/{digest}-primary.xml.gz"));
        assert_eq!(Rpm.digest_in(&named), Some(Checksum::Sha256(digest)));
        let long = path(&format!("os/repodata/{}-primary.xml.zst", "0f".repeat(64)));
        assert_eq!(Rpm.digest_in(&long), Some(Checksum::Sha512([0x0f; 64])));
        for weak in [32, 40, 56, 96] {
            let weak = path(&format!("os/repodata/{}-primary.xml.gz", "a".repeat(weak)));
            assert_eq!(Rpm.digest_in(&weak), None, "{weak}");
        }
        assert_eq!(Rpm.digest_in(&path(&format!("os/{digest}-primary.xml.gz"))), None);
    }

    #[test]
    fn a_member_belongs_to_the_repomd_beside_it() {
        let check = |text: &str, heads: &[&str]| {
            let expected: Vec<_> = heads.iter().map(|head| path(head)).collect();
            assert_eq!(Rpm.heads_of(&path(text)), expected, "{text}");
        };
        check("os/repodata/primary.xml.gz", &["os/repodata/repomd.xml"]);
        check("repodata/repomd.xml.asc", &["repodata/repomd.xml"]);
        check("repodata/primary.xml.gz?key=a/b", &["repodata/repomd.xml?key=a/b"]);
        check("os/repodata/repomd.xml", &[]);
        check("os/Packages/bash-5.1.8-9.el9.x86_64.rpm", &[]);
    }
}
