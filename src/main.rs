//! The `artifactapi` command.

fn main() {}
