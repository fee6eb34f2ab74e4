//! Turns errors, panics and stopped computations of Rust into ordinary Python exceptions.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use modula_core::interrupt::heard;
use modula_core::stop::Stopped;
use pyo3::exceptions::{PyKeyboardInterrupt, PyMemoryError, PyRuntimeError};
use pyo3::prelude::*;

use crate::error::raise;

/// How the panics of PyO3 and rust-numpy begin where Python cannot make a small object, such as a list, a number or the text of an error.
/// Memory is the only reason.
const NO_OBJECT: [&str; 3] =
    ["PyObject pointer is null", "Failed to create slice container", "a formatting trait implementation returned an error"];

/// Runs `work` with the interpreter attached; its walks end if a signal handler of Python raises an exception. Running out of memory becomes a
/// `MemoryError`. A panic, which is a defect of this library, becomes a `RuntimeError`; PyO3 would raise a `PanicException`, which
/// `except Exception` does not catch.
pub(crate) fn guarded<R>(work: impl FnOnce() -> PyResult<R>) -> PyResult<R> {
    let result = catch_unwind(AssertUnwindSafe(|| heard(listen, work))).unwrap_or_else(|payload| Err(exception(payload)));
    result.map_err(raisable)
}

/// Lets Python handle signals, which it does on its main thread alone. What a handler raises ends the walk.
fn listen() {
    if let Err(raised) = Python::attach(|py| py.check_signals()) {
        resume_unwind(Box::new(raised));
    }
}

/// The error, with its Python object. PyO3 makes the object when it raises the error, and ends the process if there is no memory for it.
fn raisable(error: PyErr) -> PyErr {
    let made = catch_unwind(AssertUnwindSafe(|| Python::attach(|py| drop(error.value(py).clone()))));
    // Python keeps an object for this error.
    made.map_or_else(|_| PyMemoryError::new_err(()), |()| error)
}

/// Runs `work` of the core; an error of the core becomes a `ValueError`.
pub(crate) fn built<T>(work: impl FnOnce() -> modula_core::Result<T>) -> PyResult<T> {
    guarded(|| work().map_err(raise))
}

fn exception(payload: Box<dyn Any + Send>) -> PyErr {
    let payload = match payload.downcast::<PyErr>() {
        Ok(raised) => return *raised,
        Err(payload) => payload,
    };
    if let Some(stopped) = payload.downcast_ref::<Stopped>() {
        return match stopped {
            Stopped::Interrupted => PyKeyboardInterrupt::new_err(()),
            Stopped::OutOfMemory { .. } => PyMemoryError::new_err(stopped.to_string()),
        };
    }
    let text = payload.downcast_ref::<String>().map(String::as_str).or_else(|| payload.downcast_ref::<&str>().copied());
    if text.is_some_and(|text| NO_OBJECT.iter().any(|beginning| text.starts_with(beginning))) {
        return PyMemoryError::new_err(());
    }
    PyRuntimeError::new_err(format!("a defect in modula_rs: {}", text.unwrap_or("a panic without a message")))
}
