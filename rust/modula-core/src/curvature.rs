//! The sharpness of a tree: a walk down finds the features that each bond is applied to, the way back up composes the bounds.

use crate::error::Result;
use crate::feature::{Feature, Signature, Solver};
use crate::memory;
use crate::module::{Kind, Module};
use crate::sharpness::Sharpness;

/// An estimate of the memory that the walk takes for each part of a tree.
const BYTES_OF_A_PART: usize = 256;

enum Step<'a> {
    /// Visit a module that is applied to these features.
    Visit(&'a Module, Signature),
    /// Combine the bounds of this module's children, which lie on the value stack.
    Combine(&'a Module),
}

impl Module {
    /// Bounds on the second derivatives (alpha, beta, gamma). A bond whose bound depends on a number of features that is not known counts
    /// as infinitely sharp.
    pub fn sharpness(&self) -> Result<Sharpness> {
        self.check_walkable()?;
        memory::expect(self.node.parts as usize * BYTES_OF_A_PART);
        let mut steps = vec![Step::Visit(self, self.node.signature.clone())];
        let mut values = Vec::new();
        while let Some(step) = steps.pop() {
            match step {
                Step::Visit(module, met) => visit(module, &met, &mut steps, &mut values)?,
                Step::Combine(module) => combine(module, &mut values),
            }
        }
        Ok(values.pop().unwrap_or(Sharpness::FLAT))
    }
}

fn visit<'a>(module: &'a Module, met: &Signature, steps: &mut Vec<Step<'a>>, values: &mut Vec<Sharpness>) -> Result<()> {
    match &module.node.kind {
        Kind::Atom(atom, _) => values.push(atom.kind.sharpness()),
        Kind::Bond(bond, _) => values.push(bond.curvature.on(met.in_features())),
        Kind::Compose { outer, inner } => {
            let mut solver = Solver::default();
            let (input, output) = solver.instantiate(met);
            let (taken, middle) = solver.instantiate(&inner.node.signature);
            let (expected, given) = solver.instantiate(&outer.node.signature);
            let fits = solver.unify(&expected, &middle) && solver.unify(&taken, &input) && solver.unify(&given, &output);
            debug_assert!(fits, "composition has unified these already");
            steps.push(Step::Combine(module));
            steps.push(Step::Visit(inner, solver.signature(&taken, &middle)?));
            steps.push(Step::Visit(outer, solver.signature(&expected, &given)?));
        }
        Kind::Tuple(members) => {
            steps.push(Step::Combine(module));
            for (index, member) in members.iter().enumerate() {
                let output = match &met.output {
                    Feature::Tuple(outputs) => outputs[index].clone(),
                    other => other.clone(),
                };
                // With variables of its own: each would carry those of all members.
                steps.push(Step::Visit(member, Solver::default().signature(&met.input, &output)?));
            }
        }
        Kind::Power { block, .. } => {
            steps.push(Step::Combine(module));
            steps.push(Step::Visit(block, met.clone()));
        }
    }
    Ok(())
}

/// Replaces the bounds of a node's children on the stack, of which the child visited last is on top, by the bounds of the node.
fn combine(module: &Module, values: &mut Vec<Sharpness>) {
    let mass = module.node.mass;
    let share = |part: &Module| if mass > 0.0 { part.mass() / mass } else { 0.0 };
    let mut pop = || values.pop().unwrap_or(Sharpness::FLAT);
    let value = match &module.node.kind {
        Kind::Compose { outer, inner } => {
            let below = (pop(), inner.sensitivity(), share(inner));
            let above = (pop(), outer.sensitivity(), share(outer));
            Sharpness::compose(above, below)
        }
        Kind::Tuple(members) => Sharpness::tuple(members.iter().map(|member| (pop(), share(member)))),
        Kind::Power { block, times } => pop().power(block.sensitivity(), block.mass() > 0.0, *times),
        Kind::Atom(..) | Kind::Bond(..) => return,
    };
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
}
