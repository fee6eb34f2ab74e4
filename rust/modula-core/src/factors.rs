//! What [`Update::Normalize`](crate::blocks::Update::Normalize) multiplies blocks by, for callers that multiply themselves: a compiler that
//! fuses it with what comes next reads and writes the weights once less.

use std::borrow::Cow;

use crate::atom::Geometry;
use crate::blocks::{Group, rounded};
use crate::linalg::{self, Matrices, Real, Vectors};
use crate::rows::{self, Measure};
use crate::tensor::{Tensor, to_single};

/// One leaf of a whole-model call.
#[derive(Debug)]
pub struct Measured<'a> {
    /// Its batch.
    pub group: Group,
    /// What comes in.
    pub input: Tensor<'a>,
    /// One number for each block.
    pub scales: Cow<'a, [f64]>,
    /// Of matrices: `count * VECTORS * cols` estimates of the right singular vectors, refined by one step; estimates of zero are a cold start.
    pub vectors: Option<WorkingMut<'a>>,
    /// Where the factors go: two numbers for each block that is a matrix, and for each row of all others.
    pub factors: WorkingMut<'a>,
}

/// Numbers in the working precision of a leaf.
#[derive(Debug)]
pub enum WorkingMut<'a> {
    /// For single and half precision.
    Single(&'a mut [f32]),
    /// For double precision.
    Double(&'a mut [f64]),
}

impl<'a> WorkingMut<'a> {
    fn single(self) -> &'a mut [f32] {
        match self {
            Self::Single(numbers) => numbers,
            Self::Double(_) => panic!("numbers in the working precision of the leaf"),
        }
    }

    fn double(self) -> &'a mut [f64] {
        match self {
            Self::Double(numbers) => numbers,
            Self::Single(_) => panic!("numbers in the working precision of the leaf"),
        }
    }
}

/// A leaf in working precision `T`.
struct Work<'a, T> {
    group: Group,
    input: &'a [T],
    scales: Vec<T>,
    vectors: Option<&'a mut [T]>,
    factors: &'a mut [T],
}

/// Writes, for every matrix (elsewhere every row) of every leaf, the two numbers that give `scale` times its direction when it is multiplied by one
/// after the other. The first is a power of two that brings entries near 1, so that nothing leaves the range in between.
///
/// The second is zero for zeros, and NaN where an entry is not finite. Custom leaves are left out.
///
/// # Panics
/// If lengths or precisions within a leaf disagree.
pub fn factors(leaves: Vec<Measured<'_>>) {
    let (mut singles, mut doubles) = (Vec::new(), Vec::new());
    for Measured { group, input, scales, vectors, factors } in leaves {
        // Half precision leaf by leaf, so that there is one wider copy at a time.
        let wide = match input {
            Tensor::F32(input) => {
                let (vectors, factors) = (vectors.map(WorkingMut::single), factors.single());
                singles.push(Work { group, input, scales: rounded(&scales), vectors, factors });
                continue;
            }
            Tensor::F64(input) => {
                let (vectors, factors) = (vectors.map(WorkingMut::double), factors.double());
                doubles.push(Work { group, input, scales: scales.into_owned(), vectors, factors });
                continue;
            }
            Tensor::F16(input) => to_single(input),
            Tensor::BF16(input) => to_single(input),
        };
        let (vectors, factors) = (vectors.map(WorkingMut::single), factors.single());
        run(vec![Work { group, input: &wide, scales: rounded(&scales), vectors, factors }]);
    }
    run(singles);
    run(doubles);
}

fn run<T: Real>(leaves: Vec<Work<'_, T>>) {
    let (mut batches, mut estimates, mut places) = (Vec::new(), Vec::new(), Vec::new());
    for Work { group: Group { geometry, count, rows, cols }, input, scales, vectors, factors } in leaves {
        let by = match geometry {
            Geometry::Spectral => {
                batches.push(Matrices::new(input, count, rows, cols));
                estimates.push(vectors.map_or(Vectors::Discard, Vectors::Refine));
                places.push((scales, factors));
                continue;
            }
            Geometry::RowRms | Geometry::Rms => Measure::Rms,
            Geometry::MaxAbs => Measure::MaxAbs,
            Geometry::Custom => continue,
        };
        rows::factors(input, (rows, cols), &scales, by, factors);
    }
    for ((scales, factors), norms) in places.into_iter().zip(linalg::scaled_norms(&batches, &mut estimates)) {
        for ((pair, norm), scale) in factors.chunks_exact_mut(2).zip(norms).zip(scales) {
            pair.copy_from_slice(&norm.factors(scale));
        }
    }
}
