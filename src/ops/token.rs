//! `artifactapi token`: makes a token and the line that lets it in.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustix::rand::{GetRandomFlags, getrandom};

use crate::artifact::{Digest, RemoteName};
use crate::config::tokens::{PREFIX, Scope};

/// Random bytes of a token: nobody guesses 256 bits.
const RANDOM_BYTES: usize = 32;

/// A new token and its line in the tokens file.
#[derive(Clone, PartialEq, Eq)]
pub struct Made {
    /// The token, for who is to use it.
    pub token: String,
    /// The line for the tokens file; no token can be had from it.
    pub line: String,
}

impl std::fmt::Debug for Made {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Made").field("token", &"***").field("line", &self.line).finish()
    }
}

/// Makes a token; without remotes it is good for all of them.
///
/// # Errors
/// Where the system gives no random bytes.
pub fn make(name: &str, scopes: &[Scope], remotes: &[RemoteName]) -> std::io::Result<Made> {
    let mut random = [0; RANDOM_BYTES];
    let given = getrandom(&mut random, GetRandomFlags::empty())?;
    if given != RANDOM_BYTES {
        // Not for so few bytes, says getrandom(2); but a short token would be a weak one.
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    let token = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(random));
    let scopes: Vec<&str> = scopes.iter().map(|scope| scope.as_str()).collect();
    let remotes: Vec<&str> = remotes.iter().map(RemoteName::as_str).collect();
    let digest = Digest::of(token.as_bytes());
    let line = format!("{name} {digest} {} {}", scopes.join(","), remotes.join(","));
    Ok(Made { token, line: line.trim_end().to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tokens::Tokens;

    #[test]
    fn the_line_lets_the_token_in_and_no_two_are_alike() {
        let remotes = ["tools".parse().unwrap()];
        let made = make("ci", &[Scope::Read, Scope::Write], &remotes).unwrap();
        let tokens = Tokens::parse(&made.line, "tokens").unwrap();
        let token = tokens.find(&Digest::of(made.token.as_bytes())).unwrap();
        assert_eq!(token.name, "ci");
        assert!(token.opens(Scope::Write, Some("tools")) && !token.opens(Scope::Read, None));
        assert!(!made.line.contains(&made.token) && made.token.len() > 50);
        assert!(!format!("{made:?}").contains(&made.token));
        assert_ne!(make("ci", &[Scope::Read], &[]).unwrap(), made);
        let whole = make("ops", &[Scope::Admin], &[]).unwrap();
        assert!(Tokens::parse(&whole.line, "tokens").is_ok() && !whole.line.ends_with(' '));
    }
}
