//! Bounds on the derivatives of a tree: as its parts declare them, and as they are proved.
//!
//! One walk serves both. On the way down it finds the features and the size of the values that arrive at each part, in the order of the
//! data; on the way back up it composes the bounds. Stacks are on the heap, since a tree may be deeper than the thread's stack allows.

use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::feature::{Feature, Signature, Solver};
use crate::findings::{Findings, Place};
use crate::module::{Kind, Module};
use crate::paths::Paths;
use crate::reach::{Reaches, TOLERANCE};
use crate::sharpness::{Bounds, Sharpness};
use crate::{interrupt, memory};

/// An estimate of the memory that the walk takes for each part of a tree.
const BYTES_OF_A_PART: usize = 512;

/// The most parts of the types of all modules in a tree together: a type of many parts may pass through many modules.
const MAX_TYPES: u64 = 1 << 22;

/// What is proved of a module for inputs of RMS at most 1 and weights of a given norm in every atom.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// Bounds on the derivatives, in the modular norm.
    pub bounds: Bounds,
    /// The largest RMS of the output.
    pub output: f64,
    /// The path of each atom with the largest RMS that can arrive at it, input first; tokens count as 1.
    pub arrivals: Vec<(String, f64)>,
    /// The largest arrival at an atom that is trained; 0 if there is none.
    pub reach: f64,
    /// Where the module stops being well-normed for certain: different sentences, one for each place, input first.
    pub ends: Vec<String>,
    /// The first part without bounded derivatives, among those that trained weights act through.
    pub unbounded: Option<String>,
}

enum Step<'a> {
    /// Visit a module that is applied to these features.
    Visit(&'a Module, Signature, Place),
    /// Combine the bounds of this module's children, which lie on the value stack.
    Combine(&'a Module),
}

impl Module {
    /// Bounds on the second derivatives (alpha, beta, gamma), from what the parts declare. A bond whose bound depends on a number of
    /// features that is not known counts as infinitely sharp.
    pub fn sharpness(&self) -> Result<Sharpness> {
        Ok(walk(self, &mut None)?.sharpness)
    }

    /// What is proved for weights of a norm in every atom, or of these norms, one for each weight array. See [`Certificate`].
    pub fn certificate(&self, weight_norms: &[f64]) -> Result<Certificate> {
        if let Some(norm) = weight_norms.iter().find(|norm| !(norm.is_finite() && **norm >= 0.0)) {
            let (what, got) = ("weight_norm".into(), norm.to_string());
            return Err(Error::Argument { what, expected: "a finite number >= 0", got });
        }
        self.check_walkable()?;
        // One reach for each node serves all its copies, so it takes the largest weights.
        let reaches = Reaches::new(self, weight_norms.iter().copied().fold(0.0, f64::max));
        let weight_norms = weight_norms.to_vec();
        let output = reaches.of(self).of(1.0);
        let bounds = Bounds::IDENTITY;
        let certificate = Certificate { bounds, output, arrivals: Vec::new(), reach: 0.0, ends: Vec::new(), unbounded: None };
        let mut findings =
            Some(Findings { weight_norms, reaches, paths: Paths::default(), shared: HashMap::new(), leaves: 0, certificate });
        let bounds = walk(self, &mut findings)?;
        let certificate = findings.map(|findings| findings.certificate).expect("the walk keeps what it finds");
        Ok(Certificate { bounds, ..certificate })
    }

    /// Whether it is proved that inputs of RMS at most 1 and weights of norm at most 1 in every atom make the module well-normed.
    pub fn well_normed(&self) -> Result<bool> {
        Ok(self.keeps(&self.certificate(&[1.0])?))
    }

    /// Whether what is proved is as good as what the module declares.
    pub(crate) fn keeps(&self, proved: &Certificate) -> bool {
        let Bounds { sensitivity, gain, .. } = proved.bounds;
        gain <= 1.0 + TOLERANCE && sensitivity <= self.sensitivity() * (1.0 + TOLERANCE)
    }
}

fn walk(root: &Module, findings: &mut Option<Findings>) -> Result<Bounds> {
    root.check_walkable()?;
    memory::expect(root.node.parts as usize * BYTES_OF_A_PART);
    let place = Place { arriving: 1.0, live: true, after_weights: false, scope: 0 };
    let mut steps = vec![Step::Visit(root, root.node.signature.clone(), place)];
    let mut values = Vec::new();
    let mut types = 0;
    while let Some(step) = steps.pop() {
        interrupt::count(1);
        match step {
            Step::Visit(module, met, place) => {
                types += met.parts as u64;
                if types > MAX_TYPES {
                    return Err(Error::TooLarge { what: "the list of the types of all modules".into(), count: types, limit: MAX_TYPES });
                }
                visit(module, &met, place, findings, &mut steps, &mut values)?;
            }
            Step::Combine(module) => combine(module, findings.is_some(), &mut values),
        }
    }
    Ok(values.pop().unwrap_or(Bounds::IDENTITY))
}

fn visit<'a>(
    module: &'a Module,
    met: &Signature,
    mut place: Place,
    findings: &mut Option<Findings>,
    steps: &mut Vec<Step<'a>>,
    values: &mut Vec<Bounds>,
) -> Result<()> {
    place.live &= module.factor > 0.0;
    if let (Some(found), Some(name), false) = (findings.as_mut(), &module.name, matches!(module.node.kind, Kind::Atom(..))) {
        place.scope = found.paths.enter(place.scope, name);
    }
    let reach = |part: &Module| findings.as_ref().map(|found| found.reaches.of(part));
    match &module.node.kind {
        Kind::Atom(atom, _) => values.push(match findings {
            None => Bounds::well_normed(atom.kind.sensitivity(), atom.kind.sharpness()),
            Some(found) => found.atom(atom, module, place)?,
        }),
        Kind::Bond(bond, _) => values.push(match findings {
            None => Bounds::well_normed(bond.sensitivity, bond.curvature.on(met.in_features())),
            Some(found) => found.bond(bond, met.in_features(), place),
        }),
        Kind::Compose { outer, inner } => {
            let mut solver = Solver::default();
            let (input, output) = solver.instantiate(met);
            let (taken, middle) = solver.instantiate(&inner.node.signature);
            let (expected, given) = solver.instantiate(&outer.node.signature);
            let fits = solver.unify(&expected, &middle) && solver.unify(&taken, &input) && solver.unify(&given, &output);
            debug_assert!(fits, "composition has unified these already");
            let arriving = reach(inner).map_or(1.0, |reach| reach.of(place.arriving));
            let after_weights = place.after_weights || (place.live && inner.mass() > 0.0);
            steps.push(Step::Combine(module));
            steps.push(Step::Visit(outer, solver.signature(&expected, &given)?, Place { arriving, after_weights, ..place }));
            steps.push(Step::Visit(inner, solver.signature(&taken, &middle)?, place));
        }
        Kind::Tuple(members) => {
            steps.push(Step::Combine(module));
            for (index, member) in members.iter().enumerate().rev() {
                let output = match &met.output {
                    Feature::Tuple(outputs) => outputs[index].clone(),
                    other => other.clone(),
                };
                // The member gets type variables of its own. Otherwise each member would carry the variables of all members.
                steps.push(Step::Visit(member, Solver::default().signature(&met.input, &output)?, place));
            }
        }
        Kind::Power { block, times } => {
            let arriving = reach(block).map_or(1.0, |reach| reach.within_power(*times, place.arriving));
            let after_weights = place.after_weights || (place.live && *times > 1 && block.mass() > 0.0);
            steps.push(Step::Combine(module));
            steps.push(Step::Visit(block, met.clone(), Place { arriving, after_weights, ..place }));
        }
    }
    Ok(())
}

/// Replaces the bounds of a node's children on the stack, of which the child visited last is on top, by the bounds of the node.
fn combine(module: &Module, proven: bool, values: &mut Vec<Bounds>) {
    let mass = module.node.mass;
    let share = |part: &Module| if mass > 0.0 { part.mass() / mass } else { 0.0 };
    let mut pop = || values.pop().unwrap_or(Bounds::IDENTITY);
    let mut value = match &module.node.kind {
        Kind::Compose { outer, inner } => {
            let above = (pop(), outer.sensitivity(), share(outer));
            let below = (pop(), inner.sensitivity(), share(inner));
            Bounds::compose(above, below)
        }
        Kind::Tuple(members) => {
            // The bounds are summed in the order of the members, so another order of the members changes nothing but the rounding.
            let mut parts: Vec<_> = members.iter().rev().map(|member| (pop(), share(member))).collect();
            parts.reverse();
            Bounds::tuple(parts)
        }
        Kind::Power { block, times } => pop().power(block.sensitivity(), block.mass() > 0.0, *times),
        Kind::Atom(..) | Kind::Bond(..) => return,
    };
    if !proven {
        (value.sensitivity, value.gain) = (module.sensitivity(), 1.0);
    }
    values.push(value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::atom::{Atom, AtomKind};
    use crate::bond::Bond;

    fn linear(fanout: usize, fanin: usize) -> Module {
        Module::atom(Atom::new(AtomKind::Linear { fanout, fanin }, 1.0, None).unwrap(), None)
    }

    fn bond(name: &str) -> Module {
        Module::bond(Bond::builtin(name, None).unwrap(), None)
    }

    fn chain(parts: &[Module]) -> Module {
        parts[1..].iter().fold(parts[0].clone(), |outer, inner| outer.compose(inner).unwrap())
    }

    #[test]
    fn a_width_is_found_from_either_side() {
        let bend = 4.0 / (3.0 * 3_f64.sqrt()) * 10_f64.sqrt();
        let after = bond("Tanh").compose(&linear(10, 7)).unwrap();
        let before = linear(7, 10).compose(&bond("Tanh")).unwrap();
        assert!((after.sharpness().unwrap().gamma - bend).abs() < 1e-12);
        assert!((before.sharpness().unwrap().gamma - bend).abs() < 1e-12);
        assert_eq!(bond("Tanh").sharpness().unwrap().gamma, f64::INFINITY);
        let kink = bond("ReLU").compose(&linear(10, 7)).unwrap();
        assert!(!kink.node().smooth && kink.sharpness().unwrap().gamma == f64::INFINITY);
    }

    #[test]
    fn two_linears_bend_in_their_weights_only() {
        // f = W2 W1 x: d2f/dW1dW2 gives alpha = 2 p1 p2 beta2, beta = p1 + p2 at unit sensitivities.
        let m = linear(3, 4).compose(&linear(4, 5)).unwrap();
        assert_eq!(m.sharpness().unwrap(), Sharpness { alpha: 0.5, beta: 1.0, gamma: 0.0 });
    }

    #[test]
    fn what_is_declared_and_proved_agree_where_the_certificate_holds() {
        let block = chain(&[bond("Tanh"), linear(6, 6)]);
        let shrunk = block.scaled(0.25, None).unwrap();
        let m = chain(&[linear(3, 6), shrunk.power(5).unwrap(), linear(6, 5)]);
        let certificate = m.certificate(&[1.0]).unwrap();
        assert!(m.well_normed().unwrap() && certificate.ends.is_empty() && certificate.unbounded.is_none());
        let (declared, proved) = (m.sharpness().unwrap(), certificate.bounds.sharpness);
        assert!((declared.alpha - proved.alpha).abs() < 1e-9 * declared.alpha, "{declared:?} {proved:?}");
        assert_eq!(certificate.arrivals, [("linear".into(), 1.0), ("linear_1".into(), 1.0), ("linear_2".into(), 0.25_f64.powi(5))]);
    }

    #[test]
    fn the_certificate_says_where_it_ends() {
        let bias = || Module::atom(Atom::new(AtomKind::Bias { d: 4 }, 1.0, None).unwrap(), None);
        let m = chain(&[linear(4, 4), bias(), linear(4, 4)]);
        let certificate = m.certificate(&[1.0]).unwrap();
        assert_eq!(certificate.ends, ["linear_1 gets inputs of RMS up to 2"]);
        // The first two atoms have gain 1, the last 2: a third of the mass each.
        assert!((certificate.bounds.gain - 4.0 / 3.0).abs() < 1e-12 && !m.well_normed().unwrap());
        let kinked = chain(&[linear(4, 4), bond("ReLU"), linear(4, 4), bond("Abs")]);
        assert!(kinked.well_normed().unwrap());
        assert_eq!(kinked.certificate(&[1.0]).unwrap().unbounded.unwrap(), "ReLU: it has no second derivative");
        let divided = chain(&[linear(4, 4), bond("RMSDivide")]);
        assert_eq!(divided.certificate(&[1.0]).unwrap().ends, ["RMSDivide declares the sensitivity 1, but no bound is proved"]);
        // Nothing is trained before it, so that the sharpness stays finite.
        assert!(divided.certificate(&[1.0]).unwrap().unbounded.is_none());
    }

    #[test]
    fn larger_weights_reach_further() {
        let m = chain(&[linear(4, 4), linear(4, 4)]);
        let certificate = m.certificate(&[2.0]).unwrap();
        assert_eq!((certificate.output, certificate.reach, certificate.bounds.gain), (4.0, 2.0, 2.0));
        assert!(m.certificate(&[-1.0]).is_err() && m.certificate(&[f64::NAN]).is_err());
        // If each array has a norm of its own, the norms multiply.
        assert_eq!(m.certificate(&[2.0, 0.5]).unwrap().bounds.sensitivity, 1.0);
    }
}
