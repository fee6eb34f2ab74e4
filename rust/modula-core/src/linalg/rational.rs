//! Rational functions of the singular values of a matrix, in the Gram space of its shorter edge.

use super::Real;
use super::batch::Task;
use super::constants::Stage;
use super::gram::{Products, largest_eigenvalue};
use super::inverse::{Inversion, add_diagonal, complete, padded_stride, temporary_size};
use super::machine::Machine;
use super::scaling::unit_scale;
use super::scratch::{Scratch, grow};
use super::simd::vectorized;

/// A matrix is rescaled unless its largest entry lies between the inverse of this number and this number: then squares are far from
/// overflow and underflow.
const HARMLESS: f64 = 1e6;

/// Writes `scale` times what the stages make of a matrix that is finite and not zero; `largest` is its largest entry.
pub(super) fn rational<T: Real>(task: &mut Task<'_, T>, largest: T, stages: &[Stage], machine: Machine, scratch: &mut Scratch<T>) {
    let arch = machine.arch;
    let (rows, cols) = (task.rows, task.cols);
    let n = rows.min(cols);
    let (stride, side) = (padded_stride(n), n.next_multiple_of(16));
    let Scratch { gram: g, factor, kept, temporary, panel, slab, vectors } = scratch;
    let (g, factor) = (grow(g, side * stride), grow(factor, side * stride));
    let temporary = grow(temporary, temporary_size(side));
    let again = stages.iter().any(|stage| stage.terms.len() > 1);
    let kept = grow(kept, if again { side * (side + 16) / 2 } else { 0 });

    let mut source = Some(task.input);
    if !(T::from_f64(1.0 / HARMLESS)..T::from_f64(HARMLESS)).contains(&largest) {
        let unit = unit_scale(largest);
        for (out, &x) in task.output.iter_mut().zip(task.input) {
            *out = x * unit;
        }
        source = None;
    }
    for (index, stage) in stages.iter().enumerate() {
        Products { machine, rows, cols, panel, slab }.gram(g, source.unwrap_or(task.output));
        let mut weight = if index + 1 == stages.len() { task.scale } else { T::ONE };
        if index == 0 {
            let inverse_square = T::ONE / largest_eigenvalue(arch, g, n, vectors);
            weight *= inverse_square.sqrt();
            vectorized!(arch, g.iter_mut().for_each(|x| *x *= inverse_square));
        }
        let Stage { constant, cubic, terms } = *stage;
        if cubic != 0.0 {
            let cubic = T::from_f64(cubic) * weight;
            vectorized!(arch, multiply_upper(factor, g, cubic, stride, side));
        }
        if terms.len() > 1 {
            keep_upper(kept, g, stride, side);
        }
        for (term, &(pole, residue)) in terms.iter().enumerate() {
            if term > 0 {
                restore_upper(g, kept, stride, side);
            }
            let (pole, residue) = (T::from_f64(pole), T::from_f64(residue));
            add_diagonal(g, stride, side, pole);
            let (temporary, slab) = (&mut *temporary, &mut *slab);
            Inversion { machine, stride, floor: pole, temporary, slab }.run(g, side, factor, residue * weight, term > 0 || cubic != 0.0);
        }
        complete(arch, factor, stride, side, T::from_f64(constant) * weight);
        Products { machine, rows, cols, panel, slab }.apply(factor, source, task.output);
        source = None;
    }
}

/// `to = factor * a` on and above the diagonal blocks of 16 x 16.
#[inline(always)]
fn multiply_upper<T: Real>(to: &mut [T], a: &[T], factor: T, stride: usize, n: usize) {
    for (i, (to, row)) in to.chunks_exact_mut(stride).zip(a.chunks_exact(stride)).take(n).enumerate() {
        for (to, &x) in to[i / 16 * 16..n].iter_mut().zip(&row[i / 16 * 16..n]) {
            *to = factor * x;
        }
    }
}

/// Copies the rows of a matrix, each from its diagonal block of 16 x 16 on, one after the other.
fn keep_upper<T: Real>(kept: &mut [T], a: &[T], stride: usize, n: usize) {
    let mut rest = kept;
    for (i, row) in a.chunks_exact(stride).take(n).enumerate() {
        let (to, next) = rest.split_at_mut(n - i / 16 * 16);
        to.copy_from_slice(&row[i / 16 * 16..n]);
        rest = next;
    }
}

/// Copies back what [`keep_upper`] has copied.
fn restore_upper<T: Real>(a: &mut [T], kept: &[T], stride: usize, n: usize) {
    let mut rest = kept;
    for (i, row) in a.chunks_exact_mut(stride).take(n).enumerate() {
        let (from, next) = rest.split_at(n - i / 16 * 16);
        row[i / 16 * 16..n].copy_from_slice(from);
        rest = next;
    }
}
