//! Orthogonalisation: the polar factor `U V^T` of every matrix of a model.

use pulp::Arch;

use super::batch::{Task, for_each_largest_first, largest_entry, unit_scale};
use super::exact;
use super::gram::{Products, largest_eigenvalue};
use super::inverse::{Inversion, add_diagonal, complete, padded_stride, temporary_size};
use super::operator::dot;
use super::product::Machine;
use super::schedule::{Stage, stages};
use super::scratch::{Scratch, grow, with_scratch};
use super::simd::vectorized;
use super::{Job, Real};
use crate::memory;

/// How close to 1 [`orthogonalize`] brings the singular values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accuracy {
    /// Every singular value above a thousandth of the largest within 0.006 of 1; smaller ones in between 0 and 1.
    Standard,
    /// About what this many Newton-Schulz steps of degree 5 reach, for the least work: every singular value above a thousandth of the largest within
    /// 0.63 of 1 for up to three, 0.25 for four or five; from six on `Standard`.
    Steps(u32),
    /// To rounding, for every singular value above `epsilon * max(rows, cols)` of the largest; those below become 0.
    Exact,
}

/// Writes `scale * U V^T` for every matrix `U S V^T` of every job. Singular values of zero stay zero.
///
/// The answer does not depend on the scale of the input, however large or small, and zeros give zeros. A matrix with an entry that is
/// infinite or NaN gives NaN throughout.
pub fn orthogonalize<T: Real>(jobs: &mut [Job<'_, T>], accuracy: Accuracy) {
    let tasks = memory::collected(jobs.iter_mut().flat_map(Job::tasks));
    for_each_largest_first(tasks, Task::work, |task, threads| match largest_entry(task.input) {
        None => task.output.fill(T::NAN),
        Some(largest) if largest == T::ZERO || task.scale == T::ZERO => task.output.fill(T::ZERO),
        Some(largest) if task.rows == 1 || task.cols == 1 => direction(task, largest),
        Some(largest) => match accuracy {
            Accuracy::Exact => exact(task, threads),
            Accuracy::Standard | Accuracy::Steps(_) => with_scratch(T::scratch(), |scratch| {
                rational(task, largest, stages(accuracy), Machine { arch: Arch::new(), threads }, scratch);
            }),
        },
    });
}

/// The polar factor of a single row or column: that over its length.
fn direction<T: Real>(task: &mut Task<'_, T>, largest: T) {
    /// Numbers summed in their own precision before the sum goes on in double.
    const PIECE: usize = 1024;
    let arch = Arch::new();
    let unit = unit_scale(largest);
    vectorized!(
        arch,
        for (out, &x) in task.output.iter_mut().zip(task.input) {
            *out = x * unit;
        }
    );
    let square: f64 = task.output.chunks(PIECE).map(|x| dot(arch, x, x).to_f64()).sum();
    let factor = task.scale / T::from_f64(square.sqrt());
    vectorized!(arch, task.output.iter_mut().for_each(|x| *x *= factor));
}

fn exact<T: Real>(task: &mut Task<'_, T>, threads: usize) {
    let polar = exact::polar(task, threads);
    for (out, x) in task.output.iter_mut().zip(polar) {
        *out = T::from_f64(x * task.scale.to_f64());
    }
}

/// Largest entries between its inverse and itself are left as they are: their squares stay far from overflow and underflow.
const HARMLESS: f64 = 1e6;

/// Applies stages to a matrix that is finite and not zero.
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

/// Packs the rows of a matrix from their diagonal block of 16 x 16 on.
fn keep_upper<T: Real>(kept: &mut [T], a: &[T], stride: usize, n: usize) {
    let mut rest = kept;
    for (i, row) in a.chunks_exact(stride).take(n).enumerate() {
        let (to, next) = rest.split_at_mut(n - i / 16 * 16);
        to.copy_from_slice(&row[i / 16 * 16..n]);
        rest = next;
    }
}

/// Puts back what [`keep_upper`] kept.
fn restore_upper<T: Real>(a: &mut [T], kept: &[T], stride: usize, n: usize) {
    let mut rest = kept;
    for (i, row) in a.chunks_exact_mut(stride).take(n).enumerate() {
        let (from, next) = rest.split_at(n - i / 16 * 16);
        row[i / 16 * 16..n].copy_from_slice(from);
        rest = next;
    }
}
