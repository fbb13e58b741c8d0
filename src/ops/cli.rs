//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::artifact::RemoteName;
use crate::config::tokens::{self, Scope};

/// A caching proxy for artifacts.
#[derive(Debug, Parser)]
#[command(name = "artifactapi", version, about, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do; without a word: serve.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What the program can do.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Serve; everything is set by environment variables and remotes.yaml.
    Serve,
    /// Judge a remotes.yaml without using it: exit 0 if it can be used, 1 if not.
    Check {
        /// The file; without one, CONFIG_PATH or remotes.yaml.
        file: Option<PathBuf>,
    },
    /// Make a token: print it once, and the line for TOKENS_FILE that lets it in.
    Token {
        /// Whose it is; it stands in the file and in the log.
        #[arg(value_parser = token_name)]
        name: String,
        /// What it may do: read, write or admin; may be given several times.
        #[arg(long = "scope", default_value = "read", value_parser = scope)]
        scopes: Vec<Scope>,
        /// A remote that it is restricted to; may be given several times. None is all.
        #[arg(long = "remote")]
        remotes: Vec<RemoteName>,
    },
}

fn token_name(text: &str) -> Result<String, &'static str> {
    if tokens::is_name(text) { Ok(text.to_owned()) } else { Err(tokens::NAME_FIX) }
}

fn scope(text: &str) -> Result<Scope, String> {
    Scope::named(text).ok_or_else(|| format!("write {}", Scope::WORDS.join(" or ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_understood() {
        let parse = |words: &[&str]| Cli::try_parse_from(words).map(|cli| cli.command);
        assert_eq!(parse(&["artifactapi"]).unwrap(), None);
        assert_eq!(parse(&["artifactapi", "serve"]).unwrap(), Some(Command::Serve));
        let file = Some(PathBuf::from("x.yaml"));
        assert_eq!(
            parse(&["artifactapi", "check", "x.yaml"]).unwrap(),
            Some(Command::Check { file })
        );
        let token = |scopes: &[Scope], remotes: &[&str]| Command::Token {
            name: "ci".to_owned(),
            scopes: scopes.to_vec(),
            remotes: remotes.iter().map(|remote| remote.parse().unwrap()).collect(),
        };
        assert_eq!(
            parse(&["artifactapi", "token", "ci"]).unwrap(),
            Some(token(&[Scope::Read], &[]))
        );
        let words = "artifactapi token ci --scope read --scope write --remote tools";
        assert_eq!(
            parse(&words.split(' ').collect::<Vec<_>>()).unwrap(),
            Some(token(&[Scope::Read, Scope::Write], &["tools"]))
        );
        for wrong in ["token", "token a/b", "token ci --scope all", "token ci --remote a/b"] {
            let words: Vec<&str> = "artifactapi".split(' ').chain(wrong.split(' ')).collect();
            assert!(parse(&words).is_err(), "{wrong}");
        }
        assert!(parse(&["artifactapi", "chekc"]).is_err());
    }
}
