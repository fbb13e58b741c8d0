//! What the end-to-end tests share: a scripted upstream, the real server as a process, and a
//! client that sees what a strict client sees.
//!
//! Nothing here sleeps to let something happen: a wait is a condition with [`PATIENCE`] as
//! its deadline, and whoever waits longer fails the test by name.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};

pub(crate) mod client;
pub(crate) mod disk;
pub(crate) mod remotes;
mod selftest;
pub(crate) mod server;
pub(crate) mod services;
pub(crate) mod upstream;

/// Longest wait for anything that must happen. Far above what a loaded machine needs: it
/// bounds a failure, it asserts no speed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Between two looks at a condition.
const POLL: Duration = Duration::from_millis(5);

/// Waits until `holds`; fails the test with `what` after [`PATIENCE`].
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "waited {PATIENCE:?} in vain until {what}");
        std::thread::sleep(POLL);
    }
}

/// `len` bytes that look random and are the same for the same `seed`: no two offsets of a
/// file can be mistaken for each other, and nothing compresses.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// The SHA-256 of bytes, as hexadecimal digits.
pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").expect("a string takes all that is written");
        hex
    })
}

/// Fails if two bodies differ, and says where, without printing them.
#[track_caller]
pub(crate) fn assert_same_bytes(actual: &[u8], expected: &[u8]) {
    if actual == expected {
        return;
    }
    let same = actual.iter().zip(expected).take_while(|(a, b)| a == b).count();
    panic!(
        "the bytes differ from offset {same} on: {} bytes with SHA-256 {} instead of {} bytes with {}",
        actual.len(),
        sha256_hex(actual),
        expected.len(),
        sha256_hex(expected),
    );
}
