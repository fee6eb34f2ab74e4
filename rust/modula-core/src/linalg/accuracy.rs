//! How close to 1 orthogonalisation brings the singular values, and the rational stages that take it there.

use super::constants::{FIRST, SECOND, SINGLE, Stage};

/// How close to 1 [`orthogonalize`](super::orthogonalize) brings the singular values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accuracy {
    /// Every singular value above a thousandth of the largest is brought within 0.006 of 1; smaller ones come to lie between 0 and 1.
    Standard,
    /// About what this many Newton-Schulz steps of degree 5 reach, for the least work: every singular value above a thousandth of the
    /// largest is brought within 0.63 of 1 for up to three steps, within 0.25 for four or five; six or more are `Standard`.
    ///
    /// On `[1e-3, 1]` of the *norm divided by*, the best published schedules of degree 5 are off by 0.15 to 0.53 after five steps and by
    /// 0.006 to 0.13 after six. Those that divide by the Frobenius norm reach only a part of this on `[1e-3, 1]` of the largest singular
    /// value.
    Steps(u32),
    /// To rounding, for every singular value above `epsilon * max(rows, cols)` of the largest; smaller ones become 0.
    Exact,
}

impl Accuracy {
    /// The levels that users choose from, by name.
    pub const LEVELS: [(&'static str, Accuracy); 3] =
        [("standard", Accuracy::Standard), ("fast", Accuracy::Steps(5)), ("coarse", Accuracy::Steps(3))];
}

/// The stages of an accuracy short of exact.
pub(super) fn stages(accuracy: Accuracy) -> &'static [Stage] {
    const STANDARD: &[Stage] = &[FIRST, SECOND];
    const FIVE: &[Stage] = &[SINGLE];
    const THREE: &[Stage] = &[FIRST];
    match accuracy {
        Accuracy::Steps(0..=3) => THREE,
        Accuracy::Steps(4 | 5) => FIVE,
        _ => STANDARD,
    }
}
