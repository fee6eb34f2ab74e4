//! Spectral norms from a warm start: one step of block power iteration, and the largest norm on the space that the vectors span.
//!
//! [`VECTORS`] says why there is more than one vector.

use pulp::Arch;

use super::Real;
use super::constants::{DROP_SHARE, SQUARINGS, STALE_SHARE, VECTORS};
use super::operator::{Gram, Squares, axpy, dot};
use super::scratch::{grow, with_scratch};
use super::start::restart;

/// Refines the estimates in place and returns a lower bound of the norm. But for what [`DROP_SHARE`] and [`SQUARINGS`] neglect, it is at
/// least the bound that a power step from any single estimate gives.
///
/// None if the estimates are zero or stale, or if numbers leave the safe range.
pub(super) fn refine<T: Real>(gram: Gram<'_, T>, u: &mut [T]) -> Option<T> {
    let (arch, cols) = (gram.machine.arch, gram.cols);
    with_scratch(T::scratch(), |scratch| {
        let image = grow(&mut scratch.vectors, u.len());
        let seen = gram.apply::<VECTORS>(u, image);
        let vector = |j: usize| j * cols..(j + 1) * cols;
        let quotient = |j: usize| seen[j][j] / dot(arch, &u[vector(j)], &u[vector(j)]).to_f64();
        let before = (0..VECTORS).map(quotient).fold(0.0, f64::max);
        // With Y = W U and C such that Y C is orthonormal, the columns of W^T Y C have the norm of W^T on the space of Y, and span the next
        // U.
        combine(arch, image, cols, &orthonormalizer(&seen));
        let reached = symmetric(|i, j| dot(arch, &image[vector(i)], &image[vector(j)]).to_f64());
        let square = largest_eigenvalue(&reached);
        let safe = |square: f64| square.sqrt() > 1.0 / T::SAFE.to_f64() && square.sqrt() < T::SAFE.to_f64();
        if !(safe(before) && safe(square) && before > STALE_SHARE * square) {
            return None;
        }
        let basis = orthonormalizer(&reached);
        combine(arch, image, cols, &basis);
        u.copy_from_slice(image);
        for (j, _) in basis.iter().enumerate().filter(|(_, row)| row.iter().all(|&x| x == 0.0)) {
            restart(j, &mut u[vector(j)]);
        }
        Some(T::from_f64(square.sqrt()))
    })
}

/// Rows c_i with `c_i^T G c_j = 1` for i = j and 0 otherwise, where c_i combines the first i + 1 directions. A dropped direction has zeros.
fn orthonormalizer(gram: &Squares<VECTORS>) -> Squares<VECTORS> {
    let mut rows = [[0.0; VECTORS]; VECTORS];
    for j in 0..VECTORS {
        let mut row = [0.0; VECTORS];
        row[j] = 1.0;
        for known in &rows[..j] {
            let overlap = form(known, gram, &row);
            (0..VECTORS).for_each(|k| row[k] -= overlap * known[k]);
        }
        let square = form(&row, gram, &row);
        if square > DROP_SHARE * gram[j][j] {
            rows[j] = row.map(|x| x / square.sqrt());
        }
    }
    rows
}

/// Replaces vectors by linear combinations of them, whose coefficients are the rows of a lower triangular matrix.
fn combine<T: Real>(arch: Arch, vectors: &mut [T], cols: usize, rows: &Squares<VECTORS>) {
    for (j, row) in rows.iter().enumerate().rev() {
        let (before, vector) = vectors.split_at_mut(j * cols);
        let vector = &mut vector[..cols];
        let own = T::from_f64(row[j]);
        vector.iter_mut().for_each(|x| *x *= own);
        for (other, &factor) in before.chunks_exact(cols).zip(row) {
            axpy(arch, vector, T::from_f64(factor), other);
        }
    }
}

/// The largest eigenvalue of a positive semi-definite matrix: the Rayleigh quotient of the largest row after [`SQUARINGS`] squarings.
fn largest_eigenvalue(matrix: &Squares<VECTORS>) -> f64 {
    let mut power = *matrix;
    for _ in 0..SQUARINGS {
        // The largest entry of a positive semi-definite matrix is on the diagonal.
        let largest = (0..VECTORS).fold(0.0_f64, |top, i| top.max(power[i][i]));
        let scaled = power.map(|row| row.map(|x| x / largest));
        power = symmetric(|i, j| (0..VECTORS).map(|k| scaled[i][k] * scaled[k][j]).sum());
    }
    let row = (0..VECTORS).max_by(|&i, &j| power[i][i].total_cmp(&power[j][j])).map_or([0.0; VECTORS], |i| power[i]);
    form(&row, matrix, &row) / row.iter().map(|x| x * x).sum::<f64>()
}

/// `a^T M b`
fn form(a: &[f64; VECTORS], matrix: &Squares<VECTORS>, b: &[f64; VECTORS]) -> f64 {
    a.iter().zip(matrix).map(|(a, row)| a * row.iter().zip(b).map(|(m, b)| m * b).sum::<f64>()).sum()
}

fn symmetric(entry: impl Fn(usize, usize) -> f64) -> Squares<VECTORS> {
    std::array::from_fn(|i| std::array::from_fn(|j| entry(i.max(j), i.min(j))))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::jacobi::RowSpace;
    use super::*;

    /// The largest eigenvalue is found to the share that [`SQUARINGS`] promises, from below.
    fn check(matrix: &Squares<VECTORS>, exact: f64) {
        let found = largest_eigenvalue(matrix) / exact;
        let low = (VECTORS as f64).ln() / f64::from(1 << SQUARINGS);
        assert!((1.0 - low..=1.0 + 1e-12).contains(&found), "{found} of the largest eigenvalue of {matrix:?}");
    }

    /// The row with the largest diagonal entry is the second eigenvector, while the first eigenvector is spread over the three other rows.
    #[test]
    fn the_second_eigenvector_may_own_the_largest_row() {
        for tenths in 0..20 {
            let second = (-f64::from(tenths) / 10.0 / f64::from(1 << SQUARINGS)).exp();
            let mut matrix = [[1.0 / 3.0; VECTORS]; VECTORS];
            matrix[0] = [second, 0.0, 0.0, 0.0];
            matrix[1..].iter_mut().for_each(|row| row[0] = 0.0);
            check(&matrix, 1.0);
        }
    }

    proptest! {
        #[test]
        fn squarings_find_the_largest_eigenvalue(entries in prop::array::uniform16(-1.0..1.0), close in 0.0..1e-2) {
            // The rows of a polar factor are orthonormal, so that their lengths become the singular values when each is scaled.
            let mut rows = RowSpace::new(&entries, VECTORS).polar::<f64>();
            for (i, row) in rows.chunks_mut(VECTORS).enumerate() {
                row.iter_mut().for_each(|x| *x *= 1.0 - close * i as f64);
            }
            let entry = |k: usize, i: usize| rows[k * VECTORS + i];
            let exact = RowSpace::new(&rows, VECTORS).singular_values().into_iter().fold(0.0, f64::max).powi(2);
            check(&symmetric(|i, j| (0..VECTORS).map(|k| entry(k, i) * entry(k, j)).sum()), exact);
        }
    }
}
