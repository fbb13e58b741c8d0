//! One request on its way to its answer, its line in the log and its count.
//!
//! A request that waits for upstream may change threads on the way: it is put off with all that
//! it needs to go on, and holds no worker meanwhile.

use std::sync::Arc;
use std::time::Instant;

use super::access::Caller;
use super::artifact::{Progress, Search};
use super::catalog::Catalog;
use super::is_probe;
use super::reply::{NO_STORE, Problem};
use super::route::Route;
use super::wire::{Broken, Reply, ReplyWriter, RequestHead, Sent};
use crate::artifact::RemoteName;
use crate::ops::Answered;
use crate::ops::access_log::{self, Line, Weight, Wholeness};
use crate::ops::metrics::Metrics;

/// The status in the log of a request whose client left before there was an answer.
const UNANSWERED: u16 = 503;

/// What a request has come to.
pub(super) enum Step {
    /// It is answered.
    Answered(Reply, Answered),
    /// Its artifact is sought.
    Searching(Search, Audience),
}

/// Whom an answer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Audience {
    /// Whoever asks is answered so.
    Everybody,
    /// It may depend on who asks.
    Caller,
}

impl Audience {
    /// Says so to the caches between here and the client.
    pub(super) fn mark(self, reply: Reply) -> Reply {
        let is_kept_nowhere = reply.headers().iter().any(|(_, value)| value == NO_STORE);
        match self {
            Self::Caller if !is_kept_nowhere => reply.member("Cache-Control", "private"),
            Self::Caller | Self::Everybody => reply,
        }
    }
}

/// A request under way.
pub(super) struct Exchange {
    /// What is counted.
    pub(super) metrics: Arc<Metrics>,
    /// The remotes that it began with.
    pub(super) catalog: Arc<Catalog>,
    /// What was asked.
    pub(super) head: RequestHead,
    /// Who was let in.
    pub(super) caller: Caller,
    /// When.
    pub(super) began: Instant,
}

impl Exchange {
    /// Answers, now or when what it waits for has come.
    pub(super) fn go_on(self, step: Step, writer: &mut dyn ReplyWriter) {
        let (search, audience) = match step {
            Step::Answered(reply, answered) => return self.send(reply, answered, writer),
            Step::Searching(search, audience) => (search, audience),
        };
        match search.advance(&self.head, writer.patience()) {
            Progress::Answered(reply, answered) => {
                self.send(audience.mark(reply), answered, writer);
            }
            Progress::Waits(..) if !writer.has_room() => {
                self.send(Problem::overload().reply(), Answered::Shed, writer);
            }
            Progress::Waits(search, awaited) => {
                let kept = self.head.bytes();
                let then = move |writer: Option<&mut dyn ReplyWriter>| match writer {
                    Some(writer) => self.go_on(Step::Searching(search, audience), writer),
                    None => self.tell_gone(),
                };
                writer.put_off(awaited, Box::new(then), kept);
            }
        }
    }

    /// Sends a reply; the log line and the count follow when it has ended, which for a client
    /// that takes it slowly is after this returns.
    fn send(self, reply: Reply, answered: Answered, writer: &mut dyn ReplyWriter) {
        let told = self.telling(reply.status, answered);
        writer.send(reply, Box::new(told));
    }

    /// Its client has gone before there was an answer.
    fn tell_gone(self) {
        let sent = Sent { body_bytes: 0, broken: Some(Broken::ByClient) };
        self.telling(UNANSWERED, Answered::Failed)(sent);
    }

    /// What is to be done when the reply that now begins has ended.
    fn telling(self, status: u16, answered: Answered) -> impl FnOnce(Sent) + Send {
        let Self { metrics, catalog, head, caller, began } = self;
        let waited = began.elapsed();
        // Only configured names may become labels: clients could invent any number.
        let route = Route::of(&head.target);
        let weight = match answered {
            Answered::Own if is_probe(&route) => Weight::Probe,
            _ => Weight::Request,
        };
        let remote = route
            .remote()
            .and_then(|remote| catalog.targets.get(remote))
            .map(|target| target.remote.name.clone());
        move |sent: Sent| {
            let remote = remote.as_ref().map(RemoteName::as_str);
            metrics.count(remote.unwrap_or_default(), answered, sent.body_bytes, waited);
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
                token: caller.token(),
                agent: head.first("user-agent"),
                weight,
                whole: match sent.broken {
                    None => Wholeness::Whole,
                    Some(Broken::ByClient) => Wholeness::ClientLeft,
                    Some(Broken::ByBody) => Wholeness::BrokeOff,
                },
            });
        }
    }
}
