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
/// Where a repository has the assets of its releases.
const DOWNLOADS: &str = "releases/download/";
/// Letters of a complaint that are shown.
const COMPLAINT_CHARS_MAX: usize = 300;

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

/// Where assets may lie.
#[derive(Debug, Clone, Copy)]
pub struct Bases<'a> {
    /// The remote's base URLs.
    pub bases: &'a [Url],
    /// `owner/repository/`, where the remote mirrors GitHub: the downloads of that repository
    /// have their paths in the remote, though the API's answers name another host.
    pub mirrored: Option<&'a str>,
}

impl Bases<'_> {
    fn path_of(&self, url: &str) -> Option<ArtifactPath> {
        let url = Url::parse(url).ok()?;
        let below = path_below(&url, self.bases);
        below.or_else(|| {
            let path = url.path().strip_prefix('/')?;
            let inside = path.strip_prefix(self.mirrored?)?;
            let is_download = inside.starts_with(DOWNLOADS) && url.query().is_none();
            is_download.then(|| ArtifactPath::from_request(path, None).ok()).flatten()
        })
    }
}

/// What the API says beside a refusal, bounded.
///
/// ```
/// use artifactapi::discovery::github::complaint;
/// assert_eq!(complaint(r#"{"message": "limit\nexceeded"}"#).unwrap(), "limit exceeded");
/// assert_eq!(complaint("<html>"), None);
/// ```
pub fn complaint(body: &str) -> Option<String> {
    let told: serde_json::Value = serde_json::from_str(body).ok()?;
    let printable = |c: char| if c.is_control() { ' ' } else { c };
    Some(told.get("message")?.as_str()?.chars().take(COMPLAINT_CHARS_MAX).map(printable).collect())
}

/// Shows the assets of one page of releases that lie in the remote. One release at a time is in
/// memory.
///
/// # Errors
/// [`ListingError`] for what is no page of releases.
pub fn assets(page: impl Read, bases: Bases<'_>, visit: Visit<'_>) -> Result<Seen, ListingError> {
    let mut json = serde_json::Deserializer::from_reader(std::io::BufReader::new(page));
    let seen = json.deserialize_seq(Page { bases, visit })?;
    Ok(seen)
}

struct Page<'a> {
    bases: Bases<'a>,
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
                match self.bases.path_of(&asset.browser_download_url) {
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
