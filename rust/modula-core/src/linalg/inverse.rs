//! Inverses of symmetric positive definite matrices, by recursion on blocks, so that all but the smallest blocks are matrix products.
//!
//! The Cholesky factor of `A = L L^T` is never formed: the recursion goes from `A` to `M = L^-1`. With `A = [A11 A12; A21 A22]`,
//!
//! ```text
//! M11 = inverse factor of A11,   U = M11 A12,   M22 = inverse factor of A22 - U^T U,   M21 = -M22 U^T M11,
//! ```
//!
//! which takes two thirds of `n^3` operations; `A^-1 = M^T M` takes the last third. A recursion on the inverses of the blocks themselves
//! would take as many operations, all of them plain products, but lose twice the digits: L has only the square root of the condition number
//! of A.

use pulp::{Arch, Simd, WithSimd};

use super::Real;
use super::machine::Machine;
use super::product::Product;
use super::simd::vectorized;
use super::transpose::{Mirror, copy};
use super::view::{Block, Left, View, Zeros};

/// Side up to which elimination by rows, in the first-level cache, beats recursion.
const LEAF: usize = 32;

/// Rows of the lower right block that are copied at a time: a product that reads them writes to the block beside them, in the same rows.
const ROWS: usize = 64;

/// Number of entries in the temporary blocks of an inversion of side `n`.
pub(super) fn temporary_size(n: usize) -> usize {
    let (h, r) = (half(n), n - half(n));
    (h * padded_stride(r)).max(r * padded_stride(h)) + ROWS * padded_stride(r)
}

/// A row length of at least `n` that is an odd multiple of 16, so that the entries of a column spread over all sets of a cache.
pub(super) fn padded_stride(n: usize) -> usize {
    16 * (n.div_ceil(16) | 1)
}

fn half(n: usize) -> usize {
    16 * n.div_ceil(32)
}

/// What the inversion of a matrix and the inversions of its blocks have in common.
#[derive(Debug)]
pub(super) struct Inversion<'a, T> {
    pub machine: Machine,
    /// Distance between rows of the matrix.
    pub stride: usize,
    /// A lower bound of the pivots in exact arithmetic. A smaller pivot is raised to it, so that rounding cannot make a pivot negative.
    pub floor: T,
    /// A buffer of [`temporary_size`] numbers.
    pub temporary: &'a mut [T],
    /// The buffer for packed factors of a product.
    pub slab: &'a mut Vec<T>,
}

impl<T: Real> Inversion<'_, T> {
    /// `to = weight A^-1`, or `to += weight A^-1`, on and above the diagonal; `a` is overwritten.
    pub fn run(&mut self, a: &mut [T], n: usize, to: &mut [T], weight: T, add: bool) {
        self.factor(a, n);
        let m = View::new(&*a, self.stride);
        let to = Block { data: to, stride: self.stride, rows: n, cols: n };
        let product = Product::square(to, n, m).scaled(weight).added(add);
        product.zeros(Zeros::Right).run(self.machine, self.slab);
    }

    /// Replaces a symmetric positive definite matrix of side `n`, a multiple of 16, by the inverse of its Cholesky factor, a lower
    /// triangular matrix. Only the part of `a` on and above the diagonal is read.
    pub fn factor(&mut self, a: &mut [T], n: usize) {
        let (machine, stride, floor) = (self.machine, self.stride, self.floor);
        let arch = machine.arch;
        match n {
            16 => return arch.dispatch(Elimination::<T, 16> { a, stride, floor }),
            LEAF => return arch.dispatch(Elimination::<T, LEAF> { a, stride, floor }),
            _ => {}
        }
        let (h, r) = (half(n), n - half(n));
        self.factor(a, h);
        let (top, bottom) = a.split_at_mut(h * stride);
        // U, the Schur complement and its inverse factor. U is kept in the place of A12.
        let u_stride = padded_stride(r);
        let (m11, a12) = (Left::Rows(View::new(&*top, stride)), View::new(&top[h..], stride));
        let u = Block { data: &mut *self.temporary, stride: u_stride, rows: h, cols: r };
        Product::new(u, h, m11, a12).zeros(Zeros::Left).run(machine, self.slab);
        let u = View::new(&*self.temporary, u_stride);
        let a22 = Block { data: &mut bottom[h..], stride, rows: r, cols: r };
        let minus = -T::ONE;
        Product::square(a22, h, u).scaled(minus).added(true).run(machine, self.slab);
        vectorized!(arch, copy(&mut top[h..], stride, u, h, r));
        self.factor(&mut bottom[h..], r);
        // Z = U^T M11
        let z_stride = padded_stride(h);
        let (z, block) = self.temporary.split_at_mut(r * z_stride);
        let (u, m11) = (Left::Columns(View::new(&top[h..], stride)), View::new(&*top, stride));
        let to = Block { data: &mut *z, stride: z_stride, rows: r, cols: h };
        Product::new(to, h, u, m11).zeros(Zeros::Right).run(machine, self.slab);
        // M21 = -M22 Z, some rows at a time
        let z = View::new(&*z, z_stride);
        let block_stride = padded_stride(r);
        for first in (0..r).step_by(ROWS) {
            let rows = ROWS.min(r - first);
            let depth = first + rows;
            let bottom = &mut bottom[first * stride..];
            let m22 = View::new(&bottom[h..], stride);
            vectorized!(arch, copy(block, block_stride, m22, rows, depth));
            let m22 = Left::Rows(View::new(&*block, block_stride));
            let m21 = Block { data: bottom, stride, rows, cols: h };
            Product::new(m21, depth, m22, z).scaled(minus).run(machine, self.slab);
        }
        for row in top.chunks_exact_mut(stride) {
            row[h..n].fill(T::ZERO);
        }
    }
}

/// A matrix that begins at a cache line, so that no load of a register spans two lines.
#[repr(align(64))]
struct Square<T, const N: usize>([[T; N]; N]);

/// The inverse Cholesky factor of a matrix of side `N` that fits the first-level cache, by elimination of the rows below each pivot.
struct Elimination<'a, T, const N: usize> {
    a: &'a mut [T],
    stride: usize,
    floor: T,
}

impl<T: Real, const N: usize> WithSimd for Elimination<'_, T, N> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { a, stride, floor } = self;
        let mut m = Square([[T::ZERO; N]; N]);
        let m = &mut m.0;
        // Whole rows are copied, since their length is known at compile time; the part below the diagonal is overwritten next.
        for (row, from) in m.iter_mut().zip(a.chunks(stride)) {
            row.copy_from_slice(&from[..N]);
        }
        Mirror { a: m.as_flattened_mut(), stride: N, side: N }.with_simd(simd);
        // Slices of these, shifted, are rows of the identity, and rows with ones left of the diagonal. If a single number of a row were
        // written instead, the load of the whole row that follows would have to wait for that store.
        let (mut unit, mut ones) = ([[T::ZERO; N]; 2], [[T::ZERO; N]; 2]);
        unit[1][0] = T::ONE;
        ones[0].fill(T::ONE);
        let (unit, ones) = (unit.as_flattened(), ones.as_flattened());
        let one = T::splat(simd, T::ONE);
        for k in 0..N {
            let (pivot_row, below) = m[k..].split_first_mut().unwrap();
            let pivot = if pivot_row[k] > floor { pivot_row[k] } else { floor };
            let inverse = T::ONE / pivot;
            let (unit, ones) = (T::registers::<S>(&unit[N - k..][..N]), T::registers::<S>(&ones[N - k..][..N]));
            let pivot_row = T::registers_mut::<S>(pivot_row);
            // With 1 added to the pivot, the update of entry k of a row, entry - factor (pivot + 1) = -factor, gives the inverse factor's
            // entry.
            for (p, &unit) in pivot_row.iter_mut().zip(unit) {
                *p = T::mul_add(simd, one, *p, unit);
            }
            for row in below {
                let factor = T::splat(simd, -row[k] * inverse);
                for (x, &p) in T::registers_mut::<S>(row).iter_mut().zip(&*pivot_row) {
                    *x = T::mul_add(simd, factor, p, *x);
                }
            }
            let root = T::splat(simd, inverse.sqrt());
            for ((p, &unit), &ones) in pivot_row.iter_mut().zip(unit).zip(ones) {
                *p = T::times(simd, root, T::mul_add(simd, *p, ones, unit));
            }
        }
        for (row, to) in m.iter().zip(a.chunks_mut(stride)) {
            to[..N].copy_from_slice(row);
        }
    }
}

/// Adds `constant` to the diagonal of a symmetric matrix that is given on and above the diagonal, and fills in the part below.
pub(super) fn complete<T: Real>(arch: Arch, a: &mut [T], stride: usize, n: usize, constant: T) {
    add_diagonal(a, stride, n, constant);
    arch.dispatch(Mirror { a, stride, side: n });
}

/// Adds `constant` to the diagonal.
pub(super) fn add_diagonal<T: Real>(a: &mut [T], stride: usize, n: usize, constant: T) {
    a.iter_mut().step_by(stride + 1).take(n).for_each(|x| *x += constant);
}
