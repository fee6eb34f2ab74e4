//! The maps on a whole model's weights: each walks the plan once and hands all leaves to [`blocks`] together.

use std::borrow::Cow;

use rayon::prelude::*;
use thiserror::Error;

use crate::atom::Geometry;
use crate::blocks::{self, Group, Item, Update};
use crate::linalg::Accuracy;
use crate::plan::{Leaf, Plan, Use};
use crate::tensor::{Tensor, TensorMut, WORTH_A_THREAD};
use crate::{interrupt, memory};

/// What a map refuses.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum MapError {
    /// NaN or infinity in an update.
    #[error("{path}: {count} of {size} numbers are not finite; nonfinite=\"zero\" skips such matrices instead")]
    NonFinite {
        /// The leaf.
        path: String,
        /// How many.
        count: usize,
        /// Out of how many.
        size: usize,
    },
    /// The plan has no such target.
    #[error(transparent)]
    Plan(#[from] crate::Error),
}

/// What to do about NaN or infinity in an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NonFinite {
    /// Refuse.
    Raise,
    /// Skip the matrix: its update is zero.
    Zero,
    /// Let it through.
    Propagate,
}

/// Which map.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Map {
    /// Every atom brought to its target norm, its direction kept.
    Normalize {
        /// Norm of the whole.
        target_norm: f64,
    },
    /// The steepest direction.
    Dualize {
        /// Norm of the whole.
        target_norm: f64,
        /// How close to orthogonal.
        accuracy: Accuracy,
    },
    /// Back to the natural set.
    Project,
    /// Decay by `strength * target`.
    Regularize {
        /// Per unit of target.
        strength: f64,
    },
}

/// The batch that a leaf's array is, in the eyes of one of its uses.
pub fn group(leaf: &Leaf, each: &Use) -> Group {
    let [blocks, rows, cols] = each.kind.blocks();
    let copies = leaf.stack.iter().fold(1_usize, |n, &axis| n.saturating_mul(axis));
    Group { geometry: each.kind.geometry(), count: copies.saturating_mul(blocks), rows, cols }
}

/// For every leaf the largest of norm over target (dual: the sum of target times dual norm); 0 for custom leaves.
fn leaf_values(plan: &Plan, inputs: &[Tensor<'_>], dual: bool) -> Result<Vec<f64>, MapError> {
    let mut views: Vec<(Group, Tensor<'_>)> = Vec::new();
    // (leaf, unit, target of every block)
    let mut meaning: Vec<(usize, f64, Vec<f64>)> = Vec::new();
    for (index, (leaf, input)) in plan.leaves.iter().zip(inputs).enumerate() {
        // Without a number there may be any number of blocks all the same.
        if input.is_empty() {
            continue;
        }
        let lead = plan.lead(leaf);
        let targets = per_block(&plan.lead_targets(leaf, 1.0)?, lead);
        views.push((group(leaf, lead), *input));
        meaning.push((index, lead.kind.unit(), targets));
        if !dual {
            for (each, target) in plan.other_uses(leaf, 1.0)? {
                views.push((group(leaf, each), *input));
                meaning.push((index, each.kind.unit(), per_block(&[target], each)));
            }
        }
    }
    let measured = if dual { blocks::dual_norms(&views) } else { blocks::norms(&views) };
    let mut values = vec![0.0; inputs.len()];
    for ((index, unit, targets), norms) in meaning.into_iter().zip(measured) {
        for (norm, target) in norms.into_iter().zip(targets) {
            if target == 0.0 {
                continue;
            }
            let value: &mut f64 = &mut values[index];
            if dual {
                *value += norm * unit * target;
            } else if unit > 0.0 {
                let scaled = norm / unit / target;
                *value = if scaled > *value || scaled.is_nan() { scaled } else { *value };
            }
        }
    }
    Ok(values)
}

/// For every leaf, the largest of scale times norm over the atoms that read it.
pub fn norms(plan: &Plan, inputs: &[Tensor<'_>]) -> Result<Vec<f64>, MapError> {
    leaf_values(plan, inputs, false)
}

/// For every leaf, target times dual norm.
pub fn dual_norms(plan: &Plan, inputs: &[Tensor<'_>]) -> Result<Vec<f64>, MapError> {
    leaf_values(plan, inputs, true)
}

/// One number for each copy, repeated for the blocks of a copy.
fn per_block(targets: &[f64], each: &Use) -> Vec<f64> {
    let [blocks, ..] = each.kind.blocks();
    memory::collected(targets.iter().flat_map(|&target| std::iter::repeat_n(target, blocks)))
}

/// Applies a map to every leaf that is not a custom one. Outputs are as long as their inputs and of the same dtypes.
pub fn apply(plan: &Plan, inputs: &[Tensor<'_>], mut outputs: Vec<TensorMut<'_>>, map: Map, nonfinite: NonFinite) -> Result<(), MapError> {
    let inputs = screen(plan, inputs, map, nonfinite)?;
    let mut items = Vec::new();
    for ((leaf, input), output) in plan.leaves.iter().zip(&inputs).zip(&mut outputs) {
        if input.borrowed().is_empty() {
            continue;
        }
        let lead = plan.lead(leaf);
        let group = group(leaf, lead);
        let by_rows = group.geometry == Geometry::RowRms;
        let scales = match map {
            Map::Normalize { target_norm } | Map::Dualize { target_norm, .. } => {
                let unit = lead.kind.unit();
                let mut scales = per_block(&plan.lead_targets(leaf, target_norm)?, lead);
                scales.iter_mut().for_each(|scale| *scale *= unit);
                scales
            }
            Map::Project if by_rows || group.geometry == Geometry::Spectral => memory::filled(lead.kind.unit(), group.count),
            Map::Regularize { .. } if by_rows => memory::filled(1.0, group.count),
            Map::Project => {
                decay(output.reborrow(), input.borrowed(), &[1.0]);
                continue;
            }
            Map::Regularize { strength } => {
                let mut factors = plan.lead_targets(leaf, 1.0)?;
                factors.iter_mut().for_each(|target| *target = 1.0 - strength * *target);
                decay(output.reborrow(), input.borrowed(), &factors);
                continue;
            }
        };
        items.push(Item { group, input: input.borrowed(), output: output.reborrow(), scales: Cow::Owned(scales) });
    }
    let update = match map {
        Map::Normalize { .. } | Map::Regularize { .. } => Update::Normalize,
        Map::Dualize { accuracy, .. } => Update::Dualize(accuracy),
        Map::Project => Update::Dualize(Accuracy::Exact),
    };
    blocks::update(items, update);
    match map {
        Map::Normalize { target_norm } | Map::Dualize { target_norm, .. } => shrink(plan, &mut outputs, target_norm),
        Map::Project | Map::Regularize { .. } => Ok(()),
    }
}

/// Brings shared leaves within the target of every use. The lead's norm is filled already; each further use may only shrink.
fn shrink(plan: &Plan, outputs: &mut [TensorMut<'_>], target_norm: f64) -> Result<(), MapError> {
    for (leaf, output) in plan.leaves.iter().zip(outputs) {
        let others = plan.other_uses(leaf, target_norm)?;
        if others.is_empty() || target_norm == 0.0 || output.view().is_empty() {
            continue;
        }
        let views: Vec<_> = others.iter().map(|(each, _)| (group(leaf, each), output.view())).collect();
        let excess = blocks::norms(&views).into_iter().zip(&others).map(|(norms, (each, target))| {
            let unit = each.kind.unit();
            norms.into_iter().fold(0.0, |top: f64, norm| if unit > 0.0 { top.max(norm / unit / target) } else { top })
        });
        let excess = excess.fold(1.0, f64::max);
        if excess > 1.0 {
            output.multiply(&[1.0 / excess]);
        }
    }
    Ok(())
}

/// `output = factor * input`, one factor for each of as many equal parts.
fn decay(mut output: TensorMut<'_>, input: Tensor<'_>, factors: &[f64]) {
    output.copy_from(input);
    output.multiply(factors);
}

/// The inputs as the map may have them: checked, or with every matrix that is not finite zeroed.
fn screen<'a>(plan: &Plan, inputs: &[Tensor<'a>], map: Map, nonfinite: NonFinite) -> Result<Vec<crate::tensor::Screened<'a>>, MapError> {
    let skip = nonfinite == NonFinite::Propagate || matches!(map, Map::Regularize { .. });
    let total: usize = inputs.iter().map(Tensor::len).sum();
    let counts: Vec<usize> = match skip {
        true => vec![0; inputs.len()],
        false if total < WORTH_A_THREAD => inputs.iter().map(Tensor::count_nonfinite).collect(),
        false => {
            let watch = interrupt::current();
            inputs.par_iter().map(|input| watch.run(|| input.count_nonfinite())).collect()
        }
    };
    let mut screened = Vec::with_capacity(inputs.len());
    for ((leaf, input), count) in plan.leaves.iter().zip(inputs).zip(counts) {
        if count > 0 && nonfinite == NonFinite::Raise {
            return Err(MapError::NonFinite { path: leaf.path.clone(), count, size: input.len() });
        }
        let copies = leaf.stack.iter().product::<usize>().max(1);
        screened.push(if count > 0 { input.zeroed(copies) } else { input.as_is() });
    }
    Ok(screened)
}
