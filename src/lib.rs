//! artifactapi: a caching proxy for artifacts.
//!
//! `GET /api/{remote}/{path}` gives a file of a configured remote. The first request streams
//! it from upstream while it is stored; later ones come from the cache.

pub mod artifact;
pub mod blob;
pub mod body;
pub mod cache;
pub mod clock;
pub mod config;
pub mod coord;
pub mod discovery;
pub mod formats;
pub mod front;
pub mod index;
pub mod ops;
pub mod policy;
pub mod staging;
pub mod upstream;
pub mod wiring;
