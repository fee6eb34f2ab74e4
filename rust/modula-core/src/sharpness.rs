//! Second-order bounds: how sharp a module is, and how sharpness composes.

use crate::error::{Result, non_negative};

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

/// A product in which zero times infinity is zero: a term with a factor of zero is absent from the sum.
fn term(factors: &[f64]) -> f64 {
    if factors.contains(&0.0) { 0.0 } else { factors.iter().product() }
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

    /// Sharpness of `outer @ inner`; each part is (sharpness, sensitivity, share of the mass).
    pub fn compose(outer: (Sharpness, f64, f64), inner: (Sharpness, f64, f64)) -> Sharpness {
        let (m2, s2, p2) = outer;
        let (m1, s1, p1) = inner;
        Sharpness {
            alpha: term(&[p1, p1, over(m1.alpha, s2)])
                + term(&[p2, p2, m2.alpha])
                + term(&[2.0, p1, p2, over(m2.beta, s2)])
                + term(&[p1, p1, over(over(m2.gamma, s2), s2)]),
            beta: term(&[p1, m1.beta]) + term(&[p2, s1, m2.beta]) + term(&[p1, over(term(&[s1, m2.gamma]), s2)]),
            gamma: term(&[s2, m1.gamma]) + term(&[s1, s1, m2.gamma]),
        }
    }

    /// Sharpness of a tuple; each member is (sharpness, share of the mass).
    pub fn tuple(members: impl IntoIterator<Item = (Sharpness, f64)>) -> Sharpness {
        members.into_iter().fold(Sharpness::FLAT, |sum, (m, p)| Sharpness {
            alpha: sum.alpha + term(&[p, p, m.alpha]),
            beta: sum.beta + term(&[p, m.beta]),
            gamma: sum.gamma + m.gamma,
        })
    }

    /// Sharpness of the composition of `times` copies, by repeated squaring.
    pub fn power(self, sensitivity: f64, has_mass: bool, times: u64) -> Sharpness {
        let joined = |outer: (Sharpness, f64, f64), inner: (Sharpness, f64, f64)| {
            let (n2, n1) = (outer.2, inner.2);
            let share = |n: f64| if has_mass { n / (n1 + n2) } else { 0.0 };
            let sharpness = Sharpness::compose((outer.0, outer.1, share(n2)), (inner.0, inner.1, share(n1)));
            (sharpness, outer.1 * inner.1, n1 + n2)
        };
        let mut square = (self, sensitivity, 1.0);
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
        result.map_or(Sharpness::FLAT, |(sharpness, _, _)| sharpness)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_power_is_its_copies_one_by_one() {
        let block = Sharpness { alpha: 0.3, beta: 0.7, gamma: 0.2 };
        let s = 0.9;
        let (mut chain, mut sensitivity) = (block, s);
        for copies in 2..40_u32 {
            let n = f64::from(copies);
            chain = Sharpness::compose((block, s, 1.0 / n), (chain, sensitivity, (n - 1.0) / n));
            sensitivity *= s;
            let power = block.power(s, true, u64::from(copies));
            for (a, b) in [(power.alpha, chain.alpha), (power.beta, chain.beta), (power.gamma, chain.gamma)] {
                assert!((a - b).abs() <= 1e-12 * b.abs(), "{copies}: {a} {b}");
            }
        }
    }

    #[test]
    fn a_residual_chain_stays_bounded_at_every_depth() {
        let residue = Sharpness { alpha: 1.0, beta: 2.0, gamma: 3.0 };
        for depth in [1_u64, 2, 10, 1000, 1_000_000] {
            let l = depth as f64;
            // (1 - 1/L) Id + (1/L) R as the sum of two scaled branches.
            let block = Sharpness { alpha: residue.alpha / l, beta: residue.beta / l, gamma: residue.gamma / l };
            // In the tuple R holds all the mass; Mul(1/L) after it turns R's weight curvature by L (p/s2).
            let branch = Sharpness::compose((Sharpness::FLAT, 1.0 / l, 0.0), (residue, 1.0, 1.0));
            assert!((branch.gamma - block.gamma).abs() < 1e-12);
            let sum = Sharpness::tuple([(Sharpness::FLAT, 0.0), (branch, 1.0)]);
            let chain = sum.power(1.0, true, depth);
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
        let kink = Sharpness { alpha: 0.0, beta: 0.0, gamma: f64::INFINITY };
        let composed = Sharpness::compose((kink, 1.0, 0.0), (Sharpness::FLAT, 1.0, 0.0));
        assert_eq!(composed.alpha, 0.0);
        assert_eq!(composed.beta, 0.0);
        assert_eq!(composed.gamma, f64::INFINITY);
    }
}
