//! Judgement: which paths are allowed, and what a request is answered with.
//!
//! Pure: no I/O, and the time is an argument.

pub mod lifetime;
pub mod pattern;
