//! What `reindex` and `verify` show: a progress bar on a terminal, lines for everything else.
//!
//! Findings and the summary go to standard output, as text or, for scripts, as one JSON object
//! a line. Progress goes to standard error: a bar where that is a terminal, else a line from
//! time to time.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

use crate::cache::upkeep::{Finding, Reindexed, Verified, Watch, What, Work, Writes};

/// How often a line tells of the progress where there is no terminal.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(10);
const BAR: &str = "{prefix} {wide_bar} {percent}%  {msg}  {binary_bytes}/{binary_total_bytes}  {binary_bytes_per_sec}  {eta} left";

/// The form of what goes to standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Summary {
    /// A rebuild of the index, and whether it wrote.
    Reindexed(Reindexed, Writes),
    /// A verification.
    Verified(Verified),
}

impl Summary {
    /// Whether the exit code is 0.
    pub fn is_well(&self) -> bool {
        match self {
            Self::Reindexed(done, _) => done.is_complete(),
            Self::Verified(done) => done.is_sound(),
        }
    }

    /// The numbers by name.
    pub fn to_json(&self) -> Value {
        match self {
            Self::Reindexed(done, writes) => json!({
                "event": "summary",
                "command": "reindex",
                "dry_run": *writes == Writes::Nothing,
                "blobs": done.blobs.files,
                "bytes": done.blobs.bytes,
                "right": done.right,
                "recorded": done.recorded,
                "removed": done.removed,
                "unknown": done.unknown,
                "spare": done.spare,
                "overtaken": done.overtaken,
                "unreadable": done.unreadable,
                "ok": self.is_well(),
            }),
            Self::Verified(done) => json!({
                "event": "summary",
                "command": "verify",
                "artifacts": done.rows.files,
                "bytes": done.rows.bytes,
                "right": done.right,
                "proven": done.proven,
                "missing": done.missing,
                "changed": done.changed,
                "damaged": done.damaged,
                "dropped": done.dropped,
                "overtaken": done.overtaken,
                "unreadable": done.unreadable,
                "ok": self.is_well(),
            }),
        }
    }

    /// One line for people.
    pub fn to_text(&self) -> String {
        let counted = |counts: &[(u64, &str)]| {
            // What did not happen is not worth a word, but for the first.
            let told = |(at, (count, _)): &(usize, &(u64, &str))| *at == 0 || *count > 0;
            let words = counts.iter().enumerate().filter(told);
            let words: Vec<String> =
                words.map(|(_, (count, word))| format!("{} {word}", HumanCount(*count))).collect();
            words.join(", ")
        };
        match self {
            Self::Reindexed(done, writes) => {
                let counts = match writes {
                    Writes::Rows => [(done.recorded, "recorded"), (done.removed, "rows removed")],
                    Writes::Nothing => {
                        [(done.recorded, "to record"), (done.removed, "rows to remove")]
                    }
                };
                let rest = [
                    (done.unknown, "unknown"),
                    (done.spare, "spare"),
                    (done.overtaken, "changed by a server meanwhile"),
                    (done.unreadable, "unreadable"),
                ];
                let counts = [&[(done.right, "right")], &counts[..], &rest].concat();
                format!("{} of blobs: {}", amount(done.blobs), counted(&counts))
            }
            Self::Verified(done) => {
                let counts = counted(&[
                    (done.right, "right"),
                    (done.proven, "of them proven now"),
                    (done.missing, "missing"),
                    (done.changed, "changed"),
                    (done.damaged, "damaged"),
                    (done.dropped, "of the wrong ones dropped"),
                    (done.overtaken, "changed by a server meanwhile"),
                    (done.unreadable, "unreadable"),
                ]);
                format!("{} of artifacts: {counts}", amount(done.rows))
            }
        }
    }
}

/// Shows a run; a [`Watch`] of it.
pub struct Report {
    command: &'static str,
    form: Form,
    output: Box<dyn Write>,
    bar: ProgressBar,
    expected: Work,
    done: Work,
    last_line: Instant,
}

impl std::fmt::Debug for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Report").field("done", &self.done).finish_non_exhaustive()
    }
}

impl Report {
    /// A report of `command` on the process's standard output and standard error.
    pub fn to_terminal(command: &'static str, form: Form) -> Self {
        let has_bar = std::io::stderr().is_terminal();
        let target =
            if has_bar { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        Self::new(command, form, Box::new(std::io::stdout()), target)
    }

    fn new(
        command: &'static str,
        form: Form,
        output: Box<dyn Write>,
        target: ProgressDrawTarget,
    ) -> Self {
        let style =
            ProgressStyle::with_template(BAR).expect("the template is right, as a test shows");
        let bar = ProgressBar::with_draw_target(None, target).with_style(style);
        bar.set_prefix(command);
        let (expected, done) = (Work::default(), Work::default());
        Self { command, form, output, bar, expected, done, last_line: Instant::now() }
    }

    /// Prints the summary and ends; says whether all is well.
    pub fn sum_up(&mut self, summary: &Summary) -> bool {
        self.bar.finish_and_clear();
        let line = match self.form {
            Form::Text => format!("{}: {}", self.command, summary.to_text()),
            Form::Json => summary.to_json().to_string(),
        };
        self.print(&line);
        summary.is_well()
    }

    fn print(&mut self, line: &str) {
        let output = &mut self.output;
        self.bar.suspend(|| {
            // A reader that went away (`| head`) does not end the work; the exit code tells.
            let _ = writeln!(output, "{line}").and_then(|()| output.flush());
        });
    }
}

impl Watch for Report {
    fn began(&mut self, expected: Work) {
        self.expected = expected;
        self.bar.set_length(expected.bytes);
        self.advanced(Work::default());
    }

    fn advanced(&mut self, done: Work) {
        self.done.files += done.files;
        self.done.bytes += done.bytes;
        if !self.bar.is_hidden() {
            let (files, of) = (HumanCount(self.done.files), HumanCount(self.expected.files));
            self.bar.set_message(format!("{files}/{of} files"));
            self.bar.set_position(self.done.bytes);
        } else if self.last_line.elapsed() >= PROGRESS_INTERVAL {
            self.last_line = Instant::now();
            eprintln!("{}: {} of {}", self.command, amount(self.done), amount(self.expected));
        }
    }

    fn found(&mut self, finding: &Finding) {
        let line = match self.form {
            Form::Text => text_of(finding),
            Form::Json => json_of(finding).to_string(),
        };
        self.print(&line);
    }
}

fn amount(work: Work) -> String {
    let files = if work.files == 1 { "file" } else { "files" };
    format!("{} {files}, {}", HumanCount(work.files), HumanBytes(work.bytes))
}

fn json_of(finding: &Finding) -> Value {
    json!({
        "event": finding.what.as_str(),
        "remote": finding.artifact.as_ref().map(|artifact| artifact.remote.as_str()),
        "path": finding.artifact.as_ref().map(|artifact| artifact.path.as_str()),
        "blob": finding.blob.as_str(),
        "why": finding.why,
        "mended": finding.is_mended,
    })
}

fn text_of(finding: &Finding) -> String {
    // A file of the store may have been named by anybody.
    let blob = finding.blob.as_str().escape_debug();
    let mut line = match &finding.artifact {
        Some(artifact) => format!("{} {artifact} (blob {blob})", finding.what.as_str()),
        None => format!("{} blob {blob}", finding.what.as_str()),
    };
    if let Some(why) = &finding.why {
        line += ": ";
        line += why;
    }
    if finding.is_mended {
        line += match finding.what {
            What::Unrecorded => "; recorded",
            What::Dangling => "; row removed",
            _ => "; dropped",
        };
    }
    line
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::artifact::{ArtifactKey, ArtifactPath, BlobKey};

    #[derive(Clone, Default)]
    struct Output(Arc<Mutex<Vec<u8>>>);

    impl Write for Output {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn finding(what: What, why: Option<&str>, is_mended: bool) -> Finding {
        let path = ArtifactPath::from_canonical("dir/a b.zip").unwrap();
        let artifact = ArtifactKey { remote: "r".parse().unwrap(), path };
        let blob = BlobKey::of(&artifact);
        let why = why.map(str::to_owned);
        Finding { what, artifact: Some(artifact), blob, why, is_mended }
    }

    /// What is printed of a run that finds something.
    fn printed(form: Form, found: &Finding, summary: &Summary) -> (bool, Vec<String>) {
        let output = Output::default();
        let boxed = Box::new(output.clone());
        let mut report = Report::new("verify", form, boxed, ProgressDrawTarget::hidden());
        report.began(Work { files: 1, bytes: 10 });
        report.found(found);
        report.advanced(Work { files: 1, bytes: 10 });
        let is_well = report.sum_up(summary);
        let text = String::from_utf8(output.0.lock().unwrap().clone()).unwrap();
        (is_well, text.lines().map(str::to_owned).collect())
    }

    fn verified(damaged: u64, dropped: u64) -> Summary {
        let rows = Work { files: 1_234, bytes: 3 << 20 };
        Summary::Verified(Verified { rows, right: 1_233, damaged, dropped, ..Verified::default() })
    }

    #[test]
    fn people_read_lines() {
        let found = finding(What::Damaged, Some("its end is missing"), true);
        let (is_well, lines) = printed(Form::Text, &found, &verified(1, 1));
        assert!(is_well);
        let blob = found.blob.as_str();
        assert_eq!(
            lines,
            [
                format!("damaged r/dir/a b.zip (blob {blob}): its end is missing; dropped"),
                "verify: 1,234 files, 3.00 MiB of artifacts: 1,233 right, 1 damaged, 1 of the wrong ones dropped"
                    .to_owned(),
            ]
        );
    }

    #[test]
    fn scripts_read_an_object_a_line() {
        let found = finding(What::Missing, None, false);
        let (is_well, lines) = printed(Form::Json, &found, &verified(1, 0));
        assert!(!is_well);
        let objects: Vec<Value> =
            lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(objects.len(), 2);
        assert_eq!(objects[0]["event"], "missing");
        assert_eq!(
            (&objects[0]["remote"], &objects[0]["path"]),
            (&json!("r"), &json!("dir/a b.zip"))
        );
        assert_eq!((&objects[0]["why"], &objects[0]["mended"]), (&Value::Null, &json!(false)));
        assert_eq!(objects[1]["event"], "summary");
        assert_eq!((&objects[1]["damaged"], &objects[1]["ok"]), (&json!(1), &json!(false)));
    }

    #[test]
    fn names_that_somebody_put_into_the_store_stay_on_their_line() {
        let blob = BlobKey::from_listing("r/0123456789abcdef/a\n\u{1b}[2Jb").unwrap();
        let found = Finding { artifact: None, blob, ..finding(What::Unknown, None, false) };
        let done = Reindexed { unknown: 1, ..Reindexed::default() };
        let (is_well, lines) =
            printed(Form::Text, &found, &Summary::Reindexed(done, Writes::Nothing));
        assert!(!is_well, "somebody should look at what has no row now");
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0], "unknown blob r/0123456789abcdef/a\\n\\u{1b}[2Jb");
        assert_eq!(lines[1], "verify: 0 files, 0 B of blobs: 0 right, 1 unknown");
    }

    #[test]
    fn a_run_is_well_only_if_everything_was_judged_and_nothing_wrong_is_left() {
        let check = |summary: Summary, is_well: bool| {
            assert_eq!(summary.is_well(), is_well, "{summary:?}");
            assert_eq!(summary.to_json()["ok"], is_well);
        };
        check(verified(0, 0), true);
        check(verified(2, 2), true);
        check(verified(2, 1), false);
        let unreadable = Verified { unreadable: 1, ..Verified::default() };
        check(Summary::Verified(unreadable), false);
        let unreadable = Reindexed { unreadable: 1, ..Reindexed::default() };
        check(Summary::Reindexed(unreadable, Writes::Rows), false);
        check(Summary::Reindexed(Reindexed::default(), Writes::Rows), true);
    }
}
