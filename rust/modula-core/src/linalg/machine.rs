//! What works on a matrix: an instruction set and threads.

use std::sync::OnceLock;

use pulp::Arch;

use crate::error::Error;

/// The environment variable that names the instruction set to use instead of the best one.
const LIMIT: &str = "MODULA_RS_INSTRUCTION_SET";

/// The instruction set and the number of threads for one matrix.
#[derive(Clone, Copy, Debug)]
pub(super) struct Machine {
    pub arch: Arch,
    /// Threads that share the matrix.
    pub threads: usize,
}

/// The instruction sets that this processor has, the best one first.
pub(super) fn instruction_sets() -> Vec<(&'static str, Arch)> {
    let mut all = Vec::new();
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    {
        use pulp::x86::{V3, V4};
        all.extend(V4::try_new().map(|arch| ("AVX-512", Arch::V4(arch))));
        all.extend(V3::try_new().map(|arch| ("AVX2", Arch::V3(arch))));
    }
    #[cfg(target_arch = "aarch64")]
    all.push(("Neon", Arch::new()));
    all.push(("baseline", Arch::Scalar));
    all
}

/// The instruction set with this name, or without a name the best one.
pub(super) fn named(name: Option<&str>) -> Result<(&'static str, Arch), Error> {
    let all = instruction_sets();
    let found = all.iter().find(|&&(known, _)| name.is_none_or(|name| name == known)).copied();
    found.ok_or_else(|| Error::Argument {
        what: format!("the environment variable {LIMIT}"),
        expected: "AVX-512, AVX2, Neon or baseline, whichever this processor has",
        got: format!("{:?}", name.unwrap_or_default()),
    })
}

fn asked_for() -> Result<(&'static str, Arch), Error> {
    named(std::env::var(LIMIT).ok().filter(|name| !name.is_empty()).as_deref())
}

fn chosen() -> (&'static str, Arch) {
    static CHOSEN: OnceLock<(&str, Arch)> = OnceLock::new();
    *CHOSEN.get_or_init(|| asked_for().unwrap_or_else(|_| instruction_sets()[0]))
}

/// What matrices are worked on with here.
pub(super) fn arch() -> Arch {
    chosen().1
}

/// The name of the instruction set that matrices are worked on with here: the best that the processor has, or the one that the environment
/// variable `MODULA_RS_INSTRUCTION_SET` names when the first matrix comes.
///
/// # Errors
/// If the variable names an instruction set that the processor lacks, or none at all. (The best one is used then.)
pub fn instruction_set() -> Result<&'static str, Error> {
    asked_for().map(|_| chosen().0)
}
