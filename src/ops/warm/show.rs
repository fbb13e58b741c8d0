//! How the progress of a batch looks: a bar on a terminal, plain lines elsewhere.

use std::io::{self, Write};
use std::time::Duration;

use indicatif::{HumanBytes, HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;

/// The bar, or none.
#[derive(Debug)]
pub(super) struct Show {
    bar: Option<ProgressBar>,
}

impl Show {
    /// A bar on standard error where that is a terminal; plain lines on standard output
    /// otherwise.
    pub(super) fn new(is_terminal: bool) -> Self {
        let bar = is_terminal.then(|| {
            let style = ProgressStyle::with_template("{bar:30} {pos}/{len} files, {msg}")
                .expect("the template is right, as a test shows");
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            bar.set_style(style);
            bar
        });
        Self { bar }
    }

    /// One artifact has ended.
    pub(super) fn artifact(&self, told: &Value) {
        match &self.bar {
            None => say(&line(told)),
            // What went well is the bar's to show.
            Some(bar) if told["error"].is_string() => bar.println(line(told)),
            Some(_) => {}
        }
    }

    /// The counts have changed.
    pub(super) fn progress(&self, told: &Value) {
        let Some(bar) = &self.bar else { return };
        let progress = Progress::of(told);
        bar.set_length(progress.matched);
        bar.set_position(progress.ended);
        bar.set_message(progress.message());
    }

    /// Everything has ended.
    pub(super) fn end(&self, told: &Value) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        say(&text(told, "message"));
    }
}

/// Writes a line; whoever reads no further (`| head`) is no failure of the batch.
fn say(line: &str) {
    let _ = writeln!(io::stdout(), "{line}");
}

/// `cached 1048576 tools/a.zip`, with what went wrong behind it. What was asked for by its URL is
/// named by it.
fn line(told: &Value) -> String {
    let bytes = told["bytes"].as_u64().map_or("-".to_owned(), |bytes| bytes.to_string());
    let error = told["error"].as_str().map(|error| format!(": {error}")).unwrap_or_default();
    let name = if told["url"].is_string() { "url" } else { "path" };
    format!("{} {bytes} {}{error}", text(told, "status"), text(told, name))
}

/// A server's text, fit for a terminal: names come from strangers.
fn text(told: &Value, name: &str) -> String {
    let text = told[name].as_str().unwrap_or_default();
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// The numbers of a moment.
struct Progress {
    matched: u64,
    ended: u64,
    bytes: u64,
    fetched_bytes: u64,
    bytes_listed: u64,
    seconds: f64,
    is_discovering: bool,
}

impl Progress {
    fn of(told: &Value) -> Self {
        let number = |name: &str| told[name].as_u64().unwrap_or(0);
        let ends = ["cached_count", "already_cached", "would_cache", "failed", "cancelled"];
        Self {
            matched: number("matched"),
            ended: ends.iter().map(|name| number(name)).sum(),
            bytes: number("bytes"),
            fetched_bytes: number("fetched_bytes"),
            bytes_listed: number("bytes_listed"),
            seconds: told["seconds"].as_f64().unwrap_or(0.0).max(0.001),
            is_discovering: told["state"] == "discovering",
        }
    }

    fn message(&self) -> String {
        if self.is_discovering {
            return "looking at what upstream has".to_owned();
        }
        let rate = self.fetched_bytes as f64 / self.seconds;
        let left = match self.left() {
            Some(left) => format!(", {} left", HumanDuration(left)),
            None => String::new(),
        };
        format!("{}, {}/s{left}", HumanBytes(self.bytes), HumanBytes(rate as u64))
    }

    /// The time left: by bytes where the listings told sizes, by files otherwise.
    fn left(&self) -> Option<Duration> {
        let share = match self.bytes_listed {
            0 => self.ended as f64 / self.matched.max(1) as f64,
            listed => self.bytes.min(listed) as f64 / listed as f64,
        };
        (share > 0.0).then(|| Duration::from_secs_f64(self.seconds * (1.0 - share) / share))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_line_says_what_became_of_an_artifact() {
        let check = |told: Value, expected: &str| assert_eq!(line(&told), expected);
        check(json!({"status": "cached", "bytes": 5, "path": "a/b"}), "cached 5 a/b");
        let url = "http://h/a/b";
        check(
            json!({"status": "cached", "bytes": 5, "path": "a/b", "url": url}),
            "cached 5 http://h/a/b",
        );
        check(
            json!({"status": "failed", "bytes": null, "path": "a\u{1b}[2J", "error": "gone"}),
            "failed - a?[2J: gone",
        );
    }

    #[test]
    fn the_bar_shows_rate_and_time_left() {
        let told = json!({
            "state": "running", "matched": 4, "cached_count": 1, "already_cached": 1,
            "bytes": 10 << 20, "fetched_bytes": 5 << 20, "bytes_listed": 40 << 20, "seconds": 10.0,
        });
        assert_eq!(Progress::of(&told).ended, 2);
        assert_eq!(Progress::of(&told).message(), "10.00 MiB, 512.00 KiB/s, 30 seconds left");
        let unknown = json!({"state": "running", "matched": 4, "seconds": 10.0});
        assert_eq!(Progress::of(&unknown).message(), "0 B, 0 B/s");
        let show = Show::new(true);
        show.progress(&told);
        show.end(&json!({"message": "done"}));
    }
}
