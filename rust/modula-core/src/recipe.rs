//! What each map does, as a table that is made once for each norm and map. For every weight array the table gives the operation on its
//! blocks and the scale of each block. Executors, [`execute`](crate::execute) here and one in Python for other array libraries, decide
//! nothing.

use std::borrow::Cow;

use crate::atom::Geometry;
use crate::blocks::Op;
use crate::error::Result;
use crate::norm::{Batch, Norm};
use crate::{interrupt, memory};

/// A map from weights (or an update of them) to arrays of the same shapes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Map {
    /// Scales every atom to its target norm and keeps its direction.
    Normalize,
    /// Gives the steepest direction of the target norm.
    Dualize,
    /// Projects matrices to semi-orthogonal ones at their scale, and rows of tables to RMS 1. Vectors stay as they are.
    Project,
    /// Scales matrices and rows of tables to the norm that they have at initialisation and keeps their directions. Vectors stay as they
    /// are.
    Radius,
    /// Shrinks weights by the share strength times target, and scales rows of tables to RMS 1.
    Regularize,
    /// Cuts singular values, norms of rows and of biases, and entries of scales down to the amount times the unit.
    HardCap,
    /// Bends the same numbers as [`Map::HardCap`] by an odd polynomial whose strength is the amount.
    SoftCap,
    /// Sets the largest singular value, and the norms of rows of tables, to the amount times the unit. Vectors stay as they are.
    Hammer,
    /// Shrinks the largest singular value, and vectors, by the share strength times target, and scales rows of tables to RMS 1.
    SpectralDecay,
}

impl Map {
    /// Every map.
    pub const ALL: [Map; 9] = [
        Map::Normalize,
        Map::Dualize,
        Map::Project,
        Map::Radius,
        Map::Regularize,
        Map::HardCap,
        Map::SoftCap,
        Map::Hammer,
        Map::SpectralDecay,
    ];

    /// The name of the Python method.
    pub fn name(self) -> &'static str {
        match self {
            Map::Normalize => "normalize",
            Map::Dualize => "dualize",
            Map::Project => "project",
            Map::Radius => "radius",
            Map::Regularize => "regularize",
            Map::HardCap => "hard_cap",
            Map::SoftCap => "soft_cap",
            Map::Hammer => "hammer",
            Map::SpectralDecay => "spectral_decay",
        }
    }

    /// The policy: the operation on a block of each geometry, and the size of the result.
    fn step(self, geometry: Geometry) -> (Op, Size) {
        match (self, geometry) {
            (Map::Normalize, _) => (Op::Unit, Size::Target),
            (Map::Dualize, _) => (Op::Direction, Size::Target),
            (Map::Project, Geometry::Spectral) => (Op::Exact, Size::Unit),
            (Map::Radius, Geometry::Spectral) => (Op::Unit, Size::Unit),
            // Rows that grew without bound would drown what the rest of the network adds to them.
            (Map::Project | Map::Radius | Map::Regularize | Map::SpectralDecay, Geometry::RowRms) => (Op::Unit, Size::Unit),
            (Map::Project | Map::Radius, _) => (Op::Keep, Size::Unit),
            (Map::HardCap, _) => (Op::HardCap, Size::Cap),
            (Map::SoftCap, _) => (Op::SoftCap, Size::Stretch),
            (Map::Hammer, Geometry::Spectral | Geometry::RowRms) => (Op::SetTop, Size::Cap),
            (Map::Hammer, _) => (Op::Keep, Size::Unit),
            (Map::SpectralDecay, Geometry::Spectral) => (Op::ScaleTop, Size::Decay),
            (Map::Regularize | Map::SpectralDecay, _) => (Op::Multiply, Size::Decay),
        }
    }

    /// Whether results reach their target norms, so that the bounds of a shared array's further uses apply to them.
    fn fills_targets(self) -> bool {
        matches!(self, Map::Normalize | Map::Dualize)
    }
}

/// How the size of a result depends on the amount of a call: its target norm, or its strength.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// The result has the geometric norm at which the norm of the atom is 1, whatever the amount.
    Unit,
    /// The result has the norm amount times target.
    Target,
    /// The result is the block times (1 - amount times target).
    Decay,
    /// Norms are compared with amount times unit.
    Cap,
    /// Norms are compared with the unit over the root of the amount.
    Stretch,
}

impl Size {
    /// The name, as Python writes it.
    pub fn name(self) -> &'static str {
        match self {
            Size::Unit => "unit",
            Size::Target => "target",
            Size::Decay => "decay",
            Size::Cap => "cap",
            Size::Stretch => "stretch",
        }
    }
}

/// What a map does with one weight array.
#[derive(Debug, Clone)]
pub struct Row {
    /// The row of the array in [`Norm::leaves`].
    pub leaf: usize,
    /// How the array divides into blocks.
    pub batch: Batch,
    /// The operation on each block.
    pub op: Op,
    /// How the size of the result depends on the amount of a call.
    pub size: Size,
    /// One number for each block, at amount 1.
    pub scales: Vec<f64>,
}

impl Row {
    /// The scales for the amount of one call.
    pub fn scales_at(&self, amount: f64) -> Cow<'_, [f64]> {
        match self.size {
            Size::Unit => Cow::Borrowed(&self.scales),
            Size::Target | Size::Cap if amount == 1.0 => Cow::Borrowed(&self.scales),
            Size::Stretch => memory::collected(self.scales.iter().map(|scale| scale / amount.sqrt())).into(),
            Size::Target | Size::Cap => memory::collected(self.scales.iter().map(|scale| amount * scale)).into(),
            Size::Decay => memory::collected(self.scales.iter().map(|scale| 1.0 - amount * scale)).into(),
        }
    }
}

/// How one use of a weight array measures it: block norms are divided by the scales, dual norms are multiplied by them.
#[derive(Debug, Clone)]
pub struct Measure {
    /// The row of the array in [`Norm::leaves`].
    pub leaf: usize,
    /// How the array divides into blocks.
    pub batch: Batch,
    /// One number for each block. A block with scale 0 does not count.
    pub scales: Vec<f64>,
}

/// A map for one norm. Leaves of users' own atoms have no row.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// What to do with each weight array.
    pub rows: Vec<Row>,
    /// The further uses of shared arrays: a result is shrunk until no norm of a block is above amount times scale.
    pub bounds: Vec<Measure>,
}

/// Makes the recipe of a map for one norm.
pub fn recipe(norm: &Norm, map: Map) -> Result<Recipe> {
    norm.check_blocks()?;
    let mut rows = Vec::with_capacity(norm.leaves.len());
    for (index, leaf) in norm.leaves.iter().enumerate() {
        interrupt::count(1);
        let lead = norm.lead(leaf);
        let batch = norm.batch(leaf, lead);
        if batch.geometry == Geometry::Custom {
            continue;
        }
        let (op, size) = map.step(batch.geometry);
        let mut scales = match size {
            _ if batch.count == 0 => Vec::new(),
            Size::Unit | Size::Cap | Size::Stretch => memory::filled(lead.unit, batch.count),
            Size::Target | Size::Decay => lead.per_block(&norm.lead_targets(leaf)?),
        };
        if size == Size::Target {
            scales.iter_mut().for_each(|target| *target *= lead.unit);
        }
        rows.push(Row { leaf: index, batch, op, size, scales });
    }
    let bounds = match map {
        _ if map.fills_targets() => further_uses(norm)?,
        Map::HardCap => further_units(norm),
        _ => Vec::new(),
    };
    Ok(Recipe { rows, bounds })
}

/// The measures whose largest ratio, block norm over scale, is the norm.
pub fn norms(norm: &Norm) -> Result<Vec<Measure>> {
    let mut measures = dual_norms(norm)?;
    measures.append(&mut further_uses(norm)?);
    Ok(measures)
}

/// The measures whose sum, scale times dual norm of a block, is the dual norm.
pub fn dual_norms(norm: &Norm) -> Result<Vec<Measure>> {
    let Recipe { rows, .. } = recipe(norm, Map::Normalize)?;
    Ok(rows.into_iter().map(|Row { leaf, batch, scales, .. }| Measure { leaf, batch, scales }).collect())
}

/// The further uses of shared arrays, measured in the norms of their own atoms.
fn further_units(norm: &Norm) -> Vec<Measure> {
    let mut bounds = Vec::new();
    for (index, leaf) in norm.leaves.iter().enumerate() {
        let lead = norm.lead(leaf);
        for each in leaf.uses.iter().map(|&use_| &norm.uses[use_]).filter(|each| !std::ptr::eq(*each, lead)) {
            let batch = norm.batch(leaf, each);
            if batch.geometry != Geometry::Custom {
                bounds.push(Measure { leaf: index, batch, scales: memory::filled(each.unit, batch.count) });
            }
        }
    }
    bounds
}

fn further_uses(norm: &Norm) -> Result<Vec<Measure>> {
    let mut bounds = Vec::new();
    for (index, leaf) in norm.leaves.iter().enumerate() {
        for (each, target) in norm.other_uses(leaf)? {
            let batch = norm.batch(leaf, each);
            if batch.geometry != Geometry::Custom {
                bounds.push(Measure { leaf: index, batch, scales: memory::filled(each.unit * target, batch.count) });
            }
        }
    }
    Ok(bounds)
}
