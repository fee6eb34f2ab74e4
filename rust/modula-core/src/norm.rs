//! The norm by itself: one row for each weight array and one for each atom that reads it. It knows no forward pass.

use std::ops::Range;
use std::sync::Arc;

use crate::atom::Geometry;
use crate::error::{Error, Result};
use crate::memory;
use crate::module::Payload;

/// More copies than this are not listed one by one: a list of their targets alone would fill the memory and end the process.
const MAX_LISTED: u64 = 100_000_000;

/// Atoms are listed with their names, which takes some hundred times the memory of a target.
const MAX_VISITED: u64 = 1 << 20;

fn listable(what: &str, count: u64, limit: u64) -> Result<()> {
    if count <= limit {
        return Ok(());
    }
    Err(Error::TooMany { what: what.into(), count, limit })
}

/// `count` equal blocks of `rows x cols` numbers, each measured on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch {
    /// How a block is measured. The core leaves [`Geometry::Custom`] alone.
    pub geometry: Geometry,
    /// Blocks.
    pub count: usize,
    /// Rows of a block.
    pub rows: usize,
    /// Columns of a block.
    pub cols: usize,
}

/// One power around an atom: how many copies, and how much one copy moves per unit of its input.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Axis {
    /// Copies.
    pub times: u64,
    /// Sensitivity of one copy.
    pub sensitivity: f64,
    /// The number of the power in its tree: atoms with one number are repeated together.
    pub power: usize,
}

/// One atom, standing for all its copies in powers.
#[derive(Clone)]
pub struct Use {
    /// The weight array it reads.
    pub leaf: usize,
    /// The name of its class.
    pub kind: Arc<str>,
    /// The shape of the weight of one copy.
    pub shape: Vec<usize>,
    /// The weight of one copy as blocks.
    pub blocks: Batch,
    /// The geometric norm of a block at which the norm of the atom is 1.
    pub unit: f64,
    /// Mass of one copy, tares included.
    pub mass: f64,
    /// The powers around it, outermost first.
    pub axes: Arc<[Axis]>,
    /// mass / total mass.
    pub share: f64,
    /// Product of the sensitivities after it, without those of later copies in its powers.
    pub after: f64,
    /// What the caller attached to it.
    pub payload: Payload,
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

    /// The smallest target norm of any copy, at target norm 1: what binds an array that all copies share.
    pub fn smallest_target(&self, path: &str) -> Result<f64> {
        let later = self.axes.iter().map(|axis| axis.sensitivity.powf((axis.times - 1) as f64).max(1.0));
        self.over(later.product(), 1.0, path)
    }

    /// The target norms of all copies at target norm 1, in C order of the stack.
    pub fn targets(&self, path: &str) -> Result<Vec<f64>> {
        listable(path, self.copies(), MAX_LISTED)?;
        let mut targets = vec![self.over(1.0, 1.0, path)?];
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

    /// One number for each copy, repeated for the blocks of a copy.
    pub fn per_block(&self, numbers: &[f64]) -> Vec<f64> {
        memory::collected(numbers.iter().flat_map(|&number| std::iter::repeat_n(number, self.blocks.count)))
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

impl Leaf {
    /// A row that no atom reads yet.
    pub(crate) fn new(path: String, stack: Vec<usize>) -> Leaf {
        Leaf { path, uses: Vec::new(), stack, copies: 0, mass: 0.0 }
    }

    /// Copies that the array holds side by side.
    pub fn stacked(&self) -> usize {
        self.stack.iter().fold(1, |n, &axis| n.saturating_mul(axis))
    }
}

/// Everything that the maps on weights need to know of a network.
#[derive(Clone, Default)]
pub struct Norm {
    /// One row for each weight array, in the order of the data.
    pub leaves: Vec<Leaf>,
    /// One row for each atom, in the order of the data.
    pub uses: Vec<Use>,
}

impl Norm {
    /// Enters an atom that reads `leaf`, a row already there, or a new one; gives the row. `share` names the array in errors.
    pub(crate) fn place(&mut self, leaf: Option<usize>, each: Use, share: &str, fresh: impl FnOnce() -> Leaf) -> Result<usize> {
        let leaf = leaf.unwrap_or_else(|| {
            self.leaves.push(fresh());
            self.leaves.len() - 1
        });
        let row = &mut self.leaves[leaf];
        // A custom geometry cannot bind another's, nor be bound by it: only its own class knows its norm.
        if let Some(&first) = row.uses.first()
            && self.uses[first].shape != each.shape
        {
            return Err(Error::ShareShape {
                name: share.into(),
                path: row.path.clone(),
                expected: self.uses[first].shape.clone(),
                kind: each.kind.to_string(),
                got: each.shape,
            });
        }
        row.uses.push(self.uses.len());
        row.copies = row.copies.saturating_add(each.copies());
        row.mass += each.mass * each.copies() as f64;
        self.uses.push(Use { leaf, ..each });
        Ok(leaf)
    }

    /// The norm of some of the leaves, in this order. Their targets are those that they have in the whole.
    pub fn part(&self, chosen: &[usize]) -> Norm {
        let mut part = Norm::default();
        for &index in chosen {
            let mut leaf = self.leaves[index].clone();
            let uses = std::mem::take(&mut leaf.uses);
            for each in uses {
                leaf.uses.push(part.uses.len());
                part.uses.push(Use { leaf: part.leaves.len(), ..self.uses[each].clone() });
            }
            part.leaves.push(leaf);
        }
        part
    }

    /// The atom that decides how a leaf is drawn and which norm its updates fill: its first use that has mass, or else its first.
    pub fn lead(&self, leaf: &Leaf) -> &Use {
        let uses = leaf.uses.iter().map(|&index| &self.uses[index]);
        uses.clone().find(|each| each.share > 0.0).or_else(|| uses.clone().next()).expect("a leaf has a use")
    }

    /// The shape of a leaf's array, stack included.
    pub fn shape(&self, leaf: &Leaf) -> Vec<usize> {
        leaf.stack.iter().copied().chain(self.lead(leaf).shape.iter().copied()).collect()
    }

    /// A leaf's array as one of its uses sees it. An array without a number has no blocks, however many its axes would make.
    pub fn batch(&self, leaf: &Leaf, each: &Use) -> Batch {
        let blocks = each.blocks;
        let count = if blocks.rows == 0 || blocks.cols == 0 { 0 } else { leaf.stacked().saturating_mul(blocks.count) };
        Batch { count, ..blocks }
    }

    /// The target of every copy in a leaf's array, at target norm 1.
    pub fn lead_targets(&self, leaf: &Leaf) -> Result<Vec<f64>> {
        let lead = self.lead(leaf);
        if leaf.stack.len() == lead.axes.len() {
            return lead.targets(&leaf.path);
        }
        Ok(vec![lead.smallest_target(&leaf.path)?])
    }

    /// The uses of a shared leaf that bind it besides its lead: (use, smallest target at target norm 1), without those of mass 0.
    pub fn other_uses(&self, leaf: &Leaf) -> Result<Vec<(&Use, f64)>> {
        let lead = self.lead(leaf);
        let others = leaf.uses.iter().map(|&index| &self.uses[index]);
        others
            .filter(|each| !std::ptr::eq(*each, lead) && each.share > 0.0)
            .map(|each| Ok((each, each.smallest_target(&leaf.path)?)))
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
        self.visit_copies(0..self.uses.len(), &mut Vec::new(), &mut visit)
    }

    /// Recursion is as deep as powers are nested, which [`Module::power`](crate::Module::power) limits.
    fn visit_copies(&self, uses: Range<usize>, index: &mut Vec<u64>, visit: &mut impl FnMut(&Use, &[u64]) -> Result<()>) -> Result<()> {
        let depth = index.len();
        let power_of = |each: &Use| each.axes.get(depth).map(|axis| (axis.power, axis.times));
        let mut at = uses.start;
        while at < uses.end {
            let Some((power, times)) = power_of(&self.uses[at]) else {
                visit(&self.uses[at], index)?;
                at += 1;
                continue;
            };
            let together = self.uses[at..uses.end].iter().take_while(|each| power_of(each).is_some_and(|(own, _)| own == power));
            let end = at + together.count();
            for copy in 0..times {
                index.push(copy);
                self.visit_copies(at..end, index, visit)?;
                index.pop();
            }
            at = end;
        }
        Ok(())
    }
}
