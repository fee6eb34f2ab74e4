//! The handlers for XLA's custom calls, as Python registers them.

use modula_core::atom::Geometry;
use modula_core::blocks::Op;
use modula_ffi::{ACCURACIES, GEOMETRIES, HANDLERS, OPERATIONS};
use pyo3::prelude::*;

/// Name and address of each handler. An address stays valid as long as the process lives.
#[pyfunction]
pub fn ffi_handlers() -> [(&'static str, usize); 4] {
    HANDLERS.map(|(name, handler)| (name, handler as usize))
}

/// What the attributes `geometry`, `operation` and `accuracy` index.
#[pyfunction]
pub fn ffi_tables() -> (Vec<&'static str>, Vec<&'static str>, Vec<&'static str>) {
    (GEOMETRIES.map(Geometry::name).into(), OPERATIONS.map(Op::name).into(), ACCURACIES.map(|(name, _)| name).into())
}
