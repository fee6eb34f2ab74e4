//! Errors of the core as Python exceptions.

use modula_core::execute::MapError;
use pyo3::exceptions::{PyFloatingPointError, PyValueError};
use pyo3::prelude::*;

/// Every error of the core is a bad argument, said in its own words.
pub(crate) fn raise(error: modula_core::Error) -> PyErr {
    PyValueError::new_err(error.to_string())
}

/// NaN or infinity in an update is a `FloatingPointError`; every other refusal of a map is a bad argument.
pub(crate) fn map_error(error: MapError) -> PyErr {
    match error {
        MapError::NonFinite { .. } => PyFloatingPointError::new_err(error.to_string()),
        _ => PyValueError::new_err(error.to_string()),
    }
}
