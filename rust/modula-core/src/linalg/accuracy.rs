//! How close to 1 orthogonalisation brings the singular values, and the rational stages that take it there.

use super::constants::{FIRST, SECOND, SINGLE, Stage};

/// How close to 1 [`orthogonalize`](super::orthogonalize) brings the singular values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accuracy {
    /// Every singular value above 1/1000 of the largest is brought within 0.01 of 1 (within 0.006 in the tests). Smaller ones come to lie
    /// between 0 and 1.
    Standard,
    /// Every singular value above 1/100 of the largest is brought within 0.22 of 1, in about half the time of `Standard`. That is about
    /// what five Newton-Schulz steps of degree 5 reach.
    ///
    /// The best published schedules of degree 5 are off by 0.15 to 0.53 after five steps and by 0.006 to 0.13 after six, for singular
    /// values in `[1e-3, 1]` of the norm that the matrix is divided by. If that is the Frobenius norm, singular values in `[1e-3, 1]` of
    /// the largest one are only partly reached.
    Fast,
    /// Every singular value above 1/100 of the largest is brought within 0.59 of 1. That is about what three Newton-Schulz steps of degree
    /// 5 reach.
    Coarse,
    /// Every singular value above `epsilon * max(rows, cols)` of the largest becomes 1 up to rounding; smaller ones become 0. Users do not
    /// choose this level: the map `project` does.
    Exact,
}

impl Accuracy {
    /// The levels that users choose from.
    pub const LEVELS: [Accuracy; 3] = [Accuracy::Standard, Accuracy::Fast, Accuracy::Coarse];

    /// The name of the level, as users write it.
    pub fn name(self) -> &'static str {
        match self {
            Accuracy::Standard => "standard",
            Accuracy::Fast => "fast",
            Accuracy::Coarse => "coarse",
            Accuracy::Exact => "exact",
        }
    }

    /// The level with this name, if users may choose it.
    ///
    /// ```
    /// use modula_core::linalg::Accuracy;
    ///
    /// assert_eq!(Accuracy::named("fast"), Some(Accuracy::Fast));
    /// assert_eq!(Accuracy::named("exact"), None);
    /// ```
    pub fn named(name: &str) -> Option<Accuracy> {
        Accuracy::LEVELS.into_iter().find(|level| level.name() == name)
    }
}

/// The rational stages of a level, or none for [`Accuracy::Exact`], which has a method of its own.
pub(super) fn stages(accuracy: Accuracy) -> Option<&'static [Stage]> {
    match accuracy {
        Accuracy::Standard => Some(&[FIRST, SECOND]),
        Accuracy::Fast => Some(&[SINGLE]),
        Accuracy::Coarse => Some(&[FIRST]),
        Accuracy::Exact => None,
    }
}
