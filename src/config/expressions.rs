//! The regular expressions of a remote: compiled, or each bad one reported with its place.
//!
//! What a pattern means for a path is `policy::pattern`'s; here only texts are judged.

use super::fields::{Placed, Reading, Shown};
use crate::artifact::ArtifactPath;
use crate::formats;
use crate::policy::pattern::{Patterns, Pins};

/// Paths that no expression means but one that means everything. None can be an artifact of
/// another kind than the others, and they share no character.
const UNLIKELY: &[&str] = &["q", "0-_", "~Z/É", "X,Y/w=+8"];

/// The lists of one remote.
#[derive(Debug)]
pub(super) struct Expressions {
    pub(super) include: Vec<Placed<String>>,
    pub(super) exclude: Vec<Placed<String>>,
    pub(super) mutable: Vec<Placed<String>>,
    pub(super) pins: Vec<Placed<String>>,
}

impl Expressions {
    /// Compiles the lists; `size_max` bounds each compiled list in bytes. Every expression
    /// that is refused is recorded, and so is every doubtful include pattern.
    pub(super) fn compile(
        self,
        reading: &mut Reading<'_>,
        size_max: usize,
    ) -> Option<(Patterns, Pins)> {
        let lists = [&self.include, &self.exclude, &self.mutable, &self.pins];
        let [include, exclude, mutable, pins] = lists.map(|list| texts(list));
        let patterns = Patterns::new(&include, &exclude, &mutable, size_max);
        let compiled = patterns.and_then(|patterns| Ok((patterns, Pins::new(&pins, size_max)?)));
        match &compiled {
            Ok(_) => self.include.iter().for_each(|one| doubt(reading, one, size_max)),
            Err(_) => lists.into_iter().for_each(|list| judge(reading, list, size_max)),
        }
        compiled.ok()
    }
}

fn texts(list: &[Placed<String>]) -> Vec<String> {
    list.iter().map(|expression| expression.value.clone()).collect()
}

/// Records each expression of a list that does not compile, or, where only all of them
/// together are too large, the list's first.
fn judge(reading: &mut Reading<'_>, list: &[Placed<String>], size_max: usize) {
    let before = reading.error_count();
    for expression in list {
        if let Err(error) = alone(&expression.value, size_max) {
            let (what, fix) = explain(&error);
            reading.error(&expression.place, Shown::text(&expression.value), what, fix);
        }
    }
    if reading.error_count() > before {
        return;
    }
    if let (Err(error), Some(first)) =
        (Patterns::new(&texts(list), &[], &[], size_max), list.first())
    {
        let (what, fix) = explain(&error);
        let what = format!("and the patterns below it: the list {what}");
        reading.error(&first.place, Shown::text(&first.value), what, fix);
    }
}

/// Warns of an include pattern that lets through more than its author may think.
fn doubt(reading: &mut Reading<'_>, expression: &Placed<String>, size_max: usize) {
    let text = &expression.value;
    let Ok(pattern) = alone(text, size_max) else { return };
    let generic = formats::named("generic").expect("the generic format is built in");
    let allows = |path: &&str| {
        ArtifactPath::from_canonical(*path).is_ok_and(|path| pattern.allow(generic, &path))
    };
    if UNLIKELY.iter().all(allows) {
        let fix = "name the directories and file names that clients need";
        reading.warn(&expression.place, Shown::text(text), "allows every path", fix);
    } else if !is_anchored(text) {
        let fix = "begin it with ^ or end it with $";
        let what = "may stand anywhere in a path";
        reading.warn(&expression.place, Shown::text(text), what, fix);
    }
}

fn alone(expression: &str, size_max: usize) -> Result<Patterns, regex::Error> {
    Patterns::new(&[expression.to_owned()], &[], &[], size_max)
}

/// Whether an anchor stands in an expression, outside of classes and not escaped. Where it
/// stands does not matter: `(^a|b$)` is its author's business.
fn is_anchored(expression: &str) -> bool {
    let mut classes = 0_usize;
    let mut chars = expression.chars();
    while let Some(char) = chars.next() {
        match char {
            '\\' if matches!(chars.next(), Some('A' | 'z')) && classes == 0 => return true,
            '[' => classes += 1,
            ']' => classes = classes.saturating_sub(1),
            '^' | '$' if classes == 0 => return true,
            _ => {}
        }
    }
    false
}

/// What the regex library's error means, and what to do about it.
fn explain(error: &regex::Error) -> (String, String) {
    let reason = match error {
        regex::Error::CompiledTooBig(limit) => {
            return (
                format!("compiles to more than {limit} bytes"),
                "make it shorter, above all its counted repetitions, or raise REGEX_SIZE_MAX"
                    .to_owned(),
            );
        }
        // Several lines with a drawing; the last one says it.
        error => error.to_string(),
    };
    let reason = reason.lines().last().unwrap_or_default().trim();
    let reason = reason.strip_prefix("error: ").unwrap_or(reason);
    let fix = HINTS
        .iter()
        .find(|(part, _)| reason.contains(part))
        .map_or("write it in the syntax of the regex crate of Rust", |(_, fix)| fix);
    (format!("is not a regular expression: {reason}"), fix.to_owned())
}

/// Parts of the regex library's messages, and what to do about them.
const HINTS: &[(&str, &str)] = &[
    ("unclosed group", r"close the parenthesis or escape it as \("),
    ("unopened group", r"open the parenthesis or escape it as \)"),
    ("unclosed character class", r"close the bracket or escape it as \["),
    ("repetition operator missing", r"write .* for any text, or escape the character with \"),
    ("repetition quantifier", r"write {2} or {2,5}, or escape the brace as \{"),
    ("unclosed counted repetition", r"write {2} or {2,5}, or escape the brace as \{"),
    ("unrecognized escape sequence", r"remove the backslash, or double it for a literal one"),
    ("incomplete escape sequence", r"double the backslash for a literal one"),
    ("look-around", "there is none: name what is unwanted under exclude_patterns"),
    ("backreferences", "there are none: write the text again"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_anchor_counts_outside_of_classes_and_escapes() {
        for (expression, expected) in [
            ("^a", true),
            (r"a\.apk$", true),
            (r"\Aa", true),
            (r"a\z", true),
            ("(^a|b)", true),
            ("a", false),
            (r"a\$", false),
            ("[^a]b", false),
            (r"[\]$]b", false),
            (r"a\\$", true),
        ] {
            assert_eq!(is_anchored(expression), expected, "{expression}");
        }
    }

    #[test]
    fn every_refusal_of_the_regex_library_is_explained() {
        for expression in ["(a", "a)", "[a", "*.apk", "a{2", "a{}", r"\y", "a\\", "(?=a)", r"(a)\1"]
        {
            let (what, fix) = explain(&alone(expression, 1 << 20).unwrap_err());
            assert!(what.starts_with("is not a regular expression: "), "{expression}: {what}");
            assert!(!fix.contains("regex crate"), "{expression}: {what}");
        }
        let (what, fix) = explain(&alone("(a{100}){100}", 1 << 10).unwrap_err());
        assert_eq!(what, "compiles to more than 1024 bytes");
        assert!(fix.contains("REGEX_SIZE_MAX"));
    }
}
