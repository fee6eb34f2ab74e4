//! Spectral norms from a cold start: the Lanczos method, which reads the matrix once a step.

use super::Real;
use super::batch::{largest_entry, unit_scale};
use super::operator::{Gram, axpy, dot};
use super::product::Machine;
use super::scratch::{grow, with_scratch};
use super::subspace::{accompany, restart};
use super::tridiagonal::largest_eigenpair;
use crate::interrupt;

/// Power steps of the Lanczos method before its residual is believed.
///
/// The residual certifies *some* singular value; after eight steps from a random vector an unseen one a per cent above would show in it.
const FEWEST: usize = 8;

/// Power steps at most.
const MOST: usize = 40;

/// Relative residual, in the square of the norm, at which the Lanczos method stops.
const TOLERANCE: f64 = 1e-3;

/// A norm as `scaled / unit`: itself it may be beyond the range of `T`, or too small to have many digits.
#[derive(Clone, Copy)]
pub(crate) struct Norm<T> {
    pub scaled: T,
    pub unit: T,
}

impl<T: Real> Norm<T> {
    pub fn value(self) -> T {
        self.scaled / self.unit
    }

    /// What makes of a matrix of this norm one of norm `scale`, multiplied by one after the other: the first brings entries near 1, so that
    /// nothing leaves the range in between. Zeros stay zero.
    pub fn factors(self, scale: T) -> [T; 2] {
        [self.unit, if self.scaled == T::ZERO { T::ZERO } else { scale / self.scaled }]
    }
}

/// The Lanczos method on `W^T W` with full reorthogonalisation (Golub and Van Loan, section 10.1). The vectors get its estimate, and others
/// beside it to go on from; zeros where there is none.
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
    let gram = Gram { unit, ..gram };
    with_scratch(T::scratch(), |scratch| {
        let (basis, scaled) = grow(&mut scratch.vectors, (MOST + 2) * cols).split_at_mut((MOST + 1) * cols);
        restart(0, &mut basis[..cols]);
        // The projected matrix, which is tridiagonal.
        let (mut diagonal, mut off_diagonal) = ([0.0; MOST], [0.0; MOST]);
        let mut steps = 0;
        let (eigenvalue, weights) = loop {
            steps += 1;
            interrupt::check();
            let (known, next) = basis.split_at_mut(steps * cols);
            let (newest, next) = (&known[(steps - 1) * cols..], &mut next[..cols]);
            // Scaled before each product, so that the largest entries do not overflow.
            for (scaled, &x) in scaled.iter_mut().zip(newest) {
                *scaled = x * unit;
            }
            gram.apply::<1>(scaled, next);
            diagonal[steps - 1] = dot(arch, next, newest).to_f64();
            for _ in 0..2 {
                for q in known.chunks_exact(cols) {
                    let overlap = dot(arch, next, q);
                    axpy(arch, next, -overlap, q);
                }
            }
            let length = dot(arch, next, next).sqrt();
            // No entry of the diagonal is above the largest eigenvalue.
            let bound = diagonal[..steps].iter().copied().fold(0.0, f64::max);
            let exhausted = length.to_f64() <= 4.0 * T::EPSILON.to_f64() * bound || steps == cols || steps == MOST;
            if exhausted || steps >= FEWEST {
                let (eigenvalue, weights) = largest_eigenpair::<MOST>(&diagonal[..steps], &off_diagonal[..steps - 1]);
                let residual = length.to_f64() * weights[steps - 1].abs();
                if exhausted || residual <= TOLERANCE * eigenvalue {
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
            accompany(vectors, cols);
        }
        Norm { scaled: T::from_f64(eigenvalue.sqrt()), unit }
    })
}
