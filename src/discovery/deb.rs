//! Debian repositories: `Release` or `InRelease` names the indexes, `Packages` the packages.
//!
//! A suite lies below `dists/`, whose folder is the root that packages are named from. A flat
//! repository has its Release beside its packages, and is its own root.

use std::collections::BTreeMap;
use std::io::{BufRead, Read};
use std::ops::ControlFlow;

use super::lines::{Lines, field};
use super::unpack::{Packing, unpack};
use super::{Listed, ListingError, Visit, in_folder};
use crate::artifact::ArtifactPath;

/// Index files that one Release may name for packages.
const INDEXES_MAX: usize = 10_000;

/// The fields of a Release that list files, each with its checksums: the one whose names in
/// `by-hash/` are the likeliest to be there goes first.
const LISTS: &[&str] = &["SHA256", "SHA512", "SHA1", "MD5Sum"];

/// The names of a Release.
pub const RELEASES: [&str; 2] = ["InRelease", "Release"];

/// Where a flat repository without a Release may have its packages.
pub const FLAT_INDEXES: [&str; 3] = ["Packages.xz", "Packages.gz", "Packages"];

/// One list of packages that a Release names, in each packing that can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    /// What it is called without any packing, inside the remote.
    pub name: String,
    /// The files that it can be read from, the one that is read fastest for its size first. A
    /// Release may name some that are not there.
    pub files: Vec<IndexFile>,
}

/// One file of an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexFile {
    /// Where it is inside the remote.
    pub path: ArtifactPath,
    /// Where it is by its checksum, if the Release says that indexes can be had so.
    pub by_hash: Option<ArtifactPath>,
    /// Its length in bytes.
    pub size: u64,
    /// How it is compressed.
    pub packing: Packing,
}

/// What a Release says of one file.
#[derive(Debug)]
struct File {
    name: String,
    packing: Packing,
    size: u64,
    /// The best list that has named it, and its checksum there.
    list: usize,
    checksum: String,
}

/// The `Packages` files that a Release or InRelease in `folder` names.
///
/// # Errors
/// [`ListingError`]; a text without any list of files is malformed.
pub fn indexes(release: impl BufRead, folder: &str) -> Result<Vec<Index>, ListingError> {
    let mut lines = Lines::new(release);
    // By name without packing, then by how gladly a packing is taken.
    let mut named: BTreeMap<String, BTreeMap<usize, File>> = BTreeMap::new();
    let (mut inside, mut has_lists, mut is_by_hash) = (None, false, false);
    while let Some(line) = lines.next()? {
        if !line.starts_with(b" ") {
            inside = LISTS.iter().position(|name| field(line, name).is_some());
            has_lists |= inside.is_some();
            is_by_hash |= field(line, "Acquire-By-Hash") == Some("yes");
            continue;
        }
        let (Some(list), Ok(line)) = (inside, std::str::from_utf8(line)) else { continue };
        let Some((checksum, size, name)) = entry(line) else { continue };
        let Some((stem, rank, packing)) = ranked(name) else { continue };
        if !named.contains_key(stem) && named.len() == INDEXES_MAX {
            return Err(ListingError::malformed(format!("more than {INDEXES_MAX} indexes")));
        }
        let files = named.entry(stem.to_owned()).or_default();
        if files.get(&rank).is_none_or(|known| list < known.list) {
            let (name, checksum) = (name.to_owned(), checksum.to_owned());
            files.insert(rank, File { name, packing, size, list, checksum });
        }
    }
    if !has_lists {
        return Err(ListingError::malformed("it is no Release: it lists no files"));
    }
    let indexes = named.into_iter().map(|(stem, files)| Index {
        name: format!("{folder}{stem}"),
        files: files.into_values().filter_map(|file| file.within(folder, is_by_hash)).collect(),
    });
    Ok(indexes.filter(|index| !index.files.is_empty()).collect())
}

impl File {
    fn within(self, folder: &str, is_by_hash: bool) -> Option<IndexFile> {
        let Self { name, packing, size, list, checksum } = self;
        let path = in_folder(folder, &name)?;
        let (above, _) = path.as_str().rsplit_once('/').unwrap_or_default();
        let above = if above.is_empty() { String::new() } else { format!("{above}/") };
        let is_hex = checksum.bytes().all(|byte| byte.is_ascii_hexdigit());
        let by_hash = (is_by_hash && is_hex)
            .then(|| in_folder(&above, &format!("by-hash/{}/{checksum}", LISTS[list])))
            .flatten();
        Some(IndexFile { path, by_hash, size, packing })
    }
}

/// `checksum size name`.
fn entry(line: &str) -> Option<(&str, u64, &str)> {
    let mut words = line.split_ascii_whitespace();
    let (checksum, size, name) = (words.next()?, words.next()?, words.next()?);
    Some((checksum, size.parse().ok()?, name.strip_prefix("./").unwrap_or(name)))
}

/// A `Packages` file without its packing, and how gladly that is taken; `None` for any other.
fn ranked(name: &str) -> Option<(&str, usize, Packing)> {
    let packing = Packing::of(name)?;
    let (stem, rank) = match packing {
        Packing::Zstd => (name.strip_suffix(".zst")?, 0),
        Packing::Xz => (name.strip_suffix(".xz")?, 1),
        Packing::Gzip => (name.strip_suffix(".gz")?, 2),
        Packing::Plain => (name, 3),
    };
    (stem == "Packages" || stem.ends_with("/Packages")).then_some((stem, rank, packing))
}

/// Shows the packages of a `Packages` file; their names are relative to `root`, the folder
/// that has `dists/`, or that of a flat repository.
///
/// # Errors
/// [`ListingError`]; what was shown before it stays true.
pub fn packages(
    index: Box<dyn Read>,
    packing: Packing,
    root: &str,
    visit: Visit<'_>,
) -> Result<(), ListingError> {
    let mut lines = Lines::new(unpack(index, packing)?);
    let (mut name, mut size): (Option<String>, Option<u64>) = (None, None);
    loop {
        let line = lines.next()?;
        if let Some(line) = line.filter(|line| !line.is_empty()) {
            if let Some(value) = field(line, "Filename") {
                name = Some(value.to_owned());
            } else if let Some(value) = field(line, "Size") {
                size = value.parse().ok();
            }
            continue;
        }
        let is_end = line.is_none();
        let (ended, its_size) = (name.take(), size.take());
        if let Some(path) = ended.and_then(|name| in_folder(root, &name))
            && let ControlFlow::Break(()) = visit(Listed { path, size: its_size })
        {
            return Ok(());
        }
        if is_end {
            return Ok(());
        }
    }
}

/// The folder of the suite that a folder lies in: up to what follows `dists/`.
///
/// ```
/// use artifactapi::discovery::deb::suite_in;
/// assert_eq!(suite_in("dists/bookworm/main/binary-amd64/"), Some("dists/bookworm/"));
/// assert_eq!(suite_in("debian/dists/bookworm/"), Some("debian/dists/bookworm/"));
/// for other in ["dists/", "pool/main/", "mydists/x/"] {
///     assert_eq!(suite_in(other), None, "{other}");
/// }
/// ```
pub fn suite_in(folder: &str) -> Option<&str> {
    let name = above_part(folder, "dists/")?.len() + "dists/".len();
    let end = name + folder[name..].find('/')? + 1;
    Some(&folder[..end])
}

/// The folder that the packages of a suite, or those in a pool, are named from: the one that
/// has `dists/` and `pool/`.
///
/// ```
/// use artifactapi::discovery::deb::root_of;
/// assert_eq!(root_of("debian/dists/bookworm/"), Some("debian/"));
/// assert_eq!(root_of("pool/main/h/"), Some(""));
/// assert_eq!(root_of("carpool/"), None);
/// ```
pub fn root_of(folder: &str) -> Option<&str> {
    above_part(folder, "dists/").or_else(|| above_part(folder, "pool/"))
}

/// What stands before a whole part of a path.
fn above_part<'a>(folder: &'a str, part: &str) -> Option<&'a str> {
    let mut at = folder.match_indices(part).map(|(at, _)| &folder[..at]);
    at.find(|above| above.is_empty() || above.ends_with('/'))
}
