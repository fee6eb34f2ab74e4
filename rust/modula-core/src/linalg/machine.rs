//! The instruction set and the threads that a matrix is worked on with.

use pulp::Arch;

/// What a matrix is worked on with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Machine {
    pub arch: Arch,
    /// Threads that share the matrix.
    pub threads: usize,
}
