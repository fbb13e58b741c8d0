//! What each fuzz target does with its input.
//!
//! The parsers' files are compiled right here, without the rest of the program and its
//! hundred and more dependencies, so that a build with instrumentation takes seconds. The
//! modules stand as they do in the program, because the files name each other; a parser that
//! begins to need more than its neighbours fails this build, and should.
//!
//! Not here: the sockets around the parsers, which the hostile suite attacks.

#![forbid(unsafe_code)]
// Each file has more than its target asks for.
#![allow(dead_code, unused_imports)]

#[path = "../../../src/artifact.rs"]
pub mod artifact;

/// As in the program, as far as the targets need it.
#[path = "../../../src/front"]
pub mod front {
    pub mod range;

    /// As in the program, as far as the targets need it.
    pub mod wire {
        pub use bounds::Bounds;
        pub use request_head::RequestHead;

        mod bounds;
        mod request_head;

        /// As in the program, as far as the targets need it.
        pub mod guarded {
            mod chunked;
            mod date;
            mod head;
            mod refusal;

            // The targets stand beside what they call, which is private to the listener.
            #[path = "../../../../tests/fuzz/src/chunked.rs"]
            pub mod fuzz_chunked;
            #[path = "../../../../tests/fuzz/src/head.rs"]
            pub mod fuzz_head;
        }
    }
}

mod path;
mod ranges;

pub use front::wire::guarded::fuzz_chunked::chunked;
pub use front::wire::guarded::fuzz_head::head;
pub use path::path;
pub use ranges::range;

/// Splits a choice off an input: its first byte, 0 where there is none.
fn choice(input: &[u8]) -> (usize, &[u8]) {
    match input {
        [first, rest @ ..] => (usize::from(*first), rest),
        [] => (0, input),
    }
}
