//! The front: sockets, routes and replies.
//!
//! [`Front`] is what stands above a listener: it finds the route, checks method, remote, path
//! and patterns, lets the cache do its work, and turns every outcome into one reply, one log
//! line and one count.

use std::sync::Arc;
use std::time::Instant;

use crate::artifact::{ArtifactPath, RemoteName};
use crate::body::Body;
use crate::cache::Cache;
use crate::ops::access_log::{self, Line, Wholeness};
use crate::ops::health::{Health, Readiness};
use crate::ops::metrics::{self, Metrics};
use crate::ops::{Answered, admin};

mod artifact;
pub mod catalog;
pub mod conditional;
pub mod multipart;
pub mod pools;
pub mod range;
mod reply;
mod route;
pub mod wire;

use catalog::{Catalog, Catalogs};
use pools::Pools;
use reply::{Problem, json};
use route::Route;
use wire::{Broken, Lane, Reply, ReplyWriter, Request, RequestHead, Sent, Service};

/// Everything that answers requests.
#[derive(Debug)]
pub struct Front {
    /// The cache.
    pub cache: Arc<Cache>,
    /// The remotes in force.
    pub catalogs: Arc<Catalogs>,
    /// The state of the backends.
    pub health: Health,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// The settings in force, masked, for `GET /config`.
    pub settings: serde_json::Value,
    /// The pools that serve, for the gauges.
    pub pools: Arc<Pools>,
}

impl Service for Front {
    fn lane(&self, head: &RequestHead) -> Lane {
        match Route::of(&head.target) {
            Route::Health | Route::Live | Route::Ready | Route::Metrics => Lane::Fast,
            _ => Lane::Main,
        }
    }

    fn serve(&self, request: Request<'_>, writer: &mut dyn ReplyWriter) {
        let began = Instant::now();
        let catalog = self.catalogs.current();
        let (reply, answered) = self.answer(&catalog, &request.head);
        self.send(&catalog, request.head, reply, answered, began, writer);
    }

    fn shed(&self, head: &RequestHead, writer: &mut dyn ReplyWriter) {
        let (catalog, reply) = (self.catalogs.current(), Problem::overload().reply());
        self.send(&catalog, head.clone(), reply, Answered::Shed, Instant::now(), writer);
    }
}

impl Front {
    fn answer(&self, catalog: &Catalog, head: &RequestHead) -> (Reply, Answered) {
        let route = Route::of(&head.target);
        if !route.allowed().contains(&head.method.as_str()) {
            let detail = format!(
                "{} is not possible here: use {}",
                head.method,
                route.allowed().join(" or ")
            );
            let reply = Problem::new(405, detail).reply();
            return (reply.header("Allow", route.allowed().join(", ")), Answered::Refused);
        }
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
            Route::Artifacts { remote, query } => self.list(catalog, remote, query).map(own),
            Route::Artifact { remote, path, query } => {
                self.artifact(catalog, remote, path, query, head)
            }
            Route::Unknown => {
                Err(Problem::new(404, "there is nothing here: GET / lists the endpoints"))
            }
        };
        answer.unwrap_or_else(|problem| (problem.reply(), Answered::Refused))
    }

    fn artifact(
        &self,
        catalog: &Catalog,
        remote: &str,
        path: &str,
        query: Option<&str>,
        head: &RequestHead,
    ) -> Result<(Reply, Answered), Problem> {
        let target = catalog.targets.get(remote).ok_or_else(|| unknown_remote(remote))?;
        let path = ArtifactPath::from_request(path, query)?;
        if !target.remote.patterns.allow(target.remote.format, &path) {
            let detail = format!(
                "the patterns of remote {remote:?} do not allow this path: see include_patterns and exclude_patterns in remotes.yaml"
            );
            return Err(Problem::new(403, detail));
        }
        Ok(artifact::answer(&self.cache, target, &path, head))
    }

    fn list(&self, catalog: &Catalog, remote: &str, query: &str) -> Result<Reply, Problem> {
        let target = catalog.targets.get(remote).ok_or_else(|| unknown_remote(remote))?;
        let value = |name| route::query_value(query, name);
        let page = admin::Page::parse(
            value("include_pattern"),
            value("prefix"),
            value("limit"),
            value("cursor"),
        )
        .map_err(|detail| Problem::new(400, detail))?;
        admin::artifacts(&self.cache, target, &page).map(|list| json(200, &list)).map_err(|error| {
            tracing::warn!(error = crate::cache::chain(&error), "cannot list artifacts");
            Problem { status: 503, ..Problem::overload() }
        })
    }

    fn readiness(&self) -> Reply {
        let readiness = self.health.readiness();
        let status = if readiness == Readiness::Ready { 200 } else { 503 };
        json(status, &serde_json::json!({ "status": readiness.as_str() }))
    }

    fn metrics(&self) -> Reply {
        let now = metrics::Now {
            flights: self.cache.flight_count(),
            fetches_queued: self.cache.fetches_queued(),
            busy_workers: self.pools.busy(),
            queued: self.pools.queued(),
            staging_bytes: self.cache.ports().staging.reserved_bytes(),
        };
        let text = self.metrics.render(now);
        Reply::new(200, Body::from_bytes(text)).header("Content-Type", metrics::CONTENT_TYPE)
    }

    /// Sends a reply; the log line and the count follow when it has ended, which for a client
    /// that takes it slowly is after this returns.
    fn send(
        &self,
        catalog: &Catalog,
        head: RequestHead,
        reply: Reply,
        answered: Answered,
        began: Instant,
        writer: &mut dyn ReplyWriter,
    ) {
        let (status, waited) = (reply.status, began.elapsed());
        let remote = match Route::of(&head.target) {
            Route::Artifact { remote, .. } | Route::Artifacts { remote, .. } => {
                // Only configured names may become labels: clients could invent any number.
                catalog.targets.get(remote).map(|target| target.remote.name.clone())
            }
            _ => None,
        };
        let metrics = Arc::clone(&self.metrics);
        let told = move |sent: Sent| {
            let remote = remote.as_ref().map(RemoteName::as_str);
            metrics.count(remote.unwrap_or_default(), answered, sent.body_bytes);
            access_log::write(&Line {
                method: &head.method,
                target: &head.target,
                remote,
                status,
                answered,
                bytes: sent.body_bytes,
                took: began.elapsed(),
                waited,
                client: head.client,
                whole: match sent.broken {
                    None => Wholeness::Whole,
                    Some(Broken::ByClient) => Wholeness::ClientLeft,
                    Some(Broken::ByBody) => Wholeness::BrokeOff,
                },
            });
        };
        writer.send_and_tell(reply, Box::new(told));
    }
}

fn unknown_remote(name: &str) -> Problem {
    Problem::new(404, format!("there is no remote {name:?}: GET / lists them"))
}
