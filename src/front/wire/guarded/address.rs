//! Where to listen: TCP addresses, unix sockets, and sockets from a service manager.

use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use listenfd::ListenFd;
use socket2::{Domain, Protocol, SockAddr, Socket, TcpKeepalive, Type};

/// Connections that the kernel may hold for us to accept; it cuts this to its own bound.
const BACKLOG: i32 = 4096;
/// Bytes that may wait unsent in a socket. It makes a slow reader's progress visible: without
/// it the kernel reports room only once megabytes have drained.
const NOT_SENT_MAX: u32 = 256 << 10;
/// Silence before the kernel asks a peer whether it is there, and between its questions.
const KEEPALIVE: Duration = Duration::from_secs(60);
/// Least time after which the kernel gives a peer up that acknowledges nothing.
const USER_TIMEOUT_MIN: Duration = Duration::from_secs(30);

/// One entry of `LISTEN_ADDR`.
///
/// ```
/// use artifactapi::front::wire::guarded::ListenAddr;
/// let all = ListenAddr::parse_list("0.0.0.0:8000, [::]:8000, unix:/run/api.sock").unwrap();
/// assert_eq!(all[2].to_string(), "unix:/run/api.sock");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenAddr {
    /// An address and a port; port 0 takes a free one.
    Tcp(SocketAddr),
    /// A unix socket at this path, made anew at the start and removed at the end.
    Unix(PathBuf),
    /// `systemd`: the sockets that the service manager passes (`LISTEN_FDS`).
    Inherited,
}

/// What is no address to listen on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{0}\" is no address to listen on; use for example 0.0.0.0:8000, [::]:8000, \
     unix:/run/artifactapi.sock or systemd"
)]
pub struct ListenAddrError(String);

impl ListenAddr {
    /// Parses a list with commas between its entries, at least one.
    ///
    /// # Errors
    /// The entry that is none.
    pub fn parse_list(text: &str) -> Result<Vec<Self>, ListenAddrError> {
        text.split(',').map(|entry| entry.trim().parse()).collect()
    }
}

impl FromStr for ListenAddr {
    type Err = ListenAddrError;

    fn from_str(text: &str) -> Result<Self, ListenAddrError> {
        if text == "systemd" {
            return Ok(Self::Inherited);
        }
        if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
            return Ok(Self::Unix(path.into()));
        }
        text.parse().map(Self::Tcp).map_err(|_| ListenAddrError(text.to_owned()))
    }
}

impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Inherited => f.write_str("systemd"),
        }
    }
}

/// Why listening did not begin.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// An address can't be taken.
    #[error("cannot listen on {address}")]
    Address {
        /// The address.
        address: ListenAddr,
        /// What the system says.
        #[source]
        error: io::Error,
    },
    /// `systemd` is asked for, and no sockets were passed.
    #[error("cannot listen on systemd: LISTEN_FDS names no sockets for this process")]
    NothingInherited,
    /// The system gives no means to watch connections.
    #[error("cannot set up the watching of connections")]
    Watch(#[source] io::Error),
}

/// Listening sockets, and the paths to remove when they are closed.
#[derive(Debug, Default)]
pub(super) struct Listeners {
    pub(super) sockets: Vec<OwnedFd>,
    pub(super) addresses: Vec<SocketAddr>,
    paths: Vec<PathBuf>,
}

impl Drop for Listeners {
    fn drop(&mut self) {
        for path in &self.paths {
            // It may be gone, or be another's by now; the next start looks again.
            let _ = fs::remove_file(path);
        }
    }
}

impl Listeners {
    /// Listens on every address. A client may leave our bytes untaken for `write_timeout`.
    ///
    /// # Errors
    /// [`BindError`] for the first address that fails.
    pub(super) fn bind(
        addresses: &[ListenAddr],
        write_timeout: Duration,
    ) -> Result<Self, BindError> {
        let mut listeners = Self::default();
        for address in addresses {
            let failed = |error| BindError::Address { address: address.clone(), error };
            match address {
                ListenAddr::Tcp(tcp) => {
                    let socket = bind_tcp(*tcp, addresses).map_err(failed)?;
                    listeners.add(socket, write_timeout).map_err(failed)?;
                }
                ListenAddr::Unix(path) => {
                    let socket = bind_unix(path).map_err(failed)?;
                    listeners.paths.push(path.clone());
                    listeners.add(socket, write_timeout).map_err(failed)?;
                }
                ListenAddr::Inherited => {
                    let inherited = inherited().map_err(failed)?;
                    if inherited.is_empty() {
                        return Err(BindError::NothingInherited);
                    }
                    for socket in inherited {
                        listeners.add(socket, write_timeout).map_err(failed)?;
                    }
                }
            }
        }
        Ok(listeners)
    }

    fn add(&mut self, socket: Socket, write_timeout: Duration) -> io::Result<()> {
        socket.set_nonblocking(true)?;
        if let Some(address) = socket.local_addr()?.as_socket() {
            // Accepted sockets inherit all of these, so that none costs a call for each.
            socket.set_tcp_nodelay(true)?;
            let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE);
            socket.set_tcp_keepalive(&keepalive)?;
            socket.set_tcp_user_timeout(Some(write_timeout.max(USER_TIMEOUT_MIN)))?;
            socket.set_tcp_notsent_lowat(NOT_SENT_MAX)?;
            self.addresses.push(address);
        }
        self.sockets.push(socket.into());
        Ok(())
    }
}

fn bind_tcp(address: SocketAddr, all: &[ListenAddr]) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    let v4_has_the_port = all.iter().any(
        |other| matches!(other, ListenAddr::Tcp(v4) if v4.is_ipv4() && v4.port() == address.port()),
    );
    if matches!(address.ip(), IpAddr::V6(ip) if ip.is_unspecified()) && v4_has_the_port {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

fn bind_unix(path: &Path) -> io::Result<Socket> {
    // A socket that a killed process has left is removed; one that answers is in use, and
    // anything that is no socket is not ours to remove.
    if let Ok(found) = fs::symlink_metadata(path) {
        if !found.file_type().is_socket() || UnixStream::connect(path).is_ok() {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        fs::remove_file(path)?;
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// The sockets that a service manager has passed, each checked to be a listening stream.
fn inherited() -> io::Result<Vec<Socket>> {
    let mut passed = ListenFd::from_env();
    let mut sockets = Vec::with_capacity(passed.len());
    for index in 0..passed.len() {
        let tcp = passed.take_tcp_listener(index).map(|taken| taken.map(Socket::from));
        let taken = match tcp {
            Ok(taken) => taken,
            Err(_) => passed.take_unix_listener(index)?.map(Socket::from),
        };
        sockets.extend(taken);
    }
    Ok(sockets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_nonsense_is_named() {
        for text in ["127.0.0.1:0", "[::1]:8000", "unix:/run/x.sock", "systemd"] {
            assert_eq!(text.parse::<ListenAddr>().unwrap().to_string(), text);
        }
        for text in ["", "8000", "localhost", "example.org:80", "unix:", "1.2.3.4:99999"] {
            let error = text.parse::<ListenAddr>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("\"{text}\" is no address")), "{error}");
        }
        assert!(ListenAddr::parse_list("127.0.0.1:0,,[::1]:0").is_err());
    }

    #[test]
    fn a_left_over_unix_socket_is_replaced_and_a_living_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api.sock");
        let address = [ListenAddr::Unix(path.clone())];
        let bind = || Listeners::bind(&address, Duration::from_secs(1));
        let first = bind().unwrap();
        assert!(matches!(bind(), Err(BindError::Address { .. })), "it is in use");
        drop(first);
        assert!(!path.exists());

        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "left over");
        drop(bind().unwrap());

        fs::write(&path, "a file of somebody").unwrap();
        assert!(bind().is_err());
        assert_eq!(fs::read(&path).unwrap(), b"a file of somebody");
    }

    #[test]
    fn both_wildcards_can_share_a_port() {
        let first = Listeners::bind(&["0.0.0.0:0".parse().unwrap()], Duration::ZERO).unwrap();
        let port = first.addresses[0].port();
        drop(first);
        let both = ListenAddr::parse_list(&format!("0.0.0.0:{port}, [::]:{port}")).unwrap();
        assert_eq!(Listeners::bind(&both, Duration::ZERO).unwrap().sockets.len(), 2);
    }
}
