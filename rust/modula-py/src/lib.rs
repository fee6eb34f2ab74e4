//! The Python binding of `modula-core`: converts arrays, calls the core, and turns errors into exceptions.

mod arrays;
mod constants;
mod erf;
mod error;
mod ffi;
mod guard;
mod lists;
mod maps;
mod norm;
mod program;
mod threads;
mod tree;

use modula_reserve::Reserve;
use pyo3::prelude::*;

#[global_allocator]
static ALLOCATOR: Reserve = Reserve;

/// The native half of `modula_rs`.
///
/// The free-threaded build of CPython turns its lock on when it imports this module: nobody has proved the caches of the Python half without.
#[pymodule(gil_used = true)]
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
        instruction_set()?;
        super::threads::register_at_fork(module)
    }

    /// The name of the instruction set that the linear algebra uses on this CPU.
    #[pyfunction]
    fn instruction_set() -> PyResult<&'static str> {
        modula_core::linalg::instruction_set().map_err(super::error::raise)
    }

    /// The version, build profile and target of this extension.
    #[pyfunction]
    fn build_info() -> (&'static str, &'static str, String) {
        let profile = if cfg!(debug_assertions) { "debug" } else { "release" };
        (env!("CARGO_PKG_VERSION"), profile, format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS))
    }
}
