//! The two factors by which [`Op::Unit`](crate::blocks::Op::Unit) multiplies a block, without the multiplication itself. A compiler such as
//! XLA can then fuse that multiplication with the update of the weights, which saves one pass over the weights.

use std::borrow::Cow;

use crate::atom::Geometry;
use crate::blocks::{owned, rounded};
use crate::linalg::{self, Matrices, Real, Vectors};
use crate::norm::Batch;
use crate::rows::{self, Measure};
use crate::tensor::{Tensor, WorkingMut, to_single};

/// One leaf of a whole-model call.
#[derive(Debug)]
pub struct Measured<'a> {
    /// How the array of the leaf divides into blocks.
    pub batch: Batch,
    /// The blocks, one after the other.
    pub input: Tensor<'a>,
    /// One number for each block.
    pub scales: Cow<'a, [f64]>,
    /// For matrices: `count * VECTORS * cols` estimates of the right singular vectors, refined by one step of block power iteration. Where
    /// the estimates are zero, a cold start finds them.
    pub vectors: Option<WorkingMut<'a>>,
    /// The results: two factors for each matrix, and for each row of any other block.
    pub factors: WorkingMut<'a>,
}

/// A leaf in working precision `T`.
struct Work<'a, T> {
    batch: Batch,
    input: &'a [T],
    scales: Vec<T>,
    vectors: Option<&'a mut [T]>,
    factors: &'a mut [T],
}

/// Writes two factors for every matrix, and for every row of any other block: multiplied by the first and then by the second, the matrix or
/// row has the norm `scale`. The first factor is a power of two that brings the entries near 1, so that no intermediate product overflows
/// or underflows.
///
/// The second factor is zero for a matrix or row of zeros, and NaN where an entry is not finite. The factors of custom leaves are not
/// written.
///
/// # Panics
/// If lengths or precisions within a leaf disagree.
pub fn factors(leaves: Vec<Measured<'_>>) {
    let (mut singles, mut doubles) = (Vec::new(), Vec::new());
    for Measured { batch, input, scales, vectors, factors } in leaves {
        // Leaves of half precision are measured one by one, so that only one single-precision copy exists at a time.
        let wide = match input {
            Tensor::F32(input) => {
                let (vectors, factors) = (vectors.map(WorkingMut::single), factors.single());
                singles.push(Work { batch, input, scales: rounded(&scales), vectors, factors });
                continue;
            }
            Tensor::F64(input) => {
                let (vectors, factors) = (vectors.map(WorkingMut::double), factors.double());
                doubles.push(Work { batch, input, scales: owned(scales), vectors, factors });
                continue;
            }
            Tensor::F16(input) => to_single(input),
            Tensor::BF16(input) => to_single(input),
        };
        let (vectors, factors) = (vectors.map(WorkingMut::single), factors.single());
        run(vec![Work { batch, input: &wide, scales: rounded(&scales), vectors, factors }]);
    }
    run(singles);
    run(doubles);
}

fn run<T: Real>(leaves: Vec<Work<'_, T>>) {
    let (mut batches, mut estimates, mut places) = (Vec::new(), Vec::new(), Vec::new());
    for Work { batch: Batch { geometry, count, rows, cols }, input, scales, vectors, factors } in leaves {
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
