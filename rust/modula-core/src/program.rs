//! The forward pass of a tree as straight-line steps.

use crate::module::Payload;

/// One step of the forward pass on a value `x`.
#[derive(Clone)]
pub enum Op {
    /// `x = atom(x, weights[leaf])`.
    Atom {
        /// The row of the weight array in [`Norm::leaves`](crate::norm::Norm::leaves).
        leaf: usize,
        /// What the tree carries for the atom.
        payload: Payload,
    },
    /// `x = bond(x)`, with what the tree carries for the bond.
    Bond(Payload),
    /// Remember `x` for every member of a tuple.
    Fork,
    /// Put `x` aside as a member's output and take the remembered input again.
    Next,
    /// Put `x` aside as the last output; `x` becomes the tuple of this many outputs.
    Join(usize),
    /// Run the next `length` steps `times` times, each time on the next copy of their weights.
    Repeat {
        /// Copies.
        times: u64,
        /// Steps.
        length: usize,
        /// The norm that an update of the whole power has, in the norm of the power itself, if the update of the tree has norm 1.
        target: f64,
    },
}

/// The steps, in the order of the data.
#[derive(Clone, Default)]
pub struct Program {
    /// One after the other.
    pub ops: Vec<Op>,
}
