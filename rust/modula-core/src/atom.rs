//! Atoms: the modules that hold weights. A new atom is one entry here and one class in `atom.py`.

use std::sync::Arc;

use crate::error::{Result, non_negative};
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
    /// By rules the core does not know: a user's own atom.
    Custom,
}

impl Geometry {
    /// The geometries that the core knows how to measure.
    pub const ALL: [Geometry; 4] = [Geometry::Spectral, Geometry::RowRms, Geometry::Rms, Geometry::MaxAbs];

    /// The name backends know it by.
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

/// Which atom, and of what size.
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
    /// A user's own.
    Custom {
        /// Its class name.
        name: Arc<str>,
        /// The shape of its weight.
        shape: Vec<usize>,
        /// What it takes and gives.
        signature: Signature,
        /// How much its output moves per unit of input.
        sensitivity: f64,
        /// Its second-order bounds.
        sharpness: Sharpness,
    },
}

impl AtomKind {
    /// The class name.
    pub fn name(&self) -> &str {
        match self {
            AtomKind::Linear { .. } => "Linear",
            AtomKind::Embed { .. } => "Embed",
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
            AtomKind::Embed { d_embed, num_embed } => vec![num_embed, d_embed],
            AtomKind::Conv2D { out_channels, in_channels, kernel: [kh, kw] } => vec![kh, kw, out_channels, in_channels],
            AtomKind::Bias { d } | AtomKind::Scale { d } => vec![d],
            AtomKind::Custom { ref shape, .. } => shape.clone(),
        }
    }

    /// The norm's geometry.
    pub fn geometry(&self) -> Geometry {
        match self {
            AtomKind::Linear { .. } | AtomKind::Conv2D { .. } => Geometry::Spectral,
            AtomKind::Embed { .. } => Geometry::RowRms,
            AtomKind::Bias { .. } => Geometry::Rms,
            AtomKind::Scale { .. } => Geometry::MaxAbs,
            AtomKind::Custom { .. } => Geometry::Custom,
        }
    }

    /// The weight as (blocks, rows, cols): each block is measured on its own.
    pub fn blocks(&self) -> [usize; 3] {
        match *self {
            AtomKind::Linear { fanout, fanin } => [1, fanout, fanin],
            AtomKind::Embed { d_embed, num_embed } => [1, num_embed, d_embed],
            AtomKind::Conv2D { out_channels, in_channels, kernel: [kh, kw] } => [kh * kw, out_channels, in_channels],
            AtomKind::Bias { d } | AtomKind::Scale { d } => [1, 1, d],
            AtomKind::Custom { ref shape, .. } => [1, 1, shape.iter().product()],
        }
    }

    /// The geometric norm of a block at which the atom's norm is 1: the atom's norm is the largest block norm over this.
    pub fn unit(&self) -> f64 {
        let ratio = |out: usize, into: usize| if into == 0 { 0.0 } else { (out as f64 / into as f64).sqrt() };
        match *self {
            AtomKind::Linear { fanout, fanin } => ratio(fanout, fanin),
            AtomKind::Conv2D { out_channels, in_channels, kernel: [kh, kw] } => ratio(out_channels, in_channels) / (kh * kw).max(1) as f64,
            _ => 1.0,
        }
    }

    /// How much the output moves per unit of input.
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

    /// What it takes and gives.
    pub fn signature(&self) -> Signature {
        match *self {
            AtomKind::Linear { fanout, fanin } => Signature::sizes(Some(fanin), Some(fanout)),
            AtomKind::Embed { d_embed, .. } => Signature::new(Feature::Tokens, Feature::Size(d_embed), 0),
            AtomKind::Conv2D { out_channels, in_channels, .. } => Signature::sizes(Some(in_channels), Some(out_channels)),
            AtomKind::Bias { d } | AtomKind::Scale { d } => Signature::sizes(Some(d), Some(d)),
            AtomKind::Custom { ref signature, .. } => signature.clone(),
        }
    }
}

/// An atom: its kind, its mass, and the array it shares.
#[derive(Debug, Clone)]
pub struct Atom {
    /// Which atom.
    pub kind: AtomKind,
    /// Its share of feature learning, before any tare.
    pub mass: f64,
    /// Atoms of one name share one array.
    pub share: Option<Arc<str>>,
}

impl Atom {
    /// Checked: the mass and a custom sensitivity are finite and at least 0.
    pub fn new(kind: AtomKind, mass: f64, share: Option<Arc<str>>) -> Result<Self> {
        non_negative(&format!("mass of {}", kind.name()), mass)?;
        non_negative(&format!("sensitivity of {}", kind.name()), kind.sensitivity())?;
        Ok(Atom { kind, mass, share })
    }
}
