//! How many threads the maps run on.

use std::sync::{Arc, PoisonError, RwLock};

use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

/// The pool chosen with `set_num_threads`; without one, rayon's own (all cores, or `RAYON_NUM_THREADS`).
static POOL: RwLock<Option<Arc<ThreadPool>>> = RwLock::new(None);

/// Runs a map on the chosen pool.
pub(crate) fn run<R: Send>(map: impl FnOnce() -> R + Send) -> R {
    let pool = POOL.read().unwrap_or_else(PoisonError::into_inner).clone();
    match pool {
        Some(pool) => pool.install(map),
        None => map(),
    }
}

/// Sets the number of threads that the maps on NumPy arrays use; 0 goes back to all cores (or ``RAYON_NUM_THREADS``).
#[pyfunction]
pub fn set_num_threads(py: Python<'_>, threads: isize) -> PyResult<()> {
    let threads =
        usize::try_from(threads).map_err(|_| PyValueError::new_err(format!("the number of threads must be at least 0, got {threads}")))?;
    let pool = match threads {
        0 => None,
        _ => {
            let built = py.detach(|| ThreadPoolBuilder::new().num_threads(threads).build());
            Some(Arc::new(built.map_err(|error| PyOSError::new_err(error.to_string()))?))
        }
    };
    // The old pool is dropped with the lock released: its threads may be waiting for the interpreter.
    let old = std::mem::replace(&mut *POOL.write().unwrap_or_else(PoisonError::into_inner), pool);
    py.detach(|| drop(old));
    Ok(())
}

/// The number of threads that the maps on NumPy arrays use.
#[pyfunction]
pub fn num_threads() -> usize {
    run(rayon::current_num_threads)
}
