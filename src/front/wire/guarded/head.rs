//! Request heads: found in what has arrived, and parsed as RFC 9112 asks, strictly.
//!
//! Two steps. [`Scanner`] looks at each byte once and finds the end of the head, refusing
//! early what can't become a request, so that a byte a second costs nothing. [`parse`] then
//! takes the complete head through `httparse` and applies the rules that httparse leaves to
//! its user: framing, `Host`, targets, methods. Nothing here touches a socket.

use std::mem::MaybeUninit;
use std::net::Ipv6Addr;

use super::chunked::is_token_byte;
use super::refusal::Refusal;
use crate::front::wire::{Bounds, RequestHead};

/// Empty lines that may precede a request line (RFC 9112, section 2.2, asks for one).
const EMPTY_LINES_MAX: u8 = 2;
/// Bytes of a method; the longest that is known has 7.
const METHOD_BYTES_MAX: usize = 32;
/// Bytes of a request line beside its target: method, version, two spaces, CR.
const REQUEST_LINE_EXTRA: usize = METHOD_BYTES_MAX + "HTTP/1.1".len() + 3;
/// Header fields that any configuration may allow: their places stand on the stack.
pub(super) const HEADER_COUNT_CEILING: usize = 256;
/// Methods of RFC 9110 and RFC 5789; any other is 501.
const METHODS: [&str; 9] =
    ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];

/// Looks for the end of a head in bytes that come bit by bit.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Scanner {
    /// Bytes that were looked at.
    at: usize,
    line_start: usize,
    /// Where the request line begins, behind empty lines.
    begin: usize,
    empty_lines: u8,
}

/// What the scanner has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scan {
    /// No end yet.
    Partial,
    /// The head stands in this range of the bytes.
    Complete {
        /// Where its request line begins.
        begin: usize,
        /// Behind its empty line.
        end: usize,
    },
    /// It can't become a request.
    Refused(Refusal),
}

impl Scanner {
    /// Whether nothing of a request has come yet.
    pub(super) fn is_before_request(&self, bytes: &[u8]) -> bool {
        self.begin == bytes.len()
    }

    /// What has come of the head, behind empty lines.
    pub(super) fn head<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        &bytes[self.begin..]
    }

    /// Looks at what is new in `bytes`, which begin where the head begins.
    pub(super) fn advance(&mut self, bytes: &[u8], bounds: &Bounds) -> Scan {
        while let Some(found) = bytes[self.at..].iter().position(|byte| *byte == b'\n') {
            let lf = self.at + found;
            let (start, is_request_line) = (self.line_start, self.line_start == self.begin);
            (self.at, self.line_start) = (lf + 1, lf + 1);
            if lf == start || bytes[lf - 1] != b'\r' {
                return Scan::Refused(Refusal::BARE_LF);
            }
            let line = &bytes[start..lf - 1];
            if !line.is_empty() {
                if is_request_line && let Err(refusal) = check_request_line(line, bounds) {
                    return Scan::Refused(refusal);
                }
            } else if is_request_line {
                self.begin = lf + 1;
                self.empty_lines += 1;
                if self.empty_lines > EMPTY_LINES_MAX {
                    return Scan::Refused(Refusal::MALFORMED);
                }
            } else if lf + 1 - self.begin > bounds.head_bytes_max {
                return Scan::Refused(Refusal::HEAD_TOO_LONG);
            } else {
                return Scan::Complete { begin: self.begin, end: lf + 1 };
            }
        }
        self.at = bytes.len();
        self.check_partial(&bytes[self.begin..], bounds)
    }

    fn check_partial(&self, head: &[u8], bounds: &Bounds) -> Scan {
        let is_request_line = self.line_start == self.begin;
        // A TLS client, or anything else that speaks first in binary, learns it at once.
        if is_request_line && let Err(refusal) = check_partial_method(head) {
            Scan::Refused(refusal)
        } else if is_request_line && head.len() > bounds.url_bytes_max + REQUEST_LINE_EXTRA {
            Scan::Refused(Refusal::URL_TOO_LONG)
        } else if head.len() > bounds.head_bytes_max {
            Scan::Refused(Refusal::HEAD_TOO_LONG)
        } else {
            Scan::Partial
        }
    }
}

/// Checks what has come of a method, or of an empty line.
fn check_partial_method(line: &[u8]) -> Result<(), Refusal> {
    if line.is_empty() || line == b"\r" {
        return Ok(());
    }
    check_method(line.split(|byte| *byte == b' ').next().unwrap_or_default())
}

fn check_method(method: &[u8]) -> Result<(), Refusal> {
    if method.is_empty() || !method.iter().all(|byte| is_token_byte(*byte)) {
        Err(Refusal::MALFORMED)
    } else if method.len() > METHOD_BYTES_MAX {
        // RFC 9112, section 3: longer than any method that we know.
        Err(Refusal::UNKNOWN_METHOD)
    } else {
        Ok(())
    }
}

/// Checks version and length before the rest of the head is waited for: an HTTP/0.9 client
/// would wait for ever.
fn check_request_line(line: &[u8], bounds: &Bounds) -> Result<(), Refusal> {
    let mut words = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(Refusal::MALFORMED);
    };
    check_method(method)?;
    match version {
        b"HTTP/1.1" | b"HTTP/1.0" => {}
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            return Err(Refusal::VERSION);
        }
        _ => return Err(Refusal::MALFORMED),
    }
    if target.len() > bounds.url_bytes_max {
        return Err(Refusal::URL_TOO_LONG);
    }
    Ok(())
}

/// How a request's body is framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyFraming {
    /// There is none.
    None,
    /// Of so many bytes, at least one.
    Length(u64),
    /// In chunks.
    Chunked,
}

/// A parsed request.
#[derive(Debug)]
pub(super) struct Parsed {
    /// The head; its `client` is not told yet.
    pub(super) head: RequestHead,
    /// The framing of its body.
    pub(super) body: BodyFraming,
    /// The client wants the connection kept.
    pub(super) wants_keep_alive: bool,
    /// The client waits for `100 Continue` before it sends the body.
    pub(super) expects_continue: bool,
}

/// Parses a complete head, as [`Scan::Complete`] has found it.
///
/// # Errors
/// The answer to give; the connection is closed behind it.
pub(super) fn parse(bytes: &[u8], bounds: &Bounds) -> Result<Parsed, Refusal> {
    let mut places = [const { MaybeUninit::uninit() }; HEADER_COUNT_CEILING];
    let places = &mut places[..bounds.header_count_max.min(HEADER_COUNT_CEILING)];
    let mut request = httparse::Request::new(&mut []);
    match httparse::ParserConfig::default().parse_request_with_uninit_headers(
        &mut request,
        bytes,
        places,
    ) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => return Err(Refusal::MALFORMED),
        Err(httparse::Error::TooManyHeaders) => return Err(Refusal::TOO_MANY_HEADERS),
        Err(_) => return Err(Refusal::MALFORMED),
    }
    let (Some(method), Some(target), Some(minor)) = (request.method, request.path, request.version)
    else {
        return Err(Refusal::MALFORMED);
    };
    let is_http_11 = minor == 1;
    let fields = Fields::read(request.headers, is_http_11)?;
    let mut headers: Vec<(String, String)> = request
        .headers
        .iter()
        .map(|field| (field.name.to_ascii_lowercase(), value_text(field.value)))
        .collect();
    if !METHODS.contains(&method) {
        return Err(Refusal::UNKNOWN_METHOD);
    }
    let target = match resolve_target(method, target)? {
        Target::Origin(target) => target.to_owned(),
        Target::Absolute { authority, target } => {
            // RFC 9112, section 3.2.2: the target's authority replaces what Host says.
            match headers.iter_mut().find(|(name, _)| name == "host") {
                Some(host) => host.1 = authority.to_owned(),
                None => headers.push(("host".to_owned(), authority.to_owned())),
            }
            target
        }
    };
    let body = fields.framing(is_http_11)?;
    if let BodyFraming::Length(length) = body
        && length > bounds.body_bytes_max
    {
        return Err(Refusal::BODY_TOO_LONG);
    }
    Ok(Parsed {
        head: RequestHead { method: method.to_owned(), target, is_http_11, headers, client: None },
        body,
        wants_keep_alive: !fields.close && (is_http_11 || fields.keep_alive),
        expects_continue: fields.expects_continue && is_http_11 && body != BodyFraming::None,
    })
}

/// A value as text: what is no UTF-8, or a control character beyond ASCII, can't pass.
fn value_text(value: &[u8]) -> String {
    let text = String::from_utf8_lossy(value);
    if text.is_ascii() || !text.contains(char::is_control) {
        return text.into_owned();
    }
    text.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect()
}

enum Target<'a> {
    Origin(&'a str),
    Absolute { authority: &'a str, target: String },
}

/// The forms of RFC 9112, section 3.2.
fn resolve_target<'a>(method: &str, target: &'a str) -> Result<Target<'a>, Refusal> {
    if !target.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#') {
        return Err(Refusal::BAD_TARGET);
    }
    if method == "CONNECT" {
        let is_authority = !target.contains(['/', '?']) && target.contains(':');
        return Err(if is_authority { Refusal::CONNECT } else { Refusal::BAD_TARGET });
    }
    if target.starts_with('/') {
        return Ok(Target::Origin(target));
    }
    if target == "*" {
        return Err(if method == "OPTIONS" { Refusal::OPTIONS } else { Refusal::BAD_TARGET });
    }
    let (scheme, rest) = target.split_once("://").ok_or(Refusal::BAD_TARGET)?;
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return Err(Refusal::BAD_TARGET);
    }
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    if authority.is_empty() || !is_host(authority.as_bytes()) {
        return Err(Refusal::BAD_TARGET);
    }
    let target = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    Ok(Target::Absolute { authority, target })
}

/// `uri-host [ ":" port ]` of RFC 9110, section 7.2, without user information. It may be empty,
/// but not beside a port: no URI of http or https is without a host (section 4.2.1).
fn is_host(value: &[u8]) -> bool {
    let (host, port) = match value {
        [] => return true,
        [b'[', rest @ ..] => match rest.iter().position(|byte| *byte == b']') {
            Some(end) => (&rest[..end], &rest[end + 1..]),
            None => return false,
        },
        _ => value.split_at(value.iter().position(|b| *b == b':').unwrap_or(value.len())),
    };
    let is_host = match value.first() {
        Some(b'[') => std::str::from_utf8(host).is_ok_and(|host| host.parse::<Ipv6Addr>().is_ok()),
        _ => !host.is_empty() && is_reg_name(host),
    };
    is_host
        && match port {
            [] => true,
            [b':', digits @ ..] => digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit),
            _ => false,
        }
}

/// `reg-name` of RFC 3986, section 3.2.2, which an IPv4 address is as well.
fn is_reg_name(name: &[u8]) -> bool {
    let mut rest = name;
    while let [first, behind @ ..] = rest {
        rest = match (first, behind) {
            (b'%', [high, low, behind @ ..])
                if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() =>
            {
                behind
            }
            (byte, behind) if byte.is_ascii_alphanumeric() || b"-._~!$&'()*+;=".contains(byte) => {
                behind
            }
            _ => return false,
        };
    }
    true
}

/// The fields that decide about framing and the connection.
#[derive(Debug, Default)]
struct Fields {
    length: Option<Length>,
    is_chunked: bool,
    close: bool,
    keep_alive: bool,
    expects_continue: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Length {
    Bytes(u64),
    TooLong,
}

impl Fields {
    fn read(headers: &[httparse::Header<'_>], is_http_11: bool) -> Result<Self, Refusal> {
        let mut fields = Self::default();
        let (mut hosts, mut length_text) = (0, None);
        for field in headers {
            let is = |name: &str| field.name.eq_ignore_ascii_case(name);
            if is("host") {
                hosts += 1;
                if !is_host(field.value) {
                    return Err(Refusal::BAD_HOST);
                }
            } else if is("content-length") {
                for text in field.value.split(|byte| *byte == b',') {
                    let text = text.trim_ascii();
                    if length_text.is_some_and(|earlier| earlier != text) {
                        return Err(Refusal::BAD_LENGTH);
                    }
                    length_text = Some(text);
                    fields.length = Some(parse_length(text)?);
                }
            } else if is("transfer-encoding") {
                fields.transfer_encoding(field.value)?;
            } else if is("connection") {
                for option in field.value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                    fields.close |= option.eq_ignore_ascii_case(b"close");
                    fields.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
                }
            } else if is("expect") {
                if !field.value.eq_ignore_ascii_case(b"100-continue") {
                    return Err(Refusal::EXPECTATION);
                }
                fields.expects_continue = true;
            }
        }
        // RFC 9112, section 3.2: exactly one on HTTP/1.1, at most one before.
        if hosts > 1 || (is_http_11 && hosts == 0) {
            return Err(Refusal::BAD_HOST);
        }
        Ok(fields)
    }

    fn transfer_encoding(&mut self, value: &[u8]) -> Result<(), Refusal> {
        let mut codings = value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
        let last = codings.next_back().unwrap_or_default();
        if self.is_chunked || !last.eq_ignore_ascii_case(b"chunked") {
            return Err(Refusal::BAD_TRANSFER_ENCODING);
        }
        self.is_chunked = true;
        match codings.next() {
            None => Ok(()),
            Some(b"gzip" | b"x-gzip" | b"deflate" | b"compress" | b"x-compress") => {
                Err(Refusal::UNKNOWN_CODING)
            }
            Some(_) => Err(Refusal::BAD_TRANSFER_ENCODING),
        }
    }

    /// RFC 9112, section 6.3; what it lets a server choose is refused.
    fn framing(&self, is_http_11: bool) -> Result<BodyFraming, Refusal> {
        match (self.is_chunked, self.length) {
            (true, Some(_)) => Err(Refusal::LENGTH_AND_CODING),
            (true, None) if !is_http_11 => Err(Refusal::BAD_TRANSFER_ENCODING),
            (true, None) => Ok(BodyFraming::Chunked),
            (false, Some(Length::TooLong)) => Err(Refusal::BODY_TOO_LONG),
            (false, Some(Length::Bytes(0)) | None) => Ok(BodyFraming::None),
            (false, Some(Length::Bytes(length))) => Ok(BodyFraming::Length(length)),
        }
    }
}

/// `1*DIGIT`; a number that no file reaches is too long, not malformed.
fn parse_length(text: &[u8]) -> Result<Length, Refusal> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return Err(Refusal::BAD_LENGTH);
    }
    let digits = std::str::from_utf8(text).map_err(|_| Refusal::BAD_LENGTH)?;
    Ok(digits.parse().map_or(Length::TooLong, Length::Bytes))
}

#[cfg(test)]
mod tests;
