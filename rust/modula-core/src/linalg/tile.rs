//! A tile of a product: as many rows and registers as stay in registers while the sums are taken.

use std::borrow::Borrow;

use pulp::Simd;

use super::Real;
use super::product::{Left, View};

/// Registers in a row of the widest tile.
pub(super) const REGISTERS: usize = 3;

/// The right factor of a tile.
#[derive(Clone, Copy)]
pub(super) enum Right<'a, T> {
    Rows(View<'a, T>),
    /// A copy of as many columns as the widest tile has.
    Slab(&'a [T]),
}

/// One tile of the result: at most `ROWS` rows of `REGISTERS` registers.
pub(super) struct Tile<'a, T> {
    pub a: Left<'a, T>,
    pub b: Right<'a, T>,
    pub c: &'a mut [T],
    pub stride: usize,
    pub rows: usize,
    pub cols: usize,
    pub terms: usize,
    pub alpha: T,
    pub add: bool,
}

impl<T: Real> Tile<'_, T> {
    #[inline(always)]
    pub fn run<S: Simd, const ROWS: usize, const WIDTH: usize>(self, simd: S) {
        let sums = match self.b {
            // The rows of a slab follow each other at a distance known when compiling.
            Right::Slab(slab) => {
                let rows = T::registers::<S>(slab).as_chunks::<REGISTERS>().0[..self.terms].iter();
                self.sums::<S, ROWS, WIDTH>(simd, rows.map(|row| row.first_chunk::<WIDTH>().unwrap()))
            }
            Right::Rows(b) => {
                let rows = b.data.chunks(b.stride).take(self.terms);
                self.sums::<S, ROWS, WIDTH>(simd, rows.map(|row| T::registers::<S>(row).first_chunk::<WIDTH>().unwrap()))
            }
        };
        let lanes = T::lanes::<S>();
        let alpha = T::splat(simd, self.alpha);
        let whole = self.rows == ROWS && self.cols == WIDTH * lanes;
        // Loops over the whole tile, so that its registers are known when compiling.
        for (i, sums) in sums.into_iter().enumerate() {
            if i >= self.rows {
                break;
            }
            let row = &mut self.c[i * self.stride..][..self.cols];
            if whole {
                let row = T::registers_mut::<S>(row).first_chunk_mut::<WIDTH>().unwrap();
                for (c, sum) in row.iter_mut().zip(sums) {
                    *c = if self.add { T::mul_add(simd, alpha, sum, *c) } else { T::times(simd, alpha, sum) };
                }
            } else {
                for (c, sum) in row.chunks_mut(lanes).zip(sums) {
                    let value = if self.add { T::mul_add(simd, alpha, sum, T::load(simd, c)) } else { T::times(simd, alpha, sum) };
                    T::store(simd, c, value);
                }
            }
        }
    }

    /// The sums of the products of a column of the left and a row of the right factor.
    #[inline(always)]
    fn sums<'a, S: Simd, const ROWS: usize, const WIDTH: usize>(
        &self,
        simd: S,
        right: impl Iterator<Item = &'a [T::Register<S>; WIDTH]>,
    ) -> [[T::Register<S>; WIDTH]; ROWS]
    where
        T::Register<S>: 'a,
    {
        match self.a {
            Left::Strip(a) => accumulate(simd, a.as_chunks::<ROWS>().0[..self.terms].iter(), right),
            // A last tile of fewer rows takes its factor from a copy padded with zeros, or repeats its last row.
            Left::Columns(a) if self.rows == ROWS => {
                accumulate(simd, a.data.chunks(a.stride).map(|column| column.first_chunk::<ROWS>().unwrap()), right)
            }
            Left::Columns(a) => {
                let entry = |column: &[T], i| if i < self.rows { column[i] } else { T::ZERO };
                accumulate(simd, a.data.chunks(a.stride).map(|column| std::array::from_fn::<_, ROWS, _>(|i| entry(column, i))), right)
            }
            Left::Rows(a) => {
                let rows: [&[T]; ROWS] = std::array::from_fn(|i| &a.data[i.min(self.rows - 1) * a.stride..][..self.terms]);
                accumulate(simd, (0..self.terms).map(|p| std::array::from_fn::<_, ROWS, _>(|i| rows[i][p])), right)
            }
        }
    }
}

/// The sum of column times row, in registers.
#[inline(always)]
fn accumulate<'a, T: Real, S: Simd, const ROWS: usize, const WIDTH: usize>(
    simd: S,
    columns: impl Iterator<Item: Borrow<[T; ROWS]>>,
    rows: impl Iterator<Item = &'a [T::Register<S>; WIDTH]>,
) -> [[T::Register<S>; WIDTH]; ROWS]
where
    T::Register<S>: 'a,
{
    let mut sums = [[T::splat(simd, T::ZERO); WIDTH]; ROWS];
    for (column, row) in columns.zip(rows) {
        for (sums, &a) in sums.iter_mut().zip(column.borrow()) {
            let a = T::splat(simd, a);
            for (sum, &b) in sums.iter_mut().zip(row) {
                *sum = T::mul_add(simd, a, b, *sum);
            }
        }
    }
    sums
}
