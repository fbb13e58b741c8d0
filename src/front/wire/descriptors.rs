//! The descriptors that this process may have, and how many connections they are enough for.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the limit of open files as far as this process may. What cannot be raised is told
/// once, and served with.
pub fn raise_descriptor_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return;
    }
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!(%error, ?current, ?maximum, "cannot raise the limit of open files");
    }
}

/// How many of `wanted` connections the descriptors are enough for. Each may have a file open
/// beside its socket, for as long as its client is slow; a third is left for upstream, the
/// index and files on their way in.
pub(super) fn connections_max(wanted: usize) -> usize {
    let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let allowed = usize::try_from(descriptors / 3).unwrap_or(usize::MAX);
    if allowed < wanted {
        tracing::warn!(
            connections_max = wanted,
            allowed,
            "the limit of open files allows fewer connections than CONNECTIONS_MAX: raise it to three times that (ulimit -n, or LimitNOFILE= of a systemd unit), or lower CONNECTIONS_MAX"
        );
    }
    allowed.min(wanted)
}
