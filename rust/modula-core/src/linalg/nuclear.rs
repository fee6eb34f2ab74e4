//! Nuclear norms: sums of singular values.

use rayon::prelude::*;

use super::batch::largest_entry;
use super::jacobi::RowSpace;
use super::{Matrices, Real};

/// The nuclear norm of every matrix, one list per batch, to rounding. A matrix with an entry that is infinite or NaN has norm NaN.
pub fn nuclear_norms<T: Real>(batches: &[Matrices<'_, T>]) -> Vec<Vec<T>> {
    let norm = |batch: &Matrices<'_, T>, index| {
        let matrix = batch.matrix(index);
        match largest_entry(matrix) {
            None => T::NAN,
            Some(largest) if largest == T::ZERO => T::ZERO,
            Some(_) => T::from_f64(RowSpace::new(matrix, batch.cols()).singular_values().into_iter().sum()),
        }
    };
    batches.iter().map(|batch| (0..batch.count()).into_par_iter().with_max_len(1).map(|index| norm(batch, index)).collect()).collect()
}
