//! `artifactapi health`: asks the server of this machine whether it answers.
//!
//! For the health checks of containers, whose images have no other program. It speaks just
//! enough HTTP for that, and judges the status alone: a degraded server answers 200, because
//! replacing its container would mend nothing.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

/// How long the whole question may take. Below the time that Dockerfile gives its health check.
const PATIENCE: Duration = Duration::from_secs(4);
/// Bytes in which the status line has to end (`HTTP/1.1 200 OK`).
const STATUS_LINE_MAX: usize = 256;

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Door {
    /// An address and a port; an unspecified address is asked on loopback.
    Tcp(SocketAddr),
    /// A unix socket at this path.
    Unix(PathBuf),
}

impl fmt::Display for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{}", reachable(*address)),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Why a server is not well.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody answers there, or not in time.
    #[error("{door} did not answer GET /health")]
    Silent {
        /// Who was asked.
        door: Door,
        /// Why.
        source: io::Error,
    },
    /// Another answer than 200.
    #[error("{door} answered GET /health with {status_line:?}")]
    Unwell {
        /// Who was asked.
        door: Door,
        /// Its first line, cut after 256 bytes.
        status_line: String,
    },
}

/// Sends `GET /health` to a server and waits at most 4 seconds for a 200.
///
/// # Errors
/// [`AskError`] where there is none.
pub fn health(door: &Door) -> Result<(), AskError> {
    ask(door, PATIENCE)
}

fn ask(door: &Door, patience: Duration) -> Result<(), AskError> {
    let status_line = status_line(door, patience)
        .map_err(|source| AskError::Silent { door: door.clone(), source })?;
    let mut words = status_line.split(' ');
    let is_http = words.next().is_some_and(|version| version.starts_with("HTTP/1."));
    if is_http && words.next() == Some("200") {
        Ok(())
    } else {
        Err(AskError::Unwell { door: door.clone(), status_line })
    }
}

/// An address that listens for any host can't be connected to everywhere; loopback is part of it.
fn reachable(listening: SocketAddr) -> SocketAddr {
    let host = match listening.ip() {
        IpAddr::V4(host) if host.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(host) if host.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        host => host,
    };
    SocketAddr::new(host, listening.port())
}

fn status_line(door: &Door, patience: Duration) -> io::Result<String> {
    let deadline = Instant::now() + patience;
    // A timeout of zero would be an error of its own kind.
    let left = || match deadline.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
        left => Ok::<_, io::Error>(left),
    };
    let (domain, address) = match door {
        Door::Tcp(address) => (Domain::for_address(*address), reachable(*address).into()),
        Door::Unix(path) => (Domain::UNIX, SockAddr::unix(path)?),
    };
    let mut stream = Socket::new(domain, Type::STREAM, None)?;
    stream.connect_timeout(&address, left()?)?;
    stream.set_write_timeout(Some(left()?))?;
    stream.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let (mut line, mut piece) = (Vec::new(), [0; STATUS_LINE_MAX]);
    while !line.contains(&b'\n') && line.len() < STATUS_LINE_MAX {
        // Anew for each piece: drops that come one by one must not add up.
        stream.set_read_timeout(Some(left()?))?;
        match stream.read(&mut piece)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => line.extend_from_slice(&piece[..count]),
        }
    }
    let end = line.iter().position(|&byte| byte == b'\n').unwrap_or(line.len());
    Ok(String::from_utf8_lossy(&line[..end.min(STATUS_LINE_MAX)]).trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    /// What is said of a server that sends `answer` and then closes.
    fn judged(answer: &'static [u8]) -> Result<(), String> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            let mut byte = [0];
            while !request.ends_with(b"\r\n\r\n") {
                stream.read_exact(&mut byte).unwrap();
                request.push(byte[0]);
            }
            stream.write_all(answer).unwrap();
            request
        });
        let judged =
            ask(&Door::Tcp(address), Duration::from_secs(60)).map_err(|error| match error {
                AskError::Silent { source, .. } => source.kind().to_string(),
                AskError::Unwell { status_line, .. } => status_line,
            });
        assert!(server.join().unwrap().starts_with(b"GET /health HTTP/1.1\r\nHost: "));
        judged
    }

    #[test]
    fn only_a_200_is_well() {
        let check = |answer: &'static [u8], expected: Result<(), &str>| {
            let shown = String::from_utf8_lossy(answer);
            assert_eq!(judged(answer), expected.map_err(str::to_owned), "{shown}");
        };
        check(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", Ok(()));
        check(b"HTTP/1.0 200\r\n\r\n", Ok(()));
        check(b"HTTP/1.1 503 Overload\r\n\r\n", Err("HTTP/1.1 503 Overload"));
        check(b"HTTP/1.1 2000 OK\r\n\r\n", Err("HTTP/1.1 2000 OK"));
        check(b"SSH-2.0 200 OK\r\n", Err("SSH-2.0 200 OK"));
        check(b"HTTP/1.1 200", Err("unexpected end of file"));
        check(b"", Err("unexpected end of file"));
    }

    #[test]
    fn a_line_without_end_is_read_no_further_than_its_bound() {
        let endless: &'static [u8] = &[b'x'; 2 * STATUS_LINE_MAX];
        assert_eq!(judged(endless).unwrap_err().len(), STATUS_LINE_MAX);
    }

    #[test]
    fn nobody_and_a_silent_server_are_not_well() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let silent = ask(&Door::Tcp(address), Duration::from_millis(50));
        assert!(matches!(silent, Err(AskError::Silent { .. })), "{silent:?}");
        drop(listener);
        let gone = ask(&Door::Tcp(address), Duration::from_secs(60));
        assert!(matches!(gone, Err(AskError::Silent { .. })), "{gone:?}");
    }

    #[test]
    fn a_unix_socket_is_asked_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api.sock");
        let door = Door::Unix(path.clone());
        assert!(matches!(health(&door), Err(AskError::Silent { .. })));
        let listener = std::os::unix::net::UnixListener::bind(path).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
            // Read to its end, so that closing does not break the answer off.
            stream.read_to_end(&mut Vec::new()).unwrap();
        });
        health(&door).unwrap();
        server.join().unwrap();
    }

    #[test]
    fn an_unspecified_address_is_asked_on_loopback() {
        let check = |listening: &str, expected: &str| {
            let found = reachable(listening.parse().unwrap());
            assert_eq!(found, expected.parse().unwrap(), "{listening}");
        };
        check("0.0.0.0:8000", "127.0.0.1:8000");
        check("[::]:8000", "[::1]:8000");
        check("192.0.2.7:80", "192.0.2.7:80");
    }
}
