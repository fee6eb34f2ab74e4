//! The handlers of XLA's custom calls, for Python to register.

use modula_core::atom::Geometry;
use modula_core::blocks::Op;
use modula_core::linalg::Accuracy;
use modula_ffi::{ACCURACIES, GEOMETRIES, HANDLERS, OPERATIONS};
use pyo3::prelude::*;

/// The name and the address of each handler. The addresses are valid as long as the process lives.
#[pyfunction]
pub fn ffi_handlers() -> [(&'static str, usize); 4] {
    HANDLERS.map(|(name, handler)| (name, handler as usize))
}

/// The names of the entries that the attributes `geometry`, `operation` and `accuracy` choose by index.
#[pyfunction]
pub fn ffi_tables() -> (Vec<&'static str>, Vec<&'static str>, Vec<&'static str>) {
    (GEOMETRIES.map(Geometry::name).into(), OPERATIONS.map(Op::name).into(), ACCURACIES.map(Accuracy::name).into())
}
