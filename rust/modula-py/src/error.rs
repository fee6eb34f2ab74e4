//! Errors of the core as Python exceptions.

use modula_core::execute::MapError;
use pyo3::exceptions::{PyFloatingPointError, PyValueError};
use pyo3::prelude::*;

/// Every error of the core means a bad argument: it becomes a `ValueError` with the same message.
pub(crate) fn raise(error: modula_core::Error) -> PyErr {
    PyValueError::new_err(error.to_string())
}

/// NaN or infinity in an update becomes a `FloatingPointError`, every other error of a map a `ValueError`.
pub(crate) fn map_error(error: MapError) -> PyErr {
    match error {
        MapError::NonFinite { .. } => PyFloatingPointError::new_err(error.to_string()),
        _ => PyValueError::new_err(error.to_string()),
    }
}
