//! What is wrong with a configuration, in words: where, which key, which value, and the fix.
//!
//! Every problem of a file is collected, so that one reading is enough to mend it. This file
//! knows neither YAML nor environment variables.

use std::fmt;

/// How many errors, and how many warnings, one report lists; the rest are counted. A file with
/// more usually has one cause. Of a file beyond some hundred KiB fewer are listed, since each
/// costs another parse of the file.
pub const PROBLEMS_LISTED_MAX: usize = 100;

/// How much of a value a message shows, in characters.
const VALUE_SHOWN_MAX: usize = 120;

/// One thing that is wrong, or doubtful.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Problem {
    /// The file, as it was named; empty for the environment.
    pub file: String,
    /// The line in it, from 1, where that can be told.
    pub line: Option<usize>,
    /// The dotted key, `remotes.alpine.include_patterns[0]`, or the variable; empty where the
    /// problem is the whole file's.
    pub key: String,
    /// The value in question, ready to print: quoted, shortened, secrets masked.
    pub value: Option<String>,
    /// What is wrong; continues a sentence that begins with the value, if there is one.
    pub what: String,
    /// What to do about it.
    pub fix: String,
}

impl Problem {
    /// Writes the problem; `label` stands before the key ("warning: ").
    fn write(&self, f: &mut fmt::Formatter<'_>, label: &str) -> fmt::Result {
        match (self.file.as_str(), self.line) {
            ("", _) => {}
            (file, Some(line)) => write!(f, "{file}:{line}: ")?,
            (file, None) => write!(f, "{file}: ")?,
        }
        f.write_str(label)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        if let Some(value) = &self.value {
            write!(f, "{value} ")?;
        }
        write!(f, "{}; {}", self.what, self.fix)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, "")
    }
}

/// Everything that one reading of a configuration found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// What makes the configuration unusable, by line.
    pub errors: Vec<Problem>,
    /// Errors beyond [`PROBLEMS_LISTED_MAX`].
    pub errors_unlisted: usize,
    /// What works but is probably not meant, by line.
    pub warnings: Vec<Problem>,
    /// Warnings beyond [`PROBLEMS_LISTED_MAX`].
    pub warnings_unlisted: usize,
}

impl Report {
    /// A report of one error.
    pub(super) fn of(error: Problem) -> Self {
        Self { errors: vec![error], ..Self::default() }
    }

    /// Whether the configuration can be used.
    pub fn is_usable(&self) -> bool {
        self.errors.is_empty()
    }
}

/// One line a problem, errors first, without a summary: its counts are for the caller.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let more = |f: &mut fmt::Formatter<'_>, count: usize, noun: &str| match count {
            0 => Ok(()),
            count => writeln!(f, "… and {count} more {noun}"),
        };
        for error in &self.errors {
            writeln!(f, "{error}")?;
        }
        more(f, self.errors_unlisted, "errors")?;
        for warning in &self.warnings {
            warning.write(f, "warning: ")?;
            writeln!(f)?;
        }
        more(f, self.warnings_unlisted, "warnings")
    }
}

/// A configuration that cannot be used. The report has at least one error, and the warnings
/// that were found on the way.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the configuration cannot be used:\n{report}")]
pub struct ConfigErrors {
    /// What was found.
    pub report: Report,
}

/// A value in quotes as the operator wrote it: backslashes stay single, so that an expression
/// can be compared with the file; what would break the line is escaped, what is long is cut.
pub(super) fn quoted(value: &str) -> String {
    let mut text = String::from("\"");
    for (count, char) in value.chars().enumerate() {
        if count == VALUE_SHOWN_MAX {
            text.push('…');
            break;
        }
        if char.is_control() {
            text.extend(char.escape_default());
        } else {
            text.push(char);
        }
    }
    text.push('"');
    text
}

/// The word of `known` that was probably meant by `word`.
///
/// A word is near if one begins with the other, if it is the other's last part, or if few
/// letters differ, a swap of neighbours being one: one, and one more for each three letters.
pub(super) fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // Nothing that is nearer could be as long as this; and the distance is quadratic.
    const WORD_MAX: usize = 64;
    if word.len() > WORD_MAX {
        return None;
    }
    let plain = |word: &str| word.to_ascii_lowercase().replace(['-', ' ', '.'], "_");
    let word = plain(word);
    let stem = word.strip_suffix('s').unwrap_or(&word);
    known
        .filter_map(|candidate| {
            let distance = strsim::osa_distance(&word, candidate);
            let shorter = word.len().min(candidate.len());
            let is_part = shorter >= 3
                && (candidate.starts_with(stem)
                    || word.starts_with(candidate)
                    || candidate.ends_with(&format!("_{word}")));
            (is_part || distance <= 1 + candidate.len() / 3).then_some((distance, candidate))
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_known_word_is_suggested_and_nothing_far_fetched() {
        let known = ["base_url", "type", "package", "include_patterns", "mirrors", "cache"];
        for (word, expected) in [
            ("base-url", Some("base_url")),
            ("baseurl", Some("base_url")),
            ("url", Some("base_url")),
            ("Type", Some("type")),
            ("tpye", Some("type")),
            ("include_pattern", Some("include_patterns")),
            ("includes", Some("include_patterns")),
            ("mirror", Some("mirrors")),
            ("cahce", Some("cache")),
            ("zzzzzzzz", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, known.into_iter()), expected, "{word:?}");
        }
        assert_eq!(nearest(&"x".repeat(1 << 20), known.into_iter()), None);
    }

    #[test]
    fn a_quoted_value_stays_on_its_line_and_keeps_its_backslashes() {
        assert_eq!(quoted(r"a\.b"), r#""a\.b""#);
        assert_eq!(quoted("a\nb\u{1b}"), r#""a\nb\u{1b}""#);
        assert_eq!(quoted(&"x".repeat(1000)).chars().count(), VALUE_SHOWN_MAX + 3);
    }

    #[test]
    fn a_problem_names_file_line_key_value_and_fix() {
        let problem = Problem {
            file: "remotes.yaml".into(),
            line: Some(14),
            key: "remotes.a.package".into(),
            value: Some(quoted("dbe")),
            what: "is not a known package format".into(),
            fix: "write deb".into(),
        };
        let text = r#"remotes.a.package: "dbe" is not a known package format; write deb"#;
        assert_eq!(problem.to_string(), format!("remotes.yaml:14: {text}"));
        let report = Report { warnings: vec![problem], ..Report::default() };
        assert_eq!(report.to_string(), format!("remotes.yaml:14: warning: {text}\n"));
    }
}
