//! The real server as a process: started with a folder of its own, watched, stopped, killed.
//!
//! The process gets an environment of its own too, so that no variable of the person who
//! runs the tests changes them. Its log is read all the time and shown when a test fails.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::client::{Ask, Connection, Incoming, Received};
use super::disk::Disk;
use super::remotes::{Remote, remotes_yaml};
use super::{PATIENCE, eventually};

/// The program under test.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_artifactapi");

/// What lets the tests in where it is set.
pub(crate) const ADMIN_TOKEN: &str = "a-token-of-the-tests";

/// Least time between two connections to one server. The tiny_http listener loses the wake-up
/// of a worker when many connect in the same moment, and would leave a client without answer.
const CONNECT_SPACING: Duration = Duration::from_millis(20);

/// What a server starts with.
#[derive(Debug, Default)]
pub(crate) struct Setup {
    remotes: Vec<(&'static str, Remote)>,
    env: Vec<(String, String)>,
    files: Vec<(&'static str, String)>,
    disk_bytes: Option<u64>,
}

impl Setup {
    /// With the local repository `own`, uploads to which can hold workers.
    pub(crate) fn with_uploads(self) -> Self {
        self.remote("own", Remote::local()).env("ADMIN_TOKEN", ADMIN_TOKEN)
    }

    /// No remotes, every variable at its default.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// One remote called `files`: what most tests need.
    pub(crate) fn files(remote: Remote) -> Self {
        Self::new().remote("files", remote)
    }

    /// Adds a remote.
    pub(crate) fn remote(mut self, name: &'static str, remote: Remote) -> Self {
        self.remotes.push((name, remote));
        self
    }

    /// Sets an environment variable.
    pub(crate) fn env(mut self, name: &str, value: impl ToString) -> Self {
        self.env.push((name.to_owned(), value.to_string()));
        self
    }

    /// Puts a file into the server's working directory.
    pub(crate) fn file(mut self, name: &'static str, text: &str) -> Self {
        self.files.push((name, text.to_owned()));
        self
    }

    /// Gives its `DATA_DIR` a file system of its own, of this size.
    pub(crate) fn disk_bytes(self, bytes: u64) -> Self {
        Self { disk_bytes: Some(bytes), ..self }
    }

    /// Starts the server and waits until it listens.
    pub(crate) fn start(self) -> Server {
        self.try_start().unwrap_or_else(|log| panic!("the server does not listen: {log:#?}"))
    }

    /// The same for a server that may refuse to start.
    ///
    /// # Errors
    /// What it logged, if it ended without listening.
    pub(crate) fn try_start(self) -> Result<Server, Vec<String>> {
        self.start_at(Process::wait_listening)
    }

    /// Starts a server whose log does not say where it listens, and waits until it answers.
    pub(crate) fn start_silent(self) -> Server {
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let addr = free.expect("a port is free");
        let server = self.env("LISTEN_ADDR", addr).start_at(|_| Ok(addr));
        let server = server.expect("the address is known");
        eventually("it listens", || TcpStream::connect(addr).is_ok());
        server
    }

    fn start_at(
        self,
        find: impl FnOnce(&Process) -> Result<SocketAddr, Vec<String>>,
    ) -> Result<Server, Vec<String>> {
        let folder = tempfile::tempdir().expect("a folder for the test can be made");
        let config = folder.path().join("remotes.yaml");
        std::fs::write(&config, remotes_yaml(&self.remotes)).expect("the folder takes a file");
        for (name, text) in &self.files {
            std::fs::write(folder.path().join(name), text).expect("the folder takes a file");
        }
        let disk = self.disk_bytes.map(|bytes| Disk::mount(&data_dir(folder.path()), bytes));
        let process = Process::start(folder.path(), &self.env, disk.as_ref());
        let addr = find(&process)?;
        let (env, last_connect) = (self.env, Mutex::new(None));
        Ok(Server { process, addr, env, disk, folder, last_connect })
    }
}

/// A running server. Killed when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    process: Process,
    addr: SocketAddr,
    env: Vec<(String, String)>,
    disk: Option<Disk>,
    folder: TempDir,
    last_connect: Mutex<Option<Instant>>,
}

impl Server {
    /// Where it listens.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its `DATA_DIR`.
    pub(crate) fn data_dir(&self) -> PathBuf {
        self.disk.as_ref().map_or_else(|| data_dir(self.folder.path()), Disk::path)
    }

    /// The file system of its own.
    pub(crate) fn disk(&self) -> &Disk {
        self.disk.as_ref().expect("it was set up with one")
    }

    /// Its `CONFIG_PATH`.
    pub(crate) fn config_path(&self) -> PathBuf {
        config_path(self.folder.path())
    }

    /// Writes another remotes.yaml in place of the present one, at once.
    pub(crate) fn rewrite_config(&self, yaml: &str) {
        self.rewrite("remotes.yaml", yaml);
    }

    /// Writes another file in place of one in the working directory, at once.
    pub(crate) fn rewrite(&self, name: &str, text: &str) {
        let path = self.folder.path().join(name);
        let beside = path.with_extension("new");
        std::fs::write(&beside, text).expect("the folder takes a file");
        std::fs::rename(&beside, path).expect("a file can replace another");
    }

    /// Connects, not too soon after the connection before.
    pub(crate) fn connect(&self) -> Connection {
        self.try_connect().unwrap_or_else(|error| panic!("cannot connect: {error}"))
    }

    /// Connects if the server still takes connections.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn try_connect(&self) -> std::io::Result<Connection> {
        let mut last = self.last_connect.lock().expect("nobody panics while holding it");
        if let Some(last) = *last {
            std::thread::sleep((last + CONNECT_SPACING).saturating_duration_since(Instant::now()));
        }
        let connection = Connection::open(self.addr);
        *last = Some(Instant::now());
        connection
    }

    /// Sends a request on a new connection and reads the head of its answer.
    #[track_caller]
    pub(crate) fn begin(&self, ask: &Ask) -> Incoming {
        self.connect().begin(ask).unwrap_or_else(|why| panic!("no answer to {ask:?}: {why}"))
    }

    /// Sends a request on a new connection and reads the whole answer.
    #[track_caller]
    pub(crate) fn ask(&self, ask: &Ask) -> Received {
        self.begin(ask).finish()
    }

    /// `GET target` on a new connection. Of an artifact, also waits until no fetch is in the
    /// air: a client may have its last byte a moment before the file is stored.
    #[track_caller]
    pub(crate) fn get(&self, target: &str) -> Received {
        let answer = self.ask(&Ask::get(target));
        if target.starts_with("/api/") {
            eventually("every flight has landed", || self.metric("artifactapi_flights") == 0.0);
        }
        answer
    }

    /// The value of a metric with exactly these labels; 0 if it is not there yet.
    #[track_caller]
    pub(crate) fn metric(&self, name_and_labels: &str) -> f64 {
        self.metrics([name_and_labels])[0]
    }

    /// Values of one moment; 0 for what is not there.
    fn metrics<const N: usize>(&self, names_and_labels: [&str; N]) -> [f64; N] {
        let answer = self.get("/metrics");
        answer.expect_status(200);
        let text = answer.text();
        names_and_labels.map(|wanted| {
            let mut values = text.lines().filter_map(|line| {
                let (name, value) = line.rsplit_once(' ')?;
                (name == wanted).then(|| value.parse::<f64>().expect("a metric is a number"))
            });
            values.next().unwrap_or(0.0)
        })
    }

    /// Requests that are being answered, whether they hold a worker or wait without one.
    pub(crate) fn under_way(&self) -> usize {
        let names = ["artifactapi_busy_workers", "artifactapi_waiting"];
        self.metrics(names).into_iter().sum::<f64>() as usize
    }

    /// Waits until so many requests are being answered.
    pub(crate) fn wait_under_way(&self, count: usize) {
        eventually(&format!("{count} requests are under way"), || self.under_way() >= count);
    }

    /// Has a worker wait for the bytes of an upload to the local repository `own`; the second of
    /// these ends it.
    pub(crate) fn hold_a_worker(&self, path: &str) -> (Connection, Vec<u8>) {
        let ask = Ask::put(&format!("/api/own/{path}"), b"bytes").token(ADMIN_TOKEN);
        let (head, body) = ask.wire(self.addr());
        let mut connection = self.connect();
        connection.send_raw(&head);
        (connection, body)
    }

    /// Everything that it logged so far, one line each.
    pub(crate) fn log(&self) -> Vec<String> {
        self.process.log()
    }

    /// Closes the pipe into which it logs, as when whoever reads its log ends.
    pub(crate) fn end_log(&self) {
        self.process.end_log(|| drop(self.get("/")));
    }

    /// Waits until it has logged a line that has all of these in it.
    pub(crate) fn wait_logged(&self, parts: &[&str]) {
        eventually(&format!("the log has a line with {parts:?}"), || {
            self.log().iter().any(|line| parts.iter().all(|part| line.contains(part)))
        });
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Waits until it has ended.
    pub(crate) fn wait_exit(&mut self) -> ExitStatus {
        self.process.wait_exit()
    }

    /// Kills it with SIGKILL and waits until it is gone. The folder stays.
    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again on the same folder; it must have ended.
    pub(crate) fn start_again(&mut self) {
        assert!(self.process.has_ended(), "the server still runs");
        self.process = Process::start(self.folder.path(), &self.env, self.disk.as_ref());
        self.addr = self.process.wait_listening().expect("it listened before");
    }

    /// Starts a second process on the same folder.
    pub(crate) fn start_beside(&self) -> Process {
        Process::start(self.folder.path(), &self.env, self.disk.as_ref())
    }

    /// Runs a command on the same folder, as an operator does, to its end.
    pub(crate) fn command(&self, words: &[&str]) -> Output {
        let mut command = program(self.folder.path(), &self.env, self.disk.as_ref());
        let output = command.args(words).stdin(Stdio::null()).output();
        output.unwrap_or_else(|error| panic!("cannot start {PROGRAM}: {error}"))
    }

    /// Its peak of resident memory so far, in bytes.
    pub(crate) fn memory_peak(&self) -> u64 {
        self.process.status_number("VmHWM:") << 10
    }

    /// How many threads it has.
    pub(crate) fn threads(&self) -> u64 {
        self.process.status_number("Threads:")
    }

    /// How many descriptors it has open.
    pub(crate) fn descriptors(&self) -> usize {
        let folder = format!("/proc/{}/fd", self.process.child.id());
        std::fs::read_dir(folder).expect("the process runs").count()
    }

    /// Files below `DATA_DIR/staging`.
    pub(crate) fn staging_files(&self) -> Vec<PathBuf> {
        files_below(&self.data_dir().join("staging"))
    }

    /// Files below `DATA_DIR/blobs`.
    pub(crate) fn blob_files(&self) -> Vec<PathBuf> {
        files_below(&self.data_dir().join("blobs"))
    }
}

/// Files below a folder, at any depth; none where there is no such folder.
pub(crate) fn files_below(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut files = Vec::new();
    for path in entries.map(|entry| entry.expect("a folder of the test can be read").path()) {
        if path.is_dir() {
            files.extend(files_below(&path));
        } else {
            files.push(path);
        }
    }
    files
}

fn data_dir(folder: &Path) -> PathBuf {
    folder.join("data")
}

fn config_path(folder: &Path) -> PathBuf {
    folder.join("remotes.yaml")
}

/// The program in a folder, with an environment of its own.
fn program(folder: &Path, env: &[(String, String)], disk: Option<&Disk>) -> Command {
    let mut command = disk.map_or_else(|| Command::new(PROGRAM), |disk| disk.command(PROGRAM));
    command
        .env_clear()
        .env("LISTEN_ADDR", "127.0.0.1:0")
        .env("DATA_DIR", data_dir(folder))
        .env("CONFIG_PATH", config_path(folder))
        .env("RUST_BACKTRACE", "1")
        .envs(env.iter().map(|(name, value)| (name, value)))
        .current_dir(folder);
    command
}

/// The process and its log.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    log: Arc<Log>,
}

#[derive(Debug, Default)]
struct Log {
    state: Mutex<LogState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct LogState {
    lines: Vec<String>,
    has_ended: bool,
    /// Nobody is to read on behind the next line.
    is_to_end: bool,
}

impl Process {
    fn start(folder: &Path, env: &[(String, String)], disk: Option<&Disk>) -> Self {
        let mut child = program(folder, env, disk)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {PROGRAM}: {error}"));
        let stderr = child.stderr.take().expect("stderr is piped");
        let log = Arc::<Log>::default();
        let writer = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).into_owned();
                let mut state = writer.state.lock().expect("nobody panics while holding it");
                state.lines.push(line);
                writer.changed.notify_all();
                if state.is_to_end {
                    break;
                }
            }
            writer.state.lock().expect("nobody panics while holding it").has_ended = true;
            writer.changed.notify_all();
        });
        Self { child, log }
    }

    fn wait_listening(&self) -> Result<SocketAddr, Vec<String>> {
        let state = self.log.state.lock().expect("nobody panics while holding it");
        let is_waiting =
            |state: &mut LogState| !state.has_ended && listening_address(&state.lines).is_none();
        let (state, _) = self
            .log
            .changed
            .wait_timeout_while(state, PATIENCE, is_waiting)
            .expect("nobody panics while holding it");
        listening_address(&state.lines).ok_or_else(|| state.lines.clone())
    }

    /// Everything that it logged so far, one line each.
    pub(crate) fn log(&self) -> Vec<String> {
        self.log.state.lock().expect("nobody panics while holding it").lines.clone()
    }

    /// Closes the pipe into which it logs, behind the line that `log_something` has it write.
    fn end_log(&self, log_something: impl FnOnce()) {
        self.log.state.lock().expect("nobody panics while holding it").is_to_end = true;
        log_something();
        eventually("its log is closed", || {
            self.log.state.lock().expect("nobody panics while holding it").has_ended
        });
    }

    /// Waits until it has ended and its log is complete.
    pub(crate) fn wait_exit(&mut self) -> ExitStatus {
        eventually("the server has ended", || self.has_ended());
        let state = self.log.state.lock().expect("nobody panics while holding it");
        let ended = self.log.changed.wait_timeout_while(state, PATIENCE, |state| !state.has_ended);
        drop(ended.expect("nobody panics while holding it"));
        self.child.wait().expect("a child can be waited for")
    }

    fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("a child can be waited for").is_some()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("the process is ours");
    }

    fn kill(&mut self) {
        self.child.kill().expect("the process is ours");
        self.wait_exit();
    }

    fn status_number(&self, field: &str) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).expect("the process runs");
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        number.unwrap_or_else(|| panic!("no {field} in {status}"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let ended_before = self.child.try_wait();
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.log().join("\n");
            eprintln!(
                "--- the server's log:\n{log}\n--- its end before that of the test: {ended_before:?}"
            );
        }
    }
}

fn listening_address(lines: &[String]) -> Option<SocketAddr> {
    lines.iter().find_map(|line| {
        let (_, rest) = line.split_once("listening on ")?;
        let is_part = |c: &char| c.is_ascii_digit() || matches!(c, '.' | ':');
        rest.chars().take_while(is_part).collect::<String>().parse().ok()
    })
}
