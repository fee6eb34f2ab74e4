//! Nuclear norms: sums of singular values.

use super::scaling::largest_entry;
use super::threads::for_each_largest_first;
use super::{Matrices, Real, exact};
use crate::memory;

/// The nuclear norm of every matrix, one list per batch: to 1e-5 in single precision, 1e-10 in double. A matrix with an entry that is
/// infinite or NaN has norm NaN.
pub fn nuclear_norms<T: Real>(batches: &[Matrices<'_, T>]) -> Vec<Vec<T>> {
    let mut norms: Vec<_> = batches.iter().map(|batch| memory::filled(T::ZERO, batch.count())).collect();
    let places =
        batches.iter().zip(&mut norms).flat_map(|(batch, norms)| norms.iter_mut().enumerate().map(move |(i, norm)| (batch, i, norm)));
    let work = |(batch, ..): &(&Matrices<'_, T>, usize, &mut T)| 16 * batch.size() * batch.rows().min(batch.cols());
    for_each_largest_first(memory::collected(places), work, |(batch, index, norm), threads| {
        let matrix = batch.matrix(*index);
        **norm = match largest_entry(matrix) {
            None => T::NAN,
            Some(largest) if largest == T::ZERO => T::ZERO,
            Some(_) => T::from_f64(exact::nuclear(matrix, batch.rows(), batch.cols(), threads)),
        };
    });
    norms
}
