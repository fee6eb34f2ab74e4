//! What each map does: a table, made once for each norm and map, that says for every weight array which operation its blocks undergo and
//! at which scale. Executors (here [`execute`](crate::execute), in Python for other array libraries) do as it says and decide nothing.

use std::borrow::Cow;

use crate::atom::Geometry;
use crate::blocks::Op;
use crate::error::Result;
use crate::memory;
use crate::norm::{Batch, Norm};

/// A map from weights (or an update of them) to arrays of the same shapes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Map {
    /// Every atom brought to its target norm, its direction kept.
    Normalize,
    /// The steepest direction of the target norm.
    Dualize,
    /// Back to the natural set: semi-orthogonal matrices, table rows of RMS 1.
    Project,
    /// Back to the norm that the atom has at initialisation, the direction kept.
    Radius,
    /// Decay by strength times target; table rows of RMS 1.
    Regularize,
}

impl Map {
    /// Every map.
    pub const ALL: [Map; 5] = [Map::Normalize, Map::Dualize, Map::Project, Map::Radius, Map::Regularize];

    /// The name of the Python method.
    pub fn name(self) -> &'static str {
        match self {
            Map::Normalize => "normalize",
            Map::Dualize => "dualize",
            Map::Project => "project",
            Map::Radius => "radius",
            Map::Regularize => "regularize",
        }
    }

    /// The policy: what becomes of a block of each geometry, and how large it becomes.
    fn step(self, geometry: Geometry) -> (Op, Size) {
        match (self, geometry) {
            (Map::Normalize, _) => (Op::Unit, Size::Target),
            (Map::Dualize, _) => (Op::Direction, Size::Target),
            (Map::Project, Geometry::Spectral) => (Op::Exact, Size::Unit),
            (Map::Radius, Geometry::Spectral) => (Op::Unit, Size::Unit),
            // Without it embeddings grow, and what the rest of the network adds to them fades.
            (Map::Project | Map::Radius | Map::Regularize, Geometry::RowRms) => (Op::Unit, Size::Unit),
            (Map::Project | Map::Radius, _) => (Op::Keep, Size::Unit),
            (Map::Regularize, _) => (Op::Multiply, Size::Decay),
        }
    }

    /// Whether results fill their targets, so that further uses of a shared array bind them.
    fn fills_targets(self) -> bool {
        matches!(self, Map::Normalize | Map::Dualize)
    }
}

/// How large a result is, for the amount (a target norm, or a strength) that a call brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// The geometric norm at which the atom's norm is 1, whatever the amount.
    Unit,
    /// Amount times target.
    Target,
    /// The block times 1 - amount times target.
    Decay,
}

impl Size {
    /// The name that Python knows it by.
    pub fn name(self) -> &'static str {
        match self {
            Size::Unit => "unit",
            Size::Target => "target",
            Size::Decay => "decay",
        }
    }
}

/// What becomes of one weight array.
#[derive(Debug, Clone)]
pub struct Row {
    /// The array.
    pub leaf: usize,
    /// Its blocks.
    pub batch: Batch,
    /// The operation on each of them.
    pub op: Op,
    /// How the amount of a call enters.
    pub size: Size,
    /// One number for each block, at amount 1.
    pub scales: Vec<f64>,
}

impl Row {
    /// The scales for the amount of one call.
    pub fn scales_at(&self, amount: f64) -> Cow<'_, [f64]> {
        match self.size {
            Size::Unit => Cow::Borrowed(&self.scales),
            Size::Target if amount == 1.0 => Cow::Borrowed(&self.scales),
            Size::Target => memory::collected(self.scales.iter().map(|scale| amount * scale)).into(),
            Size::Decay => memory::collected(self.scales.iter().map(|scale| 1.0 - amount * scale)).into(),
        }
    }
}

/// A weight array as one of its uses measures it: block norms over (dual norms times) these scales.
#[derive(Debug, Clone)]
pub struct Measure {
    /// The array.
    pub leaf: usize,
    /// Its blocks.
    pub batch: Batch,
    /// One number for each block; blocks with 0 are left out.
    pub scales: Vec<f64>,
}

/// A map for one norm. Leaves of users' own atoms have no row.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// One for each weight array.
    pub rows: Vec<Row>,
    /// Further uses of shared arrays: results are shrunk until no block norm is above amount times scale.
    pub bounds: Vec<Measure>,
}

/// The recipe of a map.
pub fn recipe(norm: &Norm, map: Map) -> Result<Recipe> {
    let mut rows = Vec::with_capacity(norm.leaves.len());
    for (index, leaf) in norm.leaves.iter().enumerate() {
        let lead = norm.lead(leaf);
        let batch = norm.batch(leaf, lead);
        if batch.geometry == Geometry::Custom {
            continue;
        }
        let (op, size) = map.step(batch.geometry);
        let mut scales = match size {
            _ if batch.count == 0 => Vec::new(),
            Size::Unit => memory::filled(lead.unit, batch.count),
            Size::Target | Size::Decay => lead.per_block(&norm.lead_targets(leaf)?),
        };
        if size == Size::Target {
            scales.iter_mut().for_each(|target| *target *= lead.unit);
        }
        rows.push(Row { leaf: index, batch, op, size, scales });
    }
    Ok(Recipe { rows, bounds: if map.fills_targets() { further_uses(norm)? } else { Vec::new() } })
}

/// What the norm is the largest ratio of.
pub fn norms(norm: &Norm) -> Result<Vec<Measure>> {
    let mut measures = dual_norms(norm)?;
    measures.append(&mut further_uses(norm)?);
    Ok(measures)
}

/// What the dual norm is the weighted sum of.
pub fn dual_norms(norm: &Norm) -> Result<Vec<Measure>> {
    let Recipe { rows, .. } = recipe(norm, Map::Normalize)?;
    Ok(rows.into_iter().map(|Row { leaf, batch, scales, .. }| Measure { leaf, batch, scales }).collect())
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
