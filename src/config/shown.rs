//! The configuration as one may show it: every secret `***`.
//!
//! For `GET /config` and for messages. What is shown is built from what is in force, not
//! from the file, so that defaults stand there too.

use std::time::Duration;

use serde_json::{Map, Value, json};
use url::Url;

use super::{Auth, Kind, Origin, Remote, Remotes};

/// What stands where a secret is.
const MASK: &str = "***";

impl Remotes {
    /// Every remote by name, with the keys of remotes.yaml, defaults included and secrets
    /// masked. Times are in seconds, sizes in bytes; what is without limit is null.
    pub fn to_json(&self) -> Value {
        let remotes: Map<String, Value> = self
            .by_name
            .iter()
            .map(|(name, remote)| (name.to_string(), remote.to_json()))
            .collect();
        json!({ "remotes": remotes })
    }
}

impl Remote {
    pub(super) fn to_json(&self) -> Value {
        let lifetimes = &self.lifetimes;
        let mut shown = json!({
            "type": self.kind.as_str(),
            "package": self.format.name(),
            "description": self.description,
            "include_patterns": self.patterns.include(),
            "exclude_patterns": self.patterns.exclude(),
            "mutable_patterns": self.patterns.mutable(),
            "cache": {
                "file_ttl": seconds(lifetimes.file_ttl.unwrap_or_default()),
                "index_ttl": seconds(lifetimes.index_ttl),
                "stale_if_error": lifetimes.stale_if_error.map(seconds),
                "negative_ttl": seconds(lifetimes.negative_ttl),
                "max_bytes": self.keeping.max_bytes,
                "keep_unused_for": self.keeping.unused_for.map(seconds),
            },
            "pin_patterns": self.keeping.pins.as_written(),
            "max_bytes": self.max_bytes,
        });
        if let Some(keys) = shown.as_object_mut() {
            match &self.kind {
                Kind::Remote(origin) => keys.extend(origin.to_json()),
                Kind::Local => {
                    keys.insert("allow_overwrite".to_owned(), json!(self.allow_overwrite));
                }
            }
        }
        shown
    }
}

impl Origin {
    fn to_json(&self) -> Map<String, Value> {
        let bases: Vec<String> = self.bases.iter().map(masked).collect();
        let (base, mirrors) = bases.split_first().map_or((None, &[][..]), |(b, m)| (Some(b), m));
        let auth = self.auth.as_ref().map(|auth| match auth {
            Auth::Basic { user, .. } => json!({ "basic": { "user": user, "password": MASK } }),
            Auth::Bearer(_) => json!({ "bearer": MASK }),
            Auth::Headers(headers) => {
                let names: Map<_, _> =
                    headers.iter().map(|(name, _)| (name.clone(), MASK.into())).collect();
                json!({ "headers": names })
            }
        });
        [
            ("base_url", json!(base)),
            ("mirrors", json!(mirrors)),
            ("auth", json!(auth)),
            ("ca_file", json!(self.ca_file)),
            ("proxy", json!(self.proxy.as_ref().map(masked))),
            (
                "timeouts",
                json!({
                    "connect": seconds(self.timeouts.connect),
                    "first_byte": seconds(self.timeouts.first_byte),
                    "idle": seconds(self.timeouts.idle),
                }),
            ),
            ("offline", json!(self.offline)),
            ("allow_private_redirects", json!(self.allow_private_redirects)),
            ("api_url", json!(self.api_url.as_ref().map(masked))),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into_iter()
        .collect()
    }
}

/// Seconds: a whole number where it is one.
pub(super) fn seconds(time: Duration) -> Value {
    if time.subsec_millis() == 0 { json!(time.as_secs()) } else { json!(time.as_secs_f64()) }
}

/// A URL without what stands before the `@`.
pub(super) fn masked(url: &Url) -> String {
    let mut url = url.clone();
    if !url.username().is_empty() || url.password().is_some() {
        // Both can only fail for a URL without a host, which then has no credential either.
        let _ = url.set_username("");
        let _ = url.set_password(None);
        return url.as_str().replacen("://", &format!("://{MASK}@"), 1);
    }
    url.into()
}

/// The same for a text that may not be a URL: all that could be a credential goes, rather
/// too much than too little.
pub(super) fn without_credential(text: &str) -> String {
    let Some((before, behind)) = text.rsplit_once('@') else { return text.to_owned() };
    let scheme = before.split_once("://").map_or(String::new(), |(s, _)| format!("{s}://"));
    format!("{scheme}{MASK}@{behind}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_never_show_in_urls() {
        for (url, expected) in [
            ("https://h.example.org/a", "https://h.example.org/a"),
            ("https://u:p@h.example.org/a", "https://***@h.example.org/a"),
            ("https://token@h.example.org/@scope/", "https://***@h.example.org/@scope/"),
            ("https://:p@h.example.org/", "https://***@h.example.org/"),
        ] {
            assert_eq!(masked(&Url::parse(url).unwrap()), expected);
        }
        for (text, expected) in [
            ("https://h.example.org", "https://h.example.org"),
            ("u:p@h.example.org", "***@h.example.org"),
            ("https://u:p/q@x@h", "https://***@h"),
            ("ftp://u:p@h/", "ftp://***@h/"),
            ("://@", "://***@"),
        ] {
            assert_eq!(without_credential(text), expected);
        }
    }
}
