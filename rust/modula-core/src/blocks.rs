//! The maps on batches of equal blocks, whatever their geometry and dtype: one call for a whole model.

use std::borrow::Cow;

use half::slice::HalfFloatSliceExt;

use crate::atom::Geometry;
use crate::linalg::{self, Accuracy, Job, Matrices, Real, Vectors};
use crate::memory;
use crate::rows::{self, Direction, Measure};
use crate::tensor::{Tensor, TensorMut, to_single};

/// A batch of `count` blocks of `rows x cols` numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Group {
    /// How a block is measured. [`Geometry::Custom`] is left alone.
    pub geometry: Geometry,
    /// Blocks.
    pub count: usize,
    /// Rows of a block.
    pub rows: usize,
    /// Columns of a block.
    pub cols: usize,
}

/// What becomes of a block: `scale` times one of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Update {
    /// The block over its norm (each row, in a table).
    Normalize,
    /// The steepest direction of norm 1.
    Dualize(Accuracy),
}

/// One leaf of a whole-model call.
#[derive(Debug)]
pub struct Item<'a> {
    /// Its batch.
    pub group: Group,
    /// What comes in.
    pub input: Tensor<'a>,
    /// Where the result goes: as long as the input, and of the same dtype.
    pub output: TensorMut<'a>,
    /// One number for each block.
    pub scales: Cow<'a, [f64]>,
}

/// An item in working precision `T`.
struct Work<'a, T> {
    group: Group,
    input: &'a [T],
    scales: Vec<T>,
    output: &'a mut [T],
}

/// Writes `scale * direction` for every block of every item.
///
/// Blocks of zeros give zeros; a matrix (or row) with an entry that is not finite becomes NaN.
///
/// # Panics
/// If lengths or dtypes within an item disagree.
pub fn update(items: Vec<Item<'_>>, update: Update) {
    let (mut singles, mut doubles) = (Vec::new(), Vec::new());
    for Item { group, input, output, scales } in items {
        if group.geometry == Geometry::Custom {
            continue;
        }
        match (input, output) {
            (Tensor::F32(input), TensorMut::F32(output)) => singles.push(Work { group, input, scales: rounded(&scales), output }),
            (Tensor::F64(input), TensorMut::F64(output)) => doubles.push(Work { group, input, scales: scales.into_owned(), output }),
            (Tensor::F16(input), TensorMut::F16(output)) => widened(group, input, output, &scales, update),
            (Tensor::BF16(input), TensorMut::BF16(output)) => widened(group, input, output, &scales, update),
            _ => panic!("an output of the dtype of its input"),
        }
    }
    run(&mut singles, update);
    run(&mut doubles, update);
}

pub(crate) fn rounded(scales: &[f64]) -> Vec<f32> {
    memory::collected(scales.iter().map(|&scale| scale as f32))
}

/// One item of half precision, worked on in single precision: first one half of its blocks, then the other, so that input and output, both
/// twice as wide, take no more than twice its memory (four times if it is a single matrix).
fn widened<H>(group: Group, input: &[H], output: &mut [H], scales: &[f64], update: Update)
where
    [H]: HalfFloatSliceExt,
{
    let Group { geometry, count, rows, cols } = group;
    if geometry == Geometry::RowRms && rows > 1 {
        // The rows of a table have nothing to do with each other.
        let scales = memory::collected(scales.iter().flat_map(|&scale| std::iter::repeat_n(scale, rows)));
        let by_rows = Group { geometry, count: count * rows, rows: 1, cols };
        return widened(by_rows, input, output, &scales, update);
    }
    let part = count.div_ceil(2);
    let size = (part * rows * cols).max(1);
    for ((input, output), scales) in input.chunks(size).zip(output.chunks_mut(size)).zip(scales.chunks(part.max(1))) {
        let input = to_single(input);
        let mut result = memory::filled(0.0, input.len());
        let group = Group { geometry, count: scales.len(), rows, cols };
        run(&mut [Work { group, input: &input, scales: rounded(scales), output: &mut result }], update);
        output.convert_from_f32_slice(&result);
    }
}

fn run<T: Real>(work: &mut [Work<'_, T>], update: Update) {
    let mut jobs = Vec::new();
    for Work { group, input, scales, output } in work {
        let Group { geometry, count, rows, cols } = *group;
        let (measure, direction) = match geometry {
            Geometry::Spectral => {
                jobs.push(Job::new(Matrices::new(input, count, rows, cols), scales, output));
                continue;
            }
            Geometry::RowRms | Geometry::Rms => (Measure::Rms, Direction::Unit),
            Geometry::MaxAbs if update == Update::Normalize => (Measure::MaxAbs, Direction::Unit),
            Geometry::MaxAbs => (Measure::MaxAbs, Direction::Sign),
            Geometry::Custom => continue,
        };
        rows::update(input, output, (rows, cols), scales, measure, direction);
    }
    match update {
        Update::Normalize => {
            let mut cold: Vec<_> = jobs.iter().map(|_| Vectors::Discard).collect();
            drop(linalg::normalize(&mut jobs, &mut cold));
        }
        Update::Dualize(accuracy) => linalg::orthogonalize(&mut jobs, accuracy),
    }
}

/// The norm of every block of every leaf, NaN where an entry is not finite; the list of a custom leaf is empty.
pub fn norms(leaves: &[(Group, Tensor<'_>)]) -> Vec<Vec<f64>> {
    measure(leaves, &cold, &cold, false)
}

/// The dual norm of every block of every leaf: the largest inner product with a block of norm 1.
pub fn dual_norms(leaves: &[(Group, Tensor<'_>)]) -> Vec<Vec<f64>> {
    measure(leaves, &linalg::nuclear_norms, &linalg::nuclear_norms, true)
}

fn cold<T: Real>(batches: &[Matrices<'_, T>]) -> Vec<Vec<T>> {
    let mut vectors: Vec<_> = batches.iter().map(|_| Vectors::Discard).collect();
    linalg::spectral_norms(batches, &mut vectors)
}

type Measurer<'a, T> = &'a dyn Fn(&[Matrices<'_, T>]) -> Vec<Vec<T>>;

fn measure(leaves: &[(Group, Tensor<'_>)], single: Measurer<'_, f32>, double: Measurer<'_, f64>, dual: bool) -> Vec<Vec<f64>> {
    let mut results = vec![Vec::new(); leaves.len()];
    let (mut singles, mut doubles) = (Vec::new(), Vec::new());
    for (index, &(group, tensor)) in leaves.iter().enumerate() {
        // Half precision leaf by leaf, so that there is one wider copy at a time.
        let wide = match tensor {
            Tensor::F32(numbers) => {
                singles.push((index, group, numbers));
                continue;
            }
            Tensor::F64(numbers) => {
                doubles.push((index, group, numbers));
                continue;
            }
            Tensor::F16(numbers) => to_single(numbers),
            Tensor::BF16(numbers) => to_single(numbers),
        };
        measure_as(vec![(index, group, &wide)], single, dual, &mut results);
    }
    measure_as(singles, single, dual, &mut results);
    measure_as(doubles, double, dual, &mut results);
    results
}

fn measure_as<T: Real>(leaves: Vec<(usize, Group, &[T])>, matrices: Measurer<'_, T>, dual: bool, results: &mut [Vec<f64>]) {
    let (mut places, mut batches) = (Vec::new(), Vec::new());
    for (index, Group { geometry, count, rows, cols }, numbers) in leaves {
        let by = match geometry {
            Geometry::Custom => continue,
            Geometry::Spectral => {
                places.push(index);
                batches.push(Matrices::new(numbers, count, rows, cols));
                continue;
            }
            Geometry::MaxAbs => Measure::MaxAbs,
            Geometry::RowRms | Geometry::Rms => Measure::Rms,
        };
        let block = |i: usize| {
            let rows = &numbers[i * rows * cols..(i + 1) * rows * cols];
            // A table's norm is that of its largest row (NaN wins), its dual norm the sum over rows.
            let larger = |a: f64, b: f64| if a >= b || a.is_nan() { a } else { b };
            match dual {
                true => rows::each(rows, cols, |row| rows::dual_measure(row, by)).iter().sum(),
                false => rows::each(rows, cols, |row| rows::measure(row, by).to_f64()).into_iter().fold(0.0, larger),
            }
        };
        results[index] = memory::collected((0..count).map(block));
    }
    for (place, norms) in places.into_iter().zip(matrices(&batches)) {
        results[place] = memory::collected(norms.into_iter().map(Real::to_f64));
    }
}
