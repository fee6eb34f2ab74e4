//! The flattened tree as Python sees it.

use modula_core::memory;
use modula_core::module::Payload;
use modula_core::plan::{self, Leaf, Op, Use};
use numpy::{IntoPyArray, PyArray1};
use pyo3::exceptions::PyIndexError;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};

use crate::tree::built;

/// A tree flattened once into leaves, targets and a program.
#[pyclass(frozen, module = "modula_rs._core")]
pub struct Plan(pub(crate) plan::Plan);

/// About what a row for Python takes, with its strings and lists.
const BYTES_OF_A_ROW: usize = 512;

type LeafRow = (String, String, Vec<usize>, u64, f64);
type AtomRow = (String, String, Vec<usize>, f64, f64, Vec<u64>);
type GroupRow = (&'static str, [usize; 3], f64);

fn full_shape(leaf: &Leaf, lead: &Use) -> Vec<usize> {
    leaf.stack.iter().copied().chain(lead.kind.shape()).collect()
}

fn group(each: &Use, copies: usize) -> GroupRow {
    let [blocks, rows, cols] = each.kind.blocks();
    (each.kind.geometry().name(), [copies.saturating_mul(blocks), rows, cols], each.kind.unit())
}

fn object(py: Python<'_>, payload: &Payload) -> Py<PyAny> {
    let object = payload.as_ref().and_then(|payload| payload.downcast_ref::<Py<PyAny>>());
    object.map_or_else(|| py.None(), |object| object.clone_ref(py))
}

impl Plan {
    fn leaf(&self, index: usize) -> PyResult<&Leaf> {
        let count = self.0.leaves.len();
        self.0.leaves.get(index).ok_or_else(|| PyIndexError::new_err(format!("leaf {index} of {count}")))
    }
}

#[pymethods]
impl Plan {
    /// (path, kind, shape, copies, mass) of each weight array.
    fn leaves(&self) -> Vec<LeafRow> {
        let row = |leaf: &Leaf| {
            let lead = self.0.lead(leaf);
            (leaf.path.clone(), lead.kind.name().to_owned(), full_shape(leaf, lead), leaf.copies, leaf.mass)
        };
        self.0.leaves.iter().map(row).collect()
    }

    /// (path, kind, shape, mass, target, copy) of each atom, input first, the copies of a power in turn.
    fn targets(&self, target_norm: f64) -> PyResult<Vec<AtomRow>> {
        built(|| {
            memory::expect(self.0.listed_atoms()? * BYTES_OF_A_ROW);
            let mut rows = Vec::new();
            self.0.for_each_atom(|each, index| {
                let path = &self.0.leaves[each.leaf].path;
                let target = each.target(index, target_norm, path)?;
                rows.push((path.clone(), each.kind.name().to_owned(), each.kind.shape(), each.mass, target, index.to_vec()));
                Ok(())
            })?;
            Ok(rows)
        })
    }

    /// (geometry, (count, rows, cols), unit) of each leaf: its array reshapes to a batch of so many blocks, and its norm is the largest
    /// block norm over the unit.
    fn groups(&self) -> Vec<GroupRow> {
        self.0.leaves.iter().map(|leaf| group(self.0.lead(leaf), leaf.stack.iter().fold(1, |n, &axis| n.saturating_mul(axis)))).collect()
    }

    /// The target of every copy in a leaf's array, at target norm 1.
    fn lead_targets<'py>(&self, py: Python<'py>, leaf: usize) -> PyResult<Bound<'py, PyArray1<f64>>> {
        let leaf = self.leaf(leaf)?;
        let targets = built(|| self.0.lead_targets(leaf, 1.0))?;
        Ok(targets.into_pyarray(py))
    }

    /// (group, target) of every further use that binds a shared leaf, at target norm 1.
    fn other_uses(&self, leaf: usize) -> PyResult<Vec<(GroupRow, f64)>> {
        let leaf = self.leaf(leaf)?;
        let others = built(|| self.0.other_uses(leaf, 1.0))?;
        Ok(others.into_iter().map(|(each, target)| (group(each, 1), target)).collect())
    }

    /// The leading axes of each leaf's array.
    fn stacks(&self) -> Vec<Vec<usize>> {
        self.0.leaves.iter().map(|leaf| leaf.stack.clone()).collect()
    }

    /// Whether a leaf's array has leading axes for the powers around it.
    fn is_stacked(&self, leaf: usize) -> PyResult<bool> {
        Ok(!self.leaf(leaf)?.stack.is_empty())
    }

    /// The objects of the atoms that read each leaf, the one that leads first.
    fn objects<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let mut objects: Vec<Vec<Py<PyAny>>> = self.0.leaves.iter().map(|_| Vec::new()).collect();
        for op in &self.0.program {
            if let Op::Atom { index, payload } = op {
                let each = &self.0.uses[*index];
                let leads = std::ptr::eq(each, self.0.lead(&self.0.leaves[each.leaf]));
                let place = if leads { 0 } else { objects[each.leaf].len() };
                objects[each.leaf].insert(place, object(py, payload));
            }
        }
        PyList::new(py, objects)
    }

    /// The forward pass as steps: ("atom", object, leaf), ("bond", object), ("fork",), ("next",), ("join", n), ("repeat", times, length, target).
    fn program<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let steps: Vec<Bound<'py, PyTuple>> = self
            .0
            .program
            .iter()
            .map(|op| match op {
                Op::Atom { index, payload } => ("atom", object(py, payload), self.0.uses[*index].leaf).into_pyobject(py),
                Op::Bond(payload) => ("bond", object(py, payload)).into_pyobject(py),
                Op::Fork => ("fork",).into_pyobject(py),
                Op::Next => ("next",).into_pyobject(py),
                Op::Join(count) => ("join", *count).into_pyobject(py),
                Op::Repeat { times, length, target } => ("repeat", *times, *length, *target).into_pyobject(py),
            })
            .collect::<Result<_, _>>()?;
        PyList::new(py, steps)
    }
}
