//! A tile of a product: a part of the result that is small enough to stay in registers while its sums are taken.

use std::borrow::Borrow;

use pulp::Simd;

use super::Real;
use super::view::{Left, View};

/// The right factor of a tile.
#[derive(Clone, Copy)]
pub(super) enum Right<'a, T> {
    Rows(View<'a, T>),
    /// A packed copy of as many columns as the widest tile has, term after term.
    Slab(&'a [T]),
}

/// One tile of the result: at most `ROWS` rows of `WIDTH` registers. Slabs are `SLAB` registers wide.
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

impl<'a, T: Real> Tile<'a, T> {
    #[inline(always)]
    pub fn run<S: Simd, const ROWS: usize, const SLAB: usize, const WIDTH: usize>(self, simd: S) {
        let before_last = self.terms - 1;
        let sums = match self.b {
            // The distance between the rows of a slab is known at compile time.
            Right::Slab(slab) => {
                let rows = &T::registers::<S>(slab).as_chunks::<SLAB>().0[..self.terms];
                let first = |row: &'a [T::Register<S>; SLAB]| row.first_chunk::<WIDTH>().unwrap();
                self.sums::<S, ROWS, WIDTH>(simd, rows[..before_last].iter().map(first), first(&rows[before_last]))
            }
            Right::Rows(b) => {
                let first = |row: &'a [T]| T::registers::<S>(row).first_chunk::<WIDTH>().unwrap();
                let rows = b.data[..before_last * b.stride].chunks_exact(b.stride);
                self.sums::<S, ROWS, WIDTH>(simd, rows.map(first), first(&b.data[before_last * b.stride..]))
            }
        };
        let lanes = T::lanes::<S>();
        let alpha = T::splat(simd, self.alpha);
        let whole = self.rows == ROWS && self.cols == WIDTH * lanes;
        // The loops go over the whole tile, so that each sum has its register at compile time.
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

    /// The sum over all terms of a column of the left factor times a row of the right factor.
    ///
    /// The last term is added separately. The rows before it are known to be as long as the stride, so that one check covers them all.
    #[inline(always)]
    fn sums<S: Simd, const ROWS: usize, const WIDTH: usize>(
        &self,
        simd: S,
        right: impl Iterator<Item = &'a [T::Register<S>; WIDTH]>,
        last: &[T::Register<S>; WIDTH],
    ) -> [[T::Register<S>; WIDTH]; ROWS] {
        let before_last = self.terms - 1;
        match self.a {
            Left::Strip(a) => {
                let columns = &a.as_chunks::<ROWS>().0[..self.terms];
                accumulate(simd, columns[..before_last].iter(), right, &columns[before_last], last)
            }
            // A last tile of fewer rows pads columns with zeros, or repeats its last row.
            Left::Columns(a) if self.rows == ROWS => {
                let first = |column: &'a [T]| column.first_chunk::<ROWS>().unwrap();
                let columns = a.data[..before_last * a.stride].chunks_exact(a.stride);
                accumulate(simd, columns.map(first), right, first(&a.data[before_last * a.stride..]), last)
            }
            Left::Columns(a) => {
                let padded = |column: &[T]| std::array::from_fn::<_, ROWS, _>(|i| if i < self.rows { column[i] } else { T::ZERO });
                let columns = a.data[..before_last * a.stride].chunks_exact(a.stride);
                accumulate(simd, columns.map(padded), right, &padded(&a.data[before_last * a.stride..]), last)
            }
            Left::Rows(a) => {
                let rows: [&[T]; ROWS] = std::array::from_fn(|i| &a.data[i.min(self.rows - 1) * a.stride..][..self.terms]);
                let column = |p| std::array::from_fn::<_, ROWS, _>(|i| rows[i][p]);
                accumulate(simd, (0..before_last).map(column), right, &column(before_last), last)
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
    last_column: &[T; ROWS],
    last_row: &[T::Register<S>; WIDTH],
) -> [[T::Register<S>; WIDTH]; ROWS] {
    let mut sums = [[T::splat(simd, T::ZERO); WIDTH]; ROWS];
    for (column, row) in columns.zip(rows) {
        add_product(simd, &mut sums, column.borrow(), row);
    }
    add_product(simd, &mut sums, last_column, last_row);
    sums
}

#[inline(always)]
fn add_product<T: Real, S: Simd, const ROWS: usize, const WIDTH: usize>(
    simd: S,
    sums: &mut [[T::Register<S>; WIDTH]; ROWS],
    column: &[T; ROWS],
    row: &[T::Register<S>; WIDTH],
) {
    for (sums, &a) in sums.iter_mut().zip(column) {
        let a = T::splat(simd, a);
        for (sum, &b) in sums.iter_mut().zip(row) {
            *sum = T::mul_add(simd, a, b, *sum);
        }
    }
}
