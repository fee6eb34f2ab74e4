//! Moves between the triangles and blocks of matrices.

use super::Real;
use super::product::View;

/// Side of the blocks in which matrices are transposed: a block of each matrix stays in the first-level cache.
const SIDE: usize = 16;

/// `to = from^T` for `from` of `rows x cols`.
#[inline(always)]
pub(super) fn transpose<T: Real>(to: &mut [T], stride: usize, from: View<'_, T>, rows: usize, cols: usize) {
    for row in (0..rows).step_by(SIDE) {
        for col in (0..cols).step_by(SIDE) {
            if rows - row >= SIDE && cols - col >= SIDE {
                transpose_block(&mut to[col * stride + row..], stride, &from.data[row * from.stride + col..], from.stride);
            } else {
                for i in row..rows.min(row + SIDE) {
                    for j in col..cols.min(col + SIDE) {
                        to[j * stride + i] = from.data[i * from.stride + j];
                    }
                }
            }
        }
    }
}

/// Copies `rows x cols` numbers.
#[inline(always)]
pub(super) fn copy<T: Real>(to: &mut [T], stride: usize, from: View<'_, T>, rows: usize, cols: usize) {
    for (to, from) in to.chunks_mut(stride).zip(from.data.chunks(from.stride)).take(rows) {
        let (to, to_rest) = to[..cols].as_chunks_mut::<SIDE>();
        let (from, from_rest) = from[..cols].as_chunks::<SIDE>();
        for (to, from) in to.iter_mut().zip(from) {
            *to = *from;
        }
        for (to, from) in to_rest.iter_mut().zip(from_rest) {
            *to = *from;
        }
    }
}

#[inline(always)]
fn transpose_block<T: Real>(to: &mut [T], to_stride: usize, from: &[T], from_stride: usize) {
    let mut block = [[T::ZERO; SIDE]; SIDE];
    for (row, from) in block.iter_mut().zip(from.chunks(from_stride)) {
        row.copy_from_slice(&from[..SIDE]);
    }
    for (j, to) in to.chunks_mut(to_stride).take(SIDE).enumerate() {
        let column: [T; SIDE] = std::array::from_fn(|i| block[i][j]);
        to[..SIDE].copy_from_slice(&column);
    }
}

/// Copies the part above the diagonal of a square matrix, whose side is a multiple of 16, to the part below.
#[inline(always)]
pub(super) fn mirror<T: Real>(a: &mut [T], stride: usize, n: usize) {
    for row in (0..n).step_by(SIDE) {
        let (top, bottom) = a.split_at_mut((row + SIDE) * stride);
        mirror_block(&mut top[row * stride + row..], stride);
        for col in (row + SIDE..n).step_by(SIDE) {
            transpose_block(&mut bottom[(col - row - SIDE) * stride + row..], stride, &top[row * stride + col..], stride);
        }
    }
}

#[inline(always)]
fn mirror_block<T: Real>(a: &mut [T], stride: usize) {
    for i in 1..SIDE {
        for j in 0..i {
            a[i * stride + j] = a[j * stride + i];
        }
    }
}
