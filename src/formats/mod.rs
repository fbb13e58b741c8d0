//! Package formats: what a path inside a repository is.
//!
//! A format answers questions about paths; it does no I/O and never handles a request. A new
//! format is one file here and one line in [`FORMATS`].

use std::borrow::Cow;
use std::fmt::{self, Debug};

use crate::artifact::{ArtifactPath, Checksum, Digest};

mod alpine;
mod deb;
mod generic;
mod rpm;

/// What may be assumed of a file, from its path alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// An index with a lifetime of its own (`index_ttl`), then revalidated.
    Head,
    /// An index file that is valid only together with the head that names it.
    Member,
    /// Never changes under its name (`file_ttl`).
    Immutable,
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Head => "head",
            Self::Member => "member",
            Self::Immutable => "immutable",
        })
    }
}

/// Knowledge of one kind of repository.
///
/// Paths are matched as they are after one decoding, by case, and without their query: what
/// a query says never makes a file a package or an index.
pub trait PackageFormat: Debug + Send + Sync {
    /// The name that remotes.yaml uses under `package`.
    fn name(&self) -> &'static str;

    /// The class of a path. A path that ends in `/` is a head in every format. A file that the
    /// format does not know is a head: to ask again is safe, to keep it for ever is not; only
    /// `generic`, which knows no names, takes it for immutable.
    fn classify(&self, path: &ArtifactPath) -> Class;

    /// Whether it knows the names of its files: one without an ending is then a file as well,
    /// and no page of a web site.
    fn knows_names(&self) -> bool {
        true
    }

    /// Whether the path is part of the repository's own index, which clients need whatever
    /// packages the operator's patterns name: heads that the format knows, members, index files
    /// under their checksum, signatures and keys. Never a package, never an unknown file.
    fn is_index(&self, path: &ArtifactPath) -> bool;

    /// The heads that may name this member, or this index file whose name carries its checksum:
    /// most likely first, a handful at most; empty for everything else. A query of the member is kept: it is the client's key to both. A member
    /// whose path is so long that no head fits beside it within
    /// [`ARTIFACT_PATH_MAX`](crate::artifact::ARTIFACT_PATH_MAX) has none.
    fn heads_of(&self, path: &ArtifactPath) -> Vec<ArtifactPath>;

    /// The digest that the text of a head states for the bytes of a member, if it states one.
    fn stated(&self, _head: &ArtifactPath, _text: &str, _member: &ArtifactPath) -> Option<Digest> {
        None
    }

    /// The path that a client of the format means by what it sends, encoded or not: as it is, but
    /// where such clients are known to write one file's path in several ways.
    fn meant<'a>(&self, sent: &'a str) -> Cow<'a, str> {
        Cow::Borrowed(sent)
    }

    /// The checksum that the name itself carries, if it is one that proves something.
    fn digest_in(&self, path: &ArtifactPath) -> Option<Checksum>;

    /// Paths with their classes: tested, and printed in the documentation.
    fn examples(&self) -> &'static [(&'static str, Class)];
}

/// Every format, in the order in which messages list them.
pub const FORMATS: &[&dyn PackageFormat] =
    &[&generic::Generic, &alpine::Alpine, &rpm::Rpm, &deb::Deb];

/// The format that remotes.yaml calls `name`.
pub fn named(name: &str) -> Option<&'static dyn PackageFormat> {
    FORMATS.iter().copied().find(|format| format.name() == name)
}

/// The examples of every format as a table in Markdown, for the documentation.
///
/// ```
/// let table = artifactapi::formats::markdown();
/// assert!(table.contains("| alpine | head | `v3.20/main/x86_64/APKINDEX.tar.gz` |"));
/// ```
pub fn markdown() -> String {
    let mut table = String::from("| format | class | example |\n|---|---|---|\n");
    for format in FORMATS {
        for (path, class) in format.examples() {
            table.push_str(&format!("| {} | {class} | `{path}` |\n", format.name()));
        }
    }
    table
}

/// Whether the path names a folder, which only a listing made at the moment can answer.
fn is_folder(path: &ArtifactPath) -> bool {
    path.file_name().is_empty()
}

/// Everything before the file name: empty, or ending in `/`.
fn folder(path: &ArtifactPath) -> &str {
    let path = path.without_query();
    path.rfind('/').map_or("", |at| &path[..=at])
}

/// The last segment of a folder that is empty or ends in `/`.
fn last_segment(folder: &str) -> &str {
    let folder = folder.strip_suffix('/').unwrap_or(folder);
    folder.rsplit_once('/').map_or(folder, |(_, segment)| segment)
}

/// The path of `name` in `folder` with the query of `member`; `None` where that is too long.
fn in_folder(folder: &str, name: &str, member: &ArtifactPath) -> Option<ArtifactPath> {
    let query = &member.as_str()[member.without_query().len()..];
    ArtifactPath::from_canonical(format!("{folder}{name}{query}")).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_example_has_the_class_that_it_is_listed_with() {
        for format in FORMATS {
            for (text, class) in format.examples() {
                let path = ArtifactPath::from_canonical(*text).expect(text);
                assert_eq!(format.classify(&path), *class, "{}: {text}", format.name());
            }
        }
    }

    #[test]
    fn heads_state_what_their_members_are() {
        let path = |text: &str| ArtifactPath::from_canonical(text).unwrap();
        let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
        let check = |format: &str, head: &str, text: &str, member: &str, expected| {
            let stated = named(format).unwrap().stated(&path(head), text, &path(member));
            assert_eq!(stated, expected, "{head} of {member}");
        };
        let release = format!(
            "Origin: x\nMD5Sum:\n 0cc175b9c0f1b6a831c399e269772661 1 main/Packages\nSHA256:\n \
             {one} 1 main/Packages\n {two}  22 ./main/Packages.gz\nSHA512:\n ab 1 main/Other\n"
        );
        let head = "dists/a/InRelease";
        check("deb", head, &release, "dists/a/main/Packages", Some(one));
        check("deb", head, &release, "dists/a/main/Packages.gz?x", Some(two));
        check("deb", head, &release, "dists/a/main/Other", None);
        check("deb", head, &release, "dists/b/main/Packages", None);
        let repomd = format!(
            "<?xml version=\"1.0\"?><repomd xmlns=\"http://linux.example.org/repo\"><revision>1</revision><data type=\"odd\"/>\
             <data type=\"primary\"><checksum type=\"sha256\">{one}</checksum>\
             <open-checksum type=\"sha256\">{two}</open-checksum><location href=\"repodata/a%2bb.xml\"/>\
             <size>1</size></data><data type=\"weak\"><checksum type=\"sha\">ab</checksum>\
             <location href=\"repodata/weak.xml\"/></data></repomd>"
        );
        let head = "os/repodata/repomd.xml";
        check("rpm", head, &repomd, "os/repodata/a+b.xml", Some(one));
        check("rpm", head, &repomd, "os/repodata/weak.xml", None);
        check("rpm", head, &repomd, "other/repodata/a+b.xml", None);
        check("rpm", head, "no XML", "os/repodata/a+b.xml", None);
        check("alpine", "v/APKINDEX.tar.gz", "", "v/a.apk", None);
    }

    #[test]
    fn the_examples_show_every_class_that_a_format_has() {
        let check = |name: &str, classes: &[Class]| {
            let format = named(name).expect("a format of this name");
            for class in [Class::Head, Class::Member, Class::Immutable] {
                let shown = format.examples().iter().any(|(_, shown)| *shown == class);
                assert_eq!(shown, classes.contains(&class), "{name}: {class}");
            }
        };
        check("generic", &[Class::Head, Class::Immutable]);
        check("alpine", &[Class::Head, Class::Immutable]);
        check("rpm", &[Class::Head, Class::Member, Class::Immutable]);
        check("deb", &[Class::Head, Class::Member, Class::Immutable]);
        assert!(named("Alpine").is_none());
    }

    #[test]
    fn a_query_never_changes_the_answer() {
        for format in FORMATS {
            for (text, class) in format.examples().iter().filter(|(text, _)| !text.contains('?')) {
                for query in ["x=a.rpm", "/repodata/repomd.xml", "/pool/a_1.deb", "a.apk"] {
                    let path = ArtifactPath::from_canonical(format!("{text}?{query}")).unwrap();
                    assert_eq!(format.classify(&path), *class, "{}: {path}", format.name());
                }
            }
        }
    }

    #[test]
    fn a_member_whose_head_would_be_too_long_has_none() {
        let max = crate::artifact::ARTIFACT_PATH_MAX;
        let longest = format!("{}/repodata/a", "x".repeat(max - "/repodata/a".len()));
        let path = ArtifactPath::from_canonical(longest).unwrap();
        let rpm = named("rpm").unwrap();
        assert_eq!((rpm.classify(&path), rpm.heads_of(&path)), (Class::Member, Vec::new()));
    }

    /// Segments that formats look for, so that generated paths come near to real ones.
    const SEGMENTS: &[&str] = &[
        "dists",
        "bookworm",
        "main",
        "binary-amd64",
        "source",
        "by-hash",
        "SHA256",
        "MD5Sum",
        "pool",
        "repodata",
        "media.1",
        "mirrorlist",
        "Packages.diff",
        "Index",
        "Release",
        "InRelease",
        "Release.gpg",
        "Packages",
        "Packages.gz",
        "Sources.xz",
        "Contents-all.gz",
        "Translation-en",
        "T-2-F-1.gz",
        "x_1.deb",
        "x.deb",
        "x_1.tar.gz",
        "x.rpm",
        "x.apk",
        "repomd.xml",
        "repomd.xml.asc",
        "primary.xml.gz",
        "APKINDEX.tar.gz",
        ".treeinfo",
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "da39a3ee5e6b4b0d3255bfef95601890afd80709-comps.xml",
        "é",
        "-",
        ".diff",
        "x.diff",
    ];

    /// How packages end, by format.
    const PACKAGES: &[(&str, &[&str])] = &[
        ("generic", &[""]),
        ("alpine", &[".apk"]),
        ("rpm", &[".rpm", ".drpm"]),
        ("deb", &[".deb", ".udeb", ".dsc"]),
    ];

    fn any_path() -> impl Strategy<Value = ArtifactPath> {
        let near = (
            prop::collection::vec(prop::sample::select(SEGMENTS), 1..8),
            prop::sample::select(&["", "/", "?", "?a=/b", "/?x"]),
        )
            .prop_map(|(segments, end)| segments.join("/") + end);
        prop_oneof![4 => near, 1 => ".{1,60}"]
            .prop_filter_map("not a path", |text| ArtifactPath::from_canonical(text).ok())
    }

    proptest! {
        #[test]
        fn heads_and_members_fit_each_other(path in any_path()) {
            for format in FORMATS {
                let heads = format.heads_of(&path);
                let has_head = match format.classify(&path) {
                    Class::Member => true,
                    // An index file whose name carries its checksum.
                    Class::Immutable => format.is_index(&path) && !heads.is_empty(),
                    Class::Head => false,
                };
                prop_assert_eq!(has_head, !heads.is_empty());
                for head in heads {
                    prop_assert_eq!(format.classify(&head), Class::Head, "{}", head);
                    prop_assert!(format.is_index(&head), "{}", head);
                }
            }
        }

        #[test]
        fn a_name_with_a_checksum_is_immutable(path in any_path()) {
            for format in FORMATS {
                if format.digest_in(&path).is_some() {
                    prop_assert_eq!(format.classify(&path), Class::Immutable);
                }
            }
        }

        #[test]
        fn a_folder_is_a_head_and_no_index(path in any_path()) {
            // The remote's own folder has no name.
            let folder = match path.without_query().trim_end_matches('/') {
                "" => String::new(),
                path => format!("{path}/"),
            };
            let folder = ArtifactPath::from_canonical(folder).unwrap();
            for format in FORMATS {
                prop_assert_eq!(format.classify(&folder), Class::Head);
                prop_assert!(!format.is_index(&folder));
            }
        }

        #[test]
        fn packages_are_no_index(path in any_path()) {
            for (name, ends) in PACKAGES {
                if ends.iter().any(|end| path.file_name().ends_with(end)) {
                    prop_assert!(!named(name).unwrap().is_index(&path), "{}: {}", name, path);
                }
            }
        }
    }
}
