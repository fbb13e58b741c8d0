//! Where a command finds the server that runs with the same settings: what `LISTEN_ADDR` names.

use crate::config::env::Settings;
use crate::front::wire::guarded::{ListenAddr, ListenAddrError};
use crate::ops::ask::Door;

/// Where `artifactapi health` finds the server that runs with these settings: the first TCP
/// address or unix socket of `LISTEN_ADDR`.
///
/// # Errors
/// [`DoorError`] where there is none that another process could know.
pub fn door(settings: &Settings) -> Result<Door, DoorError> {
    let addresses = ListenAddr::parse_list(&settings.listen_addr)?;
    let known = |address| match address {
        ListenAddr::Tcp(address) => Some(Door::Tcp(address)),
        ListenAddr::Unix(path) => Some(Door::Unix(path)),
        ListenAddr::Inherited => None,
    };
    addresses.into_iter().find_map(known).ok_or(DoorError::Inherited)
}

/// Where `artifactapi warm` finds it: the first TCP address of `LISTEN_ADDR`, as this machine
/// reaches it.
///
/// # Errors
/// [`DoorError`] where there is none.
pub fn url(settings: &Settings) -> Result<String, DoorError> {
    let mut addresses = ListenAddr::parse_list(&settings.listen_addr)?.into_iter();
    let tcp = addresses.find_map(|address| match address {
        ListenAddr::Tcp(address) => Some(Door::Tcp(address)),
        ListenAddr::Unix(_) | ListenAddr::Inherited => None,
    });
    match tcp {
        Some(door) => Ok(format!("http://{door}")),
        None => Err(DoorError::NoPort(settings.listen_addr.clone())),
    }
}

/// Why the server of these settings can't be asked.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    /// `LISTEN_ADDR` names something that is no address.
    #[error("LISTEN_ADDR cannot be understood")]
    ListenAddr(#[from] ListenAddrError),
    /// Only the service manager knows where the server listens.
    #[error("LISTEN_ADDR is systemd, which does not say where to ask; set it to the address")]
    Inherited,
    /// Only unix sockets or the service manager's are named.
    #[error("LISTEN_ADDR ({0}) has no address and port: give --server http://host:port")]
    NoPort(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_of_this_machine_is_found() {
        let check = |listen: &str, first: Option<&str>, http: Option<&str>| {
            let settings = Settings { listen_addr: listen.to_owned(), ..Settings::default() };
            assert_eq!(door(&settings).ok().map(|door| door.to_string()).as_deref(), first);
            assert_eq!(url(&settings).ok().as_deref(), http);
        };
        check("0.0.0.0:8000", Some("127.0.0.1:8000"), Some("http://127.0.0.1:8000"));
        check("[::]:80", Some("[::1]:80"), Some("http://[::1]:80"));
        let both = "unix:/run/a.sock, 192.0.2.1:8000";
        check(both, Some("unix:/run/a.sock"), Some("http://192.0.2.1:8000"));
        check("unix:/run/a.sock", Some("unix:/run/a.sock"), None);
        check("systemd", None, None);
        check("nowhere", None, None);
    }
}
