//! The suite that every listener passes: one function per promise, over real sockets.
//!
//! A listener's tests call [`front_suite!`] with a function that starts it. `support` has the
//! service that is served and the client that asks.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use super::{Bounds, Listener, Service};
use crate::front::pools::Pools;

pub(super) mod support;

use support::{Client, Gate, Shelf, content, get, within};

/// A listener that runs on a thread of its own until this is dropped.
pub(super) struct Running {
    /// Where it listens.
    pub(super) address: SocketAddr,
    /// The listener.
    pub(super) listener: Arc<dyn Listener>,
    /// Its pools.
    pub(super) pools: Arc<Pools>,
    thread: Option<JoinHandle<std::io::Result<()>>>,
}

impl Running {
    /// Runs a listener.
    pub(super) fn start(
        listener: Arc<dyn Listener>,
        pools: Arc<Pools>,
        address: SocketAddr,
    ) -> Self {
        let runner = Arc::clone(&listener);
        let thread = Some(std::thread::spawn(move || runner.run()));
        Self { address, listener, pools, thread }
    }

    /// Stops accepting and waits for the end of `run`.
    pub(super) fn stop(&mut self) {
        self.listener.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap().unwrap();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Starts a listener with a service and bounds.
pub(super) type Start<'a> = &'a dyn Fn(Arc<dyn Service>, Bounds) -> Running;

/// Bounds that suit the tests.
pub(super) fn bounds() -> Bounds {
    Bounds {
        workers: 8,
        queue_max: 256,
        head_bytes_max: 16 << 10,
        url_bytes_max: 4 << 10,
        header_count_max: 64,
        body_bytes_max: 1 << 20,
        idle_timeout: Duration::from_secs(30),
        write_timeout: Duration::from_secs(10),
        shutdown_grace: Duration::from_secs(10),
    }
}

fn start(start: Start<'_>) -> Running {
    start(Shelf::service(), bounds())
}

/// Turns the suite into one `#[test]` per function, over a function that starts a listener.
macro_rules! front_suite {
    ($start:path) => {
        $crate::front::wire::suite::front_suite! { @ $start;
            a_get_is_answered_with_date_length_and_body,
            a_head_has_the_length_and_no_body,
            a_connection_carries_many_requests,
            pipelined_requests_are_answered_in_order,
            files_of_every_size_arrive_whole,
            a_large_file_arrives_whole,
            bytes_of_every_size_arrive_whole,
            a_body_of_unknown_length_is_chunked_or_ends_with_the_connection,
            a_body_that_breaks_off_is_an_error_for_the_client,
            http_10_is_closed_unless_it_asks_otherwise,
            connection_close_is_obeyed,
            no_content_and_not_modified_have_no_body,
            a_request_body_arrives_whole,
            a_body_that_is_waited_for_is_welcomed,
            an_unread_body_is_not_taken_for_a_request,
            a_head_is_handed_over_as_it_was_sent,
            a_header_cannot_be_split,
            a_full_queue_sheds_and_the_fast_lane_still_answers,
            a_stop_finishes_what_is_in_flight,
            a_service_that_panics_or_is_silent_harms_nobody_else,
        }
    };
    (@ $start:path; $($name:ident,)*) => {
        $(#[test]
        fn $name() {
            $crate::front::wire::suite::$name(&$start);
        })*
    };
}
pub(super) use front_suite;

/// The suite over tiny_http; that over the guarded listener stands with its own tests.
mod over_tiny {
    use super::*;
    use crate::front::wire::tiny::TinyListener;

    fn start(service: Arc<dyn Service>, bounds: Bounds) -> Running {
        let pools = Arc::new(Pools::new(bounds.workers, bounds.queue_max));
        let any_port = "127.0.0.1:0".parse().unwrap();
        let listener = TinyListener::bind(any_port, service, Arc::clone(&pools), bounds).unwrap();
        let address = listener.address().unwrap();
        Running::start(Arc::new(listener), pools, address)
    }

    front_suite!(start);
}

pub(super) fn a_get_is_answered_with_date_length_and_body(start: Start<'_>) {
    let server = self::start(start);
    let response = get(server.address, "/hello");
    assert_eq!(response.status, 200);
    assert_eq!(response.body, b"hello");
    assert_eq!(response.header("content-length"), Some("5"));
    let date = httpdate::parse_http_date(response.header("date").unwrap()).unwrap();
    assert!(date.elapsed().unwrap() < Duration::from_secs(60));
}

pub(super) fn a_head_has_the_length_and_no_body(start: Start<'_>) {
    let server = self::start(start);
    let mut client = Client::connect(server.address);
    for (path, len) in [("/hello", "5"), ("/file/100000", "100000"), ("/bytes/70000", "70000")] {
        let response = client.exchange("HEAD", path, "");
        assert_eq!((response.status, response.header("content-length")), (200, Some(len)));
    }
    assert_eq!(client.exchange("GET", "/hello", "").body, b"hello");
}

pub(super) fn a_connection_carries_many_requests(start: Start<'_>) {
    let server = self::start(start);
    let mut client = Client::connect(server.address);
    for size in 0..300 {
        let response = client.exchange("GET", &format!("/bytes/{size}"), "");
        assert_eq!(response.body, content(0, size));
    }
}

pub(super) fn pipelined_requests_are_answered_in_order(start: Start<'_>) {
    let server = self::start(start);
    let mut client = Client::connect(server.address);
    let requests: String =
        (0..200).map(|size| format!("GET /bytes/{size} HTTP/1.1\r\nHost: a\r\n\r\n")).collect();
    client.send(&requests);
    for size in 0..200 {
        assert_eq!(client.response("GET").unwrap().body, content(0, size));
    }
}

pub(super) fn files_of_every_size_arrive_whole(start: Start<'_>) {
    let server = self::start(start);
    let mut client = Client::connect(server.address);
    for size in [0, 1, 2, 1000, 4095, 4096, 4097, 65_535, 65_536, 65_537, 131_073, 1_000_003] {
        for path in [format!("/file/{size}"), format!("/unknown-file/{size}")] {
            let response = client.exchange("GET", &path, "");
            assert!(response.body == content(0, size), "{path}");
        }
    }
}

pub(super) fn a_large_file_arrives_whole(start: Start<'_>) {
    let server = self::start(start);
    let size = 24 << 20;
    for _ in 0..2 {
        let response = get(server.address, &format!("/file/{size}"));
        assert!(response.body == content(0, size));
    }
}

pub(super) fn bytes_of_every_size_arrive_whole(start: Start<'_>) {
    let server = self::start(start);
    let mut client = Client::connect(server.address);
    for size in [0, 1, 65_535, 65_536, 65_537, 3_000_001] {
        for path in [format!("/bytes/{size}"), format!("/unknown/{size}")] {
            let response = client.exchange("GET", &path, "");
            assert!(response.body == content(0, size), "{path}");
        }
    }
}

pub(super) fn a_body_of_unknown_length_is_chunked_or_ends_with_the_connection(start: Start<'_>) {
    let server = self::start(start);
    let mut client = Client::connect(server.address);
    let response = client.exchange("GET", "/unknown/100000", "");
    assert_eq!(response.header("transfer-encoding"), Some("chunked"));
    assert_eq!(response.header("content-length"), None);
    assert!(response.body == content(0, 100_000));

    client.send("GET /unknown/100000 HTTP/1.0\r\n\r\n");
    let response = client.response("GET").unwrap();
    assert_eq!(response.header("transfer-encoding"), None);
    assert_eq!(response.header("content-length"), None);
    assert!(response.body == content(0, 100_000));
    assert!(client.is_at_end());
}

pub(super) fn a_body_that_breaks_off_is_an_error_for_the_client(start: Start<'_>) {
    let server = self::start(start);
    for version in ["1.1", "1.0"] {
        for path in ["/cut/100000", "/cut-unknown/100000", "/cut/5000000", "/cut-unknown/5000000"] {
            for fields in ["", "Connection: keep-alive\r\n", "Connection: close\r\n"] {
                let mut client = Client::connect(server.address);
                client.send(&format!("GET {path} HTTP/{version}\r\nHost: a\r\n{fields}\r\n"));
                let response = client.response("GET");
                assert!(response.is_err(), "{path} {version} {fields}: {response:?}");
            }
        }
    }
    // What breaks off before its first byte may still become an honest answer.
    let mut client = Client::connect(server.address);
    client.send("GET /cut/0 HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(client.response("GET").map_or(true, |response| response.status >= 500));
}

pub(super) fn http_10_is_closed_unless_it_asks_otherwise(start: Start<'_>) {
    let server = self::start(start);
    let mut client = Client::connect(server.address);
    for _ in 0..3 {
        client.send("GET /hello HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
        let response = client.response("GET").unwrap();
        assert_eq!(response.body, b"hello");
        // A server may close all the same, and says which it does.
        if response.header("connection") != Some("keep-alive") {
            assert!(client.is_at_end());
            client = Client::connect(server.address);
        }
    }
    client.send("GET /hello HTTP/1.0\r\n\r\n");
    assert_eq!(client.response("GET").unwrap().body, b"hello");
    assert!(client.is_at_end());
}

pub(super) fn connection_close_is_obeyed(start: Start<'_>) {
    let server = self::start(start);
    let mut client = Client::connect(server.address);
    let response = client.exchange("GET", "/hello", "Connection: close\r\n");
    // RFC 9112, section 9.6: the close is a must, to announce it is not.
    assert!(matches!(response.header("connection"), None | Some("close")));
    assert_eq!(response.body, b"hello");
    assert!(client.is_at_end());
}

pub(super) fn no_content_and_not_modified_have_no_body(start: Start<'_>) {
    let server = self::start(start);
    let mut client = Client::connect(server.address);
    let response = client.exchange("GET", "/status/204", "");
    assert_eq!((response.status, response.header("content-length")), (204, None));
    let response = client.exchange("GET", "/status/304", "");
    assert_eq!((response.status, response.body.len()), (304, 0));
    assert_eq!(client.exchange("GET", "/hello", "").body, b"hello");
}

pub(super) fn a_request_body_arrives_whole(start: Start<'_>) {
    let server = self::start(start);
    let mut client = Client::connect(server.address);
    for size in [1, 1000, 100_000, 1 << 20] {
        let body = content(0, size);
        client.send(&format!("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n"));
        client.send_bytes(&body);
        assert!(client.response("POST").unwrap().body == body, "{size}");

        client.send("POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
        for chunk in body.chunks(5000) {
            client.send(&format!("{:x}\r\n", chunk.len()));
            client.send_bytes(chunk);
            client.send("\r\n");
        }
        client.send("0\r\n\r\n");
        assert!(client.response("POST").unwrap().body == body, "{size} in chunks");
    }
}

pub(super) fn a_body_that_is_waited_for_is_welcomed(start: Start<'_>) {
    let server = self::start(start);
    let mut client = Client::connect(server.address);
    client.send(
        "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n",
    );
    assert_eq!(client.response("HEAD").unwrap().status, 100);
    client.send("hello");
    assert_eq!(client.response("POST").unwrap().body, b"hello");
}

pub(super) fn an_unread_body_is_not_taken_for_a_request(start: Start<'_>) {
    let server = self::start(start);
    let smuggled = "GET /bytes/7 HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut client = Client::connect(server.address);
    client.send(&format!(
        "POST /ignore HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{smuggled}",
        smuggled.len()
    ));
    client.send("GET /hello HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.response("POST").unwrap().body, b"ignored");
    // The connection may have been closed instead; the smuggled request is never answered.
    if let Ok(response) = client.response("GET") {
        assert_eq!(response.body, b"hello");
    }
}

pub(super) fn a_head_is_handed_over_as_it_was_sent(start: Start<'_>) {
    let server = self::start(start);
    let mut client = Client::connect(server.address);
    let response =
        client.exchange("GET", "/head?q=%2e%2E/../a+b", "X-One: 1\r\nx-one:  two words \r\n");
    let text = String::from_utf8(response.body).unwrap();
    assert_eq!(text, "GET /head?q=%2e%2E/../a+b 1.1 host=a x-one=1, two words client=127.0.0.1",);
}

pub(super) fn a_header_cannot_be_split(start: Start<'_>) {
    let server = self::start(start);
    let response = get(server.address, "/split");
    assert_eq!(response.header("x-good"), Some("kept"));
    assert!(response.headers.iter().all(|(name, value)| name != "x-evil" && value != "evil"));
    assert_eq!(response.body, b"hello");
}

pub(super) fn a_full_queue_sheds_and_the_fast_lane_still_answers(start: Start<'_>) {
    let gate = Gate::new();
    let bounds = Bounds { workers: 1, queue_max: 1, ..bounds() };
    let server = start(Shelf::with_gate(&gate), bounds);
    let mut blocked: Vec<Client> = Vec::new();
    for jobs in 1..=2 {
        let mut client = Client::connect(server.address);
        client.send("GET /gate HTTP/1.1\r\nHost: a\r\n\r\n");
        blocked.push(client);
        within("the request waits", || server.pools.busy() + server.pools.queued() == jobs);
    }
    for _ in 0..20 {
        let shed = get(server.address, "/hello");
        assert_eq!((shed.status, shed.header("retry-after")), (503, Some("1")));
        assert_eq!(get(server.address, "/health").status, 200);
    }
    gate.open();
    for client in &mut blocked {
        assert_eq!(client.response("GET").unwrap().body, b"through");
    }
    within("a worker is free", || get(server.address, "/hello").status == 200);
}

pub(super) fn a_stop_finishes_what_is_in_flight(start: Start<'_>) {
    let gate = Gate::new();
    let mut server = start(Shelf::with_gate(&gate), bounds());
    let mut client = Client::connect(server.address);
    client.send("GET /gate HTTP/1.1\r\nHost: a\r\n\r\n");
    within("the request is served", || server.pools.busy() == 1);
    server.stop();
    gate.open();
    assert_eq!(client.response("GET").unwrap().body, b"through");
    assert!(server.pools.drain(Duration::from_secs(10)));
}

pub(super) fn a_service_that_panics_or_is_silent_harms_nobody_else(start: Start<'_>) {
    let server = self::start(start);
    for path in ["/panic", "/silent"] {
        for _ in 0..20 {
            let mut client = Client::connect(server.address);
            client.send(&format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
            assert!(client.response("GET").map_or(true, |response| response.status == 500));
        }
    }
    assert_eq!(get(server.address, "/hello").body, b"hello");
}
