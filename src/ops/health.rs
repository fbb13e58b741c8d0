//! Health: the state of each backend, asked in the background, so that the answer never waits
//! for a backend that hangs, and what follows from it for whoever sends traffic here.
//!
//! Three questions with different consequences. A process that is not alive is killed, so only
//! its own answering counts. One that is not ready gets no new requests, so backends that went
//! down later do not count: hits and misses are still served then. Degraded is for people.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// How often each backend is asked.
const INTERVAL: Duration = Duration::from_secs(5);
/// How often one is asked that did not answer: whoever waits for it should not wait for us.
const INTERVAL_DOWN: Duration = Duration::from_secs(1);
/// The backends of which one has to have answered before requests can be served: with
/// coordination alone, nothing is found and nothing is stored.
const STORES: [&str; 2] = ["blobs", "index"];
/// A backend that has not answered for this long hangs.
const SILENCE_MAX: Duration = Duration::from_secs(15);

/// Asks one backend; an error says what is wrong.
pub type Probe = Box<dyn Fn() -> Result<(), String> + Send>;

/// The states of the backends.
#[derive(Clone)]
pub struct Health {
    backends: Arc<Vec<Backend>>,
    is_stopping: Arc<AtomicBool>,
}

/// Whether requests should be sent here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// Yes, also with some backend down.
    Ready,
    /// Not yet: neither the store of blobs nor the index has answered since the start.
    Starting,
    /// No more: the program is stopping.
    Stopping,
}

impl Readiness {
    /// The word for it in answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Starting => "starting",
            Self::Stopping => "stopping",
        }
    }
}

impl fmt::Debug for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Health").field("report", &self.report()).finish()
    }
}

struct Backend {
    name: &'static str,
    // Guards the last answer; nothing else is taken while it is held.
    last: Mutex<Option<(Instant, Result<(), String>)>>,
    has_answered: AtomicBool,
}

impl Health {
    /// Watches backends, each from a thread of its own that lives as long as the program.
    ///
    /// # Errors
    /// Where no thread can be started.
    pub fn watch(probes: Vec<(&'static str, Probe)>) -> std::io::Result<Self> {
        let backends =
            Arc::new(probes.iter().map(|(name, _)| Backend::new(name)).collect::<Vec<_>>());
        for (at, (name, probe)) in probes.into_iter().enumerate() {
            let backends = Arc::clone(&backends);
            let thread = std::thread::Builder::new().name(format!("health-{name}"));
            thread.spawn(move || {
                loop {
                    let answer = probe();
                    let pause = if answer.is_ok() { INTERVAL } else { INTERVAL_DOWN };
                    backends[at].record(answer);
                    std::thread::sleep(pause);
                }
            })?;
        }
        Ok(Self { backends, is_stopping: Arc::default() })
    }

    /// Says from now on that the program is stopping.
    pub fn stop(&self) {
        self.is_stopping.store(true, Ordering::SeqCst);
    }

    /// Whether requests should be sent here. Once one of the stores has answered, this stays so
    /// until [`Health::stop`], whatever becomes of the backends: taking every replica out because
    /// they share a database that is down would turn a degraded cache into none.
    pub fn readiness(&self) -> Readiness {
        let has_answered = |backend: &Backend| {
            STORES.contains(&backend.name) && backend.has_answered.load(Ordering::SeqCst)
        };
        if self.is_stopping.load(Ordering::SeqCst) {
            Readiness::Stopping
        } else if self.backends.iter().any(has_answered) {
            Readiness::Ready
        } else {
            Readiness::Starting
        }
    }

    /// The backends that were asked already, and whether each answers.
    pub fn answering(&self) -> Vec<(&'static str, bool)> {
        let known = self.backends.iter().map(|backend| (backend.name, backend.is_well()));
        known.filter_map(|(name, is_well)| Some((name, is_well?))).collect()
    }

    /// `status` is `ok`, or `degraded` where a backend does not answer.
    pub fn report(&self) -> Value {
        let mut status = "ok";
        let mut states = serde_json::Map::new();
        for backend in self.backends.iter() {
            let state = backend.state();
            if state["status"] != "ok" {
                status = "degraded";
            }
            states.insert(backend.name.to_owned(), state);
        }
        json!({ "status": status, "version": env!("CARGO_PKG_VERSION"), "backends": states })
    }
}

impl Backend {
    fn new(name: &'static str) -> Self {
        Self { name, last: Mutex::new(None), has_answered: AtomicBool::new(false) }
    }

    fn record(&self, answer: Result<(), String>) {
        let mut last = self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let was_well = last.as_ref().is_none_or(|(_, answer)| answer.is_ok());
        match &answer {
            Err(error) if was_well => tracing::warn!(backend = self.name, error, "backend is down"),
            Ok(()) if !was_well => tracing::info!(backend = self.name, "backend is back"),
            _ => {}
        }
        if answer.is_ok() {
            self.has_answered.store(true, Ordering::SeqCst);
        }
        *last = Some((Instant::now(), answer));
    }

    /// None before the first answer.
    fn is_well(&self) -> Option<bool> {
        let last = self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        last.as_ref().map(|(at, answer)| answer.is_ok() && at.elapsed() <= SILENCE_MAX)
    }

    fn state(&self) -> Value {
        match &*self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner) {
            None => json!({ "status": "unknown" }),
            Some((at, _)) if at.elapsed() > SILENCE_MAX => {
                json!({ "status": "silent", "detail": format!("no answer for {:?}", at.elapsed()) })
            }
            Some((_, Ok(()))) => json!({ "status": "ok" }),
            Some((_, Err(error))) => json!({ "status": "down", "detail": error }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Waits until it is so, as the probes run on threads of their own.
    fn wait_for(readiness: Readiness, health: &Health) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while health.readiness() != readiness {
            assert!(Instant::now() < deadline, "{readiness:?}: {health:?}");
            std::thread::yield_now();
        }
    }

    #[test]
    fn it_is_ready_from_the_first_answer_of_a_store_until_the_stop() {
        let (answers, taken) = crossbeam_channel::bounded::<Result<(), String>>(1);
        let (never, hang) = crossbeam_channel::bounded::<()>(0);
        let first = move || taken.recv().unwrap_or_else(|_| Err("gone".to_owned()));
        let probes: Vec<(&'static str, Probe)> = vec![
            ("index", Box::new(first)),
            ("blobs", Box::new(move || hang.recv().map_err(|error| error.to_string()))),
        ];
        let health = Health::watch(probes).unwrap();
        assert_eq!(health.readiness(), Readiness::Starting);
        answers.send(Ok(())).unwrap();
        wait_for(Readiness::Ready, &health);
        assert_eq!(health.report()["status"], "degraded");
        assert_eq!(health.answering(), [("index", true)]);
        health.stop();
        assert_eq!(health.readiness(), Readiness::Stopping);
        drop((answers, never));
    }

    #[test]
    fn neither_failures_nor_coordination_make_it_ready_and_failures_leave_it_so() {
        let backends = Arc::new(vec![Backend::new("blobs"), Backend::new("coordination")]);
        let health = Health { backends, is_stopping: Arc::default() };
        let check = |of: usize, answer: Result<(), &str>, readiness| {
            health.backends[of].record(answer.map_err(str::to_owned));
            assert_eq!(health.readiness(), readiness, "{of} {answer:?}");
        };
        let (blobs, coordination) = (0, 1);
        check(blobs, Err("refused"), Readiness::Starting);
        check(coordination, Ok(()), Readiness::Starting);
        check(blobs, Ok(()), Readiness::Ready);
        check(blobs, Err("refused"), Readiness::Ready);
        check(coordination, Err("refused"), Readiness::Ready);
    }

    #[test]
    fn a_backend_that_fails_or_hangs_makes_the_whole_degraded() {
        let (entered, has_entered) = crossbeam_channel::bounded::<()>(3);
        let (never, hang) = crossbeam_channel::bounded::<()>(0);
        let failing = entered.clone();
        let probes: Vec<(&'static str, Probe)> = vec![
            ("well", Box::new(|| Ok(()))),
            (
                "failing",
                Box::new(move || {
                    let _ = failing.try_send(());
                    Err("refused".to_owned())
                }),
            ),
            (
                "hanging",
                Box::new(move || {
                    let _ = entered.try_send(());
                    let _ = hang.recv();
                    Ok(())
                }),
            ),
        ];
        let health = Health::watch(probes).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        for _ in 0..2 {
            has_entered.recv_deadline(deadline).unwrap();
        }
        let report = loop {
            let report = health.report();
            let backends = &report["backends"];
            if backends["well"]["status"] == "ok" && backends["failing"]["status"] == "down" {
                break report;
            }
            assert!(Instant::now() < deadline, "{report}");
            std::thread::yield_now();
        };
        assert_eq!(report["status"], "degraded");
        assert_eq!(report["backends"]["failing"]["detail"], "refused");
        assert_eq!(report["backends"]["hanging"]["status"], "unknown");
        drop(never);
    }
}
