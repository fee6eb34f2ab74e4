//! Packing: parts of the factors of a product are copied to buffers that tiles read from start to end.
//!
//! The copies go through a factor by whole rows, which the processor prefetches. Copying slab by slab and strip by strip took a fifth of
//! the time of a product of side 768.

use std::ops::Range;

use pulp::Simd;

use super::Real;
use super::transpose::transpose_square;
use super::view::{Left, View};

/// Copies some rows and columns of the right factor to slabs `SLAB` registers wide, row after row; the last register of a row is padded with
/// zeros. For a lower triangular factor, the parts of rows that are zero throughout a slab are left out.
#[inline(always)]
pub(super) fn copy_slabs<T: Real, S: Simd, const SLAB: usize>(
    to: &mut [T],
    size: usize,
    b: View<'_, T>,
    rows: Range<usize>,
    columns: Range<usize>,
    lower: bool,
) {
    let lanes = T::lanes::<S>();
    let width = SLAB * lanes;
    for (p, from) in b.data[rows.start * b.stride..].chunks(b.stride).take(rows.len()).enumerate() {
        let end = if lower { columns.end.min((rows.start + p) / width * width + width) } else { columns.end };
        if columns.start >= end {
            continue;
        }
        // Slabs are found by their index: an iterator over slabs, made anew for every row, took a tenth of the time of a product of side
        // 64.
        for (slab, from) in from[columns.start..end].chunks(width).enumerate() {
            let to = &mut to[slab * size + p * width..][..width];
            if from.len() == width {
                for (to, from) in T::registers_mut::<S>(to).iter_mut().zip(T::registers::<S>(from)) {
                    *to = *from;
                }
            } else {
                to[..from.len()].copy_from_slice(from);
                to[from.len()..].fill(T::ZERO);
            }
        }
    }
}

/// Copies a part of a right factor to such slabs; this factor is given transposed, with a row for every column of the result.
#[inline(always)]
pub(super) fn copy_slabs_of_transposed<T: Real, S: Simd, const SLAB: usize>(
    simd: S,
    to: &mut [T],
    size: usize,
    b: View<'_, T>,
    terms: Range<usize>,
    columns: Range<usize>,
) {
    let lanes = T::lanes::<S>();
    let width = SLAB * lanes;
    for first in columns.clone().step_by(lanes) {
        let column = first - columns.start;
        let to = &mut to[column / width * size + column % width..];
        for term in terms.clone().step_by(lanes) {
            let to = &mut to[(term - terms.start) * width..];
            let from = &b.data[first * b.stride + term..];
            if first + lanes <= columns.end && term + lanes <= terms.end {
                transpose_square(simd, to, width, from, b.stride);
            } else {
                for (p, to) in to.chunks_mut(width).take(terms.end - term).take(lanes).enumerate() {
                    for (i, to) in to.iter_mut().take(lanes).enumerate() {
                        *to = if first + i < columns.end { from[i * b.stride + p] } else { T::ZERO };
                    }
                }
            }
        }
    }
}

/// Copies `rows` columns of the left factor to strips of `ROWS` columns, term after term; a last strip of fewer columns is padded with
/// zeros.
#[inline(always)]
pub(super) fn copy_strips<T: Real, const ROWS: usize>(to: &mut [T], size: usize, a: Left<'_, T>, terms: usize, rows: usize) {
    let Left::Columns(a) = a else { return };
    for (p, from) in a.data.chunks(a.stride).take(terms).enumerate() {
        let (whole, rest) = from[..rows].as_chunks::<ROWS>();
        for (strip, from) in whole.iter().enumerate() {
            to[strip * size + p * ROWS..][..ROWS].copy_from_slice(from);
        }
        if !rest.is_empty() {
            let to = &mut to[whole.len() * size + p * ROWS..][..ROWS];
            to[..rest.len()].copy_from_slice(rest);
            to[rest.len()..].fill(T::ZERO);
        }
    }
}
