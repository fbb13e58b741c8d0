//! Real servers for tests, by way of `scripts/services`.
//!
//! Suites share the servers that `scripts/test` started and named in the environment; a test
//! that kills or stops one gets a private one. Where a server can't be had, the test fails.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long a test waits for what must come.
const DEADLINE: Duration = Duration::from_secs(60);

/// What the environment says of a shared server.
///
/// # Panics
/// Where it says nothing: a suite that did not run must not look like one that passed.
pub(crate) fn shared(variable: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| {
        panic!(
            "{variable} is not set: run the tests by scripts/test, or by scripts/services run \
             cargo test, which start the servers that they need"
        )
    })
}

/// A name that no other test has, for databases, key prefixes and buckets.
pub(crate) fn unique_name(stem: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{stem}_{}_{number}", std::process::id())
}

/// Waits until something holds.
///
/// # Panics
/// Where it does not in time.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < DEADLINE, "{what}: not within {DEADLINE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Servers of one test, ended with it.
#[derive(Debug)]
pub(crate) struct Private {
    folder: tempfile::TempDir,
    variables: BTreeMap<String, String>,
}

impl Private {
    /// Starts one server.
    pub(crate) fn start(service: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // PostgreSQL runs as another user, who must get through.
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
        let mut servers = Self { folder, variables: BTreeMap::new() };
        servers.variables = servers
            .run(&["start", service])
            .lines()
            .filter_map(|line| line.strip_prefix("export ")?.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        servers
    }

    /// What the environment would say of it.
    pub(crate) fn variable(&self, name: &str) -> &str {
        &self.variables[name]
    }

    /// `kill`, `pause`, `resume`, or `start` again.
    pub(crate) fn tell(&self, verb: &str, service: &str) {
        self.run(&[verb, service]);
    }

    fn run(&self, arguments: &[&str]) -> String {
        let output = Command::new("bash")
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/services"))
            .arg("--dir")
            .arg(self.folder.path().join("servers"))
            // A test that is killed stops nothing itself.
            .arg("--owner")
            .arg(std::process::id().to_string())
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .expect("bash is there");
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "scripts/services {arguments:?}: {complaint}");
        String::from_utf8(output.stdout).expect("the script prints text")
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        self.run(&["stop"]);
    }
}
