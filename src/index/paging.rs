//! Showing rows a page at a time: what the indexes on SQLite and on PostgreSQL have in common.
//!
//! Between two pages an index holds nothing, so that a slow visitor keeps nobody waiting. One
//! row that was tampered with must not hide all that follow it: it is logged and passed over.

use std::fmt::Display;
use std::ops::ControlFlow::{self, Break, Continue};

use super::micros::micros_of;
use super::{IndexError, LeastUsed, Position, Row, Scan};
use crate::artifact::RemoteName;

/// Rows of a page, which a scan holds in memory; only the last one of a walk has fewer.
pub(super) const PAGE_ROWS: u16 = 500;

/// An index that gives its rows in pages.
pub(super) trait Pages {
    /// The first remote behind a name that has rows: one step in the index, however many rows
    /// lie between.
    fn remote_behind(&self, name: &str) -> Result<Option<String>, IndexError>;

    /// The next [`PAGE_ROWS`] of a remote in the byte order of their paths.
    fn by_path(&self, remote: &RemoteName, start: &Start) -> Result<Page<String>, IndexError>;

    /// The next [`PAGE_ROWS`] of a remote in the order of their last use, behind a place in it.
    fn by_use(&self, remote: &RemoteName, behind: &UsePlace) -> Result<Page<UsePlace>, IndexError>;
}

/// Where a page begins in the order of paths.
#[derive(Debug, Clone)]
pub(super) struct Start {
    pub(super) path: String,
    /// Whether the row of that path belongs to it.
    pub(super) inclusive: bool,
}

/// A place in the order of the last use: microseconds and path.
pub(super) type UsePlace = (i64, String);

/// Some rows, in order; made of each row's place and what could be read of it.
#[derive(Debug)]
pub(super) struct Page<At> {
    rows: Vec<Row>,
    // Behind which place the next page begins; none where this is the last.
    next: Option<At>,
}

impl<At, E: Display> FromIterator<(At, Result<Row, E>)> for Page<At> {
    fn from_iter<T: IntoIterator<Item = (At, Result<Row, E>)>>(read: T) -> Self {
        let (mut count, mut last) = (0, None);
        let keep = |(at, row)| {
            count += 1;
            last = Some(at);
            undamaged(row)
        };
        let rows = read.into_iter().filter_map(keep).collect();
        Self { rows, next: last.filter(|_| count >= usize::from(PAGE_ROWS)) }
    }
}

/// [`ArtifactIndex::scan`](super::ArtifactIndex::scan).
pub(super) fn scan(
    index: &impl Pages,
    query: &Scan,
    visit: &mut dyn FnMut(Row) -> ControlFlow<()>,
) -> Result<(), IndexError> {
    if let Some(remote) = &query.remote {
        return scan_remote(index, remote, query, visit).map(|_broken_off| ());
    }
    // One remote after the other, each by its own walk along the index.
    let mut behind = String::new();
    while let Some(name) = index.remote_behind(&behind)? {
        if let Some(remote) = undamaged(name.parse())
            && scan_remote(index, &remote, query, visit)?.is_break()
        {
            break;
        }
        behind = name;
    }
    Ok(())
}

fn scan_remote(
    index: &impl Pages,
    remote: &RemoteName,
    query: &Scan,
    visit: &mut dyn FnMut(Row) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, IndexError> {
    // The prefix itself is a path that begins with it; a path that was shown is not to be
    // shown again.
    let mut start = match &query.after {
        Some(after) if *after >= query.prefix => Start { path: after.clone(), inclusive: false },
        _ => Start { path: query.prefix.clone(), inclusive: true },
    };
    loop {
        let page = index.by_path(remote, &start)?;
        for row in page.rows {
            // Those with the prefix stand together.
            if !row.key.path.as_str().starts_with(&query.prefix) {
                return Ok(Continue(()));
            }
            if visit(row).is_break() {
                return Ok(Break(()));
            }
        }
        match page.next {
            Some(path) => start = Start { path, inclusive: false },
            None => return Ok(Continue(())),
        }
    }
}

/// [`ArtifactIndex::least_used`](super::ArtifactIndex::least_used).
pub(super) fn least_used(
    index: &impl Pages,
    query: &LeastUsed,
    visit: &mut dyn FnMut(Row) -> ControlFlow<()>,
) -> Result<(), IndexError> {
    let mut next = Some(match &query.behind {
        Some(Position { recency, path }) => (micros_of(*recency), path.clone()),
        // Before every row.
        None => (i64::MIN, String::new()),
    });
    while let Some(behind) = next {
        let page = index.by_use(&query.remote, &behind)?;
        if page.rows.into_iter().try_for_each(&mut *visit).is_break() {
            break;
        }
        next = page.next;
    }
    Ok(())
}

/// What was read, if it can be understood.
pub(super) fn undamaged<T, E: Display>(read: Result<T, E>) -> Option<T> {
    let damage = |error: &E| tracing::warn!(%error, "passing over a damaged row of the index");
    read.inspect_err(damage).ok()
}
