//! Brings together a connection that is being parked and the call that it is parked for, which
//! may come at any moment: before there is a token to name the connection by, too.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::table::Token;

/// A call to come.
#[derive(Debug, Default)]
pub(super) struct Call {
    // Guards who was first; nothing else is taken while it is held.
    state: Mutex<State>,
}

#[derive(Debug, Default, Clone, Copy)]
enum State {
    #[default]
    Awaited,
    Came,
    Parked(Token),
}

impl Call {
    /// It has come: gives the connection that is parked for it.
    pub(super) fn came(&self) -> Option<Token> {
        match std::mem::replace(&mut *self.lock(), State::Came) {
            State::Parked(token) => Some(token),
            State::Awaited | State::Came => None,
        }
    }

    /// The connection is parked; says whether the call came before, so that nobody else sees to
    /// the connection.
    pub(super) fn came_before(&self, token: Token) -> bool {
        let mut state = self.lock();
        let came = matches!(*state, State::Came);
        *state = State::Parked(token);
        came
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_second_sees_to_the_connection() {
        let token = Token::from_bits(7);
        let early = Call::default();
        assert_eq!(early.came(), None);
        assert!(early.came_before(token));
        let late = Call::default();
        assert!(!late.came_before(token));
        assert_eq!(late.came(), Some(token));
        assert_eq!(late.came(), None);
    }
}
