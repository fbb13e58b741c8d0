//! Health: the state of each backend, asked in the background, so that the answer never waits
//! for a backend that hangs.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// How often each backend is asked.
const INTERVAL: Duration = Duration::from_secs(5);
/// A backend that has not answered for this long hangs.
const SILENCE_MAX: Duration = Duration::from_secs(15);

/// Asks one backend; an error says what is wrong.
pub type Probe = Box<dyn Fn() -> Result<(), String> + Send>;

/// The states of the backends.
#[derive(Clone)]
pub struct Health {
    backends: Arc<Vec<Backend>>,
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
}

impl Health {
    /// Watches backends, each from a thread of its own that lives as long as the program.
    ///
    /// # Errors
    /// Where no thread can be started.
    pub fn watch(probes: Vec<(&'static str, Probe)>) -> std::io::Result<Self> {
        let backend = |name| Backend { name, last: Mutex::new(None) };
        let backends = Arc::new(probes.iter().map(|(name, _)| backend(name)).collect::<Vec<_>>());
        for (at, (name, probe)) in probes.into_iter().enumerate() {
            let backends = Arc::clone(&backends);
            let thread = std::thread::Builder::new().name(format!("health-{name}"));
            thread.spawn(move || {
                loop {
                    backends[at].record(probe());
                    std::thread::sleep(INTERVAL);
                }
            })?;
        }
        Ok(Self { backends })
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
    fn record(&self, answer: Result<(), String>) {
        let mut last = self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let was_well = last.as_ref().is_none_or(|(_, answer)| answer.is_ok());
        match &answer {
            Err(error) if was_well => tracing::warn!(backend = self.name, error, "backend is down"),
            Ok(()) if !was_well => tracing::info!(backend = self.name, "backend is back"),
            _ => {}
        }
        *last = Some((Instant::now(), answer));
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
