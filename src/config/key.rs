//! One value that an operator may set, described once: name, kind, bounds, default, sentence.
//!
//! A [`Key`] is a key of remotes.yaml or an environment variable. Reading, messages and the
//! tables of the documentation all come from it. Nothing here knows where a value stands.

use std::fmt;

/// One value that an operator may set.
#[derive(Debug)]
pub struct Key {
    /// The name as the operator writes it.
    pub name: &'static str,
    /// What it holds, with unit and bounds.
    pub kind: Kind,
    /// The value that holds where none is given, as one would write it; empty is "none".
    pub default: &'static str,
    /// What it does, as a sentence.
    pub about: &'static str,
}

/// What a value is. Bounds are inclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Any text.
    Text,
    /// A text that is never printed.
    Secret,
    /// A path of the file system; relative ones start at the working directory.
    Path,
    /// An http or https URL.
    Url,
    /// `true` or `false`.
    Switch,
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// The name of a package format.
    Format,
    /// A list of texts.
    Texts,
    /// A list of http or https URLs.
    Urls,
    /// A list of regular expressions.
    Expressions,
    /// Keys of their own.
    Group,
    /// A whole number.
    Count {
        /// The smallest.
        min: u64,
        /// The largest.
        max: u64,
    },
    /// A time, written in seconds with at most three decimals, bounded in milliseconds.
    Seconds {
        /// The shortest, in milliseconds.
        min_ms: u64,
        /// The longest, in milliseconds.
        max_ms: u64,
    },
    /// A size, written in bytes or with a suffix.
    Bytes {
        /// The smallest, in bytes.
        min: u64,
        /// The largest, in bytes.
        max: u64,
    },
}

/// Why a value does not fit its kind: what is wrong with it, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misfit {
    /// Continues a sentence that begins with the value: "is not a whole number".
    pub what: String,
    /// What to do, in the imperative.
    pub fix: String,
}

impl Kind {
    /// Reads a number: a count as it is, a time in milliseconds, a size in bytes.
    ///
    /// ```
    /// use artifactapi::config::key::Kind;
    /// let size = Kind::Bytes { min: 1, max: 1 << 40 };
    /// assert_eq!(size.number("20Gi"), Ok(20 << 30));
    /// assert_eq!(size.number("64 KB"), Ok(64_000));
    /// let time = Kind::Seconds { min_ms: 0, max_ms: 60_000 };
    /// assert_eq!(time.number("0.25"), Ok(250));
    /// assert_eq!(time.number("61").unwrap_err().what, "is above 60");
    /// ```
    ///
    /// # Errors
    /// A text that is no number of this kind, or out of bounds; every text for a kind that
    /// holds no number.
    pub fn number(&self, text: &str) -> Result<u64, Misfit> {
        let text = text.trim();
        let (value, min, max) = match *self {
            Self::Count { min, max } => (whole(text), min, max),
            Self::Seconds { min_ms, max_ms } => (milliseconds(text), min_ms, max_ms),
            Self::Bytes { min, max } => (bytes(text), min, max),
            _ => (None, 0, 0),
        };
        let wrong = |what: String| Misfit { what, fix: self.fix() };
        match value {
            None if text.starts_with('-') => Err(wrong(format!("is below {}", self.written(min)))),
            None => Err(wrong(format!("is not {}", self.noun()))),
            Some(value) if value < min => Err(wrong(format!("is below {}", self.written(min)))),
            Some(value) if value > max => Err(wrong(format!("is above {}", self.written(max)))),
            Some(value) => Ok(value),
        }
    }

    /// The kind behind "is not".
    pub fn noun(&self) -> &'static str {
        match self {
            Self::Text | Self::Secret => "a text",
            Self::Path => "a path",
            Self::Url => "an http or https URL",
            Self::Switch => "true or false",
            Self::OneOf(_) => "one of the known words",
            Self::Format => "a known package format",
            Self::Texts => "a list of texts",
            Self::Urls => "a list of URLs",
            Self::Expressions => "a list of regular expressions",
            Self::Group => "a mapping",
            Self::Count { .. } => "a whole number",
            Self::Seconds { .. } => "a number of seconds",
            Self::Bytes { .. } => "a number of bytes",
        }
    }

    /// What to write instead of something that does not fit.
    pub fn fix(&self) -> String {
        match self {
            Self::Text | Self::Secret => "put a text there, in quotes".to_owned(),
            Self::Path => "put a path there, in quotes".to_owned(),
            Self::Url => "write a URL such as https://files.example.org/path".to_owned(),
            Self::Switch => "write true or false without quotes".to_owned(),
            Self::OneOf(words) => format!("write {}", words.join(" or ")),
            Self::Format => {
                let names: Vec<_> = crate::formats::FORMATS.iter().map(|f| f.name()).collect();
                format!("write one of {}", names.join(", "))
            }
            Self::Texts | Self::Urls | Self::Expressions => {
                "write one entry a line, each behind \"- \"".to_owned()
            }
            Self::Group => "write its keys below it, indented, as \"key: value\"".to_owned(),
            Self::Count { .. } | Self::Seconds { .. } => format!("give {self}"),
            Self::Bytes { .. } => {
                format!("give {self}, as a number or with Ki, Mi, Gi, Ti, K, M, G, T")
            }
        }
    }

    /// A number of this kind as an operator writes it.
    fn written(&self, number: u64) -> String {
        match self {
            Self::Seconds { .. } if !number.is_multiple_of(1000) => {
                let decimals = format!("{:03}", number % 1000);
                format!("{}.{}", number / 1000, decimals.trim_end_matches('0'))
            }
            Self::Seconds { .. } => (number / 1000).to_string(),
            Self::Bytes { .. } => bytes_written(number),
            _ => number.to_string(),
        }
    }
}

/// Unit and bounds, as the documentation's tables show them.
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text => f.write_str("text"),
            Self::Secret => f.write_str("text, never printed"),
            Self::Path => f.write_str("path"),
            Self::Url => f.write_str("http or https URL"),
            Self::Switch => f.write_str("true or false"),
            Self::OneOf(words) => f.write_str(&words.join(" or ")),
            Self::Format => {
                let names: Vec<_> = crate::formats::FORMATS.iter().map(|f| f.name()).collect();
                f.write_str(&names.join(" or "))
            }
            Self::Texts => f.write_str("list of texts"),
            Self::Urls => f.write_str("list of http or https URLs"),
            Self::Expressions => f.write_str("list of regular expressions"),
            Self::Group => f.write_str("mapping"),
            Self::Count { min, max } => write!(f, "{min} to {max}"),
            Self::Seconds { min_ms, max_ms } => {
                write!(f, "{} to {} seconds", self.written(*min_ms), self.written(*max_ms))
            }
            Self::Bytes { min, max } => {
                write!(f, "{} to {}", bytes_written(*min), bytes_written(*max))
            }
        }
    }
}

/// A table of keys in Markdown, for the documentation.
pub fn markdown(keys: &[Key]) -> String {
    let mut table =
        String::from("| name | default | unit and bounds | meaning |\n|---|---|---|---|\n");
    for key in keys {
        let default = match key.default {
            "" => String::from("none"),
            default => format!("`{default}`"),
        };
        table += &format!("| `{}` | {default} | {} | {} |\n", key.name, key.kind, key.about);
    }
    table
}

/// A size as people write it: in the largest binary unit that divides it.
pub fn bytes_written(bytes: u64) -> String {
    let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match units.iter().find(|(_, bits)| bytes > 0 && bytes.is_multiple_of(1 << bits)) {
        Some((unit, bits)) => format!("{} {unit}", bytes >> bits),
        None if bytes == 1 => "1 byte".to_owned(),
        None => format!("{bytes} bytes"),
    }
}

/// Digits only: the standard parser would take a sign as well.
fn whole(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

/// Seconds with up to three decimals. Exact, where a detour through floating point is not.
fn milliseconds(text: &str) -> Option<u64> {
    let (seconds, decimals) = text.split_once('.').unwrap_or((text, "0"));
    let decimals_fit = (1..=3).contains(&decimals.len());
    let padded = format!("{decimals:0<3}");
    let thousandths = whole(&padded).filter(|_| decimals_fit)?;
    Some(whole(seconds)?.saturating_mul(1000).saturating_add(thousandths))
}

/// Bytes, with `K`, `M`, `G`, `T` for powers of 1000, `Ki`, `Mi`, `Gi`, `Ti` for powers of
/// 1024; a `B` may follow, a blank may stand between, and case does not matter.
fn bytes(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, suffix) = text.split_at(digits);
    let suffix = suffix.trim_start().to_ascii_lowercase();
    let unit: u64 = match suffix.strip_suffix('b').unwrap_or(&suffix) {
        "" => 1,
        "k" => 1000,
        "m" => 1000_u64.pow(2),
        "g" => 1000_u64.pow(3),
        "t" => 1000_u64.pow(4),
        "ki" => 1 << 10,
        "mi" => 1 << 20,
        "gi" => 1 << 30,
        "ti" => 1 << 40,
        _ => return None,
    };
    Some(whole(number)?.saturating_mul(unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(kind: Kind, cases: &[(&str, Result<u64, &str>)]) {
        for (text, expected) in cases {
            let found = kind.number(text).map_err(|misfit| misfit.what);
            assert_eq!(found, expected.map_err(str::to_owned), "{text:?}");
        }
    }

    #[test]
    fn counts_are_whole_numbers_within_bounds() {
        let kind = Kind::Count { min: 1, max: 4096 };
        check(
            kind,
            &[
                ("1", Ok(1)),
                (" 4096 ", Ok(4096)),
                ("0", Err("is below 1")),
                ("-3", Err("is below 1")),
                ("4097", Err("is above 4096")),
                ("99999999999999999999999", Err("is above 4096")),
                ("+5", Err("is not a whole number")),
                ("5.0", Err("is not a whole number")),
                ("five", Err("is not a whole number")),
                ("", Err("is not a whole number")),
            ],
        );
    }

    #[test]
    fn times_have_at_most_three_decimals() {
        let kind = Kind::Seconds { min_ms: 500, max_ms: 10_000 };
        check(
            kind,
            &[
                ("1", Ok(1000)),
                ("0.5", Ok(500)),
                ("1.05", Ok(1050)),
                ("9.999", Ok(9999)),
                ("0.25", Err("is below 0.5")),
                ("10.001", Err("is above 10")),
                ("1.0001", Err("is not a number of seconds")),
                ("1.", Err("is not a number of seconds")),
                (".5", Err("is not a number of seconds")),
                ("1e3", Err("is not a number of seconds")),
                ("30s", Err("is not a number of seconds")),
                ("18446744073709551615", Err("is above 10")),
            ],
        );
    }

    #[test]
    fn sizes_take_decimal_and_binary_suffixes() {
        let kind = Kind::Bytes { min: 1, max: u64::MAX };
        check(
            kind,
            &[
                ("0", Err("is below 1 byte")),
                ("4096", Ok(4096)),
                ("1K", Ok(1000)),
                ("1Ki", Ok(1024)),
                ("2MiB", Ok(2 << 20)),
                ("3 gb", Ok(3_000_000_000)),
                ("1Ti", Ok(1 << 40)),
                ("1.5G", Err("is not a number of bytes")),
                ("G", Err("is not a number of bytes")),
                ("1Q", Err("is not a number of bytes")),
                ("1é", Err("is not a number of bytes")),
            ],
        );
    }

    #[test]
    fn sizes_are_written_in_the_largest_unit_that_divides_them() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (1, "1 byte"),
            (1000, "1000 bytes"),
            (32 << 10, "32 KiB"),
            (20 << 30, "20 GiB"),
            (1 << 50, "1024 TiB"),
        ] {
            assert_eq!(bytes_written(bytes), text);
        }
    }
}
