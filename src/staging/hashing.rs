//! The digests of a file that grows.
//!
//! Hashing a byte takes about as long as all else that is done to it on its way in. So a large
//! file is hashed on a thread of its own, beside the one that reads and writes: as many files at
//! a time as there are processors. The others are hashed by whoever writes them.

use std::mem;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, bounded};
use sha2::{Digest as _, Sha256, Sha512};

/// How long a file is before it gets a thread, in bytes: a small one is hashed sooner than a
/// thread has begun.
const BESIDE_FROM_BYTES: u64 = 4 << 20;
/// Buffers of a file that is hashed beside; who has filled them all waits for the first.
const BUFFERS: usize = 4;

/// Threads that hash, in the whole process, and how many there may be. To ask how many processors
/// there are reads files.
static BESIDE: AtomicUsize = AtomicUsize::new(0);
static BESIDE_MAX: LazyLock<usize> =
    LazyLock::new(|| thread::available_parallelism().map_or(1, usize::from));

/// The digests of the bytes so far.
#[derive(Debug)]
pub(super) struct Sums {
    pub(super) sha256: Sha256,
    pub(super) sha512: Option<Sha512>,
}

impl Sums {
    fn add(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        if let Some(sha512) = &mut self.sha512 {
            sha512.update(bytes);
        }
    }
}

/// Hashes what it is given, in order.
#[derive(Debug)]
pub(super) struct Hashing {
    given: u64,
    by: By,
}

#[derive(Debug)]
enum By {
    Caller(Sums),
    Thread(Beside),
}

#[derive(Debug)]
struct Beside {
    full: Sender<(Vec<u8>, usize)>,
    empty: Receiver<Vec<u8>>,
    thread: JoinHandle<Sums>,
}

impl Hashing {
    /// SHA-256, and SHA-512 where it is asked for.
    pub(super) fn begin(with_sha512: bool) -> Self {
        let sums = Sums { sha256: Sha256::new(), sha512: with_sha512.then(Sha512::new) };
        Self { given: 0, by: By::Caller(sums) }
    }

    /// Hashes the first `len` bytes of a buffer, now or soon. The buffer may be another one
    /// afterwards, as long as one that was given before.
    pub(super) fn add(&mut self, buffer: &mut Vec<u8>, len: usize) {
        if let By::Caller(sums) = &mut self.by
            && self.given >= BESIDE_FROM_BYTES
            && let Some(place) = Place::take()
        {
            // The other thread works on a copy, so that a thread that can't be had loses nothing.
            let sums = Sums { sha256: sums.sha256.clone(), sha512: sums.sha512.clone() };
            if let Some(beside) = Beside::start(sums, place, buffer.len()) {
                self.by = By::Thread(beside);
            }
        }
        self.given += len as u64;
        match &mut self.by {
            By::Caller(sums) => sums.add(&buffer[..len]),
            By::Thread(beside) => beside.add(buffer, len),
        }
    }

    /// The digests of all that was given.
    pub(super) fn finish(self) -> Sums {
        match self.by {
            By::Caller(sums) => sums,
            By::Thread(Beside { full, thread, .. }) => {
                drop(full);
                thread.join().expect("hashing does not panic")
            }
        }
    }
}

impl Beside {
    /// A thread that goes on with these digests; it ends when this is dropped.
    fn start(mut sums: Sums, place: Place, buffer_bytes: usize) -> Option<Self> {
        let (full, filled) = bounded::<(Vec<u8>, usize)>(BUFFERS);
        let (emptied, empty) = bounded(BUFFERS);
        for _ in 1..BUFFERS {
            emptied.send(vec![0; buffer_bytes]).expect("there is room, and both ends are here");
        }
        let hash = move || {
            let _place = place;
            for (buffer, len) in filled {
                sums.add(&buffer[..len]);
                // Whoever fills buffers may have given up.
                let _ = emptied.send(buffer);
            }
            sums
        };
        let thread = thread::Builder::new().name("hash".to_owned()).spawn(hash).ok()?;
        Some(Self { full, empty, thread })
    }

    fn add(&self, buffer: &mut Vec<u8>, len: usize) {
        let empty = self.empty.recv().expect("hashing does not panic");
        let filled = mem::replace(buffer, empty);
        self.full.send((filled, len)).expect("hashing does not panic");
    }
}

/// One of as many places as there are processors, given back when dropped.
#[derive(Debug)]
struct Place(());

impl Place {
    fn take() -> Option<Self> {
        let more = |taken: usize| (taken < *BESIDE_MAX).then_some(taken + 1);
        BESIDE.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok().map(|_| Self(()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        BESIDE.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUFFER_BYTES: usize = 100_000;

    /// Bytes of which no two buffers are alike.
    fn fill(buffer: &mut [u8], number: usize) {
        buffer[..8].copy_from_slice(&number.to_le_bytes());
    }

    /// What hashing `count` buffers in pieces of `len` gives, and what it should.
    fn hashed(count: usize, len: usize) -> (Sums, Sums, bool) {
        let mut hashing = Hashing::begin(true);
        let mut expected = Sums { sha256: Sha256::new(), sha512: Some(Sha512::new()) };
        let mut buffer = vec![7; BUFFER_BYTES];
        for number in 0..count {
            fill(&mut buffer, number);
            expected.add(&buffer[..len]);
            hashing.add(&mut buffer, len);
            assert_eq!(buffer.len(), BUFFER_BYTES);
            buffer[8..].fill(7);
        }
        let is_beside = matches!(hashing.by, By::Thread(_));
        (hashing.finish(), expected, is_beside)
    }

    fn assert_same(found: Sums, expected: Sums) {
        assert_eq!(found.sha256.finalize(), expected.sha256.finalize());
        assert_eq!(found.sha512.unwrap().finalize(), expected.sha512.unwrap().finalize());
    }

    #[test]
    fn digests_are_the_same_however_many_hash_at_a_time() {
        let beside: Vec<bool> = thread::scope(|threads| {
            let files: Vec<_> = (0..64)
                .map(|number| {
                    threads.spawn(move || {
                        let (found, expected, is_beside) = hashed(60, BUFFER_BYTES - number);
                        assert_same(found, expected);
                        is_beside
                    })
                })
                .collect();
            files.into_iter().map(|file| file.join().unwrap()).collect()
        });
        assert!(beside.contains(&true), "nothing was hashed beside");
    }

    #[test]
    fn a_small_file_has_no_thread() {
        let (found, expected, is_beside) = hashed(5, BUFFER_BYTES);
        assert_same(found, expected);
        assert!(!is_beside);
    }

    #[test]
    fn a_thread_ends_when_its_file_is_given_up() {
        let place = Place(());
        BESIDE.fetch_add(1, Ordering::Relaxed);
        let sums = Sums { sha256: Sha256::new(), sha512: None };
        let beside = Beside::start(sums, place, BUFFER_BYTES).unwrap();
        let mut buffer = vec![7; BUFFER_BYTES];
        for _ in 0..2 * BUFFERS {
            beside.add(&mut buffer, BUFFER_BYTES);
        }
        let Beside { full, empty, thread } = beside;
        drop((full, empty));
        let sums = thread.join().unwrap();
        assert_ne!(sums.sha256.finalize(), Sha256::new().finalize());
    }
}
