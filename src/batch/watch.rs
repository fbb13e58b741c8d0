//! A job's progress as lines of JSON, for who waits for its end.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::job::{Job, Page};
use crate::body::{BodyError, Piece, Source};

/// Artifacts whose lines are sent at once.
const ARTIFACTS_PER_PIECE: usize = 200;
/// How often there is a line although nothing has ended: it says that the server is there, and
/// finds out that the client is not.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// The lines of a job, from its beginning to its end: `begun`, `artifact` and `progress` any
/// number of times, `end`. Each is an object with its name under `event`. It outlives its
/// reader: a client that goes away ends nothing.
#[derive(Debug)]
pub struct Lines {
    job: Arc<Job>,
    seen: usize,
    stage: Stage,
    piece: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Beginning,
    Middle,
    Over,
}

impl Lines {
    /// The lines of a job.
    pub fn of(job: Arc<Job>) -> Self {
        Self { job, seen: 0, stage: Stage::Beginning, piece: Vec::new() }
    }

    fn line(&mut self, event: &str, mut object: Value) {
        object["event"] = Value::from(event);
        self.piece.extend_from_slice(object.to_string().as_bytes());
        self.piece.push(b'\n');
    }
}

impl Source for Lines {
    fn next_piece(&mut self) -> Result<Option<Piece<'_>>, BodyError> {
        self.piece.clear();
        match self.stage {
            Stage::Over => return Ok(None),
            Stage::Beginning => {
                self.stage = Stage::Middle;
                let summary = self.job.summary();
                self.line("begun", summary);
                return Ok(Some(Piece::Bytes(&self.piece)));
            }
            Stage::Middle => {}
        }
        self.job.wait_for_news(self.seen, PROGRESS_INTERVAL);
        // The end is looked at first: what has ended gets no further results.
        let has_ended = self.job.has_ended();
        let page = Page { offset: self.seen, limit: ARTIFACTS_PER_PIECE };
        let (results, total) = self.job.results(page);
        self.seen += results.len();
        for done in results {
            self.line("artifact", done.to_json());
        }
        let summary = self.job.summary();
        if has_ended && self.seen >= total {
            self.stage = Stage::Over;
            self.line("end", summary);
        } else {
            self.line("progress", summary);
        }
        Ok(Some(Piece::Bytes(&self.piece)))
    }

    fn buffered(&self) -> usize {
        self.piece.capacity()
    }
}
