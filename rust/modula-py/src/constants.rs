//! The constants and the start vector of the core, for the same methods written in `jax.numpy` and in CUDA.

use modula_core::linalg::constants::{
    DROP_SHARE, FIRST, LANCZOS_LEAST, LANCZOS_MOST, LANCZOS_TOLERANCE, POWER_STEPS, REFINEMENTS, RISES, SECOND, SINGLE, SQUARINGS,
    STALE_SHARE, Stage, VECTORS,
};
use modula_core::linalg::start_vector as start;
use numpy::PyArray1;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::arrays::Copied;
use crate::guard::guarded;

/// The constants of the methods by name; `linalg/constants.rs` of the core gives the analysis behind each.
///
/// A stage is (constant, cubic, [(pole, residue), ...]): the function `x (constant + cubic x^2 + sum of residue / (x^2 + pole))`.
#[pyfunction]
pub fn constants(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let constants = PyDict::new(py);
    for (name, count) in [
        ("VECTORS", VECTORS),
        ("SQUARINGS", SQUARINGS),
        ("LANCZOS_LEAST", LANCZOS_LEAST),
        ("LANCZOS_MOST", LANCZOS_MOST),
        ("POWER_STEPS", POWER_STEPS),
        ("REFINEMENTS", REFINEMENTS),
    ] {
        constants.set_item(name, count)?;
    }
    for (name, number) in
        [("DROP_SHARE", DROP_SHARE), ("STALE_SHARE", STALE_SHARE), ("LANCZOS_TOLERANCE", LANCZOS_TOLERANCE), ("RISES", RISES)]
    {
        constants.set_item(name, number)?;
    }
    for (name, Stage { constant, cubic, terms }) in [("FIRST", FIRST), ("SECOND", SECOND), ("SINGLE", SINGLE)] {
        constants.set_item(name, (constant, cubic, terms.to_vec()))?;
    }
    Ok(constants)
}

type Precisions<'py> = (Bound<'py, PyArray1<f32>>, Bound<'py, PyArray1<f64>>);

/// The first `length` entries of the vector that every search for a norm starts from, in single and in double precision.
#[pyfunction]
pub fn start_vector(py: Python<'_>, length: usize) -> PyResult<Precisions<'_>> {
    guarded(|| Ok((Copied(&start(length)).into_pyobject(py)?, Copied(&start(length)).into_pyobject(py)?)))
}
