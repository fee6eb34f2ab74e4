//! The error function, which NumPy does not have.

use numpy::{Element, PyArrayDyn, PyArrayMethods, PyReadonlyArrayDyn};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;

use crate::arrays::mistaken;
use crate::guard::guarded;

/// How many numbers are computed before Python is asked for signals: some milliseconds of work.
const PIECE: usize = 1 << 18;

/// The error function, elementwise, for C-contiguous arrays of single or double precision.
#[pyfunction]
pub fn erf<'py>(py: Python<'py>, x: Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    guarded(|| {
        if let Ok(single) = x.cast::<PyArrayDyn<f32>>() {
            return mapped(py, &single.try_readonly()?, libm::erff);
        }
        let double = x.cast::<PyArrayDyn<f64>>().map_err(|_| PyTypeError::new_err("erf takes an array of float32 or float64"))?;
        mapped(py, &double.try_readonly()?, libm::erf)
    })
}

fn mapped<'py, T: Element + Copy + Send + Sync>(
    py: Python<'py>,
    x: &PyReadonlyArrayDyn<'py, T>,
    f: fn(T) -> T,
) -> PyResult<Bound<'py, PyAny>> {
    let made = PyArrayDyn::zeros(py, x.as_array().raw_dim(), false);
    let (view, mut writing) = (x.as_array(), made.try_readwrite()?);
    let (mut rest, mut places) = (view.iter(), writing.as_slice_mut().map_err(mistaken)?);
    while !places.is_empty() {
        let (piece, after) = places.split_at_mut(PIECE.min(places.len()));
        py.detach(|| piece.iter_mut().zip(rest.by_ref()).for_each(|(place, &x)| *place = f(x)));
        py.check_signals()?;
        places = after;
    }
    drop(writing);
    Ok(made.into_any())
}
