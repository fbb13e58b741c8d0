//! artifactapi: a caching proxy for artifacts.
//!
//! `GET /api/{remote}/{path}` gives a file of a configured remote. The first request streams
//! it from upstream while it is stored; later ones come from the cache.
//!
//! # One request
//!
//! ```text
//! front::wire    socket → Request                        (sockets end here)
//! front::route   Request → remote, artifact, path, query
//! formats        path → class: head | member | immutable  (pure)
//! index, coord   artifact → Option<Entry>; fresh for how long
//! policy::decide (pure) → Hit | Stale | Prove | Revalidate | Fetch | Absent
//! cache          a hit: blob.open      otherwise: flights.join → lead or follow
//! cache::fetch   upstream → stage → seal → blob.publish → index.put → freshness.set → land
//! front::reply   conditions and ranges → front::wire
//! ops            one outcome → log line, counter, Cache-Status header
//! ```
//!
//! A fetch runs on its own fixed pool and writes a scratch file at upstream's speed. Every
//! client, the first included, follows that file at its own speed and from its own offset: no
//! client can slow or end a fetch, and a herd costs one request upstream.
//!
//! # Rooms and floors
//!
//! | floor | rooms | what they are |
//! |---|---|---|
//! | 0 | [`artifact`] [`body`] [`clock`] [`breaker`] [`chain`] [`recent`] [`names`] [`tcp`] [`roots`] [`seats`] [`waiting`] | names, paths, digests; bytes on their way out; the time; patience with servers; errors on one line; what was used last; where servers are, how they are reached and whom to believe; bounded numbers of what is held long; threads that wait |
//! | 1 | [`config`] [`formats`] [`policy`] [`discovery`] | what is configured; what a path is; what to do; what listings say |
//! | 2 | [`staging`] [`blob`] [`index`] [`coord`] [`upstream`] | ports with their backends |
//! | 3 | [`cache`] | one request from judgement to bytes; flights and fetches |
//! | 4 | [`front`] [`ops`] [`batch`] | sockets, routes, replies; what an operator sees; many artifacts at once |
//! | 5 | [`wiring`], `main.rs` | what is put together with what |
//!
//! A room uses lower floors only; sideways, `names` uses `recent`, `body` uses `waiting`,
//! `config` uses `formats` and `policy`, `policy` uses `formats`, `blob` uses `staging`, and `front` uses `ops` and `batch`.
//! A test holds the sources against this.
//!
//! # Architecture invariants
//!
//! - Only `front/wire/tiny.rs` knows tiny_http, and only `front/wire` knows clients'
//!   sockets; only `upstream/http*`, `upstream/own.rs`, `names.rs`, `tcp.rs`, `roots.rs` and `blob/s3`
//!   know ureq; only `wiring` names a backend.
//! - Judgement (`formats`, `policy`, `discovery`) does no I/O and takes the time as an argument.
//!   `config` reads its own file and nothing else.
//! - No backend knows HTTP status codes; one function maps errors to statuses
//!   (`front/reply.rs`).
//! - Stored bytes are upstream's bytes.
//! - A thread that waits for a flight never holds a slot that the flight needs: clients are
//!   served by one pool, fetches run on another.
//! - A client that is slow, or that waits for a flight, holds no worker for longer than a moment:
//!   its connection is parked until its socket takes bytes again or the flight calls. (Not so
//!   for what is passed through, a bounded number of ranges far ahead, at a stop, and over
//!   tiny_http.)
//! - A client's miss never waits behind a batch: batches' fetches run on half of the threads at
//!   most, begin only when no client's is due and another thread is free, and one that a client
//!   joins becomes a client's.
//! - One upstream host never takes up all fetch threads, nor their whole queue: it gets three
//!   quarters at most of what the others leave.
//! - A format answers questions about paths; it never handles a request.
//! - Only a sealed file is published, only a published blob is recorded. A row is removed before
//!   its blob. A hit whose blob is missing or another version becomes a miss and heals.
//! - A newcomer finds the flight or the row, never neither.
//! - Leases save work; they never guard correctness.

pub mod artifact;
pub mod batch;
pub mod blob;
pub mod body;
pub mod breaker;
pub mod cache;
pub mod chain;
pub mod clock;
pub mod config;
pub mod coord;
pub mod discovery;
pub mod formats;
pub mod front;
pub mod index;
pub mod names;
pub mod ops;
pub mod policy;
pub mod recent;
pub mod roots;
pub mod seats;
pub mod staging;
pub mod tcp;
#[cfg(test)]
mod test_servers;
pub mod upstream;
pub mod waiting;
pub mod wiring;
