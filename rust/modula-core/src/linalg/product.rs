//! Matrix products on plain row-major slices.

use super::Real;

/// `c = a^T b` for `a` of `depth x rows`, `b` of `depth x cols`.
pub(super) fn product<T: Real>(c: &mut [T], a: &[T], b: &[T], rows: usize, cols: usize) {
    c.fill(T::ZERO);
    for (a, b) in a.chunks_exact(rows).zip(b.chunks_exact(cols)) {
        for (c, &a) in c.chunks_exact_mut(cols).zip(a) {
            for (c, &b) in c.iter_mut().zip(b) {
                *c += a * b;
            }
        }
    }
}

/// `t = a^T` for `a` of `rows x cols`.
pub(super) fn transpose<T: Real>(t: &mut [T], a: &[T], cols: usize) {
    let rows = a.len() / cols;
    for (i, row) in a.chunks_exact(cols).enumerate() {
        for (j, &x) in row.iter().enumerate() {
            t[j * rows + i] = x;
        }
    }
}

/// `a = (a + shift I)^-1` for symmetric positive semi-definite `a` and a positive shift, by Gauss-Jordan elimination.
pub(super) fn shifted_inverse<T: Real>(a: &mut [T], n: usize, shift: T) {
    for i in 0..n {
        a[i * n + i] += shift;
    }
    let mut pivot_row = vec![T::ZERO; n];
    for k in 0..n {
        // Rounding may bring a pivot below the shift, which in exact arithmetic bounds it from below.
        let pivot = if a[k * n + k] < shift { shift } else { a[k * n + k] };
        pivot_row.copy_from_slice(&a[k * n..(k + 1) * n]);
        pivot_row.iter_mut().for_each(|x| *x = *x / pivot);
        pivot_row[k] = T::ONE / pivot;
        for (i, row) in a.chunks_exact_mut(n).enumerate() {
            if i == k {
                row.copy_from_slice(&pivot_row);
                continue;
            }
            let factor = row[k];
            row[k] = T::ZERO;
            for (x, &p) in row.iter_mut().zip(&pivot_row) {
                *x -= factor * p;
            }
        }
    }
}
