//! The two reasons that end a computation early: an interrupt from outside, or not enough memory.
//!
//! Both unwind the stack as a panic does, but without a panic's message: from the loop that stops, through every thread that shares the
//! work, to [`catch`]. With a `Result` instead, every loop of the linear algebra would have to pass errors on.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use thiserror::Error;

/// Why a computation ended early.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Stopped {
    /// The [`Interrupt`](crate::interrupt::Interrupt) of the computation was raised.
    #[error("the computation was interrupted")]
    Interrupted,
    /// The operating system refused memory.
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

/// Runs `work`, and returns the reason if the work is stopped early. A panic is not caught.
///
/// Where the work is stopped, the arrays that it was writing are left incomplete.
pub fn catch<R>(work: impl FnOnce() -> R) -> Result<R, Stopped> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|payload| match payload.downcast::<Stopped>() {
        Ok(stopped) => *stopped,
        Err(panic) => resume_unwind(panic),
    })
}
