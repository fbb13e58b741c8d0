//! Requests whose service waits for others: they hold no worker, and go on when they are called.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::{start, start_with};
use crate::body::Body;
use crate::front::wire::guarded::GuardedBounds;
use crate::front::wire::suite::bounds;
use crate::front::wire::suite::support::{Client, within};
use crate::front::wire::{
    Bounds, Lane, Refused, Reply, ReplyWriter, Request, RequestHead, Service, Then,
};
use crate::waiting::{Awaited, Registration, Wake};

/// What a request that is put off is said to keep.
const KEPT: usize = 10_000;

/// When an answer comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    /// It is there already when somebody wants to be called.
    There,
    /// It comes while somebody asks to be called.
    Meanwhile,
    /// When [`Later::come`] is called.
    Later,
}

/// A service whose answers come later: the target says when.
#[derive(Default)]
struct Later {
    calls: Mutex<Vec<Wake>>,
    gone: AtomicUsize,
    begun: AtomicUsize,
}

struct Answer {
    of: Arc<Later>,
    when: When,
}

impl Awaited for Answer {
    fn call(&self, wake: Wake) -> Option<Registration> {
        match self.when {
            When::There => return None,
            When::Meanwhile => wake(),
            When::Later => self.of.calls.lock().unwrap().push(wake),
        }
        Some(Box::new(()))
    }
}

impl Later {
    /// Calls all who wait.
    fn come(&self) {
        let calls = std::mem::take(&mut *self.calls.lock().unwrap());
        calls.into_iter().for_each(|wake| wake());
    }

    fn waiting(&self) -> usize {
        self.calls.lock().unwrap().len()
    }
}

struct Serving(Arc<Later>);

impl Service for Serving {
    fn lane(&self, _head: &RequestHead) -> Lane {
        Lane::Main
    }

    fn serve(&self, request: Request<'_>, writer: &mut dyn ReplyWriter) {
        let when = match request.head.target.as_str() {
            "/there" => When::There,
            "/meanwhile" => When::Meanwhile,
            _ => When::Later,
        };
        self.0.begun.fetch_add(1, Ordering::SeqCst);
        let of = Arc::clone(&self.0);
        let answer = format!("{:?}", writer.patience() < Duration::MAX);
        let then: Then = Box::new(move |writer| match writer {
            Some(writer) => {
                let reply = Reply::new(200, Body::from_bytes(answer));
                writer.send(reply, Box::new(drop));
            }
            None => drop(of.gone.fetch_add(1, Ordering::SeqCst)),
        });
        if !writer.has_room() {
            return self.shed(&request.head, writer);
        }
        writer.put_off(Box::new(Answer { of: Arc::clone(&self.0), when }), then, KEPT);
    }

    fn shed(&self, _head: &RequestHead, writer: &mut dyn ReplyWriter) {
        writer.send(Reply::new(503, Body::from_bytes("")), Box::new(drop));
    }

    fn refused(&self, _refused: &Refused) {}
}

fn one_worker() -> Bounds {
    Bounds { workers: 1, ..bounds() }
}

#[test]
fn an_answer_comes_whenever_it_is_called_for() {
    let later = Arc::new(Later::default());
    let server = start(Arc::new(Serving(Arc::clone(&later))), one_worker());
    let mut client = Client::connect(server.address);
    for target in ["/there", "/meanwhile", "/there", "/meanwhile"] {
        assert_eq!(client.exchange("GET", target, "").body, b"true", "{target}");
    }
    // Those that wait hold nobody up, and what they send ahead is answered in its turn.
    let waiting: Vec<Client> = (1..=10)
        .map(|count| {
            let mut client = Client::connect(server.address);
            client.send(
                "GET /later HTTP/1.1\r\nHost: a\r\n\r\nGET /there HTTP/1.1\r\nHost: a\r\n\r\n",
            );
            within("it waits without a worker", || {
                later.waiting() == count && server.pools.outside() == count
            });
            client
        })
        .collect();
    within("no worker is held", || server.pools.busy() == 0);
    assert_eq!(client.exchange("GET", "/there", "").body, b"true");
    later.come();
    for mut client in waiting {
        for _ in 0..2 {
            assert_eq!(client.response("GET").unwrap().body, b"true");
        }
    }
    assert_eq!((server.pools.outside(), later.gone.load(Ordering::SeqCst)), (0, 0));
}

#[test]
fn who_has_gone_is_told_of_and_forgotten() {
    let later = Arc::new(Later::default());
    let server = start(Arc::new(Serving(Arc::clone(&later))), one_worker());
    for count in 1..=3 {
        let mut client = Client::connect(server.address);
        client.send("GET /later HTTP/1.1\r\nHost: a\r\n\r\n");
        within("it waits", || later.waiting() == count && server.pools.outside() == 1);
        rustix::net::sockopt::set_socket_linger(client.stream(), Some(Duration::ZERO)).unwrap();
        drop(client);
        within("it is told", || later.gone.load(Ordering::SeqCst) == count);
        assert_eq!(server.pools.outside(), 0);
    }
    // A call for who is not there any more is no harm.
    later.come();
    let mut client = Client::connect(server.address);
    assert_eq!(client.exchange("GET", "/there", "").body, b"true");
}

#[test]
fn who_seems_to_have_gone_makes_room() {
    let later = Arc::new(Later::default());
    for guarded in [
        GuardedBounds { connections_per_address_max: 4, ..GuardedBounds::default() },
        GuardedBounds { connections_max: 4, connections_reserved: 0, ..GuardedBounds::default() },
    ] {
        let server = start_with(Arc::new(Serving(Arc::clone(&later))), one_worker(), guarded);
        let before = later.gone.load(Ordering::SeqCst);
        let wait = |count: usize| {
            let mut client = Client::connect(server.address);
            client.send("GET /later HTTP/1.1\r\nHost: a\r\n\r\n");
            within("it waits", || server.pools.outside() == count);
            client
        };
        let mut stays = wait(1);
        // They close in order, which tells of nothing but that they send no more.
        for count in 2..=4 {
            let client = wait(count);
            client.half_close();
            drop(client);
        }
        for gone in 1..=3 {
            let mut client = Client::connect(server.address);
            assert_eq!(client.exchange("GET", "/there", "").body, b"true");
            within("one has made room", || later.gone.load(Ordering::SeqCst) == before + gone);
            // It keeps its seat.
            std::mem::forget(client);
        }
        later.come();
        assert_eq!(stays.response("GET").unwrap().body, b"true");
    }
}

#[test]
fn who_closes_its_side_and_reads_on_is_answered() {
    let later = Arc::new(Later::default());
    let server = start(Arc::new(Serving(Arc::clone(&later))), one_worker());
    let mut client = Client::connect(server.address);
    client.send("GET /later HTTP/1.1\r\nHost: a\r\n\r\n");
    within("it waits", || server.pools.outside() == 1);
    client.half_close();
    assert_eq!(server.pools.outside(), 1);
    later.come();
    assert_eq!(client.response("GET").unwrap().body, b"true");
}

#[test]
fn what_cannot_be_put_off_is_waited_for_or_refused() {
    let later = Arc::new(Later::default());
    let guarded = GuardedBounds { put_down_bytes_max: KEPT, ..GuardedBounds::default() };
    let server = start_with(Arc::new(Serving(Arc::clone(&later))), one_worker(), guarded);
    // A body that nobody has read: who goes on later would not know of it.
    let mut client = Client::connect(server.address);
    client.send("POST /later HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab");
    assert_eq!(client.response("POST").unwrap().body, b"false");
    // A GET's costs no more than the connection.
    let mut client = Client::connect(server.address);
    client.send("GET /there HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab");
    let response = client.response("GET").unwrap();
    assert_eq!((&response.body[..], response.header("connection")), (&b"true"[..], Some("close")));
    // The first takes up what room there is for what waits.
    let mut first = Client::connect(server.address);
    first.send("GET /later HTTP/1.1\r\nHost: a\r\n\r\n");
    within("it waits", || server.pools.outside() == 1);
    let mut client = Client::connect(server.address);
    assert_eq!(client.exchange("GET", "/later", "").status, 503);
    later.come();
    assert_eq!(first.response("GET").unwrap().body, b"true");
}

#[test]
fn a_stop_sees_what_was_put_off_to_its_end() {
    let later = Arc::new(Later::default());
    let mut server = start(Arc::new(Serving(Arc::clone(&later))), one_worker());
    let mut client = Client::connect(server.address);
    client.send("GET /later HTTP/1.1\r\nHost: a\r\n\r\n");
    within("it waits", || server.pools.outside() == 1);
    server.stop();
    later.come();
    let response = client.response("GET").unwrap();
    assert_eq!(response.header("connection"), Some("close"));
    assert!(client.is_at_end());
    assert!(server.pools.drain(Duration::from_secs(10)));
    assert_eq!(later.begun.load(Ordering::SeqCst), 1);
}
