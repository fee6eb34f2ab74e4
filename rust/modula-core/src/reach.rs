//! How large the values inside a network can become, and what is proved of each part for values of that size.
//!
//! Values are measured by the RMS over their last axis, and over positions and heads by the largest RMS.

use std::collections::HashMap;
use std::sync::Arc;

use crate::atom::AtomKind;
use crate::interrupt;
use crate::module::{Kind, Module, Node};

/// A product of bounds in which zero times infinity is zero: what does not move stays still, however large the other bounds are.
pub(crate) fn term(factors: &[f64]) -> f64 {
    if factors.contains(&0.0) { 0.0 } else { factors.iter().product() }
}

/// A bound on the RMS of a module's output, given that of its input: `r -> min(slope * r + offset, cap)`. Such functions are closed under
/// composition, and a sum of such functions is bounded by another one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reach {
    /// How the output grows with the input.
    pub slope: f64,
    /// The RMS of the output at an input of zero.
    pub offset: f64,
    /// The RMS of the output for any input.
    pub cap: f64,
}

impl Reach {
    /// Outputs of at most `slope` times the RMS of the input.
    pub const fn linear(slope: f64) -> Reach {
        Reach { slope, offset: 0.0, cap: f64::INFINITY }
    }

    /// Outputs of at most this RMS, whatever the input.
    pub const fn at_most(cap: f64) -> Reach {
        Reach { slope: 0.0, offset: cap, cap }
    }

    /// The largest RMS of the output for inputs of RMS at most `r`.
    pub fn of(self, r: f64) -> f64 {
        (term(&[self.slope, r]) + self.offset).min(self.cap)
    }

    /// `self` after `inner`.
    pub fn after(self, inner: Reach) -> Reach {
        Reach { slope: term(&[self.slope, inner.slope]), offset: term(&[self.slope, inner.offset]) + self.offset, cap: self.of(inner.cap) }
    }

    /// The members of a tuple together: norms add.
    pub fn sum(members: impl IntoIterator<Item = Reach>) -> Reach {
        members.into_iter().fold(Reach::at_most(0.0), |sum, m| Reach {
            slope: sum.slope + m.slope,
            offset: sum.offset + m.offset,
            cap: sum.cap + m.cap,
        })
    }

    /// A composition of `times` copies, by repeated squaring.
    pub fn power(self, times: u64) -> Reach {
        let (mut square, mut result, mut left) = (self, Reach::linear(1.0), times);
        while left > 0 {
            if left & 1 == 1 {
                result = square.after(result);
            }
            left >>= 1;
            if left > 0 {
                square = square.after(square);
            }
        }
        result
    }

    /// The largest RMS that arrives at any of `times` copies in a row, if `r` arrives at the first. The sequence of arrivals rises or
    /// falls throughout, because the function rises.
    pub fn within_power(self, times: u64, r: f64) -> f64 {
        r.max(self.power(times.saturating_sub(1)).of(r))
    }
}

/// What is proved of a part, as opposed to what it declares: bounds for inputs of RMS at most 1, and how they grow beyond.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Proof {
    /// A bound of the output's change for an input change of norm 1, at inputs of norm up to `within`.
    pub sensitivity: f64,
    /// The size of outputs.
    pub reach: Reach,
    /// The norm of inputs up to which the bounds hold as they are.
    pub within: f64,
    /// For inputs larger by a factor f the sensitivity is larger by `f^degree`, and a second derivative by `f^(degree + 1)`.
    pub degree: f64,
}

impl Proof {
    /// A map that moves by at most `slope` per unit of its input, wherever it is, and takes zero to zero.
    pub const fn lipschitz(slope: f64) -> Proof {
        Proof { sensitivity: slope, reach: Reach::linear(slope), within: f64::INFINITY, degree: 0.0 }
    }

    /// A map of which nothing is known but the bound that its author declares for inputs of norm at most 1.
    pub const fn declared(sensitivity: f64, at_zero: f64) -> Proof {
        let reach = Reach { slope: sensitivity, offset: at_zero, cap: f64::INFINITY };
        Proof { sensitivity, reach, within: 1.0, degree: f64::INFINITY }
    }

    /// What is proved of a bond of the library; `declared` is the sensitivity that its row gives, `argument` as in
    /// [`Bond::builtin`](crate::bond::Bond::builtin).
    pub fn of_bond(name: &str, argument: Option<f64>, declared: f64) -> Proof {
        let plain = Proof::lipschitz(declared);
        match name {
            "Identity" | "Mul" | "Add" | "Abs" | "ReLU" | "Mean" | "AvgPool" | "Rope" | "CausalMask" | "Flatten" | "MergeHeads"
            | "Enumerate" => plain,
            // All axes but the last count positions, and the largest RMS of a position counts. A mean over the last axis is subtracted by
            // a projection; another mean may be as large as a position, and of the opposite sign.
            "MeanSubtract" if argument == Some(-1.0) => plain,
            "MeanSubtract" => Proof::lipschitz(2.0 * declared),
            // One head may hold all of a position's norm.
            "SplitIntoHeads" => Proof::lipschitz(declared * argument.unwrap_or(f64::INFINITY).sqrt()),
            "Sigmoid" => Proof { reach: Reach { slope: declared, offset: 0.5, cap: 1.0 }, ..plain },
            "Tanh" => Proof { reach: Reach { cap: 1.0, ..plain.reach }, ..plain },
            // |gelu(x)| <= |x|, although the largest slope is above 1.
            "GELU" | "UnscaledGELU" => Proof { reach: Reach::linear(declared / crate::bond::GELU_SLOPE), ..plain },
            // Near zero x / rms(x) moves without bound, yet its size is 1.
            "RMSDivide" | "LayerNorm" => Proof { sensitivity: f64::INFINITY, reach: Reach::at_most(1.0), ..plain },
            // The output is measured by its sum of absolute values.
            "Softmax" => Proof { reach: Reach::at_most(1.0), ..plain },
            // With |q| + |k| + |v| <= r and scale s the sensitivity is at most max(1, s r^2 / 4), the second derivative at most
            // s r + 8/27 s^2 r^3. For s at most 1 and r beyond 1.5 that is less than 1 and 3 times the second and the third power of r / 1.5;
            // for larger s and r beyond 1 less than what is declared times these powers of r. Outputs are averages of values.
            "FunctionalAttention" => {
                let within = if argument.unwrap_or(1.0).abs() <= 1.0 { 1.5 } else { 1.0 };
                Proof { within, degree: 2.0, reach: Reach::linear(1.0), ..plain }
            }
            _ => Proof::declared(declared, 0.0),
        }
    }

    /// What is proved of an atom whose weights have norm at most `weight_norm` (in the atom's own norm).
    pub fn of_atom(kind: &AtomKind, weight_norm: f64) -> Proof {
        match kind {
            AtomKind::Linear { .. } | AtomKind::Unembed { .. } | AtomKind::Conv2D { .. } | AtomKind::Scale { .. } => {
                Proof::lipschitz(weight_norm)
            }
            AtomKind::Embed { .. } => Proof { reach: Reach::at_most(weight_norm), ..Proof::lipschitz(weight_norm) },
            AtomKind::Bias { .. } => Proof { reach: Reach { offset: weight_norm, ..Reach::linear(1.0) }, ..Proof::lipschitz(1.0) },
            // An author promises bounds for weights of norm at most 1.
            AtomKind::Custom { .. } if weight_norm > 1.0 => Proof::declared(f64::INFINITY, 0.0),
            AtomKind::Custom { sensitivity, at_zero, .. } => Proof::declared(*sensitivity, *at_zero),
        }
    }

    /// The factors of the sensitivity and of a second derivative at inputs of RMS at most `r`.
    pub fn growth(self, r: f64) -> (f64, f64) {
        // The sums of a residual chain come to 1 up to rounding.
        let beyond = r / self.within;
        if beyond <= 1.0 + TOLERANCE { (1.0, 1.0) } else { (beyond.powf(self.degree), beyond.powf(self.degree + 1.0)) }
    }
}

/// The largest change of the output for a weight change of norm 1, if `r` arrives at the atom.
pub(crate) fn gain(kind: &AtomKind, r: f64) -> f64 {
    match kind {
        AtomKind::Linear { .. } | AtomKind::Unembed { .. } | AtomKind::Conv2D { .. } | AtomKind::Scale { .. } => r,
        AtomKind::Embed { .. } | AtomKind::Bias { .. } => 1.0,
        AtomKind::Custom { .. } if r > 1.0 + TOLERANCE => f64::INFINITY,
        AtomKind::Custom { .. } => 1.0,
    }
}

/// How far a bound may be above 1 and count as 1: rounding, multiplied by the depth of a chain.
pub(crate) const TOLERANCE: f64 = 1e-9;

/// The reach of every node of a tree; copies of a handle share an entry.
pub(crate) struct Reaches(HashMap<*const Node, Reach>);

impl Reaches {
    /// The reach of a module in the tree.
    pub fn of(&self, module: &Module) -> Reach {
        self.0[&Arc::as_ptr(&module.node)]
    }

    /// All nodes below `root`, for weights of this norm in every atom.
    pub fn new(root: &Module, weight_norm: f64) -> Reaches {
        let mut known = Reaches(HashMap::new());
        let mut waiting = vec![root];
        while let Some(&module) = waiting.last() {
            interrupt::count(1);
            let before = waiting.len();
            let unknown = |part: &&Module| !known.0.contains_key(&Arc::as_ptr(&part.node));
            match &module.node.kind {
                Kind::Atom(..) | Kind::Bond(..) => {}
                Kind::Compose { outer, inner } => waiting.extend([outer, inner].into_iter().filter(unknown)),
                Kind::Tuple(members) => waiting.extend(members.iter().filter(unknown)),
                Kind::Power { block, .. } => waiting.extend([block].into_iter().filter(unknown)),
            }
            if waiting.len() > before {
                continue;
            }
            waiting.pop();
            let reach = match &module.node.kind {
                Kind::Atom(atom, _) => Proof::of_atom(&atom.kind, weight_norm).reach,
                Kind::Bond(bond, _) => bond.proof.reach,
                Kind::Compose { outer, inner } => known.of(outer).after(known.of(inner)),
                Kind::Tuple(members) => Reach::sum(members.iter().map(|member| known.of(member))),
                Kind::Power { block, times } => known.of(block).power(*times),
            };
            known.0.insert(Arc::as_ptr(&module.node), reach);
        }
        known
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FUNCTIONS: [Reach; 4] =
        [Reach { slope: 0.5, offset: 0.3, cap: 4.0 }, Reach { slope: 2.0, offset: 0.1, cap: 3.0 }, Reach::linear(1.5), Reach::at_most(0.7)];

    #[test]
    fn composition_is_exact() {
        for outer in FUNCTIONS {
            for inner in FUNCTIONS {
                for r in [0.0, 0.4, 1.0, 2.5, 10.0] {
                    assert!((outer.after(inner).of(r) - outer.of(inner.of(r))).abs() < 1e-12);
                }
            }
        }
    }

    #[test]
    fn a_power_meets_its_largest_arrival() {
        for function in FUNCTIONS {
            for start in [0.1, 1.0, 5.0] {
                let (mut r, mut largest) = (start, start);
                for times in 1..20 {
                    assert!((function.within_power(times, start) - largest).abs() < 1e-9 * largest);
                    r = function.of(r);
                    assert!((function.power(times).of(start) - r).abs() < 1e-9 * r.max(1.0));
                    largest = f64::max(largest, r);
                }
            }
        }
    }

    #[test]
    fn a_sum_bounds_its_members_together() {
        let sum = Reach::sum(FUNCTIONS);
        for r in [0.0, 1.0, 7.0] {
            assert!(sum.of(r) + 1e-12 >= FUNCTIONS.iter().map(|f| f.of(r)).sum());
        }
    }
}
