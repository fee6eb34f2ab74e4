//! The scalar function that [`orthogonalize`](super::orthogonalize) applies to every singular value.
//!
//! With `x = sigma / N`, where `N` estimates the largest singular value, `Standard` applies two Zolotarev functions (Nakatsukasa and
//! Freund, "Computing fundamental matrix decompositions accurately via the matrix sign function in two iterations", 2016):
//!
//! ```text
//! f(x) = g(h(x)),   h(x) = x * (c + sum_j a_j / (x^2 + p_j)) of [`FIRST`],   g alike of [`SECOND`]
//! ```
//!
//! `h` is the best approximation of 1 of its type on `x` in `[1e-3, 1.25]` and brings it into `[0.375, 1.626]`; `g` is the best one on that
//! interval, widened by 2 % for the rounding of the first. Together `|f - 1| < 8e-4` on `[1e-3, 1.25]`.
//!
//! `Steps(k)` is one stage alone: [`FIRST`] up to three steps (`|f - 1| < 0.63`), [`SINGLE`] for four or five (`< 0.22`), and from six on
//! `Standard`. On `[1e-3, 1]` of the *norm divided by*, the best published schedules of degree 5 are off by 0.15 to 0.53 after five steps and
//! by 0.006 to 0.13 after six; dividing by the Frobenius norm, they reach only a part of that on `[1e-3, 1]` of the largest singular value.
//!
//! The estimate: `N^2 = |R v| / |v|` after [`POWER_STEPS`] steps `v <- R v` from the vector of [`start_entry`], R being the smaller Gram matrix of
//! the input. It lies below the largest eigenvalue. The worst spectrum for it is one singular value at 1 and all others at 0.7: of 3000 start vectors of
//! length 768, ten gave `x > 1.25` and none `x > 1.5`, where `|f - 1|` is still below 0.008. (With eight steps: one in 25, and one in 400 with 0.6
//! in place of 0.7.)

use super::{Accuracy, Real};

/// `x * (constant + sum_j residue_j / (x^2 + pole_j))`
#[derive(Debug)]
pub(super) struct Stage {
    pub constant: f64,
    /// (pole, residue)
    pub terms: &'static [(f64, f64)],
}

/// Zolotarev's function of type (3, 2) on `[1e-3, 1.25]`.
pub(super) const FIRST: Stage = Stage { constant: 1.282407542941364, terms: &[(7.26030006e-5, 1.282407542941364 * 0.02144855)] };

/// Zolotarev's function of type (5, 4) on the range of [`FIRST`], widened by 2 %.
pub(super) const SECOND: Stage = Stage {
    constant: 0.2240083851063105,
    terms: &[(0.05177153, 0.2240083851063105 * 1.44669282), (1.25416884, 0.2240083851063105 * 4.71567845)],
};

/// Zolotarev's function of type (5, 4) on `[1e-3, 1.25]`: with one stage, within 0.22 of 1.
pub(super) const SINGLE: Stage = Stage {
    constant: 0.8570798712040301,
    terms: &[(7.05102424e-6, 0.8570798712040301 * 0.0070936), (6.88061242e-3, 0.8570798712040301 * 0.20784484)],
};

/// Zolotarev's functions of type (5, 4), the first on `[2e-8, 1.25]`, each other on the range of the one before, a little widened for rounding. Together
/// within 2e-13 of 1.
pub(super) const DEEP: [Stage; 3] = [
    Stage {
        constant: 1.4741225616665314,
        terms: &[(2.284525696981604e-13, 1.7627921760643161e-06), (1.1954410211865476e-06, 0.004028908719899462)],
    },
    Stage { constant: 0.2667640199112047, terms: &[(0.0163810812806111, 0.19580112418150913), (0.6497966789665337, 0.8952525359406187)] },
    Stage { constant: 0.20000282073792502, terms: &[(0.10556415165516335, 0.44221326287199225), (1.8943348269516938, 1.1577582236748634)] },
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

/// Entry `index` of the start vector of a power iteration: uniform in `[-1/2, 1/2)`, by the finaliser of MurmurHash3.
pub(super) fn start_entry<T: Real>(index: usize) -> T {
    let mut h = index as u32 + 1;
    h = (h ^ (h >> 16)).wrapping_mul(0x85eb_ca6b);
    h = (h ^ (h >> 13)).wrapping_mul(0xc2b2_ae35);
    h ^= h >> 16;
    T::from_f64(f64::from(h) / 4_294_967_296.0 - 0.5)
}
