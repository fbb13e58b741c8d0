//! The front's suite over this listener, and what only this one promises.

use std::cell::Cell;
use std::io::Read;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use super::body::Unread;
use super::census::Kind;
use super::connection::Conn;
use super::reply::{Asked, Writer};
use super::stream::{Pace, Stream};
use super::table::Watch;
use super::transfer::Wait;
use super::{Guarded, GuardedBounds, ListenAddr, Listener, Settings, TrustedProxies};
use crate::front::pools::Pools;
use crate::front::wire::suite::support::{Client, Gate, PATIENCE, Shelf, content, get, within};
use crate::front::wire::suite::{Running, bounds, front_suite};
use crate::front::wire::{
    Bounds, Lane, Refused, Reply, ReplyWriter, Request, RequestHead, Service,
};

mod hostile;
mod mutated;
mod put_off;

fn start(service: Arc<dyn Service>, bounds: Bounds) -> Running {
    start_with(service, bounds, GuardedBounds::default())
}

fn start_with(service: Arc<dyn Service>, bounds: Bounds, guarded: GuardedBounds) -> Running {
    let (listener, pools) = bind(service, bounds, guarded, "127.0.0.1:0");
    let address = listener.addresses()[0];
    Running::start(Arc::new(listener), pools, address)
}

fn bind(
    service: Arc<dyn Service>,
    bounds: Bounds,
    guarded: GuardedBounds,
    addresses: &str,
) -> (Guarded, Arc<Pools>) {
    let settings = Settings {
        addresses: ListenAddr::parse_list(addresses).unwrap(),
        bounds,
        guarded,
        trusted_proxies: TrustedProxies::default(),
    };
    bind_as_set(service, settings)
}

fn bind_as_set(service: Arc<dyn Service>, settings: Settings) -> (Guarded, Arc<Pools>) {
    let pools = Arc::new(Pools::new(settings.bounds.workers, settings.bounds.queue_max));
    (Guarded::bind(settings, Arc::clone(&pools), service).unwrap(), pools)
}

front_suite!(start);

#[test]
fn every_bound_has_its_answer_and_the_connection_is_closed() {
    let guarded =
        GuardedBounds { head_timeout: Duration::from_millis(100), ..GuardedBounds::default() };
    let gate = Gate::new();
    let server = start_with(Shelf::with_gate(&gate), bounds(), guarded);
    let long = "a".repeat(20_000);
    for (request, status) in [
        (format!("GET /{long} HTTP/1.1\r\n"), 414),
        (format!("GET / HTTP/1.1\r\nHost: a\r\nX: {long}\r\n\r\n"), 431),
        (format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: 1\r\n".repeat(64)), 431),
        ("GET / HTTP/1.1\r\nHost: a\r\n".into(), 408),
        ("GET / HTTP/1.1\r\n\r\n".into(), 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999\r\n\r\n".into(), 413),
        ("BREW / HTTP/1.1\r\nHost: a\r\n\r\n".into(), 501),
        ("CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n".into(), 405),
        ("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n".into(), 204),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), 505),
    ] {
        let mut client = Client::connect(server.address);
        client.send(&request);
        let response = client.response("GET").unwrap();
        assert_eq!(response.status, status, "{:?}", &request[..request.len().min(80)]);
        assert_eq!(response.header("connection"), Some("close"));
        assert!(client.is_at_end());
        assert_eq!(gate.refused(), [status], "the service is told, once");
    }
    // A client that has sent nothing is closed without an answer.
    assert!(Client::connect(server.address).is_at_end());
    assert!(gate.refused().is_empty());
}

#[test]
fn a_refused_head_request_gets_no_content() {
    let guarded =
        GuardedBounds { head_timeout: Duration::from_millis(100), ..GuardedBounds::default() };
    let server = start_with(Shelf::service(), bounds(), guarded);
    for (request, status) in [
        ("HEAD / HTTP/1.1\r\n\r\n", 400),
        ("\r\nHEAD / HTTP/1.1\nHost: a\n\n", 400),
        ("HEAD / HTTP/1.1\r\nHost: a\r\nX : 1\r\n\r\n", 400),
        ("HEAD / HTTP/1.1\r\nHost: a\r\n", 408),
        ("HEAD / HTTP/1.9\r\nHost: a\r\n\r\n", 505),
        ("GET /hello HTTP/1.1\r\nHost: a\r\n\r\nHEAD / HTTP/1.1\r\n\r\n", 400),
    ] {
        let mut client = Client::connect(server.address);
        client.send(request);
        if request.starts_with("GET") {
            assert_eq!(client.response("GET").unwrap().body, b"hello");
        }
        let response = client.response("HEAD").unwrap();
        assert_eq!(response.status, status, "{request:?}");
        assert_ne!(response.header("content-length"), Some("0"), "{request:?}");
        assert!(client.is_at_end(), "{request:?}");
    }
}

#[test]
fn the_connection_field_says_what_becomes_of_it() {
    let server = start(Shelf::service(), bounds());
    for (version, asked, answered) in [
        ("1.1", "", None),
        ("1.1", "Connection: close\r\n", Some("close")),
        ("1.0", "", Some("close")),
        ("1.0", "Connection: keep-alive\r\n", Some("keep-alive")),
    ] {
        let mut client = Client::connect(server.address);
        client.send(&format!("GET /hello HTTP/{version}\r\nHost: a\r\n{asked}\r\n"));
        let response = client.response("GET").unwrap();
        assert_eq!(response.header("connection"), answered, "{version} {asked:?}");
    }
}

#[test]
fn an_answer_reaches_a_client_that_is_still_sending() {
    let server = start(Shelf::service(), bounds());
    let size = 3 << 20;
    for fields in [format!("Content-Length: {size}"), "Content-Length: 1\r\nX : 1".to_owned()] {
        let mut client = Client::connect(server.address);
        client.send(&format!("POST /echo HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n"));
        client.send_bytes(&content(0, size));
        assert!(matches!(client.response("POST").unwrap().status, 413 | 400));
    }
    // In chunks the bound shows only on the way.
    let mut client = Client::connect(server.address);
    client.send("POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n200000\r\n");
    client.send_bytes(&content(0, 2 << 20));
    assert_eq!(client.response("POST").unwrap().status, 413);
}

#[test]
fn an_unread_body_is_drained_up_to_a_bound() {
    let server = start(Shelf::service(), bounds());
    for (size, keeps) in [(1000, true), (200_000, true), (600_000, false)] {
        let mut client = Client::connect(server.address);
        client.send(&format!("POST /ignore HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n"));
        client.send_bytes(&content(0, size));
        assert_eq!(client.response("POST").unwrap().body, b"ignored");
        client.send("GET /hello HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.response("GET").is_ok(), keeps, "{size}");
    }
    // Who waits to be welcomed and is not may send the body or not: nobody can tell.
    let mut client = Client::connect(server.address);
    let response =
        client.exchange("POST", "/ignore", "Content-Length: 5\r\nExpect: 100-continue\r\n");
    assert_eq!(response.header("connection"), Some("close"));
    assert!(client.is_at_end());
}

#[test]
fn a_malformed_chunk_is_an_error_and_the_end_of_the_connection() {
    let server = start(Shelf::service(), bounds());
    for chunks in ["x\r\n", "5\r\nhelloX", "-1\r\n\r\n", "0\r\n\n", "5\nhello\r\n0\r\n\r\n"] {
        let mut client = Client::connect(server.address);
        client.send("POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
        client.send(chunks);
        client.send("GET /hello HTTP/1.1\r\nHost: a\r\n\r\n");
        let response = client.response("POST").unwrap();
        assert_eq!((response.status, response.header("connection")), (400, Some("close")));
        assert!(client.is_at_end(), "{chunks:?}");
    }
}

#[test]
fn a_smuggled_request_is_never_answered() {
    let server = start(Shelf::service(), bounds());
    let hidden = "GET /head HTTP/1.1\r\nHost: hidden\r\n\r\n";
    let all = "0\r\n\r\n".len() + hidden.len();
    let conflicts = [
        format!("Content-Length: {all}\r\nTransfer-Encoding: chunked"),
        format!("Transfer-Encoding: chunked\r\nContent-Length: {all}"),
        format!("Content-Length: {all}\r\nTransfer-Encoding: x\r\nTransfer-Encoding: chunked"),
        format!("Content-Length: {all}\r\nTransfer-Encoding : chunked"),
        format!("Content-Length: {all}\r\nTransfer-Encoding:\x0bchunked"),
        format!("Content-Length: {all}\r\n Transfer-Encoding: chunked"),
        format!("Content-Length: {all}\r\nX: x\nTransfer-Encoding: chunked"),
        format!("Content-Length: {all}\r\nX: x\rTransfer-Encoding: chunked"),
        format!("Content-Length: 5\r\nContent-Length: {all}"),
        format!("Content-Length: 5, {all}"),
        format!("Content-Length: +{all}"),
        format!("Content-Length: {all}\0"),
        "Transfer-Encoding: chunked, identity".to_owned(),
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: cow".to_owned(),
        "Transfer-Encoding: \"chunked\"".to_owned(),
    ];
    for fields in conflicts {
        let mut client = Client::connect(server.address);
        client.send(&format!(
            "POST /ignore HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n0\r\n\r\n{hidden}"
        ));
        let response = client.response("POST").unwrap();
        assert_eq!((response.status, response.header("connection")), (400, Some("close")));
        assert!(client.is_at_end(), "{fields:?}");
    }
    // Where the framing is clear, all of the body is body.
    for fields in [format!("Content-Length: {all}"), format!("content-length:{all} ")] {
        let mut client = Client::connect(server.address);
        client.send(&format!(
            "POST /ignore HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n0\r\n\r\n{hidden}"
        ));
        client.send("GET /hello HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.response("POST").unwrap().body, b"ignored");
        assert_eq!(client.response("GET").unwrap().body, b"hello");
    }
}

#[test]
fn a_half_closed_client_gets_its_answer() {
    let server = start(Shelf::service(), bounds());
    for path in ["/hello", "/bytes/3000000", "/file/3000000", "/unknown/3000000"] {
        let mut client = Client::connect(server.address);
        client.send(&format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
        client.stream().shutdown(Shutdown::Write).unwrap();
        assert_eq!(client.response("GET").unwrap().status, 200, "{path}");
        assert!(client.is_at_end());
    }
}

#[test]
fn a_connection_has_a_last_request_and_an_idle_one_an_end() {
    let guarded = GuardedBounds { requests_per_connection_max: 3, ..GuardedBounds::default() };
    let bounds = Bounds { idle_timeout: Duration::from_millis(100), ..bounds() };
    let server = start_with(Shelf::service(), bounds, guarded);
    let mut client = Client::connect(server.address);
    for _ in 0..2 {
        assert_eq!(client.exchange("GET", "/hello", "").header("connection"), None);
    }
    assert_eq!(client.exchange("GET", "/hello", "").header("connection"), Some("close"));
    assert!(client.is_at_end());

    let mut idle = Client::connect(server.address);
    idle.exchange("GET", "/hello", "");
    assert!(idle.is_at_end());
}

#[test]
fn the_oldest_idle_connection_makes_room() {
    let guarded =
        GuardedBounds { connections_max: 12, connections_reserved: 2, ..GuardedBounds::default() };
    let server = start_with(Shelf::service(), bounds(), guarded);
    let mut clients: Vec<Client> = Vec::new();
    for _ in 0..30 {
        let mut client = Client::connect(server.address);
        assert_eq!(client.exchange("GET", "/hello", "").body, b"hello");
        within("it is idle, and the last to be so", || server.pools.busy() == 0);
        clients.push(client);
    }
    let (closed, kept) = clients.split_at_mut(20);
    assert!(closed.iter_mut().all(Client::is_at_end));
    for client in kept {
        assert_eq!(client.exchange("GET", "/hello", "").body, b"hello");
    }
}

#[test]
fn silent_connections_make_room_although_they_have_the_reserved_seats() {
    let guarded =
        GuardedBounds { connections_max: 12, connections_reserved: 6, ..GuardedBounds::default() };
    let server = start_with(Shelf::service(), bounds(), guarded);
    // Those that are young are not closed, so they take every seat there is.
    let mut silent: Vec<Client> = (0..20).map(|_| Client::connect(server.address)).collect();
    for round in 0..5 {
        within("a client is let in", || {
            // Whoever is turned away meanwhile is replaced.
            silent.push(Client::connect(server.address));
            get(server.address, "/hello").status == 200
        });
        assert!(silent.len() < 1000, "round {round}");
    }
}

#[test]
fn reserved_connections_answer_health_when_all_others_are_at_work() {
    let gate = Gate::new();
    let guarded =
        GuardedBounds { connections_max: 10, connections_reserved: 4, ..GuardedBounds::default() };
    let server = start_with(Shelf::with_gate(&gate), bounds(), guarded);
    let mut at_work: Vec<Client> = (1..=6)
        .map(|busy| {
            let mut client = Client::connect(server.address);
            client.send("GET /gate HTTP/1.1\r\nHost: a\r\n\r\n");
            within("it is at work", || server.pools.busy() == busy);
            client
        })
        .collect();
    for _ in 0..20 {
        let health = get(server.address, "/health");
        assert_eq!((health.status, health.header("connection")), (200, Some("close")));
        assert_eq!(get(server.address, "/hello").status, 503);
    }
    // Nor do clients stand in the way that don't close their end once they are answered.
    let mut lingering = Vec::new();
    for _ in 0..20 {
        let mut client = Client::connect(server.address);
        assert_eq!(client.exchange("GET", "/health", "").status, 200);
        lingering.push(client);
    }
    gate.open();
    for client in &mut at_work {
        assert_eq!(client.response("GET").unwrap().body, b"through");
    }
}

#[test]
fn one_address_gets_its_share_and_no_more() {
    let guarded = GuardedBounds { connections_per_address_max: 3, ..GuardedBounds::default() };
    let server = start_with(Shelf::service(), bounds(), guarded);
    let mut clients: Vec<Client> = (0..3).map(|_| Client::connect(server.address)).collect();
    for client in &mut clients {
        assert_eq!(client.exchange("GET", "/hello", "").status, 200);
    }
    let mut refused = Client::connect(server.address);
    assert_eq!(refused.response("GET").unwrap().status, 503);
    assert!(refused.is_at_end());
    drop(clients);
    within("there is room again", || {
        let mut client = Client::connect(server.address);
        client.stream().shutdown(Shutdown::Write).is_ok() && client.is_at_end()
    });
}

#[test]
fn the_client_of_a_trusted_proxy_is_the_one_it_names() {
    let settings = Settings {
        addresses: ListenAddr::parse_list("127.0.0.1:0").unwrap(),
        bounds: bounds(),
        guarded: GuardedBounds { connections_per_address_max: 1, ..GuardedBounds::default() },
        trusted_proxies: "127.0.0.0/8".parse().unwrap(),
    };
    let (listener, pools) = bind_as_set(Shelf::service(), settings);
    let address = listener.addresses()[0];
    let server = Running::start(Arc::new(listener), pools, address);
    // More than one connection: a trusted proxy is not counted.
    let mut clients = [Client::connect(server.address), Client::connect(server.address)];
    for client in &mut clients {
        let response = client.exchange("GET", "/head", "X-Forwarded-For: 192.0.2.7\r\n");
        assert!(response.body.ends_with(b"client=192.0.2.7"));
    }
}

/// A service that panics while it is asked for the lane, on the watcher's own thread.
struct Lanes(Arc<dyn Service>);

impl Service for Lanes {
    fn lane(&self, head: &RequestHead) -> Lane {
        assert!(!head.target.starts_with("/panic"), "on purpose");
        self.0.lane(head)
    }

    fn serve(&self, request: Request<'_>, writer: &mut dyn ReplyWriter) {
        self.0.serve(request, writer);
    }

    fn shed(&self, head: &RequestHead, writer: &mut dyn ReplyWriter) {
        self.0.shed(head, writer);
    }

    fn refused(&self, refused: &Refused) {
        self.0.refused(refused);
    }
}

#[test]
fn a_panic_over_one_connection_does_not_end_the_listener() {
    let server = start(Arc::new(Lanes(Shelf::service())), bounds());
    for _ in 0..20 {
        assert_eq!(get(server.address, "/panic").status, 500);
        assert_eq!(get(server.address, "/hello").body, b"hello");
    }
}

#[test]
fn a_panic_inside_a_body_is_an_error_for_the_client() {
    let gate = Gate::new();
    let server = start(Shelf::with_gate(&gate), bounds());
    // The client of the second takes its time: that reply is put down, and gone on with.
    for (size, is_put_down) in [(300_000, false), (9_000_000, true)] {
        let mut client = Client::connect(server.address);
        // The connection's end is the body's, so only a reset tells that it is not whole.
        client.send(&format!("GET /panic-unknown/{size} HTTP/1.0\r\n\r\n"));
        if is_put_down {
            within("it is put down", || gate.untold() == 1 && server.pools.busy() == 0);
        }
        let response = client.response("GET");
        assert!(response.is_err(), "{size}: {:?}", response.map(|response| response.body.len()));
        within("the service is told", || gate.untold() == 0);
    }
}

#[test]
fn a_reply_that_goes_on_is_left_to_the_workers_though_their_queue_is_full() {
    let gate = Gate::new();
    let bounds = Bounds { workers: 1, queue_max: 1, ..bounds() };
    let server = start(Shelf::with_gate(&gate), bounds);
    let size = 9_000_001;
    let clients = [1, 2, 3].map(|begun| {
        let mut client = Client::connect(server.address);
        client.send(&format!("GET /file/{size} HTTP/1.1\r\nHost: a\r\n\r\n"));
        within("it is put down", || gate.untold() == begun && server.pools.busy() == 0);
        client
    });
    let mut blocked = Vec::new();
    for jobs in 1..=2 {
        let mut client = Client::connect(server.address);
        client.send("GET /gate HTTP/1.1\r\nHost: a\r\n\r\n");
        blocked.push(client);
        within("the request waits", || server.pools.busy() + server.pools.queued() == jobs);
    }
    let readers = clients.map(|mut client| {
        std::thread::spawn(move || client.response("GET").unwrap().body == content(0, size))
    });
    within("the replies wait for the worker", || server.pools.queued() == 4);
    // Whoever comes anew finds no room, and is told so.
    assert_eq!(get(server.address, "/hello").status, 503);
    assert_eq!(gate.untold(), 3);
    gate.open();
    assert!(readers.into_iter().all(|reader| reader.join().unwrap()));
    for client in &mut blocked {
        assert_eq!(client.response("GET").unwrap().body, b"through");
    }
}

#[test]
fn replies_are_put_down_again_only_while_there_is_room_for_what_they_keep() {
    let gate = Gate::new();
    let guarded = GuardedBounds { put_down_bytes_max: 10_000, ..GuardedBounds::default() };
    let server = start_with(Shelf::with_gate(&gate), bounds(), guarded);
    let size = 40_000_001;
    let begin = |path: &str, begun| {
        let mut client = Client::connect(server.address);
        client.send(&format!("GET /{path}/{size} HTTP/1.1\r\nHost: a\r\n\r\n"));
        within("it is put down", || gate.untold() == begun && server.pools.busy() == 0);
        client
    };
    // A file's reply keeps next to nothing in memory, so that the other is let in too, and fills the room.
    let mut file = begin("file", 1);
    let mut bytes = begin("bytes", 2);
    file.stream().read_exact(&mut vec![0; 10_000_000]).unwrap();
    let mut in_a_row = 0;
    within("a worker stays with the client", || {
        in_a_row = if server.pools.busy() == 1 { in_a_row + 1 } else { 0 };
        in_a_row == 50
    });
    for client in [&mut file, &mut bytes] {
        let mut rest = Vec::new();
        client.stream().shutdown(Shutdown::Write).unwrap();
        client.stream().read_to_end(&mut rest).unwrap();
        assert!(rest.ends_with(&content(size - 1_000_000, 1_000_000)));
    }
}

#[test]
fn a_reply_that_cannot_be_watched_is_told_of_without_the_lock_of_the_table() {
    let (listener, _pools) =
        bind(Shelf::service(), bounds(), GuardedBounds::default(), "127.0.0.1:0");
    let shared = &listener.shared;
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let seat = shared.census.seat(Kind::Ordinary, None).unwrap();
    let mut conn = Conn::new(Stream::new(ours.into()), None, seat);
    let asked = Asked {
        is_head: false,
        is_http_11: true,
        may_keep: true,
        may_drain: false,
        has_room: true,
        wait: Wait::at_most(Duration::from_micros(1)),
    };
    let (told, is_told) = std::sync::mpsc::channel();
    let told = {
        let shared = Arc::clone(shared);
        move |_| told.send(shared.table.try_lock().is_ok()).unwrap()
    };
    let (mut gathered, unread) = (Vec::new(), Cell::new(Unread::Nothing));
    let pace = Pace::new(PATIENCE, PATIENCE, 0);
    let Conn { stream, unfinished, .. } = &mut *conn;
    let stopping = &shared.stopping;
    Writer::new(stream, &mut gathered, &unread, asked, pace, stopping, unfinished)
        .send(Reply::new(200, Shelf::body("/file/9000001")), Box::new(told));
    assert!(conn.unfinished.reply.is_some(), "it is put down");
    // The readiness call was never told of this socket, so that it fails.
    conn.is_registered = true;
    assert!(shared.park(conn, Watch::Reply).is_none());
    assert_eq!(is_told.try_recv(), Ok(true));
    assert!(listener.connections().is_some_and(|connections| connections.open == 0));
    theirs.set_read_timeout(Some(PATIENCE)).unwrap();
    theirs.read_to_end(&mut Vec::new()).expect("the connection is closed");
}

#[test]
fn a_stop_closes_idle_connections_and_answers_what_is_in_flight_for_the_last_time() {
    let gate = Gate::new();
    let mut server = start(Shelf::with_gate(&gate), bounds());
    let mut idle = Client::connect(server.address);
    idle.exchange("GET", "/hello", "");
    let mut in_flight = Client::connect(server.address);
    in_flight.send("GET /gate HTTP/1.1\r\nHost: a\r\n\r\n");
    within("it is served", || server.pools.busy() == 1);
    server.stop();
    assert!(idle.is_at_end());
    gate.open();
    let response = in_flight.response("GET").unwrap();
    assert_eq!(response.header("connection"), Some("close"));
    assert!(in_flight.is_at_end());
    assert!(std::net::TcpStream::connect(server.address).is_err());
}

#[test]
fn a_stop_sees_replies_to_slow_clients_to_their_end() {
    let gate = Gate::new();
    let mut server = start(Shelf::with_gate(&gate), bounds());
    let size = 9_000_001;
    let mut clients: Vec<Client> = (0..4)
        .map(|_| {
            let mut client = Client::connect(server.address);
            client.send(&format!("GET /file/{size} HTTP/1.1\r\nHost: a\r\n\r\n"));
            client
        })
        .collect();
    within("all wait for their clients", || gate.untold() == 4 && server.pools.busy() == 0);
    server.stop();
    assert_eq!(gate.untold(), 4);
    let expected = content(0, size);
    for client in &mut clients {
        assert!(client.response("GET").unwrap().body == expected);
        assert!(client.is_at_end());
    }
    assert!(server.pools.drain(Duration::from_secs(10)));
    assert_eq!(gate.untold(), 0);
}

#[test]
fn a_unix_socket_serves_like_any_other() {
    use std::io::Write;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api.sock");
    let addresses = format!("unix:{}, 127.0.0.1:0, [::1]:0", path.display());
    let (listener, pools) = bind(Shelf::service(), bounds(), GuardedBounds::default(), &addresses);
    let (v4, v6) = (listener.addresses()[0], listener.addresses()[1]);
    let server = Running::start(Arc::new(listener), pools, v4);
    assert_eq!(get(v4, "/hello").body, b"hello");
    assert_eq!(get(v6, "/hello").body, b"hello");
    for (target, size) in [("/file/3000000", 3_000_000), ("/bytes/70000", 70_000)] {
        let mut client = std::os::unix::net::UnixStream::connect(&path).unwrap();
        client.write_all(format!("GET {target} HTTP/1.0\r\n\r\n").as_bytes()).unwrap();
        let mut all = Vec::new();
        client.read_to_end(&mut all).unwrap();
        assert!(all.ends_with(&content(0, size)), "{target}");
    }
    drop(server);
    assert!(!path.exists());
}
