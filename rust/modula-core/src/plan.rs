//! The plan: a tree flattened once into leaves, their targets, and a straight-line program for the forward pass.

use std::collections::HashMap;
use std::sync::Arc;

use crate::atom::{Atom, AtomKind, Geometry};
use crate::error::{Error, Result, mass_product};
use crate::memory;
use crate::module::{Kind, Module, Payload};
use crate::paths::Paths;

/// More copies than this are not listed one by one: their targets alone would fill the memory, and running out of it ends the process.
const MAX_LISTED: u64 = 100_000_000;

/// What a plan takes for each part of its tree, with some to spare.
const BYTES_OF_A_PART: usize = 512;

/// Atoms are listed with their names, which takes some hundred times the memory of a target.
const MAX_VISITED: u64 = 1 << 20;

fn listable(what: &str, count: u64, limit: u64) -> Result<()> {
    if count <= limit {
        return Ok(());
    }
    Err(Error::TooMany { what: what.into(), count, limit })
}

/// One power around an atom: how many copies, and how much one copy moves per unit of its input.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Axis {
    /// Copies.
    pub times: u64,
    /// Sensitivity of one copy.
    pub sensitivity: f64,
}

/// One atom of the tree, standing for all its copies in powers.
#[derive(Debug, Clone)]
pub struct Use {
    /// The weight array it reads.
    pub leaf: usize,
    /// Which atom, and of what size.
    pub kind: AtomKind,
    /// Mass of one copy, tares included.
    pub mass: f64,
    /// The powers around it, outermost first.
    pub axes: Arc<[Axis]>,
    /// mass / total mass.
    share: f64,
    /// Product of the sensitivities after it, without those of later copies in its powers.
    after: f64,
}

impl Use {
    /// Copies in all.
    pub fn copies(&self) -> u64 {
        self.axes.iter().fold(1, |n, axis| n.saturating_mul(axis.times))
    }

    /// The target norm of the copy at `index` (one number for each axis, 0 nearest the input).
    pub fn target(&self, index: &[u64], target_norm: f64, path: &str) -> Result<f64> {
        let later = self.axes.iter().zip(index).map(|(axis, &i)| axis.sensitivity.powf((axis.times - 1 - i) as f64));
        self.over(later.product(), target_norm, path)
    }

    /// The smallest target norm of any copy: what binds an array shared by all of them.
    pub fn smallest_target(&self, target_norm: f64, path: &str) -> Result<f64> {
        let later = self.axes.iter().map(|axis| axis.sensitivity.powf((axis.times - 1) as f64).max(1.0));
        self.over(later.product(), target_norm, path)
    }

    /// The target norms of all copies, in C order of the stack.
    pub fn targets(&self, target_norm: f64, path: &str) -> Result<Vec<f64>> {
        listable(path, self.copies(), MAX_LISTED)?;
        let mut targets = vec![self.over(1.0, target_norm, path)?];
        for axis in self.axes.iter().rev() {
            let block = targets;
            targets = memory::room(block.len().saturating_mul(axis.times as usize));
            for i in 0..axis.times {
                let later = axis.sensitivity.powf((axis.times - 1 - i) as f64);
                for &target in &block {
                    targets.push(representable(target / later, target == 0.0, self.after * later, path)?);
                }
            }
        }
        Ok(targets)
    }

    fn over(&self, later: f64, target_norm: f64, path: &str) -> Result<f64> {
        if self.share == 0.0 {
            return Ok(0.0);
        }
        representable(target_norm * self.share / (self.after * later), target_norm == 0.0, self.after * later, path)
    }
}

/// A target that double precision holds: finite, and 0 only if it `is_zero`.
fn representable(target: f64, is_zero: bool, sensitivity: f64, path: &str) -> Result<f64> {
    match target {
        _ if is_zero => Ok(0.0),
        0.0 => Err(Error::VanishingTarget { path: path.into(), sensitivity }),
        target if target.is_finite() => Ok(target),
        _ => Err(Error::InfiniteTarget { path: path.into(), sensitivity }),
    }
}

/// One weight array.
#[derive(Debug, Clone)]
pub struct Leaf {
    /// Where it stands, like `blocks/attention/q`.
    pub path: String,
    /// The atoms that read it, the first in the order of the data first; more than one if it is shared.
    pub uses: Vec<usize>,
    /// Leading axes of the array: one for each power around it, none if it is shared.
    pub stack: Vec<usize>,
    /// Atoms it serves, counting copies.
    pub copies: u64,
    /// The mass of all of them.
    pub mass: f64,
}

/// One step of the forward pass on a value `x`.
#[derive(Clone)]
pub enum Op {
    /// `x = atom(x, weights[leaf])`.
    Atom {
        /// Index into [`Plan::uses`].
        index: usize,
        /// What the tree carries for it.
        payload: Payload,
    },
    /// `x = bond(x)`.
    Bond(Payload),
    /// Remember `x` for every member of a tuple.
    Fork,
    /// Put `x` aside as a member's output and take the remembered input again.
    Next,
    /// Put `x` aside as the last output; `x` becomes the tuple of so many.
    Join(usize),
    /// Run the next `length` steps `times` times, each time on the next copy of their weights.
    Repeat {
        /// Copies.
        times: u64,
        /// Steps.
        length: usize,
        /// The norm that an update of the whole power has, in the norm of the power itself, if that of the tree is 1.
        target: f64,
    },
}

/// A tree, flattened.
#[derive(Clone)]
pub struct Plan {
    /// One row for each weight array, in the order of the data.
    pub leaves: Vec<Leaf>,
    /// One row for each atom of the tree.
    pub uses: Vec<Use>,
    /// The forward pass.
    pub program: Vec<Op>,
}

/// Where a walk stands: what it has met on the way down.
#[derive(Clone)]
struct Context {
    factor: f64,
    after: f64,
    axes: Arc<[Axis]>,
    scope: usize,
}

enum Step<'a> {
    Enter(&'a Module, Context),
    Emit(Op),
    /// The body of the `Repeat` at this place of the program ends here.
    Close(usize),
}

impl Plan {
    /// Flattens `module`, without recursion: it may be deeper than the thread's stack.
    pub fn new(module: &Module) -> Result<Plan> {
        module.check_walkable()?;
        memory::expect(module.node.parts as usize * BYTES_OF_A_PART);
        let mut builder = Builder { total: module.mass(), ..Builder::default() };
        let root = Context { factor: 1.0, after: 1.0, axes: Arc::new([]), scope: 0 };
        let mut stack = vec![Step::Enter(module, root)];
        while let Some(step) = stack.pop() {
            match step {
                Step::Emit(op) => builder.program.push(op),
                Step::Close(start) => {
                    let end = builder.program.len();
                    if let Op::Repeat { length, .. } = &mut builder.program[start] {
                        *length = end - start - 1;
                    }
                }
                Step::Enter(module, context) => builder.enter(module, context, &mut stack)?,
            }
        }
        Ok(Plan { leaves: builder.leaves, uses: builder.uses, program: builder.program })
    }

    /// The atom that decides how a leaf is drawn and which norm its updates fill: its first use that has mass, or else its first.
    pub fn lead(&self, leaf: &Leaf) -> &Use {
        let uses = leaf.uses.iter().map(|&index| &self.uses[index]);
        uses.clone().find(|each| each.share > 0.0).or_else(|| uses.clone().next()).expect("a leaf has a use")
    }

    /// The target of every block of a leaf's lead: one number for each copy in the stack.
    pub fn lead_targets(&self, leaf: &Leaf, target_norm: f64) -> Result<Vec<f64>> {
        let lead = self.lead(leaf);
        if leaf.stack.len() == lead.axes.len() {
            return lead.targets(target_norm, &leaf.path);
        }
        Ok(vec![lead.smallest_target(target_norm, &leaf.path)?])
    }

    /// The uses of a shared leaf that bind it besides its lead: (use, smallest target), without those of mass 0.
    pub fn other_uses(&self, leaf: &Leaf, target_norm: f64) -> Result<Vec<(&Use, f64)>> {
        let lead = self.lead(leaf);
        let others = leaf.uses.iter().map(|&index| &self.uses[index]);
        others
            .filter(|each| !std::ptr::eq(*each, lead) && each.share > 0.0)
            .map(|each| Ok((each, each.smallest_target(target_norm, &leaf.path)?)))
            .collect()
    }

    /// Atoms, counting every copy of a power, if they are few enough to list one by one.
    pub fn listed_atoms(&self) -> Result<usize> {
        let atoms = self.leaves.iter().fold(0_u64, |n, leaf| n.saturating_add(leaf.copies));
        listable("the module", atoms, MAX_VISITED)?;
        Ok(atoms as usize)
    }

    /// Calls `visit` for every atom in the order of the data, copies of a power in turn, with the index of the copy.
    pub fn for_each_atom(&self, mut visit: impl FnMut(&Use, &[u64]) -> Result<()>) -> Result<()> {
        self.listed_atoms()?;
        // (first step of the body, end of the body, copies, the copy at hand)
        let mut loops: Vec<(usize, usize, u64)> = Vec::new();
        let mut index: Vec<u64> = Vec::new();
        let mut at = 0;
        while at <= self.program.len() {
            if let (Some(&(start, end, times)), Some(i)) = (loops.last(), index.last_mut())
                && at == end
            {
                *i += 1;
                if *i < times && end > start {
                    at = start;
                } else {
                    loops.pop();
                    index.pop();
                }
                continue;
            }
            match self.program.get(at) {
                Some(Op::Atom { index: which, .. }) => visit(&self.uses[*which], &index)?,
                // A body without atoms has nothing to visit, however often it is repeated.
                Some(&Op::Repeat { length, .. }) if !self.has_atom(at + 1, length) => at += length,
                Some(&Op::Repeat { times, length, .. }) => {
                    loops.push((at + 1, at + 1 + length, times));
                    index.push(0);
                }
                _ => {}
            }
            at += 1;
        }
        Ok(())
    }

    fn has_atom(&self, start: usize, length: usize) -> bool {
        self.program[start..start + length].iter().any(|op| matches!(op, Op::Atom { .. }))
    }
}

#[derive(Default)]
struct Builder {
    total: f64,
    leaves: Vec<Leaf>,
    uses: Vec<Use>,
    program: Vec<Op>,
    paths: Paths,
    shared: HashMap<Arc<str>, usize>,
}

impl Builder {
    fn enter<'a>(&mut self, module: &'a Module, mut context: Context, stack: &mut Vec<Step<'a>>) -> Result<()> {
        context.factor = mass_product(context.factor, module.factor, module)?;
        if let (Some(name), false) = (&module.name, matches!(module.node.kind, Kind::Atom(..))) {
            context.scope = self.paths.enter(context.scope, name);
        }
        match &module.node.kind {
            Kind::Atom(atom, payload) => {
                let index = self.place(atom, module, &context)?;
                self.program.push(Op::Atom { index, payload: payload.clone() });
            }
            Kind::Bond(_, payload) => self.program.push(Op::Bond(payload.clone())),
            Kind::Compose { outer, inner } => {
                let after = context.after * outer.sensitivity();
                stack.push(Step::Enter(outer, context.clone()));
                stack.push(Step::Enter(inner, Context { after, ..context }));
            }
            Kind::Tuple(members) => {
                self.program.push(Op::Fork);
                stack.push(Step::Emit(Op::Join(members.len())));
                for (index, member) in members.iter().enumerate().rev() {
                    stack.push(Step::Enter(member, context.clone()));
                    if index > 0 {
                        stack.push(Step::Emit(Op::Next));
                    }
                }
            }
            Kind::Power { block, times } => {
                let axis = Axis { times: *times, sensitivity: block.sensitivity() };
                let axes = context.axes.iter().copied().chain([axis]).collect();
                let share = self.share(mass_product(module.node.mass, context.factor, module)?, module)?;
                stack.push(Step::Close(self.program.len()));
                self.program.push(Op::Repeat { times: *times, length: 0, target: share / context.after });
                stack.push(Step::Enter(block, Context { axes, ..context }));
            }
        }
        Ok(())
    }

    /// The part of a mass in the whole.
    fn share(&self, mass: f64, module: &Module) -> Result<f64> {
        let share = mass / self.total;
        match self.total > 0.0 {
            true if share == 0.0 && mass > 0.0 => {
                Err(Error::MassRange { module: module.to_string(), reason: format!("its share of {:e} is next to nothing", self.total) })
            }
            true => Ok(share),
            false => Ok(0.0),
        }
    }

    /// Enters an atom into the tables and gives the index of its use.
    fn place(&mut self, atom: &Atom, module: &Module, context: &Context) -> Result<usize> {
        let index = self.uses.len();
        let mass = mass_product(atom.mass, context.factor, module)?;
        let share = self.share(mass, module)?;
        let known = atom.share.as_ref().and_then(|share| self.shared.get(share).copied());
        let leaf = match known {
            Some(leaf) => leaf,
            None => {
                let stack = if atom.share.is_some() { Vec::new() } else { stack_of(&context.axes) };
                let path = self.paths.leaf(context.scope, module.name(), atom.kind.name());
                self.leaves.push(Leaf { path, uses: Vec::new(), stack, copies: 0, mass: 0.0 });
                if let Some(share) = &atom.share {
                    self.shared.insert(share.clone(), self.leaves.len() - 1);
                }
                self.leaves.len() - 1
            }
        };
        let this = Use { leaf, kind: atom.kind.clone(), mass, axes: context.axes.clone(), share, after: context.after };
        let row = &mut self.leaves[leaf];
        if let Some(&first) = row.uses.first() {
            let (expected, got) = (self.uses[first].kind.shape(), atom.kind.shape());
            // A custom geometry cannot bind another's, nor be bound by it: only its own class knows its norm.
            if expected != got {
                return Err(Error::ShareShape {
                    name: atom.share.as_deref().unwrap_or_default().into(),
                    path: row.path.clone(),
                    expected,
                    kind: atom.kind.name().into(),
                    got,
                });
            }
        }
        row.uses.push(index);
        row.copies = row.copies.saturating_add(this.copies());
        row.mass += mass * this.copies() as f64;
        self.uses.push(this);
        Ok(index)
    }
}

fn stack_of(axes: &[Axis]) -> Vec<usize> {
    axes.iter().map(|axis| usize::try_from(axis.times).unwrap_or(usize::MAX)).collect()
}

/// Whether the core can compute the maps of this use by itself.
pub fn is_native(each: &Use) -> bool {
    each.kind.geometry() != Geometry::Custom
}
