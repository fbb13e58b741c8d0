//! Routes: what a target asks for, and which methods that takes; the parameters of a query.

use super::reply::Problem;

/// What a target means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route<'a> {
    /// `/`: name, version, remotes, endpoints.
    Root,
    /// `/health`: the states, for people.
    Health,
    /// `/health/live`: whether the process answers at all.
    Live,
    /// `/health/ready`: whether requests should be sent here.
    Ready,
    /// `/metrics`.
    Metrics,
    /// `/config`.
    Config,
    /// `/stats`.
    Stats,
    /// `/artifacts/{remote}`: what is cached.
    Artifacts {
        /// The remote's name as sent.
        remote: &'a str,
        /// The query as sent.
        query: &'a str,
    },
    /// `/api/{remote}/{path}`.
    Artifact {
        /// The remote's name as sent.
        remote: &'a str,
        /// The path as sent, still encoded; none where no slash follows the remote.
        path: Option<&'a str>,
        /// The query as sent.
        query: Option<&'a str>,
    },
    /// `/cache-artifact`: begins a batch.
    CacheArtifact {
        /// The query as sent.
        query: &'a str,
    },
    /// `/jobs`: the batches.
    Jobs {
        /// The query as sent.
        query: &'a str,
    },
    /// `/jobs/{id}`.
    Job {
        /// The job's id as sent.
        id: &'a str,
        /// The query as sent.
        query: &'a str,
    },
    /// Nothing that this program has.
    Unknown,
}

impl<'a> Route<'a> {
    /// Reads a target, which begins with `/`.
    pub(super) fn of(target: &'a str) -> Self {
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (target, None),
        };
        if let Some(rest) = path.strip_prefix("/api/") {
            let (remote, path) =
                rest.split_once('/').map_or((rest, None), |(remote, path)| (remote, Some(path)));
            return Self::Artifact { remote, path, query };
        }
        if let Some(remote) = path.strip_prefix("/artifacts/") {
            return Self::Artifacts { remote, query: query.unwrap_or_default() };
        }
        if let Some(id) = path.strip_prefix("/jobs/") {
            return Self::Job { id, query: query.unwrap_or_default() };
        }
        match path {
            "/cache-artifact" => Self::CacheArtifact { query: query.unwrap_or_default() },
            "/jobs" => Self::Jobs { query: query.unwrap_or_default() },
            "/" => Self::Root,
            "/health" => Self::Health,
            "/health/live" => Self::Live,
            "/health/ready" => Self::Ready,
            "/metrics" => Self::Metrics,
            "/config" => Self::Config,
            "/stats" => Self::Stats,
            _ => Self::Unknown,
        }
    }

    /// The remote that the route names, as sent.
    pub(super) fn remote(&self) -> Option<&'a str> {
        match self {
            Self::Artifact { remote, .. } | Self::Artifacts { remote, .. } => Some(remote),
            _ => None,
        }
    }

    /// The methods that the route takes, as `Allow` lists them.
    pub(super) fn allowed(&self) -> &'static [&'static str] {
        match self {
            Self::CacheArtifact { .. } => &["POST"],
            Self::Job { .. } => &["GET", "HEAD", "DELETE"],
            Self::Artifact { .. } => &["GET", "HEAD", "PUT", "DELETE"],
            Self::Artifacts { .. } => &["GET", "HEAD", "DELETE"],
            _ => &["GET", "HEAD"],
        }
    }
}

/// The values of a query, percent-decoded, `+` being a space.
pub(super) fn query_value(query: &str, name: &str) -> Option<String> {
    url::form_urlencoded::parse(query.as_bytes())
        .find(|(key, _)| key == name)
        .map(|(_, value)| value.into_owned())
}

/// The first name in a query that is none of these.
fn unknown_name(query: &str, known: &[&str]) -> Option<String> {
    url::form_urlencoded::parse(query.as_bytes())
        .map(|(name, _)| name.into_owned())
        .find(|name| !known.contains(&name.as_str()))
}

/// Refuses a query that has a parameter beside the known ones.
pub(super) fn refuse_others(query: &str, known: &[&str]) -> Result<(), Problem> {
    let Some(name) = unknown_name(query, known) else { return Ok(()) };
    let known = match known {
        [] => "there are none".to_owned(),
        known => format!("use {}", known.join(", ")),
    };
    Err(Problem::new(400, format!("{name:?} is not a parameter here: {known}")))
}

/// A parameter that is `true` or `false`; a missing one is false.
pub(super) fn switch(query: &str, name: &str) -> Result<bool, Problem> {
    match query_value(query, name).as_deref() {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(_) => Err(Problem::new(400, format!("{name} must be true or false"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_lead_to_their_routes() {
        let check = |target, route| assert_eq!(Route::of(target), route, "{target}");
        let artifact = |remote, path, query| Route::Artifact { remote, path: Some(path), query };
        check("/", Route::Root);
        check("/?x", Route::Root);
        check("/health", Route::Health);
        check("/health/", Route::Unknown);
        check("/health/live", Route::Live);
        check("/health/ready?x", Route::Ready);
        check("/health/ready/", Route::Unknown);
        check("/api/r/a/b", artifact("r", "a/b", None));
        check("/api/r/a%2Fb?c=d?e", artifact("r", "a%2Fb", Some("c=d?e")));
        check("/api/r/", artifact("r", "", None));
        check("/api/r", Route::Artifact { remote: "r", path: None, query: None });
        check("/api//a", artifact("", "a", None));
        check("/artifacts/r?limit=1", Route::Artifacts { remote: "r", query: "limit=1" });
        check("/cache-artifact?wait=true", Route::CacheArtifact { query: "wait=true" });
        check("/jobs", Route::Jobs { query: "" });
        check("/jobs/0a?limit=1", Route::Job { id: "0a", query: "limit=1" });
        check("/apis/r", Route::Unknown);
        check("//api/r/a", Route::Unknown);
    }

    #[test]
    fn query_values_are_decoded() {
        assert_eq!(query_value("a=1&b=x%2By+z", "b").as_deref(), Some("x+y z"));
        assert_eq!(query_value("a=1", "b"), None);
        assert_eq!(unknown_name("a=1&b%20=2", &["a"]).as_deref(), Some("b "));
        assert_eq!(unknown_name("", &[]), None);
    }
}
