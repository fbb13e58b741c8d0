//! A connected socket that never blocks, and the patience with the client at its other end.
//!
//! Waiting is always a `poll` with a bound. Nothing here knows HTTP.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown};

/// A connected, non-blocking stream socket.
#[derive(Debug)]
pub(super) struct Stream(OwnedFd);

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Stream {
    /// Wraps a socket that was accepted with `SOCK_NONBLOCK`.
    pub(super) fn new(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Appends what has arrived, at most `MOST` bytes, without waiting; 0 is the end. `into`
    /// grows by what came, which is mostly far less than could have come.
    ///
    /// # Errors
    /// `WouldBlock` where nothing has arrived; otherwise the connection is lost.
    pub(super) fn receive<const MOST: usize>(&self, into: &mut Vec<u8>) -> io::Result<usize> {
        let mut buffer = [MaybeUninit::uninit(); MOST];
        loop {
            match rustix::net::recv(&self.0, &mut buffer, RecvFlags::empty()) {
                Ok(((arrived, _), _)) => {
                    into.extend_from_slice(arrived);
                    return Ok(arrived.len());
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Like [`Stream::receive`], into a slice.
    ///
    /// # Errors
    /// Like there.
    pub(super) fn receive_into(&self, into: &mut [u8]) -> io::Result<usize> {
        again(|| rustix::net::recv(&self.0, &mut *into, RecvFlags::empty())).map(|(_, got)| got)
    }

    /// Sends what fits without waiting; `more` tells the kernel that more follows at once.
    ///
    /// # Errors
    /// `WouldBlock` where nothing fits; otherwise the connection is lost.
    pub(super) fn send(&self, parts: &[IoSlice<'_>], more: More) -> io::Result<usize> {
        let flags = SendFlags::NOSIGNAL | more.flag();
        again(|| match parts {
            [one] => rustix::net::send(&self.0, one, flags),
            _ => rustix::net::sendmsg(&self.0, parts, &mut SendAncillaryBuffer::default(), flags),
        })
    }

    /// Sends of a file's next `count` bytes what fits without waiting; 0 is the end of the file.
    ///
    /// # Errors
    /// `WouldBlock` where nothing fits; otherwise the connection is lost or the file unreadable.
    pub(super) fn send_file(
        &self,
        file: impl AsFd,
        offset: &mut u64,
        count: usize,
    ) -> io::Result<usize> {
        again(|| rustix::fs::sendfile(&self.0, &file, Some(offset), count))
    }

    /// Waits until the socket takes bytes again, within what `pace` allows; `false` where it
    /// took longer than `most`.
    ///
    /// # Errors
    /// `TimedOut` where the client is too slow.
    pub(super) fn wait_writable(&self, pace: &mut Pace, most: Duration) -> io::Result<bool> {
        self.wait_in_pace(PollFlags::OUT, pace, most)
    }

    /// Waits until bytes come, within what `pace` allows.
    ///
    /// # Errors
    /// `TimedOut` where the client is too slow.
    pub(super) fn wait_for_bytes(&self, pace: &mut Pace) -> io::Result<()> {
        self.wait_in_pace(PollFlags::IN, pace, Duration::MAX).map(|_| ())
    }

    fn wait_in_pace(&self, events: PollFlags, pace: &mut Pace, most: Duration) -> io::Result<bool> {
        let mut left = most;
        loop {
            let patience = pace.patience().ok_or(io::ErrorKind::TimedOut)?;
            let begun = Instant::now();
            let is_ready = self.wait(events, patience.min(left))?;
            let waited = begun.elapsed();
            pace.waited(waited);
            left = left.saturating_sub(waited);
            if is_ready || left.is_zero() {
                return Ok(is_ready);
            }
        }
    }

    fn wait(&self, events: PollFlags, patience: Duration) -> io::Result<bool> {
        // Rounded up, or a wait of less than the clock's tick would spin.
        let timeout = Timespec {
            tv_sec: patience.as_secs().min(i32::MAX as u64) as i64,
            tv_nsec: i64::from(patience.subsec_nanos()),
        };
        match poll(&mut [PollFd::new(&self.0, events)], Some(&timeout)) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Says that nothing more will be sent, and goes on reading.
    ///
    /// # Errors
    /// The connection is lost already.
    pub(super) fn finish_sending(&self) -> io::Result<()> {
        Ok(rustix::net::shutdown(&self.0, Shutdown::Write)?)
    }

    /// Makes the coming close a reset, so that the client can't take what it has for the whole
    /// and the kernel keeps nothing for it. A unix socket knows no reset: there the client
    /// sees an early end.
    pub(super) fn reset_on_close(&self) {
        // It can only fail where the connection is gone already, which is what is wanted.
        let _ = rustix::net::sockopt::set_socket_linger(&self.0, Some(Duration::ZERO));
    }

    /// Takes that back: the coming close is an end.
    pub(super) fn end_on_close(&self) {
        let _ = rustix::net::sockopt::set_socket_linger(&self.0, None);
    }
}

fn again<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            done => return Ok(done?),
        }
    }
}

/// Whether more bytes follow a `send` at once, so that they can share its last packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum More {
    /// They do.
    Follows,
    /// Push what there is.
    Nothing,
}

impl More {
    fn flag(self) -> SendFlags {
        match self {
            Self::Follows => SendFlags::MORE,
            Self::Nothing => SendFlags::empty(),
        }
    }
}

/// How slow a client may be: no silence over `stall`, and in every `window` of waiting for it
/// at least `rate_min` bytes a second. Only the time that we wait for the client counts, so
/// that a slow upstream is not taken for a slow client.
#[derive(Debug, Clone)]
pub(super) struct Pace {
    stall: Duration,
    window: Duration,
    bytes_min: u64,
    silent: Duration,
    waited: Duration,
    moved: u64,
}

impl Pace {
    /// A pace with its bounds; a `rate_min` of 0 bytes a second asks for none.
    pub(super) fn new(stall: Duration, window: Duration, rate_min: u64) -> Self {
        let bytes_min = (u128::from(rate_min) * window.as_millis() / 1000) as u64;
        let (silent, waited) = (Duration::ZERO, Duration::ZERO);
        Self { stall, window, bytes_min, silent, waited, moved: 0 }
    }

    /// Notes bytes that the client took or gave.
    pub(super) fn moved(&mut self, bytes: usize) {
        self.moved = self.moved.saturating_add(bytes as u64);
        if bytes > 0 {
            self.silent = Duration::ZERO;
        }
    }

    /// Notes time that was spent waiting for the client.
    pub(super) fn waited(&mut self, time: Duration) {
        self.silent += time;
        self.waited += time;
    }

    /// How long to wait next; `None` where the client is too slow.
    fn patience(&mut self) -> Option<Duration> {
        if self.waited >= self.window {
            if self.moved < self.bytes_min {
                return None;
            }
            (self.waited, self.moved) = (Duration::ZERO, 0);
        }
        let left = self.stall.saturating_sub(self.silent);
        (!left.is_zero()).then(|| left.min(self.window - self.waited).max(Duration::from_millis(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn a_silence_over_the_stall_bound_ends_the_patience() {
        let mut pace = Pace::new(secs(10), secs(30), 0);
        assert_eq!(pace.patience(), Some(secs(10)));
        pace.waited(secs(9));
        assert_eq!(pace.patience(), Some(secs(1)));
        pace.moved(1);
        assert_eq!(pace.patience(), Some(secs(10)));
        pace.waited(secs(10));
        assert_eq!(pace.patience(), None);
    }

    #[test]
    fn a_drip_ends_the_patience_and_a_bad_line_does_not() {
        let drip = |bytes: usize| {
            let mut pace = Pace::new(secs(10), secs(30), 1024);
            (0..100).all(|_| {
                let is_patient = pace.patience().is_some();
                pace.waited(secs(5));
                pace.moved(bytes);
                is_patient
            })
        };
        assert!(!drip(1));
        assert!(!drip(5 * 1023));
        assert!(drip(5 * 1024));
    }

    #[test]
    fn time_that_is_not_spent_waiting_for_the_client_does_not_count() {
        let mut pace = Pace::new(secs(10), secs(30), 1024);
        for _ in 0..1000 {
            pace.moved(1);
            assert!(pace.patience().is_some());
        }
    }
}
