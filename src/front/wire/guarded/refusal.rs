//! The answers that the listener gives by itself, to what never becomes a request.
//!
//! Each is short, closes the connection, and is sent without waiting: the bytes either fit
//! into the socket's buffer or the client has not earned an answer.

use http::StatusCode;

use super::date;

/// An answer to what is no acceptable request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refusal {
    /// The status code.
    pub(super) status: u16,
    /// What was wrong, for the client and the log.
    pub(super) detail: &'static str,
    field: Option<&'static str>,
}

impl Refusal {
    pub(super) const MALFORMED: Self = Self::new(400, "the request is malformed");
    pub(super) const BARE_LF: Self = Self::new(400, "lines must end in CRLF");
    pub(super) const BAD_TARGET: Self = Self::new(400, "the request target is malformed");
    pub(super) const BAD_HOST: Self = Self::new(400, "exactly one valid Host field is required");
    pub(super) const BAD_LENGTH: Self = Self::new(400, "Content-Length is malformed");
    pub(super) const LENGTH_AND_CODING: Self =
        Self::new(400, "Content-Length and Transfer-Encoding exclude each other");
    pub(super) const BAD_TRANSFER_ENCODING: Self =
        Self::new(400, "Transfer-Encoding must be chunked");
    pub(super) const HEAD_TIMEOUT: Self = Self::new(408, "the request head took too long");
    pub(super) const CONNECT: Self = Self::new(405, "this is no proxy for CONNECT")
        .with("Allow: GET, HEAD, POST, PUT, DELETE, OPTIONS\r\n");
    pub(super) const BODY_TOO_LONG: Self = Self::new(413, "the request body is too long");
    pub(super) const URL_TOO_LONG: Self = Self::new(414, "the request target is too long");
    pub(super) const EXPECTATION: Self = Self::new(417, "only 100-continue can be expected");
    pub(super) const HEAD_TOO_LONG: Self = Self::new(431, "the request head is too long");
    pub(super) const TOO_MANY_HEADERS: Self = Self::new(431, "too many header fields");
    pub(super) const NO_ANSWER: Self = Self::new(500, "the request was not answered");
    pub(super) const UNKNOWN_METHOD: Self = Self::new(501, "the method is unknown");
    pub(super) const UNKNOWN_CODING: Self = Self::new(501, "the transfer coding is unknown");
    pub(super) const BAD_BODY: Self = Self::new(502, "the body broke off before it began");
    pub(super) const NO_ROOM: Self =
        Self::new(503, "too many connections").with("Retry-After: 1\r\n");
    /// Only counted: not even a thread that would say it is free.
    pub(super) const NO_ANSWER_AT_ALL: Self =
        Self::new(503, "overloaded; closed without an answer");
    pub(super) const VERSION: Self = Self::new(505, "only HTTP/1.1 and HTTP/1.0 are spoken");
    /// `OPTIONS *` (RFC 9110, section 9.3.7), which asks about the server as a whole.
    pub(super) const OPTIONS: Self =
        Self::new(204, "").with("Allow: GET, HEAD, POST, PUT, DELETE, OPTIONS\r\n");

    const fn new(status: u16, detail: &'static str) -> Self {
        Self { status, detail, field: None }
    }

    const fn with(self, field: &'static str) -> Self {
        Self { field: Some(field), ..self }
    }

    /// Appends the answer.
    pub(super) fn append_to(&self, out: &mut Vec<u8>, content: Content) {
        out.extend_from_slice(b"HTTP/1.1 ");
        append_status(out, self.status);
        out.extend_from_slice(b"\r\nDate: ");
        date::append_now(out);
        out.extend_from_slice(b"\r\nConnection: close\r\n");
        out.extend_from_slice(self.field.unwrap_or_default().as_bytes());
        if self.detail.is_empty() {
            out.extend_from_slice(b"\r\n");
            return;
        }
        let body = format!("{{\"detail\":\"{}\"}}", self.detail);
        let framing =
            format!("Content-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len());
        out.extend_from_slice(framing.as_bytes());
        if content == Content::Sent {
            out.extend_from_slice(body.as_bytes());
        }
    }
}

/// Whether an answer's content goes with its head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// It does.
    Sent,
    /// It does not: the request was HEAD (RFC 9110, section 9.3.2).
    Announced,
}

impl Content {
    /// What answers a request, as far as its line has come.
    pub(super) fn for_request(line: &[u8]) -> Self {
        if line.starts_with(b"HEAD ") { Self::Announced } else { Self::Sent }
    }
}

/// Appends code and reason phrase of a status.
pub(super) fn append_status(out: &mut Vec<u8>, status: u16) {
    // RFC 9112, section 4: a client ignores the phrase; it may be empty.
    let reason = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
    append_number(out, u64::from(status));
    out.push(b' ');
    out.extend_from_slice(reason.unwrap_or_default().as_bytes());
}

/// Appends a number in decimal without an allocation.
pub(super) fn append_number(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_in_decimal() {
        for number in [0, 7, 10, 404, 1_000_000, u64::MAX] {
            let mut out = Vec::new();
            append_number(&mut out, number);
            assert_eq!(String::from_utf8(out).unwrap(), number.to_string());
        }
    }

    #[test]
    fn a_refusal_is_a_whole_response() {
        let mut out = Vec::new();
        Refusal::BAD_HOST.append_to(&mut out, Content::Sent);
        let text = String::from_utf8(out).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 400 Bad Request\r\nDate: "), "{head}");
        assert!(head.contains(&format!("\r\nContent-Length: {}", body.len())), "{head}");
        assert!(head.contains("\r\nConnection: close\r\n"), "{head}");
        assert_eq!(body, r#"{"detail":"exactly one valid Host field is required"}"#);
        let mut out = Vec::new();
        Refusal::BAD_HOST.append_to(&mut out, Content::for_request(b"HEAD / HTTP/1.1"));
        assert_eq!(String::from_utf8(out).unwrap(), format!("{head}\r\n\r\n"));
    }
}
