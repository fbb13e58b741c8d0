//! A request head as the listeners give it to the service. How it is parsed is theirs.

use std::net::IpAddr;

/// A request head, complete and within bounds. Header names are lower case; a value has no
/// control characters.
#[derive(Debug, Clone)]
pub struct RequestHead {
    /// The method as sent: `GET`, `HEAD`, …
    pub method: String,
    /// Path and query as sent, beginning with `/`, printable ASCII.
    pub target: String,
    /// HTTP/1.1; otherwise HTTP/1.0.
    pub is_http_11: bool,
    /// Header fields in their order.
    pub headers: Vec<(String, String)>,
    /// The client's address, as far as it is known.
    pub client: Option<IpAddr>,
}

impl RequestHead {
    /// Bytes of memory that it takes.
    pub fn bytes(&self) -> usize {
        let fields = self.headers.iter().map(|(name, value)| name.capacity() + value.capacity());
        let slots = self.headers.capacity() * size_of::<(String, String)>();
        self.method.capacity() + self.target.capacity() + slots + fields.sum::<usize>()
    }

    /// The first line of a header, as it stands there.
    pub fn first(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// The value of a header that has one; several lines are one list (RFC 9110, section 5.3).
    pub fn header(&self, name: &str) -> Option<String> {
        let mut values =
            self.headers.iter().filter(|(n, _)| n == name).map(|(_, value)| value.as_str());
        let first = values.next()?.to_owned();
        Some(values.fold(first, |list, value| list + ", " + value))
    }
}
