//! Spectral norms: the Lanczos method from a cold start, one power step from a warm one, each weight read once a step.

use rayon::prelude::*;

use super::batch::{largest_entry, unit_scale};
use super::schedule::start_entry;
use super::tridiagonal::largest_eigenpair;
use super::{Job, Matrices, Real};

/// Where the search for a largest singular value starts, and what becomes of the right singular vectors it finds.
///
/// The slices hold one vector of length `cols` per matrix, one after the other.
#[derive(Debug)]
pub enum Vectors<'a, T> {
    /// Cold start; the vectors are not wanted.
    Discard,
    /// Cold start; the vectors are written here.
    Fill(&'a mut [T]),
    /// Warm start: one power step from the vectors given here, which it replaces. A vector that is zero, undefined or in the null space of
    /// its matrix counts as a cold start.
    Refine(&'a mut [T]),
}

/// Power steps of the Lanczos method before its residual is believed, and at most.
///
/// The residual certifies *some* singular value; after eight steps from a random vector an unseen one a per cent above would show in it.
const LANCZOS_STEPS: std::ops::RangeInclusive<usize> = 8..=40;

/// Relative residual, in the square of the norm, at which the Lanczos method stops.
const LANCZOS_TOLERANCE: f64 = 1e-3;

/// The spectral norm of every matrix, one list per batch.
///
/// From a cold start within 1 % of the true norm on any spectrum; a warm start gives the lower bound `|W^T W u| / |W u|`. Zeros have norm 0; a matrix with an
/// entry that is infinite or NaN has norm NaN.
///
/// # Panics
/// If there is not one entry of `vectors` per batch, or its length is not `count * cols`.
pub fn spectral_norms<T: Real>(batches: &[Matrices<'_, T>], vectors: &mut [Vectors<'_, T>]) -> Vec<Vec<T>> {
    assert_eq!(batches.len(), vectors.len(), "one entry of `vectors` per batch");
    let mut norms: Vec<Vec<T>> = batches.iter().map(|batch| vec![T::ZERO; batch.count()]).collect();
    let tasks: Vec<_> =
        batches.iter().zip(vectors).zip(&mut norms).flat_map(|((batch, vectors), norms)| searches(*batch, vectors, norms)).collect();
    tasks.into_par_iter().with_max_len(1).for_each(|(task, norm)| *norm = task.run());
    norms
}

/// Writes `scale * W / |W|` for every matrix W of every job, with spectral norms as [`spectral_norms`] finds them, and returns the norms.
///
/// Zeros give zeros.
///
/// # Panics
/// As [`spectral_norms`].
pub fn normalize<T: Real>(jobs: &mut [Job<'_, T>], vectors: &mut [Vectors<'_, T>]) -> Vec<Vec<T>> {
    assert_eq!(jobs.len(), vectors.len(), "one entry of `vectors` per job");
    let mut norms: Vec<Vec<T>> = jobs.iter().map(|job| vec![T::ZERO; job.input.count()]).collect();
    let tasks: Vec<_> = jobs
        .iter_mut()
        .zip(vectors)
        .zip(&mut norms)
        .flat_map(|((job, vectors), norms)| searches(job.input, vectors, norms).zip(job.tasks()))
        .collect();
    tasks.into_par_iter().with_max_len(1).for_each(|((search, norm), out)| {
        *norm = search.run();
        rescale(out.output, out.input, out.scale, *norm);
    });
    norms
}

/// `output = scale * input / norm`, zero where the norm is.
fn rescale<T: Real>(output: &mut [T], input: &[T], scale: T, norm: T) {
    if norm == T::ZERO {
        return output.fill(T::ZERO);
    }
    let factor = scale / norm;
    // A factor out of range is applied in two halves, each of which is in range.
    let in_range = factor.abs() > T::ONE / T::LARGEST_SCALE && factor.abs() < T::LARGEST_SCALE;
    let (first, second) = if in_range || scale == T::ZERO { (factor, T::ONE) } else { (T::ONE / norm, scale) };
    for (out, &x) in output.iter_mut().zip(input) {
        *out = x * first * second;
    }
}

/// The search for the norm of one matrix.
struct Search<'a, T> {
    matrix: &'a [T],
    cols: usize,
    vector: Option<&'a mut [T]>,
    warm: bool,
}

/// One search per matrix, with the place for its result.
fn searches<'a, T: Real>(
    batch: Matrices<'a, T>,
    vectors: &'a mut Vectors<'_, T>,
    norms: &'a mut [T],
) -> impl Iterator<Item = (Search<'a, T>, &'a mut T)> {
    let (warm, slice) = match vectors {
        Vectors::Discard => (false, None),
        Vectors::Fill(slice) => (false, Some(&mut **slice)),
        Vectors::Refine(slice) => (true, Some(&mut **slice)),
    };
    let cols = batch.cols();
    if let Some(slice) = &slice {
        assert_eq!(slice.len(), batch.count() * cols, "a vector of length {cols} per matrix");
    }
    let mut slices = slice.map(|slice| slice.chunks_exact_mut(cols.max(1)));
    let count = if batch.size() == 0 { 0 } else { batch.count() };
    norms.iter_mut().take(count).enumerate().map(move |(index, norm)| {
        let vector = slices.as_mut().and_then(Iterator::next);
        (Search { matrix: batch.matrix(index), cols, vector, warm }, norm)
    })
}

impl<T: Real> Search<'_, T> {
    fn run(mut self) -> T {
        let warm = if self.warm { self.vector.as_deref_mut().and_then(|u| power_step(self.matrix, u)) } else { None };
        warm.unwrap_or_else(|| lanczos(self.matrix, self.cols, self.vector))
    }
}

/// `unit W^T W u`, and `|W u|^2`, in one pass over W.
fn gram_apply<T: Real>(matrix: &[T], u: &[T], unit: T) -> (Vec<T>, T) {
    let mut image = vec![T::ZERO; u.len()];
    let mut square = T::ZERO;
    for row in matrix.chunks_exact(u.len()) {
        let v = dot(row, u);
        square += v * v;
        axpy(&mut image, v * unit, row);
    }
    (image, square)
}

/// One power step in place, unless there is nothing to build on or numbers leave the safe range.
fn power_step<T: Real>(matrix: &[T], u: &mut [T]) -> Option<T> {
    let length = dot(u, u).sqrt();
    let (image, square) = gram_apply(matrix, u, T::ONE);
    let stretched = dot(&image, &image).sqrt();
    let safe = |x: T| x > T::ONE / T::SAFE && x < T::SAFE;
    if !(safe(length) && safe(square.sqrt()) && safe(stretched)) {
        return None;
    }
    for (u, &x) in u.iter_mut().zip(&image) {
        *u = x / stretched;
    }
    Some(stretched / square.sqrt())
}

/// The Lanczos method on `W^T W` with full reorthogonalisation (Golub and Van Loan, section 10.1).
fn lanczos<T: Real>(matrix: &[T], cols: usize, vector: Option<&mut [T]>) -> T {
    let Some(largest) = largest_entry(matrix) else {
        return undefined(vector);
    };
    if largest == T::ZERO {
        if let Some(vector) = vector {
            vector.fill(T::ZERO);
        }
        return T::ZERO;
    }
    let unit = unit_scale(largest);
    let mut basis: Vec<Vec<T>> = vec![start(cols)];
    let (mut diagonal, mut off_diagonal) = (Vec::new(), Vec::new());
    let mut eigenpair;
    loop {
        let newest = &basis[basis.len() - 1];
        // Scaled before the product, so that the largest entries do not overflow.
        let scaled: Vec<T> = newest.iter().map(|&x| x * unit).collect();
        let (mut next, _) = gram_apply(matrix, &scaled, unit);
        diagonal.push(dot(&next, newest).to_f64());
        for _ in 0..2 {
            for q in &basis {
                let overlap = dot(&next, q);
                axpy(&mut next, -overlap, q);
            }
        }
        let length = dot(&next, &next).sqrt();
        eigenpair = largest_eigenpair(&diagonal, &off_diagonal);
        let (eigenvalue, weights) = &eigenpair;
        let residual = length.to_f64() * weights[weights.len() - 1].abs();
        let steps = basis.len();
        let converged = steps >= *LANCZOS_STEPS.start() && residual <= LANCZOS_TOLERANCE * eigenvalue;
        let exhausted = length.to_f64() <= 4.0 * T::EPSILON.to_f64() * eigenvalue || steps == cols || steps == *LANCZOS_STEPS.end();
        if converged || exhausted {
            break;
        }
        next.iter_mut().for_each(|x| *x = *x / length);
        off_diagonal.push(length.to_f64());
        basis.push(next);
    }
    let (eigenvalue, weights) = eigenpair;
    if let Some(vector) = vector {
        vector.fill(T::ZERO);
        for (q, &weight) in basis.iter().zip(&weights) {
            axpy(vector, T::from_f64(weight), q);
        }
    }
    T::from_f64(eigenvalue.sqrt()) / unit
}

fn undefined<T: Real>(vector: Option<&mut [T]>) -> T {
    if let Some(vector) = vector {
        vector.fill(T::ZERO);
    }
    T::NAN
}

fn start<T: Real>(cols: usize) -> Vec<T> {
    let mut u: Vec<T> = (0..cols).map(start_entry).collect();
    let length = dot(&u, &u).sqrt();
    u.iter_mut().for_each(|x| *x = *x / length);
    u
}

fn axpy<T: Real>(y: &mut [T], a: T, x: &[T]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y += a * x;
    }
}

fn dot<T: Real>(a: &[T], b: &[T]) -> T {
    const LANES: usize = 16;
    let (a_chunks, a_rest) = a.as_chunks::<LANES>();
    let (b_chunks, b_rest) = b.as_chunks::<LANES>();
    let mut sums = [T::ZERO; LANES];
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for ((s, &a), &b) in sums.iter_mut().zip(a).zip(b) {
            *s += a * b;
        }
    }
    sums.into_iter().sum::<T>() + a_rest.iter().zip(b_rest).map(|(&a, &b)| a * b).sum()
}
