//! A flag that ends a computation from outside, read between matrices and between the blocks of a product.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::stop::Stopped;

thread_local! {
    /// The flag of the computation this thread is working on.
    static CURRENT: RefCell<Watch> = const { RefCell::new(Watch(None)) };
}

/// Ends a computation that was started with [`Interrupt::run`].
#[derive(Debug, Clone, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Asks the computation to end, from any thread. It unwinds with [`Stopped::Interrupted`] at its next look at the flag.
    pub fn raise(&self) {
        self.0.store(true, Relaxed);
    }

    /// Does `work` under this flag.
    pub fn run<R>(&self, work: impl FnOnce() -> R) -> R {
        Watch(Some(self.clone())).run(work)
    }
}

/// Does `work` under no flag, whatever this thread is in the middle of: a thread that waits for others takes up work of other calls meanwhile.
pub fn without<R>(work: impl FnOnce() -> R) -> R {
    Watch(None).run(work)
}

/// The flag of the computation at hand, to be carried to the other threads that share it.
#[derive(Debug, Clone)]
pub(crate) struct Watch(Option<Interrupt>);

impl Watch {
    /// Unwinds if the flag is up.
    pub fn check(&self) {
        if self.0.as_ref().is_some_and(|interrupt| interrupt.0.load(Relaxed)) {
            Stopped::Interrupted.unwind();
        }
    }

    /// Does `work` under this flag, so that [`check`] within reads it.
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

/// The flag this thread works under.
pub(crate) fn current() -> Watch {
    CURRENT.with_borrow(Watch::clone)
}

/// Unwinds if the flag this thread works under is up.
#[inline(never)]
pub(crate) fn check() {
    CURRENT.with_borrow(Watch::check);
}
