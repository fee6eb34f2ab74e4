//! Atoms: the modules that hold weights. A new atom is one entry here and one class in Python (`network/builtin_atoms.py`).

use std::sync::Arc;

use crate::error::{Error, Result, non_negative};
use crate::feature::{Feature, Signature};
use crate::sharpness::Sharpness;

/// How a block of weights is measured, and so how it is normalised and dualised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Geometry {
    /// A matrix, by its largest singular value.
    Spectral,
    /// A table, each row by its root mean square.
    RowRms,
    /// A vector, by its root mean square.
    Rms,
    /// A vector, by its largest entry.
    MaxAbs,
    /// A user's own atom, whose rules the core does not know.
    Custom,
}

impl Geometry {
    /// The geometries that the core knows how to measure.
    pub const ALL: [Geometry; 4] = [Geometry::Spectral, Geometry::RowRms, Geometry::Rms, Geometry::MaxAbs];

    /// The name that backends use.
    pub fn name(self) -> &'static str {
        match self {
            Geometry::Spectral => "spectral",
            Geometry::RowRms => "row_rms",
            Geometry::Rms => "rms",
            Geometry::MaxAbs => "max_abs",
            Geometry::Custom => "custom",
        }
    }
}

/// The kind of an atom, with its size.
#[derive(Debug, Clone, PartialEq)]
pub enum AtomKind {
    /// `x -> W x`, W of shape (fanout, fanin).
    Linear {
        /// Features out.
        fanout: usize,
        /// Features in.
        fanin: usize,
    },
    /// Token `i` to row `i` of a (num_embed, d_embed) table.
    Embed {
        /// Features out.
        d_embed: usize,
        /// Rows.
        num_embed: usize,
    },
    /// `x -> W x`, W of shape (num_embed, d_embed), measured by its rows: the largest logit is at most the norm times the RMS of x.
    Unembed {
        /// Features in.
        d_embed: usize,
        /// Features out.
        num_embed: usize,
    },
    /// Correlation with (kh, kw, out, in) taps, channels last.
    Conv2D {
        /// Channels out.
        out_channels: usize,
        /// Channels in.
        in_channels: usize,
        /// Height and width of the kernel.
        kernel: [usize; 2],
    },
    /// `x -> x + b`.
    Bias {
        /// Features.
        d: usize,
    },
    /// `x -> x * g`.
    Scale {
        /// Features.
        d: usize,
    },
    /// An atom that a user defines.
    Custom {
        /// The class name.
        name: Arc<str>,
        /// The shape of the weight.
        shape: Vec<usize>,
        /// The features of the input and output.
        signature: Signature,
        /// An upper bound of the norm of the output's change for an input change of norm 1.
        sensitivity: f64,
        /// The second-order bounds.
        sharpness: Sharpness,
        /// The norm of the output at an input of zero, for weights of norm at most 1.
        at_zero: f64,
    },
}

impl AtomKind {
    /// The class name.
    pub fn name(&self) -> &str {
        match self {
            AtomKind::Linear { .. } => "Linear",
            AtomKind::Embed { .. } => "Embed",
            AtomKind::Unembed { .. } => "Unembed",
            AtomKind::Conv2D { .. } => "Conv2D",
            AtomKind::Bias { .. } => "Bias",
            AtomKind::Scale { .. } => "Scale",
            AtomKind::Custom { name, .. } => name,
        }
    }

    /// The shape of one weight array.
    pub fn shape(&self) -> Vec<usize> {
        match *self {
            AtomKind::Linear { fanout, fanin } => vec![fanout, fanin],
            AtomKind::Embed { d_embed, num_embed } | AtomKind::Unembed { d_embed, num_embed } => vec![num_embed, d_embed],
            AtomKind::Conv2D { out_channels, in_channels, kernel: [kh, kw] } => vec![kh, kw, out_channels, in_channels],
            AtomKind::Bias { d } | AtomKind::Scale { d } => vec![d],
            AtomKind::Custom { ref shape, .. } => shape.clone(),
        }
    }

    /// How a block of the weight is measured.
    pub fn geometry(&self) -> Geometry {
        match self {
            AtomKind::Linear { .. } | AtomKind::Conv2D { .. } => Geometry::Spectral,
            AtomKind::Embed { .. } | AtomKind::Unembed { .. } => Geometry::RowRms,
            AtomKind::Bias { .. } => Geometry::Rms,
            AtomKind::Scale { .. } => Geometry::MaxAbs,
            AtomKind::Custom { .. } => Geometry::Custom,
        }
    }

    /// The weight as (blocks, rows, cols): each block is measured on its own.
    pub fn blocks(&self) -> [usize; 3] {
        match *self {
            AtomKind::Linear { fanout, fanin } => [1, fanout, fanin],
            AtomKind::Embed { d_embed, num_embed } | AtomKind::Unembed { d_embed, num_embed } => [1, num_embed, d_embed],
            AtomKind::Conv2D { out_channels, in_channels, kernel: [kh, kw] } => [kh * kw, out_channels, in_channels],
            AtomKind::Bias { d } | AtomKind::Scale { d } => [1, 1, d],
            AtomKind::Custom { ref shape, .. } => [1, 1, shape.iter().product()],
        }
    }

    /// The unit of the atom's norm, without a scale: the atom's norm is the largest geometric norm of a block, divided by this unit.
    pub fn unit(&self) -> f64 {
        let ratio = |out: usize, into: usize| if into == 0 { 0.0 } else { (out as f64 / into as f64).sqrt() };
        match *self {
            AtomKind::Linear { fanout, fanin } => ratio(fanout, fanin),
            AtomKind::Conv2D { out_channels, in_channels, kernel: [kh, kw] } => ratio(out_channels, in_channels) / (kh * kw).max(1) as f64,
            // |row . x| <= d RMS(row) RMS(x).
            AtomKind::Unembed { d_embed, .. } => {
                if d_embed == 0 {
                    0.0
                } else {
                    1.0 / d_embed as f64
                }
            }
            _ => 1.0,
        }
    }

    /// An upper bound of the norm of the output's change for an input change of norm 1.
    pub fn sensitivity(&self) -> f64 {
        match self {
            AtomKind::Custom { sensitivity, .. } => *sensitivity,
            _ => 1.0,
        }
    }

    /// Second-order bounds.
    pub fn sharpness(&self) -> Sharpness {
        match self {
            AtomKind::Custom { sharpness, .. } => *sharpness,
            // x + b is linear in (x, b) jointly.
            AtomKind::Bias { .. } => Sharpness::FLAT,
            _ => Sharpness::BILINEAR,
        }
    }

    /// The features of the input and output.
    pub fn signature(&self) -> Signature {
        match *self {
            AtomKind::Linear { fanout, fanin } => Signature::sizes(Some(fanin), Some(fanout)),
            AtomKind::Unembed { d_embed, num_embed } => Signature::sizes(Some(d_embed), Some(num_embed)),
            AtomKind::Embed { d_embed, .. } => Signature::new(Feature::Tokens, Feature::Size(d_embed), 0),
            AtomKind::Conv2D { out_channels, in_channels, .. } => Signature::sizes(Some(in_channels), Some(out_channels)),
            AtomKind::Bias { d } | AtomKind::Scale { d } => Signature::sizes(Some(d), Some(d)),
            AtomKind::Custom { ref signature, .. } => signature.clone(),
        }
    }
}

/// Refuses a weight of more numbers than an address counts, axes of 0 aside: products of its axes are taken without a check elsewhere.
fn countable(kind: &AtomKind) -> Result<()> {
    let shape = kind.shape();
    let numbers = shape.iter().filter(|&&axis| axis > 0).try_fold(1_usize, |numbers, &axis| numbers.checked_mul(axis));
    if numbers.is_some_and(|numbers| numbers <= isize::MAX as usize) {
        return Ok(());
    }
    let what = format!("the weight of {}", kind.name());
    Err(Error::Argument { what, expected: "of fewer than 2^63 numbers", got: format!("shape {shape:?}") })
}

/// An atom: its kind, its mass, and the name of the array that it shares with other atoms.
#[derive(Debug, Clone)]
pub struct Atom {
    /// The kind, with the size.
    pub kind: AtomKind,
    /// The mass before any tare: the atom's share of feature learning, in proportion to the other atoms.
    pub mass: f64,
    /// Atoms with the same name share one array.
    pub share: Option<Arc<str>>,
    /// The forward pass multiplies by this number, so that weights of norm 1 are smaller by it.
    pub scale: f64,
}

impl Atom {
    /// An atom; refused unless its mass and sensitivity are finite and at least 0, and its weight can be counted.
    pub fn new(kind: AtomKind, mass: f64, share: Option<Arc<str>>) -> Result<Self> {
        countable(&kind)?;
        non_negative(&format!("mass of {}", kind.name()), mass)?;
        non_negative(&format!("sensitivity of {}", kind.name()), kind.sensitivity())?;
        if let AtomKind::Custom { name, at_zero, .. } = &kind {
            non_negative(&format!("at_zero of {name}"), *at_zero)?;
        }
        Ok(Atom { kind, mass, share, scale: 1.0 })
    }

    /// The atom with a scale, which must be finite and not 0.
    pub fn scaled(self, scale: f64) -> Result<Self> {
        if scale.is_finite() && scale != 0.0 && (self.kind.unit() / scale).is_finite() {
            return Ok(Atom { scale, ..self });
        }
        let what = format!("scale of {}", self.kind.name());
        Err(Error::Argument { what, expected: "a finite number other than 0", got: scale.to_string() })
    }

    /// The geometric norm of a block of the weight at which the atom's norm is 1.
    pub fn unit(&self) -> f64 {
        self.kind.unit() / self.scale.abs()
    }
}
