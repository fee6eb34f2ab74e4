//! The scalar function that [`orthogonalize`](super::orthogonalize) applies to every singular value.
//!
//! With `x = sigma / N`, where `N` estimates the largest singular value, `Standard` applies two functions of the kind
//!
//! ```text
//! f(x) = g(h(x)),   h(x) = x (c + b x^2 + sum_j a_j / (x^2 + p_j)) of [`FIRST`],   g alike of [`SECOND`]
//! ```
//!
//! Without `b` the best of them are Zolotarev's (Nakatsukasa and Freund, "Computing fundamental matrix decompositions accurately via the matrix
//! sign function in two iterations", 2016). The cubic term costs nothing, for `x^2` is the Gram matrix at hand, and stands in for a second inverse: with
//! three inverses and no cubic terms the error is 8e-4, with two and cubic terms 5e-3, with two and none 2.4e-2.
//!
//! `h` is the best approximation of 1 of its type on `x` in `[1e-3, 2]` and brings it into `[0.419, 1.581]`; `g` is the best one on that
//! interval, widened by 2 % for the rounding of the first. Together `|f - 1| < 0.0049` on `[1e-3, 2]`.
//!
//! `Steps(k)` is one stage alone: [`FIRST`] up to three steps (`|f - 1| < 0.59`), [`SINGLE`] for four or five (`< 0.22`), and from six on
//! `Standard`. On `[1e-3, 1]` of the *norm divided by*, the best published schedules of degree 5 are off by 0.15 to 0.53 after five steps and
//! by 0.006 to 0.13 after six; dividing by the Frobenius norm, they reach only a part of that on `[1e-3, 1]` of the largest singular value.
//!
//! The estimate: `N^2 = |R v| / |v|` after [`POWER_STEPS`] steps `v <- R v` from the vector of [`start_entry`], R being the smaller Gram matrix of
//! the input. It lies below the largest eigenvalue. The worst spectrum for it is one singular value at 1 and all others at 0.7: of 3000 start vectors of
//! length 768, ten gave `x > 1.25` and none `x > 1.5`. To reach `x = 2` the others would have to be at 0.5 and the leading part of the
//! start vector below `0.5^24`.

/// How close to 1 [`orthogonalize`](super::orthogonalize) brings the singular values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accuracy {
    /// Every singular value above a thousandth of the largest within 0.006 of 1; smaller ones in between 0 and 1.
    Standard,
    /// About what this many Newton-Schulz steps of degree 5 reach, for the least work: every singular value above a thousandth of the largest within
    /// 0.63 of 1 for up to three, 0.25 for four or five; from six on `Standard`.
    Steps(u32),
    /// To rounding, for every singular value above `epsilon * max(rows, cols)` of the largest; those below become 0.
    Exact,
}

/// `x * (constant + cubic x^2 + sum_j residue_j / (x^2 + pole_j))`
#[derive(Debug)]
pub(super) struct Stage {
    pub constant: f64,
    pub cubic: f64,
    /// (pole, residue)
    pub terms: &'static [(f64, f64)],
}

/// The best function with one pole and a cubic term on `[1e-3, 2]`.
pub(super) const FIRST: Stage = Stage { constant: 1.91785437, cubic: -0.42848855, terms: &[(5.43112225e-5, 0.02308838)] };

/// The best one on the range of [`FIRST`], widened by 2 %.
pub(super) const SECOND: Stage = Stage { constant: 0.58723824, cubic: -0.06332338, terms: &[(0.11770712, 0.52872602)] };

/// Zolotarev's function of type (5, 4) on `[1e-3, 1.25]`: with one stage, within 0.22 of 1.
pub(super) const SINGLE: Stage = Stage {
    constant: 0.8570798712040301,
    cubic: 0.0,
    terms: &[(7.05102424e-6, 0.8570798712040301 * 0.0070936), (6.88061242e-3, 0.8570798712040301 * 0.20784484)],
};

/// Zolotarev's functions of type (5, 4), the first on `[2e-8, 1.25]`, each other on the range of the one before, a little widened for rounding. Together
/// within 2e-13 of 1.
pub(super) const DEEP: [Stage; 3] = [
    Stage {
        constant: 1.4741225616665314,
        cubic: 0.0,
        terms: &[(2.284525696981604e-13, 1.7627921760643161e-06), (1.1954410211865476e-06, 0.004028908719899462)],
    },
    Stage {
        constant: 0.2667640199112047,
        cubic: 0.0,
        terms: &[(0.0163810812806111, 0.19580112418150913), (0.6497966789665337, 0.8952525359406187)],
    },
    Stage {
        constant: 0.20000282073792502,
        cubic: 0.0,
        terms: &[(0.10556415165516335, 0.44221326287199225), (1.8943348269516938, 1.1577582236748634)],
    },
];

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

/// Power steps that estimate the largest singular value.
pub(super) const POWER_STEPS: usize = 12;
