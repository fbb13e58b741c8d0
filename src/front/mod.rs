//! The front: sockets, routes and replies.

pub mod wire;
