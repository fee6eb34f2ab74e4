//! What works on a matrix: an instruction set and threads.

use pulp::Arch;

/// The instruction set and the number of threads for one matrix.
#[derive(Clone, Copy, Debug)]
pub(super) struct Machine {
    pub arch: Arch,
    /// Threads that share the matrix.
    pub threads: usize,
}
