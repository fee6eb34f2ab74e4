//! The maps on NumPy arrays: one crossing for the whole list, the interpreter lock released, all cores at work.

use half::{bf16, f16};
use modula_core::linalg::Accuracy;
use modula_core::maps::{self, Map, MapError, NonFinite};
use modula_core::pool::{self, Effort};
use modula_core::tensor::{Tensor, TensorMut};
use numpy::{PyArrayDyn, PyArrayMethods, PyReadonlyArrayDyn, PyReadwriteArrayDyn};
use pyo3::exceptions::{PyFloatingPointError, PyTypeError, PyValueError};
use pyo3::prelude::*;

use crate::guard::guarded;
use crate::plan::Plan;
use crate::threads;
use crate::tree::raise;

/// A C-contiguous array; half precision comes as its bits, with the dtype's name beside it.
#[derive(FromPyObject)]
pub enum Numbers<'py> {
    /// float32.
    Single(Bound<'py, PyArrayDyn<f32>>),
    /// float64.
    Double(Bound<'py, PyArrayDyn<f64>>),
    /// float16 or bfloat16.
    Bits(Bound<'py, PyArrayDyn<u16>>),
}

enum Reading<'py> {
    Single(PyReadonlyArrayDyn<'py, f32>),
    Double(PyReadonlyArrayDyn<'py, f64>),
    Bits(PyReadonlyArrayDyn<'py, u16>),
}

enum Writing<'py> {
    Single(PyReadwriteArrayDyn<'py, f32>),
    Double(PyReadwriteArrayDyn<'py, f64>),
    Bits(PyReadwriteArrayDyn<'py, u16>),
}

fn mistaken(error: impl std::fmt::Display) -> PyErr {
    PyTypeError::new_err(format!("arrays must be C-contiguous: {error}"))
}

impl<'py> Numbers<'py> {
    fn read(&self) -> PyResult<Reading<'py>> {
        Ok(match self {
            Numbers::Single(x) => Reading::Single(x.try_readonly()?),
            Numbers::Double(x) => Reading::Double(x.try_readonly()?),
            Numbers::Bits(x) => Reading::Bits(x.try_readonly()?),
        })
    }

    fn write(&self) -> PyResult<Writing<'py>> {
        Ok(match self {
            Numbers::Single(x) => Writing::Single(x.try_readwrite()?),
            Numbers::Double(x) => Writing::Double(x.try_readwrite()?),
            Numbers::Bits(x) => Writing::Bits(x.try_readwrite()?),
        })
    }
}

fn tensor<'a>(reading: &'a Reading<'_>, dtype: &str) -> PyResult<Tensor<'a>> {
    Ok(match reading {
        Reading::Single(x) => Tensor::F32(x.as_slice().map_err(mistaken)?),
        Reading::Double(x) => Tensor::F64(x.as_slice().map_err(mistaken)?),
        Reading::Bits(x) => {
            let bits = x.as_slice().map_err(mistaken)?;
            if dtype == "bfloat16" { Tensor::BF16(as_bf16(bits)) } else { Tensor::F16(as_f16(bits)) }
        }
    })
}

fn tensor_mut<'a>(writing: &'a mut Writing<'_>, dtype: &str) -> PyResult<TensorMut<'a>> {
    use half::slice::HalfBitsSliceExt;
    Ok(match writing {
        Writing::Single(x) => TensorMut::F32(x.as_slice_mut().map_err(mistaken)?),
        Writing::Double(x) => TensorMut::F64(x.as_slice_mut().map_err(mistaken)?),
        Writing::Bits(x) => {
            let bits = x.as_slice_mut().map_err(mistaken)?;
            if dtype == "bfloat16" { TensorMut::BF16(bits.reinterpret_cast_mut()) } else { TensorMut::F16(bits.reinterpret_cast_mut()) }
        }
    })
}

fn as_f16(bits: &[u16]) -> &[f16] {
    half::slice::HalfBitsSliceExt::reinterpret_cast(bits)
}

fn as_bf16(bits: &[u16]) -> &[bf16] {
    half::slice::HalfBitsSliceExt::reinterpret_cast(bits)
}

fn map_error(error: MapError) -> PyErr {
    match error {
        MapError::Plan(error) => raise(error),
        MapError::NonFinite { .. } => PyFloatingPointError::new_err(error.to_string()),
        _ => PyValueError::new_err(error.to_string()),
    }
}

fn policy(nonfinite: &str) -> NonFinite {
    match nonfinite {
        "zero" => NonFinite::Zero,
        "propagate" => NonFinite::Propagate,
        _ => NonFinite::Raise,
    }
}

/// Refuses arrays that are not those of the plan: what the core takes on trust.
fn check(plan: &Plan, tensors: &[Tensor<'_>]) -> PyResult<()> {
    let leaves = &plan.0.leaves;
    if leaves.len() != tensors.len() {
        return Err(PyValueError::new_err(format!("expected {} arrays, got {}", leaves.len(), tensors.len())));
    }
    for (leaf, tensor) in leaves.iter().zip(tensors) {
        let shape: Vec<usize> = leaf.stack.iter().copied().chain(plan.0.lead(leaf).kind.shape()).collect();
        let size = if shape.contains(&0) { Some(0) } else { shape.iter().try_fold(1_usize, |size, &axis| size.checked_mul(axis)) };
        if size != Some(tensor.len()) {
            return Err(PyValueError::new_err(format!("{}: expected numbers of shape {shape:?}, got {}", leaf.path, tensor.len())));
        }
    }
    Ok(())
}

/// An array, room for what becomes of it, and the name of their dtype.
type Pair<'py> = (Numbers<'py>, Numbers<'py>, String);

/// A number for each leaf.
type Measure = fn(&modula_core::plan::Plan, &[Tensor<'_>]) -> Result<Vec<f64>, MapError>;

impl Plan {
    fn is_small(&self, effort: Effort) -> bool {
        pool::is_small(self.0.leaves.iter().map(|leaf| maps::group(leaf, self.0.lead(leaf))), effort)
    }

    fn apply(&self, py: Python<'_>, arrays: Vec<Pair<'_>>, map: Map, nonfinite: &str) -> PyResult<()> {
        let readings = arrays.iter().map(|(numbers, ..)| numbers.read()).collect::<PyResult<Vec<_>>>()?;
        let mut writings = arrays.iter().map(|(_, room, _)| room.write()).collect::<PyResult<Vec<_>>>()?;
        let dtypes = || arrays.iter().map(|(.., dtype)| dtype.as_str());
        let inputs = readings.iter().zip(dtypes()).map(|(r, dtype)| tensor(r, dtype)).collect::<PyResult<Vec<_>>>()?;
        let outputs = writings.iter_mut().zip(dtypes()).map(|(w, dtype)| tensor_mut(w, dtype)).collect::<PyResult<Vec<_>>>()?;
        check(self, &inputs)?;
        if !inputs.iter().zip(&outputs).all(|(&input, output)| output.fits(input)) {
            return Err(PyValueError::new_err("room for a result must have the dtype and length of its array"));
        }
        let policy = policy(nonfinite);
        let effort = match map {
            Map::Normalize { .. } | Map::Regularize { .. } => Effort::Reads,
            Map::Dualize { .. } | Map::Project => Effort::Products,
        };
        threads::run(py, self.is_small(effort), || maps::apply(&self.0, &inputs, outputs, map, policy))?.map_err(map_error)
    }

    fn measure(&self, py: Python<'_>, arrays: Vec<(Numbers<'_>, String)>, dual: bool) -> PyResult<Vec<f64>> {
        let readings = arrays.iter().map(|(numbers, _)| numbers.read()).collect::<PyResult<Vec<_>>>()?;
        let pairs = readings.iter().zip(&arrays);
        let inputs = pairs.map(|(r, (_, dtype))| tensor(r, dtype)).collect::<PyResult<Vec<_>>>()?;
        check(self, &inputs)?;
        let (measure, effort): (Measure, _) = if dual { (maps::dual_norms, Effort::Products) } else { (maps::norms, Effort::Reads) };
        threads::run(py, self.is_small(effort), || measure(&self.0, &inputs))?.map_err(map_error)
    }
}

/// For every leaf, the largest of norm over target.
#[pyfunction]
pub fn norms(plan: &Plan, py: Python<'_>, arrays: Vec<(Numbers<'_>, String)>) -> PyResult<Vec<f64>> {
    guarded(|| plan.measure(py, arrays, false))
}

/// For every leaf, the sum of target times dual norm.
#[pyfunction]
pub fn dual_norms(plan: &Plan, py: Python<'_>, arrays: Vec<(Numbers<'_>, String)>) -> PyResult<Vec<f64>> {
    guarded(|| plan.measure(py, arrays, true))
}

/// Every leaf brought to its target norm.
#[pyfunction]
pub fn normalize(plan: &Plan, py: Python<'_>, arrays: Vec<Pair<'_>>, target_norm: f64, nonfinite: &str) -> PyResult<()> {
    guarded(|| plan.apply(py, arrays, Map::Normalize { target_norm }, nonfinite))
}

/// The steepest direction.
#[pyfunction]
pub fn dualize(plan: &Plan, py: Python<'_>, arrays: Vec<Pair<'_>>, target_norm: f64, steps: Option<u32>, nonfinite: &str) -> PyResult<()> {
    let accuracy = steps.map_or(Accuracy::Standard, Accuracy::Steps);
    guarded(|| plan.apply(py, arrays, Map::Dualize { target_norm, accuracy }, nonfinite))
}

/// Back to the natural set.
#[pyfunction]
pub fn project(plan: &Plan, py: Python<'_>, arrays: Vec<Pair<'_>>, nonfinite: &str) -> PyResult<()> {
    guarded(|| plan.apply(py, arrays, Map::Project, nonfinite))
}

/// Decay by strength times target.
#[pyfunction]
pub fn regularize(plan: &Plan, py: Python<'_>, arrays: Vec<Pair<'_>>, strength: f64) -> PyResult<()> {
    guarded(|| plan.apply(py, arrays, Map::Regularize { strength }, "propagate"))
}
