//! A batch as it is asked for, in JSON.

use std::collections::BTreeMap;

use regex::Regex;

use super::ARTIFACTS_MAX;
use super::fields::{Field, Fields};
use crate::artifact::ArtifactPath;
use crate::cache::{Cache, Target};
use crate::policy::pattern;

/// Bytes of a request.
pub const REQUEST_BYTES_MAX: u64 = 16 << 20;

/// A batch.
#[derive(Debug, Clone)]
pub struct Request {
    /// What to cache.
    pub what: What,
    /// How.
    pub options: Options,
}

/// What to cache.
#[derive(Debug, Clone)]
pub enum What {
    /// Whatever upstream has that matches.
    Pattern {
        /// The remote's name.
        remote: String,
        /// Searched in the path.
        include: Regex,
    },
    /// These paths of a remote, literally: as results print them, without any encoding.
    Paths {
        /// The remote's name.
        remote: String,
        /// The paths.
        paths: Vec<String>,
    },
    /// These URLs, each of the remote below whose base URL it lies.
    Urls {
        /// The one remote that they may belong to, or any.
        remote: Option<String>,
        /// The URLs.
        urls: Vec<String>,
    },
}

/// How a batch is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Only say what would be cached.
    pub dry_run: bool,
    /// At most so many artifacts, beside those that are stored already.
    pub limit: usize,
    /// Ask upstream about what is stored and fresh, too.
    pub force: bool,
}

impl Options {
    /// Whether an artifact is one of those that `limit` counts. What is stored already and needs
    /// nothing is not: a batch that is run again goes on where the last one ended. Without a
    /// limit nobody needs to know, and the index is not asked.
    pub(super) fn counts(&self, cache: &Cache, target: &Target, path: &ArtifactPath) -> bool {
        self.force || self.limit == ARTIFACTS_MAX || cache.is_filled(target, path).is_none()
    }
}

/// Why a request can't be understood; names the field and the fix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadRequest(String);

impl Request {
    /// Reads a request.
    ///
    /// ```
    /// use artifactapi::batch::Request;
    /// let text = br#"{"remote": "tools", "include_pattern": "[", "dry_run": true}"#;
    /// let error = Request::parse(text).unwrap_err().to_string();
    /// assert!(error.starts_with("include_pattern is not a regular expression"), "{error}");
    /// ```
    ///
    /// # Errors
    /// [`BadRequest`].
    pub fn parse(body: &[u8]) -> Result<Self, BadRequest> {
        let bad = |why: String| Err(BadRequest(why));
        let Fields(mut fields) = match serde_json::from_slice(body) {
            Ok(fields) => fields,
            Err(error) if error.is_data() => return bad(error.to_string()),
            Err(error) => return bad(format!("the body is not JSON: {error}")),
        };
        let options = Options {
            dry_run: switch(&fields, "dry_run")?,
            limit: limit(&fields)?,
            force: switch(&fields, "force")?,
        };
        let given = |fields: &Given, name: &str| {
            fields.get(name).is_some_and(|value| *value != Field::Nothing)
        };
        let ways = ["include_pattern", "paths", "urls"].map(|name| given(&fields, name));
        let what = match ways {
            [true, false, false] => What::Pattern {
                remote: text(&mut fields, "remote")?,
                include: pattern(&mut fields)?,
            },
            [false, true, false] => What::Paths {
                remote: text(&mut fields, "remote")?,
                paths: texts(&mut fields, "paths")?,
            },
            [false, false, true] => What::Urls {
                remote: match given(&fields, "remote") {
                    true => Some(text(&mut fields, "remote")?),
                    false => None,
                },
                urls: texts(&mut fields, "urls")?,
            },
            _ => {
                return bad(
                    "give exactly one of include_pattern and paths (each with remote) and urls"
                        .to_owned(),
                );
            }
        };
        Ok(Self { what, options })
    }
}

type Given = BTreeMap<String, Field>;

fn switch(fields: &Given, name: &str) -> Result<bool, BadRequest> {
    match fields.get(name) {
        None | Some(Field::Nothing) => Ok(false),
        Some(Field::Switch(value)) => Ok(*value),
        Some(_) => Err(BadRequest(format!("{name} must be true or false"))),
    }
}

fn limit(fields: &Given) -> Result<usize, BadRequest> {
    let bad = || BadRequest(format!("limit must be a number from 1 to {ARTIFACTS_MAX}"));
    match fields.get("limit") {
        None | Some(Field::Nothing) => Ok(ARTIFACTS_MAX),
        Some(Field::Number(limit)) => {
            let limit = usize::try_from(*limit).map_err(|_| bad())?;
            (1..=ARTIFACTS_MAX).contains(&limit).then_some(limit).ok_or_else(bad)
        }
        Some(_) => Err(bad()),
    }
}

fn text(fields: &mut Given, name: &str) -> Result<String, BadRequest> {
    match fields.remove(name) {
        Some(Field::Text(text)) => Ok(text),
        _ => Err(BadRequest(format!("{name} must be a text"))),
    }
}

fn pattern(fields: &mut Given) -> Result<Regex, BadRequest> {
    pattern::of_client(&text(fields, "include_pattern")?).map_err(BadRequest)
}

fn texts(fields: &mut Given, name: &str) -> Result<Vec<String>, BadRequest> {
    match fields.remove(name) {
        Some(Field::Texts(texts)) => Ok(texts),
        Some(Field::MixedList(at)) => Err(BadRequest(format!("{name}[{at}] must be a text"))),
        Some(Field::LongList) => {
            Err(BadRequest(format!("{name} has more than {ARTIFACTS_MAX} entries")))
        }
        _ => Err(BadRequest(format!("{name} must be a list of texts"))),
    }
}
