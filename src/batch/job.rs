//! A batch under way: what is left to do, what became of the rest.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::counted;
use super::item::{Done, Item, Status};
use super::plan::{Plan, Source, Work};
use super::request::Options;
use super::survey::{self, Survey};
use crate::artifact::RemoteName;
use crate::cache::Cache;
use crate::chain::chain;

/// A batch under way, or one that has ended.
#[derive(Debug)]
pub struct Job {
    id: String,
    about: String,
    options: Options,
    is_by_name: bool,
    begun: Instant,
    is_cancelled: Arc<AtomicBool>,
    // Guards the state below; nothing else is taken while it is held.
    state: Mutex<State>,
    changed: Condvar,
}

/// Where a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Upstream is being asked what it has.
    Discovering,
    /// Artifacts are being cached.
    Running,
    /// Every artifact has its result.
    Done,
    /// It was cancelled.
    Cancelled,
    /// Upstream could not be asked what it has.
    Failed,
}

impl Phase {
    /// The word for it in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Discovering => "discovering",
            Self::Running => "running",
            Self::Done => "done",
            Self::Cancelled => "cancelled",
            Self::Failed => "failed",
        }
    }

    fn is_end(self) -> bool {
        matches!(self, Self::Done | Self::Cancelled | Self::Failed)
    }
}

/// How many artifacts ended how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// What the batch is about: allowed by the remote, and up to the limit.
    pub matched: usize,
    /// Fetched and stored.
    pub cached: usize,
    /// Stored before.
    pub already_cached: usize,
    /// Would be fetched, if this were no `dry_run`.
    pub would_cache: usize,
    /// Not fetched or not stored.
    pub failed: usize,
    /// Not allowed by the remote's patterns, or by none of the remotes.
    pub refused: usize,
    /// Left alone because the batch was cancelled.
    pub cancelled: usize,
}

impl Counts {
    fn add(&mut self, status: Status) {
        let counter = match status {
            Status::Cached => &mut self.cached,
            Status::AlreadyCached => &mut self.already_cached,
            Status::WouldCache => &mut self.would_cache,
            Status::Failed => &mut self.failed,
            Status::Refused => &mut self.refused,
            Status::Cancelled => &mut self.cancelled,
        };
        *counter += 1;
    }
}

#[derive(Debug)]
struct State {
    phase: Phase,
    inquiry: Option<Inquiry>,
    left: VecDeque<Item>,
    /// Bytes that have come of what is being fetched, by the item's number.
    running: BTreeMap<usize, u64>,
    begun: usize,
    results: Vec<Done>,
    counts: Counts,
    /// Of everything that has ended, of what of it was fetched, and of everything that listings
    /// gave a size.
    bytes: u64,
    fetched: Fetched,
    bytes_listed: u64,
    /// What discovery left out, and why.
    incomplete: Option<String>,
    error: Option<String>,
    ended: Option<Duration>,
}

/// What was fetched, held against the bounds on what stays.
#[derive(Debug, Default)]
struct Fetched {
    bytes: u64,
    by_remote: BTreeMap<RemoteName, u64>,
    /// Whether it is more than can stay all together.
    is_over_bound: bool,
}

/// The most that may stay stored, of all remotes and of the one in question.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    all: Option<u64>,
    own: Option<u64>,
}

impl Fetched {
    fn add(&mut self, remote: &RemoteName, bytes: u64, bounds: Bounds) {
        self.bytes = self.bytes.saturating_add(bytes);
        let of_remote = self.by_remote.entry(remote.clone()).or_default();
        *of_remote += bytes;
        let is_over = |bytes: u64, max: Option<u64>| max.is_some_and(|max| bytes > max);
        self.is_over_bound |= is_over(self.bytes, bounds.all) || is_over(*of_remote, bounds.own);
    }
}

/// What is to be found out before anything can be cached.
#[derive(Debug)]
pub(super) enum Inquiry {
    /// What upstream has.
    Survey(Source),
    /// Which of these the limit means.
    Choice(Vec<Item>),
}

/// One piece of a job's work.
#[derive(Debug)]
pub(super) enum Step {
    Inquiry(Inquiry),
    Item(usize, Item),
    Nothing,
}

/// Which results to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    /// The first one's number, from 0.
    pub offset: usize,
    /// How many.
    pub limit: usize,
}

impl Job {
    pub(super) fn new(plan: Plan) -> Self {
        let Plan { about, options, is_by_name, work, refused } = plan;
        let (inquiry, left) = match work {
            Work::Survey(source) => (Some(Inquiry::Survey(source)), VecDeque::new()),
            // Which of them the limit means is the index's to say, which takes its time.
            Work::Items(items) if items.len() > options.limit => {
                (Some(Inquiry::Choice(items)), VecDeque::new())
            }
            Work::Items(items) => (None, VecDeque::from(items)),
        };
        let counts = Counts { matched: left.len(), refused: refused.len(), ..Counts::default() };
        let job = Self {
            // Each state is a SipHash under keys that began as random bytes of the system.
            id: format!("{:016x}", RandomState::new().hash_one(Instant::now())),
            about,
            options,
            is_by_name,
            begun: Instant::now(),
            is_cancelled: Arc::default(),
            state: Mutex::new(State {
                phase: if inquiry.is_some() { Phase::Discovering } else { Phase::Running },
                inquiry,
                left,
                running: BTreeMap::new(),
                begun: 0,
                results: refused,
                counts,
                bytes: 0,
                fetched: Fetched::default(),
                bytes_listed: 0,
                incomplete: None,
                error: None,
                ended: None,
            }),
            changed: Condvar::new(),
        };
        job.end_if_nothing_is_left(&mut job.state());
        job
    }

    /// Its name in `/jobs/{id}`: 16 hexadecimal digits.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Whether nothing more will happen.
    pub fn has_ended(&self) -> bool {
        self.state().phase.is_end()
    }

    /// Where it is.
    pub fn phase(&self) -> Phase {
        self.state().phase
    }

    /// How many artifacts ended how, so far.
    pub fn counts(&self) -> Counts {
        self.state().counts
    }

    /// How many results there are.
    pub fn result_count(&self) -> usize {
        self.state().results.len()
    }

    /// Ends it: what is being fetched goes on by itself, nothing more is begun.
    pub fn cancel(&self) {
        self.is_cancelled.store(true, Ordering::SeqCst);
        let mut state = self.state();
        if state.phase.is_end() {
            return;
        }
        // An inquiry that runs sees the mark and ends the job.
        if state.phase == Phase::Running || state.inquiry.take().is_some() {
            let left = state.left.len();
            state.left.clear();
            state.counts.cancelled += left;
            state.phase = Phase::Running;
            self.end_if_nothing_is_left(&mut state);
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Waits until it has ended, at most for `patience`, and no longer once it is known to be
    /// about more than `artifacts_max`; says whether it has ended.
    pub fn has_ended_within(&self, patience: Duration, artifacts_max: usize) -> bool {
        let deadline = Instant::now() + patience;
        let mut state = self.state();
        while !state.phase.is_end() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || state.counts.matched > artifacts_max {
                return false;
            }
            state = self.wait(state, left);
        }
        true
    }

    /// Waits for news behind the first `seen` results, at most for `patience`.
    pub(super) fn wait_for_news(&self, seen: usize, patience: Duration) {
        let state = self.state();
        if state.results.len() <= seen && !state.phase.is_end() {
            drop(self.wait(state, patience));
        }
    }

    /// The state of things without the artifacts.
    pub fn summary(&self) -> Value {
        let state = self.state();
        let counts = &state.counts;
        let running: u64 = state.running.values().sum();
        json!({
            "job": self.id,
            "about": self.about,
            "state": state.phase.as_str(),
            "message": state.message(self.options),
            "matched": counts.matched,
            "cached_count": counts.cached,
            "already_cached": counts.already_cached,
            "would_cache": counts.would_cache,
            "failed": counts.failed,
            "refused": counts.refused,
            "cancelled": counts.cancelled,
            "bytes": state.bytes + running,
            "fetched_bytes": state.fetched.bytes + running,
            "bytes_listed": state.bytes_listed,
            "dry_run": self.options.dry_run,
            "by_name": self.is_by_name,
            "incomplete": state.incomplete,
            "error": state.error,
            "seconds": state.ended.unwrap_or_else(|| self.begun.elapsed()).as_secs_f64(),
        })
    }

    /// The state of things with a page of the artifacts that have ended, as JSON; `next_offset`
    /// is there where more follow, `detail` where the batch failed.
    pub fn report(&self, page: Page) -> String {
        let mut summary = self.summary();
        if !summary["error"].is_null() {
            summary["detail"] = summary["error"].clone();
        }
        let (artifacts, total) = self.results(page);
        let next = page.offset.saturating_add(artifacts.len());
        let next = if next < total { json!(next) } else { Value::Null };
        // As text from the start: as values they would take ten times as much memory.
        let mut text = summary.to_string();
        text.pop();
        text += ",\"artifacts\":[";
        for (at, done) in artifacts.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            text += &format!("{comma}{}", done.to_json());
        }
        text + &format!("],\"next_offset\":{next}}}")
    }

    /// Some of the results, and how many there are.
    pub(super) fn results(&self, page: Page) -> (Vec<Done>, usize) {
        let state = self.state();
        let some = state.results.iter().skip(page.offset).take(page.limit).cloned().collect();
        (some, state.results.len())
    }

    /// Takes the next piece of work.
    pub(super) fn take_step(&self) -> Step {
        let mut state = self.state();
        if let Some(inquiry) = state.inquiry.take() {
            return Step::Inquiry(inquiry);
        }
        match state.left.pop_front() {
            Some(item) => {
                let number = state.begun;
                state.begun += 1;
                state.running.insert(number, 0);
                Step::Item(number, item)
            }
            None => Step::Nothing,
        }
    }

    /// Whether there is a next piece of work.
    pub(super) fn has_more(&self) -> bool {
        let state = self.state();
        state.inquiry.is_some() || !state.left.is_empty()
    }

    /// Does a piece of work. Says whether it has brought further ones, so that the job takes
    /// turns again.
    pub(super) fn run(&self, cache: &Cache, step: Step) -> bool {
        match step {
            Step::Inquiry(Inquiry::Survey(source)) => {
                let counts = |path: &_| self.options.counts(cache, &source.target, path);
                let survey = Survey::new(&source, self.options.limit, &counts, &self.is_cancelled);
                let surveyed = survey.run();
                self.surveyed(&source, surveyed)
            }
            Step::Inquiry(Inquiry::Choice(items)) => self.chosen(cache, items),
            Step::Item(number, item) => {
                let done = item.run(cache, self.options, &|bytes| self.progress(number, bytes));
                let own = item.target.remote.keeping.max_bytes;
                self.finished(number, done, Bounds { all: cache.space().plan().bytes_max, own });
                false
            }
            Step::Nothing => false,
        }
    }

    fn progress(&self, number: usize, bytes: u64) -> ControlFlow<()> {
        self.state().running.insert(number, bytes);
        match self.is_cancelled.load(Ordering::SeqCst) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }

    fn finished(&self, number: usize, done: Done, bounds: Bounds) {
        let mut state = self.state();
        state.running.remove(&number);
        state.counts.add(done.status);
        state.bytes = state.bytes.saturating_add(done.bytes.unwrap_or(0));
        if let (Status::Cached, Some(remote), Some(bytes)) = (done.status, &done.remote, done.bytes)
        {
            state.fetched.add(remote, bytes, bounds);
        }
        state.results.push(done);
        self.end_if_nothing_is_left(&mut state);
        drop(state);
        self.changed.notify_all();
    }

    fn surveyed(
        &self,
        source: &Source,
        surveyed: Result<survey::Found, survey::SurveyError>,
    ) -> bool {
        match surveyed {
            Ok(found) => {
                let item = |listed: crate::discovery::Listed| Item {
                    target: Arc::clone(&source.target),
                    path: listed.path,
                    url: None,
                    blob: None,
                    size: listed.size,
                };
                let mut state = self.state();
                state.counts.refused += found.refused;
                state.incomplete = found.incomplete;
                // What upstream says may be anything.
                let sizes = found.listed.iter().filter_map(|listed| listed.size);
                state.bytes_listed = sizes.fold(0, u64::saturating_add);
                self.go_on(state, found.listed.into_iter().map(item).collect())
            }
            Err(error) => {
                let text = chain(&error);
                tracing::warn!(job = self.id, error = text, "a batch could not be discovered");
                let mut state = self.state();
                state.error = Some(text);
                self.go_on(state, VecDeque::new())
            }
        }
    }

    /// Leaves what is beyond the limit for another time.
    fn chosen(&self, cache: &Cache, items: Vec<Item>) -> bool {
        let (mut chosen, mut counted) = (VecDeque::new(), 0);
        for item in items {
            if counted == self.options.limit || self.is_cancelled.load(Ordering::SeqCst) {
                break;
            }
            counted += usize::from(self.options.counts(cache, &item.target, &item.path));
            chosen.push_back(item);
        }
        self.go_on(self.state(), chosen)
    }

    /// Goes on with what was found; says whether there is anything.
    fn go_on(&self, mut state: MutexGuard<'_, State>, items: VecDeque<Item>) -> bool {
        state.phase = Phase::Running;
        state.counts.matched = items.len();
        match self.is_cancelled.load(Ordering::SeqCst) {
            true => state.counts.cancelled = items.len(),
            false => state.left = items,
        }
        self.end_if_nothing_is_left(&mut state);
        let has_more = !state.left.is_empty();
        drop(state);
        self.changed.notify_all();
        has_more
    }

    /// Ends it because of a bug.
    pub(super) fn fail(&self, why: &str) {
        let mut state = self.state();
        state.left.clear();
        state.running.clear();
        state.error = Some(why.to_owned());
        self.end_if_nothing_is_left(&mut state);
        drop(state);
        self.changed.notify_all();
    }

    fn end_if_nothing_is_left(&self, state: &mut State) {
        let waits = state.inquiry.is_some() || state.phase.is_end();
        if waits || !state.left.is_empty() || !state.running.is_empty() {
            return;
        }
        state.phase = match (&state.error, self.is_cancelled.load(Ordering::SeqCst)) {
            (_, true) => Phase::Cancelled,
            (Some(_), false) => Phase::Failed,
            (None, false) => Phase::Done,
        };
        state.ended = Some(self.begun.elapsed());
        tracing::info!(
            target: "batch",
            job = self.id,
            about = self.about,
            state = state.phase.as_str(),
            matched = state.counts.matched,
            cached = state.counts.cached,
            already_cached = state.counts.already_cached,
            failed = state.counts.failed,
            refused = state.counts.refused,
            bytes = state.bytes,
            "batch"
        );
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, patience: Duration) -> MutexGuard<'a, State> {
        self.changed.wait_timeout(state, patience).unwrap_or_else(PoisonError::into_inner).0
    }
}

impl State {
    fn message(&self, options: Options) -> String {
        let Counts { matched, cached, already_cached, would_cache, failed, refused, cancelled } =
            self.counts;
        if let Some(error) = &self.error {
            return error.clone();
        }
        let all = counted(matched, "artifact");
        let mut message = match options.dry_run {
            true => format!("{would_cache} of {all} would be cached"),
            false => format!("{cached} of {all} cached"),
        };
        let were = if already_cached == 1 { "was cached already" } else { "were cached already" };
        for (count, what) in [
            (already_cached, were),
            (failed, "failed"),
            (refused, "refused"),
            (cancelled, "cancelled"),
        ] {
            if count > 0 {
                message += &format!(", {count} {what}");
            }
        }
        if self.fetched.is_over_bound {
            message += "; that is more than cache.max_bytes or CACHE_MAX_BYTES lets stay: some of it may be gone again";
        }
        if let Some(why) = &self.incomplete {
            message += &format!("; not everything was looked at: {why}");
        }
        message
    }
}
