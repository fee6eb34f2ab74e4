//! Operations on batches of equal blocks, whatever their geometry and dtype: one call for a whole model.

use std::borrow::Cow;

use half::slice::HalfFloatSliceExt;

use crate::atom::Geometry;
use crate::linalg::{self, Accuracy, Job, Matrices, Real, Top, VECTORS, Vectors};
use crate::memory;
use crate::norm::Batch;
use crate::pool::Effort;
use crate::rows::{self, Direction, Measure};
use crate::tensor::{Tensor, TensorMut, WorkingMut, to_single};

/// An operation on a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// The block over its norm (each row, in a table), times its scale.
    Unit,
    /// The steepest direction of norm 1, times its scale.
    Direction,
    /// The steepest direction of norm 1, accurate to rounding, times its scale.
    Exact,
    /// The block with its singular values (in a table the RMS of each row) cut down to its scale.
    HardCap,
    /// The block with its singular values bent by a polynomial that its scale stretches.
    SoftCap,
    /// The block with its largest singular value set to its scale; a row, or vector, gets this norm.
    SetTop,
    /// The block with its largest singular value multiplied by its scale; a row, or vector, is multiplied by it.
    ScaleTop,
    /// The block times its scale.
    Multiply,
    /// The block as it is.
    Keep,
}

impl Op {
    /// The operations that take a norm or a decomposition. Backends know these; an executor multiplies and keeps by itself.
    pub const ON_BATCHES: [Op; 7] = [Op::Unit, Op::Direction, Op::Exact, Op::HardCap, Op::SoftCap, Op::SetTop, Op::ScaleTop];

    /// The name of the operation, as backends write it.
    pub fn name(self) -> &'static str {
        match self {
            Op::Unit => "unit",
            Op::Direction => "direction",
            Op::Exact => "exact",
            Op::HardCap => "hard_cap",
            Op::SoftCap => "soft_cap",
            Op::SetTop => "set_top",
            Op::ScaleTop => "scale_top",
            Op::Multiply => "multiply",
            Op::Keep => "keep",
        }
    }

    /// How much the operation works on each matrix.
    pub fn effort(self) -> Effort {
        match self {
            Op::Direction | Op::Exact | Op::HardCap | Op::SoftCap => Effort::Products,
            Op::Unit | Op::SetTop | Op::ScaleTop | Op::Multiply | Op::Keep => Effort::Reads,
        }
    }
}

/// One leaf of a whole-model call.
#[derive(Debug)]
pub struct Item<'a> {
    /// How the array of the leaf divides into blocks.
    pub batch: Batch,
    /// The operation on each block.
    pub op: Op,
    /// The blocks, one after the other.
    pub input: Tensor<'a>,
    /// The results: as many numbers as the input, of the same dtype.
    pub output: TensorMut<'a>,
    /// One number for each block.
    pub scales: Cow<'a, [f64]>,
    /// For [`Op::Unit`] on matrices: `count * VECTORS * cols` estimates of the right singular vectors, refined by one step of block power
    /// iteration. Where the estimates are zero, a cold start finds them.
    pub vectors: Option<WorkingMut<'a>>,
}

/// An item in working precision `T`.
struct Work<'a, T> {
    batch: Batch,
    op: Op,
    input: &'a [T],
    scales: Vec<T>,
    output: &'a mut [T],
    vectors: Option<&'a mut [T]>,
}

/// Applies the operation of every item to each of its blocks; `accuracy` holds for [`Op::Direction`].
///
/// Blocks of zeros give zeros; a matrix (or row) with an entry that is not finite becomes NaN. The outputs of users' own atoms are not
/// written.
///
/// # Panics
/// If lengths or dtypes within an item disagree.
pub fn apply(items: Vec<Item<'_>>, accuracy: Accuracy) {
    let (mut singles, mut doubles) = (Vec::new(), Vec::new());
    for item in items {
        let Item { batch, op, input, mut output, scales, vectors } = item;
        match (op, batch.geometry) {
            (_, Geometry::Custom) => continue,
            (Op::Multiply | Op::Keep, _) => {
                output.copy_from(input);
                if op == Op::Multiply {
                    output.multiply(&scales);
                }
                continue;
            }
            _ => {}
        }
        match (input, output) {
            (Tensor::F32(input), TensorMut::F32(output)) => {
                let vectors = vectors.map(WorkingMut::single);
                singles.push(Work { batch, op, input, scales: rounded(&scales), output, vectors });
            }
            (Tensor::F64(input), TensorMut::F64(output)) => {
                let vectors = vectors.map(WorkingMut::double);
                doubles.push(Work { batch, op, input, scales: owned(scales), output, vectors });
            }
            (Tensor::F16(input), TensorMut::F16(output)) => widened(batch, op, input, output, &scales, vectors, accuracy),
            (Tensor::BF16(input), TensorMut::BF16(output)) => widened(batch, op, input, output, &scales, vectors, accuracy),
            _ => panic!("an output of the dtype of its input"),
        }
    }
    run(singles, accuracy);
    run(doubles, accuracy);
}

pub(crate) fn rounded(scales: &[f64]) -> Vec<f32> {
    memory::collected(scales.iter().map(|&scale| scale as f32))
}

pub(crate) fn owned(scales: Cow<'_, [f64]>) -> Vec<f64> {
    match scales {
        Cow::Owned(scales) => scales,
        Cow::Borrowed(scales) => memory::copied(scales),
    }
}

/// Computes an item of half precision in single precision: first one half of its blocks, then the other. So the single-precision copies of
/// input and output take at most twice the memory of the item (four times if it is a single matrix).
fn widened<H>(batch: Batch, op: Op, input: &[H], output: &mut [H], scales: &[f64], vectors: Option<WorkingMut<'_>>, accuracy: Accuracy)
where
    [H]: HalfFloatSliceExt,
{
    let Batch { geometry, count, rows, cols } = batch;
    if geometry == Geometry::RowRms && rows > 1 {
        // Each row of a table is normalised on its own, so the table may be split between rows.
        let scales = memory::collected(scales.iter().flat_map(|&scale| std::iter::repeat_n(scale, rows)));
        let by_rows = Batch { geometry, count: count * rows, rows: 1, cols };
        return widened(by_rows, op, input, output, &scales, None, accuracy);
    }
    let part = count.div_ceil(2).max(1);
    let size = (part * rows * cols).max(1);
    let mut vectors = vectors.map(|vectors| vectors.single().chunks_mut((part * VECTORS * cols).max(1)));
    for ((input, output), scales) in input.chunks(size).zip(output.chunks_mut(size)).zip(scales.chunks(part)) {
        let input = to_single(input);
        let mut result = memory::filled(0.0, input.len());
        let batch = Batch { geometry, count: scales.len(), rows, cols };
        let vectors = vectors.as_mut().and_then(Iterator::next);
        run(vec![Work { batch, op, input: &input, scales: rounded(scales), output: &mut result, vectors }], accuracy);
        output.convert_from_f32_slice(&result);
    }
}

fn run<T: Real>(mut work: Vec<Work<'_, T>>, accuracy: Accuracy) {
    let (mut over_norm, mut estimates) = (Vec::new(), Vec::new());
    let mut others: [Vec<Job<'_, T>>; Op::ON_BATCHES.len()] = Default::default();
    for Work { batch, op, input, scales, output, vectors } in &mut work {
        let Batch { geometry, count, rows, cols } = *batch;
        let (measure, direction) = match geometry {
            Geometry::Spectral => {
                let job = Job::new(Matrices::new(input, count, rows, cols), scales, output);
                if *op == Op::Unit {
                    over_norm.push(job);
                    estimates.push(vectors.as_deref_mut().map_or(Vectors::Discard, Vectors::Refine));
                } else if let Some(place) = Op::ON_BATCHES.iter().position(|each| each == op) {
                    others[place].push(job);
                }
                continue;
            }
            Geometry::RowRms | Geometry::Rms => (Measure::Rms, on_vectors(*op, Direction::Unit)),
            Geometry::MaxAbs => (Measure::MaxAbs, on_vectors(*op, Direction::Sign)),
            Geometry::Custom => continue,
        };
        rows::update(input, output, (rows, cols), scales, measure, direction);
    }
    drop(linalg::normalize(&mut over_norm, &mut estimates));
    for (op, jobs) in Op::ON_BATCHES.into_iter().zip(&mut others) {
        match op {
            Op::Direction => linalg::orthogonalize(jobs, accuracy),
            Op::Exact => linalg::orthogonalize(jobs, Accuracy::Exact),
            Op::HardCap => linalg::hard_cap(jobs),
            Op::SoftCap => linalg::soft_cap(jobs),
            Op::SetTop => linalg::change_top(jobs, Top::Set),
            Op::ScaleTop => linalg::change_top(jobs, Top::Times),
            Op::Unit | Op::Multiply | Op::Keep => {}
        }
    }
}

/// What an operation does to a vector; `steepest` is its steepest direction.
fn on_vectors(op: Op, steepest: Direction) -> Direction {
    match op {
        Op::Unit | Op::SetTop => Direction::Unit,
        Op::HardCap => Direction::HardCap,
        Op::SoftCap => Direction::SoftCap,
        Op::ScaleTop | Op::Multiply | Op::Keep => Direction::Same,
        Op::Direction | Op::Exact => steepest,
    }
}

/// The norm of every block of every leaf, NaN where an entry is not finite; the list of a custom leaf is empty.
pub fn norms(leaves: &[(Batch, Tensor<'_>)]) -> Vec<Vec<f64>> {
    measure(leaves, &cold, &cold, false)
}

/// The dual norm of every block of every leaf: the largest inner product with a block of norm 1.
pub fn dual_norms(leaves: &[(Batch, Tensor<'_>)]) -> Vec<Vec<f64>> {
    measure(leaves, &linalg::nuclear_norms, &linalg::nuclear_norms, true)
}

fn cold<T: Real>(batches: &[Matrices<'_, T>]) -> Vec<Vec<T>> {
    let mut vectors: Vec<_> = batches.iter().map(|_| Vectors::Discard).collect();
    linalg::spectral_norms(batches, &mut vectors)
}

type Measurer<'a, T> = &'a dyn Fn(&[Matrices<'_, T>]) -> Vec<Vec<T>>;

fn measure(leaves: &[(Batch, Tensor<'_>)], single: Measurer<'_, f32>, double: Measurer<'_, f64>, dual: bool) -> Vec<Vec<f64>> {
    let mut results = vec![Vec::new(); leaves.len()];
    let (mut singles, mut doubles) = (Vec::new(), Vec::new());
    for (index, &(batch, tensor)) in leaves.iter().enumerate() {
        // Leaves of half precision are measured one by one, so that only one single-precision copy exists at a time.
        let wide = match tensor {
            Tensor::F32(numbers) => {
                singles.push((index, batch, numbers));
                continue;
            }
            Tensor::F64(numbers) => {
                doubles.push((index, batch, numbers));
                continue;
            }
            Tensor::F16(numbers) => to_single(numbers),
            Tensor::BF16(numbers) => to_single(numbers),
        };
        measure_as(vec![(index, batch, &wide)], single, dual, &mut results);
    }
    measure_as(singles, single, dual, &mut results);
    measure_as(doubles, double, dual, &mut results);
    results
}

fn measure_as<T: Real>(leaves: Vec<(usize, Batch, &[T])>, matrices: Measurer<'_, T>, dual: bool, results: &mut [Vec<f64>]) {
    let (mut places, mut batches) = (Vec::new(), Vec::new());
    for (index, Batch { geometry, count, rows, cols }, numbers) in leaves {
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
            // The norm of a table is the largest norm of a row (NaN wins); its dual norm is the sum of the dual norms of its rows.
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
