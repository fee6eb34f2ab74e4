//! Gram matrices, and products with a symmetric factor in place.

use pulp::Arch;

use super::Real;
use super::blocks::{copy, mirror, transpose};
use super::inverse::padded_stride;
use super::product::{Block, Left, Machine, Product, View};
use super::schedule::{POWER_STEPS, start_entry};
use super::scratch::grow;
use super::simd::vectorized;

/// Numbers in a copy of some rows or columns of a matrix: half a mebibyte of f32, half of a usual second-level cache.
const PANEL: usize = 1 << 17;

/// What products with a whole matrix need: its shape, and room for copies of parts of it.
#[derive(Debug)]
pub(super) struct Products<'a, T> {
    pub machine: Machine,
    pub rows: usize,
    pub cols: usize,
    pub panel: &'a mut Vec<T>,
    pub slab: &'a mut Vec<T>,
}

impl<T: Real> Products<'_, T> {
    /// The smaller Gram matrix, `X X^T` or `X^T X`, of `x`, on and above the diagonal.
    pub fn gram(&mut self, c: &mut [T], x: &[T]) {
        let Self { machine, rows, cols, ref mut panel, ref mut slab } = *self;
        let n = rows.min(cols);
        let stride = padded_stride(n);
        if !n.is_multiple_of(16) {
            c.fill(T::ZERO);
        }
        let mut add_terms = |x: View<'_, T>, depth, add| {
            let c = Block { data: &mut *c, stride, rows: n, cols: n };
            Product::new(c, depth, Left::Columns(x), x).added(add).upper().run(machine, slab);
        };
        if rows >= cols {
            return add_terms(View::new(x, cols), rows, false);
        }
        let chunk = (PANEL / stride).next_multiple_of(16).min(cols);
        let panel = grow(panel, chunk * stride);
        for first in (0..cols).step_by(chunk) {
            let depth = chunk.min(cols - first);
            let from = View::new(&x[first..], cols);
            vectorized!(machine.arch, transpose(panel, stride, from, rows, depth));
            add_terms(View::new(panel, stride), depth, first > 0);
        }
    }

    /// `out = y x` (wide) or `x y` (tall) for symmetric `y`, where `x` is `out` itself if not given.
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

/// An estimate of the largest eigenvalue of a Gram matrix given on and above the diagonal, from below.
pub(super) fn largest_eigenvalue<T: Real>(arch: Arch, gram: &mut [T], n: usize, vectors: &mut Vec<T>) -> T {
    let stride = padded_stride(n);
    let side = n.next_multiple_of(16);
    let (v, image) = grow(vectors, 2 * side).split_at_mut(side);
    for (i, v) in v.iter_mut().enumerate() {
        *v = if i < n { start_entry(i) } else { T::ZERO };
    }
    vectorized!(arch, {
        mirror(gram, stride, side);
        let mut norm = self::norm(v);
        for _ in 0..=POWER_STEPS {
            let inverse = T::ONE / norm;
            v.iter_mut().for_each(|x| *x *= inverse);
            symmetric_product(image, gram, stride, v);
            norm = self::norm(image);
            v.copy_from_slice(image);
        }
        norm
    })
}

/// `image = a v` for a symmetric matrix whose side is a multiple of 16: a sum of its rows, four at a time.
#[inline(always)]
fn symmetric_product<T: Real>(image: &mut [T], a: &[T], stride: usize, v: &[T]) {
    image.fill(T::ZERO);
    let side = v.len();
    for (rows, v) in a.chunks(4 * stride).zip(v.as_chunks::<4>().0) {
        let [a, b, c, d]: [_; 4] = std::array::from_fn(|i| rows[i * stride..][..side].as_chunks::<16>().0);
        let image = image.as_chunks_mut::<16>().0;
        for ((((y, a), b), c), d) in image.iter_mut().zip(a).zip(b).zip(c).zip(d) {
            for k in 0..16 {
                y[k] += (a[k] * v[0] + b[k] * v[1]) + (c[k] * v[2] + d[k] * v[3]);
            }
        }
    }
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
