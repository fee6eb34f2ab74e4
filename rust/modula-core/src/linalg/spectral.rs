//! Spectral norms: the Lanczos method from a cold start, one power step from a warm one, each weight read once a step.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::batch::{for_each_largest_first, largest_entry, unit_scale};
use super::product::Machine;
use super::schedule::start_entry;
use super::scratch::{grow, with_scratch};
use super::simd::vectorized;
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
    for_each_largest_first(tasks, |(search, _)| search.work(), |(search, norm), threads| **norm = search.run(threads).value());
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
    for_each_largest_first(
        tasks,
        |((search, _), _)| search.work(),
        |((search, norm), out), threads| {
            let found = search.run(threads);
            **norm = found.value();
            let rows = rows_each(out.input.len(), out.cols, threads);
            let bands = out.output.par_chunks_mut(rows).zip(out.input.par_chunks(rows));
            let scale = out.scale;
            if threads == 1 {
                rescale(out.output, out.input, scale, found);
            } else {
                bands.for_each(|(output, input)| rescale(output, input, scale, found));
            }
        },
    );
    norms
}

/// A norm as `scaled / unit`: itself it may be beyond the range of `T`, or too small to have many digits.
#[derive(Clone, Copy)]
struct Norm<T> {
    scaled: T,
    unit: T,
}

impl<T: Real> Norm<T> {
    fn value(self) -> T {
        self.scaled / self.unit
    }
}

/// `output = scale * input / norm`, zero where the norm is.
fn rescale<T: Real>(output: &mut [T], input: &[T], scale: T, norm: Norm<T>) {
    if norm.scaled == T::ZERO {
        return output.fill(T::ZERO);
    }
    let factor = scale / norm.scaled;
    vectorized!(
        Arch::new(),
        for (out, &x) in output.iter_mut().zip(input) {
            *out = x * norm.unit * factor;
        }
    );
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
    /// A measure of the work it takes, in multiply-adds.
    fn work(&self) -> usize {
        self.matrix.len() * if self.warm { 4 } else { 40 }
    }

    fn run(&mut self, threads: usize) -> Norm<T> {
        let Self { matrix, cols, warm, ref mut vector } = *self;
        let gram = Gram { matrix, cols, unit: T::ONE, machine: Machine { arch: Arch::new(), threads } };
        let stepped = if warm { vector.as_deref_mut().and_then(|u| power_step(gram, u)) } else { None };
        let unscaled = stepped.map(|norm| Norm { scaled: norm, unit: T::ONE });
        unscaled.unwrap_or_else(|| lanczos(gram, vector.as_deref_mut()))
    }
}

/// Numbers in the rows of a matrix of `size` numbers that each of some threads takes.
fn rows_each(size: usize, cols: usize, threads: usize) -> usize {
    (size / cols).div_ceil(threads) * cols
}

/// `unit W^T W` as an operator, which reads W once each time it is applied.
#[derive(Clone, Copy)]
struct Gram<'a, T> {
    matrix: &'a [T],
    cols: usize,
    unit: T,
    machine: Machine,
}

impl<T: Real> Gram<'_, T> {
    /// `image = unit W^T W u`; returns `|W u|^2`.
    fn apply(self, u: &[T], image: &mut [T]) -> T {
        let Machine { arch, threads } = self.machine;
        if threads == 1 {
            return arch.dispatch(GramStep { matrix: self.matrix, unit: self.unit, u, image });
        }
        let bands = self.matrix.par_chunks(rows_each(self.matrix.len(), self.cols, threads));
        let parts: Vec<_> = bands
            .map(|matrix| {
                let mut image = vec![T::ZERO; u.len()];
                let square = arch.dispatch(GramStep { matrix, unit: self.unit, u, image: &mut image });
                (image, square)
            })
            .collect();
        image.fill(T::ZERO);
        let add = |(part, square): &(Vec<T>, T)| {
            axpy(arch, image, T::ONE, part);
            *square
        };
        parts.iter().map(add).sum()
    }
}

/// The rows of a matrix, each used twice while it is in the cache.
struct GramStep<'a, T> {
    matrix: &'a [T],
    unit: T,
    u: &'a [T],
    image: &'a mut [T],
}

impl<T: Real> WithSimd for GramStep<'_, T> {
    type Output = T;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> T {
        const ROWS: usize = 4;
        let Self { matrix, unit, u, image } = self;
        let cols = u.len();
        image.fill(T::ZERO);
        let mut square = T::ZERO;
        let blocks = matrix.chunks_exact(ROWS * cols);
        let last = blocks.remainder().chunks_exact(cols);
        for rows in blocks {
            square += step::<T, S, ROWS>(simd, std::array::from_fn(|i| &rows[i * cols..(i + 1) * cols]), unit, u, image);
        }
        for row in last {
            square += step::<T, S, 1>(simd, [row], unit, u, image);
        }
        square
    }
}

/// `image += unit W^T W u` for a few rows W; returns `|W u|^2`.
#[inline(always)]
fn step<T: Real, S: Simd, const ROWS: usize>(simd: S, rows: [&[T]; ROWS], unit: T, u: &[T], image: &mut [T]) -> T {
    let whole = u.len() / T::lanes::<S>();
    let rest = whole * T::lanes::<S>();
    let registers = rows.map(|row| &T::registers::<S>(row)[..whole]);
    let mut sums = [T::splat(simd, T::ZERO); ROWS];
    for (k, &u) in T::registers::<S>(u)[..whole].iter().enumerate() {
        for (sum, row) in sums.iter_mut().zip(registers) {
            *sum = T::mul_add(simd, row[k], u, *sum);
        }
    }
    let products: [T; ROWS] = std::array::from_fn(|i| {
        let rest = rows[i][rest..].iter().zip(&u[rest..]).map(|(&a, &b)| a * b).sum::<T>();
        T::sum_lanes(simd, sums[i]) + rest
    });
    let factors = products.map(|v| v * unit);
    let (image, image_rest) = image.split_at_mut(rest);
    for (k, image) in T::registers_mut::<S>(image)[..whole].iter_mut().enumerate() {
        for (row, &v) in registers.iter().zip(&factors) {
            *image = T::mul_add(simd, row[k], T::splat(simd, v), *image);
        }
    }
    for (k, image) in image_rest.iter_mut().enumerate() {
        *image += rows.iter().zip(&factors).map(|(row, &v)| row[rest + k] * v).sum();
    }
    products.iter().map(|&v| v * v).sum()
}

/// One power step in place, unless there is nothing to build on or numbers leave the safe range.
fn power_step<T: Real>(gram: Gram<'_, T>, u: &mut [T]) -> Option<T> {
    let arch = gram.machine.arch;
    with_scratch(T::scratch(), |scratch| {
        let image = grow(&mut scratch.vectors, u.len());
        let length = dot(arch, u, u).sqrt();
        let square = gram.apply(u, image);
        let stretched = dot(arch, image, image).sqrt();
        let safe = |x: T| x > T::ONE / T::SAFE && x < T::SAFE;
        if !(safe(length) && safe(square.sqrt()) && safe(stretched)) {
            return None;
        }
        let inverse = T::ONE / stretched;
        for (u, &x) in u.iter_mut().zip(&*image) {
            *u = x * inverse;
        }
        Some(stretched / square.sqrt())
    })
}

/// The Lanczos method on `W^T W` with full reorthogonalisation (Golub and Van Loan, section 10.1).
fn lanczos<T: Real>(gram: Gram<'_, T>, vector: Option<&mut [T]>) -> Norm<T> {
    let Gram { matrix, cols, machine: Machine { arch, .. }, .. } = gram;
    let largest = largest_entry(matrix).unwrap_or(T::NAN);
    if largest == T::ZERO || !largest.is_finite() {
        if let Some(vector) = vector {
            vector.fill(T::ZERO);
        }
        return Norm { scaled: largest, unit: T::ONE };
    }
    let unit = unit_scale(largest);
    let gram = Gram { unit, ..gram };
    with_scratch(T::scratch(), |scratch| {
        let (basis, scaled) = grow(&mut scratch.vectors, (*LANCZOS_STEPS.end() + 2) * cols).split_at_mut((*LANCZOS_STEPS.end() + 1) * cols);
        start(&mut basis[..cols]);
        let most = *LANCZOS_STEPS.end();
        let (mut diagonal, mut off_diagonal) = (Vec::with_capacity(most), Vec::with_capacity(most));
        let (eigenvalue, weights) = loop {
            let steps = diagonal.len() + 1;
            let (known, next) = basis.split_at_mut(steps * cols);
            let (newest, next) = (&known[(steps - 1) * cols..], &mut next[..cols]);
            // Scaled before each product, so that the largest entries do not overflow.
            for (scaled, &x) in scaled.iter_mut().zip(newest) {
                *scaled = x * unit;
            }
            gram.apply(scaled, next);
            diagonal.push(dot(arch, next, newest).to_f64());
            for _ in 0..2 {
                for q in known.chunks_exact(cols) {
                    let overlap = dot(arch, next, q);
                    axpy(arch, next, -overlap, q);
                }
            }
            let length = dot(arch, next, next).sqrt();
            // No entry of the diagonal is above the largest eigenvalue.
            let bound = diagonal.iter().copied().fold(0.0, f64::max);
            let exhausted = length.to_f64() <= 4.0 * T::EPSILON.to_f64() * bound || steps == cols || steps == *LANCZOS_STEPS.end();
            if exhausted || steps >= *LANCZOS_STEPS.start() {
                let (eigenvalue, weights) = largest_eigenpair(&diagonal, &off_diagonal);
                let residual = length.to_f64() * weights[steps - 1].abs();
                if exhausted || residual <= LANCZOS_TOLERANCE * eigenvalue {
                    break (eigenvalue, weights);
                }
            }
            next.iter_mut().for_each(|x| *x = *x / length);
            off_diagonal.push(length.to_f64());
        };
        if let Some(vector) = vector {
            vector.fill(T::ZERO);
            for (q, &weight) in basis.chunks_exact(cols).zip(&weights) {
                axpy(arch, vector, T::from_f64(weight), q);
            }
        }
        Norm { scaled: T::from_f64(eigenvalue.sqrt()), unit }
    })
}

fn start<T: Real>(u: &mut [T]) {
    for (index, u) in u.iter_mut().enumerate() {
        *u = start_entry(index);
    }
    let length = dot(Arch::new(), u, u).sqrt();
    u.iter_mut().for_each(|x| *x = *x / length);
}

fn axpy<T: Real>(arch: Arch, y: &mut [T], a: T, x: &[T]) {
    vectorized!(
        arch,
        for (y, &x) in y.iter_mut().zip(x) {
            *y += a * x;
        }
    );
}

fn dot<T: Real>(arch: Arch, a: &[T], b: &[T]) -> T {
    vectorized!(arch, dot_lanes(a, b))
}

#[inline(always)]
fn dot_lanes<T: Real>(a: &[T], b: &[T]) -> T {
    const LANES: usize = 32;
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
