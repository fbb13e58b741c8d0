//! Threads of a pool that wait for what other threads do.
//!
//! Whoever counts threads wants to know which of them only wait: another can run meanwhile. That is
//! of the thread, not of the call, so it stands beside it: a pool says with [`on_this_thread`] that
//! it counts, and [`wait`] is put around what blocks.
//!
//! Whoever would wait for longer than is worth a thread has itself called instead: [`Awaited`].

use std::any::Any;
use std::cell::RefCell;
use std::rc::Rc;

/// Whom it matters that a thread waits.
pub trait Waits {
    /// It begins to wait.
    fn begins(&self);
    /// It has waited.
    fn has_ended(&self);
}

/// Called once what was waited for may have come: on the thread that brings it, which must not
/// be held up. To be called early is no harm; whoever is called looks whether it has come.
pub type Wake = Box<dyn FnOnce() + Send>;

/// That somebody is to be called. Nobody is any more once this is dropped, but for a call that is
/// on its way.
pub type Registration = Box<dyn Any + Send>;

/// Something that will come, and is not worth a thread until then.
pub trait Awaited: Send {
    /// Has `wake` called when it has come; `None`, and no call, where it is there already.
    fn call(&self, wake: Wake) -> Option<Registration>;
}

thread_local! {
    static KNOWN: RefCell<Vec<Rc<dyn Waits>>> = const { RefCell::new(Vec::new()) };
}

/// Lets this thread's waits be known to `waits` until the guard is dropped.
pub fn on_this_thread(waits: Rc<dyn Waits>) -> Known {
    KNOWN.with_borrow_mut(|known| known.push(waits));
    Known(())
}

/// See [`on_this_thread`]; dropped in the order opposite to that of their making.
#[derive(Debug)]
pub struct Known(());

impl Drop for Known {
    fn drop(&mut self) {
        KNOWN.with_borrow_mut(|known| drop(known.pop()));
    }
}

/// Runs what may block for long.
pub fn wait<T>(block: impl FnOnce() -> T) -> T {
    tell(|waits| waits.begins());
    let _waiting = Waiting;
    block()
}

/// A wait that goes on until this is dropped, by a panic too.
struct Waiting;

impl Drop for Waiting {
    fn drop(&mut self) {
        tell(|waits| waits.has_ended());
    }
}

fn tell(what: fn(&dyn Waits)) {
    KNOWN.with_borrow(|known| known.iter().for_each(|waits| what(&**waits)));
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    #[derive(Default)]
    struct Counted {
        waiting: Cell<i32>,
    }

    impl Waits for Counted {
        fn begins(&self) {
            self.waiting.set(self.waiting.get() + 1);
        }

        fn has_ended(&self) {
            self.waiting.set(self.waiting.get() - 1);
        }
    }

    #[test]
    fn waits_are_known_to_all_who_asked_and_only_as_long() {
        let (outer, inner) = (Rc::new(Counted::default()), Rc::new(Counted::default()));
        let _outer = on_this_thread(Rc::clone(&outer) as _);
        let inner_known = on_this_thread(Rc::clone(&inner) as _);
        assert_eq!(wait(|| (outer.waiting.get(), inner.waiting.get())), (1, 1));
        drop(inner_known);
        assert_eq!(wait(|| (outer.waiting.get(), inner.waiting.get())), (1, 0));
        assert_eq!(outer.waiting.get(), 0);
    }

    #[test]
    fn a_wait_that_panics_has_ended() {
        let counted = Rc::new(Counted::default());
        let _known = on_this_thread(Rc::clone(&counted) as _);
        let block = AssertUnwindSafe(|| wait(|| panic!("on purpose")));
        assert!(catch_unwind(block).is_err());
        assert_eq!(counted.waiting.get(), 0);
    }
}
