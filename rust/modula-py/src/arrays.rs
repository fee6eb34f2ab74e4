//! NumPy arrays as tensors of the core.

use half::{bf16, f16};
use modula_core::tensor::{Tensor, TensorMut};
use numpy::{PyArrayDyn, PyArrayMethods, PyReadonlyArrayDyn, PyReadwriteArrayDyn};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;

/// A C-contiguous array. An array of half precision is passed as its bits, and Python passes the name of its dtype beside it.
#[derive(FromPyObject)]
pub enum Numbers<'py> {
    /// float32.
    Single(Bound<'py, PyArrayDyn<f32>>),
    /// float64.
    Double(Bound<'py, PyArrayDyn<f64>>),
    /// float16 or bfloat16.
    Bits(Bound<'py, PyArrayDyn<u16>>),
}

pub(crate) enum Reading<'py> {
    Single(PyReadonlyArrayDyn<'py, f32>),
    Double(PyReadonlyArrayDyn<'py, f64>),
    Bits(PyReadonlyArrayDyn<'py, u16>),
}

pub(crate) enum Writing<'py> {
    Single(PyReadwriteArrayDyn<'py, f32>),
    Double(PyReadwriteArrayDyn<'py, f64>),
    Bits(PyReadwriteArrayDyn<'py, u16>),
}

pub(crate) fn mistaken(error: impl std::fmt::Display) -> PyErr {
    PyTypeError::new_err(format!("arrays must be C-contiguous: {error}"))
}

impl<'py> Numbers<'py> {
    pub(crate) fn read(&self) -> PyResult<Reading<'py>> {
        Ok(match self {
            Numbers::Single(x) => Reading::Single(x.try_readonly()?),
            Numbers::Double(x) => Reading::Double(x.try_readonly()?),
            Numbers::Bits(x) => Reading::Bits(x.try_readonly()?),
        })
    }

    pub(crate) fn write(&self) -> PyResult<Writing<'py>> {
        Ok(match self {
            Numbers::Single(x) => Writing::Single(x.try_readwrite()?),
            Numbers::Double(x) => Writing::Double(x.try_readwrite()?),
            Numbers::Bits(x) => Writing::Bits(x.try_readwrite()?),
        })
    }
}

pub(crate) fn tensor<'a>(reading: &'a Reading<'_>, dtype: &str) -> PyResult<Tensor<'a>> {
    Ok(match reading {
        Reading::Single(x) => Tensor::F32(x.as_slice().map_err(mistaken)?),
        Reading::Double(x) => Tensor::F64(x.as_slice().map_err(mistaken)?),
        Reading::Bits(x) => {
            let bits = x.as_slice().map_err(mistaken)?;
            if dtype == "bfloat16" { Tensor::BF16(as_bf16(bits)) } else { Tensor::F16(as_f16(bits)) }
        }
    })
}

pub(crate) fn tensor_mut<'a>(writing: &'a mut Writing<'_>, dtype: &str) -> PyResult<TensorMut<'a>> {
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
