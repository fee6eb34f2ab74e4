//! What ends a computation before its result: somebody asked for it, or there is not enough memory.
//!
//! Both unwind the stack as a panic does, but without a panic's message: from the loop that meets them, through every thread that shares
//! the work, to [`catch`]. A `Result` would have to be handed up through every loop of the linear algebra instead.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use thiserror::Error;

/// Why a computation ended early.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Stopped {
    /// Its [`Interrupt`](crate::interrupt::Interrupt) was raised.
    #[error("the computation was interrupted")]
    Interrupted,
    /// The system refused memory.
    #[error("out of memory: the computation asked for {bytes} bytes")]
    OutOfMemory {
        /// The size of the request that failed.
        bytes: usize,
    },
}

impl Stopped {
    /// Unwinds to the nearest [`catch`].
    pub(crate) fn unwind(self) -> ! {
        resume_unwind(Box::new(self))
    }
}

/// Runs `work` and returns early with the reason if it is stopped. A panic passes through.
///
/// What `work` was writing to is left half written.
pub fn catch<R>(work: impl FnOnce() -> R) -> Result<R, Stopped> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|payload| match payload.downcast::<Stopped>() {
        Ok(stopped) => *stopped,
        Err(panic) => resume_unwind(panic),
    })
}
