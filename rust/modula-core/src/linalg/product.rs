//! The one matrix product that everything else is made of: `c = alpha a^T b` or `c += alpha a^T b`, row-major.
//!
//! Both factors have a row for every term of the sum. A term takes a few consecutive numbers of a row of `a`, and multiplies each with
//! registers of a row of `b`: nothing needs transposing. A tile of `c` stays in registers: 8 rows of 3 registers, or 6 rows of 2 where the
//! processor has 16 registers. (Of these, 4 rows of 3 would take all: 12 sums, 3 numbers of `b` and 1 of `a`. The compiler then kept one sum
//! in memory, and every term waited for it: the product had half the speed.) Parts of large factors are [packed](super::pack) into buffers
//! that are read from start to end: `b` into slabs as wide as a tile, `a` into strips with as many columns as a tile has rows. Both factors
//! of a square `b^T b` are read from the slabs where whole tiles fit a slab.

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::Real;
use super::machine::Machine;
use super::pack::{copy_slabs, copy_slabs_of_transposed, copy_strips};
use super::scratch::{grow, with_scratch};
use super::tile::{Right, Tile};
use super::view::{Block, Left, View, Zeros};
use crate::interrupt;

/// Rows of `b` in a slab: 384 rows of 3 registers of 64 bytes are 72 KiB, which stream from the second-level cache. With 128 rows a slab
/// would stay in the first-level cache, but `c` would be read and written three times as often; with 256 rows that took 12 % of the time at
/// 768 x 768.
const DEPTH: usize = 384;
/// Rows of `c` worked on at a time: their part of `a`, at most 288 KiB, stays in the second-level cache for all slabs.
const BLOCK: usize = 192;
/// Padding after each slab and strip, in numbers. Without it, the first rows of all slabs would compete for the same lines of the cache. It
/// also covers the last row: a tile that skips its first registers may read up to two registers past it.
const GAP: usize = 32;
/// Rows of `c` from which on copying `b` pays.
const ROWS_WORTH_COPYING: usize = 136;
/// Rows of a square from which on copying `b` pays: both factors are then read from the copy.
const SQUARES_WORTH_COPYING: usize = 72;
/// Columns of `c` from which on copying blocks of `a` pays.
const COLUMNS_WORTH_COPYING: usize = 96;

/// Multiply-adds of a product from which on the threads that share a matrix also share the product.
const WORTH_SHARING: usize = 1 << 21;

/// `c = alpha a^T b`, a sum of `depth` terms.
#[derive(Debug)]
pub(super) struct Product<'a, T> {
    c: Block<'a, T>,
    depth: usize,
    /// The left factor; None for a square, whose left factor is `b` and of which only the part on and above the diagonal is computed.
    a: Option<Left<'a, T>>,
    b: View<'a, T>,
    /// Whether `b` has a row for every column of the result instead of one for every term.
    transposed: bool,
    alpha: T,
    add: bool,
    zeros: Zeros,
}

impl<'a, T: Real> Product<'a, T> {
    /// `c = a^T b`
    pub fn new(c: Block<'a, T>, depth: usize, a: Left<'a, T>, b: View<'a, T>) -> Self {
        Self { c, depth, a: Some(a), b, transposed: false, alpha: T::ONE, add: false, zeros: Zeros::None }
    }

    /// `c = b^T b`, of which only the tiles on and above the diagonal are computed.
    pub fn square(c: Block<'a, T>, depth: usize, b: View<'a, T>) -> Self {
        Self { a: None, ..Self::new(c, depth, Left::Columns(b), b) }
    }

    /// `c = b b^T`, of which only the tiles on and above the diagonal are computed.
    pub fn square_of_transposed(c: Block<'a, T>, depth: usize, b: View<'a, T>) -> Self {
        Self { transposed: true, ..Self::square(c, depth, b) }
    }

    /// Multiplies the product by `alpha`.
    pub fn scaled(self, alpha: T) -> Self {
        Self { alpha, ..self }
    }

    /// If `add` is true, adds the product to `c` instead of replacing `c`.
    pub fn added(self, add: bool) -> Self {
        Self { add, ..self }
    }

    /// Skips the zeros of triangular factors.
    pub fn zeros(self, zeros: Zeros) -> Self {
        Self { zeros, ..self }
    }

    /// Computes the product; `slab` is the buffer for packed parts of the factors.
    pub fn run(self, machine: Machine, slab: &mut Vec<T>) {
        let Machine { arch, threads } = machine;
        let Block { stride, rows, cols, .. } = self.c;
        if threads == 1 || rows * cols * self.depth < WORTH_SHARING {
            return arch.dispatch(Run { product: self, first_row: 0, slab });
        }
        // Several bands for each thread, because the bands of a triangle differ in work.
        let band = rows.div_ceil(4 * threads).next_multiple_of(8);
        let Self { c, a, .. } = self;
        let watch = interrupt::current();
        c.data.par_chunks_mut(band * stride).take(rows.div_ceil(band)).with_max_len(1).enumerate().for_each(|(index, data)| {
            let first_row = index * band;
            let c = Block { data, stride, rows: band.min(rows - first_row), cols };
            let product = Product { c, a: a.map(|a| a.from(0, first_row)), ..self };
            watch.run(|| {
                with_scratch(T::scratch(), |scratch| arch.dispatch(Run { product, first_row, slab: &mut scratch.slab }));
            });
        });
    }
}

struct Run<'a, 'b, T> {
    product: Product<'a, T>,
    /// Index of this band's first row in the whole result.
    first_row: usize,
    slab: &'b mut Vec<T>,
}

impl<T: Real> WithSimd for Run<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        if S::REGISTER_COUNT >= 32 { self.slabs::<S, 8, 3>(simd) } else { self.slabs::<S, 6, 2>(simd) }
    }
}

impl<T: Real> Run<'_, '_, T> {
    #[inline(always)]
    fn slabs<S: Simd, const ROWS: usize, const SLAB: usize>(self, simd: S) {
        let Self { product, first_row, slab } = self;
        let Product { c, depth, a, b, transposed, alpha, add, zeros } = product;
        let upper = a.is_none();
        let Block { data: c, stride, rows, cols } = c;
        let lanes = T::lanes::<S>();
        let width = SLAB * lanes;
        // Columns from this one on are copied: all, none, or, if the last register is not whole, the columns of the last slab.
        let worth_copying = if upper { SQUARES_WORTH_COPYING } else { ROWS_WORTH_COPYING };
        let copied = match cols % lanes {
            _ if rows >= worth_copying || transposed => 0,
            0 => cols,
            _ => cols / width * width,
        };
        // The left factor of a square is read from the copy of the right factor if each tile's part lies within one slab.
        let same = upper && copied == 0 && width.is_multiple_of(ROWS);
        let a = a.unwrap_or_else(|| if transposed { Left::Rows(b) } else { Left::Columns(b) }.from(0, first_row));
        let pack = !same && matches!(a, Left::Columns(_)) && cols >= COLUMNS_WORTH_COPYING;
        let terms = depth.min(DEPTH);
        let (slab_size, strip_size) = (terms * width + GAP, terms * ROWS + GAP);
        let slabs = (cols - copied).div_ceil(width) * slab_size;
        let strips = if pack { BLOCK.min(rows).div_ceil(ROWS) * strip_size } else { 0 };
        let (slabs, strips) = grow(slab, slabs + strips).split_at_mut(slabs);
        for chunk in (0..depth).step_by(DEPTH) {
            let end = depth.min(chunk + DEPTH);
            if copied < cols {
                // Left of the diagonal there is nothing to compute.
                let start = if upper { copied.max(first_row / width * width) } else { copied };
                let slabs = &mut slabs[(start - copied) / width * slab_size..];
                if transposed {
                    copy_slabs_of_transposed::<T, S, SLAB>(simd, slabs, slab_size, b, chunk..end, start..cols);
                } else {
                    copy_slabs::<T, S, SLAB>(slabs, slab_size, b, chunk..end, start..cols, zeros == Zeros::Right);
                }
            }
            for block in (0..rows).step_by(BLOCK) {
                interrupt::check();
                let below = rows.min(block + BLOCK);
                if pack {
                    copy_strips::<T, ROWS>(strips, strip_size, a.from(chunk, block), end - chunk, below - block);
                }
                let start = if upper { (first_row + block) / width * width } else { 0 };
                for column in (start..cols).step_by(width) {
                    let first = if zeros == Zeros::Right { chunk.max(column) } else { chunk };
                    if first >= end {
                        break;
                    }
                    let here = width.min(cols - column);
                    let right = |skip: usize| {
                        if column >= copied {
                            Right::Slab(&slabs[(column - copied) / width * slab_size + (first - chunk) * width + skip..])
                        } else {
                            Right::Rows(View { data: &b.data[first * b.stride + column + skip..], stride: b.stride })
                        }
                    };
                    let last_row = if upper { below.min((column + here).saturating_sub(first_row)) } else { below };
                    for row in (block..last_row).step_by(ROWS) {
                        let last = if zeros == Zeros::Left { end.min(first_row + row + ROWS) } else { end };
                        if first >= last {
                            continue;
                        }
                        // Whole registers left of the diagonal are skipped.
                        let skip = if upper { (first_row + row).saturating_sub(column) / lanes * lanes } else { 0 };
                        let left = if same {
                            let row = first_row + row;
                            let slab = &slabs[row / width * slab_size + (first - chunk) * width + row % width..];
                            Left::Columns(View { data: slab, stride: width })
                        } else if pack {
                            Left::Strip(&strips[(row - block) / ROWS * strip_size + (first - chunk) * ROWS..])
                        } else {
                            a.from(first, row)
                        };
                        let tile = Tile {
                            a: left,
                            b: right(skip),
                            c: &mut c[row * stride + column + skip..],
                            stride,
                            rows: ROWS.min(rows - row),
                            cols: here - skip,
                            terms: last - first,
                            alpha,
                            // With a lower triangular right factor, the first terms of a slab are those on its diagonal.
                            add: add || if zeros == Zeros::Right { chunk > column } else { chunk > 0 },
                        };
                        match (here - skip).div_ceil(lanes) {
                            3 if SLAB == 3 => tile.run::<S, ROWS, SLAB, 3>(simd),
                            2 => tile.run::<S, ROWS, SLAB, 2>(simd),
                            _ => tile.run::<S, ROWS, SLAB, 1>(simd),
                        }
                    }
                }
            }
        }
    }
}
