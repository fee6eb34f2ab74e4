//! Copies and transposes of blocks, and symmetric matrices from their upper triangle.

use pulp::{Simd, WithSimd};

use super::Real;
use super::view::View;

/// Side of the blocks in which matrices are transposed: a block of each matrix stays in the first-level cache.
const SIDE: usize = 16;

/// Copies a `rows x cols` matrix.
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
fn transpose_block<T: Real, S: Simd>(simd: S, to: &mut [T], to_stride: usize, from: &[T], from_stride: usize) {
    let lanes = T::lanes::<S>();
    for row in (0..SIDE).step_by(lanes) {
        for col in (0..SIDE).step_by(lanes) {
            transpose_square(simd, &mut to[col * to_stride + row..], to_stride, &from[row * from_stride + col..], from_stride);
        }
    }
}

/// `to = from^T` for a square with as many rows as a register has lanes.
#[inline(always)]
pub(super) fn transpose_square<T: Real, S: Simd>(simd: S, to: &mut [T], to_stride: usize, from: &[T], from_stride: usize) {
    let lanes = T::lanes::<S>();
    let done = match lanes {
        16 => transpose_registers::<T, S, 16>(simd, to, to_stride, from, from_stride),
        8 => transpose_registers::<T, S, 8>(simd, to, to_stride, from, from_stride),
        4 => transpose_registers::<T, S, 4>(simd, to, to_stride, from, from_stride),
        _ => None,
    };
    if done.is_none() {
        for (j, to) in to.chunks_mut(to_stride).take(lanes).enumerate() {
            for (to, from) in to.iter_mut().zip(from.chunks(from_stride)).take(lanes) {
                *to = from[j];
            }
        }
    }
}

/// Transposes the square in registers. None if the processor has no instruction that interleaves them.
#[inline(always)]
fn transpose_registers<T: Real, S: Simd, const N: usize>(
    simd: S,
    to: &mut [T],
    to_stride: usize,
    from: &[T],
    from_stride: usize,
) -> Option<()> {
    let mut square = [T::splat(simd, T::ZERO); N];
    for (x, from) in square.iter_mut().zip(from.chunks(from_stride)) {
        *x = T::registers::<S>(from)[0];
    }
    square = zip_halves::<T, S, N>(simd, square)?;
    square = zip_halves::<T, S, N>(simd, square)?;
    if N > 4 {
        square = zip_halves::<T, S, N>(simd, square)?;
    }
    if N > 8 {
        square = zip_halves::<T, S, N>(simd, square)?;
    }
    for (x, to) in square.into_iter().zip(to.chunks_mut(to_stride)) {
        T::registers_mut::<S>(to)[0] = x;
    }
    Some(())
}

/// One round of interleaving register i with register i + N/2. log2(N) rounds transpose an N x N square.
#[inline(always)]
fn zip_halves<T: Real, S: Simd, const N: usize>(simd: S, square: [T::Register<S>; N]) -> Option<[T::Register<S>; N]> {
    let mut zipped = square;
    for i in 0..N / 2 {
        let [a, b] = T::zip(simd, square[i], square[i + N / 2])?;
        zipped[2 * i] = a;
        zipped[2 * i + 1] = b;
    }
    Some(zipped)
}

/// Copies the part above the diagonal of a square matrix, whose side is a multiple of 16, to the part below.
pub(super) struct Mirror<'a, T> {
    pub a: &'a mut [T],
    pub stride: usize,
    pub side: usize,
}

impl<T: Real> WithSimd for Mirror<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { a, stride, side } = self;
        for row in (0..side).step_by(SIDE) {
            let (top, bottom) = a.split_at_mut((row + SIDE) * stride);
            mirror_block(simd, &mut top[row * stride + row..], stride);
            for col in (row + SIDE..side).step_by(SIDE) {
                let to = &mut bottom[(col - row - SIDE) * stride + row..];
                transpose_block(simd, to, stride, &top[row * stride + col..], stride);
            }
        }
    }
}

#[inline(always)]
fn mirror_block<T: Real, S: Simd>(simd: S, a: &mut [T], stride: usize) {
    let mut transposed = [[T::ZERO; SIDE]; SIDE];
    transpose_block(simd, transposed.as_flattened_mut(), SIDE, a, stride);
    // Whole rows are read and written, so that the choice between old and new is made in registers.
    for (i, (row, from)) in a.chunks_mut(stride).zip(&transposed).enumerate() {
        let row = row.first_chunk_mut::<SIDE>().unwrap();
        for (j, (x, &from)) in row.iter_mut().zip(from).enumerate() {
            *x = if j < i { from } else { *x };
        }
    }
}
