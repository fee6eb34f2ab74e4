//! Two ways to end work from outside. A computation on many threads reads a flag, between matrices and between the blocks of a product. A
//! walk over rows or parts of a tree, which stays on the calling thread, calls a listener.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::stop::Stopped;

/// A listener, and the units of work before it is called again.
type Listening = (Option<fn()>, usize);

thread_local! {
    /// The flag of the computation that this thread is working on.
    static CURRENT: RefCell<Watch> = const { RefCell::new(Watch(None)) };

    /// The listener of the walk that this thread is on.
    static LISTENER: Cell<Listening> = const { Cell::new((None, UNITS)) };
}

/// The units of work between two calls of a listener. A unit is a row, a part of a tree or of a type, or a number, so that these are at most
/// some milliseconds.
const UNITS: usize = 1 << 12;

/// A flag that ends the computation started with [`Interrupt::run`].
#[derive(Debug, Clone, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Asks the computation to end; any thread may ask. The computation unwinds with [`Stopped::Interrupted`] when it next reads the flag.
    pub fn raise(&self) {
        self.0.store(true, Relaxed);
    }

    /// Runs `work`, which this flag can end.
    pub fn run<R>(&self, work: impl FnOnce() -> R) -> R {
        Watch(Some(self.clone())).run(work)
    }
}

/// Runs `work`, which no flag can end. That matters because a thread of the pool that waits in one call may take up the work of another
/// call, and the flag of the first call must not end the second.
pub fn without<R>(work: impl FnOnce() -> R) -> R {
    Watch(None).run(work)
}

/// The flag of a computation, if it has one, as a value that is handed to every thread that shares the computation.
#[derive(Debug, Clone)]
pub(crate) struct Watch(Option<Interrupt>);

impl Watch {
    /// Unwinds if the flag has been raised.
    pub fn check(&self) {
        if self.0.as_ref().is_some_and(|interrupt| interrupt.0.load(Relaxed)) {
            Stopped::Interrupted.unwind();
        }
    }

    /// Runs `work` with this flag as the one that [`check`] reads.
    pub fn run<R>(&self, work: impl FnOnce() -> R) -> R {
        struct Restore(Watch);
        impl Drop for Restore {
            fn drop(&mut self) {
                CURRENT.replace(std::mem::replace(&mut self.0, Watch(None)));
            }
        }
        let _before = Restore(CURRENT.replace(self.clone()));
        self.check();
        work()
    }
}

/// The flag of the computation that this thread is working on.
pub(crate) fn current() -> Watch {
    CURRENT.with_borrow(Watch::clone)
}

/// Unwinds if the flag of the computation that this thread is working on has been raised.
#[inline(never)]
pub(crate) fn check() {
    CURRENT.with_borrow(Watch::check);
}

/// Runs `work` on this thread. Walks in it call `listener` every few milliseconds, which may end them by unwinding.
pub fn heard<R>(listener: fn(), work: impl FnOnce() -> R) -> R {
    struct Restore(Listening);
    impl Drop for Restore {
        fn drop(&mut self) {
            LISTENER.set(self.0);
        }
    }
    let _before = Restore(LISTENER.replace((Some(listener), UNITS)));
    work()
}

/// Counts units of work of a walk, and calls the listener if it is time.
#[inline]
pub fn count(units: usize) {
    let (listener, left) = LISTENER.get();
    LISTENER.set((listener, left.checked_sub(units).unwrap_or(UNITS)));
    if left < units
        && let Some(listener) = listener
    {
        listener();
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{catch_unwind, resume_unwind};

    use super::*;

    #[test]
    fn a_listener_is_called_in_its_own_work_alone_and_may_end_it() {
        thread_local!(static CALLS: Cell<usize> = const { Cell::new(0) });
        let walk = || (0..10 * UNITS).for_each(|_| count(1));
        walk();
        heard(|| CALLS.set(CALLS.get() + 1), || (walk(), count(usize::MAX)));
        walk();
        assert_eq!(CALLS.get(), 10);
        let ended = catch_unwind(|| heard(|| resume_unwind(Box::new(7_u8)), walk));
        assert_eq!(ended.unwrap_err().downcast_ref(), Some(&7_u8));
        walk();
    }
}
