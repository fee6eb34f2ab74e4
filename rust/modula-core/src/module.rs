//! The module tree: composition, and the quantities that are inferred as the tree is built.
//!
//! A module is a handle (a mass factor and a name) on a shared, immutable node. Composition clones handles, never nodes, and taring changes
//! the factor of one handle, so a module behaves as a value and costs as much as a pointer. Every walk of the tree keeps its stack on the
//! heap, because a tree may be too deep for the stack of a thread.

use std::any::Any;
use std::sync::Arc;

use crate::atom::Atom;
use crate::bond::Bond;
use crate::error::{Error, Result, mass_product, non_negative};
use crate::feature::{Feature, Signature, Solver};
use crate::memory;

/// Powers nested deeper than this are refused: each adds an axis to the weights, and arrays have at most 64 axes.
const MAX_POWER_DEPTH: usize = 32;

/// Trees of more parts are not walked: sharing makes them out of few lines, and a walk would take longer than anybody waits.
pub(crate) const MAX_PARTS: u64 = 1 << 20;

/// An estimate of the memory that a member of a tuple takes while its features are inferred.
const BYTES_OF_A_MEMBER: usize = 256;

/// An estimate of the memory that texts with a module's name take, such as messages of errors, for each byte of the name.
pub const TEXTS_OF_A_NAME: usize = 16;

/// An object that the caller attaches to an atom or a bond: in Python, the one that does its forward pass.
pub type Payload = Option<Arc<dyn Any + Send + Sync>>;

/// The kind of a node, with its parts.
pub enum Kind {
    /// A module with weights.
    Atom(Atom, Payload),
    /// A module without weights.
    Bond(Bond, Payload),
    /// `outer @ inner`.
    Compose {
        /// The module that is applied second.
        outer: Module,
        /// The module that is applied first.
        inner: Module,
    },
    /// Members that are all applied to one input.
    Tuple(Vec<Module>),
    /// A composition of copies.
    Power {
        /// The module that is copied.
        block: Module,
        /// The number of copies.
        times: u64,
    },
}

/// A node: its kind and the quantities inferred from its parts.
pub struct Node {
    /// The kind, with the parts of the node.
    pub kind: Kind,
    /// Total mass of the atoms in it, before the factors of the handles above are applied.
    pub mass: f64,
    /// An upper bound of the norm of the output's change for an input change of norm 1.
    pub sensitivity: f64,
    /// Number of atoms, counting every copy of a power.
    pub atoms: u64,
    /// Number of bonds, counting every copy of a power.
    pub bonds: u64,
    /// Whether second derivatives are bounded.
    pub smooth: bool,
    /// The features of its input and output.
    pub signature: Signature,
    /// Nodes that a walk of the tree meets: those of a power once, shared ones wherever they occur.
    pub(crate) parts: u64,
    power_depth: usize,
}

/// A module: a handle on a node that other modules may share.
#[derive(Clone)]
pub struct Module {
    pub(crate) node: Arc<Node>,
    pub(crate) factor: f64,
    pub(crate) name: Option<Arc<str>>,
}

impl From<Node> for Module {
    fn from(node: Node) -> Self {
        Module { node: Arc::new(node), factor: 1.0, name: None }
    }
}

impl Node {
    /// The module of a node whose mass is a number.
    fn module(self) -> Result<Module> {
        let mass = self.mass;
        let module = Module::from(self);
        if mass.is_finite() {
            return Ok(module);
        }
        Err(Error::MassRange { module: module.to_string(), reason: format!("those of its parts come to {mass}") })
    }
}

impl Module {
    /// An atom as a module.
    pub fn atom(atom: Atom, payload: Payload) -> Module {
        Node {
            mass: atom.mass,
            sensitivity: atom.kind.sensitivity(),
            atoms: 1,
            bonds: 0,
            smooth: atom.kind.sharpness().gamma.is_finite(),
            signature: atom.kind.signature(),
            parts: 1,
            power_depth: 0,
            kind: Kind::Atom(atom, payload),
        }
        .into()
    }

    /// A bond as a module.
    pub fn bond(bond: Bond, payload: Payload) -> Module {
        Node {
            mass: 0.0,
            sensitivity: bond.sensitivity,
            atoms: 0,
            bonds: 1,
            smooth: bond.smooth(),
            signature: bond.signature.clone(),
            parts: 1,
            power_depth: 0,
            kind: Kind::Bond(bond, payload),
        }
        .into()
    }

    /// `self @ inner`: `inner` is applied first, then `self`.
    pub fn compose(&self, inner: &Module) -> Result<Module> {
        let mut solver = Solver::default();
        let (input, given) = solver.instantiate(&inner.node.signature);
        let (taken, output) = solver.instantiate(&self.node.signature);
        if !solver.unify(&taken, &given) {
            return Err(Error::Features {
                outer: self.to_string(),
                inner: inner.to_string(),
                expected: self.node.signature.input.to_string(),
                got: inner.node.signature.output.to_string(),
            });
        }
        let (a, b) = (&self.node, &inner.node);
        Node {
            mass: self.mass() + inner.mass(),
            sensitivity: a.sensitivity * b.sensitivity,
            atoms: a.atoms.saturating_add(b.atoms),
            bonds: a.bonds.saturating_add(b.bonds),
            smooth: a.smooth && b.smooth,
            signature: solver.signature(&input, &output)?,
            parts: a.parts.saturating_add(b.parts).saturating_add(1),
            power_depth: a.power_depth.max(b.power_depth),
            kind: Kind::Compose { outer: self.clone(), inner: inner.clone() },
        }
        .module()
    }

    /// `(m1, m2, ...)`: all members are applied to the same input.
    pub fn tuple(members: Vec<Module>) -> Result<Module> {
        if members.is_empty() {
            return Err(Error::EmptyTuple);
        }
        memory::expect(members.len().saturating_mul(BYTES_OF_A_MEMBER));
        let mut solver = Solver::default();
        let mut outputs = Vec::with_capacity(members.len());
        let mut shared: Option<Feature> = None;
        for member in &members {
            let (input, output) = solver.instantiate(&member.node.signature);
            if let Some(shared) = &shared
                && !solver.unify(shared, &input)
            {
                return Err(Error::TupleInput {
                    member: member.to_string(),
                    expected: member.node.signature.input.to_string(),
                    got: solver.resolve(shared).to_string(),
                });
            }
            shared.get_or_insert(input);
            outputs.push(output);
        }
        let input = shared.unwrap_or(Feature::Tokens);
        Node {
            mass: members.iter().map(Module::mass).sum(),
            sensitivity: members.iter().map(Module::sensitivity).sum(),
            atoms: members.iter().fold(0, |n, m| n.saturating_add(m.node.atoms)),
            bonds: members.iter().fold(0, |n, m| n.saturating_add(m.node.bonds)),
            smooth: members.iter().all(|m| m.node.smooth),
            signature: solver.signature(&input, &Feature::Tuple(outputs.into()))?,
            parts: members.iter().fold(1, |n, m| n.saturating_add(m.node.parts)),
            power_depth: members.iter().map(|m| m.node.power_depth).max().unwrap_or(0),
            kind: Kind::Tuple(members),
        }
        .module()
    }

    /// `self ** times`: a composition of copies, each with weights of its own. `** 0` is the identity.
    pub fn power(&self, times: u64) -> Result<Module> {
        if times == 0 {
            return Ok(Module::bond(Bond::identity(), None));
        }
        let mut solver = Solver::default();
        let (input, output) = solver.instantiate(&self.node.signature);
        if !solver.unify(&input, &output) {
            return Err(Error::PowerFeatures {
                block: self.to_string(),
                input: self.node.signature.input.to_string(),
                output: self.node.signature.output.to_string(),
            });
        }
        let power_depth = self.node.power_depth + 1;
        if power_depth > MAX_POWER_DEPTH {
            return Err(Error::Nesting { what: "powers", limit: MAX_POWER_DEPTH });
        }
        let copies = times as f64;
        Node {
            mass: self.mass() * copies,
            sensitivity: self.node.sensitivity.powf(copies),
            atoms: self.node.atoms.saturating_mul(times),
            bonds: self.node.bonds.saturating_mul(times),
            smooth: self.node.smooth,
            signature: solver.signature(&input, &output)?,
            parts: self.node.parts.saturating_add(1),
            power_depth,
            kind: Kind::Power { block: self.clone(), times },
        }
        .module()
    }

    /// `a * self`: the output multiplied by a.
    pub fn scaled(&self, a: f64, payload: Payload) -> Result<Module> {
        Module::bond(Bond::mul(a)?, payload).compose(self)
    }

    /// `self * a`: the input multiplied by a.
    pub fn on_scaled(&self, a: f64, payload: Payload) -> Result<Module> {
        self.compose(&Module::bond(Bond::mul(a)?, payload))
    }

    /// The module with all masses in it rescaled so that their total is `absolute`.
    pub fn tare_absolute(&self, absolute: f64) -> Result<Module> {
        non_negative("the absolute mass of a tare", absolute)?;
        self.check_mass()?;
        let factor = absolute / self.node.mass;
        // A factor below the normal numbers has lost digits.
        if absolute == 0.0 || factor.is_normal() {
            return Ok(Module { factor, ..self.clone() });
        }
        let reason = format!("a tare from {:e} to {absolute:e} takes a factor of {factor:e}", self.node.mass);
        Err(Error::MassRange { module: self.to_string(), reason })
    }

    /// The module with all masses in it multiplied by `relative`.
    pub fn tare_relative(&self, relative: f64) -> Result<Module> {
        non_negative("the relative mass of a tare", relative)?;
        self.check_mass()?;
        let factor = mass_product(self.factor, relative, self)?;
        mass_product(self.node.mass, factor, self)?;
        Ok(Module { factor, ..self.clone() })
    }

    fn check_mass(&self) -> Result<()> {
        if self.mass() > 0.0 {
            return Ok(());
        }
        Err(Error::TareWithoutMass { module: self.to_string() })
    }

    /// The module under a name, which appears in the paths of its leaves.
    pub fn named(&self, name: &str) -> Result<Module> {
        memory::expect(name.len().saturating_mul(TEXTS_OF_A_NAME));
        if name.is_empty() || name.contains('/') {
            return Err(Error::Argument {
                what: "the name of a module".into(),
                expected: "a non-empty string without '/'",
                got: format!("{name:?}"),
            });
        }
        Ok(Module { name: Some(name.into()), ..self.clone() })
    }

    /// The mass: the share of feature learning that the module contributes to a module that contains it, in proportion to the other parts.
    pub fn mass(&self) -> f64 {
        self.node.mass * self.factor
    }

    /// An upper bound of the norm of the output's change for an input change of norm 1.
    pub fn sensitivity(&self) -> f64 {
        self.node.sensitivity
    }

    /// Refuses a tree that takes too long to walk.
    pub(crate) fn check_walkable(&self) -> Result<()> {
        if self.node.parts <= MAX_PARTS {
            return Ok(());
        }
        Err(Error::TooLarge { what: self.to_string(), count: self.node.parts, limit: MAX_PARTS })
    }

    /// The node that the handle points to.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// The name, if the module was given one.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }
}

/// Takes a deep tree apart with a stack on the heap, because the derived drop would recurse once for each level.
impl Drop for Node {
    fn drop(&mut self) {
        let mut stack = Vec::new();
        self.kind.release(&mut stack);
        while let Some(module) = stack.pop() {
            if let Some(mut node) = Arc::into_inner(module.node) {
                node.kind.release(&mut stack);
            }
        }
    }
}

impl Kind {
    /// Moves the children out, leaving a node that owns none.
    fn release(&mut self, stack: &mut Vec<Module>) {
        match self {
            Kind::Atom(..) | Kind::Bond(..) => {}
            Kind::Tuple(members) => {
                // Nothing here can be refused: members for which there is no room on the stack are never freed.
                match stack.try_reserve(members.len()) {
                    Ok(()) => stack.append(members),
                    Err(_) => std::mem::forget(std::mem::take(members)),
                }
            }
            Kind::Compose { .. } | Kind::Power { .. } => match std::mem::replace(self, Kind::Tuple(Vec::new())) {
                Kind::Compose { outer, inner } => stack.extend([outer, inner]),
                Kind::Power { block, .. } => stack.push(block),
                _ => {}
            },
        }
    }
}
