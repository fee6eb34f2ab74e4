//! Flattens a tree, once, into its norm and its program.

use std::collections::HashMap;
use std::sync::Arc;

use crate::atom::Atom;
use crate::error::{Result, mass_product, mass_share};
use crate::module::{Kind, Module, Payload};
use crate::norm::{Axis, Batch, Leaf, Norm, Use};
use crate::paths::Paths;
use crate::program::{Op, Program};
use crate::{interrupt, memory};

/// A generous estimate of the memory that the tables take for each part of a tree.
const BYTES_OF_A_PART: usize = 512;

/// What the walk has met between the root and the module at hand.
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
    /// Ends the body of the `Repeat` at this index of the program.
    Close(usize),
}

/// The norm and the forward pass of `module`. The walk uses no recursion, since a tree may be deeper than the thread's stack allows.
pub fn flatten(module: &Module) -> Result<(Norm, Program)> {
    module.check_walkable()?;
    memory::expect(module.node.parts as usize * BYTES_OF_A_PART);
    let mut builder = Builder { total: module.mass(), ..Builder::default() };
    let root = Context { factor: 1.0, after: 1.0, axes: Arc::new([]), scope: 0 };
    let mut stack = vec![Step::Enter(module, root)];
    while let Some(step) = stack.pop() {
        interrupt::count(1);
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
    Ok((builder.norm, Program { ops: builder.program }))
}

#[derive(Default)]
struct Builder {
    total: f64,
    norm: Norm,
    program: Vec<Op>,
    paths: Paths,
    powers: usize,
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
                let leaf = self.place(atom, payload, module, &context)?;
                self.program.push(Op::Atom { leaf, payload: payload.clone() });
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
                let axis = Axis { times: *times, sensitivity: block.sensitivity(), power: self.powers };
                self.powers += 1;
                let axes = context.axes.iter().copied().chain([axis]).collect();
                let share = mass_share(mass_product(module.node.mass, context.factor, module)?, self.total, module)?;
                stack.push(Step::Close(self.program.len()));
                self.program.push(Op::Repeat { times: *times, length: 0, target: share / context.after });
                stack.push(Step::Enter(block, Context { axes, ..context }));
            }
        }
        Ok(())
    }

    /// Adds an atom to the tables and returns the row of its weight array.
    fn place(&mut self, atom: &Atom, payload: &Payload, module: &Module, context: &Context) -> Result<usize> {
        let mass = mass_product(atom.mass, context.factor, module)?;
        let [count, rows, cols] = atom.kind.blocks();
        let each = Use {
            leaf: usize::MAX, // `Norm::place` sets the row
            kind: atom.kind.name().into(),
            shape: atom.kind.shape(),
            blocks: Batch { geometry: atom.kind.geometry(), count, rows, cols },
            unit: atom.unit(),
            scale: atom.scale.abs(),
            mass,
            axes: context.axes.clone(),
            share: mass_share(mass, self.total, module)?,
            after: context.after,
            payload: payload.clone(),
        };
        let known = atom.share.as_ref().and_then(|share| self.shared.get(share).copied());
        let leaf = self.norm.place(known, each, atom.share.as_deref().unwrap_or_default(), || {
            let stack = if atom.share.is_some() { Vec::new() } else { stack_of(&context.axes) };
            Ok(Leaf::new(self.paths.leaf(context.scope, module.name(), atom.kind.name())?, stack))
        })?;
        if let Some(share) = &atom.share {
            self.shared.insert(share.clone(), leaf);
        }
        Ok(leaf)
    }
}

fn stack_of(axes: &[Axis]) -> Vec<usize> {
    axes.iter().map(|axis| usize::try_from(axis.times).unwrap_or(usize::MAX)).collect()
}
