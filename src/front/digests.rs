//! What an upload says of its bytes' digests: `X-Checksum-Sha256`, and `Repr-Digest` and
//! `Content-Digest` (RFC 9530).
//!
//! Algorithms that prove nothing today, or that this program does not know, are passed over,
//! as RFC 9530 asks; a digest of a known algorithm that can't be read is an error, because
//! whoever sends one wants it checked.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::reply::Problem;
use super::wire::RequestHead;
use crate::artifact::{Checksum, Digest};

/// Members of one field that are looked at; more are refused.
const MEMBERS_MAX: usize = 16;

/// The digests that a body must have.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Announced {
    /// SHA-256, as often as it was sent.
    pub(super) sha256: Vec<Digest>,
    /// SHA-512.
    pub(super) sha512: Option<[u8; 64]>,
}

impl Announced {
    /// Reads the fields of a head.
    pub(super) fn of(head: &RequestHead) -> Result<Self, Problem> {
        let mut announced = Self::default();
        if let Some(hex) = head.header("x-checksum-sha256") {
            let digest = hex.trim().parse().map_err(|_| {
                Problem::new(
                    400,
                    "X-Checksum-Sha256 is not a digest: 64 hexadecimal digits are needed",
                )
            })?;
            announced.sha256.push(digest);
        }
        for (field, name) in [("repr-digest", "Repr-Digest"), ("content-digest", "Content-Digest")]
        {
            if let Some(value) = head.header(field) {
                announced.add(&value).map_err(|what| {
                    let example = "write it as sha-256=:BASE64:";
                    Problem::new(400, format!("{name} {what}: {example} (RFC 9530)"))
                })?;
            }
        }
        Ok(announced)
    }

    /// What is known before the body is.
    pub(super) fn checksum(&self) -> Option<Checksum> {
        match (self.sha512, self.sha256.first()) {
            (Some(sha512), _) => Some(Checksum::Sha512(sha512)),
            (None, first) => first.map(|digest| Checksum::Sha256(*digest)),
        }
    }

    /// Reads a dictionary of byte sequences (RFC 8941): `sha-256=:…:, sha-512=:…:`.
    fn add(&mut self, value: &str) -> Result<(), String> {
        for (at, member) in value.split(',').map(str::trim).enumerate() {
            if at == MEMBERS_MAX {
                return Err(format!("has more than {MEMBERS_MAX} members"));
            }
            let (algorithm, sequence) =
                member.split_once('=').ok_or_else(|| "has a member without a value".to_owned())?;
            let bytes = || {
                let text = sequence.strip_prefix(':')?.strip_suffix(':')?;
                BASE64.decode(text).ok()
            };
            let wrong = || format!("has a {algorithm} that cannot be read");
            match algorithm {
                "sha-256" => {
                    let bytes =
                        bytes().and_then(|bytes| bytes.try_into().ok()).ok_or_else(wrong)?;
                    self.sha256.push(Digest(bytes));
                }
                "sha-512" => {
                    let bytes =
                        bytes().and_then(|bytes| bytes.try_into().ok()).ok_or_else(wrong)?;
                    if self.sha512.replace(bytes).is_some_and(|other| other != bytes) {
                        return Err("contradicts another digest".to_owned());
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use sha2::{Digest as _, Sha512};

    use super::*;

    fn announced(headers: &[(&str, &str)]) -> Result<Announced, u16> {
        let head = RequestHead {
            method: "PUT".to_owned(),
            target: "/".to_owned(),
            is_http_11: true,
            headers: headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect(),
            client: None,
        };
        Announced::of(&head).map_err(|problem| problem.status)
    }

    const HEX: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    const SHA_256: &str = "sha-256=:ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=:";

    #[test]
    fn every_way_to_announce_a_digest_is_read() {
        let abc = Digest::of(b"abc");
        let sha512: [u8; 64] = Sha512::digest(b"abc").into();
        let text512 = format!("sha-512=:{}:", BASE64.encode(sha512));
        let check = |headers: &[(&str, &str)], sha256: &[Digest], has_512: bool| {
            let found = announced(headers).unwrap();
            assert_eq!((found.sha256.as_slice(), found.sha512.is_some()), (sha256, has_512));
        };
        check(&[], &[], false);
        check(&[("x-checksum-sha256", HEX)], &[abc], false);
        check(&[("repr-digest", SHA_256)], &[abc], false);
        check(&[("content-digest", SHA_256), ("x-checksum-sha256", HEX)], &[abc, abc], false);
        check(&[("repr-digest", &format!("md5=:AAAA:, {SHA_256}, {text512}"))], &[abc], true);
        check(&[("repr-digest", "unixsum=:AA==:")], &[], false);
        assert_eq!(
            announced(&[("repr-digest", SHA_256)]).unwrap().checksum(),
            Some(Checksum::Sha256(abc))
        );
    }

    #[test]
    fn a_digest_that_cannot_be_read_is_refused() {
        for (name, value) in [
            ("x-checksum-sha256", "abc"),
            ("x-checksum-sha256", ""),
            ("repr-digest", "sha-256"),
            ("repr-digest", "sha-256=abc"),
            ("repr-digest", "sha-256=:abc:"),
            ("repr-digest", "sha-256=:!!!!:"),
            ("content-digest", "sha-512=:ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=:"),
            ("content-digest", &"a=1,".repeat(MEMBERS_MAX + 1)),
        ] {
            assert_eq!(announced(&[(name, value)]), Err(400), "{name}: {value}");
        }
    }
}
