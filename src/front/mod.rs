//! The front: sockets, routes and replies.

pub mod conditional;
pub mod multipart;
pub mod pools;
pub mod range;
pub mod wire;
