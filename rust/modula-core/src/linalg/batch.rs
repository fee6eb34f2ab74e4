//! What the kernels work on: batches of equal row-major matrices.

use std::cmp::Reverse;
use std::sync::Mutex;

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::Real;
use crate::interrupt;

/// `count` equal `rows x cols` matrices, row-major, one after the other. Any dimension may be 0.
#[derive(Clone, Copy, Debug)]
pub struct Matrices<'a, T> {
    data: &'a [T],
    count: usize,
    rows: usize,
    cols: usize,
}

impl<'a, T: Real> Matrices<'a, T> {
    /// Views `data` as `count` matrices.
    ///
    /// # Panics
    /// If `data` does not hold exactly `count * rows * cols` numbers.
    pub fn new(data: &'a [T], count: usize, rows: usize, cols: usize) -> Self {
        assert_eq!(data.len(), count * rows * cols, "{count} matrices of {rows} x {cols}");
        Self { data, count, rows, cols }
    }

    /// Number of matrices.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Rows of each matrix.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns of each matrix.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Number of entries of one matrix.
    pub fn size(&self) -> usize {
        self.rows * self.cols
    }

    /// The entries of matrix `index`.
    pub fn matrix(&self, index: usize) -> &'a [T] {
        &self.data[index * self.size()..(index + 1) * self.size()]
    }
}

/// A map over a batch: `output[i] = scales[i] * direction(input[i])`, what the direction is being up to the function called.
#[derive(Debug)]
pub struct Job<'a, T> {
    pub(super) input: Matrices<'a, T>,
    pub(super) scales: &'a [T],
    pub(super) output: &'a mut [T],
}

impl<'a, T: Real> Job<'a, T> {
    /// Pairs a batch with one scale per matrix and the place for the result.
    ///
    /// # Panics
    /// If there is not one scale per matrix, or `output` is not as long as the input.
    pub fn new(input: Matrices<'a, T>, scales: &'a [T], output: &'a mut [T]) -> Self {
        assert_eq!(scales.len(), input.count, "one scale per matrix");
        assert_eq!(output.len(), input.data.len(), "an output of the size of the input");
        Self { input, scales, output }
    }
}

/// One matrix of a [`Job`]: the unit of work handed to a thread.
#[derive(Debug)]
pub(super) struct Task<'a, T> {
    pub input: &'a [T],
    pub rows: usize,
    pub cols: usize,
    pub scale: T,
    pub output: &'a mut [T],
}

impl<T> Task<'_, T> {
    /// A measure of the work it takes, up to a factor.
    pub fn work(&self) -> usize {
        let (short, long) = (self.rows.min(self.cols), self.rows.max(self.cols));
        short * short * (6 * long + 3 * short)
    }
}

/// Multiply-adds below which starting the threads costs more than they save.
pub(crate) const WORTH_A_THREAD: usize = 1 << 20;

/// Does all items on the threads of the current pool, those with the most work first. `f` is told how many threads to use for its item:
/// one, or all for those items that would keep one thread busy while the others have nothing left to do.
pub(super) fn for_each_largest_first<I: Send>(mut items: Vec<I>, work: impl Fn(&I) -> usize, f: impl Fn(&mut I, usize) + Sync) {
    let total = items.iter().map(&work).fold(0, usize::saturating_add);
    let watch = interrupt::current();
    let f = |item: &mut I, threads| {
        watch.check();
        f(item, threads);
    };
    // Outside of any pool, small work must not start rayon's global one.
    let threads = match total / WORTH_A_THREAD {
        0 | 1 => 1,
        most => rayon::current_num_threads().min(most),
    };
    if threads <= 1 {
        return items.iter_mut().for_each(|item| f(item, 1));
    }
    items.sort_unstable_by_key(|item| Reverse(work(item)));
    let shared = items.iter().take_while(|item| work(item) > total / (2 * threads)).count();
    let (large, small) = items.split_at_mut(shared);
    let queue = Mutex::new(small.iter_mut());
    let next = || queue.lock().ok()?.next();
    let distribute = |_| {
        watch.run(|| {
            while let Some(item) = next() {
                f(item, 1);
            }
        });
    };
    large.iter_mut().for_each(|item| f(item, threads));
    (0..threads).into_par_iter().with_max_len(1).for_each(distribute);
}

impl<T: Real> Job<'_, T> {
    /// The matrices of the job, each with its scale and output. Empty matrices, for which there is nothing to do, are left out.
    pub(super) fn tasks(&mut self) -> impl Iterator<Item = Task<'_, T>> {
        let Matrices { data, rows, cols, .. } = self.input;
        let size = (rows * cols).max(1);
        let matrices = data.chunks_exact(size).zip(self.output.chunks_exact_mut(size));
        matrices.zip(self.scales).map(move |((input, output), &scale)| Task { input, rows, cols, scale, output })
    }
}

/// The largest absolute entry, or `None` if some entry is infinite or NaN.
pub(crate) fn largest_entry<T: Real>(entries: &[T]) -> Option<T> {
    Arch::new().dispatch(Scan { entries })
}

struct Scan<'a, T> {
    entries: &'a [T],
}

impl<T: Real> WithSimd for Scan<'_, T> {
    type Output = Option<T>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Option<T> {
        // As many at a time as keep the processor's additions busy.
        const AT_ONCE: usize = 4;
        let zero = T::splat(simd, T::ZERO);
        let mut largest = [zero; AT_ONCE];
        // x * 0 is NaN for an infinite or undefined x, and zero otherwise.
        let mut poison = [zero; AT_ONCE];
        let registers = T::registers::<S>(self.entries);
        let (chunks, more) = registers.as_chunks::<AT_ONCE>();
        for chunk in chunks {
            for ((l, p), &x) in largest.iter_mut().zip(&mut poison).zip(chunk) {
                *l = T::larger_abs(simd, *l, x);
                *p = T::mul_add(simd, x, zero, *p);
            }
        }
        for ((l, p), &x) in largest.iter_mut().zip(&mut poison).zip(more) {
            *l = T::larger_abs(simd, *l, x);
            *p = T::mul_add(simd, x, zero, *p);
        }
        let rest = &self.entries[registers.len() * T::lanes::<S>()..];
        let mut undefined: T = rest.iter().map(|&x| x * T::ZERO).sum();
        for poison in poison {
            undefined += T::sum_lanes(simd, poison);
        }
        let larger = |a: T, b: T| if b > a { b } else { a };
        let mut result = rest.iter().map(|x| x.abs()).fold(T::ZERO, larger);
        for largest in largest {
            result = larger(result, T::largest_lane(simd, largest));
        }
        (undefined == T::ZERO).then_some(result)
    }
}

/// A power of two that brings a largest entry into `[1, 2)`, or as near as it and its inverse stay normal numbers: others count as zero on
/// threads whose owner has turned them off, as XLA does.
pub(crate) fn unit_scale<T: Real>(largest: T) -> T {
    let scale = T::ONE / largest.exponent();
    if scale < T::SMALLEST_SCALE {
        T::SMALLEST_SCALE
    } else if scale < T::LARGEST_SCALE {
        scale
    } else {
        T::LARGEST_SCALE
    }
}
