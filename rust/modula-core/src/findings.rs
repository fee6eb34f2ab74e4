//! What a certificate says of each part of a tree, in words: how large its inputs become, and where a promise ends.

use std::collections::HashMap;
use std::sync::Arc;

use crate::atom::{Atom, AtomKind};
use crate::bond::{Bond, Curvature};
use crate::certificate::Certificate;
use crate::error::Result;
use crate::module::Module;
use crate::paths::Paths;
use crate::reach::{Proof, Reaches, TOLERANCE, gain};
use crate::sharpness::Bounds;

/// Reasons beyond this number are left out.
const MAX_REASONS: usize = 100;

impl Bond {
    /// Whether the bond declares a smaller sensitivity than is proved for inputs of RMS at most `r`.
    pub(crate) fn estimated(&self, r: f64) -> bool {
        self.proof.sensitivity * self.proof.growth(r).0 > self.sensitivity * (1.0 + TOLERANCE)
    }
}

/// Where a module stands: what lies between the root and it.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    /// The largest RMS that arrives.
    pub arriving: f64,
    /// No mass factor above the module is zero.
    pub live: bool,
    /// Trained weights act through it.
    pub after_weights: bool,
    pub scope: usize,
}

/// What is proved, as far as the walk has come. A walk over what is declared has none.
pub(crate) struct Findings {
    pub weight_norms: Vec<f64>,
    pub reaches: Reaches,
    pub paths: Paths,
    pub shared: HashMap<Arc<str>, (String, usize)>,
    pub leaves: usize,
    pub certificate: Certificate,
}

impl Findings {
    pub fn atom(&mut self, atom: &Atom, module: &Module, place: Place) -> Result<Bounds> {
        let r = place.arriving;
        let kind = &atom.kind;
        let known = atom.share.as_ref().and_then(|share| self.shared.get(share).cloned());
        let (path, leaf) = match known {
            Some(known) => known,
            None => {
                self.leaves += 1;
                (self.paths.leaf(place.scope, module.name(), kind.name())?, self.leaves - 1)
            }
        };
        if let Some(share) = &atom.share {
            self.shared.insert(share.clone(), (path.clone(), leaf));
        }
        // One norm stands for all leaves.
        let weight_norm = self.weight_norms.get(leaf).or(self.weight_norms.first()).copied().unwrap_or(1.0);
        let (proof, trained) = (Proof::of_atom(kind, weight_norm), place.live && atom.mass > 0.0);
        let (grown, bent) = proof.growth(r);
        let bounds = Bounds { sensitivity: proof.sensitivity * grown, gain: gain(kind, r), sharpness: kind.sharpness().grown(bent) };
        let arrives = if matches!(kind, AtomKind::Embed { .. }) { 1.0 } else { r };
        if trained {
            self.certificate.reach = self.certificate.reach.max(arrives);
            if bounds.gain > 1.0 + TOLERANCE {
                self.end(format!("{path} gets inputs of RMS up to {}", short(r)));
            }
        }
        if bounds.sensitivity > kind.sensitivity() * (1.0 + TOLERANCE) {
            self.end(format!("{path} has a sensitivity of up to {}, not {}", short(bounds.sensitivity), short(kind.sensitivity())));
        }
        if !bounds.sharpness.alpha.is_finite() || !bounds.sharpness.beta.is_finite() || !bounds.sensitivity.is_finite() {
            self.unbounded(&path, "its author bounds no second derivatives for such weights and inputs");
        }
        self.certificate.arrivals.push((path, arrives));
        Ok(bounds)
    }

    pub fn bond(&mut self, bond: &Bond, features: Option<usize>, place: Place) -> Bounds {
        let r = place.arriving;
        let (grown, bent) = bond.proof.growth(r);
        let sensitivity = bond.proof.sensitivity * grown;
        let sharpness = bond.curvature.on(features).grown(bent);
        let scope = self.paths.short(place.scope);
        let name = if scope.is_empty() { bond.name.to_string() } else { format!("{scope}/{}", bond.name) };
        if bond.estimated(r) {
            let proved = if sensitivity.is_finite() { format!("{} is proved", short(sensitivity)) } else { "no bound is proved".into() };
            let size = if r > 1.0 + TOLERANCE && bond.proof.degree > 0.0 {
                format!(" for inputs of norm up to {}", short(r))
            } else {
                String::new()
            };
            self.end(format!("{name} declares the sensitivity {}, but {proved}{size}", short(bond.sensitivity)));
        }
        if place.after_weights && !(sharpness.gamma.is_finite() && sensitivity.is_finite()) {
            let why = match bond.curvature {
                _ if !sensitivity.is_finite() => "its output moves without bound",
                Curvature::Kinked => "it has no second derivative",
                Curvature::Elementwise(_) => "its curvature grows with the number of features, which is not known here",
                Curvature::Bounded(_) => "its second derivative is not bounded",
            };
            self.unbounded(&name, why);
        }
        Bounds { sensitivity, gain: 1.0, sharpness }
    }

    fn end(&mut self, reason: String) {
        if self.certificate.ends.len() < MAX_REASONS && !self.certificate.ends.contains(&reason) {
            self.certificate.ends.push(reason);
        }
    }

    fn unbounded(&mut self, name: &str, why: &str) {
        self.certificate.unbounded.get_or_insert_with(|| format!("{name}: {why}"));
    }
}

/// A number with four digits.
pub(crate) fn short(x: f64) -> String {
    if x == 0.0 || !x.is_finite() {
        return x.to_string();
    }
    let digits = (3 - x.abs().log10().floor() as i32).clamp(0, 12) as usize;
    let fixed = format!("{x:.digits$}");
    if fixed.contains('.') { fixed.trim_end_matches('0').trim_end_matches('.').to_owned() } else { fixed }
}
