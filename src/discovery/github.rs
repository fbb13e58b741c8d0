//! The releases API of GitHub and what speaks like it: pages of releases with assets.

use std::fmt;
use std::io::Read;
use std::ops::ControlFlow;

use serde::de::{Deserializer, SeqAccess, Visitor};
use url::Url;

use super::links::path_below;
use super::{Listed, ListingError, Visit};
use crate::artifact::ArtifactPath;

/// Releases of a page: the most that the API gives.
const PER_PAGE: usize = 100;

/// The API's path of the first page of a repository's releases; `None` where owner or
/// repository are no names.
pub fn first_page(owner: &str, repository: &str) -> Option<ArtifactPath> {
    let is_name = |name: &str| !name.is_empty() && !name.contains(['/', '?', '#', '%']);
    if !is_name(owner) || !is_name(repository) {
        return None;
    }
    let path = format!("repos/{owner}/{repository}/releases?per_page={PER_PAGE}");
    ArtifactPath::from_canonical(path).ok()
}

/// The next page that a `Link` header (RFC 8288) names, if it lies below the API's own address.
///
/// ```
/// use artifactapi::discovery::github::next_page;
/// let api = "https://api.example.org/".parse().unwrap();
/// let link = "<https://api.example.org/repositories/1/releases?page=2>; rel=\"next\", \
///             <https://api.example.org/repositories/1/releases?page=9>; rel=\"last\"";
/// assert_eq!(next_page(link, &api).unwrap().as_str(), "repositories/1/releases?page=2");
/// assert!(next_page("<https://evil.example.org/x>; rel=\"next\"", &api).is_none());
/// ```
pub fn next_page(link: &str, api: &Url) -> Option<ArtifactPath> {
    let is_next = |parameters: &str| {
        parameters.split(';').any(|parameter| {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let mut relations = value.trim().trim_matches('"').split_ascii_whitespace();
            name.trim().eq_ignore_ascii_case("rel")
                && relations.any(|relation| relation.eq_ignore_ascii_case("next"))
        })
    };
    let mut rest = link;
    while let Some((_, behind)) = rest.split_once('<') {
        let (target, behind) = behind.split_once('>')?;
        let (parameters, next) = match behind.split_once('<') {
            Some((parameters, _)) => (parameters, &behind[parameters.len()..]),
            None => (behind, ""),
        };
        if is_next(parameters.trim_end().trim_end_matches(',')) {
            return path_below(&Url::parse(target).ok()?, std::slice::from_ref(api));
        }
        rest = next;
    }
    None
}

/// What was on a page.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Seen {
    /// Assets whose URL does not lie below a base URL of the remote.
    pub outside: u64,
    /// Whether the visitor wants no more pages.
    pub has_ended: bool,
}

#[derive(serde::Deserialize)]
struct Release {
    #[serde(default)]
    assets: Vec<Asset>,
}

#[derive(serde::Deserialize)]
struct Asset {
    browser_download_url: String,
    size: Option<u64>,
}

/// Shows the assets of one page of releases whose URLs lie below one of `bases`. One release at
/// a time is in memory.
///
/// # Errors
/// [`ListingError`] for what is no page of releases.
pub fn assets(page: impl Read, bases: &[Url], visit: Visit<'_>) -> Result<Seen, ListingError> {
    let mut json = serde_json::Deserializer::from_reader(std::io::BufReader::new(page));
    let seen = json.deserialize_seq(Page { bases, visit })?;
    Ok(seen)
}

struct Page<'a> {
    bases: &'a [Url],
    visit: Visit<'a>,
}

impl<'de> Visitor<'de> for Page<'_> {
    type Value = Seen;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of releases")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut releases: A) -> Result<Seen, A::Error> {
        let mut seen = Seen::default();
        while let Some(release) = releases.next_element::<Release>()? {
            for asset in release.assets {
                let url = Url::parse(&asset.browser_download_url).ok();
                match url.and_then(|url| path_below(&url, self.bases)) {
                    // A visitor can't stop a deserialiser without an error, so it goes on
                    // without effect.
                    _ if seen.has_ended => {}
                    Some(path) => {
                        let flow = (self.visit)(Listed { path, size: asset.size });
                        seen.has_ended = flow == ControlFlow::Break(());
                    }
                    None => seen.outside += 1,
                }
            }
        }
        Ok(seen)
    }
}
