//! The error function, which NumPy does not have.

use modula_core::memory;
use numpy::ndarray::ArrayD;
use numpy::{Element, IntoPyArray, PyArrayDyn, PyArrayMethods, PyReadonlyArrayDyn};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

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

fn mapped<'py, T: Element + Copy + Sync>(py: Python<'py>, x: &PyReadonlyArrayDyn<'py, T>, f: fn(T) -> T) -> PyResult<Bound<'py, PyAny>> {
    let view = x.as_array();
    let mut numbers = memory::room(view.len());
    let mut rest = view.iter();
    while rest.len() > 0 {
        py.detach(|| numbers.extend(rest.by_ref().take(PIECE).map(|&x| f(x))));
        py.check_signals()?;
    }
    let array = ArrayD::from_shape_vec(view.raw_dim(), numbers).map_err(|error| PyValueError::new_err(error.to_string()))?;
    Ok(array.into_pyarray(py).into_any())
}
