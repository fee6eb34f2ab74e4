//! The Python face of `modula-core`: converts arrays, calls the core, maps errors.

use pyo3::prelude::*;

/// The native half of `modula_rs`.
#[pymodule]
mod _core {}
