//! The Python face of `modula-core`: converts arrays, calls the core, maps errors.

mod arrays;
mod constants;
mod erf;
mod error;
mod ffi;
mod guard;
mod maps;
mod norm;
mod program;
mod threads;
mod tree;

use pyo3::prelude::*;

/// The native half of `modula_rs`.
#[pymodule]
mod _core {
    use super::*;

    #[pymodule_export]
    use super::constants::{constants, start_vector};
    #[pymodule_export]
    use super::erf::erf;
    #[pymodule_export]
    use super::ffi::{ffi_handlers, ffi_tables};
    #[pymodule_export]
    use super::maps::{execute, measure};
    #[pymodule_export]
    use super::norm::{Measures, Norm, Recipe};
    #[pymodule_export]
    use super::program::Program;
    #[pymodule_export]
    use super::threads::{num_threads, set_num_threads};
    #[pymodule_export]
    use super::tree::Tree;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        super::threads::register_at_fork(module)
    }

    /// The instruction set that matrices are worked on with on this CPU.
    #[pyfunction]
    fn instruction_set() -> &'static str {
        modula_core::linalg::instruction_set()
    }

    /// How this extension was built: version, profile and target.
    #[pyfunction]
    fn build_info() -> (&'static str, &'static str, String) {
        let profile = if cfg!(debug_assertions) { "debug" } else { "release" };
        (env!("CARGO_PKG_VERSION"), profile, format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS))
    }
}
