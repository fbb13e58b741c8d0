//! RPM repositories: `repodata/repomd.xml` names the metadata, `primary.xml` the packages.
//!
//! Locations are taken as clients take them: as a part of a URL, percent-decoded once.

use std::io::{BufRead, Read};

use super::markup::{Tag, Tags};
use super::unpack::{Packing, unpack};
use super::{Listed, ListingError, Visit};
use crate::artifact::ArtifactPath;

/// Metadata files that one repomd.xml may name.
const DATA_MAX: usize = 1000;

/// One `data` element of a repomd.xml.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Data {
    /// Its `type`: `primary`, `filelists`, …
    pub kind: String,
    /// Where it is inside the remote.
    pub path: ArtifactPath,
}

/// The metadata of the repository in `root` (empty, or ending in `/`).
///
/// # Errors
/// [`ListingError`]; a text that is no whole repomd.xml is malformed.
pub fn metadata(repomd: impl BufRead, root: &str) -> Result<Vec<Data>, ListingError> {
    let mut tags = Tags::new(repomd);
    let (mut found, mut kind, mut is_whole) = (Vec::new(), None, false);
    while let Some(tag) = tags.next()? {
        match (tag.name.as_str(), tag.is_end) {
            ("data", false) => kind = tag.attribute("type").map(str::to_owned),
            ("data", true) => kind = None,
            ("location", false) => {
                if let (Some(kind), Some(path)) = (&kind, location(&tag, root)) {
                    found.push(Data { kind: kind.clone(), path });
                }
            }
            ("repomd", true) => is_whole = true,
            _ => {}
        }
        if found.len() > DATA_MAX {
            return Err(ListingError::malformed(format!("more than {DATA_MAX} data elements")));
        }
    }
    match is_whole {
        true => Ok(found),
        false => Err(ListingError::malformed("it is no repomd.xml, or its end is missing")),
    }
}

/// Shows the packages of a primary.xml of the repository in `root`.
///
/// # Errors
/// [`ListingError`]; what was shown before it stays true.
pub fn packages(
    primary: Box<dyn Read>,
    packing: Packing,
    root: &str,
    visit: Visit<'_>,
) -> Result<(), ListingError> {
    let mut tags = Tags::new(unpack(primary, packing)?);
    let (mut path, mut size) = (None, None);
    while let Some(tag) = tags.next()? {
        match (tag.name.as_str(), tag.is_end) {
            ("package", false) => (path, size) = (None, None),
            ("location", false) => path = location(&tag, root),
            ("size", false) => size = tag.attribute("package").and_then(|text| text.parse().ok()),
            ("package", true) => {
                if let Some(path) = path.take()
                    && visit(Listed { path, size: size.take() }).is_break()
                {
                    return Ok(());
                }
            }
            ("metadata", true) => return Ok(()),
            _ => {}
        }
    }
    Err(ListingError::malformed("it is no primary.xml, or its end is missing"))
}

/// A `location` inside the repository; one with an `xml:base` lies elsewhere.
fn location(tag: &Tag, root: &str) -> Option<ArtifactPath> {
    let href = tag.attribute("href").filter(|_| tag.attribute("base").is_none())?;
    let inside = ArtifactPath::from_request(href, None).ok()?;
    ArtifactPath::from_canonical(format!("{root}{inside}")).ok()
}
