//! Changes of the largest singular value alone: a matrix of rank one is added.

use super::Real;
use super::batch::{Job, Task};
use super::constants::{REFINEMENTS, VECTORS};
use super::lanczos;
use super::machine::{self, Machine};
use super::operator::{Gram, dot};
use super::scaling::{halves, largest_entry, unit_scale};
use super::threads::for_each_largest_first;
use crate::memory;

/// What becomes of the largest singular value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Top {
    /// It becomes the scale.
    Set,
    /// It is multiplied by the scale.
    Times,
}

/// Changes the largest singular value of every matrix; its vectors, and all other singular values, stay. Zeros give zeros. A matrix with
/// an entry that is infinite or NaN gives NaN throughout.
pub fn change_top<T: Real>(jobs: &mut [Job<'_, T>], top: Top) {
    let tasks = memory::collected(jobs.iter_mut().flat_map(Job::tasks));
    let work = |task: &Task<'_, T>| 60 * task.input.len();
    for_each_largest_first(tasks, work, |task, threads| match largest_entry(task.input) {
        None => task.output.fill(T::NAN),
        Some(largest) if largest == T::ZERO => task.output.fill(T::ZERO),
        Some(largest) => change(task, largest, top, Machine { arch: machine::arch(), threads }),
    });
}

fn change<T: Real>(task: &mut Task<'_, T>, largest: T, top: Top, machine: Machine) {
    let cols = task.cols;
    let unit = unit_scale(largest);
    let (before, after) = halves(unit);
    let gram = Gram { matrix: task.input, cols, unit: T::ONE, machine };
    let mut vectors = memory::filled(T::ZERO, VECTORS * cols);
    lanczos::search(gram, Some(&mut vectors));
    let (v, image) = vectors[..2 * cols].split_at_mut(cols);
    for _ in 0..REFINEMENTS {
        v.iter_mut().for_each(|x| *x *= before);
        Gram { unit, ..gram }.apply::<1>(v, image);
        image.iter_mut().for_each(|x| *x *= after);
        let length = dot(machine.arch, image, image).sqrt();
        v.iter_mut().zip(&*image).for_each(|(v, &x)| *v = x / length);
    }
    // The image W v, times the unit; its length is the singular value.
    let inner = |row: &[T]| row.iter().zip(&*v).map(|(&x, &v)| (x * unit).to_f64() * v.to_f64()).sum::<f64>();
    let left = memory::collected(task.input.chunks_exact(cols).map(inner));
    let (length, unit) = (left.iter().map(|x| x * x).sum::<f64>().sqrt(), unit.to_f64());
    let change = match top {
        Top::Set => task.scale.to_f64() * unit / length - 1.0,
        Top::Times => task.scale.to_f64() - 1.0,
    };
    for ((out, row), u) in task.output.chunks_exact_mut(cols).zip(task.input.chunks_exact(cols)).zip(left) {
        let u = change * (u / unit);
        for ((out, &x), &v) in out.iter_mut().zip(row).zip(&*v) {
            *out = T::from_f64(x.to_f64() + u * v.to_f64());
        }
    }
}
