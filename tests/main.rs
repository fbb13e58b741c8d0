//! The end-to-end tests: one binary, which drives the real server over sockets.
//!
//! Each room's own tests stand beside its code; here stands what only the whole can show.

mod access;
mod api;
mod batch;
mod collapse;
mod commands;
mod crash;
mod degraded;
mod docs;
mod failure;
mod floors;
mod formats;
mod full_disk;
mod hit_miss;
mod local;
mod overload;
mod paths;
mod purge;
mod ranges;
mod readme;
mod regressions;
mod reload;
mod replicas;
mod shutdown;
mod space;
mod support;
mod upstreams;
