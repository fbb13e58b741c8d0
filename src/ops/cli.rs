//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use super::upkeep::Form;
use super::warm::Warm;
use crate::artifact::RemoteName;
use crate::cache::upkeep::{Repair, Writes};
use crate::config::tokens::{self, Scope};

/// A caching proxy for artifacts.
#[derive(Debug, Parser)]
#[command(
    name = "artifactapi",
    version,
    about,
    disable_help_subcommand = true,
    after_help = "Without a command it serves. Everything is set by environment variables: CONFIG_PATH names the file \
                  that lists the remotes (remotes.yaml), DATA_DIR the folder of the cache (data); README lists them all."
)]
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
    /// Rebuild the index from what the stored blobs say about themselves. Exit 0 if everything
    /// could be judged, and every blob says what it is.
    ///
    /// Stop the server first where DATA_DIR is its own.
    Reindex {
        /// Write nothing; say what would be done.
        #[arg(long)]
        dry_run: bool,
        /// One JSON object a line, the summary last.
        #[arg(long)]
        json: bool,
    },
    /// Hash every stored artifact. Exit 0 if nothing is wrong, or was wrong and has been dropped.
    ///
    /// Stop the server first where DATA_DIR is its own.
    Verify {
        /// Of this remote only.
        #[arg(long)]
        remote: Option<RemoteName>,
        /// Drop what is wrong, so that the next request fetches it anew; of a local repository
        /// only if --remote names it.
        #[arg(long)]
        repair: bool,
        /// One JSON object a line, the summary last.
        #[arg(long)]
        json: bool,
    },
    /// Have a running server cache many artifacts: exit 0 if all went well, 1 if not.
    ///
    /// ARTIFACTAPI_TOKEN holds the token for a server whose ANONYMOUS_READ is false.
    Warm(Warm),
    /// Ask the server of this machine (LISTEN_ADDR) for its health: exit 0 if it answers, 1 if not.
    Health,
    /// Make a token: print it once, to standard error, and to standard output the line for
    /// TOKENS_FILE that lets it in (`artifactapi token NAME >> tokens`).
    Token {
        /// Whose it is; it stands in the file and in the log.
        #[arg(value_parser = token_name)]
        name: String,
        /// What it may do: read, write or admin; several with commas, or given several times.
        #[arg(long = "scope", default_value = "read", value_delimiter = ',', value_parser = scope)]
        scopes: Vec<Scope>,
        /// A remote that it is restricted to; may be given several times. None is all.
        #[arg(long = "remote")]
        remotes: Vec<RemoteName>,
    },
}

/// `--dry-run`, as the upkeep takes it.
pub fn writes(dry_run: bool) -> Writes {
    if dry_run { Writes::Nothing } else { Writes::Rows }
}

/// `--repair`, as the upkeep takes it.
pub fn repair(repair: bool) -> Repair {
    if repair { Repair::Drop } else { Repair::Nothing }
}

/// `--json`, as the report takes it.
pub fn form(json: bool) -> Form {
    if json { Form::Json } else { Form::Text }
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
        assert_eq!(
            parse(&["artifactapi", "reindex", "--dry-run"]).unwrap(),
            Some(Command::Reindex { dry_run: true, json: false })
        );
        let remote = Some("alpine".parse().unwrap());
        assert_eq!(
            parse(&["artifactapi", "verify", "--remote", "alpine", "--repair", "--json"]).unwrap(),
            Some(Command::Verify { remote, repair: true, json: true })
        );
        assert!(parse(&["artifactapi", "verify", "--remote", "../x"]).is_err());
        assert_eq!(parse(&["artifactapi", "health"]).unwrap(), Some(Command::Health));
        let token = |scopes: &[Scope], remotes: &[&str]| Command::Token {
            name: "ci".to_owned(),
            scopes: scopes.to_vec(),
            remotes: remotes.iter().map(|remote| remote.parse().unwrap()).collect(),
        };
        assert_eq!(
            parse(&["artifactapi", "token", "ci"]).unwrap(),
            Some(token(&[Scope::Read], &[]))
        );
        for scopes in ["--scope read --scope write", "--scope read,write"] {
            let words = format!("artifactapi token ci {scopes} --remote tools");
            assert_eq!(
                parse(&words.split(' ').collect::<Vec<_>>()).unwrap(),
                Some(token(&[Scope::Read, Scope::Write], &["tools"]))
            );
        }
        for wrong in ["token", "token a/b", "token ci --scope all", "token ci --remote a/b"] {
            let words: Vec<&str> = "artifactapi".split(' ').chain(wrong.split(' ')).collect();
            assert!(parse(&words).is_err(), "{wrong}");
        }
        assert!(parse(&["artifactapi", "chekc"]).is_err());
        let warm = parse(&["artifactapi", "warm", "tools", "--pattern", "x", "--limit", "3"]);
        assert!(matches!(warm.unwrap(), Some(Command::Warm(warm)) if warm.limit == Some(3)));
        let both = ["artifactapi", "warm", "tools", "--pattern", "x", "--paths", "y"];
        assert!(parse(&both).is_err());
        assert!(parse(&["artifactapi", "warm"]).is_err());
    }

    #[test]
    fn the_help_says_what_is_set_where() {
        let help = |words: &[&str]| Cli::try_parse_from(words).unwrap_err().to_string();
        let check = |words: &str, told: &str| {
            let words = format!("artifactapi {words}");
            let text = help(&words.trim().split(' ').collect::<Vec<_>>());
            // Wherever the lines are broken.
            let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(text.contains(told), "{text}");
        };
        check("--help", "Without a command it serves.");
        check("--help", "CONFIG_PATH names");
        check("--help", "DATA_DIR the folder");
        check("warm --help", crate::ops::warm::TOKEN_VARIABLE);
        check("verify --help", "Stop the server first");
        check("reindex --help", "Stop the server first");
    }
}
