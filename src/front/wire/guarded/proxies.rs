//! The client's address behind proxies: `X-Forwarded-For`, believed only from who is trusted.

use std::net::IpAddr;
use std::str::FromStr;

use crate::front::wire::RequestHead;

/// Hops of `X-Forwarded-For` that are looked at, from the nearest on.
const HOPS_MAX: usize = 32;

/// The proxies whose `X-Forwarded-For` is believed: networks in CIDR notation or single
/// addresses, and `unix` for whoever comes through a unix socket.
///
/// ```
/// use artifactapi::front::wire::guarded::TrustedProxies;
/// let trusted: TrustedProxies = "192.0.2.7, 2001:db8::/32, unix".parse().unwrap();
/// assert!(trusted.contains("2001:db8::1".parse().unwrap()));
/// assert!(!trusted.contains("192.0.2.8".parse().unwrap()));
/// ```
#[derive(Debug, Clone, Default)]
pub struct TrustedProxies {
    networks: Vec<Network>,
    trusts_unix: bool,
}

/// What is no list of proxies.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is no address, no network like 10.0.0.0/8 or fd00::/8, and not \"unix\"")]
pub struct ProxyError(String);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Network {
    address: IpAddr,
    bits: u8,
}

impl Network {
    fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(net), IpAddr::V4(address)) => {
                shift(u128::from(net.to_bits() ^ address.to_bits()), 32 - self.bits) == 0
            }
            (IpAddr::V6(net), IpAddr::V6(address)) => {
                shift(net.to_bits() ^ address.to_bits(), 128 - self.bits) == 0
            }
            _ => false,
        }
    }
}

fn shift(bits: u128, by: u8) -> u128 {
    bits.checked_shr(u32::from(by)).unwrap_or(0)
}

impl FromStr for Network {
    type Err = ProxyError;

    fn from_str(text: &str) -> Result<Self, ProxyError> {
        let error = || ProxyError(text.to_owned());
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| error())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            Some(bits) => bits.parse().ok().filter(|n| *n <= most).ok_or_else(error)?,
            None => most,
        };
        Ok(Self { address, bits })
    }
}

impl FromStr for TrustedProxies {
    type Err = ProxyError;

    fn from_str(text: &str) -> Result<Self, ProxyError> {
        let mut trusted = Self::default();
        for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
            match word {
                "unix" => trusted.trusts_unix = true,
                _ => trusted.networks.push(word.parse()?),
            }
        }
        Ok(trusted)
    }
}

impl TrustedProxies {
    /// Whether this address is trusted.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.networks.iter().any(|network| network.contains(address))
    }

    /// The client of a request that came from `peer`, `None` for a unix socket: the nearest
    /// hop that is not trusted. Where a trusted proxy wrote something else than an address,
    /// nothing beyond it is believed, and the client is that proxy.
    pub(super) fn client(&self, peer: Option<IpAddr>, head: &RequestHead) -> Option<IpAddr> {
        let is_trusted = peer.map_or(self.trusts_unix, |peer| self.contains(peer));
        if !is_trusted {
            return peer;
        }
        let mut client = peer;
        let values = head.headers.iter().rev().filter(|(name, _)| name == "x-forwarded-for");
        for hop in values.flat_map(|(_, value)| value.rsplit(',')).take(HOPS_MAX) {
            let Some(address) = parse_hop(hop.trim()) else { break };
            client = Some(address);
            if !self.contains(address) {
                break;
            }
        }
        client
    }
}

/// An address, with or without a port, as proxies write it.
fn parse_hop(hop: &str) -> Option<IpAddr> {
    let bare = hop.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(hop);
    let address: IpAddr =
        bare.parse().ok().or_else(|| Some(hop.parse::<std::net::SocketAddr>().ok()?.ip()))?;
    Some(address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(trusted: &str, peer: &str, forwarded: &[&str], expected: &str) {
        let trusted: TrustedProxies = trusted.parse().unwrap();
        let head = RequestHead {
            method: "GET".into(),
            target: "/".into(),
            is_http_11: true,
            headers: forwarded.iter().map(|v| ("x-forwarded-for".into(), (*v).into())).collect(),
            client: None,
        };
        let client = trusted.client(peer.parse().ok(), &head);
        assert_eq!(client, expected.parse().ok(), "{trusted:?} {peer} {forwarded:?}");
    }

    #[test]
    fn only_trusted_proxies_are_believed_hop_by_hop() {
        let spoofed = ["203.0.113.9"];
        check("", "192.0.2.1", &spoofed, "192.0.2.1");
        check("10.0.0.0/8", "192.0.2.1", &spoofed, "192.0.2.1");
        check("192.0.2.1", "192.0.2.1", &spoofed, "203.0.113.9");
        check("192.0.2.1", "192.0.2.1", &[], "192.0.2.1");
        check("192.0.2.1", "192.0.2.1", &["1.1.1.1, 203.0.113.9"], "203.0.113.9");
        check("192.0.2.0/24", "192.0.2.1", &["203.0.113.9, 192.0.2.77"], "203.0.113.9");
        check("192.0.2.0/24", "192.0.2.1", &["203.0.113.9", "192.0.2.77"], "203.0.113.9");
        check("192.0.2.0/24", "192.0.2.1", &["nonsense, 192.0.2.77"], "192.0.2.77");
        check("192.0.2.1", "192.0.2.1", &["203.0.113.9:4711"], "203.0.113.9");
        check("192.0.2.1", "192.0.2.1", &["[2001:db8::9]:80"], "2001:db8::9");
        check("192.0.2.1", "192.0.2.1", &["[2001:db8::9]"], "2001:db8::9");
        check("192.0.2.1", "::ffff:192.0.2.1", &["203.0.113.9"], "203.0.113.9");
        check("unix", "unix", &["203.0.113.9"], "203.0.113.9");
        check("10.0.0.0/8", "unix", &["203.0.113.9"], "none");
        check("0.0.0.0/0", "192.0.2.1", &["203.0.113.9"], "203.0.113.9");
        check("fd00::/8", "fd12::1", &["203.0.113.9"], "203.0.113.9");
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for text in ["10.0.0.0/33", "fd00::/129", "10.0.0", "example.org", "10.0.0.0/-1", "/8"] {
            assert!(text.parse::<TrustedProxies>().is_err(), "{text}");
        }
    }
}
