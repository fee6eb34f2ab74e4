//! A norm written down row by row, for networks that are not trees of modules.

use std::sync::Arc;

use crate::error::{Error, Result, mass_share, non_negative};
use crate::norm::{Axis, Batch, Leaf, Norm, Use};

/// One use of one weight array.
#[derive(Debug, Clone)]
pub struct Row {
    /// Where the array stands.
    pub path: String,
    /// What the use is called.
    pub kind: String,
    /// The shape of the weight of one copy.
    pub shape: Vec<usize>,
    /// Copies side by side in the array.
    pub copies: usize,
    /// The weight of one copy as blocks.
    pub blocks: Batch,
    /// The geometric norm of a block at which the norm is 1.
    pub unit: f64,
    /// Mass of one copy.
    pub mass: f64,
    /// Product of the sensitivities of all that comes after it.
    pub after: f64,
    /// The number of an earlier row whose array this use reads too.
    pub shares: Option<usize>,
}

/// The norm of these rows, in their order. Copies are equal: each has the same mass and the same target.
pub fn norm(rows: Vec<Row>) -> Result<Norm> {
    let total: f64 = rows.iter().map(|row| row.mass * row.copies as f64).sum();
    let mut norm = Norm::default();
    let mut leaves: Vec<usize> = Vec::with_capacity(rows.len());
    for (index, row) in rows.into_iter().enumerate() {
        non_negative(&format!("mass of {}", row.path), row.mass)?;
        non_negative(&format!("unit of {}", row.path), row.unit)?;
        non_negative(&format!("sensitivity after {}", row.path), row.after)?;
        let known = match row.shares {
            Some(earlier) if earlier >= index => {
                let got = earlier.to_string();
                return Err(Error::Argument { what: format!("shared row of {}", row.path), expected: "an earlier row", got });
            }
            other => other.map(|earlier| leaves[earlier]),
        };
        let axis = Axis { times: row.copies as u64, sensitivity: 1.0, power: index };
        let axes: Arc<[Axis]> = if row.copies == 1 { Arc::new([]) } else { Arc::new([axis]) };
        let stack = axes.iter().map(|_| row.copies).collect();
        let each = Use {
            leaf: usize::MAX, // until it is placed
            kind: row.kind.into(),
            shape: row.shape,
            blocks: row.blocks,
            unit: row.unit,
            mass: row.mass,
            axes,
            share: mass_share(row.mass, total, &row.path)?,
            after: row.after,
            payload: None,
        };
        leaves.push(norm.place(known, each, &row.path, || Leaf::new(row.path.clone(), stack))?);
    }
    Ok(norm)
}
