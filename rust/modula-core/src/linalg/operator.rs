//! `W^T W` as an operator on a few vectors at a time. Each application reads W once.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::Real;
use super::machine::Machine;
use super::scratch::LINE;
use super::simd::{prefetch, vectorized};
use crate::memory;

/// Inner products of K vectors, summed in double precision: orthonormalisation subtracts them from each other.
pub(super) type Squares<const K: usize> = [[f64; K]; K];

/// `unit W^T W`.
#[derive(Clone, Copy)]
pub(super) struct Gram<'a, T> {
    pub matrix: &'a [T],
    pub cols: usize,
    pub unit: T,
    pub machine: Machine,
}

impl<T: Real> Gram<'_, T> {
    /// `image = unit W^T W u` for K vectors, one after the other; returns the inner products of the vectors `W u`.
    pub fn apply<const K: usize>(self, u: &[T], image: &mut [T]) -> Squares<K> {
        let Machine { arch, threads } = self.machine;
        if threads == 1 {
            return arch.dispatch(GramStep::<T, K> { matrix: self.matrix, unit: self.unit, cols: self.cols, u, image });
        }
        let bands = self.matrix.par_chunks(rows_each(self.matrix.len(), self.cols, threads));
        let parts: Vec<_> = bands
            .map(|matrix| {
                let mut image = memory::filled(T::ZERO, u.len());
                let squares = arch.dispatch(GramStep::<T, K> { matrix, unit: self.unit, cols: self.cols, u, image: &mut image });
                (image, squares)
            })
            .collect();
        image.fill(T::ZERO);
        let mut total = [[0.0; K]; K];
        for (part, squares) in &parts {
            axpy(arch, image, T::ONE, part);
            for (total, square) in total.as_flattened_mut().iter_mut().zip(squares.as_flattened()) {
                *total += square;
            }
        }
        total
    }
}

/// How many of the `size` numbers of a matrix each thread takes, in whole rows.
pub(super) fn rows_each(size: usize, cols: usize, threads: usize) -> usize {
    (size / cols).div_ceil(threads) * cols
}

/// One pass over the rows of a matrix, each of which is used twice while it is in the cache.
struct GramStep<'a, T, const K: usize> {
    matrix: &'a [T],
    unit: T,
    cols: usize,
    u: &'a [T],
    image: &'a mut [T],
}

impl<T: Real, const K: usize> WithSimd for GramStep<'_, T, K> {
    type Output = Squares<K>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Squares<K> {
        // A sum for each row and vector, beside what is multiplied, must fit the registers.
        if S::REGISTER_COUNT >= 32 || K == 1 { self.by_rows::<S, 4>(simd) } else { self.by_rows::<S, 2>(simd) }
    }
}

impl<T: Real, const K: usize> GramStep<'_, T, K> {
    #[inline(always)]
    fn by_rows<S: Simd, const ROWS: usize>(self, simd: S) -> Squares<K> {
        let Self { matrix, unit, cols, u, image } = self;
        image.fill(T::ZERO);
        let mut squares = [[0.0; K]; K];
        let blocks = matrix.chunks_exact(ROWS * cols);
        let last = blocks.remainder().chunks_exact(cols);
        for (block, rows) in blocks.enumerate() {
            let ahead = &matrix[(block + 1) * ROWS * cols..];
            step::<T, S, ROWS, K>(simd, std::array::from_fn(|i| &rows[i * cols..(i + 1) * cols]), ahead, unit, u, image, &mut squares);
        }
        for row in last {
            step::<T, S, 1, K>(simd, [row], &[], unit, u, image, &mut squares);
        }
        squares
    }
}

/// `image += unit W^T W u` for a few rows W. Adds the products of the entries of `W u` to `squares`, and prefetches `ahead`, the rows that
/// follow.
#[inline(always)]
fn step<T: Real, S: Simd, const ROWS: usize, const K: usize>(
    simd: S,
    rows: [&[T]; ROWS],
    ahead: &[T],
    unit: T,
    u: &[T],
    image: &mut [T],
    squares: &mut Squares<K>,
) {
    let cols = rows[0].len();
    let whole = cols / T::lanes::<S>();
    let rest = whole * T::lanes::<S>();
    let registers = rows.map(|row| &T::registers::<S>(row)[..whole]);
    let vectors: [&[T]; K] = std::array::from_fn(|j| &u[j * cols..(j + 1) * cols]);
    let vector_registers = vectors.map(|u| &T::registers::<S>(u)[..whole]);
    let mut sums = [[T::splat(simd, T::ZERO); K]; ROWS];
    for k in 0..whole {
        for (sums, row) in sums.iter_mut().zip(&registers) {
            let w = row[k];
            for (sum, u) in sums.iter_mut().zip(&vector_registers) {
                *sum = T::mul_add(simd, w, u[k], *sum);
            }
        }
    }
    // Loops, because a closure for `from_fn` or `map` would be compiled without the instruction set, and would pass all sums through
    // memory.
    let mut factors = [[T::ZERO; K]; ROWS];
    let mut splats = sums;
    for ((factors, splats), (sums, row)) in factors.iter_mut().zip(&mut splats).zip(sums.iter().zip(&rows)) {
        for ((factor, &sum), u) in factors.iter_mut().zip(sums).zip(&vectors) {
            *factor = T::sum_lanes(simd, sum) + row[rest..].iter().zip(&u[rest..]).map(|(&a, &b)| a * b).sum();
        }
        for (squares, &a) in squares.iter_mut().zip(&*factors) {
            for (square, &b) in squares.iter_mut().zip(&*factors) {
                *square += a.to_f64() * b.to_f64();
            }
        }
        for (factor, splat) in factors.iter_mut().zip(splats) {
            *factor *= unit;
            *splat = T::splat(simd, *factor);
        }
    }
    let mut images = image.chunks_exact_mut(cols);
    let mut images: [_; K] = std::array::from_fn(|_| images.next().expect("one image per vector").split_at_mut(rest));
    let mut image_registers = images.each_mut().map(|(whole_part, _)| &mut T::registers_mut::<S>(whole_part)[..whole]);
    let mut ahead = ahead.chunks(LINE / size_of::<T>());
    for k in 0..whole {
        ahead.by_ref().take(ROWS * T::lanes::<S>() * size_of::<T>() / LINE).for_each(prefetch);
        for (j, image) in image_registers.iter_mut().enumerate() {
            let mut sum = image[k];
            for (row, v) in registers.iter().zip(&splats) {
                sum = T::mul_add(simd, row[k], v[j], sum);
            }
            image[k] = sum;
        }
    }
    for (j, (_, image)) in images.iter_mut().enumerate() {
        for (k, image) in image.iter_mut().enumerate() {
            *image += rows.iter().zip(&factors).map(|(row, v)| row[rest + k] * v[j]).sum();
        }
    }
}

/// `y += a x`
pub(super) fn axpy<T: Real>(arch: Arch, y: &mut [T], a: T, x: &[T]) {
    vectorized!(
        arch,
        for (y, &x) in y.iter_mut().zip(x) {
            *y += a * x;
        }
    );
}

/// The inner product of two vectors.
pub(super) fn dot<T: Real>(arch: Arch, a: &[T], b: &[T]) -> T {
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
