//! Spectral norms from a cold start: the Lanczos method, which reads the matrix once a step.

use super::Real;
use super::constants::{LANCZOS_LEAST, LANCZOS_MOST, LANCZOS_TOLERANCE};
use super::machine::Machine;
use super::operator::{Gram, axpy, dot};
use super::scaling::{Norm, halves, largest_entry, unit_scale};
use super::scratch::{grow, with_scratch};
use super::start::{restart, restart_others};
use super::tridiagonal::largest_eigenpair;
use crate::interrupt;

/// The norm by the Lanczos method on `W^T W` with full reorthogonalisation (Golub and Van Loan, section 10.1).
///
/// The first of the vectors becomes the estimate of the leading right singular vector, and the others become start vectors. For a matrix of
/// zeros, or one with an entry that is not finite, all become zero.
pub(super) fn search<T: Real>(gram: Gram<'_, T>, vectors: Option<&mut [T]>) -> Norm<T> {
    let Gram { matrix, cols, machine: Machine { arch, .. }, .. } = gram;
    let largest = largest_entry(matrix).unwrap_or(T::NAN);
    if largest == T::ZERO || !largest.is_finite() {
        if let Some(vectors) = vectors {
            vectors.fill(T::ZERO);
        }
        return Norm { scaled: largest, unit: T::ONE };
    }
    let unit = unit_scale(largest);
    let (before, after) = halves(unit);
    let gram = Gram { unit, ..gram };
    with_scratch(T::scratch(), |scratch| {
        let (basis, scaled) = grow(&mut scratch.vectors, (LANCZOS_MOST + 2) * cols).split_at_mut((LANCZOS_MOST + 1) * cols);
        restart(0, &mut basis[..cols]);
        // The projected matrix, which is tridiagonal.
        let (mut diagonal, mut off_diagonal) = ([0.0; LANCZOS_MOST], [0.0; LANCZOS_MOST]);
        let mut steps = 0;
        let (eigenvalue, weights) = loop {
            steps += 1;
            interrupt::check();
            let (known, next) = basis.split_at_mut(steps * cols);
            let (newest, next) = (&known[(steps - 1) * cols..], &mut next[..cols]);
            // Half of the scale before the products and half after them: at once it would leave numbers that are not normal, which XLA's
            // threads take for zero.
            scaled.iter_mut().zip(newest).for_each(|(scaled, &x)| *scaled = x * before);
            gram.apply::<1>(scaled, next);
            next.iter_mut().for_each(|x| *x *= after);
            diagonal[steps - 1] = dot(arch, next, newest).to_f64();
            for _ in 0..2 {
                for q in known.chunks_exact(cols) {
                    let overlap = dot(arch, next, q);
                    axpy(arch, next, -overlap, q);
                }
            }
            let length = dot(arch, next, next).sqrt();
            // A lower bound of the largest eigenvalue: no diagonal entry is above it.
            let bound = diagonal[..steps].iter().copied().fold(0.0, f64::max);
            let exhausted = length.to_f64() <= 4.0 * T::EPSILON.to_f64() * bound || steps == cols || steps == LANCZOS_MOST;
            if exhausted || steps >= LANCZOS_LEAST {
                let (eigenvalue, weights) = largest_eigenpair::<LANCZOS_MOST>(&diagonal[..steps], &off_diagonal[..steps - 1]);
                let residual = length.to_f64() * weights[steps - 1].abs();
                if exhausted || residual <= LANCZOS_TOLERANCE * eigenvalue {
                    break (eigenvalue, weights);
                }
            }
            next.iter_mut().for_each(|x| *x = *x / length);
            off_diagonal[steps - 1] = length.to_f64();
        };
        if let Some(vectors) = vectors {
            let vector = &mut vectors[..cols];
            vector.fill(T::ZERO);
            for (q, &weight) in basis.chunks_exact(cols).zip(&weights[..steps]) {
                axpy(arch, vector, T::from_f64(weight), q);
            }
            restart_others(vectors, cols);
        }
        Norm { scaled: T::from_f64(eigenvalue.sqrt()), unit }
    })
}
