//! Orthogonalisation: the polar factor `U V^T` of every matrix of a model.

use super::accuracy::{Accuracy, stages};
use super::batch::Task;
use super::exact;
use super::machine::{self, Machine};
use super::operator::dot;
use super::rational::rational;
use super::scaling::{largest_entry, unit_scale};
use super::scratch::with_scratch;
use super::simd::vectorized;
use super::threads::for_each_largest_first;
use super::{Job, Real};
use crate::memory;

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
        Some(largest) => match stages(accuracy) {
            None => exact(task, threads),
            Some(stages) => with_scratch(T::scratch(), |scratch| {
                rational(task, largest, stages, Machine { arch: machine::arch(), threads }, scratch);
            }),
        },
    });
}

/// The polar factor of a single row or column: the row or column over its length.
fn direction<T: Real>(task: &mut Task<'_, T>, largest: T) {
    /// Squares are summed in the precision of the input over pieces of this many numbers, and the pieces in double precision.
    const PIECE: usize = 1024;
    let arch = machine::arch();
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
