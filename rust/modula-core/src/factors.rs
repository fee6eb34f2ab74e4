//! The two numbers that [`Op::Unit`](crate::blocks::Op::Unit) multiplies a block by. A compiler that does the multiplication itself can fuse it
//! with the update of the weights, which saves one pass over them.

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
    /// Its batch.
    pub batch: Batch,
    /// What comes in.
    pub input: Tensor<'a>,
    /// One number for each block.
    pub scales: Cow<'a, [f64]>,
    /// Of matrices: `count * VECTORS * cols` estimates of the right singular vectors, refined by one step; estimates of zero are a cold start.
    pub vectors: Option<WorkingMut<'a>>,
    /// Where the factors go: two numbers for each block that is a matrix, and for each row of all others.
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

/// Writes, for every matrix (elsewhere every row) of every leaf, the two numbers that give `scale` times its direction when it is multiplied by one
/// after the other. The first is a power of two that brings entries near 1, so that nothing leaves the range in between.
///
/// The second is zero for zeros, and NaN where an entry is not finite. Custom leaves are left out.
///
/// # Panics
/// If lengths or precisions within a leaf disagree.
pub fn factors(leaves: Vec<Measured<'_>>) {
    let (mut singles, mut doubles) = (Vec::new(), Vec::new());
    for Measured { batch, input, scales, vectors, factors } in leaves {
        // Half precision leaf by leaf, so that there is one wider copy at a time.
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
