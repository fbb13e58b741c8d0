//! The end-to-end tests: one binary, which drives the real server over sockets.

mod support;
