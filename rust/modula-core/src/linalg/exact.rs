//! Polar factors to rounding: three rational stages in double precision if the matrix is well enough conditioned, Jacobi rotations if not.

use super::Real;
use super::batch::Task;
use super::constants::DEEP;
use super::gram::{Products, largest_eigenvalue};
use super::inverse::{Inversion, add_diagonal, padded_stride, temporary_size};
use super::jacobi::RowSpace;
use super::machine::{self, Machine};
use super::rational::rational;
use super::real::Internal;
use super::scaling::{largest_entry, unit_scale};
use super::scratch::{Scratch, grow, with_scratch};
use crate::memory;

/// If a singular value is above this share of the largest, the Gram matrix in double precision holds its square to 1e-3; if not, rotations
/// are needed.
const RESOLVED: f64 = 1e-6;

/// The polar factor: singular values become 1, but those below `epsilon * max(rows, cols)` of the largest become 0.
pub(super) fn polar<T: Real>(task: &Task<'_, T>, threads: usize) -> Vec<f64> {
    let Task { rows, cols, .. } = *task;
    let machine = Machine { arch: machine::arch(), threads };
    let (scaled, _) = scaled(task.input);
    let cutoff = RESOLVED.max(T::EPSILON.to_f64() * rows.max(cols) as f64);
    if exceeds(&scaled, rows, cols, cutoff, machine) {
        return deep(&scaled, rows, cols, machine);
    }
    RowSpace::new(task.input, cols).polar::<T>()
}

/// The sum of the singular values.
///
/// Without rotations the sum is computed as `<X, U V^T>`, in which a singular value below 2e-8 of the largest counts only in part. In
/// single precision that is less than rounding, so that rotations are never needed there.
pub(super) fn nuclear<T: Real>(entries: &[T], rows: usize, cols: usize, threads: usize) -> f64 {
    let machine = Machine { arch: machine::arch(), threads };
    let (scaled, unit) = scaled(entries);
    let rounded = T::EPSILON.to_f64() > RESOLVED * 1e-2;
    if rounded || exceeds(&scaled, rows, cols, RESOLVED, machine) {
        let polar = deep(&scaled, rows, cols, machine);
        return scaled.iter().zip(&polar).map(|(x, p)| x * p).sum::<f64>() / unit;
    }
    RowSpace::new(entries, cols).singular_values().into_iter().sum()
}

fn scaled<T: Real>(entries: &[T]) -> (Vec<f64>, f64) {
    let mut wide = memory::collected(entries.iter().map(|x| x.to_f64()));
    let unit = unit_scale(largest_entry(&wide).unwrap_or(1.0));
    wide.iter_mut().for_each(|x| *x *= unit);
    (wide, unit)
}

pub(super) fn deep(entries: &[f64], rows: usize, cols: usize, machine: Machine) -> Vec<f64> {
    let mut polar = memory::filled(0.0, entries.len());
    let mut task = Task { input: entries, rows, cols, scale: 1.0, output: &mut polar };
    with_scratch(f64::scratch(), |scratch| rational(&mut task, 1.0, &DEEP, machine, scratch));
    polar
}

/// Whether every singular value is above `share` of the largest: whether `G - (share * largest)^2 I` has a Cholesky factor.
fn exceeds(entries: &[f64], rows: usize, cols: usize, share: f64, machine: Machine) -> bool {
    with_scratch(f64::scratch(), |scratch| {
        let Scratch { gram: g, temporary, panel, slab, vectors, .. } = scratch;
        let n = rows.min(cols);
        let (stride, side) = (padded_stride(n), n.next_multiple_of(16));
        let g = grow(g, side * stride);
        Products { machine, rows, cols, panel, slab }.gram(g, entries);
        let largest = largest_eigenvalue(machine.arch, g, n, vectors);
        // The estimate may be too low by a factor of 1.25.
        let square = share.powi(2) * largest * 1.25_f64.powi(2);
        add_diagonal(g, stride, n, -square);
        // Rows of padding get a positive diagonal, so that they pass.
        if n < side {
            add_diagonal(&mut g[n * stride + n..], stride, side - n, largest);
        }
        // A pivot that is not positive is replaced by this floor, which leaves a huge number on the diagonal of the inverse factor.
        let floor = f64::MIN_POSITIVE.sqrt();
        Inversion { machine, stride, floor, temporary: grow(temporary, temporary_size(side)), slab }.factor(g, side);
        g.iter().step_by(stride + 1).take(n).all(|x| x.is_finite() && *x < floor.powf(-0.25))
    })
}
