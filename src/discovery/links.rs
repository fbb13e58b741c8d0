//! Where a link of a listing leads: to something of the remote, or out of it.

use url::Url;

use super::html::Href;
use crate::artifact::ArtifactPath;

/// What a link means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Link {
    /// A file below the listed folder.
    File(ArtifactPath),
    /// A folder below it; ends in `/`.
    Folder(ArtifactPath),
    /// The folder itself, what lies above it, another order of the same listing, a mail address.
    Other,
}

/// Judges a link of the listing of `folder` (empty, or ending in `/`), which was found below
/// the first of `bases` or a mirror of it.
///
/// ```
/// use artifactapi::discovery::{html::Href, links::{Link, of_listing}};
/// let bases = ["https://files.example.org/pub/".parse().unwrap()];
/// let judge = |target: &str| of_listing(Href { target, base: None }, "a/", &bases);
/// assert!(matches!(judge("x%20y.zip"), Link::File(path) if path.as_str() == "a/x y.zip"));
/// assert!(matches!(judge("./b/"), Link::Folder(path) if path.as_str() == "a/b/"));
/// assert!(matches!(judge("/pub/a/c.zip"), Link::File(_)));
/// for elsewhere in ["../", "/pub/", "?C=M;O=A", "#top", "https://other.example.org/pub/a/x",
///                   "/pub/ab/x", "b/../../x", "%2e%2e/x", "mailto:a@example.org", r"b\x"] {
///     assert_eq!(judge(elsewhere), Link::Other, "{elsewhere}");
/// }
/// let based = Href { target: "x", base: Some("/pub/a/real/") };
/// assert!(matches!(of_listing(based, "a/", &bases), Link::File(path) if path.as_str() == "a/real/x"));
/// ```
pub fn of_listing(href: Href<'_>, folder: &str, bases: &[Url]) -> Link {
    let Some(base) = bases.first() else { return Link::Other };
    let encoded = match folder {
        "" => String::new(),
        folder => match ArtifactPath::from_canonical(folder) {
            Ok(folder) => folder.upstream_form(),
            Err(_) => return Link::Other,
        },
    };
    let listing = Url::parse(&format!("{base}{encoded}"));
    let from = listing.and_then(|listing| listing.join(href.base.unwrap_or_default()));
    let link = from.and_then(|from| from.join(href.target)).ok();
    // A query on a listing sorts it; on a file it would name something else. A backslash would
    // be read as a slash, and name another file than the one that the server means.
    let is_plain = |link: &Url| link.query().is_none() && !href.target.contains('\\');
    let Some(link) = link.filter(is_plain) else { return Link::Other };
    match path_below(&link, bases) {
        Some(path) if path.as_str().len() > folder.len() && path.as_str().starts_with(folder) => {
            match path.as_str().ends_with('/') {
                true => Link::Folder(path),
                false => Link::File(path),
            }
        }
        _ => Link::Other,
    }
}

/// The path of an absolute URL below one of the base URLs; `None` for everything else. Neither
/// a credential nor a fragment makes it another file, but no URL of a file has them.
pub fn path_below(url: &Url, bases: &[Url]) -> Option<ArtifactPath> {
    if !url.username().is_empty() || url.password().is_some() {
        return None;
    }
    bases.iter().find_map(|base| {
        let is_same_origin = url.scheme() == base.scheme()
            && url.host() == base.host()
            && url.port_or_known_default() == base.port_or_known_default();
        let below = url.path().strip_prefix(base.path()).filter(|_| is_same_origin)?;
        ArtifactPath::from_request(below, url.query()).ok()
    })
}
