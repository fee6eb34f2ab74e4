//! Second-order bounds: how sharp a module is, and how sharpness composes.

use crate::error::{Result, non_negative};
use crate::reach::term;

/// Bounds on the second derivatives of a module in its own norms (spec "Scalable Optimization in the Modular Norm", section 3.3).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sharpness {
    /// Weight-weight.
    pub alpha: f64,
    /// Input-weight.
    pub beta: f64,
    /// Input-input.
    pub gamma: f64,
}

/// A quotient in which zero over zero is zero, by the same convention.
fn over(numerator: f64, denominator: f64) -> f64 {
    if numerator == 0.0 { 0.0 } else { numerator / denominator }
}

impl Sharpness {
    /// No curvature: a linear map of its input that has no weights.
    pub const FLAT: Sharpness = Sharpness { alpha: 0.0, beta: 0.0, gamma: 0.0 };
    /// Linear in the input and linear in the weights.
    pub const BILINEAR: Sharpness = Sharpness { alpha: 0.0, beta: 1.0, gamma: 0.0 };

    /// Bounds from three numbers, each of which must be at least 0 and may be infinite.
    pub fn new(alpha: f64, beta: f64, gamma: f64) -> Result<Self> {
        for (name, value) in [("sharpness alpha", alpha), ("sharpness beta", beta), ("sharpness gamma", gamma)] {
            if value != f64::INFINITY {
                non_negative(name, value)?;
            }
        }
        Ok(Sharpness { alpha, beta, gamma })
    }

    /// All bounds larger by a factor; what is zero stays so.
    pub(crate) fn grown(self, factor: f64) -> Sharpness {
        Sharpness { alpha: term(&[self.alpha, factor]), beta: term(&[self.beta, factor]), gamma: term(&[self.gamma, factor]) }
    }
}

/// Everything that composition needs to know of a module: first and second derivatives in its own norms.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bounds {
    /// Largest change of the output for an input change of norm 1.
    pub sensitivity: f64,
    /// Largest change of the output for a weight change of norm 1. A module is well-normed if this is at most 1.
    pub gain: f64,
    /// Second derivatives.
    pub sharpness: Sharpness,
}

/// A part of a composition: its bounds, the sensitivity by which the norm on weights divides, and its share of the mass.
pub type Part = (Bounds, f64, f64);

impl Bounds {
    /// A module without weights that returns its input.
    pub const IDENTITY: Bounds = Bounds { sensitivity: 1.0, gain: 1.0, sharpness: Sharpness::FLAT };

    /// The bounds that a well-normed module has.
    pub fn well_normed(sensitivity: f64, sharpness: Sharpness) -> Bounds {
        Bounds { sensitivity, gain: 1.0, sharpness }
    }

    /// Bounds of `outer @ inner`. With `|w1| <= p1 / s2` and `|w2| <= p2` in a weight change of norm 1, every term is a derivative of one
    /// part times the changes that reach it.
    pub fn compose(outer: Part, inner: Part) -> Bounds {
        let (outer, s2, p2) = outer;
        let (inner, _, p1) = inner;
        let (m2, m1) = (outer.sharpness, inner.sharpness);
        // The norm divides by the declared sensitivity of the outer part; a proven bound may exceed it by this factor.
        let excess = if outer.sensitivity == s2 { 1.0 } else { over(outer.sensitivity, s2) };
        let reached = inner.sensitivity;
        Bounds {
            sensitivity: term(&[outer.sensitivity, reached]),
            gain: term(&[p1, inner.gain, excess]) + term(&[p2, outer.gain]),
            sharpness: Sharpness {
                alpha: term(&[p1, p1, over(m1.alpha, s2), excess])
                    + term(&[p2, p2, m2.alpha])
                    + term(&[2.0, p1, p2, over(m2.beta, s2), inner.gain])
                    + term(&[p1, p1, over(over(m2.gamma, s2), s2), inner.gain, inner.gain]),
                beta: term(&[p1, m1.beta, excess])
                    + term(&[p2, reached, m2.beta])
                    + term(&[p1, over(term(&[reached, m2.gamma]), s2), inner.gain]),
                gamma: term(&[outer.sensitivity, m1.gamma]) + term(&[reached, reached, m2.gamma]),
            },
        }
    }

    /// Bounds of a tuple; each member comes with its share of the mass.
    pub fn tuple(members: impl IntoIterator<Item = (Bounds, f64)>) -> Bounds {
        let nothing = Bounds { sensitivity: 0.0, gain: 0.0, sharpness: Sharpness::FLAT };
        members.into_iter().fold(nothing, |sum, (each, p)| Bounds {
            sensitivity: sum.sensitivity + each.sensitivity,
            gain: sum.gain + term(&[p, each.gain]),
            sharpness: Sharpness {
                alpha: sum.sharpness.alpha + term(&[p, p, each.sharpness.alpha]),
                beta: sum.sharpness.beta + term(&[p, each.sharpness.beta]),
                gamma: sum.sharpness.gamma + each.sharpness.gamma,
            },
        })
    }

    /// Bounds of the composition of `times` copies, each of which declares this sensitivity, by repeated squaring.
    pub fn power(self, declared: f64, has_mass: bool, times: u64) -> Bounds {
        let joined = |outer: Part, inner: Part| {
            let (n2, n1) = (outer.2, inner.2);
            let share = |n: f64| if has_mass { n / (n1 + n2) } else { 0.0 };
            (Bounds::compose((outer.0, outer.1, share(n2)), (inner.0, inner.1, share(n1))), outer.1 * inner.1, n1 + n2)
        };
        let mut square = (self, declared, 1.0);
        let mut result = None;
        let mut left = times;
        while left > 0 {
            if left & 1 == 1 {
                result = Some(result.map_or(square, |done| joined(square, done)));
            }
            left >>= 1;
            if left > 0 {
                square = joined(square, square);
            }
        }
        result.map_or(Bounds::IDENTITY, |(bounds, ..)| bounds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alike(a: Bounds, b: Bounds, tolerance: f64) -> bool {
        let list = |x: Bounds| [x.sensitivity, x.gain, x.sharpness.alpha, x.sharpness.beta, x.sharpness.gamma];
        list(a).iter().zip(list(b)).all(|(a, b)| (a - b).abs() <= tolerance * b.abs())
    }

    #[test]
    fn a_power_is_its_copies_one_by_one() {
        let sharpness = Sharpness { alpha: 0.3, beta: 0.7, gamma: 0.2 };
        // Once as declared, once with a proven sensitivity and a gain beside a smaller sensitivity that is declared.
        for (block, s) in [(Bounds::well_normed(0.9, sharpness), 0.9), (Bounds { sensitivity: 1.1, gain: 1.3, sharpness }, 0.9)] {
            let (mut chain, mut declared) = (block, s);
            for copies in 2..40_u32 {
                let n = f64::from(copies);
                chain = Bounds::compose((block, s, 1.0 / n), (chain, declared, (n - 1.0) / n));
                declared *= s;
                assert!(alike(block.power(s, true, u64::from(copies)), chain, 1e-11), "{copies}");
            }
        }
    }

    #[test]
    fn what_is_well_normed_stays_so() {
        let part = |s| Bounds::well_normed(s, Sharpness::BILINEAR);
        let composed = Bounds::compose((part(0.5), 0.5, 0.25), (part(3.0), 3.0, 0.75));
        assert_eq!((composed.sensitivity, composed.gain), (1.5, 1.0));
        assert_eq!(Bounds::tuple([(part(0.5), 0.25), (part(3.0), 0.75)]).gain, 1.0);
    }

    #[test]
    fn a_residual_chain_stays_bounded_at_every_depth() {
        let residue = Sharpness { alpha: 1.0, beta: 2.0, gamma: 3.0 };
        for depth in [1_u64, 2, 10, 1000, 1_000_000] {
            let l = depth as f64;
            // (1 - 1/L) Id + (1/L) R as the sum of two scaled branches.
            let scaled = |a: f64| Bounds { sensitivity: a, ..Bounds::IDENTITY };
            // In the tuple R holds all the mass; Mul(1/L) after it turns R's weight curvature by L (p/s2).
            let branch = Bounds::compose((scaled(1.0 / l), 1.0 / l, 0.0), (Bounds::well_normed(1.0, residue), 1.0, 1.0));
            assert!((branch.sharpness.gamma - residue.gamma / l).abs() < 1e-12);
            let sum = Bounds::tuple([(scaled(1.0 - 1.0 / l), 0.0), (branch, 1.0)]);
            let chain = sum.power(1.0, true, depth).sharpness;
            let expected = Sharpness {
                alpha: residue.alpha + residue.beta * (l - 1.0) / l + residue.gamma * (l - 1.0) * (2.0 * l - 1.0) / (6.0 * l * l),
                beta: residue.beta + residue.gamma * (l - 1.0) / (2.0 * l),
                gamma: residue.gamma,
            };
            for (a, b) in [(chain.alpha, expected.alpha), (chain.beta, expected.beta), (chain.gamma, expected.gamma)] {
                assert!((a - b).abs() <= 1e-9 * b.abs(), "{depth}: {a} {b}");
            }
        }
    }

    #[test]
    fn what_has_no_share_does_not_count_even_if_infinite() {
        let kink = Bounds::well_normed(1.0, Sharpness { alpha: 0.0, beta: 0.0, gamma: f64::INFINITY });
        let composed = Bounds::compose((kink, 1.0, 0.0), (Bounds::IDENTITY, 1.0, 0.0)).sharpness;
        assert_eq!(composed.alpha, 0.0);
        assert_eq!(composed.beta, 0.0);
        assert_eq!(composed.gamma, f64::INFINITY);
    }
}
