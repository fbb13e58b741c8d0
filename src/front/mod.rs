//! The front: sockets, routes and replies.

pub mod pools;
pub mod wire;
