//! Caps on singular values. The hard cap cuts them, the soft cap bends them by an odd polynomial.

use super::Real;
use super::batch::{Job, Task};
use super::constants::RISES;
use super::exact::deep;
use super::gram::{Products, largest_eigenvalue};
use super::inverse::{Inversion, add_diagonal, complete, padded_stride, temporary_size};
use super::jacobi::RowSpace;
use super::machine::{self, Machine};
use super::real::Internal;
use super::scaling::{largest_entry, unit_scale};
use super::scratch::{Scratch, grow, with_scratch};
use super::simd::vectorized;
use super::threads::for_each_largest_first;
use crate::memory;

/// If the largest singular value is above this many times the cap, the matrix is cut by rotations. Otherwise it is cut by the sign of
/// `I - X X^T`. Rounding hides the sign of a singular value that is nearer to the cap than a share of 2e-8 times the square of this number;
/// such a value may be cut by only half of its excess, an error of at most 5e-6 of the cap.
const NEAR: f64 = 20.0;
/// If the shorter edge is at most this long, rotations are as fast.
const SMALL: usize = 8;

/// `q(y) = p + p^3` with `p = y - y^3`: the polynomial of the soft cap.
///
/// Newhouse et al., "Training Transformers with Enforced Lipschitz Constants" (2025), write it for a strength `a` as
/// `x -> p(x) + a p(x)^3` with `p(x) = x - a x^3`; with `y = x sqrt(a)` that is `q(y) / sqrt(a)`.
pub(crate) fn bent(y: f64) -> f64 {
    let p = y - y * y * y;
    p + p * p * p
}

/// Writes every matrix with its singular values above the scale cut down to the scale, to rounding accuracy. A matrix with no singular
/// value above it stays as it is, and zeros give zeros. A matrix with an entry that is infinite or NaN gives NaN throughout.
pub fn hard_cap<T: Real>(jobs: &mut [Job<'_, T>]) {
    let tasks = memory::collected(jobs.iter_mut().flat_map(Job::tasks));
    for_each_largest_first(tasks, Task::work, |task, threads| match largest_entry(task.input) {
        None => task.output.fill(T::NAN),
        Some(largest) => {
            let machine = Machine { arch: machine::arch(), threads };
            match cut(task, largest, machine) {
                None => task.output.copy_from_slice(task.input),
                Some(made) => task.output.iter_mut().zip(made).for_each(|(out, x)| *out = T::from_f64(x)),
            }
        }
    });
}

/// The matrix after the hard cap, or None if it stays as it is.
fn cut<T: Real>(task: &Task<'_, T>, largest: T, machine: Machine) -> Option<Vec<f64>> {
    let Task { rows, cols, .. } = *task;
    let (n, cap) = (rows.min(cols), task.scale.to_f64());
    if largest == T::ZERO || cap == f64::INFINITY {
        return None;
    }
    let by_rotations = || {
        let space = RowSpace::new(task.input, cols);
        let above = space.singular_values().iter().any(|&s| s > cap * (1.0 + slack::<T>()));
        above.then(|| space.with_values(|s| s.min(cap)))
    };
    if n <= SMALL || largest.to_f64() > NEAR * cap {
        return by_rotations();
    }
    let x = memory::collected(task.input.iter().map(|x| x.to_f64() / cap));
    let difference = match identity_minus_gram::<T>(&x, rows, cols, machine) {
        Excess::None => return None,
        Excess::Near(difference) => difference,
        Excess::Far => return by_rotations(),
    };
    let sign = if largest_entry(&difference).is_none_or(|top| top == 0.0) { difference } else { deep(&difference, n, n, machine) };
    // The part of the matrix that sticks out is E (P - X), with the polar factor P and the projection E = (I - sign) / 2.
    let mut rest = deep(&x, rows, cols, machine);
    rest.iter_mut().zip(&x).for_each(|(p, x)| *p -= x);
    let mut turned = memory::filled(0.0, x.len());
    with_scratch(f64::scratch(), |scratch| {
        let Scratch { factor, panel, slab, .. } = scratch;
        let (stride, side) = (padded_stride(n), n.next_multiple_of(16));
        let factor = grow(factor, side * stride);
        factor.fill(0.0);
        factor.chunks_exact_mut(stride).zip(sign.chunks_exact(n)).for_each(|(to, row)| to[..n].copy_from_slice(row));
        Products { machine, rows, cols, panel, slab }.apply(factor, Some(&rest), &mut turned);
    });
    let parts = x.iter().zip(rest.iter().zip(&turned));
    Some(memory::collected(parts.map(|(x, (rest, turned))| cap * (x + 0.5 * (rest - turned)))))
}

/// Singular values count as within the cap up to this share above it.
fn slack<T: Real>() -> f64 {
    16.0 * T::EPSILON.to_f64()
}

/// How far the largest singular value of a matrix is above 1.
enum Excess {
    None,
    /// The singular value is at most [`NEAR`]. The numbers are those of `I - X X^T`, or of `I - X^T X` for a tall matrix.
    Near(Vec<f64>),
    Far,
}

fn identity_minus_gram<T: Real>(x: &[f64], rows: usize, cols: usize, machine: Machine) -> Excess {
    with_scratch(f64::scratch(), |scratch| {
        let Scratch { gram: g, temporary, panel, slab, vectors, .. } = scratch;
        let n = rows.min(cols);
        let (stride, side) = (padded_stride(n), n.next_multiple_of(16));
        let g = grow(g, side * stride);
        Products { machine, rows, cols, panel, slab }.gram(g, x);
        // The estimate, which also fills in the part below the diagonal, may be too low by a factor of 1.25.
        if largest_eigenvalue(machine.arch, g, n, vectors) * 1.25 > NEAR * NEAR {
            return Excess::Far;
        }
        let mut difference: Vec<f64> = memory::room(n * n);
        difference.extend(g.chunks_exact(stride).take(n).flat_map(|row| row[..n].iter().map(|x| -x)));
        difference.iter_mut().step_by(n + 1).for_each(|x| *x += 1.0);
        g.iter_mut().for_each(|x| *x = -*x);
        add_diagonal(g, stride, side, (1.0 + slack::<T>()).powi(2));
        // A pivot that is not positive is replaced by this floor, which leaves a huge number on the diagonal of the inverse factor.
        let floor = f64::MIN_POSITIVE.sqrt();
        Inversion { machine, stride, floor, temporary: grow(temporary, temporary_size(side)), slab }.factor(g, side);
        let within = g.iter().step_by(stride + 1).take(n).all(|x| x.is_finite() && *x < floor.powf(-0.25));
        if within { Excess::None } else { Excess::Near(difference) }
    })
}

/// Writes `scale * q(W / scale)` for every matrix, where the polynomial [`bent`] acts on singular values. A matrix whose largest singular
/// value is beyond the rise of the polynomial is scaled down to it first. An infinite scale leaves a matrix as it is.
pub fn soft_cap<T: Real>(jobs: &mut [Job<'_, T>]) {
    let tasks = memory::collected(jobs.iter_mut().flat_map(Job::tasks));
    for_each_largest_first(tasks, Task::work, |task, threads| match largest_entry(task.input) {
        None => task.output.fill(T::NAN),
        Some(largest) if largest == T::ZERO || !task.scale.is_finite() => task.output.copy_from_slice(task.input),
        Some(_) if task.scale == T::ZERO => task.output.fill(T::ZERO),
        Some(largest) => with_scratch(T::scratch(), |scratch| bend(task, largest, Machine { arch: machine::arch(), threads }, scratch)),
    });
}

fn bend<T: Real>(task: &mut Task<'_, T>, largest: T, machine: Machine, scratch: &mut Scratch<T>) {
    let Task { rows, cols, scale, .. } = *task;
    let arch = machine.arch;
    let n = rows.min(cols);
    let (stride, side) = (padded_stride(n), n.next_multiple_of(16));
    let Scratch { gram: g, factor, panel, slab, vectors, .. } = scratch;
    let (g, factor) = (grow(g, side * stride), grow(factor, side * stride));
    let unit = unit_scale(largest);
    task.output.iter_mut().zip(task.input).for_each(|(out, &x)| *out = x * unit);
    Products { machine, rows, cols, panel, slab }.gram(g, task.output);
    let norm = largest_eigenvalue(arch, g, n, vectors).to_f64().sqrt();
    let d = (1.0 / (unit.to_f64() * scale.to_f64())).min(RISES / norm);
    // d W - d^3 W W^T W, then scale (W + W W^T W).
    let mut apply = |g: &[T], constant: f64, cubic: f64, out: &mut [T], slab: &mut Vec<T>| {
        let cubic = T::from_f64(cubic);
        vectorized!(arch, factor.iter_mut().zip(g).for_each(|(to, &x)| *to = cubic * x));
        add_diagonal(factor, stride, n, T::from_f64(constant));
        Products { machine, rows, cols, panel, slab }.apply(factor, None, out);
    };
    apply(g, d, -d * d * d, task.output, slab);
    let mut again = Vec::new();
    Products { machine, rows, cols, panel: &mut again, slab }.gram(g, task.output);
    complete(arch, g, stride, side, T::ZERO);
    apply(g, scale.to_f64(), scale.to_f64(), task.output, slab);
}
