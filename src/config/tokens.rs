//! The tokens file: who may do what, one token a line.
//!
//! ```text
//! # name  SHA-256 of the token                                             scopes      remotes
//! ci      9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08 read,write  tools,alpine
//! ```
//!
//! The file holds digests only: who reads it learns no token. A token without remotes is good
//! for all of them and for the pages of the whole program; one with remotes opens these and
//! nothing else. How a token reaches the program is the front's affair.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::Read;
use std::path::Path;

use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use super::problem::{ConfigErrors, PROBLEMS_LISTED_MAX, Problem, Report, nearest, quoted};
use super::{Secret, key::bytes_written};
use crate::artifact::{Digest, RemoteName};

/// What a token begins with, so that people and scanners of secrets recognise one.
pub const PREFIX: &str = "artifactapi_";
/// The largest tokens file that is read, in bytes.
pub const FILE_BYTES_MAX: u64 = 1 << 20;
/// Tokens in one file: each is compared with whatever a client presents.
pub const TOKENS_MAX: usize = 1_000;
/// The shortest `ADMIN_TOKEN`, in characters: a person may have made it up.
pub const ADMIN_TOKEN_CHARS_MIN: usize = 16;
/// The name of the token that `ADMIN_TOKEN` holds.
pub const ADMIN_NAME: &str = "ADMIN_TOKEN";

/// What a token is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// GET and HEAD.
    Read,
    /// Uploads and deletes in local repositories, purges of what is cached.
    Write,
    /// Everything.
    Admin,
}

impl Scope {
    /// The words of the file.
    pub const WORDS: &[&str] = &["read", "write", "admin"];
    const ALL: [Self; 3] = [Self::Read, Self::Write, Self::Admin];

    /// The scope as the file writes it.
    pub fn as_str(self) -> &'static str {
        Self::WORDS[self as usize]
    }

    /// The scope of a word.
    pub fn named(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scope| scope.as_str() == word)
    }
}

/// One token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// Whose it is, for the log.
    pub name: String,
    sha256: Digest,
    scopes: BTreeSet<Scope>,
    remotes: Option<BTreeSet<RemoteName>>,
}

impl Token {
    /// A token that may do everything.
    ///
    /// # Errors
    /// A text that is too short to be safe.
    pub fn admin(secret: &Secret) -> Result<Self, ConfigErrors> {
        if secret.reveal().chars().count() < ADMIN_TOKEN_CHARS_MIN {
            let what = format!("is shorter than {ADMIN_TOKEN_CHARS_MIN} characters");
            let fix = "make one with `artifactapi token admin`".to_owned();
            let (key, value) = (ADMIN_NAME.to_owned(), Some("***".to_owned()));
            let report = Report::of(Problem { key, value, what, fix, ..Problem::default() });
            return Err(ConfigErrors { report });
        }
        Ok(Self {
            name: ADMIN_NAME.to_owned(),
            sha256: Digest::of(secret.reveal().as_bytes()),
            scopes: BTreeSet::from([Scope::Admin]),
            remotes: None,
        })
    }

    /// Whether the token has a scope, for whatever remotes.
    pub fn has(&self, scope: Scope) -> bool {
        self.scopes.contains(&scope) || self.scopes.contains(&Scope::Admin)
    }

    /// Whether the token has a scope for a remote, or for the whole program (`None`).
    pub fn opens(&self, scope: Scope, remote: Option<&str>) -> bool {
        self.has(scope)
            && match (&self.remotes, remote) {
                (None, _) => true,
                (Some(_), None) => false,
                (Some(remotes), Some(remote)) => remotes.iter().any(|own| own.as_str() == remote),
            }
    }
}

/// The tokens in force.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tokens {
    list: Vec<Token>,
}

impl Tokens {
    /// Reads a tokens file.
    ///
    /// # Errors
    /// What [`Tokens::parse`] refuses, and a file that can't be read or is larger than
    /// [`FILE_BYTES_MAX`].
    pub fn load(path: &Path) -> Result<Self, ConfigErrors> {
        let name = path.display().to_string();
        let failed = |what: String, fix: &str| {
            let problem =
                Problem { file: name.clone(), what, fix: fix.into(), ..Problem::default() };
            ConfigErrors { report: Report::of(problem) }
        };
        let mut text = String::new();
        File::open(path)
            .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text))
            .map_err(|error| {
            let what = format!("the file cannot be read: {error}");
            failed(what, "name a readable text file in TOKENS_FILE")
        })?;
        if text.len() as u64 > FILE_BYTES_MAX {
            let what = format!("the file is larger than {}", bytes_written(FILE_BYTES_MAX));
            return Err(failed(what, "is this the right file? TOKENS_FILE names it"));
        }
        Self::parse(&text, &name)
    }

    /// Reads the text of a tokens file; `file` stands for it in messages.
    ///
    /// ```
    /// use artifactapi::config::tokens::{Scope, Tokens};
    /// let text = format!("# ours\nci {} read,write tools\n", "ab".repeat(32));
    /// assert!(Tokens::parse(&text, "tokens").is_ok());
    /// let errors = Tokens::parse("ci hunter2 read\n", "tokens").unwrap_err();
    /// assert!(errors.report.to_string().starts_with("tokens:1: ci: "));
    /// assert!(!errors.to_string().contains("hunter2"));
    /// ```
    ///
    /// # Errors
    /// Every line that can't be understood. No message repeats what may be a token.
    pub fn parse(text: &str, file: &str) -> Result<Self, ConfigErrors> {
        let mut tokens = Self::default();
        let mut report = Report::default();
        let mut seen = HashMap::new();
        for (at, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let token = token_of(line).and_then(|token| {
                let name = seen.insert(format!("name {}", token.name), at + 1);
                let digest = seen.insert(format!("digest {}", token.sha256), at + 1);
                match (name, digest) {
                    (None, None) if tokens.list.len() < TOKENS_MAX => Ok(token),
                    (None, None) => Err(Fault {
                        key: token.name,
                        what: format!(
                            "is one token more than the {TOKENS_MAX} that a file may have"
                        ),
                        fix: "remove those that are not used".to_owned(),
                    }),
                    (Some(line), _) => Err(Fault {
                        key: token.name,
                        what: format!("has the name of line {line}"),
                        fix: "give each token a name of its own".to_owned(),
                    }),
                    (None, Some(line)) => Err(Fault {
                        key: token.name,
                        what: format!("is the token of line {line}"),
                        fix: "give each token one line".to_owned(),
                    }),
                }
            });
            match token {
                Ok(token) => tokens.list.push(token),
                Err(_) if report.errors.len() == PROBLEMS_LISTED_MAX => report.errors_unlisted += 1,
                Err(fault) => {
                    let Fault { key, what, fix } = fault.without_token(line);
                    let (file, line) = (file.to_owned(), Some(at + 1));
                    report.errors.push(Problem { file, line, key, what, fix, value: None });
                }
            }
        }
        if report.is_usable() { Ok(tokens) } else { Err(ConfigErrors { report }) }
    }

    /// The same with one more.
    pub fn with(mut self, token: Token) -> Self {
        self.list.push(token);
        self
    }

    /// Whether there are none, so that nobody can be let in.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The remotes that tokens are restricted to, with the tokens' names.
    pub fn restrictions(&self) -> impl Iterator<Item = (&str, &RemoteName)> {
        self.list.iter().flat_map(|token| {
            token.remotes.iter().flatten().map(|remote| (token.name.as_str(), remote))
        })
    }

    /// The token whose digest this is. Takes the same time for every digest: each one is
    /// compared, whichever fits.
    pub fn find(&self, presented: &Digest) -> Option<&Token> {
        let (mut at, mut is_found) = (0_u64, Choice::from(0));
        for (number, token) in self.list.iter().enumerate() {
            let fits = token.sha256.0.ct_eq(&presented.0);
            at.conditional_assign(&(number as u64), fits);
            is_found |= fits;
        }
        bool::from(is_found).then(|| &self.list[at as usize])
    }
}

/// What is wrong with a line.
struct Fault {
    key: String,
    what: String,
    fix: String,
}

impl Fault {
    /// What is said of a line instead where a word of it looks like a token: whoever put one
    /// there is told so, and the log does not repeat it.
    fn without_token(self, line: &str) -> Self {
        let is_secret = |word: &str| word.starts_with(PREFIX);
        if !line.split([' ', '\t', ',']).any(is_secret) {
            return self;
        }
        Self {
            key: String::new(),
            what: "the line holds a token itself".to_owned(),
            fix: "put the line there that `artifactapi token` prints to standard output".to_owned(),
        }
    }
}

fn token_of(line: &str) -> Result<Token, Fault> {
    let mut words = line.split_whitespace();
    let mut next = || words.next().unwrap_or_default();
    let (name, sha256, scopes, remotes) = (next(), next(), next(), next());
    if !is_name(name) {
        // Not repeated: whoever mixed up the columns may have put a token there.
        return Err(Fault {
            key: String::new(),
            what: "the first word is not a name for a token".to_owned(),
            fix: NAME_FIX.to_owned(),
        });
    }
    let fault = |what: String, fix: &str| Fault { key: name.to_owned(), what, fix: fix.to_owned() };
    let sha256: Digest = sha256.parse().map_err(|_| {
        let fix = "write its 64 hexadecimal digits, as `artifactapi token` prints them";
        fault("the second word is not the SHA-256 of a token".to_owned(), fix)
    })?;
    let scopes = listed(scopes)
        .map(|word| {
            Scope::named(word).ok_or_else(|| {
                let fix = match nearest(word, Scope::WORDS.iter().copied()) {
                    Some(near) => format!("did you mean {near}?"),
                    None => format!("write {}", Scope::WORDS.join(" or ")),
                };
                fault(format!("{} is not a scope", quoted(word)), &fix)
            })
        })
        .collect::<Result<BTreeSet<_>, _>>()?;
    if scopes.is_empty() {
        let fix = "write read, write or admin behind the digest, with commas between several";
        return Err(fault("has no scope".to_owned(), fix));
    }
    let remotes = listed(remotes)
        .map(|word| {
            word.parse::<RemoteName>().map_err(|_| {
                let fix = "write names of remotes.yaml with commas between them, without blanks";
                fault(format!("{} is not the name of a remote", quoted(word)), fix)
            })
        })
        .collect::<Result<BTreeSet<_>, _>>()?;
    if words.next().is_some() {
        let fix = "write lists with commas and without blanks";
        return Err(fault("has more than four words".to_owned(), fix));
    }
    let remotes = (!remotes.is_empty()).then_some(remotes);
    Ok(Token { name: name.to_owned(), sha256, scopes, remotes })
}

fn listed(words: &str) -> impl Iterator<Item = &str> {
    words.split(',').filter(|word| !word.is_empty())
}

/// What to do about a name that [`is_name`] refuses.
pub const NAME_FIX: &str =
    "begin with a name of 1 to 64 letters, digits, '.', '_' or '-', a letter or digit first";

/// Whether a text can name a token: by the rule of remotes' names.
pub fn is_name(text: &str) -> bool {
    text.parse::<RemoteName>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(name: &str, secret: &str, rest: &str) -> String {
        format!("{name} {} {rest}\n", Digest::of(secret.as_bytes()))
    }

    fn found<'a>(tokens: &'a Tokens, secret: &str) -> Option<&'a str> {
        tokens.find(&Digest::of(secret.as_bytes())).map(|token| token.name.as_str())
    }

    #[test]
    fn a_token_is_found_by_its_digest_and_no_other_is() {
        let text = line("one", "a", "read") + "\n  # comment\n" + &line("two", "b", "admin");
        let tokens = Tokens::parse(&text, "tokens").unwrap();
        assert_eq!(found(&tokens, "a"), Some("one"));
        assert_eq!(found(&tokens, "b"), Some("two"));
        assert_eq!((found(&tokens, "c"), found(&tokens, "")), (None, None));
        assert_eq!(found(&Tokens::default(), ""), None);
    }

    #[test]
    fn scopes_and_remotes_bound_what_a_token_opens() {
        let check = |rest: &str, scope: Scope, remote: Option<&str>, opens: bool| {
            let tokens = Tokens::parse(&line("t", "a", rest), "tokens").unwrap();
            assert_eq!(tokens.list[0].opens(scope, remote), opens, "{rest} {scope:?} {remote:?}");
        };
        check("read", Scope::Read, Some("r"), true);
        check("read", Scope::Read, None, true);
        check("read", Scope::Write, Some("r"), false);
        check("write", Scope::Read, Some("r"), false);
        check("read,write", Scope::Write, Some("r"), true);
        check("read,write", Scope::Admin, Some("r"), false);
        check("admin", Scope::Read, Some("r"), true);
        check("admin", Scope::Write, None, true);
        check("write r,s", Scope::Write, Some("s"), true);
        check("write r,s", Scope::Write, Some("t"), false);
        check("admin r", Scope::Read, None, false);
        check("admin r", Scope::Admin, Some("s"), false);
    }

    #[test]
    fn every_wrong_line_is_named_and_no_secret_repeated() {
        let digest = Digest::of(b"a").to_string();
        let text = format!(
            "hunter2!! {digest} read\n\nci hunter2 read\nci {digest} wriet\nci {digest}\n\
             ci {digest} read a/b\nci {digest} read a b\nok {digest} read\nok {} read\nother {digest} read\n",
            Digest::of(b"b")
        );
        let report = Tokens::parse(&text, "tokens").unwrap_err().report.to_string();
        let expected = [
            "tokens:1: the first word is not a name for a token",
            "tokens:3: ci: the second word is not the SHA-256 of a token",
            "tokens:4: ci: \"wriet\" is not a scope; did you mean write?",
            "tokens:5: ci: has no scope",
            "tokens:6: ci: \"a/b\" is not the name of a remote",
            "tokens:7: ci: has more than four words",
            "tokens:9: ok: has the name of line 8",
            "tokens:10: other: is the token of line 8",
        ];
        assert_eq!(report.lines().count(), expected.len(), "{report}");
        for (line, expected) in report.lines().zip(expected) {
            assert!(line.starts_with(expected), "{line:?} instead of {expected:?}");
        }
        assert!(!report.contains("hunter2"), "{report}");
    }

    #[test]
    fn a_token_put_into_the_file_is_never_repeated() {
        let (secret, digest) = (format!("{PREFIX}hunter2"), Digest::of(b"a"));
        let lines = [
            secret.clone(),
            format!("ci {secret} read"),
            format!("ci {digest} {secret}"),
            format!("ci {digest} read,\t{secret}/"),
            format!("{secret} {digest} read\n{secret} {digest} read"),
        ];
        for text in lines {
            let report = Tokens::parse(&text, "tokens").unwrap_err().report.to_string();
            assert!(report.contains(": the line holds a token itself; put the line"), "{report}");
            assert!(!report.contains("hunter2"), "{report}");
        }
        // A name may begin like a token.
        assert!(Tokens::parse(&format!("{PREFIX}ci {digest} read"), "tokens").is_ok());
    }

    #[test]
    fn a_file_may_not_have_more_tokens_than_are_compared() {
        let many: String =
            (0..=TOKENS_MAX).map(|n| line(&format!("t{n}"), &n.to_string(), "read")).collect();
        let report = Tokens::parse(&many, "tokens").unwrap_err().report;
        assert_eq!(report.errors.len(), 1, "{report}");
    }

    #[test]
    fn a_short_admin_token_is_refused_without_being_shown() {
        let error = Token::admin(&Secret::new("hunter2")).unwrap_err().to_string();
        assert!(error.contains("ADMIN_TOKEN: *** is shorter") && !error.contains("hunter2"));
        let token = Token::admin(&Secret::new("x".repeat(ADMIN_TOKEN_CHARS_MIN))).unwrap();
        assert!(token.opens(Scope::Admin, None));
    }
}
