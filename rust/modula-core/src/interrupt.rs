//! A flag that ends a computation from outside. The computation reads it between matrices and between the blocks of a product.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::stop::Stopped;

thread_local! {
    /// The flag of the computation that this thread is working on.
    static CURRENT: RefCell<Watch> = const { RefCell::new(Watch(None)) };
}

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
