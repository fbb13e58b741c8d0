//! remotes.yaml: read, judged whole, and turned into [`Remotes`].
//!
//! Every error is collected with file, line, key, value and fix. The tables below are the
//! one description of the format: reading, messages and documentation come from them. What
//! a remote then does is not decided here.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::expressions::Expressions;
use super::fields::{Entry, Fields, Place, Reading, Shown};
use super::key::{Key, Kind as Holds, bytes_written, markdown};
use super::origin;
use super::problem::{ConfigErrors, Problem, Report};
use super::yaml::{self, Node};
use super::{Keeping, Kind, Remote, Remotes};
use crate::artifact::RemoteName;
use crate::formats::{self, FORMATS};
use crate::policy::lifetime::Lifetimes;

/// The largest remotes.yaml that is read, in bytes.
pub const FILE_BYTES_MAX: u64 = 4 << 20;

/// A hundred years: longer makes no difference and could overflow sums.
const LIFETIME: Holds = Holds::Seconds { min_ms: 0, max_ms: 3_153_600_000_000 };
/// Shorter than a second is a mistake, and so is 0, which elsewhere means "for ever".
const KEEPING: Holds = Holds::Seconds { min_ms: 1_000, max_ms: 3_153_600_000_000 };
const SIZE: Holds = Holds::Bytes { min: 1, max: 1 << 60 };

/// The keys of the whole file.
pub const FILE_KEYS: &[Key] = &[Key {
    name: "remotes",
    kind: Holds::Group,
    default: "",
    about: "The remotes by name; a name is the first segment behind `/api/`.",
}];

/// The keys of one remote.
pub const REMOTE_KEYS: &[Key] = &[
    Key {
        name: "base_url",
        kind: Holds::Url,
        default: "",
        about: "Where the artifacts are; may carry a path and `${VARIABLE}`. Required unless `type` is `local`.",
    },
    Key {
        name: "type",
        kind: Holds::OneOf(&["remote", "local"]),
        default: "remote",
        about: "`remote` is cached from `base_url`, `local` is filled by uploads.",
    },
    Key {
        name: "package",
        kind: Holds::Format,
        default: "generic",
        about: "The format of the repository: which files are indexes and which never change.",
    },
    Key { name: "description", kind: Holds::Text, default: "", about: "For people." },
    Key {
        name: "include_patterns",
        kind: Holds::Expressions,
        default: "",
        about: "What may be fetched: searched in the path, none listed is nothing allowed (everything, for a `local` remote).",
    },
    Key {
        name: "exclude_patterns",
        kind: Holds::Expressions,
        default: "",
        about: "What may not be fetched, although it is included.",
    },
    Key {
        name: "mutable_patterns",
        kind: Holds::Expressions,
        default: "",
        about: "What may change under its name, beside what the format knows: `index_ttl` holds for it.",
    },
    Key {
        name: "pin_patterns",
        kind: Holds::Expressions,
        default: "",
        about: "What stays stored, however short space is and however long it was not used.",
    },
    Key {
        name: "cache",
        kind: Holds::Group,
        default: "",
        about: "How long what is stored may be served, and how much of it stays.",
    },
    Key {
        name: "mirrors",
        kind: Holds::Urls,
        default: "",
        about: "Further base URLs, tried in order when one fails.",
    },
    Key {
        name: "auth",
        kind: Holds::Group,
        default: "",
        about: "Credentials, sent to the hosts of `base_url` and `mirrors` only; `${VARIABLE}` is expanded.",
    },
    Key {
        name: "ca_file",
        kind: Holds::Path,
        default: "",
        about: "Further root certificates (PEM) beside the system's.",
    },
    Key {
        name: "proxy",
        kind: Holds::Url,
        default: "",
        about: "An HTTP proxy to go through; `${VARIABLE}` is expanded.",
    },
    Key {
        name: "timeouts",
        kind: Holds::Group,
        default: "",
        about: "Bounds on waiting for the upstream.",
    },
    Key {
        name: "offline",
        kind: Holds::Switch,
        default: "false",
        about: "Never ask upstream: serve what is stored.",
    },
    Key {
        name: "allow_private_redirects",
        kind: Holds::Switch,
        default: "false",
        about: "Redirects may lead to loopback, link-local and private addresses.",
    },
    Key {
        name: "api_url",
        kind: Holds::Url,
        default: "",
        about: "Where a batch finds the releases of owner/repository, in the manner of GitHub's API; `auth` is sent there too. None is `https://api.github.com` for a `base_url` at github.com.",
    },
    Key {
        name: "allow_overwrite",
        kind: Holds::Switch,
        default: "false",
        about: "For a `local` remote: an upload may replace other content under its name.",
    },
    Key {
        name: "max_bytes",
        kind: SIZE,
        default: "",
        about: "The largest single artifact that is stored; a number, or with K, M, G, T, Ki, Mi, Gi, Ti. None is without limit. The bound on all of them together is `cache.max_bytes`.",
    },
    STALE_IF_ERROR,
    NEGATIVE_TTL,
    KEEP_UNUSED_FOR,
];

/// The keys below `cache`.
pub const CACHE_KEYS: &[Key] = &[
    Key {
        name: "file_ttl",
        kind: LIFETIME,
        default: "0",
        about: "For files that never change; 0 is for ever.",
    },
    Key {
        name: "index_ttl",
        kind: LIFETIME,
        default: "300",
        about: "For index files and what `mutable_patterns` names; 0 is revalidate every time.",
    },
    STALE_IF_ERROR,
    NEGATIVE_TTL,
    Key {
        name: "max_bytes",
        kind: SIZE,
        default: "",
        about: "The most that the stored artifacts of this remote take up together, as `CACHE_MAX_BYTES` bounds all remotes; the least recently used go first. None is without limit.",
    },
    KEEP_UNUSED_FOR,
];

// These three are understood in the remote and below its `cache`: people look for them in
// both places, and neither can mean anything else. In both at once is an error.

const STALE_IF_ERROR: Key = Key {
    name: "stale_if_error",
    kind: LIFETIME,
    default: "",
    about: "How long after its lifetime a copy may stand in for a failing upstream; none is without limit.",
};
const NEGATIVE_TTL: Key = Key {
    name: "negative_ttl",
    kind: LIFETIME,
    default: "30",
    about: "How long an upstream's \"not found\" is remembered; 0 is not at all.",
};
const KEEP_UNUSED_FOR: Key = Key {
    name: "keep_unused_for",
    kind: KEEPING,
    default: "",
    about: "What was not used for so long goes, though there may be room; none stays.",
};

/// Keys that have no effect in a local remote.
const LOCAL_IGNORES: &[&str] = &[
    "base_url",
    "mirrors",
    "auth",
    "ca_file",
    "proxy",
    "timeouts",
    "offline",
    "allow_private_redirects",
    "api_url",
    "mutable_patterns",
    "pin_patterns",
    "keep_unused_for",
];
/// The same below `cache`: a local repository keeps everything.
const LOCAL_CACHE_IGNORES: &[&str] = &["max_bytes", "keep_unused_for"];

/// The reference of remotes.yaml in Markdown: a table for each mapping.
pub fn reference() -> String {
    [
        ("A remote", REMOTE_KEYS),
        ("Below `cache`", CACHE_KEYS),
        ("Below `auth`, exactly one of", origin::AUTH_KEYS),
        ("Below `auth.basic`", origin::BASIC_KEYS),
        ("Below `timeouts`", origin::TIMEOUT_KEYS),
    ]
    .map(|(title, keys)| format!("{title}:\n\n{}", markdown(keys)))
    .join("\n")
}

/// What a reading needs from outside.
pub struct Around<'a> {
    /// Bounds each compiled list of expressions, in bytes (`REGEX_SIZE_MAX`).
    pub regex_size_max: usize,
    /// Looks up the variables that `${NAME}` names.
    pub env: &'a dyn Fn(&str) -> Option<String>,
}

impl fmt::Debug for Around<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Around")
            .field("regex_size_max", &self.regex_size_max)
            .finish_non_exhaustive()
    }
}

/// Reads a remotes.yaml from disk, and looks whether the files that it names can be read.
///
/// # Errors
/// Everything that [`parse`] refuses, and a file that is missing, unreadable, larger than
/// [`FILE_BYTES_MAX`] or not UTF-8.
pub fn load(path: &Path, around: &Around<'_>) -> Result<(Remotes, Vec<Problem>), ConfigErrors> {
    let name = path.display().to_string();
    let text = text_of(path, &name)?;
    read(&text, &name, around, &|ca_file| match File::open(ca_file) {
        Ok(_) => None,
        Err(error) => Some(error.to_string()),
    })
}

/// Reads the text of a remotes.yaml; `name` stands for the file in messages.
///
/// ```
/// use artifactapi::config::file::{Around, parse};
/// let around = Around { regex_size_max: 1 << 20, env: &|_| None };
/// let text = "remotes:\n  tools:\n    base_url: https://tools.example.org\n    includes: []\n";
/// let errors = parse(text, "remotes.yaml", &around).unwrap_err();
/// assert!(errors.report.to_string().starts_with("remotes.yaml:4: remotes.tools.includes: "));
/// ```
///
/// # Errors
/// A report with every error of the text, and the warnings found on the way.
pub fn parse(
    text: &str,
    name: &str,
    around: &Around<'_>,
) -> Result<(Remotes, Vec<Problem>), ConfigErrors> {
    read(text, name, around, &|_| None)
}

/// Judges a file without using it, for `artifactapi check`.
pub fn check(path: &Path, around: &Around<'_>) -> Report {
    match load(path, around) {
        Ok((_, warnings)) => Report { warnings, ..Report::default() },
        Err(errors) => errors.report,
    }
}

fn failed(report: Report) -> ConfigErrors {
    ConfigErrors { report }
}

fn text_of(path: &Path, name: &str) -> Result<String, ConfigErrors> {
    let problem = |line: Option<usize>, what: String, fix: &str| {
        let (file, fix) = (name.to_owned(), fix.to_owned());
        failed(Report::of(Problem { file, line, what, fix, ..Problem::default() }))
    };
    let unreadable = |error: std::io::Error| {
        let fix = "name the file in CONFIG_PATH, or make it readable";
        problem(None, format!("the file cannot be read: {error}"), fix)
    };
    let file = File::open(path).map_err(unreadable)?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        let what = format!("the file is larger than {}", bytes_written(FILE_BYTES_MAX));
        return Err(problem(None, what, "is this the right file? CONFIG_PATH names it"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + valid.iter().filter(|byte| **byte == b'\n').count();
        problem(Some(line), "the file is not UTF-8".to_owned(), "save it as UTF-8")
    })
}

/// Says why a file that the configuration names cannot be read.
type Unreadable<'a> = &'a dyn Fn(&Path) -> Option<String>;

fn read(
    text: &str,
    name: &str,
    around: &Around<'_>,
    unreadable: Unreadable<'_>,
) -> Result<(Remotes, Vec<Problem>), ConfigErrors> {
    if text.len() as u64 > FILE_BYTES_MAX {
        let what = format!("the text is larger than {}", bytes_written(FILE_BYTES_MAX));
        let fix = "split it among several instances".to_owned();
        return Err(failed(Report::of(Problem {
            file: name.into(),
            what,
            fix,
            ..Problem::default()
        })));
    }
    let document =
        yaml::parse(text).map_err(|broken| failed(Report::of(syntax(broken, name, text))))?;
    let mut reading = Reading::new(around.env);
    let remotes = remotes(&mut reading, &document, around.regex_size_max, unreadable);
    let is_clean = reading.is_clean();
    let report = reading.into_report(name, text);
    if is_clean { Ok((remotes, report.warnings)) } else { Err(failed(report)) }
}

/// A text that is no YAML, in words that name the usual reason.
fn syntax(broken: yaml::Broken, name: &str, text: &str) -> Problem {
    let line = broken.line.unwrap_or_default();
    let written = text.lines().nth(line.saturating_sub(1)).unwrap_or_default();
    let fix = if written.trim_start_matches(' ').starts_with('\t') {
        "indent with blanks: YAML takes no tabs"
    } else if written.contains('\\') && written.contains('"') {
        r"in double quotes write \\ for a backslash, or use single quotes"
    } else {
        "look at this line and the one before it: indentation, colons, quotes"
    };
    Problem {
        file: name.to_owned(),
        line: broken.line,
        what: format!("the file is not YAML that can be used: {}", broken.what),
        fix: fix.to_owned(),
        ..Problem::default()
    }
}

fn remotes(
    reading: &mut Reading<'_>,
    document: &Node,
    regex_size_max: usize,
    unreadable: Unreadable<'_>,
) -> Remotes {
    let top = Place::default();
    let file = reading.fields(document, &top, FILE_KEYS, &[(REMOTE_KEYS, "to a remote")]);
    let mut by_name = BTreeMap::new();
    let entries = reading.open_group(&file, "remotes");
    if entries.is_empty() && reading.is_clean() {
        let fix = "list them below \"remotes:\", as the example of the documentation does";
        reading.error(&file.place_of("remotes"), Shown::NOTHING, "there are no remotes", fix);
    }
    for entry in entries {
        let Entry { name, place, node } = entry;
        let fields = reading.fields(node, &place, REMOTE_KEYS, &[(CACHE_KEYS, "below cache")]);
        let name_read = name.parse::<RemoteName>().ok();
        if name_read.is_none() {
            let what = "is not a name for a remote";
            let fix = "use 1 to 64 letters, digits, '.', '_' or '-', a letter or digit first";
            reading.error(&place, Shown::text(name), what, fix);
        }
        let Some(remote) = remote(reading, name_read, &fields, regex_size_max) else { continue };
        if let Kind::Remote(origin) = &remote.kind
            && let Some(ca_file) = &origin.ca_file
            && let Some(why) = unreadable(ca_file)
        {
            let shown = Shown::text(&ca_file.display().to_string());
            let what = format!("cannot be read: {why}");
            let fix = "name a PEM file; a relative path starts at the working directory";
            reading.error(&fields.place_of("ca_file"), shown, what, fix);
        }
        by_name.insert(remote.name.clone(), Arc::new(remote));
    }
    Remotes { by_name }
}

/// Reads one remote. `None` only if an error was recorded.
fn remote(
    reading: &mut Reading<'_>,
    name: Option<RemoteName>,
    fields: &Fields<'_>,
    regex_size_max: usize,
) -> Option<Remote> {
    let is_local = reading.word(fields, "type", &["remote", "local"]) == "local";
    let known: Vec<&str> = FORMATS.iter().map(|format| format.name()).collect();
    let package = reading.word(fields, "package", &known);
    let description = reading.text(fields, "description").map(|text| text.value);
    let expressions = Expressions {
        include: reading.texts(fields, "include_patterns"),
        exclude: reading.texts(fields, "exclude_patterns"),
        mutable: reading.texts(fields, "mutable_patterns"),
        pins: reading.texts(fields, "pin_patterns"),
    };
    if is_local {
        for key in LOCAL_IGNORES.iter().filter(|key| fields.has(key)) {
            let what = "has no effect in a local remote";
            reading.warn(&fields.place_of(key), Shown::NOTHING, what, "remove it");
        }
    }
    let allow_overwrite = reading.switch(fields, "allow_overwrite");
    if allow_overwrite && !is_local {
        let what = "has no effect but in a local remote";
        let place = fields.place_of("allow_overwrite");
        reading.warn(&place, Shown::NOTHING, what, "remove it");
    }
    if !is_local && expressions.include.is_empty() {
        let what = "no pattern is listed, so nothing can be fetched";
        let fix = "list what clients may fetch, such as \"\\\\.tar\\\\.gz$\"";
        reading.warn(&fields.place_of("include_patterns"), Shown::NOTHING, what, fix);
    }
    let compiled = expressions.compile(reading, regex_size_max);
    let cache =
        reading.group(fields, "cache", CACHE_KEYS, &[(REMOTE_KEYS, "to the remote itself")]);
    if is_local {
        for key in LOCAL_CACHE_IGNORES.iter().filter(|key| cache.has(key)) {
            let what = "has no effect in a local remote, which keeps what is uploaded";
            let fix = "remove it; max_bytes beside cache bounds the single upload";
            reading.warn(&cache.place_of(key), Shown::NOTHING, what, fix);
        }
    }
    let lifetimes = lifetimes(reading, fields, &cache);
    let max_bytes = reading.number(fields, "max_bytes");
    let most = reading.number(&cache, "max_bytes");
    let unused_for = either(reading, fields, &cache, "keep_unused_for");
    let kind =
        if is_local { Kind::Local } else { Kind::Remote(Box::new(origin::read(reading, fields)?)) };
    let (patterns, pins) = compiled?;
    Some(Remote {
        name: name?,
        description: description.unwrap_or_default(),
        format: formats::named(&package)?,
        kind,
        patterns,
        lifetimes,
        max_bytes,
        allow_overwrite,
        keeping: Keeping {
            max_bytes: most,
            unused_for: unused_for.map(Duration::from_millis),
            pins,
        },
    })
}

fn lifetimes(reading: &mut Reading<'_>, remote: &Fields<'_>, cache: &Fields<'_>) -> Lifetimes {
    let file_ttl = reading.number(cache, "file_ttl").filter(|ms| *ms > 0);
    let index_ttl = reading.number(cache, "index_ttl").unwrap_or_default();
    let stale_if_error = either(reading, remote, cache, "stale_if_error");
    let negative_ttl = either(reading, remote, cache, "negative_ttl").unwrap_or_default();
    Lifetimes {
        file_ttl: file_ttl.map(Duration::from_millis),
        index_ttl: Duration::from_millis(index_ttl),
        stale_if_error: stale_if_error.map(Duration::from_millis),
        negative_ttl: Duration::from_millis(negative_ttl),
    }
}

/// A number that may stand in the remote or below its `cache`, but not in both.
fn either(
    reading: &mut Reading<'_>,
    remote: &Fields<'_>,
    cache: &Fields<'_>,
    name: &str,
) -> Option<u64> {
    if remote.has(name) && cache.has(name) {
        let fix = "keep the one below cache";
        reading.error(&remote.place_of(name), Shown::NOTHING, "is also below cache", fix);
    }
    let holder = if cache.has(name) { cache } else { remote };
    reading.number(holder, name)
}

#[cfg(test)]
mod example_tests;
#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod tests;
