//! Spectral norms: the Lanczos method from a cold start, one step of block power iteration from a warm start. Each step reads the matrix
//! once.

use rayon::prelude::*;

use super::constants::VECTORS;
use super::lanczos;
use super::machine::{self, Machine};
use super::operator::{Gram, rows_each};
use super::scaling::Norm;
use super::simd::vectorized;
use super::subspace;
use super::threads::for_each_largest_first;
use super::{Job, Matrices, Real};
use crate::memory;

/// Where the search for the largest singular value of each matrix starts, and whether its right singular vectors are returned.
///
/// The slices hold [`VECTORS`] vectors of length `cols` per matrix, one after the other.
#[derive(Debug)]
pub enum Vectors<'a, T> {
    /// Cold start; the vectors are not returned.
    Discard,
    /// Cold start; the vectors are written here.
    Fill(&'a mut [T]),
    /// Warm start: one step of block power iteration from these estimates, which it replaces. The search starts cold if the estimates are
    /// zero, not finite or stale ([`STALE_SHARE`](super::constants::STALE_SHARE)).
    Refine(&'a mut [T]),
}

/// The spectral norm of every matrix, one list per batch.
///
/// A cold start gives the norm within 1 % on any spectrum. A warm start gives a lower bound: the norm of `W^T` on the space of the vectors
/// `W u`. A matrix of zeros has norm 0; a matrix with an entry that is infinite or NaN has norm NaN.
///
/// # Panics
/// If there is not one entry of `vectors` per batch, or its length is not `count * VECTORS * cols`.
pub fn spectral_norms<T: Real>(batches: &[Matrices<'_, T>], vectors: &mut [Vectors<'_, T>]) -> Vec<Vec<T>> {
    let value = |norms: Vec<Norm<T>>| memory::collected(norms.into_iter().map(Norm::value));
    scaled_norms(batches, vectors).into_iter().map(value).collect()
}

/// The norms that [`spectral_norms`] finds, each as a number near 1 over a power of two.
pub(crate) fn scaled_norms<T: Real>(batches: &[Matrices<'_, T>], vectors: &mut [Vectors<'_, T>]) -> Vec<Vec<Norm<T>>> {
    assert_eq!(batches.len(), vectors.len(), "one entry of `vectors` per batch");
    let mut norms: Vec<_> = batches.iter().map(|batch| memory::filled(Norm { scaled: T::ZERO, unit: T::ONE }, batch.count())).collect();
    let tasks = batches.iter().zip(vectors).zip(&mut norms).flat_map(|((batch, vectors), norms)| searches(*batch, vectors, norms));
    for_each_largest_first(memory::collected(tasks), |(search, _)| search.work(), |(search, norm), threads| **norm = search.run(threads));
    norms
}

/// Writes `scale * W / |W|` for every matrix W of every job, where `|W|` is the norm that [`spectral_norms`] finds, and returns the norms.
///
/// A matrix of zeros stays zero.
///
/// # Panics
/// Where [`spectral_norms`] does.
pub fn normalize<T: Real>(jobs: &mut [Job<'_, T>], vectors: &mut [Vectors<'_, T>]) -> Vec<Vec<T>> {
    assert_eq!(jobs.len(), vectors.len(), "one entry of `vectors` per job");
    let mut norms: Vec<_> = jobs.iter().map(|job| memory::filled(T::ZERO, job.input.count())).collect();
    let tasks = jobs
        .iter_mut()
        .zip(vectors)
        .zip(&mut norms)
        .flat_map(|((job, vectors), norms)| searches(job.input, vectors, norms).zip(job.tasks()));
    for_each_largest_first(
        memory::collected(tasks),
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

/// `output = scale * input / norm`, and zero if the norm is zero.
fn rescale<T: Real>(output: &mut [T], input: &[T], scale: T, norm: Norm<T>) {
    if norm.scaled == T::ZERO {
        return output.fill(T::ZERO);
    }
    let [unit, rest] = norm.factors(scale);
    vectorized!(
        machine::arch(),
        for (out, &x) in output.iter_mut().zip(input) {
            *out = x * unit * rest;
        }
    );
}

/// The search for the norm of one matrix.
struct Search<'a, T> {
    matrix: &'a [T],
    cols: usize,
    vectors: Option<&'a mut [T]>,
    warm: bool,
}

/// One search for each matrix, with room for its result.
fn searches<'a, T: Real, N>(
    batch: Matrices<'a, T>,
    vectors: &'a mut Vectors<'_, T>,
    norms: &'a mut [N],
) -> impl Iterator<Item = (Search<'a, T>, &'a mut N)> {
    let (warm, slice) = match vectors {
        Vectors::Discard => (false, None),
        Vectors::Fill(slice) => (false, Some(&mut **slice)),
        Vectors::Refine(slice) => (true, Some(&mut **slice)),
    };
    let cols = batch.cols();
    if let Some(slice) = &slice {
        assert_eq!(slice.len(), batch.count() * VECTORS * cols, "{VECTORS} vectors of length {cols} per matrix");
    }
    let mut slices = slice.map(|slice| slice.chunks_exact_mut((VECTORS * cols).max(1)));
    let count = if batch.size() == 0 { 0 } else { batch.count() };
    norms.iter_mut().take(count).enumerate().map(move |(index, norm)| {
        let vectors = slices.as_mut().and_then(Iterator::next);
        (Search { matrix: batch.matrix(index), cols, vectors, warm }, norm)
    })
}

impl<T: Real> Search<'_, T> {
    /// The work of the search, roughly, in multiply-adds.
    fn work(&self) -> usize {
        self.matrix.len() * if self.warm { 4 * VECTORS } else { 40 }
    }

    fn run(&mut self, threads: usize) -> Norm<T> {
        let Self { matrix, cols, warm, ref mut vectors } = *self;
        let gram = Gram { matrix, cols, unit: T::ONE, machine: Machine { arch: machine::arch(), threads } };
        let refined = if warm { vectors.as_deref_mut().and_then(|u| subspace::refine(gram, u)) } else { None };
        refined.map_or_else(|| lanczos::search(gram, vectors.as_deref_mut()), |norm| Norm { scaled: norm, unit: T::ONE })
    }
}
