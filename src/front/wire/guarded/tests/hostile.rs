//! What strangers do to a listener. Each test runs in a process of its own, so that threads
//! and descriptors can be counted: behind every attack there must be as many as before it,
//! and the server must serve.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::mutated::{self, Dice};
use super::{bind, start_with};
use crate::front::wire::guarded::GuardedBounds;
use crate::front::wire::suite::support::{Client, Gate, PATIENCE, Shelf, content, get, within};
use crate::front::wire::suite::{Running, bounds};
use crate::front::wire::{Bounds, raise_descriptor_limit};

/// Set in the process that a test runs in alone.
const ALONE: &str = "ARTIFACTAPI_TEST_ALONE";
/// Set in the process that serves for a test.
const SERVES: &str = "ARTIFACTAPI_TEST_SERVES";
/// How many connects in a row, where it is not the usual number: 100000 before a release.
const CONNECTS: &str = "ARTIFACTAPI_TEST_CONNECTS";
/// A bound that lapses soon, where a test waits for it.
const SOON: Duration = Duration::from_millis(200);

/// This test binary, about to run one of these tests alone.
fn this_test(name: &str) -> Command {
    let module = module_path!().split_once("::").unwrap().1;
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &format!("{module}::{name}"), "--nocapture", "--test-threads=1"]);
    command
}

fn alone(name: &str, run: impl FnOnce()) {
    if std::env::var_os(ALONE).is_some() {
        return run();
    }
    let output = this_test(name).env(ALONE, "1").output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && told.contains("1 passed"), "{told}\n{output:?}");
}

fn count_from_environment(name: &str, usual: usize) -> usize {
    std::env::var(name).map_or(usual, |count| count.parse().expect("it is a number"))
}

fn threads() -> usize {
    fs::read_dir("/proc/self/task").unwrap().count()
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Bytes of memory that are resident.
fn resident() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
}

/// A server, and how it was before the attack.
struct Attacked {
    server: Running,
    threads: usize,
    descriptors: usize,
}

impl Attacked {
    fn start(bounds: Bounds, guarded: GuardedBounds) -> Self {
        Self::from(start_with(Shelf::service(), bounds, guarded))
    }

    fn from(server: Running) -> Self {
        serves(server.address);
        let mut attacked = Self { server, threads: 0, descriptors: 0 };
        within("the server is at rest", || {
            let before = (attacked.threads, attacked.descriptors);
            (attacked.threads, attacked.descriptors) = (threads(), descriptors());
            before == (attacked.threads, attacked.descriptors) && !attacked.has_work()
        });
        attacked
    }

    fn address(&self) -> SocketAddr {
        self.server.address
    }

    fn is_unharmed(&self) {
        serves(self.address());
        let end = Instant::now() + PATIENCE;
        // Some that had just gone may have been counted at first.
        while threads() > self.threads || descriptors() > self.descriptors || self.has_work() {
            let (now, before) = ((threads(), descriptors()), (self.threads, self.descriptors));
            assert!(Instant::now() < end, "threads and descriptors: {now:?}, at first {before:?}");
            std::thread::yield_now();
        }
    }

    fn has_work(&self) -> bool {
        self.server.pools.busy() + self.server.pools.queued() > 0
    }
}

fn serves(address: SocketAddr) {
    assert!(get(address, "/file/1000003").body == content(0, 1_000_003));
}

/// Reads to the end or the reset, whichever comes; gives what came before.
fn rest_of(stream: &mut impl Read) -> Vec<u8> {
    let mut all = Vec::new();
    let mut piece = [0; 4096];
    loop {
        match stream.read(&mut piece) {
            Ok(0) => return all,
            Ok(got) => all.extend_from_slice(&piece[..got]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                panic!("it goes on: {all:?}")
            }
            Err(_) => return all,
        }
    }
}

/// Reads or writes with a short timeout until the server has ended the connection; the
/// timeout paces what `drip` does each time.
fn drip_until_cut(stream: &mut TcpStream, mut drip: impl FnMut(&mut TcpStream) -> io::Result<()>) {
    let end = Instant::now() + PATIENCE;
    stream.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
    while drip(stream).is_ok() {
        assert!(Instant::now() < end, "the server puts up with it");
    }
}

/// One read of the pace; an error once the server has answered or closed.
fn nothing_has_come(stream: &mut TcpStream) -> io::Result<()> {
    match stream.read(&mut [0; 512]) {
        Ok(_) => Err(io::ErrorKind::ConnectionAborted.into()),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
        Err(error) => Err(error),
    }
}

#[test]
fn ten_thousand_mutated_requests() {
    alone("ten_thousand_mutated_requests", || {
        let attacked = Attacked::start(bounds(), GuardedBounds::default());
        let mut dice = Dice::new(20_261_123);
        let mut statuses = std::collections::BTreeMap::<u16, usize>::new();
        for round in 0..10_000 {
            let request = mutated::request(&mut dice);
            let mut client = Client::connect(attacked.address());
            // The server may have answered and closed before it has everything.
            let _ = client.stream().write_all(&request);
            let _ = client.stream().shutdown(Shutdown::Write);
            let text = String::from_utf8_lossy(&request);
            let answer = rest_of(client.stream());
            if answer.is_empty() {
                continue;
            }
            let answer = String::from_utf8_lossy(&answer);
            let status = answer.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3));
            let status: u16 = status.and_then(|s| s.parse().ok()).unwrap_or_else(|| {
                panic!("round {round}: {text:?} is answered {answer:?}");
            });
            assert!(status != 500 && status != 502, "round {round}: {text:?}: {answer:?}");
            *statuses.entry(status).or_default() += 1;
        }
        assert!(statuses.len() > 5, "the mutations reach far: {statuses:?}");
        attacked.is_unharmed();
    });
}

#[test]
fn slow_heads() {
    alone("slow_heads", || {
        let guarded = GuardedBounds { head_timeout: SOON, ..GuardedBounds::default() };
        let bounds = Bounds { workers: 2, ..bounds() };
        let attacked = Attacked::start(bounds, guarded);
        let clients: Vec<Client> = (0..500)
            .map(|_| {
                let mut client = Client::connect(attacked.address());
                client.send("GET /hello HTTP/1.1\r\nX: ");
                client
            })
            .collect();
        serves(attacked.address());
        for mut client in clients {
            assert_eq!(client.response("GET").unwrap().status, 408);
        }
        // A byte now and then does not help.
        let mut client = Client::connect(attacked.address());
        client.send("GET /hello HTTP/1.1\r\nX: ");
        drip_until_cut(client.stream(), |stream| {
            stream.write_all(b"x")?;
            nothing_has_come(stream)
        });
        drop(client);
        attacked.is_unharmed();
    });
}

#[test]
fn slow_bodies() {
    alone("slow_bodies", || {
        let guarded = GuardedBounds {
            body_idle_timeout: SOON,
            rate_window: SOON,
            rate_min_bytes_per_second: 10_000,
            ..GuardedBounds::default()
        };
        let attacked = Attacked::start(Bounds { workers: 2, ..bounds() }, guarded);
        let head = "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n";
        let chunked = "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        for head in [head, chunked] {
            let clients: Vec<Client> = (0..6)
                .map(|_| {
                    let mut client = Client::connect(attacked.address());
                    client.send(head);
                    client.send("1");
                    client
                })
                .collect();
            for mut client in clients {
                assert_eq!(client.response("POST").unwrap().status, 408);
            }
            let mut client = Client::connect(attacked.address());
            client.send(head);
            if head == chunked {
                client.send("10000\r\n");
            }
            drip_until_cut(client.stream(), |stream| {
                stream.write_all(b"x")?;
                nothing_has_come(stream)
            });
        }
        attacked.is_unharmed();
    });
}

#[test]
fn readers_that_are_slow_or_never_read() {
    alone("readers_that_are_slow_or_never_read", || {
        let guarded = GuardedBounds {
            rate_window: SOON,
            rate_min_bytes_per_second: 64 << 10,
            ..GuardedBounds::default()
        };
        let bounds = Bounds { workers: 2, write_timeout: SOON, ..bounds() };
        let attacked = Attacked::start(bounds, guarded);
        for path in [
            "/file/50000000",
            "/file/50000001",
            "/bytes/50000000",
            "/bytes/50000001",
            "/unknown/50000000",
            "/unknown-file/50000000",
        ] {
            let never: Vec<Client> = (0..4)
                .map(|_| {
                    let mut client = Client::connect(attacked.address());
                    client.send(&format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
                    client
                })
                .collect();
            for mut client in never {
                within("it is reset", || client.stream().take_error().unwrap().is_some());
                assert!(client.response("GET").is_err(), "a cut reply is never whole");
            }
            let mut drip = Client::connect(attacked.address());
            drip.send(&format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
            // Reads a little at each turn, until it is reset.
            let end = Instant::now() + PATIENCE;
            let mut paced = TcpStream::connect(attacked.address()).unwrap();
            paced.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
            while drip.stream().take_error().unwrap().is_none() {
                assert!(Instant::now() < end, "the server puts up with it");
                let _ = drip.stream().read(&mut [0; 128]);
                let _ = paced.read(&mut [0]);
            }
            assert!(drip.response("GET").is_err());
        }
        attacked.is_unharmed();
    });
}

#[test]
fn slow_readers_hold_no_worker() {
    alone("slow_readers_hold_no_worker", || {
        let gate = Gate::new();
        let bounds = Bounds { workers: 2, queue_max: 64, ..bounds() };
        let server = start_with(Shelf::with_gate(&gate), bounds, GuardedBounds::default());
        let attacked = Attacked::from(server);
        let size = 9_000_001;
        let paths = ["file", "bytes", "unknown", "unknown-file"];
        let mut clients: Vec<Client> = (0..16)
            .map(|index| {
                let mut client = Client::connect(attacked.address());
                let target = format!("/{}/{size}", paths[index % paths.len()]);
                client.send(&format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"));
                client
            })
            .collect();
        within("all are begun", || gate.untold() == clients.len());
        within("no worker waits for them", || {
            attacked.server.pools.busy() + attacked.server.pools.queued() == 0
        });
        serves(attacked.address());
        assert_eq!(gate.untold(), clients.len());
        let expected = content(0, size);
        for client in &mut clients {
            assert!(client.response("GET").unwrap().body == expected);
            assert_eq!(client.exchange("GET", "/hello", "").body, b"hello", "it is kept");
        }
        within("all are told", || gate.untold() == 0);
        drop(clients);
        attacked.is_unharmed();
    });
}

#[test]
fn a_slow_but_honest_reader_gets_everything() {
    alone("a_slow_but_honest_reader_gets_everything", || {
        let guarded = GuardedBounds {
            rate_window: SOON * 5,
            rate_min_bytes_per_second: 1 << 10,
            ..GuardedBounds::default()
        };
        let bounds = Bounds { write_timeout: SOON * 5, ..bounds() };
        let attacked = Attacked::start(bounds, guarded);
        // A length that is even is sent without a pause, any other may be put down.
        for size in [8_000_000, 8_000_001] {
            let mut client = Client::connect(attacked.address());
            client.send(&format!("GET /file/{size} HTTP/1.0\r\n\r\n"));
            let mut paced = TcpStream::connect(attacked.address()).unwrap();
            paced.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
            let mut all = Vec::new();
            let mut piece = vec![0; 64 << 10];
            loop {
                let got = client.stream().read(&mut piece).unwrap();
                if got == 0 {
                    break;
                }
                all.extend_from_slice(&piece[..got]);
                let _ = paced.read(&mut [0]);
            }
            assert!(all.ends_with(&content(0, size)));
        }
        attacked.is_unharmed();
    });
}

#[test]
fn pipelining_without_reading() {
    alone("pipelining_without_reading", || {
        let bounds = Bounds { write_timeout: SOON, ..bounds() };
        let attacked = Attacked::start(bounds, GuardedBounds::default());
        let before = resident();
        let requests = "GET /bytes/1000 HTTP/1.1\r\nHost: a\r\n\r\n".repeat(100);
        for _ in 0..4 {
            let mut client = Client::connect(attacked.address());
            client.stream().set_write_timeout(Some(PATIENCE)).unwrap();
            // Until the server has had enough.
            let end = Instant::now() + PATIENCE;
            while client.stream().write_all(requests.as_bytes()).is_ok() {
                assert!(Instant::now() < end, "the server takes any number");
            }
        }
        let grown = resident().saturating_sub(before);
        assert!(grown < 8 << 20, "{grown} bytes for what nobody reads");
        attacked.is_unharmed();
    });
}

#[test]
fn resets_in_the_backlog_and_after() {
    alone("resets_in_the_backlog_and_after", || {
        let reset = |address, request: &str| {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(request.as_bytes()).unwrap();
            rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
        };
        let requests = [
            "",
            "GET /he",
            "GET /hello HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /file/9000000 HTTP/1.1\r\nHost: a\r\n\r\n",
            "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf",
        ];
        // Room for all of them: nobody is to be refused for want of it.
        let bounds = Bounds { queue_max: 4096, ..bounds() };
        let guarded =
            GuardedBounds { connections_per_address_max: 8192, ..GuardedBounds::default() };
        let (listener, pools) = bind(Shelf::service(), bounds, guarded, "127.0.0.1:0");
        let address = listener.addresses()[0];
        // Nobody accepts yet.
        for _ in 0..100 {
            requests.iter().for_each(|request| reset(address, request));
        }
        let attacked = Attacked::from(Running::start(Arc::new(listener), pools, address));
        for _ in 0..400 {
            requests.iter().for_each(|request| reset(address, request));
        }
        attacked.is_unharmed();
    });
}

#[test]
fn thousands_of_idle_connections() {
    alone("thousands_of_idle_connections", || {
        let limit = getrlimit(Resource::Nofile).maximum;
        setrlimit(Resource::Nofile, Rlimit { current: limit, maximum: limit }).unwrap();
        // Both ends of each connection are in this process.
        let count =
            usize::try_from(limit.unwrap_or(20_000).min(20_000) / 2 - 500).unwrap().min(5000);
        assert!(count >= 1000, "the limit of open files is too low for this test: {limit:?}");
        let guarded =
            GuardedBounds { connections_per_address_max: 8192, ..GuardedBounds::default() };
        let attacked = Attacked::start(bounds(), guarded);
        let before = resident();
        let mut clients: Vec<TcpStream> = Vec::with_capacity(count);
        let mut response = [0; 512];
        for _ in 0..count {
            let mut client = TcpStream::connect(attacked.address()).unwrap();
            client.write_all(b"GET /hello HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
            assert!(client.read(&mut response).unwrap() > 0);
            clients.push(client);
        }
        within("they are all idle", || attacked.server.pools.busy() == 0);
        let each = resident().saturating_sub(before) / count;
        println!("{count} idle connections: {each} bytes each");
        assert!(each < 6 << 10, "{each} bytes for an idle connection");
        assert_eq!(threads(), attacked.threads);
        serves(attacked.address());
        for client in &mut clients {
            client.write_all(b"GET /hello HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
            assert!(client.read(&mut response).unwrap() > 0);
        }
        drop(clients);
        attacked.is_unharmed();
    });
}

#[test]
fn half_read_heads_in_thousands() {
    alone("half_read_heads_in_thousands", || {
        let guarded =
            GuardedBounds { connections_per_address_max: 8192, ..GuardedBounds::default() };
        let attacked = Attacked::start(bounds(), guarded);
        let before = resident();
        let half = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}", "x".repeat(15_000));
        let clients: Vec<TcpStream> = (0..2500)
            .map(|_| {
                let mut client = TcpStream::connect(attacked.address()).unwrap();
                // The oldest of them are closed meanwhile.
                let _ = client.write_all(half.as_bytes());
                client
            })
            .collect();
        serves(attacked.address());
        let grown = resident().saturating_sub(before);
        assert!(grown < 28 << 20, "{grown} bytes for {} of half heads", half.len() * clients.len());
        drop(clients);
        attacked.is_unharmed();
    });
}

#[test]
fn as_many_clients_as_there_are_in_the_same_moment() {
    alone("as_many_clients_as_there_are_in_the_same_moment", || {
        let bounds = Bounds { queue_max: 1024, ..bounds() };
        let attacked = Attacked::start(bounds, GuardedBounds::default());
        for count in [32, 256, 1000] {
            let address = attacked.address();
            let moment = Arc::new(Barrier::new(count));
            let clients: Vec<_> = (0..count)
                .map(|_| {
                    let moment = Arc::clone(&moment);
                    let run = move || {
                        moment.wait();
                        get(address, "/hello").body == b"hello"
                    };
                    std::thread::Builder::new().stack_size(256 << 10).spawn(run).unwrap()
                })
                .collect();
            let answered = clients.into_iter().map(|client| client.join().unwrap());
            assert_eq!(answered.filter(|answered| *answered).count(), count);
            attacked.is_unharmed();
        }
    });
}

#[test]
fn many_connects_in_a_row() {
    alone("many_connects_in_a_row", || {
        let attacked = Attacked::start(bounds(), GuardedBounds::default());
        for round in 0..count_from_environment(CONNECTS, 10_000) {
            let mut client = TcpStream::connect(attacked.address()).unwrap();
            if round % 4 == 0 {
                continue;
            }
            client
                .write_all(b"GET /hello HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
                .unwrap();
            assert!(rest_of(&mut client).ends_with(b"hello"));
        }
        attacked.is_unharmed();
    });
}

#[test]
fn sockets_of_a_service_manager_are_served() {
    const NAME: &str = "sockets_of_a_service_manager_are_served";
    if std::env::var_os(SERVES).is_some() {
        let (listener, pools) =
            bind(Shelf::service(), bounds(), GuardedBounds::default(), "systemd");
        let address = listener.addresses()[0];
        serves(Running::start(Arc::new(listener), pools, address).address);
        return;
    }
    // The passed socket keeps its number in the child; no other test may have it open.
    alone(NAME, || {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::empty()).unwrap();
        let output = this_test(NAME)
            .env(SERVES, "1")
            .env("LISTEN_FDS", "1")
            .env("LISTEN_FDS_FIRST_FD", socket.as_raw_fd().to_string())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        assert!(!this_test(NAME).env(SERVES, "1").output().unwrap().status.success());
    });
}

#[test]
fn a_low_limit_of_descriptors_bounds_the_connections() {
    const NAME: &str = "a_low_limit_of_descriptors_bounds_the_connections";
    if std::env::var_os(SERVES).is_some() {
        allow_few_descriptors();
        return serve_until_asked_to_end(Attacked::start(bounds(), GuardedBounds::default()));
    }
    use_up_descriptors(NAME);
}

#[test]
fn running_out_of_descriptors_does_not_end_the_accepting() {
    const NAME: &str = "running_out_of_descriptors_does_not_end_the_accepting";
    if std::env::var_os(SERVES).is_some() {
        // The server believes in more than there are, so that it is accept that fails.
        let attacked = Attacked::start(bounds(), GuardedBounds::default());
        allow_few_descriptors();
        return serve_until_asked_to_end(attacked);
    }
    use_up_descriptors(NAME);
}

#[test]
fn slow_readers_of_files_leave_descriptors_to_others() {
    const NAME: &str = "slow_readers_of_files_leave_descriptors_to_others";
    if std::env::var_os(SERVES).is_some() {
        allow_few_descriptors();
        let guarded = GuardedBounds { connections_reserved: 4, ..GuardedBounds::default() };
        let bounds = Bounds { workers: 2, write_timeout: PATIENCE, ..bounds() };
        return serve_until_asked_to_end(Attacked::start(bounds, guarded));
    }
    let server = Server::start(NAME);
    let size = 9_000_001;
    // More than there is room for; each that is let in has a file open too.
    let mut slow: Vec<Client> = (0..100)
        .map(|_| {
            let mut client = Client::connect(server.address);
            client.send(&format!("GET /file/{size} HTTP/1.1\r\nHost: a\r\n\r\n"));
            within("it is answered", || client.stream().peek(&mut [0]).is_ok_and(|got| got > 0));
            client
        })
        .collect();
    assert_eq!(get(server.address, "/health").status, 200);
    let expected = content(0, size);
    let mut served = 0;
    for client in &mut slow {
        let response = client.response("GET").unwrap();
        served += usize::from(response.status == 200);
        assert!(response.status == 503 || response.body == expected, "{}", response.status);
    }
    assert!(served > 50, "{served}");
    drop(slow);
    within("there is room again", || get(server.address, "/hello").status == 200);
    server.ends_well();
}

#[test]
fn the_limit_of_descriptors_is_raised_as_far_as_it_goes() {
    alone("the_limit_of_descriptors_is_raised_as_far_as_it_goes", || {
        let limit = Rlimit { current: Some(200), maximum: Some(400) };
        setrlimit(Resource::Nofile, limit).unwrap();
        raise_descriptor_limit();
        assert_eq!(getrlimit(Resource::Nofile).current, Some(400));
    });
}

fn allow_few_descriptors() {
    let limit = Some(200);
    setrlimit(Resource::Nofile, Rlimit { current: limit, maximum: limit }).unwrap();
}

/// Tells where it serves, until standard input ends; then all must be as before.
fn serve_until_asked_to_end(attacked: Attacked) {
    println!("serving on {}", attacked.address());
    io::stdin().read_to_end(&mut Vec::new()).unwrap();
    attacked.is_unharmed();
}

/// A server in another process.
struct Server {
    child: Child,
    address: SocketAddr,
    // What it says has a reader until its end.
    _told: BufReader<ChildStdout>,
}

impl Server {
    /// Runs the test of that name as a server.
    fn start(name: &str) -> Self {
        let mut child = this_test(name)
            .env(SERVES, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut told = BufReader::new(child.stdout.take().unwrap());
        let address = (&mut told)
            .lines()
            .find_map(|line| Some(line.unwrap().split_once("serving on ")?.1.parse().unwrap()))
            .expect("the server tells its address");
        Self { child, address, _told: told }
    }

    /// Ends it; it must be as it was before the attack.
    fn ends_well(mut self) {
        drop(self.child.stdin.take());
        assert!(self.child.wait().unwrap().success());
    }
}

/// Opens more connections to a server in another process than it has descriptors.
fn use_up_descriptors(name: &str) {
    let server = Server::start(name);
    let address = server.address;
    let is_answered = || {
        let mut client = Client::connect(address);
        let _ = client.stream().write_all(b"GET /hello HTTP/1.1\r\nHost: a\r\n\r\n");
        client.response("GET").is_ok_and(|response| response.body == b"hello").then_some(client)
    };
    let idle: Vec<Client> = (0..600).map(|_| is_answered().unwrap()).collect();
    // Silent ones in the same moment, more than there is room for.
    let silent: Vec<TcpStream> = (0..600).map(|_| TcpStream::connect(address).unwrap()).collect();
    within("a client is answered beside them", || is_answered().is_some());
    drop((idle, silent));
    within("a client is answered behind them", || is_answered().is_some());
    serves(address);
    server.ends_well();
}
