//! Runs the maps on a pool of threads, while the calling thread listens for Ctrl-C.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use modula_core::interrupt::Interrupt;
use modula_core::pool;
use pyo3::exceptions::{PyOverflowError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// The interval at which Python is asked for signals.
const LISTEN: Duration = Duration::from_millis(50);

/// Runs a map with the interpreter lock released. While the pool computes, the calling thread asks Python for signals, if it is the main
/// thread, which alone receives them. A `small` map runs on the calling thread.
pub(crate) fn run<R: Send>(py: Python<'_>, small: bool, map: impl FnOnce() -> R + Send) -> PyResult<R> {
    if small {
        return Ok(py.detach(map));
    }
    let Some(pool) = pool::get() else {
        return Ok(py.detach(|| pool::alone(map)));
    };
    let listens = is_main_thread(py)?;
    let interrupt = Interrupt::default();
    let finished = py.detach(|| {
        pool.in_place_scope(|scope| {
            let (sender, receiver) = sync_channel(1);
            let interrupt = &interrupt;
            scope.spawn(move |_| {
                // Sending cannot fail: the receiver lives until a result has come.
                let _ = sender.send(catch_unwind(AssertUnwindSafe(|| interrupt.run(map))));
            });
            let mut signal = Ok(());
            loop {
                match receiver.recv_timeout(LISTEN) {
                    Err(RecvTimeoutError::Timeout) if listens && signal.is_ok() => {
                        signal = Python::attach(|py| py.check_signals());
                        if signal.is_err() {
                            interrupt.raise();
                        }
                    }
                    Err(RecvTimeoutError::Timeout) => {}
                    finished => return signal.map(|()| finished),
                }
            }
        })
    })?;
    match finished {
        Ok(Ok(result)) => Ok(result),
        Ok(Err(payload)) => resume_unwind(payload),
        Err(_) => Err(PyRuntimeError::new_err("a thread ended without a result")),
    }
}

fn is_main_thread(py: Python<'_>) -> PyResult<bool> {
    let threading = py.import("threading")?;
    threading.call_method0("get_ident")?.eq(threading.call_method0("main_thread")?.getattr("ident")?)
}

/// Sets the number of threads that the maps share; 0 restores the default: one for each core, or ``RAYON_NUM_THREADS``.
#[pyfunction]
pub fn set_num_threads(py: Python<'_>, threads: &Bound<'_, PyAny>) -> PyResult<()> {
    let number = match threads.extract::<i64>() {
        Err(error) if error.is_instance_of::<PyOverflowError>(py) => None,
        number => usize::try_from(number?).ok(),
    };
    if let Some(number) = number.filter(|&number| number <= pool::limit()) {
        pool::set_threads(number);
        return Ok(());
    }
    let expected = match threads.lt(0)? {
        true => "at least 0".to_owned(),
        false => format!("at most {} (four for each core, and never less than 16)", pool::limit()),
    };
    Err(PyValueError::new_err(format!("the number of threads must be {expected}, got {threads}")))
}

/// The number of threads that the maps share.
#[pyfunction]
pub fn num_threads() -> usize {
    pool::threads()
}

#[pyfunction]
fn before_fork() {
    pool::before_fork();
}

#[pyfunction]
fn after_fork_in_parent() {
    pool::after_fork_in_parent();
}

#[pyfunction]
fn after_fork_in_child() {
    pool::after_fork_in_child();
}

/// Asks Python to call the functions above when it forks, because the child process has none of the pool's threads.
pub(crate) fn register_at_fork(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let os = module.py().import("os")?;
    if !os.hasattr("register_at_fork")? {
        return Ok(());
    }
    let hooks = PyDict::new(module.py());
    hooks.set_item("before", wrap_pyfunction!(before_fork, module)?)?;
    hooks.set_item("after_in_parent", wrap_pyfunction!(after_fork_in_parent, module)?)?;
    hooks.set_item("after_in_child", wrap_pyfunction!(after_fork_in_child, module)?)?;
    os.call_method("register_at_fork", (), Some(&hooks))?;
    Ok(())
}
