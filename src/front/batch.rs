//! `POST /cache-artifact` and `/jobs`: batches over HTTP.
//!
//! A small batch is answered with its results; a large one, or one that takes its time, with
//! 202 and where to look. Who may do this is not judged here.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::catalog::Catalog;
use super::reply::{self, Problem};
use super::route::{query_value, refuse_others, switch};
use super::wire::Reply;
use crate::batch::watch::Lines;
use crate::batch::{
    Batches, Job, Page, Phase, Plan, PlanError, REQUEST_BYTES_MAX, Remotes, Request,
};
use crate::body::Body;
use crate::seats::{Seats, SizedSeats};

/// How long a request waits for its batch before it is told where to look.
const DIRECT_WAIT_MAX: Duration = Duration::from_secs(30);
/// Artifacts of a batch that is waited for at all, and of an answer where none are asked for.
const DIRECT_ARTIFACTS_MAX: usize = 1000;
/// A body up to this is small.
const SMALL_BODY_BYTES: u64 = 64 << 10;
/// The most artifacts of an answer.
const PAGE_MAX: usize = 10_000;

/// Answers requests about batches.
#[derive(Debug)]
pub struct BatchApi {
    batches: Arc<Batches>,
    // Waiting requests hold a worker each, and so do those whose body comes slowly; large bodies
    // take memory, too.
    waiters: Seats,
    bodies: SizedSeats,
    reports: SizedSeats,
}

impl BatchApi {
    /// Answers for these batches, on `workers` threads that serve other requests as well;
    /// `reports` are the seats of all answers that may be long.
    pub fn new(batches: Arc<Batches>, workers: usize, reports: SizedSeats) -> Self {
        let (waiters, bodies) = (Seats::of(workers), SizedSeats::of(workers));
        Self { batches, waiters, bodies, reports }
    }

    /// `POST /cache-artifact`.
    pub(super) fn begin(
        &self,
        catalog: &Catalog,
        query: &str,
        body: &mut dyn Read,
    ) -> Result<Reply, Problem> {
        // Whoever writes `?dry_run=true` must not cache anything.
        refuse_others(query, &["wait"]).map_err(|problem| {
            let detail = format!("{}; the options of a batch stand in its JSON", problem.detail);
            Problem { detail, ..problem }
        })?;
        let wants_lines = switch(query, "wait")?;
        let request = self.read(body)?;
        let seat = self.waiters.take();
        if wants_lines && seat.is_none() {
            let detail = "too many clients wait for batches: try again, or without wait";
            return Err(Problem::busy(detail));
        }
        let remotes = Remotes { targets: &catalog.targets, releases: &catalog.releases };
        let plan = Plan::of(request, remotes).map_err(|error| match error {
            PlanError::UnknownRemote(_) => Problem::new(404, error.to_string()),
            PlanError::NoUpstream(_) | PlanError::NoRepository(_) => {
                Problem::new(400, error.to_string())
            }
        })?;
        let job = self.batches.begin(plan).map_err(|busy| Problem::busy(busy.to_string()))?;
        match seat {
            Some(seat) if wants_lines => {
                let body = Body::new(None, Box::new(Lines::of(job))).keeping(seat);
                Ok(Reply::new(200, body).header("Content-Type", "application/x-ndjson"))
            }
            Some(_) if job.has_ended_within(DIRECT_WAIT_MAX, DIRECT_ARTIFACTS_MAX) => {
                Ok(ended(&job))
            }
            _ => {
                let location = format!("/jobs/{}", job.id());
                Ok(reply::json(202, &job.summary()).header("Location", location))
            }
        }
    }

    fn read(&self, body: &mut dyn Read) -> Result<Request, Problem> {
        let busy = || Problem::busy("too many clients send batches: try again");
        let mut seat = self.bodies.take(false).ok_or_else(busy)?;
        let mut text = read_up_to(body, SMALL_BODY_BYTES)?;
        if text.len() as u64 == SMALL_BODY_BYTES {
            seat = self.bodies.enlarge(seat).ok_or_else(busy)?;
            text.append(&mut read_up_to(body, REQUEST_BYTES_MAX + 1 - SMALL_BODY_BYTES)?);
        }
        if text.len() as u64 > REQUEST_BYTES_MAX {
            let detail = format!("the request body is larger than {REQUEST_BYTES_MAX} bytes");
            return Err(Problem::new(413, detail));
        }
        let request = Request::parse(&text);
        drop(seat);
        request.map_err(|error| Problem::new(400, error.to_string()))
    }

    /// `GET /jobs`.
    pub(super) fn jobs(&self, query: &str) -> Result<Reply, Problem> {
        refuse_others(query, &[])?;
        let jobs: Vec<Value> = self.batches.jobs().iter().map(|job| job.summary()).collect();
        Ok(reply::json(200, &json!({ "jobs": jobs })))
    }

    /// `GET /jobs/{id}`.
    pub(super) fn job(&self, id: &str, query: &str) -> Result<Reply, Problem> {
        refuse_others(query, &["offset", "limit"])?;
        let number = |name: &str, default: usize, max: usize| match query_value(query, name) {
            None => Ok(default),
            Some(text) => match text.parse() {
                Ok(number) if number <= max => Ok(number),
                _ => Err(Problem::new(400, format!("{name} must be a number up to {max}"))),
            },
        };
        let page = Page {
            offset: number("offset", 0, usize::MAX)?,
            limit: number("limit", DIRECT_ARTIFACTS_MAX, PAGE_MAX)?,
        };
        let job = self.find(id)?;
        let seat = self.reports.take(page.limit > DIRECT_ARTIFACTS_MAX);
        let seat = seat.ok_or_else(Problem::too_many_reports)?;
        Ok(reply::json_text(200, job.report(page)).keeping(seat))
    }

    /// `DELETE /jobs/{id}`: cancels, and says where that has ended it.
    pub(super) fn cancel(&self, id: &str) -> Result<Reply, Problem> {
        let job = self.find(id)?;
        job.cancel();
        Ok(reply::json(200, &job.summary()))
    }

    fn find(&self, id: &str) -> Result<Arc<Job>, Problem> {
        let missing = "there is no such job here: jobs are forgotten in time, and live in the process that began them";
        self.batches.job(id).ok_or_else(|| Problem::new(404, missing))
    }
}

/// The results of a batch that has ended; where upstream could not be asked, that is a failure.
fn ended(job: &Job) -> Reply {
    let status = if job.phase() == Phase::Failed { 502 } else { 200 };
    reply::json_text(status, job.report(Page { offset: 0, limit: PAGE_MAX }))
}

fn read_up_to(body: &mut dyn Read, max: u64) -> Result<Vec<u8>, Problem> {
    let mut bytes = Vec::new();
    let unread = |error| Problem::new(400, format!("the request body did not come: {error}"));
    body.take(max).read_to_end(&mut bytes).map_err(unread)?;
    Ok(bytes)
}
