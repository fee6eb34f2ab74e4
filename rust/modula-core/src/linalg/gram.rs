//! Gram matrices, their largest eigenvalue, and products of a matrix with a symmetric factor.

use pulp::{Arch, Simd, WithSimd};

use super::Real;
use super::constants::POWER_STEPS;
use super::inverse::padded_stride;
use super::machine::Machine;
use super::product::Product;
use super::scratch::grow;
use super::simd::vectorized;
use super::start::start_entry;
use super::transpose::{Mirror, copy};
use super::view::{Block, Left, View};

/// Numbers in a panel, a copy of some rows or columns of a matrix: 2 MiB of f32, of which a product works on blocks that fit the
/// second-level cache. The other factor is packed once for each panel: with panels a quarter as large, a 768 x 768 matrix times a 768 x
/// 3072 matrix took 1.2 to 1.8 times as long.
const PANEL: usize = 1 << 19;

/// Products with a whole matrix: the shape of the matrix, and buffers for copies of parts of it.
#[derive(Debug)]
pub(super) struct Products<'a, T> {
    pub machine: Machine,
    pub rows: usize,
    pub cols: usize,
    pub panel: &'a mut Vec<T>,
    pub slab: &'a mut Vec<T>,
}

impl<T: Real> Products<'_, T> {
    /// The smaller Gram matrix, `X X^T` or `X^T X`, of `x`. Only the part on and above the diagonal is computed.
    pub fn gram(&mut self, c: &mut [T], x: &[T]) {
        let Self { machine, rows, cols, ref mut slab, .. } = *self;
        let n = rows.min(cols);
        if !n.is_multiple_of(16) {
            c.fill(T::ZERO);
        }
        let c = Block { data: c, stride: padded_stride(n), rows: n, cols: n };
        let x = View::new(x, cols);
        let product = if rows >= cols { Product::square(c, rows, x) } else { Product::square_of_transposed(c, cols, x) };
        product.run(machine, slab);
    }

    /// `out = y x` (wide) or `out = x y` (tall) for a symmetric `y`. If no `x` is given, `out` holds it and is overwritten.
    pub fn apply(&mut self, y: &[T], x: Option<&[T]>, out: &mut [T]) {
        let Self { machine, rows, cols, ref mut panel, ref mut slab } = *self;
        let y = View::new(y, padded_stride(rows.min(cols)));
        if rows >= cols {
            let stride = padded_stride(cols);
            let block = (machine.threads * PANEL / stride).next_multiple_of(8).min(rows);
            let panel = grow(panel, block * stride);
            for first in (0..rows).step_by(block) {
                let here = block.min(rows - first);
                let range = first * cols..(first + here) * cols;
                let from = View::new(&x.unwrap_or(out)[range.clone()], cols);
                vectorized!(machine.arch, copy(panel, stride, from, here, cols));
                let c = Block { data: &mut out[range], stride: cols, rows: here, cols };
                Product::new(c, cols, Left::Rows(View::new(panel, stride)), y).run(machine, slab);
            }
        } else {
            let block = (PANEL / rows / 48).max(1) * 48;
            let stride = padded_stride(block.min(cols));
            let panel = grow(panel, rows * stride);
            for first in (0..cols).step_by(block) {
                let here = block.min(cols - first);
                let from = View::new(&x.unwrap_or(out)[first..], cols);
                vectorized!(machine.arch, copy(panel, stride, from, rows, here));
                let c = Block { data: &mut out[first..], stride: cols, rows, cols: here };
                Product::new(c, rows, Left::Columns(y), View::new(panel, stride)).run(machine, slab);
            }
        }
    }
}

/// A lower bound of the largest eigenvalue of a Gram matrix that is given on and above the diagonal; [`POWER_STEPS`] says how close it is.
pub(super) fn largest_eigenvalue<T: Real>(arch: Arch, gram: &mut [T], n: usize, vectors: &mut Vec<T>) -> T {
    let stride = padded_stride(n);
    let side = n.next_multiple_of(16);
    let (v, image) = grow(vectors, 2 * side).split_at_mut(side);
    for (i, v) in v.iter_mut().enumerate() {
        *v = if i < n { start_entry(i) } else { T::ZERO };
    }
    arch.dispatch(Mirror { a: gram, stride, side });
    arch.dispatch(PowerSteps { gram, stride, v, image })
}

/// `|A v| / |v|` after [`POWER_STEPS`] steps `v <- A v`, for a symmetric matrix A whose side is a multiple of 16.
struct PowerSteps<'a, T> {
    gram: &'a [T],
    stride: usize,
    v: &'a mut [T],
    image: &'a mut [T],
}

impl<T: Real> WithSimd for PowerSteps<'_, T> {
    type Output = T;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> T {
        let Self { gram, stride, v, image } = self;
        let mut norm = self::norm(v);
        for _ in 0..=POWER_STEPS {
            let inverse = T::ONE / norm;
            v.iter_mut().for_each(|x| *x *= inverse);
            let mut done = 0;
            done = sum_rows::<T, S, 8>(simd, image, gram, stride, v, done);
            done = sum_rows::<T, S, 4>(simd, image, gram, stride, v, done);
            done = sum_rows::<T, S, 2>(simd, image, gram, stride, v, done);
            sum_rows::<T, S, 1>(simd, image, gram, stride, v, done);
            norm = self::norm(image);
            v.copy_from_slice(image);
        }
        norm
    }
}

/// Writes `v^T a` to `image` from column `start` on, `WIDTH` registers of columns at a time, as often as that many columns are left.
/// Returns the first column that is not written.
#[inline(always)]
fn sum_rows<T: Real, S: Simd, const WIDTH: usize>(simd: S, image: &mut [T], a: &[T], stride: usize, v: &[T], start: usize) -> usize {
    let width = WIDTH * T::lanes::<S>();
    let mut columns = image[start..].chunks_exact_mut(width);
    let mut column = start;
    for image in columns.by_ref() {
        let mut sums = [T::splat(simd, T::ZERO); WIDTH];
        for (row, &v) in a.chunks(stride).zip(v) {
            let v = T::splat(simd, v);
            let row = T::registers::<S>(&row[column..][..width]).first_chunk::<WIDTH>().unwrap();
            for (sum, &x) in sums.iter_mut().zip(row) {
                *sum = T::mul_add(simd, x, v, *sum);
            }
        }
        T::registers_mut::<S>(image).copy_from_slice(&sums);
        column += width;
    }
    column
}

#[inline(always)]
fn norm<T: Real>(v: &[T]) -> T {
    let mut sums = [T::ZERO; 16];
    for v in v.as_chunks::<16>().0 {
        for (s, &x) in sums.iter_mut().zip(v) {
            *s += x * x;
        }
    }
    sums.into_iter().sum::<T>().sqrt()
}
