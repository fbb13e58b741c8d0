//! The access log: one line a request, and a bounded number for what never became one.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Answered;

/// Lines about refusals in each window; who floods us must not flood the log.
const REFUSAL_LINES_MAX: u32 = 10;
/// Characters of a `User-Agent` that a line has at most: it is the client's to choose.
const AGENT_MAX: usize = 200;
/// The window.
const REFUSAL_WINDOW: Duration = Duration::from_secs(1);

/// What a line says.
#[derive(Debug)]
pub struct Line<'a> {
    /// The method.
    pub method: &'a str,
    /// The target as sent, printable ASCII.
    pub target: &'a str,
    /// The remote, where there is one of that name.
    pub remote: Option<&'a str>,
    /// The status code.
    pub status: u16,
    /// How it was met.
    pub answered: Answered,
    /// Bytes of the body that were sent.
    pub bytes: u64,
    /// From the request to the last byte.
    pub took: Duration,
    /// From the request to the beginning of the reply: upstream's part, where it took part.
    pub waited: Duration,
    /// The client.
    pub client: Option<IpAddr>,
    /// The name of the token that let it in; none where none was needed.
    pub token: Option<&'a str>,
    /// Its `User-Agent`, as sent.
    pub agent: Option<&'a str>,
    /// How much it matters.
    pub weight: Weight,
    /// Whether the whole reply was sent.
    pub whole: Wholeness,
}

/// How much a line matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// A request like any other.
    Request,
    /// Monitoring asked and was answered, as it is every few seconds: for debugging only.
    Probe,
}

/// Whether a whole reply was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wholeness {
    /// It was.
    Whole,
    /// The client went away or was too slow.
    ClientLeft,
    /// The body broke off, and the client saw it.
    BrokeOff,
}

/// Writes a line.
pub fn write(line: &Line<'_>) {
    let whole = match line.whole {
        Wholeness::Whole => None,
        Wholeness::ClientLeft => Some("client left"),
        Wholeness::BrokeOff => Some("body broke off"),
    };
    // A level belongs to a place in the code. The fields are only made where it is enabled.
    macro_rules! write_at {
        ($level:ident) => {
            tracing::$level!(
                target: "access",
                method = line.method,
                path = line.target,
                remote = line.remote,
                status = line.status,
                outcome = line.answered.as_str(),
                bytes = line.bytes,
                ms = millis(line.took),
                upstream_ms = millis(line.waited),
                client = line.client.map(tracing::field::display),
                token = line.token,
                agent = line.agent.map(printable).as_deref(),
                ended = whole,
                "request"
            )
        };
    }
    match line.weight {
        Weight::Request => write_at!(info),
        Weight::Probe => write_at!(debug),
    }
}

/// What a client says of itself, as printable ASCII and cut to [`AGENT_MAX`].
fn printable(agent: &str) -> Cow<'_, str> {
    let is_printable = |c: char| c.is_ascii_graphic() || c == ' ';
    if agent.len() <= AGENT_MAX && agent.chars().all(is_printable) {
        return agent.into();
    }
    let shown = agent.chars().take(AGENT_MAX);
    shown.map(|c| if is_printable(c) { c } else { '?' }).collect::<String>().into()
}

/// The lines about what the listener answered by itself.
#[derive(Debug, Default)]
pub struct Refusals {
    // Guards the counts; a leaf, held for no longer than it takes to count.
    window: Mutex<Window>,
}

#[derive(Debug, Default)]
struct Window {
    began: Option<Instant>,
    lines: u32,
    unlogged: u64,
}

impl Refusals {
    /// Writes a line, unless this second has had its lines; the next line tells how many
    /// were left out.
    pub fn write(&self, status: u16, detail: &str, client: Option<IpAddr>) {
        let admitted = self.lock().admit(Instant::now());
        let Some(unlogged) = admitted else { return };
        tracing::info!(
            target: "access",
            status,
            // OPTIONS * is answered as well as it can be.
            outcome = if status < 400 { "own" } else { "refused" },
            detail,
            client = client.map(tracing::field::display),
            unlogged = (unlogged > 0).then_some(unlogged),
            "no request"
        );
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Window {
    /// Whether a line may be written, and how many were left out since the last one.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        if self.began.is_none_or(|began| now.saturating_duration_since(began) >= REFUSAL_WINDOW) {
            (self.began, self.lines) = (Some(now), 0);
        }
        if self.lines == REFUSAL_LINES_MAX {
            self.unlogged += 1;
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.unlogged))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_are_printable_and_bounded() {
        for (agent, shown) in [
            ("curl/8.5.0 (a; b)", "curl/8.5.0 (a; b)"),
            ("", ""),
            ("caf\u{e9}\t\u{202e}1", "caf???1"),
            (&"a".repeat(AGENT_MAX + 1), &"a".repeat(AGENT_MAX)),
            (&"\u{e9}".repeat(AGENT_MAX), &"?".repeat(AGENT_MAX)),
        ] {
            assert_eq!(printable(agent), shown, "{agent:?}");
        }
        assert!(matches!(printable("curl/8.5.0"), Cow::Borrowed(_)), "the usual ones cost nothing");
    }

    #[test]
    fn a_flood_of_refusals_writes_so_many_lines_a_second_and_counts_the_rest() {
        let (mut window, start) = (Window::default(), Instant::now());
        for second in 0..3 {
            let now = start + REFUSAL_WINDOW * second;
            let admitted: Vec<_> = (0..1000).filter_map(|_| window.admit(now)).collect();
            assert_eq!(admitted.len(), REFUSAL_LINES_MAX as usize);
            let before = if second == 0 { 0 } else { 1000 - u64::from(REFUSAL_LINES_MAX) };
            assert_eq!(admitted[0], before, "those of the second before are told of");
            assert!(admitted[1..].iter().all(|unlogged| *unlogged == 0));
        }
    }
}
