//! Values between Python and Rust. Without memory, PyO3's conversions panic or end the process, and these give a `MemoryError`. They hear Ctrl-C
//! between the items of a list.

use modula_core::{interrupt, memory};
use pyo3::IntoPyObjectExt;
use pyo3::conversion::FromPyObjectOwned;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyString};

use crate::guard::guarded;

/// A list from Python.
pub(crate) struct Listed<T>(pub Vec<T>);

impl<'py, T: FromPyObjectOwned<'py>> FromPyObject<'_, 'py> for Listed<T> {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        guarded(|| {
            let mut items = memory::room(object.len()?);
            for item in object.try_iter()? {
                interrupt::count(1);
                // An iterator may give more items than the length said.
                memory::push(&mut items, item?.extract::<T>().map_err(Into::into)?);
            }
            Ok(Listed(items))
        })
    }
}

/// A text from Python.
pub(crate) struct Text(pub String);

impl<'py> FromPyObject<'_, 'py> for Text {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let text = object.cast::<PyString>()?;
        let text = text.to_str()?;
        guarded(|| {
            memory::expect(text.len());
            Ok(Text(text.to_owned()))
        })
    }
}

/// A value for Python.
pub(crate) struct Made<T>(pub T);

impl<'py, T: IntoPyObjectExt<'py>> IntoPyObject<'py> for Made<T> {
    type Target = PyAny;
    type Output = Bound<'py, PyAny>;
    type Error = PyErr;

    fn into_pyobject(self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        guarded(|| self.0.into_bound_py_any(py))
    }
}

/// A list for Python. Its items are made one by one.
pub(crate) struct Rows<I>(pub I);

impl<'py, I: IntoIterator<Item: IntoPyObject<'py>>> IntoPyObject<'py> for Rows<I> {
    type Target = PyList;
    type Output = Bound<'py, PyList>;
    type Error = PyErr;

    fn into_pyobject(self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let list = PyList::empty(py);
        for item in self.0 {
            interrupt::count(1);
            list.append(item)?;
        }
        Ok(list)
    }
}

/// Makes a value of `work`'s result in Python, of which an estimate says how many bytes it takes.
pub(crate) fn returned<'py, T: IntoPyObjectExt<'py>>(
    py: Python<'py>,
    bytes: usize,
    work: impl FnOnce() -> PyResult<T>,
) -> PyResult<Bound<'py, PyAny>> {
    guarded(|| {
        memory::expect(bytes);
        work()?.into_bound_py_any(py)
    })
}
