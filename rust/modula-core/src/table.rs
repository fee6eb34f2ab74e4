//! A norm from a list of rows, for networks that are not trees of modules.

use std::sync::Arc;

use crate::error::{Error, Result, mass_share, non_negative};
use crate::interrupt;
use crate::norm::{Axis, Batch, Leaf, Norm, Use};

/// One use of one weight array.
#[derive(Debug, Clone)]
pub struct Row {
    /// The place of the array in the network.
    pub path: String,
    /// The name of the kind of use, such as the name of a layer's class.
    pub kind: String,
    /// The shape of the weight of one copy.
    pub shape: Vec<usize>,
    /// Number of copies that lie side by side in the array.
    pub copies: usize,
    /// How the weight of one copy divides into blocks.
    pub blocks: Batch,
    /// The geometric norm of a block at which the norm of the use is 1.
    pub unit: f64,
    /// Mass of one copy.
    pub mass: f64,
    /// Product of the sensitivities of everything after this use.
    pub after: f64,
    /// The number of an earlier row, if this use reads the same array as that row.
    pub shares: Option<usize>,
}

/// The norm of these rows, in their order. All copies of a row have the same mass and the same target.
pub fn norm(rows: Vec<Row>) -> Result<Norm> {
    let total: f64 = rows.iter().map(|row| row.mass * row.copies as f64).sum();
    let mut norm = Norm::default();
    let mut leaves: Vec<usize> = Vec::with_capacity(rows.len());
    for (index, row) in rows.into_iter().enumerate() {
        interrupt::count(1);
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
            leaf: usize::MAX, // `Norm::place` sets the row
            kind: row.kind.into(),
            shape: row.shape,
            blocks: row.blocks,
            unit: row.unit,
            scale: 1.0,
            mass: row.mass,
            axes,
            share: mass_share(row.mass, total, &row.path)?,
            after: row.after,
            payload: None,
        };
        leaves.push(norm.place(known, each, &row.path, || Ok(Leaf::new(row.path.clone(), stack)))?);
    }
    Ok(norm)
}
