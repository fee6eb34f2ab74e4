//! Bonds: the modules without weights. A new bond is one row of [`Bond::builtin`] and one class in Python (`network/bond.py` and the files
//! beside it).

use std::f64::consts::{FRAC_2_SQRT_PI, SQRT_2};
use std::sync::Arc;

use crate::error::{Error, Result, non_negative};
use crate::feature::{Feature, Signature};
use crate::reach::Proof;
use crate::sharpness::Sharpness;

/// The largest slope of gelu, at sqrt(2): Phi(sqrt 2) + sqrt 2 phi(sqrt 2).
pub const GELU_SLOPE: f64 = 1.128_904_145_185_155;

/// The largest |gelu''|, at 0: 2 phi(0) = sqrt(2 / pi).
const GELU_BEND: f64 = FRAC_2_SQRT_PI / SQRT_2;

/// Second-order bounds of a bond; some depend on the number of features it is applied to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Curvature {
    /// Bounds that hold for any number of features.
    Bounded(Sharpness),
    /// An elementwise function with |f''| <= c: gamma is c sqrt(d) in RMS norm over d features, and infinite if d is not known.
    Elementwise(f64),
    /// Not smooth.
    Kinked,
}

impl Curvature {
    /// The bounds on `features` features.
    pub fn on(self, features: Option<usize>) -> Sharpness {
        let input = |gamma| Sharpness { gamma, ..Sharpness::FLAT };
        match self {
            Curvature::Bounded(sharpness) => sharpness,
            Curvature::Elementwise(c) => input(features.map_or(f64::INFINITY, |d| c * (d as f64).sqrt())),
            Curvature::Kinked => input(f64::INFINITY),
        }
    }
}

/// A bond, as the module tree describes it.
#[derive(Debug, Clone)]
pub struct Bond {
    /// The class name, with its argument if it has one.
    pub name: Arc<str>,
    /// An upper bound of the norm of the output's change for an input change of norm 1.
    pub sensitivity: f64,
    /// Second-order bounds.
    pub curvature: Curvature,
    /// The features of the input and output.
    pub signature: Signature,
    /// What is proved of it, whatever it declares.
    pub proof: Proof,
}

impl Bond {
    /// A bond that a user defines; `at_zero` is the norm of its output at an input of zero.
    pub fn new(name: &str, sensitivity: f64, curvature: Curvature, signature: Signature, at_zero: f64) -> Result<Self> {
        non_negative(&format!("sensitivity of {name}"), sensitivity)?;
        non_negative(&format!("at_zero of {name}"), at_zero)?;
        Ok(Bond { name: name.into(), sensitivity, curvature, signature, proof: Proof::declared(sensitivity, at_zero) })
    }

    /// The identity.
    pub fn identity() -> Self {
        Bond {
            name: "Identity".into(),
            sensitivity: 1.0,
            curvature: Curvature::Bounded(Sharpness::FLAT),
            signature: Signature::preserving(),
            proof: Proof::lipschitz(1.0),
        }
    }

    /// Multiplication by `a`, which must not be 0.
    pub fn mul(a: f64) -> Result<Self> {
        if a == 0.0 || !a.is_finite() {
            return Err(Error::Argument {
                what: "a scalar that multiplies a module".into(),
                expected: "finite and not 0",
                got: a.to_string(),
            });
        }
        Ok(Bond { name: format!("Mul({a})").into(), sensitivity: a.abs(), proof: Proof::lipschitz(a.abs()), ..Bond::identity() })
    }

    /// A bond of the library by its name. `argument` is the scalar of `Mul`, the scale of `Softmax` and of `FunctionalAttention`, the axis of
    /// `Mean` and of `MeanSubtract` (-1 if the last, else 0), the number of heads of `SplitIntoHeads`.
    pub fn builtin(name: &str, argument: Option<f64>) -> Result<Self> {
        use Curvature::{Bounded, Elementwise, Kinked};
        let flat = Bounded(Sharpness::FLAT);
        let curved = |gamma: f64| Bounded(Sharpness { gamma, ..Sharpness::FLAT });
        let var = Feature::Variable;
        let open = || Signature::sizes(None, None);
        let same = Signature::preserving;
        let (sensitivity, curvature, signature) = match name {
            "Identity" => return Ok(Bond::identity()),
            "Mul" => return Bond::mul(argument.unwrap_or(f64::NAN)),
            "Add" => (1.0, flat, Signature::new(Feature::Alike(Arc::new(var(0))), var(0), 1)),
            "Abs" | "ReLU" => (1.0, Kinked, same()),
            // max |tanh''| = 4 / (3 sqrt 3).
            "Tanh" => (1.0, Elementwise(4.0 / (3.0 * 3_f64.sqrt())), same()),
            "GELU" => (1.0, Elementwise(GELU_BEND / GELU_SLOPE), same()),
            // GELU without the division by its slope, for users who declare a sensitivity themselves.
            "UnscaledGELU" => (GELU_SLOPE, Elementwise(GELU_BEND), same()),
            // The largest slope, at 0, is 1/4; max |sigmoid''| = 1 / (6 sqrt 3).
            "Sigmoid" => (0.25, Elementwise(1.0 / (6.0 * 3_f64.sqrt())), same()),
            "MeanSubtract" => (1.0, flat, same()),
            // x / rms(x) at RMS >= 1: |d2f| = sin sqrt(4 - 3 sin^2) over the angle to x, at most 2 / sqrt 3.
            "RMSDivide" | "LayerNorm" => (1.0, curved(2.0 / 3_f64.sqrt()), same()),
            "Mean" if argument == Some(-1.0) => (1.0, flat, open()),
            "Mean" => (1.0, flat, same()),
            "AvgPool" | "Rope" | "CausalMask" => (1.0, flat, same()),
            "Flatten" | "SplitIntoHeads" | "MergeHeads" => (1.0, flat, open()),
            "Enumerate" => (1.0, flat, Signature::new(var(0), Feature::Tokens, 1)),
            // The input is measured by its largest entry, the output by its sum of absolute values:
            // |d2 p|_1 <= 2 Var_p(u) scale^2 <= 2 scale^2.
            "Softmax" => {
                let scale = argument.unwrap_or(1.0).abs();
                (scale, curved(2.0 * scale * scale), same())
            }
            // With |q| + |k| + |v| <= 1 the change of the scores, at most the change of (q, k) times |k| or |q|, moves the output by
            // |v| scale times as much, and |v| |k| <= 1/4. At scale 1 the second derivative is at most 3, and it grows with the square.
            "FunctionalAttention" => {
                let scale = argument.unwrap_or(1.0).abs();
                let qkv = Feature::Tuple([var(0), var(0), var(1)].into());
                ((scale / 4.0).max(1.0), curved(3.0 * (scale * scale).max(1.0)), Signature::new(qkv, var(1), 2))
            }
            // Scores are measured by the largest entry. The change of a product is |dq| |k| + |q| |dk|, with |q| + |k| <= 1.
            "AttentionQK" => (1.0, curved(1.0), Signature::new(Feature::Tuple([var(0), var(0)].into()), var(1), 2)),
            // Scores are measured by the sum of absolute values in a row.
            "ApplyAttentionScores" => (1.0, curved(1.0), Signature::new(Feature::Tuple([var(0), var(1)].into()), var(0), 2)),
            _ => return Err(Error::UnknownBond(name.into())),
        };
        let proof = Proof::of_bond(name, argument, sensitivity);
        let name = if name == "UnscaledGELU" { "GELU" } else { name };
        Ok(Bond { name: name.into(), sensitivity, curvature, signature, proof })
    }

    /// The bond with its sensitivity and its bounds replaced where the user declares others.
    pub fn declared(mut self, sensitivity: Option<f64>, sharpness: Option<Sharpness>) -> Result<Self> {
        if let Some(s) = sensitivity {
            self.sensitivity = non_negative(&format!("sensitivity of {}", self.name), s)?;
        }
        if let Some(s) = sharpness {
            self.curvature = Curvature::Bounded(s);
        }
        Ok(self)
    }

    /// Whether its second derivatives are bounded.
    pub fn smooth(&self) -> bool {
        match self.curvature {
            Curvature::Bounded(s) => s.gamma.is_finite(),
            Curvature::Elementwise(_) => true,
            Curvature::Kinked => false,
        }
    }
}
