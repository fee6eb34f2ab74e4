//! The maps on NumPy arrays. One call from Python takes all arrays, releases the interpreter lock, and computes on all cores.

use modula_core::atom::Geometry;
use modula_core::execute::{self as core, NonFinite, Options};
use modula_core::linalg::{Accuracy, VECTORS};
use modula_core::pool::{self, Effort};
use modula_core::recipe::Measure;
use modula_core::tensor::{Tensor, WorkingMut};
use modula_core::{interrupt, memory};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::arrays::{Numbers, Room, Writing, mistaken, tensor};
use crate::error::map_error;
use crate::guard::guarded;
use crate::lists::{Listed, returned};
use crate::norm::{Measures, Norm, Recipe};
use crate::threads;

/// An estimate of the memory that the lists of a call take for each array.
const BYTES_OF_AN_ARRAY: usize = 1024;

/// Counts an array of a call, so that Ctrl-C is heard between the arrays.
fn counted<T>(_: &T) {
    interrupt::count(1);
}

/// Lets go of arrays. Ctrl-C is heard in between.
fn released<T>(arrays: Vec<T>) {
    for array in arrays {
        counted(&array);
    }
}

/// Checks that the number and the sizes of arrays are those of the norm, because the core does not check them.
fn check(norm: &Norm, tensors: &[Tensor<'_>]) -> PyResult<()> {
    let leaves = &norm.0.leaves;
    if leaves.len() != tensors.len() {
        return Err(PyValueError::new_err(format!("expected {} arrays, got {}", leaves.len(), tensors.len())));
    }
    for (leaf, tensor) in leaves.iter().zip(tensors).inspect(counted) {
        let shape = norm.0.shape(leaf);
        let size = if shape.contains(&0) { Some(0) } else { shape.iter().try_fold(1_usize, |size, &axis| size.checked_mul(axis)) };
        if size != Some(tensor.len()) {
            return Err(PyValueError::new_err(format!("{}: expected numbers of shape {shape:?}, got {}", leaf.path, tensor.len())));
        }
    }
    Ok(())
}

/// The estimates of a leaf. They must be float64 if the array of the leaf is, else float32.
fn estimates<'a>(norm: &Norm, leaf: usize, numbers: &'a mut Option<Writing<'_>>, input: &Tensor<'_>) -> PyResult<Option<WorkingMut<'a>>> {
    let Some(numbers) = numbers else { return Ok(None) };
    let leaf = &norm.0.leaves[leaf];
    let batch = norm.0.batch(leaf, norm.0.lead(leaf));
    let vectors = match (numbers, input) {
        (Writing::Double(x), Tensor::F64(_)) => WorkingMut::Double(x.as_slice_mut().map_err(mistaken)?),
        (Writing::Single(x), Tensor::F32(_) | Tensor::F16(_) | Tensor::BF16(_)) => WorkingMut::Single(x.as_slice_mut().map_err(mistaken)?),
        _ => return Err(PyValueError::new_err(format!("{}: vectors must be float64 for float64 weights, else float32", leaf.path))),
    };
    if batch.geometry != Geometry::Spectral || vectors.len() != batch.count * VECTORS * batch.cols {
        return Err(PyValueError::new_err(format!("{}: vectors do not fit", leaf.path)));
    }
    Ok(Some(vectors))
}

/// Executes a recipe on the arrays of all leaves, each given with the name of its dtype. The results come to lie in the blocks of `room`,
/// one after the other. `vectors` has for each leaf None, or estimates of singular vectors, which are refined in
/// place.
#[pyfunction]
#[pyo3(signature = (norm, recipe, arrays, room, vectors, amount, accuracy, nonfinite))]
#[expect(clippy::too_many_arguments, reason = "one crossing from Python, which names them all")]
pub fn execute(
    py: Python<'_>,
    norm: &Norm,
    recipe: &Recipe,
    arrays: Listed<(Numbers<'_>, String)>,
    room: Listed<Numbers<'_>>,
    vectors: Option<Listed<Option<Numbers<'_>>>>,
    amount: f64,
    accuracy: &str,
    nonfinite: &str,
) -> PyResult<()> {
    guarded(|| {
        let arrays = arrays.0;
        memory::expect(arrays.len() * BYTES_OF_AN_ARRAY);
        let readings = arrays.iter().inspect(counted).map(|(numbers, _)| numbers.read()).collect::<PyResult<Vec<_>>>()?;
        let mut blocks = room.0.iter().inspect(counted).map(Numbers::write).collect::<PyResult<Vec<_>>>()?;
        let inputs = readings.iter().zip(&arrays).map(|(r, (_, dtype))| tensor(r, dtype)).collect::<PyResult<Vec<_>>>()?;
        check(norm, &inputs)?;
        let mut room = Room::new(blocks.iter_mut());
        let mut outputs = inputs.iter().map(|input| room.next(input)).collect::<PyResult<Vec<_>>>()?;
        room.finish()?;
        let vectors = vectors.map_or_else(|| arrays.iter().map(|_| None).collect(), |vectors| vectors.0);
        if vectors.len() != inputs.len() {
            return Err(PyValueError::new_err(format!("expected {} entries in vectors, got {}", inputs.len(), vectors.len())));
        }
        let mut moved =
            vectors.iter().inspect(counted).map(|v| v.as_ref().map(Numbers::write).transpose()).collect::<PyResult<Vec<_>>>()?;
        let pairs = moved.iter_mut().zip(&inputs).enumerate();
        let mut vectors = pairs.map(|(leaf, (v, input))| estimates(norm, leaf, v, input)).collect::<PyResult<Vec<_>>>()?;
        let nonfinite = match nonfinite {
            "zero" => NonFinite::Zero,
            "propagate" => NonFinite::Propagate,
            _ => NonFinite::Raise,
        };
        let options = Options { amount, accuracy: accuracy_named(accuracy)?, nonfinite };
        let run = || core::execute(&norm.0, &recipe.0, &inputs, &mut outputs, &mut vectors, options);
        let effort = recipe.0.rows.iter().map(|row| row.op.effort()).max().unwrap_or(Effort::Reads);
        let small = pool::is_small(recipe.0.rows.iter().map(|row| row.batch), effort);
        threads::run(py, small, run)?.map_err(map_error)?;
        released(moved);
        released(readings);
        released(blocks);
        released(arrays);
        Ok(())
    })
}

/// The level of accuracy with this name.
fn accuracy_named(name: &str) -> PyResult<Accuracy> {
    Accuracy::named(name).ok_or_else(|| PyValueError::new_err(format!("there is no accuracy called {name:?}")))
}

/// A function that gives one number for each leaf.
type Values = fn(&[Measure], &[Tensor<'_>]) -> Vec<f64>;

/// For every leaf, the largest block norm over target; with `dual`, the sum of target times dual norm over the blocks.
#[pyfunction]
pub fn measure<'py>(
    py: Python<'py>,
    norm: &Norm,
    measures: &Measures,
    arrays: Listed<(Numbers<'py>, String)>,
    dual: bool,
) -> PyResult<Bound<'py, PyAny>> {
    let arrays = arrays.0;
    returned(py, arrays.len() * BYTES_OF_AN_ARRAY, || {
        let readings = arrays.iter().inspect(counted).map(|(numbers, _)| numbers.read()).collect::<PyResult<Vec<_>>>()?;
        let pairs = readings.iter().zip(&arrays);
        let inputs = pairs.map(|(r, (_, dtype))| tensor(r, dtype)).collect::<PyResult<Vec<_>>>()?;
        check(norm, &inputs)?;
        let (values, effort): (Values, _) = if dual { (core::dual_norms, Effort::Products) } else { (core::norms, Effort::Reads) };
        let small = pool::is_small(measures.0.iter().map(|measure| measure.batch), effort);
        let values = threads::run(py, small, || values(&measures.0, &inputs))?;
        released(readings);
        released(arrays);
        Ok(values)
    })
}
