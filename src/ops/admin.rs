//! Views: what is configured and what is cached, as JSON.

use std::ops::ControlFlow;
use std::time::{SystemTime, UNIX_EPOCH};

use regex::Regex;
use serde_json::{Value, json};

use crate::cache::{Cache, Target};
use crate::config::Remotes;
use crate::index::{IndexError, Row, Scan};
use crate::policy::{Decision, media_type, pattern};

/// Rows of a page where the client names no limit, and the most that it gets.
const LIMIT_DEFAULT: usize = 1000;
const LIMIT_MAX: usize = 10_000;
/// Rows that one page looks at for its pattern and its count; the cursor leads on.
const ROWS_EXAMINED_MAX: usize = 200_000;

/// `GET /`.
pub fn root(remotes: &Remotes) -> Value {
    let remotes: serde_json::Map<String, Value> = remotes
        .by_name
        .values()
        .map(|remote| {
            let value = json!({
                "type": remote.kind.as_str(),
                "package": remote.format.name(),
                "description": remote.description,
            });
            (remote.name.to_string(), value)
        })
        .collect();
    json!({
        "name": "artifactapi",
        "version": env!("CARGO_PKG_VERSION"),
        "remotes": remotes,
        "endpoints": {
            "/": "this page",
            "/api/{remote}/{path}": "GET, HEAD: an artifact, from the cache or through it; PUT: upload to a local repository; DELETE: remove or purge it",
            "/artifacts/{remote}": "GET: cached artifacts (include_pattern, prefix, limit, cursor); DELETE: purge them (the same, dry_run, all)",
            "/cache-artifact": "POST: caches many artifacts: include_pattern, paths or urls (wait)",
            "/jobs": "GET: such batches",
            "/jobs/{id}": "GET: progress and results (offset, limit); DELETE: cancels",
            "/config": "GET: the configuration in force, secrets masked",
            "/health": "GET: the state of each backend",
            "/health/live": "GET: 200 while the process answers",
            "/health/ready": "GET: 200 when requests can be served here, 503 before and while stopping",
            "/metrics": "GET: metrics in the Prometheus text format",
            "/stats": "GET: what each remote takes up, hits, misses, bytes, evictions",
        },
    })
}

/// `GET /config`; `settings` is masked already.
pub fn config(settings: &Value, remotes: &Remotes) -> Value {
    json!({ "settings": settings, "remotes": remotes.to_json() })
}

/// Which artifacts to list.
#[derive(Debug)]
pub struct Page {
    pub(super) include: Option<Regex>,
    pub(super) pattern: Option<String>,
    pub(super) prefix: String,
    pub(super) limit: usize,
    pub(super) after: Option<String>,
}

impl Page {
    /// Whether more are wanted than without a limit.
    pub fn is_long(&self) -> bool {
        self.limit > LIMIT_DEFAULT
    }

    /// Reads a page's parameters.
    ///
    /// # Errors
    /// What is wrong with one of them, for the client.
    pub fn parse(
        pattern: Option<String>,
        prefix: Option<String>,
        limit: Option<String>,
        cursor: Option<String>,
    ) -> Result<Self, String> {
        let include = pattern.as_deref().map(pattern::of_client).transpose()?;
        let limit = match limit {
            None => LIMIT_DEFAULT,
            Some(text) => match text.parse() {
                Ok(limit) if (1..=LIMIT_MAX).contains(&limit) => limit,
                _ => return Err(format!("limit must be a number from 1 to {LIMIT_MAX}")),
            },
        };
        Ok(Self { include, pattern, prefix: prefix.unwrap_or_default(), limit, after: cursor })
    }
}

/// `GET /artifacts/{remote}` as JSON. `total_objects` counts every artifact from the cursor on that
/// matches, this page's included; `next_cursor` is there where more follow.
///
/// # Errors
/// The index's.
pub fn artifacts(cache: &Cache, target: &Target, page: &Page) -> Result<String, IndexError> {
    let scan = Scan {
        remote: Some(target.remote.name.clone()),
        prefix: page.prefix.clone(),
        after: page.after.clone(),
    };
    // As text from the start: as values they would take ten times as much memory.
    let (mut artifacts, mut listed) = (String::new(), 0_usize);
    let (mut total, mut examined) = (0_usize, 0_usize);
    let (mut last, mut next) = (String::new(), None);
    cache.ports().index.scan(&scan, &mut |row| {
        let path = row.key.path.as_str();
        if page.include.as_ref().is_none_or(|include| include.is_match(path)) {
            total += 1;
            if listed < page.limit {
                let comma = if listed == 0 { "" } else { "," };
                artifacts += &format!("{comma}{}", artifact(&row, cache.judge_row(target, &row)));
                listed += 1;
                path.clone_into(&mut last);
            } else if next.is_none() {
                next = Some(std::mem::take(&mut last));
            }
        } else if listed < page.limit {
            path.clone_into(&mut last);
        }
        examined += 1;
        if examined < ROWS_EXAMINED_MAX {
            return ControlFlow::Continue(());
        }
        next.get_or_insert_with(|| std::mem::take(&mut last));
        ControlFlow::Break(())
    })?;
    let [remote, pattern, next] =
        [json!(target.remote.name.as_str()), json!(page.pattern), json!(next)];
    Ok(format!(
        r#"{{"remote":{remote},"total_objects":{total},"pattern":{pattern},"artifacts":[{artifacts}],"next_cursor":{next}}}"#
    ))
}

fn artifact(row: &Row, decision: Decision) -> Value {
    let fresh_for = match decision {
        Decision::Hit(None) | Decision::Prove => Value::Null,
        Decision::Hit(Some(left)) => json!(left.as_secs()),
        _ => json!(0),
    };
    json!({
        "path": row.key.path.as_str(),
        "size": row.entry.size,
        "sha256": row.entry.digest.to_string(),
        "content_type": media_type::of(&row.key.path, row.entry.content_type.as_deref()),
        "cached_at": timestamp(row.entry.stored_at),
        "last_used": timestamp(row.last_used),
        "fresh_for_s": fresh_for,
        "hits": row.hits,
    })
}

/// Seconds since 1970, UTC.
fn timestamp(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
