//! The norm of a network as two tables: one row for each weight array, and one row for each atom that reads it. Neither table knows of the
//! forward pass.

use std::ops::Range;
use std::sync::Arc;

use crate::atom::Geometry;
use crate::error::{Error, Result};
use crate::module::Payload;
use crate::{interrupt, memory};

/// The most copies or blocks with a number each that are listed one by one. Each takes up to 32 bytes on the way to Python.
const MAX_LISTED: u64 = 1 << 24;

/// The most atoms that are listed one by one with their names. An entry takes some hundred times the memory of a target.
const MAX_VISITED: u64 = 1 << 20;

fn listable(what: &str, count: u64, limit: u64) -> Result<()> {
    if count <= limit {
        return Ok(());
    }
    Err(Error::TooMany { what: what.into(), count, limit })
}

/// `count` blocks of `rows x cols` numbers; each block has a norm of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch {
    /// The norm of a block. The core does not compute with blocks of [`Geometry::Custom`].
    pub geometry: Geometry,
    /// Number of blocks.
    pub count: usize,
    /// Rows of a block.
    pub rows: usize,
    /// Columns of a block.
    pub cols: usize,
}

/// One power around an atom: the number of copies, and the sensitivity of each.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Axis {
    /// Number of copies.
    pub times: u64,
    /// Sensitivity of one copy: how far its output moves per unit of its input.
    pub sensitivity: f64,
    /// The number of the power in its tree. Atoms with the same number are repeated together.
    pub power: usize,
}

/// One atom. Its copies in powers have no rows of their own.
#[derive(Clone)]
pub struct Use {
    /// The row in [`Norm::leaves`] of the weight array that the atom reads.
    pub leaf: usize,
    /// The name of the atom's class.
    pub kind: Arc<str>,
    /// The shape of the weight of one copy.
    pub shape: Vec<usize>,
    /// How the weight of one copy divides into blocks.
    pub blocks: Batch,
    /// The geometric norm of a block at which the norm of the atom is 1.
    pub unit: f64,
    /// The size of the number that the atom multiplies its weights by, of which the unit takes account.
    pub scale: f64,
    /// Mass of one copy, tares included.
    pub mass: f64,
    /// The powers around the atom, outermost first.
    pub axes: Arc<[Axis]>,
    /// The mass of one copy over the total mass of the network.
    pub share: f64,
    /// Product of the sensitivities of the modules after the atom, without the later copies of its own powers.
    pub after: f64,
    /// What the caller attached to the atom.
    pub payload: Payload,
}

impl Use {
    /// The number of copies, all powers together.
    pub fn copies(&self) -> u64 {
        self.axes.iter().fold(1, |n, axis| n.saturating_mul(axis.times))
    }

    /// The target norm of the copy at `index` (one number for each axis, 0 nearest the input).
    pub fn target(&self, index: &[u64], target_norm: f64, path: &str) -> Result<f64> {
        let later = self.axes.iter().zip(index).map(|(axis, &i)| axis.sensitivity.powf((axis.times - 1 - i) as f64));
        self.over(later.product(), target_norm, path)
    }

    /// The smallest target norm of any copy, at target norm 1. An array that all copies share may not exceed it.
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
                interrupt::count(block.len());
                for &target in &block {
                    targets.push(representable(target / later, target == 0.0, self.after * later, path)?);
                }
            }
        }
        Ok(targets)
    }

    /// Numbers for the blocks, from one number for each copy: all blocks of a copy have the same.
    pub fn per_block(&self, numbers: &[f64]) -> Vec<f64> {
        let repeated = |&number: &f64| {
            interrupt::count(self.blocks.count);
            std::iter::repeat_n(number, self.blocks.count)
        };
        memory::collected(numbers.iter().flat_map(repeated))
    }

    fn over(&self, later: f64, target_norm: f64, path: &str) -> Result<f64> {
        if self.share == 0.0 {
            return Ok(0.0);
        }
        representable(target_norm * self.share / (self.after * later), target_norm == 0.0, self.after * later, path)
    }
}

/// Checks that double precision can hold a target: it must be finite, and 0 only if it `is_zero` exactly.
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
    /// The place of the array in the network, like `blocks/attention/q`.
    pub path: String,
    /// The rows in [`Norm::uses`] of the atoms that read the array, in the order of the data; more than one if the array is shared.
    pub uses: Vec<usize>,
    /// Leading axes of the array: one for each power around its atom, none if the array is shared.
    pub stack: Vec<usize>,
    /// Number of atoms that read the array, every copy counted.
    pub copies: u64,
    /// The mass of these atoms together.
    pub mass: f64,
}

impl Leaf {
    /// A row that no atom reads yet.
    pub(crate) fn new(path: String, stack: Vec<usize>) -> Leaf {
        Leaf { path, uses: Vec::new(), stack, copies: 0, mass: 0.0 }
    }

    /// Number of copies whose weights the array holds side by side.
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
    /// Adds an atom that reads the array of row `leaf`, or of a new row if that is None, and returns the row. Errors call the array
    /// `share`.
    pub(crate) fn place(&mut self, leaf: Option<usize>, each: Use, share: &str, fresh: impl FnOnce() -> Result<Leaf>) -> Result<usize> {
        let leaf = match leaf {
            Some(leaf) => leaf,
            None => {
                self.leaves.push(fresh()?);
                self.leaves.len() - 1
            }
        };
        let row = &mut self.leaves[leaf];
        // Uses with a custom geometry set no bounds and obey none, because only the atom's own class can compute its norm.
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

    /// The norm of the chosen leaves, in this order. Each leaf keeps the target that it has in the whole network.
    pub fn part(&self, chosen: &[usize]) -> Norm {
        let mut part = Norm::default();
        for &index in chosen {
            interrupt::count(self.leaves[index].uses.len());
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

    /// The use that decides how a leaf is initialised and which target norm its updates have: the first use with mass, or else the first
    /// use.
    pub fn lead(&self, leaf: &Leaf) -> &Use {
        let uses = leaf.uses.iter().map(|&index| &self.uses[index]);
        uses.clone().find(|each| each.share > 0.0).or_else(|| uses.clone().next()).expect("a leaf has a use")
    }

    /// The shape of a leaf's array, stack included.
    pub fn shape(&self, leaf: &Leaf) -> Vec<usize> {
        leaf.stack.iter().copied().chain(self.lead(leaf).shape.iter().copied()).collect()
    }

    /// How a leaf's array divides into blocks for one of its uses. An array with no entries has no blocks, whatever its other axes are.
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

    /// The further uses of a shared leaf, besides its lead: (use, smallest target at target norm 1). Uses of mass 0 set no bound.
    pub fn other_uses(&self, leaf: &Leaf) -> Result<Vec<(&Use, f64)>> {
        let lead = self.lead(leaf);
        let others = leaf.uses.iter().map(|&index| &self.uses[index]);
        others
            .filter(|each| !std::ptr::eq(*each, lead) && each.share > 0.0)
            .map(|each| Ok((each, each.smallest_target(&leaf.path)?)))
            .collect()
    }

    /// Refuses a norm with too many blocks, counted for each use of an array, for a list with a number for each.
    pub(crate) fn check_blocks(&self) -> Result<()> {
        let blocks = self.uses.iter().map(|each| self.batch(&self.leaves[each.leaf], each).count as u64);
        listable("the module", blocks.fold(0, u64::saturating_add), MAX_LISTED)
    }

    /// Number of atoms, every copy of a power counted, or an error if there are too many to list one by one.
    pub fn listed_atoms(&self) -> Result<usize> {
        let atoms = self.leaves.iter().fold(0_u64, |n, leaf| n.saturating_add(leaf.copies));
        listable("the module", atoms, MAX_VISITED)?;
        Ok(atoms as usize)
    }

    /// Calls `visit` with every atom and the index of its copy, in the order of the data: all atoms of one copy of a power, then of the
    /// next.
    pub fn for_each_atom(&self, mut visit: impl FnMut(&Use, &[u64]) -> Result<()>) -> Result<()> {
        self.listed_atoms()?;
        self.visit_copies(0..self.uses.len(), &mut Vec::new(), &mut visit)
    }

    /// Visits the atoms in `uses` that stand at `index` of the powers around them. The recursion is as deep as powers are nested, and
    /// [`Module::power`](crate::Module::power) limits that.
    fn visit_copies(&self, uses: Range<usize>, index: &mut Vec<u64>, visit: &mut impl FnMut(&Use, &[u64]) -> Result<()>) -> Result<()> {
        let depth = index.len();
        let power_of = |each: &Use| each.axes.get(depth).map(|axis| (axis.power, axis.times));
        let mut at = uses.start;
        while at < uses.end {
            interrupt::count(1);
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
