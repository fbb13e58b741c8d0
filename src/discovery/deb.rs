//! Debian repositories: `Release` or `InRelease` names the indexes, `Packages` the packages.

use std::collections::BTreeMap;
use std::io::{BufRead, Read};
use std::ops::ControlFlow;

use super::lines::{Lines, field};
use super::unpack::{Packing, unpack};
use super::{Listed, ListingError, Visit, in_folder};

/// Index files that one Release may name for packages.
const INDEXES_MAX: usize = 10_000;

/// The fields of a Release that list files, each with its checksums.
const LISTS: &[&str] = &["SHA256", "SHA512", "SHA1", "MD5Sum"];

/// The `Packages` files that a Release or InRelease in `folder` names: of each the packing
/// that is read fastest for its size among those that are understood.
///
/// # Errors
/// [`ListingError`]; a text without any list of files is malformed.
pub fn indexes(release: impl BufRead, folder: &str) -> Result<Vec<Listed>, ListingError> {
    let mut lines = Lines::new(release);
    let mut chosen: BTreeMap<String, (usize, Listed)> = BTreeMap::new();
    let (mut inside, mut lists) = (false, 0);
    while let Some(line) = lines.next()? {
        if !line.starts_with(b" ") {
            inside = LISTS.iter().any(|name| field(line, name).is_some());
            lists += usize::from(inside);
            continue;
        }
        let Some((name, size)) = std::str::from_utf8(line).ok().filter(|_| inside).and_then(entry)
        else {
            continue;
        };
        let Some((index, rank)) = ranked(name) else { continue };
        let Some(path) = in_folder(folder, name) else { continue };
        let listed = Listed { path, size: Some(size) };
        match chosen.get(index) {
            Some((known, _)) if *known <= rank => {}
            None if chosen.len() == INDEXES_MAX => {
                return Err(ListingError::malformed(format!("more than {INDEXES_MAX} indexes")));
            }
            _ => drop(chosen.insert(index.to_owned(), (rank, listed))),
        }
    }
    if lists == 0 {
        return Err(ListingError::malformed("it is no Release: it lists no files"));
    }
    Ok(chosen.into_values().map(|(_, listed)| listed).collect())
}

/// `checksum size name`.
fn entry(line: &str) -> Option<(&str, u64)> {
    let mut words = line.split_ascii_whitespace();
    let (_checksum, size, name) = (words.next()?, words.next()?, words.next()?);
    Some((name, size.parse().ok()?))
}

/// A `Packages` file without its packing, and how gladly that is taken; `None` for any other.
fn ranked(name: &str) -> Option<(&str, usize)> {
    let (stem, rank) = match Packing::of(name)? {
        Packing::Zstd => (name.strip_suffix(".zst")?, 0),
        Packing::Xz => (name.strip_suffix(".xz")?, 1),
        Packing::Gzip => (name.strip_suffix(".gz")?, 2),
        Packing::Plain => (name, 3),
    };
    stem.ends_with("/Packages").then_some((stem, rank))
}

/// Shows the packages of a `Packages` file; their names are relative to `root`, the folder
/// that has `dists/`.
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
