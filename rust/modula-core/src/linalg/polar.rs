//! Orthogonalisation: the polar factor `U V^T` of every matrix of a model.

use rayon::prelude::*;

use super::batch::{Task, largest_entry, unit_scale};
use super::jacobi::RowSpace;
use super::product::{product, shifted_inverse, transpose};
use super::schedule::{FIRST, POWER_STEPS, SECOND, Stage, start_entry};
use super::{Job, Real};

/// How close to 1 [`orthogonalize`] brings the singular values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accuracy {
    /// Every singular value above a thousandth of the largest within 0.002 of 1; smaller ones in between 0 and 1.
    Standard,
    /// At least what this many Newton-Schulz steps of degree 5 reach after division by the Frobenius norm, for the least work.
    Steps(u32),
    /// To rounding, for every singular value above `epsilon * max(rows, cols)` of the largest; those below become 0.
    Exact,
}

/// Writes `scale * U V^T` for every matrix `U S V^T` of every job. Singular values of zero stay zero.
///
/// The answer does not depend on the scale of the input, however large or small, and zeros give zeros. A matrix with an entry that is
/// infinite or NaN gives NaN throughout.
pub fn orthogonalize<T: Real>(jobs: &mut [Job<'_, T>], accuracy: Accuracy) {
    let mut tasks: Vec<_> = jobs.iter_mut().flat_map(Job::tasks).collect();
    tasks.par_iter_mut().with_max_len(1).for_each(|task| match largest_entry(task.input) {
        None => task.output.fill(T::NAN),
        Some(largest) if largest == T::ZERO || task.scale == T::ZERO => task.output.fill(T::ZERO),
        Some(largest) => match accuracy {
            Accuracy::Exact => exact(task),
            Accuracy::Standard | Accuracy::Steps(_) => rational(task, unit_scale(largest)),
        },
    });
}

fn exact<T: Real>(task: &mut Task<'_, T>) {
    let polar = RowSpace::new(task.input, task.cols).polar::<T>();
    for (out, x) in task.output.iter_mut().zip(polar) {
        *out = T::from_f64(x * task.scale.to_f64());
    }
}

fn rational<T: Real>(task: &mut Task<'_, T>, unit: T) {
    let (n, m) = (task.rows.min(task.cols), task.rows.max(task.cols));
    // tall: m x n
    let mut tall = vec![T::ZERO; n * m];
    if task.rows < task.cols {
        transpose(&mut tall, task.input, task.cols);
    } else {
        tall.copy_from_slice(task.input);
    }
    tall.iter_mut().for_each(|x| *x *= unit);
    let mut gram = vec![T::ZERO; n * n];
    product(&mut gram, &tall, &tall, n, n);
    let inverse_square = T::ONE / largest_eigenvalue(&gram, n);
    let mut wide = vec![T::ZERO; n * m];
    for (stage, squared, factor) in [(FIRST, inverse_square, inverse_square.sqrt()), (SECOND, T::ONE, task.scale)] {
        gram.iter_mut().for_each(|x| *x *= squared);
        let multiplier = multiplier(&gram, n, &stage, factor);
        transpose(&mut wide, &tall, n);
        product(&mut tall, &wide, &multiplier, m, n);
        product(&mut gram, &tall, &tall, n, n);
    }
    if task.rows < task.cols {
        transpose(task.output, &tall, n);
    } else {
        task.output.copy_from_slice(&tall);
    }
}

/// `factor * (constant I + sum_j residue_j (gram + pole_j I)^-1)`
fn multiplier<T: Real>(gram: &[T], n: usize, stage: &Stage, factor: T) -> Vec<T> {
    let mut sum = vec![T::ZERO; n * n];
    for i in 0..n {
        sum[i * n + i] = T::from_f64(stage.constant) * factor;
    }
    for &(pole, residue) in stage.terms {
        let mut inverse = gram.to_vec();
        shifted_inverse(&mut inverse, n, T::from_f64(pole));
        for (s, &x) in sum.iter_mut().zip(&inverse) {
            *s += T::from_f64(residue) * factor * x;
        }
    }
    sum
}

fn largest_eigenvalue<T: Real>(gram: &[T], n: usize) -> T {
    let mut v: Vec<T> = (0..n).map(start_entry).collect();
    let mut eigenvalue = T::ONE;
    for _ in 0..=POWER_STEPS {
        let norm = v.iter().map(|&x| x * x).sum::<T>().sqrt();
        v.iter_mut().for_each(|x| *x = *x / norm);
        v = gram.chunks_exact(n).map(|row| row.iter().zip(&v).map(|(&a, &b)| a * b).sum()).collect();
        eigenvalue = v.iter().map(|&x| x * x).sum::<T>().sqrt();
    }
    eigenvalue
}
