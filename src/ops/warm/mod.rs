//! `artifactapi warm`: has a running server cache many artifacts, and shows how that goes.
//!
//! The work is the server's ([`batch`](crate::batch)); this sends the request, follows the
//! lines of progress, and turns the end into an exit code, so that cron can tell.

use std::io::{self, BufRead, IsTerminal, Read};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::upstream::own::{AskError, Server, post_json};

mod show;

use show::Show;

/// Bytes of a file of paths or URLs.
const LIST_BYTES_MAX: u64 = 16 << 20;
/// Bytes of one line of the server's answer.
const LINE_BYTES_MAX: u64 = 1 << 20;

/// The variable that holds a token for a server that lets nobody read without one.
pub const TOKEN_VARIABLE: &str = "ARTIFACTAPI_TOKEN";

/// What to warm.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct Warm {
    /// The remote; without --pattern, --paths or --urls: everything that its patterns allow.
    pub remote: String,
    /// Cache what upstream has and this regular expression finds itself in.
    #[arg(long, value_name = "RE", group = "what")]
    pub pattern: Option<String>,
    /// Cache the paths that a file lists, one a line, literally as results print them; - is
    /// standard input.
    #[arg(long, value_name = "FILE", group = "what")]
    pub paths: Option<PathBuf>,
    /// Cache the URLs that a file lists, one a line; - is standard input.
    #[arg(long, value_name = "FILE", group = "what")]
    pub urls: Option<PathBuf>,
    /// Only say what would be cached.
    #[arg(long)]
    pub dry_run: bool,
    /// Cache at most so many artifacts, beside those that are cached already.
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Ask upstream about what is cached already, too.
    #[arg(long)]
    pub force: bool,
    /// The server, as http://host:port or https://host; without it, the one at LISTEN_ADDR.
    #[arg(long, value_name = "URL")]
    pub server: Option<String>,
    /// Root certificates (PEM) for an https server, beside the system's.
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
}

/// Why nothing was warmed.
#[derive(Debug, thiserror::Error)]
pub enum WarmError {
    /// A list can't be read.
    #[error("cannot read {file}")]
    List {
        /// Which one.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The server does not answer.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// The server refuses.
    #[error("the server refuses ({status}): {detail}{}", token_hint(*status))]
    Refused {
        /// The status code.
        status: u16,
        /// Its words.
        detail: String,
    },
    /// The answer broke off.
    #[error("the server's answer broke off; what was begun goes on there (GET /jobs)")]
    Broken(#[source] io::Error),
}

/// What to do about a refusal for want of a token.
fn token_hint(status: u16) -> String {
    match status {
        401 | 403 => format!("; set {TOKEN_VARIABLE} to a token that may read there"),
        _ => String::new(),
    }
}

/// Has the server at `url` warm its cache. Says whether everything went well.
///
/// # Errors
/// [`WarmError`].
pub fn run(warm: &Warm, url: &str, token: Option<&str>) -> Result<bool, WarmError> {
    let server = Server { url, ca_file: warm.ca_file.as_deref(), token };
    let body = request(warm)?.to_string();
    let mut answer = post_json(server, "/cache-artifact?wait=true", &body)?;
    if answer.status != 200 {
        let mut text = Vec::new();
        answer.body.take(LINE_BYTES_MAX).read_to_end(&mut text).map_err(WarmError::Broken)?;
        let told: Option<Value> = serde_json::from_slice(&text).ok();
        let detail = told.and_then(|told| told["detail"].as_str().map(str::to_owned));
        let detail = detail.unwrap_or_else(|| "it is no artifactapi".to_owned());
        return Err(WarmError::Refused { status: answer.status, detail });
    }
    let show = Show::new(io::stderr().is_terminal());
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = answer.body.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line);
        let broken = |why: &str| WarmError::Broken(io::Error::other(why.to_owned()));
        if read.map_err(WarmError::Broken)? == 0 {
            return Err(broken("it ended before its last line"));
        }
        let told: Value = serde_json::from_slice(&line).map_err(|_| broken("it is no JSON"))?;
        match told["event"].as_str() {
            Some("artifact") => show.artifact(&told),
            Some("end") => {
                show.end(&told);
                return Ok(went_well(&told));
            }
            _ => show.progress(&told),
        }
    }
}

/// A failure, a refusal and a discovery that left something out all need somebody's eye.
fn went_well(end: &Value) -> bool {
    let none = |name: &str| end[name].as_u64() == Some(0);
    end["state"] == "done" && none("failed") && end["incomplete"].is_null() && {
        // A pattern that is wider than the remote's own refuses nothing that was asked for by name.
        let asked_by_name = end["by_name"].as_bool().unwrap_or(false);
        !asked_by_name || none("refused")
    }
}

fn request(warm: &Warm) -> Result<Value, WarmError> {
    let mut request = json!({
        "remote": warm.remote,
        "dry_run": warm.dry_run,
        "force": warm.force,
        "limit": warm.limit,
    });
    match (&warm.paths, &warm.urls) {
        (Some(file), _) => request["paths"] = json!(list(file)?),
        (_, Some(file)) => request["urls"] = json!(list(file)?),
        _ => request["include_pattern"] = json!(warm.pattern.as_deref().unwrap_or("")),
    }
    Ok(request)
}

/// The lines of a file, without empty ones and those that begin with `#`.
fn list(file: &Path) -> Result<Vec<String>, WarmError> {
    let failed = |source| WarmError::List { file: file.to_owned(), source };
    let open: Box<dyn Read> = match file.to_str() {
        Some("-") => Box::new(io::stdin()),
        _ => Box::new(std::fs::File::open(file).map_err(failed)?),
    };
    let mut text = String::new();
    open.take(LIST_BYTES_MAX + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > LIST_BYTES_MAX {
        return Err(failed(io::Error::other(format!("it is larger than {LIST_BYTES_MAX} bytes"))));
    }
    let lines = text.lines().map(str::trim);
    Ok(lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_end_without_failures_is_well() {
        let end = |key: &str, value: Value| {
            let mut end = json!({
                "state": "done", "failed": 0, "refused": 2, "incomplete": null, "by_name": false,
            });
            end[key] = value;
            went_well(&end)
        };
        assert!(end("failed", json!(0)));
        assert!(!end("failed", json!(1)));
        assert!(!end("state", json!("cancelled")));
        assert!(!end("incomplete", json!("more than 5000 listings")));
        assert!(!end("by_name", json!(true)));
        assert!(!went_well(&json!({})));
    }

    #[test]
    fn a_list_has_comments_and_blank_lines() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("list");
        std::fs::write(&file, "# tools\na/b.zip\n\n  c.zip  \r\n").unwrap();
        assert_eq!(list(&file).unwrap(), ["a/b.zip", "c.zip"]);
        assert!(list(&folder.path().join("none")).is_err());
    }
}
