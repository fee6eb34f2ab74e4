//! Types of the values that flow between modules: what a module takes and gives, inferred by unification.
//!
//! A module is well formed if each part gets the features that it takes. Parts that accept any features (`Abs`, `Identity`) have type
//! variables, so `Linear(4, 8) @ Abs() @ Linear(16, 3)` is refused where it is written, not in the forward pass.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::{interrupt, memory};

/// Nested tuples deeper than this are refused: no network has them, and types would grow without bound.
const MAX_TUPLE_DEPTH: usize = 64;

/// Types of more parts are refused: nested tuples of shared members double in size with every level.
const MAX_TYPE_PARTS: usize = 1 << 20;

/// An estimate of the memory that a part of a type takes, in the copies that a solver makes.
const BYTES_OF_A_PART: usize = 256;

/// Parts of a type that messages show.
const MAX_SHOWN: usize = 16;

/// The features of one value that flows between modules.
#[derive(Debug, Clone, PartialEq)]
pub enum Feature {
    /// Not known yet; variables with equal numbers stand for equal features.
    Variable(u32),
    /// The size of the last axis.
    Size(usize),
    /// Integer indices, which have no feature axis.
    Tokens,
    /// One value for each member.
    Tuple(Arc<[Feature]>),
    /// A tuple of any width whose members are all alike.
    Alike(Arc<Feature>),
}

/// The features in words; of a type with many parts only the first.
impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, &mut MAX_SHOWN.clone())
    }
}

impl Feature {
    fn write(&self, f: &mut fmt::Formatter<'_>, left: &mut usize) -> fmt::Result {
        *left = left.saturating_sub(1);
        match self {
            Feature::Variable(_) => write!(f, "any features"),
            Feature::Size(1) => write!(f, "1 feature"),
            Feature::Size(size) => write!(f, "{size} features"),
            Feature::Tokens => write!(f, "integer tokens"),
            Feature::Alike(member) => {
                write!(f, "a tuple, each ")?;
                member.write(f, left)
            }
            Feature::Tuple(members) => {
                write!(f, "a tuple of (")?;
                for (index, member) in members.iter().enumerate() {
                    if index > 0 {
                        write!(f, ", ")?;
                    }
                    if *left == 0 {
                        write!(f, "... {} more", members.len() - index)?;
                        break;
                    }
                    member.write(f, left)?;
                }
                write!(f, ")")
            }
        }
    }
}

/// What a module takes and gives; `variables` counts the type variables in both.
#[derive(Debug, Clone, PartialEq)]
pub struct Signature {
    /// The features it takes.
    pub input: Feature,
    /// The features it gives.
    pub output: Feature,
    /// Variables are numbered below this.
    pub variables: u32,
    /// Parts of both types, those of nested tuples counted: what a copy costs.
    pub(crate) parts: usize,
}

impl Signature {
    /// A signature with given sizes; `None` is a size that is not known.
    pub fn sizes(input: Option<usize>, output: Option<usize>) -> Self {
        let mut variables = 0;
        let mut side = |size: Option<usize>| match size {
            Some(size) => Feature::Size(size),
            None => {
                variables += 1;
                Feature::Variable(variables - 1)
            }
        };
        let (input, output) = (side(input), side(output));
        Signature::new(input, output, variables)
    }

    /// The signature of a module whose output has the features of its input.
    pub fn preserving() -> Self {
        Signature::new(Feature::Variable(0), Feature::Variable(0), 1)
    }

    /// A signature from its two sides, which are few parts.
    pub fn new(input: Feature, output: Feature, variables: u32) -> Self {
        Signature { input, output, variables, parts: 2 }
    }

    /// The size of the input's last axis, where it is known.
    pub fn in_features(&self) -> Option<usize> {
        known(&self.input)
    }

    /// The size of the output's last axis, where it is known.
    pub fn out_features(&self) -> Option<usize> {
        known(&self.output)
    }
}

fn known(feature: &Feature) -> Option<usize> {
    match feature {
        Feature::Size(size) => Some(*size),
        _ => None,
    }
}

/// A set of equations between features, solved as they are added.
#[derive(Debug, Default)]
pub struct Solver {
    bindings: Vec<Option<Feature>>,
}

impl Solver {
    /// The two sides of `signature`, with fresh variables of this solver.
    pub fn instantiate(&mut self, signature: &Signature) -> (Feature, Feature) {
        expect(signature.parts);
        let offset = self.bindings.len() as u32;
        self.bindings.resize(self.bindings.len() + signature.variables as usize, None);
        (shift(&signature.input, offset), shift(&signature.output, offset))
    }

    /// Adds the equation `a == b`. False if it contradicts the equations before it.
    pub fn unify(&mut self, a: &Feature, b: &Feature) -> bool {
        let (a, b) = (self.head(a), self.head(b));
        match (&a, &b) {
            (Feature::Variable(i), Feature::Variable(j)) if i == j => true,
            // The younger is bound to the older, so that many bound to one are each a step away from it.
            (Feature::Variable(i), Feature::Variable(j)) => {
                self.bindings[*i.max(j) as usize] = Some(Feature::Variable(*i.min(j)));
                true
            }
            (Feature::Variable(i), other) | (other, Feature::Variable(i)) => {
                if self.occurs(*i, other) {
                    return false;
                }
                self.bindings[*i as usize] = Some(other.clone());
                true
            }
            (Feature::Size(x), Feature::Size(y)) => x == y,
            (Feature::Tokens, Feature::Tokens) => true,
            (Feature::Tuple(xs), Feature::Tuple(ys)) => xs.len() == ys.len() && xs.iter().zip(ys.iter()).all(|(x, y)| self.unify(x, y)),
            (Feature::Tuple(members), Feature::Alike(each)) | (Feature::Alike(each), Feature::Tuple(members)) => {
                members.iter().all(|member| self.unify(member, each))
            }
            (Feature::Alike(x), Feature::Alike(y)) => self.unify(x, y),
            _ => false,
        }
    }

    /// `feature` with every solved variable replaced by its value.
    pub fn resolve(&self, feature: &Feature) -> Feature {
        match self.head(feature) {
            Feature::Tuple(members) => Feature::Tuple(members.iter().map(|member| self.resolve(member)).collect()),
            Feature::Alike(each) => Feature::Alike(Arc::new(self.resolve(&each))),
            other => other,
        }
    }

    /// The solved signature, its remaining variables renumbered from 0.
    pub fn signature(&self, input: &Feature, output: &Feature) -> Result<Signature> {
        let mut parts = 0;
        self.measure(input, 0, &mut parts)?;
        self.measure(output, 0, &mut parts)?;
        expect(parts);
        let mut names = HashMap::new();
        let mut renumbered = |feature: &Feature| {
            map_variables(&self.resolve(feature), &mut |i| {
                let next = names.len() as u32;
                *names.entry(i).or_insert(next)
            })
        };
        let (input, output) = (renumbered(input), renumbered(output));
        Ok(Signature { input, output, variables: names.len() as u32, parts })
    }

    /// Counts the parts of a feature, and refuses one that is too large before it is written out.
    fn measure(&self, feature: &Feature, depth: usize, parts: &mut usize) -> Result<()> {
        if depth > MAX_TUPLE_DEPTH {
            return Err(Error::Nesting { what: "tuples", limit: MAX_TUPLE_DEPTH });
        }
        *parts += 1;
        if *parts > MAX_TYPE_PARTS {
            return Err(Error::TooLarge { what: "a tuple type".into(), count: *parts as u64, limit: MAX_TYPE_PARTS as u64 });
        }
        match self.head(feature) {
            Feature::Tuple(members) => members.iter().try_for_each(|member| self.measure(member, depth + 1, parts)),
            Feature::Alike(each) => self.measure(&each, depth + 1, parts),
            _ => Ok(()),
        }
    }

    fn head(&self, feature: &Feature) -> Feature {
        let mut feature = feature;
        while let Feature::Variable(i) = feature {
            match self.bindings.get(*i as usize) {
                Some(Some(bound)) => feature = bound,
                _ => break,
            }
        }
        feature.clone()
    }

    fn occurs(&self, variable: u32, feature: &Feature) -> bool {
        match self.head(feature) {
            Feature::Variable(other) => other == variable,
            Feature::Tuple(members) => members.iter().any(|member| self.occurs(variable, member)),
            Feature::Alike(each) => self.occurs(variable, &each),
            Feature::Size(_) | Feature::Tokens => false,
        }
    }
}

/// Call this before copies of types of so many parts are made. It stops the computation if there is no memory for a few of them; small types
/// are not worth the question.
fn expect(parts: usize) {
    interrupt::count(parts);
    if parts > 1000 {
        memory::expect(parts * BYTES_OF_A_PART);
    }
}

fn shift(feature: &Feature, offset: u32) -> Feature {
    map_variables(feature, &mut |i| i + offset)
}

fn map_variables(feature: &Feature, rename: &mut impl FnMut(u32) -> u32) -> Feature {
    match feature {
        Feature::Variable(i) => Feature::Variable(rename(*i)),
        Feature::Size(size) => Feature::Size(*size),
        Feature::Tokens => Feature::Tokens,
        Feature::Tuple(members) => Feature::Tuple(members.iter().map(|member| map_variables(member, rename)).collect()),
        Feature::Alike(each) => Feature::Alike(Arc::new(map_variables(each, rename))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compose(outer: &Signature, inner: &Signature) -> Option<Signature> {
        let mut solver = Solver::default();
        let (input, middle) = solver.instantiate(inner);
        let (taken, output) = solver.instantiate(outer);
        solver.unify(&taken, &middle).then(|| solver.signature(&input, &output).unwrap())
    }

    #[test]
    fn sizes_flow_both_ways_through_a_preserving_part() {
        let linear = Signature::sizes(Some(8), Some(4));
        let open = Signature::preserving();
        let after = compose(&open, &linear).unwrap();
        let before = compose(&linear, &open).unwrap();
        assert_eq!((after.in_features(), after.out_features()), (Some(8), Some(4)));
        assert_eq!((before.in_features(), before.out_features()), (Some(8), Some(4)));
        assert!(compose(&linear, &after).is_none());
    }

    #[test]
    fn a_sum_binds_its_members_to_each_other() {
        let add = Signature::new(Feature::Alike(Arc::new(Feature::Variable(0))), Feature::Variable(0), 1);
        let pair = Signature::new(Feature::Size(8), Feature::Tuple([Feature::Size(8), Feature::Size(4)].into()), 0);
        assert!(compose(&add, &pair).is_none());
    }

    #[test]
    fn a_variable_inside_itself_is_refused() {
        let mut solver = Solver::default();
        let (x, _) = solver.instantiate(&Signature::preserving());
        assert!(!solver.unify(&x, &Feature::Tuple([x.clone(), x.clone()].into())));
    }
}
