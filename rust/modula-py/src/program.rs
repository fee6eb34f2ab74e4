//! The Python class for the forward pass of a tree.

use modula_core::module::Payload;
use modula_core::program::{self, Op};
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::lists::{Rows, returned};

/// An estimate of the memory that a step takes in Python.
const BYTES_OF_A_STEP: usize = 256;

/// The Python object that is attached to an atom or bond, or None.
pub(crate) fn object(py: Python<'_>, payload: &Payload) -> Py<PyAny> {
    let object = payload.as_ref().and_then(|payload| payload.downcast_ref::<Py<PyAny>>());
    object.map_or_else(|| py.None(), |object| object.clone_ref(py))
}

/// The steps of a forward pass; see `modula_core::program`.
#[pyclass(frozen, module = "modula_rs._core")]
pub struct Program(pub(crate) program::Program);

/// A step as a tuple.
struct Step<'a>(&'a Op);

impl<'py> IntoPyObject<'py> for Step<'_> {
    type Target = PyTuple;
    type Output = Bound<'py, PyTuple>;
    type Error = PyErr;

    fn into_pyobject(self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        match self.0 {
            Op::Atom { leaf, payload } => ("atom", object(py, payload), *leaf).into_pyobject(py),
            Op::Bond(payload) => ("bond", object(py, payload)).into_pyobject(py),
            Op::Fork => ("fork",).into_pyobject(py),
            Op::Next => ("next",).into_pyobject(py),
            Op::Join(count) => ("join", *count).into_pyobject(py),
            Op::Repeat { times, length, target } => ("repeat", *times, *length, *target).into_pyobject(py),
        }
    }
}

#[pymethods]
impl Program {
    /// The steps in the order of the data: ("atom", object, leaf), ("bond", object), ("fork",), ("next",), ("join", count) or ("repeat",
    /// times, length, target).
    fn steps<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        returned(py, self.0.ops.len().saturating_mul(BYTES_OF_A_STEP), || Ok(Rows(self.0.ops.iter().map(Step))))
    }
}
