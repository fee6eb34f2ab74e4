//! The handlers for XLA's custom calls, as Python registers them.

use modula_core::atom::Geometry;
use modula_ffi::{GEOMETRIES, HANDLERS};
use pyo3::prelude::*;

/// Name and address of each handler. An address stays valid as long as the process lives.
#[pyfunction]
pub fn ffi_handlers() -> [(&'static str, usize); 5] {
    HANDLERS.map(|(name, handler)| (name, handler as usize))
}

/// The geometries by the index that the attribute `geometry` gives them.
#[pyfunction]
pub fn ffi_geometries() -> [&'static str; 4] {
    GEOMETRIES.map(Geometry::name)
}
