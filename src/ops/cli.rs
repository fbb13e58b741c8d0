//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

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
    /// Ask the server of this machine (LISTEN_ADDR) for its health: exit 0 if it answers, 1 if not.
    Health,
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
        assert_eq!(parse(&["artifactapi", "health"]).unwrap(), Some(Command::Health));
        assert!(parse(&["artifactapi", "chekc"]).is_err());
    }
}
