//! remotes.yaml for a test: a few remotes with the keys that matter to it.

use super::upstream::Upstream;

/// One remote, written as YAML.
#[derive(Debug, Clone)]
pub(crate) struct Remote {
    /// `None` for a local repository.
    base_url: Option<String>,
    package: &'static str,
    include: Vec<String>,
    file_ttl: u64,
    index_ttl: u64,
    further: Vec<String>,
}

impl Remote {
    /// A remote whose base_url is an upstream, with everything allowed and nothing ever
    /// lapsing; package is `generic`.
    pub(crate) fn at(upstream: &Upstream) -> Self {
        Self::at_url(&upstream.url())
    }

    /// The same for any URL.
    pub(crate) fn at_url(base_url: &str) -> Self {
        Self {
            base_url: Some(base_url.to_owned()),
            package: "generic",
            include: vec!["^.*$".to_owned()],
            file_ttl: 0,
            index_ttl: 3600,
            further: Vec::new(),
        }
    }

    /// A local repository that takes every path.
    pub(crate) fn local() -> Self {
        Self { base_url: None, ..Self::at_url("") }
    }

    /// Its package format.
    pub(crate) fn package(self, package: &'static str) -> Self {
        Self { package, ..self }
    }

    /// Allows these paths only, given as regular expressions.
    pub(crate) fn include(self, patterns: &[&str]) -> Self {
        Self { include: patterns.iter().map(|&pattern| pattern.to_owned()).collect(), ..self }
    }

    /// `file_ttl` in seconds.
    pub(crate) fn file_ttl(self, seconds: u64) -> Self {
        Self { file_ttl: seconds, ..self }
    }

    /// `index_ttl` in seconds.
    pub(crate) fn index_ttl(self, seconds: u64) -> Self {
        Self { index_ttl: seconds, ..self }
    }

    /// Every path may change, and what is stored is revalidated before each use.
    pub(crate) fn always_revalidated(self) -> Self {
        self.index_ttl(0).with("mutable_patterns: ['^.*$']")
    }

    /// Gives up on the upstream quickly, each bound in seconds as YAML takes them.
    pub(crate) fn impatient(self, seconds: &str) -> Self {
        self.with(&format!(
            "timeouts: {{connect: {seconds}, first_byte: {seconds}, idle: {seconds}}}"
        ))
    }

    /// A further line of YAML below the remote's name.
    pub(crate) fn with(mut self, line: &str) -> Self {
        self.further.push(line.to_owned());
        self
    }

    fn yaml(&self, name: &str) -> String {
        let patterns: Vec<String> =
            self.include.iter().map(|p| format!("'{}'", p.replace('\'', "''"))).collect();
        let source = match &self.base_url {
            Some(base_url) => format!("base_url: \"{base_url}\"\n    type: \"remote\""),
            None => "type: \"local\"".to_owned(),
        };
        let mut yaml = format!(
            "  {name}:\n    {source}\n    package: \"{}\"\n    \
             description: \"{name} of a test\"\n    include_patterns: [{}]\n    cache:\n      \
             file_ttl: {}\n      index_ttl: {}\n",
            self.package,
            patterns.join(", "),
            self.file_ttl,
            self.index_ttl,
        );
        for line in &self.further {
            yaml += &format!("    {line}\n");
        }
        yaml
    }
}

/// The whole file.
pub(crate) fn remotes_yaml(remotes: &[(&str, Remote)]) -> String {
    let parts: Vec<String> = remotes.iter().map(|(name, remote)| remote.yaml(name)).collect();
    format!("remotes:\n{}", parts.concat())
}
