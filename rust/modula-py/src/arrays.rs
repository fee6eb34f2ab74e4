//! NumPy arrays as tensors of the core.

use half::slice::HalfBitsSliceExt;
use half::{bf16, f16};
use modula_core::interrupt;
use modula_core::tensor::{Tensor, TensorMut};
use numpy::{Element, PyArray1, PyArrayDyn, PyArrayMethods, PyReadonlyArrayDyn, PyReadwriteArrayDyn};
use pyo3::exceptions::{PyTypeError, PyValueError};
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

/// Numbers are copied in pieces of this many, so that Ctrl-C is heard in between.
const PIECE: usize = 1 << 20;

/// Numbers that become an array in Python.
pub(crate) struct Copied<'a, T>(pub &'a [T]);

impl<'py, T: Element + Copy> IntoPyObject<'py> for Copied<'_, T> {
    type Target = PyArray1<T>;
    type Output = Bound<'py, PyArray1<T>>;
    type Error = PyErr;

    fn into_pyobject(self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<T>>> {
        if self.0.len() <= PIECE {
            return Ok(PyArray1::from_slice(py, self.0));
        }
        let made = PyArray1::zeros(py, self.0.len(), false);
        let mut writing = made.try_readwrite()?;
        for (piece, place) in self.0.chunks(PIECE).zip(writing.as_slice_mut().map_err(mistaken)?.chunks_mut(PIECE)) {
            interrupt::count(piece.len());
            place.copy_from_slice(piece);
        }
        drop(writing);
        Ok(made)
    }
}

/// Blocks of memory in which results lie one after the other.
///
/// Each block is borrowed once. A borrow for each result would be checked against all others of its block, which for thousands of small
/// results took longer than their computation.
pub(crate) struct Room<'a, B> {
    blocks: B,
    rest: Rest<'a>,
}

/// What is left of a block.
enum Rest<'a> {
    Single(&'a mut [f32]),
    Double(&'a mut [f64]),
    Bits(&'a mut [u16]),
}

impl<'a, 'py: 'a, B: Iterator<Item = &'a mut Writing<'py>>> Room<'a, B> {
    pub(crate) fn new(blocks: B) -> Self {
        Self { blocks, rest: Rest::Single(&mut []) }
    }

    /// Room for a result of the dtype and length of `input`, from the next block on if nothing is left of this one.
    pub(crate) fn next(&mut self, input: &Tensor<'_>) -> PyResult<TensorMut<'a>> {
        let none_left = match &self.rest {
            Rest::Single(x) => x.is_empty(),
            Rest::Double(x) => x.is_empty(),
            Rest::Bits(x) => x.is_empty(),
        };
        if none_left && !input.is_empty() {
            self.rest = match self.blocks.next().ok_or_else(no_room)? {
                Writing::Single(x) => Rest::Single(x.as_slice_mut().map_err(mistaken)?),
                Writing::Double(x) => Rest::Double(x.as_slice_mut().map_err(mistaken)?),
                Writing::Bits(x) => Rest::Bits(x.as_slice_mut().map_err(mistaken)?),
            };
        }
        Ok(match (input, &mut self.rest) {
            (Tensor::F32(x), Rest::Single(rest)) => TensorMut::F32(first(rest, x.len())?),
            (Tensor::F64(x), Rest::Double(rest)) => TensorMut::F64(first(rest, x.len())?),
            (Tensor::F16(x), Rest::Bits(rest)) => TensorMut::F16(first(rest, x.len())?.reinterpret_cast_mut()),
            (Tensor::BF16(x), Rest::Bits(rest)) => TensorMut::BF16(first(rest, x.len())?.reinterpret_cast_mut()),
            (Tensor::F32([]), _) => TensorMut::F32(&mut []),
            (Tensor::F64([]), _) => TensorMut::F64(&mut []),
            (Tensor::F16([]), _) => TensorMut::F16(&mut []),
            (Tensor::BF16([]), _) => TensorMut::BF16(&mut []),
            _ => return Err(no_room()),
        })
    }

    /// Checks that nothing is left over.
    pub(crate) fn finish(mut self) -> PyResult<()> {
        match self.rest {
            Rest::Single([]) | Rest::Double([]) | Rest::Bits([]) if self.blocks.next().is_none() => Ok(()),
            _ => Err(no_room()),
        }
    }
}

fn no_room() -> PyErr {
    PyValueError::new_err("room for the results must have the dtypes and lengths of the arrays, one after the other")
}

/// Takes the first numbers of a slice.
fn first<'a, T>(rest: &mut &'a mut [T], len: usize) -> PyResult<&'a mut [T]> {
    rest.split_off_mut(..len).ok_or_else(no_room)
}

fn as_f16(bits: &[u16]) -> &[f16] {
    bits.reinterpret_cast()
}

fn as_bf16(bits: &[u16]) -> &[bf16] {
    bits.reinterpret_cast()
}
