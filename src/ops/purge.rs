//! Purging many artifacts: a selection, then one removal after the other.

use std::ops::ControlFlow;

use serde_json::{Value, json};

use super::admin::Page;
use crate::artifact::ArtifactPath;
use crate::cache::{Cache, Purged, Target};
use crate::chain::chain;
use crate::index::{IndexError, Scan};

/// Rows that one call looks at for its pattern; the cursor leads on.
const ROWS_EXAMINED_MAX: usize = 200_000;

/// Whether anything is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// List what would go.
    DryRun,
    /// Remove it.
    Remove,
}

/// `DELETE /artifacts/{remote}`: at most a page of what the selection names. `next_cursor` is
/// there where more may follow.
///
/// # Errors
/// The index's, while selecting. A single artifact that can't be removed is listed as failed.
pub fn purge(cache: &Cache, target: &Target, page: &Page, mode: Mode) -> Result<Value, IndexError> {
    let selection = select(cache, target, page)?;
    let (mut artifacts, mut bytes, mut failed) = (Vec::new(), 0, Vec::new());
    for (path, size) in selection.paths {
        if mode == Mode::Remove {
            match cache.purge(target, &path, &|_| true) {
                Ok(Purged::Removed(_)) => {}
                // Somebody else was quicker.
                Ok(Purged::Forgotten | Purged::Absent) => continue,
                Err(error) => {
                    tracing::warn!(remote = %target.remote.name, %path, error = chain(&error), "not purged");
                    failed.push(json!({ "path": path.as_str(), "error": chain(&error) }));
                    continue;
                }
            }
        }
        bytes += size;
        artifacts.push(json!({ "path": path.as_str(), "size": size }));
    }
    Ok(json!({
        "remote": target.remote.name.as_str(),
        "pattern": page.pattern,
        "dry_run": mode == Mode::DryRun,
        "purged_count": if mode == Mode::Remove { artifacts.len() } else { 0 },
        "matched_count": artifacts.len() + failed.len(),
        "bytes": bytes,
        "artifacts": artifacts,
        "failed": failed,
        "next_cursor": selection.next,
    }))
}

struct Selection {
    paths: Vec<(ArtifactPath, u64)>,
    next: Option<String>,
}

/// Selected first and removed then, so that no scan walks over rows that go under its feet.
fn select(cache: &Cache, target: &Target, page: &Page) -> Result<Selection, IndexError> {
    let scan = Scan {
        remote: Some(target.remote.name.clone()),
        prefix: page.prefix.clone(),
        after: page.after.clone(),
    };
    let (mut paths, mut next, mut examined) = (Vec::new(), None, 0);
    let mut last = String::new();
    cache.ports().index.scan(&scan, &mut |row| {
        if paths.len() == page.limit || examined == ROWS_EXAMINED_MAX {
            next = Some(std::mem::take(&mut last));
            return ControlFlow::Break(());
        }
        examined += 1;
        last = row.key.path.to_string();
        if page.include.as_ref().is_none_or(|include| include.is_match(&last)) {
            paths.push((row.key.path, row.entry.size));
        }
        ControlFlow::Continue(())
    })?;
    Ok(Selection { paths, next })
}
