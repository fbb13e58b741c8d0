//! Where a pattern's matches can lie: the folders that its literal beginnings name.

use regex_syntax::hir::literal::{ExtractKind, Extractor};

/// Beginnings that one pattern may have before it counts as having none.
const BEGINNINGS_MAX: usize = 32;
/// Bytes of a beginning that are looked at.
const BEGINNING_BYTES_MAX: usize = 512;

/// The folders that patterns' literal beginnings name, each empty or ending in `/`, none below
/// another. A pattern without a literal beginning leads to the root, the empty folder.
///
/// A pattern that is not anchored could match further inside of a path as well; whoever looks
/// only in these folders goes by what its author most likely means.
///
/// ```
/// use artifactapi::discovery::prefix::folders;
/// assert_eq!(folders(["prometheus/node_exporter/.*linux-amd64"]), ["prometheus/node_exporter/"]);
/// assert_eq!(folders([r"^terraform/1\.9\.\d+/", "^vault/(1|2)"]), ["terraform/", "vault/"]);
/// assert_eq!(folders([r"^(main|community)/x86_64/"]), ["community/x86_64/", "main/x86_64/"]);
/// assert_eq!(folders(["a/b/.*", "a/"]), ["a/"]);
/// assert_eq!(folders([r".*/x86_64/.*\.apk$"]), [""]);
/// assert_eq!(folders([r"/x86_64/.*\.apk$"]), [""]);
/// ```
pub fn folders<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let mut folders: Vec<String> = patterns.into_iter().flat_map(of_one).collect();
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

fn of_one(pattern: &str) -> Vec<String> {
    let everywhere = || vec![String::new()];
    let Ok(parsed) = regex_syntax::parse(pattern) else { return everywhere() };
    let mut extractor = Extractor::new();
    extractor
        .kind(ExtractKind::Prefix)
        .limit_class(4)
        .limit_literal_len(BEGINNING_BYTES_MAX)
        .limit_total(BEGINNINGS_MAX);
    let beginnings = extractor.extract(&parsed);
    let Some(beginnings) = beginnings.literals() else { return everywhere() };
    let folder = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes);
        match text.rfind('/') {
            // No path begins with a slash: such a pattern means some place further inside.
            Some(at) if !text.starts_with('/') => text[..=at].to_owned(),
            _ => String::new(),
        }
    };
    beginnings.iter().map(|beginning| folder(beginning.as_bytes())).collect()
}
