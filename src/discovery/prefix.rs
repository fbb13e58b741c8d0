//! Where a pattern's matches can lie: the folders that its literal beginnings name.

use regex_syntax::hir::Look;
use regex_syntax::hir::literal::{ExtractKind, Extractor};

/// Beginnings that one pattern may have before it counts as having none.
const BEGINNINGS_MAX: usize = 32;
/// Bytes of a beginning that are looked at.
const BEGINNING_BYTES_MAX: usize = 512;

/// The folders that everything lies in which one of the patterns matches, each empty or ending
/// in `/`, none below another. A pattern is searched anywhere in a path, so only one that is
/// anchored says where its matches begin; any other leads to the root, the empty folder.
///
/// ```
/// use artifactapi::discovery::prefix::folders;
/// assert_eq!(folders([r"^terraform/1\.9\.\d+/", "^vault/(1|2)"]), ["terraform/", "vault/"]);
/// assert_eq!(folders([r"^(main|community)/x86_64/"]), ["community/x86_64/", "main/x86_64/"]);
/// assert_eq!(folders(["^a/b/.*", "^a/"]), ["a/"]);
/// for anywhere in ["a/b/.*", r".*/x86_64/.*\.apk$", "^a/|b/", "(?m)^a/", "^[ab]*/", ""] {
///     assert_eq!(folders([anywhere]), [""], "{anywhere}");
/// }
/// ```
pub fn folders<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let of_one = |pattern: &str| match read(pattern) {
        Some((beginnings, true)) => beginnings,
        _ => vec![String::new()],
    };
    outermost(patterns.into_iter().flat_map(of_one).collect())
}

/// The folders that patterns begin with, anchored or not, in their order: where their authors
/// most likely mean matches to lie, which need not be all of them. A pattern, or an alternative
/// of it, without such a beginning has the empty folder.
///
/// ```
/// use artifactapi::discovery::prefix::beginnings;
/// assert_eq!(beginnings(["o/r/.*linux-amd64", "^a/(b|c/)", "amd64"]), ["o/r/", "a/", "a/c/", ""]);
/// assert_eq!(beginnings(["o/r/|amd64"]), ["o/r/", ""]);
/// assert_eq!(beginnings(["/x86_64/", ".*/a/"]), ["", ""]);
/// ```
pub fn beginnings<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let of_one = |pattern| read(pattern).map_or(vec![String::new()], |(beginnings, _)| beginnings);
    patterns.into_iter().flat_map(of_one).collect()
}

/// Those folders that lie below none of the others, in order.
pub fn outermost(mut folders: Vec<String>) -> Vec<String> {
    folders.sort();
    let mut kept: Vec<String> = Vec::new();
    for folder in folders {
        // Sorted, so what it lies below stands before it.
        if !kept.last().is_some_and(|above| folder.starts_with(above.as_str())) {
            kept.push(folder);
        }
    }
    kept
}

/// The folders of a pattern's literal beginnings, and whether every match begins with a path.
fn read(pattern: &str) -> Option<(Vec<String>, bool)> {
    let parsed = regex_syntax::parse(pattern).ok()?;
    let mut extractor = Extractor::new();
    extractor
        .kind(ExtractKind::Prefix)
        .limit_class(4)
        .limit_literal_len(BEGINNING_BYTES_MAX)
        .limit_total(BEGINNINGS_MAX);
    let beginnings = extractor.extract(&parsed);
    let folder = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes);
        match text.rfind('/') {
            // No path begins with a slash: such a pattern means some place further inside.
            Some(at) if !text.starts_with('/') => text[..=at].to_owned(),
            _ => String::new(),
        }
    };
    let folders = beginnings.literals()?.iter().map(|literal| folder(literal.as_bytes())).collect();
    Some((folders, parsed.properties().look_set_prefix().contains(Look::Start)))
}
