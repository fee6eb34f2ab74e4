//! The one matrix product everything is made of: `c = alpha a^T b` or `c += alpha a^T b`, row-major.
//!
//! With both factors indexed by the summed dimension first, a step of the sum reads a few consecutive numbers of a row of `a`, each broadcast
//! against registers of a row of `b`: nothing needs transposing. A tile of `c` of 8 x 3 registers (4 x 3 where there are 16 registers) stays in
//! registers; a slab of `b` three registers wide is copied together once for all rows of `c`.

use std::borrow::Borrow;

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::Real;
use super::scratch::{grow, with_scratch};

/// Rows of `b` in a slab: 256 rows of 3 registers of 64 bytes are 48 KiB, which stream from the second-level cache. With 128 rows the slab would
/// stay in the first, but `c` be read and written twice as often, which was 12 % of the time at 768 x 768.
pub(super) const DEPTH: usize = 256;
/// Registers in a row of a slab.
const REGISTERS: usize = 3;
/// Rows of `c` worked on at a time: their part of `a`, at most 192 KiB, stays in the second-level cache for all slabs.
const BLOCK: usize = 192;
/// Numbers that copies of parts of both factors take at most, for registers of 64 bytes.
pub(super) const SLAB: usize = DEPTH * (REGISTERS * 16 + BLOCK);
/// Rows of `c` from which on copying slabs of `b` pays.
const ROWS_WORTH_COPYING: usize = 48;
/// Columns of `c` from which on copying blocks of `a` pays.
const COLUMNS_WORTH_COPYING: usize = 144;

/// Multiply-adds from which on the threads that share a matrix share its products.
const WORTH_SHARING: usize = 1 << 21;

/// What a matrix is worked on with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Machine {
    pub arch: Arch,
    /// Threads that share the matrix.
    pub threads: usize,
}

/// A row-major matrix inside a longer slice.
#[derive(Clone, Copy, Debug)]
pub(super) struct View<'a, T> {
    pub data: &'a [T],
    /// Distance between rows.
    pub stride: usize,
}

impl<'a, T> View<'a, T> {
    pub fn new(data: &'a [T], stride: usize) -> Self {
        Self { data, stride }
    }
}

/// The left factor.
#[derive(Clone, Copy, Debug)]
pub(super) enum Left<'a, T> {
    /// `a`, a row for every term of the sum.
    Columns(View<'a, T>),
    /// `a^T`, a row for every row of the result.
    Rows(View<'a, T>),
}

/// Zeros of triangular factors, which are skipped, up to a tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Zeros {
    /// No factor is triangular.
    None,
    /// `a^T` is lower triangular.
    Left,
    /// `b` is lower triangular.
    Right,
}

/// A block of a row-major matrix to write to.
#[derive(Debug)]
pub(super) struct Block<'a, T> {
    pub data: &'a mut [T],
    /// Distance between rows.
    pub stride: usize,
    pub rows: usize,
    pub cols: usize,
}

/// `c = alpha a^T b`, a sum of `depth` terms.
#[derive(Debug)]
pub(super) struct Product<'a, T> {
    c: Block<'a, T>,
    depth: usize,
    a: Left<'a, T>,
    b: View<'a, T>,
    alpha: T,
    add: bool,
    upper: bool,
    zeros: Zeros,
}

impl<'a, T: Real> Product<'a, T> {
    /// `c = a^T b`
    pub fn new(c: Block<'a, T>, depth: usize, a: Left<'a, T>, b: View<'a, T>) -> Self {
        let (alpha, add, upper, zeros) = (T::ONE, false, false, Zeros::None);
        Self { c, depth, a, b, alpha, add, upper, zeros }
    }

    /// Multiplies the product by `alpha`.
    pub fn scaled(self, alpha: T) -> Self {
        Self { alpha, ..self }
    }

    /// Adds to `c`, if so, instead of replacing it.
    pub fn added(self, add: bool) -> Self {
        Self { add, ..self }
    }

    /// For a symmetric result: only the part on and above the diagonal (up to a tile) is computed.
    pub fn upper(self) -> Self {
        Self { upper: true, ..self }
    }

    /// Skips the zeros of triangular factors.
    pub fn zeros(self, zeros: Zeros) -> Self {
        Self { zeros, ..self }
    }

    /// Computes the product. `slab` is room for [`SLAB`] numbers.
    pub fn run(self, machine: Machine, slab: &mut [T]) {
        let Machine { arch, threads } = machine;
        let Block { stride, rows, cols, .. } = self.c;
        if threads == 1 || rows * cols * self.depth < WORTH_SHARING {
            return arch.dispatch(Run { product: self, first_row: 0, slab });
        }
        // Several bands for each thread, because those of a triangle differ in work.
        let band = rows.div_ceil(4 * threads).next_multiple_of(8);
        let Self { c, depth, a, b, alpha, add, upper, zeros } = self;
        c.data.par_chunks_mut(band * stride).take(rows.div_ceil(band)).with_max_len(1).enumerate().for_each(|(index, data)| {
            let first_row = index * band;
            let c = Block { data, stride, rows: band.min(rows - first_row), cols };
            let product = Product { c, depth, a: a.from(0, first_row), b, alpha, add, upper, zeros };
            with_scratch(T::scratch(), |scratch| {
                arch.dispatch(Run { product, first_row, slab: grow(&mut scratch.slab, SLAB) });
            });
        });
    }
}

struct Run<'a, 'b, T> {
    product: Product<'a, T>,
    /// Row of the whole result that the first one here is.
    first_row: usize,
    slab: &'b mut [T],
}

impl<T: Real> WithSimd for Run<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        if S::REGISTER_COUNT >= 32 { self.slabs::<S, 8>(simd) } else { self.slabs::<S, 4>(simd) }
    }
}

impl<T: Real> Run<'_, '_, T> {
    #[inline(always)]
    fn slabs<S: Simd, const ROWS: usize>(self, simd: S) {
        let Self { product, first_row, slab } = self;
        let Product { c, depth, a, b, alpha, add, upper, zeros } = product;
        let Block { data: c, stride, rows, cols } = c;
        let lanes = T::lanes::<S>();
        let width = REGISTERS * lanes;
        let (slab, packed) = slab.split_at_mut(DEPTH * REGISTERS * 16);
        let pack = matches!(a, Left::Columns(_)) && cols >= COLUMNS_WORTH_COPYING;
        let height = if pack { BLOCK } else { rows };
        for chunk in (0..depth).step_by(DEPTH) {
            let end = depth.min(chunk + DEPTH);
            for block in (0..rows).step_by(height) {
                let below = rows.min(block + height);
                if pack {
                    pack_strips::<T, ROWS>(packed, a.from(chunk, block), end - chunk, below - block);
                }
                // Left of the diagonal there is nothing to compute.
                let start = if upper { (first_row + block) / width * width } else { 0 };
                for column in (start..cols).step_by(width) {
                    let first = if zeros == Zeros::Right { chunk.max(column) } else { chunk };
                    if first >= end {
                        break;
                    }
                    let here = width.min(cols - column);
                    let mut right = View { data: &b.data[first * b.stride + column..], stride: b.stride };
                    let last_row = if upper { below.min((column + here).saturating_sub(first_row)) } else { below };
                    if last_row >= block + ROWS_WORTH_COPYING || here % lanes != 0 {
                        let padded = here.next_multiple_of(lanes);
                        copy_rows::<T, S>(slab, padded, right, end - first, here);
                        right = View { data: slab, stride: padded };
                    }
                    for row in (block..last_row).step_by(ROWS) {
                        let last = if zeros == Zeros::Left { end.min(first_row + row + ROWS) } else { end };
                        if first >= last {
                            continue;
                        }
                        // Whole registers left of the diagonal are left out.
                        let skip = if upper { (first_row + row).saturating_sub(column) / lanes * lanes } else { 0 };
                        let left = if pack {
                            let data = &packed[(row - block) * (end - chunk) + (first - chunk) * ROWS..];
                            Left::Columns(View { data, stride: ROWS })
                        } else {
                            a.from(first, row)
                        };
                        let tile = Tile {
                            a: left,
                            b: View { data: &right.data[skip..], stride: right.stride },
                            c: &mut c[row * stride + column + skip..],
                            stride,
                            rows: ROWS.min(rows - row),
                            cols: here - skip,
                            terms: last - first,
                            alpha,
                            // With zeros on the right, the first terms of a slab are those of its own columns.
                            add: add || if zeros == Zeros::Right { chunk > column } else { chunk > 0 },
                        };
                        match (here - skip).div_ceil(lanes) {
                            3 => tile.run::<S, ROWS, 3>(simd),
                            2 => tile.run::<S, ROWS, 2>(simd),
                            _ => tile.run::<S, ROWS, 1>(simd),
                        }
                    }
                }
            }
        }
    }
}

/// Copies `rows` columns of the left factor to strips of `ROWS`, each one's terms one after the other; a last strip of fewer is padded with zeros.
#[inline(always)]
fn pack_strips<T: Real, const ROWS: usize>(to: &mut [T], a: Left<'_, T>, terms: usize, rows: usize) {
    let Left::Columns(a) = a else { return };
    for (strip, to) in to.chunks_mut(terms * ROWS).take(rows.div_ceil(ROWS)).enumerate() {
        let here = ROWS.min(rows - strip * ROWS);
        for (to, from) in to.as_chunks_mut::<ROWS>().0.iter_mut().zip(a.data.chunks(a.stride)) {
            match from[strip * ROWS..].first_chunk::<ROWS>() {
                Some(from) if here == ROWS => *to = *from,
                _ => *to = std::array::from_fn(|i| if i < here { from[strip * ROWS + i] } else { T::ZERO }),
            }
        }
    }
}

impl<T: Real> Left<'_, T> {
    /// The factor without its first terms and rows.
    #[inline(always)]
    fn from(self, term: usize, row: usize) -> Self {
        match self {
            Self::Columns(v) => Self::Columns(View { data: &v.data[term * v.stride + row..], ..v }),
            Self::Rows(v) => Self::Rows(View { data: &v.data[row * v.stride + term..], ..v }),
        }
    }
}

/// Copies `rows x cols` numbers to rows of whole registers, padded with zeros.
#[inline(always)]
fn copy_rows<T: Real, S: Simd>(to: &mut [T], width: usize, from: View<'_, T>, rows: usize, cols: usize) {
    for (to, from) in to.chunks_exact_mut(width).zip(from.data.chunks(from.stride)).take(rows) {
        if cols == width {
            let from = T::registers::<S>(&from[..width]);
            for (to, from) in T::registers_mut::<S>(to).iter_mut().zip(from) {
                *to = *from;
            }
        } else {
            to[..cols].copy_from_slice(&from[..cols]);
            to[cols..].fill(T::ZERO);
        }
    }
}

/// One tile of the result: at most `ROWS` rows of `REGISTERS` registers.
struct Tile<'a, T> {
    a: Left<'a, T>,
    b: View<'a, T>,
    c: &'a mut [T],
    stride: usize,
    rows: usize,
    cols: usize,
    terms: usize,
    alpha: T,
    add: bool,
}

impl<T: Real> Tile<'_, T> {
    #[inline(always)]
    fn run<S: Simd, const ROWS: usize, const WIDTH: usize>(self, simd: S) {
        let sums = match self.a {
            // A last tile of fewer rows takes its factor from a copy padded with zeros, or repeats its last row.
            Left::Columns(a) if self.rows == ROWS => {
                let columns = a.data.chunks(a.stride).map(|column| column.first_chunk::<ROWS>().unwrap());
                accumulate::<T, S, ROWS, WIDTH>(simd, columns, self.b, self.terms)
            }
            Left::Columns(a) => {
                let rows = self.rows;
                let columns =
                    a.data.chunks(a.stride).map(|column| std::array::from_fn::<_, ROWS, _>(|i| if i < rows { column[i] } else { T::ZERO }));
                accumulate::<T, S, ROWS, WIDTH>(simd, columns, self.b, self.terms)
            }
            Left::Rows(a) => {
                let rows: [&[T]; ROWS] = std::array::from_fn(|i| &a.data[i.min(self.rows - 1) * a.stride..][..self.terms]);
                let columns = (0..self.terms).map(|p| std::array::from_fn::<_, ROWS, _>(|i| rows[i][p]));
                accumulate::<T, S, ROWS, WIDTH>(simd, columns, self.b, self.terms)
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
}

/// The sum over `terms` of column times row, in registers.
#[inline(always)]
fn accumulate<T: Real, S: Simd, const ROWS: usize, const WIDTH: usize>(
    simd: S,
    columns: impl Iterator<Item: Borrow<[T; ROWS]>>,
    b: View<'_, T>,
    terms: usize,
) -> [[T::Register<S>; WIDTH]; ROWS] {
    let lanes = T::lanes::<S>();
    let mut sums = [[T::splat(simd, T::ZERO); WIDTH]; ROWS];
    for (column, row) in columns.zip(b.data.chunks(b.stride)).take(terms) {
        let row = T::registers::<S>(&row[..WIDTH * lanes]).first_chunk::<WIDTH>().unwrap();
        for (sums, &a) in sums.iter_mut().zip(column.borrow()) {
            let a = T::splat(simd, a);
            for (sum, &b) in sums.iter_mut().zip(row) {
                *sum = T::mul_add(simd, a, b, *sum);
            }
        }
    }
    sums
}
