//! What works on a matrix: an instruction set and threads.

use pulp::Arch;

/// The instruction set and the number of threads for one matrix.
#[derive(Clone, Copy, Debug)]
pub(super) struct Machine {
    pub arch: Arch,
    /// Threads that share the matrix.
    pub threads: usize,
}

/// The name of the instruction set that matrices are worked on with here.
pub fn instruction_set() -> &'static str {
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    {
        use pulp::x86::{V3, V4};
        if V4::try_new().is_some() {
            return "AVX-512";
        }
        if V3::try_new().is_some() {
            return "AVX2";
        }
    }
    if cfg!(target_arch = "aarch64") { "Neon" } else { "the baseline of its architecture" }
}
