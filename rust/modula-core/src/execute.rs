//! Executes recipes on a whole model's weights, for arrays in this process's memory.

use rayon::prelude::*;
use thiserror::Error;

use crate::blocks::{self, Item};
use crate::interrupt;
use crate::linalg::Accuracy;
use crate::norm::Norm;
use crate::recipe::{Measure, Recipe, Size};
use crate::tensor::{Checked, Tensor, TensorMut, WORTH_A_THREAD, WorkingMut};

/// Why a map refuses its arguments.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum MapError {
    /// NaN or infinity in an update.
    #[error("{path}: {count} of {size} numbers are not finite; nonfinite=\"zero\" skips such matrices instead")]
    NonFinite {
        /// The path of the leaf.
        path: String,
        /// Entries that are not finite.
        count: usize,
        /// Entries of the leaf.
        size: usize,
    },
    /// A target norm at which an update would overflow.
    #[error("{path}: a target norm of {amount:e} is too large, its update would not be finite")]
    Amount {
        /// The path of the leaf.
        path: String,
        /// The target norm of the call.
        amount: f64,
    },
}

/// What to do about NaN or infinity in an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NonFinite {
    /// Refuse the call.
    Raise,
    /// Skip the matrix: its update is zero.
    Zero,
    /// Compute with NaN and infinity like any other number.
    Propagate,
}

/// The arguments of a call that are not arrays.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// The target norm, or the strength of [`Map::Regularize`](crate::recipe::Map::Regularize).
    pub amount: f64,
    /// How close to 1 the singular values of a direction are.
    pub accuracy: Accuracy,
    /// What to do about NaN or infinity.
    pub nonfinite: NonFinite,
}

impl Default for Options {
    fn default() -> Self {
        Options { amount: 1.0, accuracy: Accuracy::Standard, nonfinite: NonFinite::Raise }
    }
}

/// Executes a recipe: each of its rows says what to do with one leaf. Outputs have the dtypes and lengths of their inputs.
///
/// `vectors` has an entry for each leaf: None, or estimates of the right singular vectors of its matrices, which one step of block power
/// iteration refines in place of a cold start.
///
/// # Panics
/// If lengths or dtypes disagree.
pub fn execute(
    norm: &Norm,
    recipe: &Recipe,
    inputs: &[Tensor<'_>],
    outputs: &mut [TensorMut<'_>],
    vectors: &mut [Option<WorkingMut<'_>>],
    options: Options,
) -> Result<(), MapError> {
    let Options { amount, accuracy, nonfinite } = options;
    let checked = check(norm, inputs, nonfinite)?;
    let mut places: Vec<Option<(&mut TensorMut<'_>, &mut Option<WorkingMut<'_>>)>> = outputs.iter_mut().zip(vectors).map(Some).collect();
    let mut items = Vec::with_capacity(recipe.rows.len());
    for row in &recipe.rows {
        let scales = row.scales_at(amount);
        // Leaves of every precision but double are computed in single precision.
        let fits = |&scale: &f64| if matches!(inputs[row.leaf], Tensor::F64(_)) { scale.is_finite() } else { (scale as f32).is_finite() };
        if row.size == Size::Target && !scales.iter().all(fits) {
            return Err(MapError::Amount { path: norm.leaves[row.leaf].path.clone(), amount });
        }
        let (output, vectors) = places[row.leaf].take().expect("one row for each leaf");
        let vectors = vectors.as_mut().map(WorkingMut::reborrow);
        items.push(Item { batch: row.batch, op: row.op, input: checked[row.leaf].borrowed(), output: output.reborrow(), scales, vectors });
    }
    blocks::apply(items, accuracy);
    shrink(&recipe.bounds, outputs, amount);
    Ok(())
}

/// For every leaf, the largest of norm over scale; 0 for users' own atoms.
pub fn norms(measures: &[Measure], inputs: &[Tensor<'_>]) -> Vec<f64> {
    let mut values = vec![0.0; inputs.len()];
    for (measure, norms) in measures.iter().zip(blocks::norms(&views(measures, inputs))) {
        let value: &mut f64 = &mut values[measure.leaf];
        *value = larger(*value, largest_ratio(&norms, &measure.scales));
    }
    values
}

/// For every leaf, the sum of scale times dual norm; 0 for users' own atoms.
pub fn dual_norms(measures: &[Measure], inputs: &[Tensor<'_>]) -> Vec<f64> {
    let mut values = vec![0.0; inputs.len()];
    for (measure, norms) in measures.iter().zip(blocks::dual_norms(&views(measures, inputs))) {
        // Atoms of mass 0 have scale 0 and do not count, even where their norm is infinite.
        let terms = norms.into_iter().zip(&measure.scales).filter(|(_, scale)| **scale > 0.0);
        values[measure.leaf] += terms.map(|(norm, scale)| norm * scale).sum::<f64>();
    }
    values
}

fn views<'a>(measures: &[Measure], inputs: &[Tensor<'a>]) -> Vec<(crate::norm::Batch, Tensor<'a>)> {
    measures.iter().map(|measure| (measure.batch, inputs[measure.leaf])).collect()
}

fn largest_ratio(norms: &[f64], scales: &[f64]) -> f64 {
    let used = norms.iter().zip(scales).filter(|(_, scale)| **scale > 0.0);
    used.map(|(norm, scale)| norm / scale).fold(0.0, larger)
}

/// The maximum, with NaN above all numbers.
fn larger(a: f64, b: f64) -> f64 {
    if b > a || b.is_nan() { b } else { a }
}

/// Shrinks each shared leaf until it is within the bounds of its further uses. The result already has the target norm of the use that leads
/// the leaf, so a further use never enlarges it.
fn shrink(bounds: &[Measure], outputs: &mut [TensorMut<'_>], amount: f64) {
    if amount == 0.0 {
        return;
    }
    for of_leaf in bounds.chunk_by(|a, b| a.leaf == b.leaf) {
        let output = &mut outputs[of_leaf[0].leaf];
        let views: Vec<_> = of_leaf.iter().map(|bound| (bound.batch, output.view())).collect();
        let measured = blocks::norms(&views);
        let ratios = measured.iter().zip(of_leaf).map(|(norms, bound)| largest_ratio(norms, &bound.scales) / amount);
        let excess = ratios.fold(1.0, f64::max);
        if excess > 1.0 {
            output.multiply(&[1.0 / excess]);
        }
    }
}

/// The inputs that a map computes with: checked to be finite ([`NonFinite::Raise`]), with matrices that are not finite replaced by zeros
/// ([`NonFinite::Zero`]), or unchanged ([`NonFinite::Propagate`]).
fn check<'a>(norm: &Norm, inputs: &[Tensor<'a>], nonfinite: NonFinite) -> Result<Vec<Checked<'a>>, MapError> {
    if nonfinite == NonFinite::Propagate {
        return Ok(inputs.iter().map(|input| input.as_is()).collect());
    }
    let total: usize = inputs.iter().map(Tensor::len).sum();
    let counts: Vec<usize> = match total < WORTH_A_THREAD {
        true => inputs.iter().map(Tensor::count_nonfinite).collect(),
        false => {
            let watch = interrupt::current();
            inputs.par_iter().map(|input| watch.run(|| input.count_nonfinite())).collect()
        }
    };
    let mut checked = Vec::with_capacity(inputs.len());
    for ((leaf, input), count) in norm.leaves.iter().zip(inputs).zip(counts) {
        if count > 0 && nonfinite == NonFinite::Raise {
            return Err(MapError::NonFinite { path: leaf.path.clone(), count, size: input.len() });
        }
        checked.push(if count > 0 { input.zeroed(leaf.stacked().max(1)) } else { input.as_is() });
    }
    Ok(checked)
}
