//! Tags of HTML and XML, one at a time: all that a listing needs of either.
//!
//! Text between tags, comments, CDATA sections, declarations and processing instructions are
//! stepped over. This is no validating parser: whoever reads a listing says which elements
//! must be there.

use std::io::{BufRead, Read};

use super::ListingError;

/// Bytes of a tag with its attributes.
const TAG_BYTES_MAX: u64 = 64 << 10;

/// A start or an end tag.
#[derive(Debug, Default)]
pub(super) struct Tag {
    /// The name in lower case, without a namespace prefix.
    pub(super) name: String,
    /// Whether it is an end tag. An empty element (`<a/>`) is a start tag alone.
    pub(super) is_end: bool,
    attributes: Vec<(String, String)>,
}

impl Tag {
    /// The value of an attribute, entities decoded.
    pub(super) fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(its, _)| its == name).map(|(_, value)| value.as_str())
    }
}

/// The tags of a document.
pub(super) struct Tags<R> {
    reader: R,
    tag: Vec<u8>,
}

impl<R: BufRead> Tags<R> {
    pub(super) fn new(reader: R) -> Self {
        Self { reader, tag: Vec::new() }
    }

    /// The next tag; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<Tag>, ListingError> {
        loop {
            self.reader.skip_until(b'<')?;
            self.tag.clear();
            let (mut closing, mut had) = (Closing::default(), 0);
            while !closing.is_met_in(&self.tag[had..]) {
                had = self.tag.len();
                let mut more = self.reader.by_ref().take(TAG_BYTES_MAX - had as u64);
                let read = more.read_until(b'>', &mut self.tag)?;
                if self.tag.starts_with(b"!--") || self.tag.starts_with(b"![CDATA[") {
                    break;
                }
                if read == 0 && had == 0 {
                    return Ok(None);
                }
                if self.tag.len() as u64 == TAG_BYTES_MAX {
                    let why = format!("a tag is longer than {TAG_BYTES_MAX} bytes");
                    return Err(ListingError::malformed(why));
                }
                if read == 0 {
                    return Err(ListingError::malformed("it ends inside of a tag"));
                }
            }
            // What was read of a comment may hold its end.
            let skipped: &[u8] = match &self.tag {
                tag if tag.starts_with(b"!--") => b"-->",
                tag if tag.starts_with(b"![CDATA[") => b"]]>",
                tag if matches!(tag.first(), Some(b'!' | b'?')) => continue,
                tag => match parse(&String::from_utf8_lossy(tag)) {
                    Some(tag) => return Ok(Some(tag)),
                    None => continue,
                },
            };
            let begun = std::mem::take(&mut self.tag);
            if !(begun.len() > skipped.len() + 1 && begun.ends_with(skipped)) {
                self.skip_past(skipped, &begun)?;
            }
        }
    }

    /// Steps over everything up to and with `end`, letters of either case; `begun` was read
    /// already.
    pub(super) fn skip_past(&mut self, end: &[u8], begun: &[u8]) -> Result<(), ListingError> {
        let mut last: Vec<u8> = begun[begun.len().saturating_sub(end.len())..].to_vec();
        loop {
            let (at, len) = {
                let piece = self.reader.fill_buf()?;
                if piece.is_empty() {
                    return Err(ListingError::malformed("a comment or a section has no end"));
                }
                let ends = piece.iter().position(|byte| {
                    last.push(*byte);
                    if last.len() > end.len() {
                        last.remove(0);
                    }
                    last.eq_ignore_ascii_case(end)
                });
                (ends, piece.len())
            };
            self.reader.consume(at.map_or(len, |at| at + 1));
            if at.is_some() {
                return Ok(());
            }
        }
    }
}

/// Looks for the `>` that closes a tag, which is not one inside of a quoted value. A quote counts
/// only behind `=`: elsewhere it is a letter like any other.
#[derive(Default)]
struct Closing {
    quote: Option<u8>,
    behind_equals: bool,
}

impl Closing {
    /// Whether the next part of the text behind a `<` ends in it.
    fn is_met_in(&mut self, more: &[u8]) -> bool {
        for byte in more {
            match self.quote {
                Some(open) if open == *byte => self.quote = None,
                Some(_) => {}
                None if self.behind_equals && matches!(byte, b'"' | b'\'') => {
                    self.quote = Some(*byte);
                }
                None => {}
            }
            self.behind_equals = *byte == b'=' || self.behind_equals && byte.is_ascii_whitespace();
        }
        self.quote.is_none() && more.last() == Some(&b'>')
    }
}

/// Reads a tag from behind its `<` up to its `>`; `None` where it has no name.
fn parse(text: &str) -> Option<Tag> {
    let text = text.strip_suffix('>')?;
    let (is_end, text) = match text.strip_prefix('/') {
        Some(rest) => (true, rest),
        None => (false, text.strip_suffix('/').unwrap_or(text)),
    };
    let name_len = text.find(|c: char| c.is_whitespace() || c == '/').unwrap_or(text.len());
    let (name, mut rest) = text.split_at(name_len);
    if !name.starts_with(|c: char| c.is_ascii_alphabetic()) {
        return None;
    }
    let mut tag = Tag { name: local(name), is_end, attributes: Vec::new() };
    loop {
        rest = rest.trim_start_matches(|c: char| c.is_whitespace() || c == '/');
        let len = rest.find(|c: char| c.is_whitespace() || c == '=').unwrap_or(rest.len());
        let (name, behind) = rest.split_at(len);
        if name.is_empty() && behind.is_empty() {
            return Some(tag);
        }
        let behind = behind.trim_start();
        let Some(value) = behind.strip_prefix('=') else {
            rest = behind;
            continue;
        };
        let value = value.trim_start();
        let (value, behind) = match value.chars().next() {
            Some(quote @ ('"' | '\'')) => {
                let value = &value[1..];
                value.split_once(quote).unwrap_or((value, ""))
            }
            _ => value.split_at(value.find(char::is_whitespace).unwrap_or(value.len())),
        };
        if !name.is_empty() {
            tag.attributes.push((local(name), decoded(value)));
        }
        rest = behind;
    }
}

fn local(name: &str) -> String {
    name.rsplit_once(':').map_or(name, |(_, local)| local).to_ascii_lowercase()
}

/// Replaces the entities that servers write into file names; others stay as they are.
fn decoded(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    let mut rest = value;
    while let Some(at) = rest.find('&') {
        text.push_str(&rest[..at]);
        rest = &rest[at..];
        let end = rest.bytes().take(10).position(|byte| byte == b';');
        match end.and_then(|end| Some((entity(&rest[1..end])?, end))) {
            Some((char, end)) => {
                text.push(char);
                rest = &rest[end + 1..];
            }
            None => {
                text.push('&');
                rest = &rest[1..];
            }
        }
    }
    text + rest
}

fn entity(name: &str) -> Option<char> {
    match name {
        "amp" => Some('&'),
        "lt" => Some('<'),
        "gt" => Some('>'),
        "quot" => Some('"'),
        "apos" => Some('\''),
        _ => {
            let number = name.strip_prefix('#')?;
            let code = match number.strip_prefix(['x', 'X']) {
                Some(hex) => u32::from_str_radix(hex, 16).ok()?,
                None => number.parse().ok()?,
            };
            char::from_u32(code)
        }
    }
}
