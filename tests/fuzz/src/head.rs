//! Request heads: scanner and parser of the guarded listener.

use std::time::Duration;

use super::chunked::is_token_byte;
use super::head::{BodyFraming, Parsed, Scan, Scanner, parse};
use super::refusal::{Content, Refusal};
use crate::front::wire::Bounds;

/// The pieces that an input comes in, beside one byte at a time and all at once.
const STEPS: [usize; 4] = [2, 3, 7, 64];

/// Small, so that an input reaches each of them.
const BOUNDS: Bounds = Bounds {
    workers: 1,
    queue_max: 1,
    head_bytes_max: 700,
    url_bytes_max: 200,
    header_count_max: 12,
    body_bytes_max: 100_000,
    idle_timeout: Duration::ZERO,
    write_timeout: Duration::ZERO,
    shutdown_grace: Duration::ZERO,
};

/// Reads pipelined heads, however they come in, and holds each to what the listener promises.
pub fn head(input: &[u8]) {
    let (choice, mut wire) = crate::choice(input);
    while let Some((parsed, end)) = whatever_the_reads_cut(wire, choice) {
        check(&wire[..end], &parsed);
        wire = &wire[end..];
    }
}

/// Reads one head in several ways, which must agree.
fn whatever_the_reads_cut(wire: &[u8], choice: usize) -> Option<(Parsed, usize)> {
    let at_once = read(wire, wire.len().max(1));
    for step in [1, STEPS[choice % STEPS.len()]] {
        match (&at_once, read(wire, step)) {
            (Ok(None), Ok(None)) => {}
            (Ok(Some((at_once, end))), Ok(Some((parsed, same_end)))) => {
                assert_eq!(*end, same_end);
                assert_eq!(format!("{at_once:?}"), format!("{parsed:?}"));
            }
            // A bound of bytes may be met on the way or at the end, with another status.
            (Err(_), Err(_)) => {}
            (at_once, parsed) => panic!("at once {at_once:?}, by {step} bytes {parsed:?}"),
        }
    }
    at_once.inspect_err(check_refusal).unwrap_or_default()
}

fn read(wire: &[u8], step: usize) -> Result<Option<(Parsed, usize)>, Refusal> {
    let (mut scanner, mut shown) = (Scanner::default(), 0);
    loop {
        shown = (shown + step).min(wire.len());
        match scanner.advance(&wire[..shown], &BOUNDS) {
            Scan::Partial if shown == wire.len() => {
                assert!(shown <= BOUNDS.head_bytes_max + 4, "what is kept has a bound");
                return Ok(None);
            }
            Scan::Partial => {}
            Scan::Refused(refusal) => return Err(refusal),
            Scan::Complete { begin, end } => {
                return Ok(Some((parse(&wire[begin..end], &BOUNDS)?, end)));
            }
        }
    }
}

fn check_refusal(refusal: &Refusal) {
    let mut answer = Vec::new();
    refusal.append_to(&mut answer, Content::Sent);
    assert!(matches!(refusal.status, 204 | 400 | 405 | 413 | 414 | 417 | 431 | 501 | 505));
    assert!(answer.starts_with(b"HTTP/1.1 "));
}

/// What everything above the wire may rely on.
fn check(wire: &[u8], parsed: &Parsed) {
    let head = &parsed.head;
    assert!(wire.ends_with(b"\r\n\r\n"));
    assert!(wire.len() <= BOUNDS.head_bytes_max + 4, "empty lines may precede it");
    assert!(head.target.starts_with('/') && head.target.len() <= BOUNDS.url_bytes_max + 1);
    assert!(head.target.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#'));
    assert!(head.headers.len() <= BOUNDS.header_count_max + 1);
    for (name, value) in &head.headers {
        assert!(!name.is_empty() && name.bytes().all(is_token_byte), "{name:?}");
        assert!(!name.bytes().any(|byte| byte.is_ascii_uppercase()), "{name:?}");
        assert!(!value.chars().any(|c| c.is_control() && c != '\t'), "{value:?}");
        assert_eq!(value.trim_matches([' ', '\t']), value);
    }
    let hosts = head.headers.iter().filter(|(name, _)| name == "host").count();
    assert!(hosts == 1 || (hosts == 0 && !head.is_http_11));
    check_framing(parsed);
    check_again(parsed);
}

/// The framing, told from the fields in the simplest way that there is.
fn check_framing(parsed: &Parsed) {
    let values = |name: &str| -> Vec<&str> {
        let fields = parsed.head.headers.iter().filter(|(n, _)| n == name);
        fields.map(|(_, value)| value.as_str()).collect()
    };
    let codings = values("transfer-encoding");
    let mut lengths: Vec<u64> = values("content-length")
        .iter()
        .flat_map(|value| value.split(','))
        .map(|text| text.trim_matches([' ', '\t']).parse().expect("only digits pass"))
        .collect();
    lengths.dedup();
    match (codings.as_slice(), lengths.as_slice()) {
        ([], []) | ([], [0]) => assert_eq!(parsed.body, BodyFraming::None),
        ([], [length]) => {
            assert!(*length <= BOUNDS.body_bytes_max);
            assert_eq!(parsed.body, BodyFraming::Length(*length));
        }
        ([coding], []) => {
            assert!(coding.eq_ignore_ascii_case("chunked") && parsed.head.is_http_11);
            assert_eq!(parsed.body, BodyFraming::Chunked);
        }
        ambiguous => panic!("{ambiguous:?} is ambiguous"),
    }
}

/// A head that is written again reads the same: nothing in it can become a line of its own.
fn check_again(parsed: &Parsed) {
    let head = &parsed.head;
    let minor = u8::from(head.is_http_11);
    let mut wire = format!("{} {} HTTP/1.{minor}\r\n", head.method, head.target);
    for (name, value) in &head.headers {
        wire += &format!("{name}: {value}\r\n");
    }
    wire += "\r\n";
    let bounds = Bounds {
        head_bytes_max: usize::MAX,
        url_bytes_max: BOUNDS.url_bytes_max + 1,
        header_count_max: BOUNDS.header_count_max + 1,
        ..BOUNDS
    };
    let again = parse(wire.as_bytes(), &bounds).expect("it was good before");
    assert_eq!(format!("{again:?}"), format!("{parsed:?}"));
}
