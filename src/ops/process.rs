//! The metrics that every process has, by the names that all programs use for them.
//!
//! The kernel tells of them in `/proc/self`; where that can't be read, there are none.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

/// Shows them; `started` is what [`started`] gave once, so that it never changes.
pub(super) fn show(to: &mut Registry, started: Option<f64>) {
    if let Some(stat) = Stat::read() {
        let resident = ConstGauge::new(stat.resident_pages.saturating_mul(page_size() as u64));
        to.register_with_unit("process_resident_memory", "Memory in use", Unit::Bytes, resident);
        let cpu = ConstCounter::new(seconds(stat.cpu_ticks));
        to.register_with_unit("process_cpu", "Processor time used", Unit::Seconds, cpu);
    }
    if let Some(open) = open_files() {
        to.register("process_open_fds", "Open files and sockets", ConstGauge::new(open));
    }
    if let Some(max) = getrlimit(Resource::Nofile).current {
        to.register("process_max_fds", "The most open files and sockets", ConstGauge::new(max));
    }
    if let Some(started) = started {
        let (help, started) = ("When it was started, since 1970", ConstGauge::new(started));
        to.register_with_unit("process_start_time", help, Unit::Seconds, started);
    }
}

/// When this process was started, in seconds since 1970.
pub(super) fn started() -> Option<f64> {
    let up = clock_gettime(ClockId::Boottime);
    let up = up.tv_sec as f64 + up.tv_nsec as f64 / 1e9;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs_f64();
    Some(now - up + seconds(Stat::read()?.start_ticks))
}

fn seconds(ticks: u64) -> f64 {
    ticks as f64 / clock_ticks_per_second() as f64
}

fn open_files() -> Option<u64> {
    let files = fs::read_dir("/proc/self/fd").ok()?.count();
    // One of them is the folder that is read.
    u64::try_from(files.saturating_sub(1)).ok()
}

/// What is used of `/proc/self/stat`.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    cpu_ticks: u64,
    // Since the machine was booted.
    start_ticks: u64,
    resident_pages: u64,
}

impl Stat {
    fn read() -> Option<Self> {
        Self::parse(&fs::read_to_string("/proc/self/stat").ok()?)
    }

    /// The fields have the numbers of proc(5).
    fn parse(text: &str) -> Option<Self> {
        // The second is a name in brackets, which may have spaces and brackets of its own.
        let (_, from_third) = text.rsplit_once(") ")?;
        let fields: Vec<&str> = from_third.split(' ').collect();
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        Some(Self {
            cpu_ticks: number(14)? + number(15)?,
            start_ticks: number(22)?,
            resident_pages: number(24)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_and_spaces_hides_no_field() {
        let text = "7 (a) b) S 1 7 7 0 -1 4194560 5 0 0 0 30 12 0 0 20 0 9 0 4711 99 250 1844";
        let stat = Stat { cpu_ticks: 42, start_ticks: 4711, resident_pages: 250 };
        assert_eq!(Stat::parse(text), Some(stat));
        assert_eq!(Stat::parse("7 (a) S 1 7"), None);
        assert_eq!(Stat::parse(""), None);
    }

    #[test]
    fn this_process_has_them_all() {
        let mut registry = Registry::default();
        show(&mut registry, started());
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let value = |name: &str| -> f64 {
            let of = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok();
            text.lines().find_map(of).unwrap_or_else(|| panic!("no {name} in {text}"))
        };
        assert!(value("process_resident_memory_bytes") > 1e6);
        assert!(value("process_cpu_seconds_total") >= 0.0);
        assert!(value("process_open_fds") >= 3.0);
        assert!(value("process_max_fds") >= value("process_open_fds"));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        let age = now - value("process_start_time_seconds");
        assert!((-1.0..86_400.0).contains(&age), "{age}");
    }
}
