//! The maps on batches of equal blocks, whatever their geometry and dtype: one call for a whole model.

use std::borrow::Cow;

use crate::atom::Geometry;
use crate::linalg::{self, Accuracy, Job, Matrices, Real, Vectors};
use crate::rows::{self, Direction, Measure};
use crate::tensor::{Place, Tensor, TensorMut, Wide};

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
    /// For [`Update::Normalize`] of matrices: `count * VECTORS * cols` estimates of the right singular vectors, refined by one step. None
    /// is a cold start.
    pub vectors: Option<VectorsMut<'a>>,
}

/// Singular-vector estimates, in the working precision of their leaf.
#[derive(Debug)]
pub enum VectorsMut<'a> {
    /// For single and half precision.
    Single(&'a mut [f32]),
    /// For double precision.
    Double(&'a mut [f64]),
}

/// An item in working precision `T`.
struct Work<'a, T: Clone> {
    group: Group,
    input: Cow<'a, [T]>,
    scales: Vec<T>,
    output: Place<'a, T>,
    vectors: Option<&'a mut [T]>,
}

/// Writes `scale * direction` for every block of every item.
///
/// Blocks of zeros give zeros; a matrix (or row) with an entry that is not finite becomes NaN.
///
/// # Panics
/// If lengths or dtypes within an item disagree.
pub fn update(items: Vec<Item<'_>>, update: Update) {
    let (mut singles, mut doubles) = (Vec::new(), Vec::new());
    for Item { group, input, output, scales, vectors } in items {
        if group.geometry == Geometry::Custom {
            continue;
        }
        match (input.widen(), output) {
            (Wide::Single(input), output) => {
                let output = match output {
                    TensorMut::F32(numbers) => Place::Direct(numbers),
                    half => Place::Rounded(vec![0.0; input.len()], half),
                };
                let vectors = match vectors {
                    Some(VectorsMut::Single(vectors)) => Some(vectors),
                    _ => None,
                };
                let scales = scales.iter().map(|&s| s as f32).collect();
                singles.push(Work { group, input, scales, output, vectors });
            }
            (Wide::Double(input), TensorMut::F64(numbers)) => {
                let vectors = match vectors {
                    Some(VectorsMut::Double(vectors)) => Some(vectors),
                    _ => None,
                };
                doubles.push(Work { group, input, scales: scales.into_owned(), output: Place::Direct(numbers), vectors });
            }
            (Wide::Double(_), _) => panic!("an output of the dtype of its input"),
        }
    }
    run(&mut singles, update);
    run(&mut doubles, update);
    singles.into_iter().for_each(|work| work.output.finish());
}

fn run<T: Real>(work: &mut [Work<'_, T>], update: Update) {
    let mut jobs = Vec::new();
    let mut vectors = Vec::new();
    for Work { group, input, scales, output, vectors: estimates } in work {
        let Group { geometry, count, rows, cols } = *group;
        let (measure, direction) = match geometry {
            Geometry::Spectral => {
                jobs.push(Job::new(Matrices::new(input, count, rows, cols), scales, output.numbers()));
                vectors.push(estimates.as_deref_mut().map_or(Vectors::Discard, Vectors::Refine));
                continue;
            }
            Geometry::RowRms | Geometry::Rms => (Measure::Rms, Direction::Unit),
            Geometry::MaxAbs if update == Update::Normalize => (Measure::MaxAbs, Direction::Unit),
            Geometry::MaxAbs => (Measure::MaxAbs, Direction::Sign),
            Geometry::Custom => continue,
        };
        rows::update(input, output.numbers(), (rows, cols), scales, measure, direction);
    }
    match update {
        Update::Normalize => drop(linalg::normalize(&mut jobs, &mut vectors)),
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
    let wide: Vec<(usize, Group, Wide<'_>)> =
        leaves.iter().enumerate().map(|(index, (group, tensor))| (index, *group, tensor.widen())).collect();
    let singles = wide.iter().filter_map(|(index, group, wide)| match wide {
        Wide::Single(numbers) => Some((*index, *group, numbers.as_ref())),
        Wide::Double(_) => None,
    });
    measure_as(singles.collect(), single, dual, &mut results);
    let doubles = wide.iter().filter_map(|(index, group, wide)| match wide {
        Wide::Double(numbers) => Some((*index, *group, numbers.as_ref())),
        Wide::Single(_) => None,
    });
    measure_as(doubles.collect(), double, dual, &mut results);
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
        results[index] = (0..count).map(block).collect();
    }
    for (place, norms) in places.into_iter().zip(matrices(&batches)) {
        results[place] = norms.into_iter().map(Real::to_f64).collect();
    }
}
