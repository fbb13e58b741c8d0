//! The front: sockets, routes and replies.
//!
//! [`Front`] is what stands above a listener: it finds the route, checks method, access, remote,
//! path and patterns, lets the cache do its work, and turns every outcome into one reply, one log
//! line and one count.

use std::io::Read;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Instant;

use crate::artifact::{ArtifactPath, BadPath};
use crate::body::Body;
use crate::cache::{Cache, Target};
use crate::chain::chain;
use crate::index::IndexError;
use crate::ops::access_log::Refusals;
use crate::ops::health::{Health, Readiness};
use crate::ops::metrics::{self, Metrics};
use crate::ops::purge::Mode;
use crate::ops::{Answered, admin, purge, stats};
use crate::seats::{Seats, SizedSeats};
use crate::upstream::via;

pub mod access;
mod artifact;
mod attempts;
pub mod batch;
pub mod catalog;
mod change;
pub mod conditional;
mod digests;
mod exchange;
pub mod multipart;
pub mod pools;
pub mod range;
mod reply;
mod route;
pub mod wire;

use access::{Access, Caller, Need};
use artifact::Search;
use catalog::{Catalog, Catalogs};
use exchange::{Audience, Exchange, Step};
use pools::Pools;
use reply::{NO_STORE, Problem, json};
use route::{Route, query_value, refuse_others, switch};
use wire::{Lane, Listener, Refused, Reply, ReplyWriter, Request, RequestHead, Service};

/// The parameters of `GET /artifacts/{remote}`.
const LIST_PARAMETERS: &[&str] = &["include_pattern", "prefix", "limit", "cursor"];
/// The parameters of `DELETE /artifacts/{remote}`.
const PURGE_PARAMETERS: &[&str] =
    &["include_pattern", "prefix", "limit", "cursor", "dry_run", "all"];

/// Everything that answers requests.
#[derive(Debug)]
pub struct Front {
    /// The cache.
    pub cache: Arc<Cache>,
    /// The remotes in force.
    pub catalogs: Arc<Catalogs>,
    /// Batches.
    pub batches: batch::BatchApi,
    /// For ranges of a file that is being fetched, which come from upstream beside that fetch.
    pub far_ranges: Seats,
    /// Long answers that are made or sent.
    pub reports: SizedSeats,
    /// The state of the backends.
    pub health: Health,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// The settings in force, masked, for `GET /config`.
    pub settings: serde_json::Value,
    /// The pools that serve, for the gauges.
    pub pools: Arc<Pools>,
    /// The listener that it stands above, for the gauges, as soon as there is one.
    pub listener: OnceLock<Weak<dyn Listener>>,
    /// Who may do what.
    pub access: Arc<Access>,
    /// The log of what never became a request.
    pub refusals: Refusals,
    /// Bytes that an upload may have, whatever its remote says.
    pub body_bytes_max: u64,
}

impl Service for Front {
    fn lane(&self, head: &RequestHead) -> Lane {
        if is_probe(&Route::of(&head.target)) { Lane::Fast } else { Lane::Main }
    }

    fn serve(&self, request: Request<'_>, writer: &mut dyn ReplyWriter) {
        let mut exchange = self.begin(request.head);
        let (step, caller) = self.answer(&exchange.catalog, &exchange.head, request.body);
        exchange.caller = caller;
        exchange.go_on(step, writer);
    }

    fn shed(&self, head: &RequestHead, writer: &mut dyn ReplyWriter) {
        let overload = Step::Answered(Problem::overload().reply(), Answered::Shed);
        self.begin(head.clone()).go_on(overload, writer);
    }

    fn refused(&self, refused: &Refused) {
        self.metrics.count_refusal(refused.status);
        self.refusals.write(refused.status, refused.detail, refused.peer);
    }
}

impl Front {
    fn begin(&self, head: RequestHead) -> Exchange {
        Exchange {
            metrics: Arc::clone(&self.metrics),
            catalog: self.catalogs.current(),
            head,
            caller: Caller::Anonymous,
            began: Instant::now(),
        }
    }

    /// What a request comes to, and who was let in.
    fn answer(&self, catalog: &Catalog, head: &RequestHead, body: &mut dyn Read) -> (Step, Caller) {
        let turned_away = |reply, answered| (Step::Answered(reply, answered), Caller::Anonymous);
        if head.header("via").is_some_and(|via| via::is_own(&via)) {
            let detail =
                "this server asks itself: a base_url or a redirect of upstream leads back to it";
            return turned_away(Problem::new(508, detail).reply(), Answered::Refused);
        }
        let route = Route::of(&head.target);
        if !route.allowed().contains(&head.method.as_str()) {
            let detail = format!(
                "{} is not possible here: use {}",
                head.method,
                route.allowed().join(" or ")
            );
            let problem = Problem::method(detail, route.allowed());
            return turned_away(problem.reply(), Answered::Refused);
        }
        let target = route.remote().and_then(|remote| catalog.targets.get(remote));
        let need = Need::of(&route, &head.method, target.map(|target| &**target));
        let caller = match self.access.judge(&need, head, Instant::now()) {
            Ok(caller) => caller,
            Err(denied) => return turned_away(denied.reply(), Answered::Denied),
        };
        let audience = match self.access.is_private(&need) {
            true => Audience::Caller,
            false => Audience::Everybody,
        };
        let own = |reply| (reply, Answered::Own);
        let answer = match route {
            Route::Root => Ok(own(json(200, &admin::root(&catalog.remotes)))),
            Route::Health => Ok(own(json(200, &self.health.report()))),
            Route::Live => Ok(own(json(200, &serde_json::json!({ "status": "alive" })))),
            Route::Ready => Ok(own(self.readiness())),
            Route::Metrics => Ok(own(self.metrics())),
            Route::Config => {
                let config = admin::config(&self.settings, &catalog.remotes);
                Ok(own(json(200, &config)))
            }
            Route::Stats => self.stats().map(own),
            Route::Artifacts { remote, query } if head.method == "DELETE" => {
                self.purge(catalog, remote, query, &caller)
            }
            Route::Artifacts { remote, query } => self.list(catalog, remote, query).map(own),
            Route::Artifact { remote, path, query } => {
                let asked = asked_artifact(target, remote, path, query);
                match head.method.as_str() {
                    "GET" | "HEAD" => {
                        match asked.and_then(|(target, path)| self.search(target, path)) {
                            Ok(search) => return (Step::Searching(search, audience), caller),
                            Err(problem) => Err(problem),
                        }
                    }
                    _ => asked.and_then(|asked| self.change(asked, head, body, &caller)),
                }
            }
            Route::CacheArtifact { query } => self.batches.begin(catalog, query, body).map(own),
            Route::Jobs { query } => self.batches.jobs(query).map(own),
            Route::Job { id, .. } if head.method == "DELETE" => self.batches.cancel(id).map(own),
            Route::Job { id, query } => self.batches.job(id, query).map(own),
            Route::Unknown => {
                Err(Problem::new(404, "there is nothing here: GET / lists the endpoints"))
            }
        };
        let (reply, answered) = answer.unwrap_or_else(|problem| {
            let answered = if problem.status < 500 { Answered::Refused } else { Answered::Failed };
            (problem.reply(), answered)
        });
        (Step::Answered(audience.mark(reply), answered), caller)
    }

    fn search(&self, target: &Arc<Target>, path: ArtifactPath) -> Result<Search, Problem> {
        check_patterns(target, &path)?;
        let (cache, target) = (Arc::clone(&self.cache), Arc::clone(target));
        Ok(Search::new(cache, target, path, self.far_ranges.clone()))
    }

    /// PUT and DELETE of an artifact.
    fn change(
        &self,
        (target, path): (&Arc<Target>, ArtifactPath),
        head: &RequestHead,
        body: &mut dyn Read,
        caller: &Caller,
    ) -> Result<(Reply, Answered), Problem> {
        let remote = target.remote.name.as_str();
        if head.method == "DELETE" {
            // Whatever the patterns say now: they may have been narrowed because of it.
            let reply = change::delete(&self.cache, target, &path, head)?;
            log_change("removed", caller, remote, path.as_str());
            return Ok((reply, Answered::Purged));
        }
        check_patterns(target, &path)?;
        let bytes_max = self.body_bytes_max;
        let reply = change::put(&self.cache, target, &path, head, body, bytes_max)?;
        log_change("uploaded", caller, remote, path.as_str());
        Ok((reply, Answered::Uploaded))
    }

    /// `DELETE /artifacts/{remote}`. A parameter that is not known is refused: whoever
    /// mistypes `dry_run` must not lose anything.
    fn purge(
        &self,
        catalog: &Catalog,
        remote: &str,
        query: &str,
        caller: &Caller,
    ) -> Result<(Reply, Answered), Problem> {
        let target = catalog.targets.get(remote).ok_or_else(|| unknown_remote(remote))?;
        refuse_others(query, PURGE_PARAMETERS)?;
        let given = |name| query_value(query, name).is_some_and(|value| !value.is_empty());
        if !given("include_pattern") && !given("prefix") && !switch(query, "all")? {
            let detail = "name what is to go by include_pattern or prefix, or say all=true";
            return Err(Problem::new(400, detail));
        }
        let page = page_of(query)?;
        let mode = if switch(query, "dry_run")? { Mode::DryRun } else { Mode::Remove };
        let report = purge::purge(&self.cache, target, &page, mode)
            .map_err(|error| unanswered("cannot list artifacts", error))?;
        if mode == Mode::Remove {
            log_change("purged", caller, remote, query);
        }
        Ok((json(200, &report), Answered::Purged))
    }

    fn list(&self, catalog: &Catalog, remote: &str, query: &str) -> Result<Reply, Problem> {
        let target = catalog.targets.get(remote).ok_or_else(|| unknown_remote(remote))?;
        refuse_others(query, LIST_PARAMETERS)?;
        let page = page_of(query)?;
        let seat = self.reports.take(page.is_long()).ok_or_else(Problem::too_many_reports)?;
        let list = admin::artifacts(&self.cache, target, &page)
            .map_err(|error| unanswered("cannot list artifacts", error))?;
        Ok(reply::json_text(200, list).keeping(seat))
    }

    fn stats(&self) -> Result<Reply, Problem> {
        stats::stats(&self.cache, &self.metrics)
            .map(|stats| json(200, &stats))
            .map_err(|error| unanswered("cannot tell what is stored", error))
    }

    fn readiness(&self) -> Reply {
        let readiness = self.health.readiness();
        let status = if readiness == Readiness::Ready { 200 } else { 503 };
        json(status, &serde_json::json!({ "status": readiness.as_str() }))
    }

    fn metrics(&self) -> Reply {
        let catalog = self.catalogs.current();
        let failing = catalog.targets.values().filter_map(|target| {
            Some((target.remote.name.clone(), target.upstream.as_ref()?.failing()))
        });
        let listener = self.listener.get().and_then(Weak::upgrade);
        let connections = listener.and_then(|listener| listener.connections());
        let text = self.metrics.render(&metrics::Now {
            workers: self.pools.workers(),
            busy_workers: self.pools.busy(),
            queued: self.pools.queued(),
            waiting: self.pools.outside(),
            connections: connections.map(|connections| connections.open),
            connections_max: connections.map(|connections| connections.max),
            failing: failing.collect(),
            answering: self.health.answering(),
            ..metrics::Now::of(&self.cache)
        });
        Reply::new(200, Body::from_bytes(text))
            .header("Content-Type", metrics::CONTENT_TYPE)
            .header("Cache-Control", NO_STORE)
    }
}

/// Whether this is what monitoring asks for, all the time and whatever else goes on.
fn is_probe(route: &Route<'_>) -> bool {
    matches!(route, Route::Health | Route::Live | Route::Ready | Route::Metrics)
}

/// What a request for an artifact names.
fn asked_artifact<'a>(
    target: Option<&'a Arc<Target>>,
    remote: &str,
    path: Option<&str>,
    query: Option<&str>,
) -> Result<(&'a Arc<Target>, ArtifactPath), Problem> {
    let target = target.ok_or_else(|| unknown_remote(remote))?;
    let path = target.remote.format.meant(path.ok_or(BadPath::Missing)?);
    Ok((target, ArtifactPath::from_request(&path, query)?))
}

fn check_patterns(target: &Target, path: &ArtifactPath) -> Result<(), Problem> {
    if target.remote.allows(path) {
        return Ok(());
    }
    let detail = format!(
        "the patterns of remote {:?} do not allow this path: see include_patterns and exclude_patterns in remotes.yaml",
        target.remote.name.as_str()
    );
    Err(Problem::new(403, detail))
}

fn page_of(query: &str) -> Result<admin::Page, Problem> {
    let value = |name| query_value(query, name);
    admin::Page::parse(value("include_pattern"), value("prefix"), value("limit"), value("cursor"))
        .map_err(|detail| Problem::new(400, detail))
}

fn unanswered(what: &'static str, error: IndexError) -> Problem {
    tracing::warn!(error = chain(&error), "{what}");
    Problem::busy("the index does not answer: try again")
}

/// One line for everything that is changed on somebody's word.
fn log_change(what: &'static str, caller: &Caller, remote: &str, path: &str) {
    tracing::info!(target: "change", token = caller.token(), remote, path, "{what}");
}

fn unknown_remote(name: &str) -> Problem {
    Problem::new(404, format!("there is no remote {name:?}: GET / lists them"))
}
