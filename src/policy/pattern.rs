//! Which paths of a remote may be fetched.
//!
//! The rule: a path is allowed if no exclude pattern finds itself in it, and an include pattern
//! does or the path is an index file of the remote's format. Index files are allowed anywhere
//! in the remote, because an operator names packages and their clients can't find those
//! without the index. A remote without include patterns allows nothing, not even its index
//! (a local repository is another matter: `config::Remote::allows`).
//!
//! It does not judge whether a pattern is a good one (unanchored, matching everything): the
//! configuration's check does.

use regex::{Regex, RegexBuilder, RegexSet, RegexSetBuilder};

use crate::artifact::ArtifactPath;
use crate::formats::PackageFormat;

/// The compiled patterns of one remote.
///
/// Each is searched anywhere in the decoded path behind `/api/<remote>/`; `^` and `$` anchor.
/// A query may narrow what is allowed and never widens it: most servers ignore one, so with
/// it a client could dress up any file as an allowed one (`secret.txt?/x86_64/a.apk`), or hide
/// an excluded one from a pattern that ends in `$`. So includes see the path alone, excludes
/// and mutables see it with and without its query.
///
/// ```
/// use artifactapi::{artifact::ArtifactPath, formats, policy::pattern::Patterns};
/// let include = [r".*/x86_64/.*\.apk$".to_owned()];
/// let patterns = Patterns::new(&include, &[], &[], 1 << 20).unwrap();
/// let allowed = |path: &str| {
///     let path = ArtifactPath::from_canonical(path).unwrap();
///     patterns.allow(formats::named("alpine").unwrap(), &path)
/// };
/// assert!(allowed("v3.20/main/x86_64/curl-8.9.0-r0.apk"));
/// assert!(allowed("v3.20/main/x86_64/APKINDEX.tar.gz"));
/// assert!(!allowed("v3.20/main/aarch64/curl-8.9.0-r0.apk"));
/// ```
#[derive(Debug, Clone)]
pub struct Patterns {
    include: RegexSet,
    exclude: RegexSet,
    mutable: RegexSet,
}

impl Patterns {
    /// Compiles three lists of regular expressions; `size_max` bounds each compiled list, in
    /// bytes of memory. Searching takes time linear in the path, whatever the expressions are.
    ///
    /// # Errors
    /// The regex crate's, for the first expression that it refuses, or for a list over
    /// `size_max`.
    pub fn new(
        include: &[String],
        exclude: &[String],
        mutable: &[String],
        size_max: usize,
    ) -> Result<Self, regex::Error> {
        let compile = |list: &[String]| RegexSetBuilder::new(list).size_limit(size_max).build();
        Ok(Self {
            include: compile(include)?,
            exclude: compile(exclude)?,
            mutable: compile(mutable)?,
        })
    }

    /// Whether a path may be fetched, by the rule above.
    pub fn allow(&self, format: &dyn PackageFormat, path: &ArtifactPath) -> bool {
        if self.include.is_empty() || self.excludes(path) {
            return false;
        }
        self.include.is_match(path.without_query()) || format.is_index(path)
    }

    /// Whether an exclude pattern refuses a path.
    pub fn excludes(&self, path: &ArtifactPath) -> bool {
        finds(&self.exclude, path)
    }

    /// The expressions that allow, as written.
    pub fn include(&self) -> &[String] {
        self.include.patterns()
    }

    /// The expressions that refuse, as written.
    pub fn exclude(&self) -> &[String] {
        self.exclude.patterns()
    }

    /// The expressions that name what may change, as written.
    pub fn mutable(&self) -> &[String] {
        self.mutable.patterns()
    }

    /// Whether the operator says that this path may change.
    pub fn is_mutable(&self, path: &ArtifactPath) -> bool {
        finds(&self.mutable, path)
    }
}

/// Which stored artifacts stay, however short space is: those whose path, with its query or
/// without, one of the expressions finds itself in.
///
/// ```
/// use artifactapi::{artifact::ArtifactPath, policy::pattern::Pins};
/// let pins = Pins::new(&["^v3\\.20/".to_owned()], 1 << 20).unwrap();
/// let path = ArtifactPath::from_canonical("v3.20/main/x86_64/curl-8.9.0-r0.apk").unwrap();
/// assert!(pins.hold(&path) && !Pins::default().hold(&path));
/// ```
#[derive(Debug, Clone, Default)]
pub struct Pins(RegexSet);

impl Pins {
    /// Compiles a list of regular expressions; `size_max` bounds it in bytes of memory.
    ///
    /// # Errors
    /// As [`Patterns::new`].
    pub fn new(pins: &[String], size_max: usize) -> Result<Self, regex::Error> {
        RegexSetBuilder::new(pins).size_limit(size_max).build().map(Self)
    }

    /// Whether the artifact of this path stays.
    pub fn hold(&self, path: &ArtifactPath) -> bool {
        finds(&self.0, path)
    }

    /// The expressions as written.
    pub fn as_written(&self) -> &[String] {
        self.0.patterns()
    }
}

/// Bytes of a client's pattern, and of its compiled form.
const CLIENT_BYTES_MAX: usize = 1024;
const CLIENT_SIZE_MAX: usize = 1 << 20;

/// Compiles what a client sends as `include_pattern`, which chooses among what is allowed.
///
/// # Errors
/// What is wrong with it, for the client.
pub fn of_client(text: &str) -> Result<Regex, String> {
    if text.len() > CLIENT_BYTES_MAX {
        return Err(format!("include_pattern is longer than {CLIENT_BYTES_MAX} bytes"));
    }
    let compiled = RegexBuilder::new(text).size_limit(CLIENT_SIZE_MAX).build();
    compiled.map_err(|error| format!("include_pattern is not a regular expression: {error}"))
}

/// Whether a pattern of the set finds itself in the path, with its query or without.
fn finds(set: &RegexSet, path: &ArtifactPath) -> bool {
    let (whole, plain) = (path.as_str(), path.without_query());
    set.is_match(plain) || whole.len() > plain.len() && set.is_match(whole)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats;

    const SIZE_MAX: usize = 1 << 20;

    fn patterns(include: &[&str], exclude: &[&str], mutable: &[&str]) -> Patterns {
        let own = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        Patterns::new(&own(include), &own(exclude), &own(mutable), SIZE_MAX).unwrap()
    }

    fn path(text: &str) -> ArtifactPath {
        ArtifactPath::from_canonical(text).unwrap()
    }

    fn allows(patterns: &Patterns, format: &str, text: &str) -> bool {
        patterns.allow(formats::named(format).unwrap(), &path(text))
    }

    #[test]
    fn includes_name_packages_and_the_format_adds_its_index() {
        let check = |format: &str, text: &str, allowed: bool| {
            let includes = [r".*/x86_64/.*\.apk$", r"x86_64\.rpm$", r"^pool/.*_amd64\.deb$"];
            let patterns = patterns(&includes, &[], &[]);
            assert_eq!(allows(&patterns, format, text), allowed, "{format}: {text}");
        };
        check("alpine", "v3.20/main/x86_64/curl-8.9.0-r0.apk", true);
        check("alpine", "v3.20/main/x86_64/APKINDEX.tar.gz", true);
        check("alpine", "v3.20/main/aarch64/APKINDEX.tar.gz", true);
        check("alpine", "v3.20/main/aarch64/curl-8.9.0-r0.apk", false);
        check("alpine", "v3.20/releases/x86_64/notes.txt", false);
        check("rpm", "os/repodata/repomd.xml", true);
        check("rpm", "os/Packages/a-1-1.x86_64.rpm", true);
        check("rpm", "os/Packages/a-1-1.aarch64.rpm", false);
        check("deb", "dists/bookworm/InRelease", true);
        check("deb", "pool/main/h/hello/hello_2.10-3_amd64.deb", true);
        check("deb", "pool/main/h/hello/hello_2.10-3_i386.deb", false);
        check("generic", "v3.20/main/x86_64/APKINDEX.tar.gz", false);
    }

    #[test]
    fn a_remote_without_includes_allows_nothing() {
        for format in formats::FORMATS {
            for (text, _) in format.examples() {
                assert!(!patterns(&[], &[], &[]).allow(*format, &path(text)), "{text}");
            }
        }
    }

    #[test]
    fn excludes_win_over_includes_and_over_the_index() {
        let patterns = patterns(&["."], &["aarch64", r"-debuginfo-.*\.rpm$"], &[]);
        let check = |format: &str, text: &str, allowed: bool| {
            assert_eq!(allows(&patterns, format, text), allowed, "{format}: {text}");
        };
        check("rpm", "os/x86_64/Packages/a-1-1.rpm", true);
        check("rpm", "os/x86_64/Packages/a-debuginfo-1-1.rpm", false);
        check("rpm", "os/x86_64/repodata/repomd.xml", true);
        check("rpm", "os/aarch64/repodata/repomd.xml", false);
        check("alpine", "v3.20/main/aarch64/APKINDEX.tar.gz", false);
    }

    #[test]
    fn a_query_never_opens_what_the_path_does_not() {
        let patterns = patterns(&[r"/x86_64/.*\.apk$"], &[r"beta\.apk$", r"token="], &[]);
        let check = |text: &str, allowed: bool| {
            assert_eq!(allows(&patterns, "alpine", text), allowed, "{text}");
        };
        check("main/x86_64/a.apk?from=b", true);
        check("secret.txt?/x86_64/a.apk", false);
        check("secret.txt?/APKINDEX.tar.gz", false);
        check("main/x86_64/beta.apk", false);
        check("main/x86_64/beta.apk?", false);
        check("main/x86_64/beta.apk?x", false);
        check("main/x86_64/a.apk?token=1", false);
    }

    #[test]
    fn mutable_is_what_the_operator_names() {
        let patterns = patterns(&["."], &[], &["(^|/)latest/", r"SHA256SUMS$", "ref=main$"]);
        let check = |text: &str, mutable: bool| {
            assert_eq!(patterns.is_mutable(&path(text)), mutable, "{text}");
        };
        check("releases/latest/tool.zip", true);
        check("latest/tool.zip", true);
        check("1.0/SHA256SUMS", true);
        check("1.0/SHA256SUMS?x", true);
        check("archive.zip?ref=main", true);
        check("archive.zip?ref=v1", false);
        check("releases/1.0/tool.zip", false);
    }

    #[test]
    fn an_expression_that_is_wrong_or_too_large_is_refused() {
        let compile = |text: &str| {
            let list = [text.to_owned()];
            [
                Patterns::new(&list, &[], &[], SIZE_MAX).err(),
                Patterns::new(&[], &list, &[], SIZE_MAX).err(),
                Patterns::new(&[], &[], &list, SIZE_MAX).err(),
            ]
        };
        let too_large = compile("(a{1000}){1000}");
        assert!(
            too_large.iter().all(|e| matches!(e, Some(regex::Error::CompiledTooBig(SIZE_MAX)))),
            "{too_large:?}"
        );
        let wrong = compile(r".*/x86_64/(.*\.apk$");
        assert!(wrong.iter().all(|e| matches!(e, Some(regex::Error::Syntax(_)))), "{wrong:?}");
    }
}
