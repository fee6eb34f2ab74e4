//! Weight arrays of any supported dtype, as flat slices.

use std::borrow::Cow;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;

use crate::linalg::{Real, largest_entry};
use crate::{interrupt, memory};

/// The numbers of an array, in C order.
#[derive(Debug, Clone, Copy)]
pub enum Tensor<'a> {
    /// Single precision.
    F32(&'a [f32]),
    /// Double precision.
    F64(&'a [f64]),
    /// IEEE half precision.
    F16(&'a [f16]),
    /// Brain floating point.
    BF16(&'a [bf16]),
}

/// An output buffer for the numbers of an array.
#[derive(Debug)]
pub enum TensorMut<'a> {
    /// Single precision.
    F32(&'a mut [f32]),
    /// Double precision.
    F64(&'a mut [f64]),
    /// IEEE half precision.
    F16(&'a mut [f16]),
    /// Brain floating point.
    BF16(&'a mut [bf16]),
}

/// Numbers in the working precision of a leaf.
#[derive(Debug)]
pub enum WorkingMut<'a> {
    /// Single precision, for leaves in single or half precision.
    Single(&'a mut [f32]),
    /// Double precision, for leaves in double precision.
    Double(&'a mut [f64]),
}

impl<'a> WorkingMut<'a> {
    /// The numbers for a leaf in single or half precision.
    ///
    /// # Panics
    /// If they are in double precision.
    pub(crate) fn single(self) -> &'a mut [f32] {
        match self {
            Self::Single(numbers) => numbers,
            Self::Double(_) => panic!("numbers in the working precision of the leaf"),
        }
    }

    /// The numbers for a leaf in double precision.
    ///
    /// # Panics
    /// If they are in single precision.
    pub(crate) fn double(self) -> &'a mut [f64] {
        match self {
            Self::Double(numbers) => numbers,
            Self::Single(_) => panic!("numbers in the working precision of the leaf"),
        }
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        match self {
            Self::Single(numbers) => numbers.len(),
            Self::Double(numbers) => numbers.len(),
        }
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn reborrow(&mut self) -> WorkingMut<'_> {
        match self {
            Self::Single(numbers) => WorkingMut::Single(numbers),
            Self::Double(numbers) => WorkingMut::Double(numbers),
        }
    }
}

/// Evaluates an expression on the numbers, whatever their dtype.
macro_rules! each_dtype {
    ($kind:ident, $value:expr, $x:ident => $body:expr) => {
        match $value {
            $kind::F32($x) => $body,
            $kind::F64($x) => $body,
            $kind::F16($x) => $body,
            $kind::BF16($x) => $body,
        }
    };
}

/// Passes over an array are handed to threads in pieces of this many numbers.
const PIECE: usize = 1 << 15;

/// Numbers below which waking another thread costs more than a pass over them.
pub(crate) const WORTH_A_THREAD: usize = 1 << 18;

fn sum_of_pieces<T: Sync>(numbers: &[T], count: impl Fn(&[T]) -> usize + Sync + Send) -> usize {
    if numbers.len() < WORTH_A_THREAD {
        return count(numbers);
    }
    let watch = interrupt::current();
    let counted = numbers.par_chunks(PIECE).map(|piece| {
        watch.check();
        count(piece)
    });
    counted.sum()
}

/// How many numbers are infinite or NaN. Almost always none is, which a vectorized pass finds out faster than counting does.
fn nonfinite<T: Real>(numbers: &[T]) -> usize {
    largest_entry(numbers).map_or_else(|| numbers.iter().filter(|x| !x.is_finite()).count(), |_| 0)
}

impl<'a> Tensor<'a> {
    /// Number of entries.
    pub fn len(&self) -> usize {
        each_dtype!(Tensor, self, x => x.len())
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many entries are infinite or NaN.
    pub fn count_nonfinite(&self) -> usize {
        match self {
            Tensor::F32(x) => sum_of_pieces(x, nonfinite),
            Tensor::F64(x) => sum_of_pieces(x, nonfinite),
            Tensor::F16(x) => sum_of_pieces(x, |piece| piece.iter().filter(|x| !x.is_finite()).count()),
            Tensor::BF16(x) => sum_of_pieces(x, |piece| piece.iter().filter(|x| !x.is_finite()).count()),
        }
    }

    /// The numbers, borrowed and unchanged.
    pub(crate) fn as_is(self) -> Checked<'a> {
        match self {
            Tensor::F32(x) => Checked::F32(x.into()),
            Tensor::F64(x) => Checked::F64(x.into()),
            Tensor::F16(x) => Checked::F16(x.into()),
            Tensor::BF16(x) => Checked::BF16(x.into()),
        }
    }

    /// A copy of the numbers in which, of `copies` equal parts, every part that holds an infinity or NaN is zeroed.
    pub(crate) fn zeroed(self, copies: usize) -> Checked<'a> {
        let mut checked = match self {
            Tensor::F32(x) => Checked::F32(memory::copied(x).into()),
            Tensor::F64(x) => Checked::F64(memory::copied(x).into()),
            Tensor::F16(x) => Checked::F16(memory::copied(x).into()),
            Tensor::BF16(x) => Checked::BF16(memory::copied(x).into()),
        };
        each_dtype!(Checked, &mut checked, x => {
            let length = (x.len() / copies).max(1);
            for part in x.to_mut().chunks_mut(length) {
                if part.iter().any(|x| !x.is_finite()) {
                    part.fill(Default::default());
                }
            }
        });
        checked
    }
}

/// Numbers after the check for infinity and NaN: borrowed if unchanged, or a copy with some parts zeroed.
#[derive(Debug)]
pub(crate) enum Checked<'a> {
    F32(Cow<'a, [f32]>),
    F64(Cow<'a, [f64]>),
    F16(Cow<'a, [f16]>),
    BF16(Cow<'a, [bf16]>),
}

impl Checked<'_> {
    pub fn borrowed(&self) -> Tensor<'_> {
        match self {
            Checked::F32(x) => Tensor::F32(x),
            Checked::F64(x) => Tensor::F64(x),
            Checked::F16(x) => Tensor::F16(x),
            Checked::BF16(x) => Tensor::BF16(x),
        }
    }
}

impl TensorMut<'_> {
    /// Whether the buffer has the dtype and length of an array.
    pub fn fits(&self, input: Tensor<'_>) -> bool {
        match (self, input) {
            (TensorMut::F32(out), Tensor::F32(x)) => out.len() == x.len(),
            (TensorMut::F64(out), Tensor::F64(x)) => out.len() == x.len(),
            (TensorMut::F16(out), Tensor::F16(x)) => out.len() == x.len(),
            (TensorMut::BF16(out), Tensor::BF16(x)) => out.len() == x.len(),
            _ => false,
        }
    }

    pub(crate) fn reborrow(&mut self) -> TensorMut<'_> {
        match self {
            TensorMut::F32(x) => TensorMut::F32(x),
            TensorMut::F64(x) => TensorMut::F64(x),
            TensorMut::F16(x) => TensorMut::F16(x),
            TensorMut::BF16(x) => TensorMut::BF16(x),
        }
    }

    pub(crate) fn view(&self) -> Tensor<'_> {
        match self {
            TensorMut::F32(x) => Tensor::F32(x),
            TensorMut::F64(x) => Tensor::F64(x),
            TensorMut::F16(x) => Tensor::F16(x),
            TensorMut::BF16(x) => Tensor::BF16(x),
        }
    }

    /// Multiplies in place: the array is cut into as many equal parts as there are factors. Half precision is rounded once.
    pub(crate) fn multiply(&mut self, factors: &[f64]) {
        match self {
            TensorMut::F32(x) => multiply_parts(x, factors, |x, a| x * a as f32),
            TensorMut::F64(x) => multiply_parts(x, factors, |x, a| x * a),
            TensorMut::F16(x) => multiply_parts(x, factors, |x, a| f16::from_f32(x.to_f32() * a as f32)),
            TensorMut::BF16(x) => multiply_parts(x, factors, |x, a| bf16::from_f32(x.to_f32() * a as f32)),
        }
    }

    /// Copies the numbers of an array of the same dtype and length.
    ///
    /// # Panics
    /// If dtypes or lengths differ.
    pub(crate) fn copy_from(&mut self, input: Tensor<'_>) {
        match (self, input) {
            (TensorMut::F32(out), Tensor::F32(x)) => out.copy_from_slice(x),
            (TensorMut::F64(out), Tensor::F64(x)) => out.copy_from_slice(x),
            (TensorMut::F16(out), Tensor::F16(x)) => out.copy_from_slice(x),
            (TensorMut::BF16(out), Tensor::BF16(x)) => out.copy_from_slice(x),
            _ => panic!("an output of the dtype of its input"),
        }
    }
}

/// Half precision as single precision.
pub(crate) fn to_single<H>(halves: &[H]) -> Vec<f32>
where
    [H]: HalfFloatSliceExt,
{
    // Through a piece in the first-level cache, so that the memory is written once.
    let mut piece = [0.0; 1024];
    let mut singles = memory::room(halves.len());
    for halves in halves.chunks(piece.len()) {
        let piece = &mut piece[..halves.len()];
        halves.convert_to_f32_slice(piece);
        singles.extend_from_slice(piece);
    }
    singles
}

fn multiply_parts<T: Copy + Send + Sync>(numbers: &mut [T], factors: &[f64], times: impl Fn(T, f64) -> T + Sync) {
    let length = (numbers.len() / factors.len().max(1)).max(1);
    for (part, &factor) in numbers.chunks_mut(length).zip(factors) {
        let multiply = |piece: &mut [T]| piece.iter_mut().for_each(|x| *x = times(*x, factor));
        if part.len() < WORTH_A_THREAD { multiply(part) } else { part.par_chunks_mut(PIECE).for_each(multiply) }
    }
}
