//! Every kernel against singular values from one-sided Jacobi rotations in double precision, on prescribed spectra.

mod capped;
mod machines;
mod norms;
mod orthogonal;

use rand::{Rng, SeedableRng, rngs::StdRng};
use rand_distr::StandardNormal;

use super::jacobi::RowSpace;
use super::*;

/// A matrix whose rows (or columns, if tall) are orthonormal, times the given singular values, times another orthogonal matrix.
fn with_spectrum(rows: usize, cols: usize, spectrum: &[f64], rng: &mut StdRng) -> Vec<f64> {
    let orthogonal = |r: usize, c: usize, rng: &mut StdRng| {
        let gaussian: Vec<f64> = (0..r * c).map(|_| rng.sample(StandardNormal)).collect();
        RowSpace::new(&gaussian, c).polar::<f64>()
    };
    let n = rows.min(cols);
    let (left, right) = (orthogonal(rows, n, rng), orthogonal(n, cols, rng));
    let mut out = vec![0.0; rows * cols];
    for i in 0..rows {
        for k in 0..n {
            for j in 0..cols {
                out[i * cols + j] += left[i * n + k] * spectrum[k] * right[k * cols + j];
            }
        }
    }
    out
}

/// Spectra with largest value 1.
fn spectra(n: usize) -> Vec<(&'static str, Vec<f64>)> {
    let t = |k: usize| {
        if n == 1 { 0.0 } else { k as f64 / (n - 1) as f64 }
    };
    let by = |f: &dyn Fn(usize) -> f64| (0..n).map(f).collect::<Vec<_>>();
    vec![
        ("log-spaced to 1e-3", by(&|k| 10f64.powf(-3.0 * t(k)))),
        ("log-spaced to 1e-6", by(&|k| 10f64.powf(-6.0 * t(k)))),
        ("flat", by(&|_| 1.0)),
        ("clustered", by(&|k| 1.0 - 0.02 * t(k))),
        ("all at 1 but one at 1e-3", by(&|k| if k + 1 == n && n > 1 { 1e-3 } else { 1.0 })),
        ("one at 1, the rest at 1e-3", by(&|k| if k == 0 { 1.0 } else { 1e-3 })),
        ("one at 1, the rest at 0.97", by(&|k| if k == 0 { 1.0 } else { 0.97 })),
        ("rank one", by(&|k| if k == 0 { 1.0 } else { 0.0 })),
        ("linear", by(&|k| 1.0 - 0.999 * t(k))),
    ]
}

const SHAPES: [(usize, usize); 9] = [(1, 1), (1, 7), (5, 1), (3, 3), (17, 31), (64, 16), (40, 40), (13, 130), (97, 53)];

fn ortho<T: Real>(x: &[T], rows: usize, cols: usize, scale: T, accuracy: Accuracy) -> Vec<T> {
    let mut out = vec![T::NAN; x.len()];
    let scales = [scale];
    orthogonalize(&mut [Job::new(Matrices::new(x, 1, rows, cols), &scales, &mut out)], accuracy);
    out
}

fn cast<T: Real>(x: &[f64], factor: f64) -> Vec<T> {
    x.iter().map(|&x| T::from_f64(x * factor)).collect()
}

fn gaussian<T: Real>(len: usize, seed: u64) -> Vec<T> {
    let mut rng = StdRng::seed_from_u64(seed);
    (0..len).map(|_| T::from_f64(rng.sample(StandardNormal))).collect()
}
