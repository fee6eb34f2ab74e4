//! Turns errors, panics and stopped computations of Rust into ordinary Python exceptions.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use modula_core::stop::Stopped;
use pyo3::exceptions::{PyKeyboardInterrupt, PyMemoryError, PyRuntimeError};
use pyo3::prelude::*;

use crate::error::raise;

/// Runs `work`. Running out of memory becomes a `MemoryError`. A panic, which is a defect of this library, becomes a `RuntimeError`; PyO3
/// would raise a `PanicException`, which `except Exception` does not catch.
pub(crate) fn guarded<R>(work: impl FnOnce() -> PyResult<R>) -> PyResult<R> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|payload| Err(exception(&*payload)))
}

/// Runs `work` of the core; an error of the core becomes a `ValueError`.
pub(crate) fn built<T>(work: impl FnOnce() -> modula_core::Result<T>) -> PyResult<T> {
    guarded(|| work().map_err(raise))
}

fn exception(payload: &(dyn Any + Send)) -> PyErr {
    if let Some(stopped) = payload.downcast_ref::<Stopped>() {
        return match stopped {
            Stopped::Interrupted => PyKeyboardInterrupt::new_err(()),
            Stopped::OutOfMemory { .. } => PyMemoryError::new_err(stopped.to_string()),
        };
    }
    let text = payload.downcast_ref::<String>().map(String::as_str).or_else(|| payload.downcast_ref::<&str>().copied());
    PyRuntimeError::new_err(format!("a defect in modula_rs: {}", text.unwrap_or("a panic without a message")))
}
