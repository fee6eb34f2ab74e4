//! The forward pass of a tree as straight-line steps.

use crate::module::Payload;

/// One step of the forward pass on a value `x`.
#[derive(Clone)]
pub enum Op {
    /// `x = atom(x, weights[leaf])`.
    Atom {
        /// The row of the weight array in [`Norm::leaves`](crate::norm::Norm::leaves).
        leaf: usize,
        /// What the caller attached to the atom.
        payload: Payload,
    },
    /// `x = bond(x)`, with what the caller attached to the bond.
    Bond(Payload),
    /// Remember `x` as the input of every member of a tuple.
    Fork,
    /// Store `x` as the output of a member, and set `x` to the remembered input.
    Next,
    /// Store `x` as the output of the last member, and set `x` to the tuple of the outputs, of which there are this many.
    Join(usize),
    /// Run the next `length` steps `times` times, each time on the next copy of their weights.
    Repeat {
        /// Number of copies.
        times: u64,
        /// Number of steps that are repeated.
        length: usize,
        /// The norm of an update of the power, measured as a module by itself, if the update of the whole tree has norm 1.
        target: f64,
    },
}

/// The forward pass: steps in the order of the data.
#[derive(Clone, Default)]
pub struct Program {
    /// The steps.
    pub ops: Vec<Op>,
}
