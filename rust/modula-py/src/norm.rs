//! The Python classes for the norm of a network, the recipes of its maps, and its measures.

use modula_core::atom::Geometry;
use modula_core::norm::{self, Batch, Leaf};
use modula_core::recipe::{self, Map, Measure, Row};
use modula_core::table;
use modula_core::{interrupt, memory};
use numpy::PyArray1;
use pyo3::exceptions::{PyIndexError, PyValueError};
use pyo3::prelude::*;

use crate::arrays::Copied;
use crate::error::raise;
use crate::guard::{built, guarded};
use crate::lists::{Listed, Rows, Text, returned};
use crate::program::object;

/// The norm of a network; see `modula_core::norm`.
#[pyclass(frozen, module = "modula_rs._core")]
pub struct Norm(pub(crate) norm::Norm);

/// The recipe of a map for one norm; see `modula_core::recipe`.
#[pyclass(frozen, module = "modula_rs._core")]
pub struct Recipe(pub(crate) recipe::Recipe);

/// How block norms make up the norm, or the dual norm, of a network; see `modula_core::recipe`.
#[pyclass(frozen, module = "modula_rs._core")]
pub struct Measures(pub(crate) Vec<Measure>);

/// An estimate of the memory that a row takes in Python, with its strings and lists.
const BYTES_OF_A_ROW: usize = 512;

type UseRow = (Text, Text, Listed<usize>, usize, (String, usize, usize, usize), f64, f64, f64, Option<usize>);
type AtomRow = (String, String, Vec<usize>, f64, f64, Vec<u64>);
type BatchRow = (&'static str, usize, usize, usize);

fn batch_row(Batch { geometry, count, rows, cols }: Batch) -> BatchRow {
    (geometry.name(), count, rows, cols)
}

fn measure_rows<'py>(py: Python<'py>, measures: &[Measure]) -> PyResult<Bound<'py, PyAny>> {
    let rows = measures.iter().map(|Measure { leaf, batch, scales }| (*leaf, batch_row(*batch), Copied(scales)));
    returned(py, measures.len().saturating_mul(BYTES_OF_A_ROW), || Ok(Rows(rows)))
}

impl Norm {
    /// A list with one row for each leaf.
    fn rows<'a, 'py, T: IntoPyObject<'py>>(&'a self, py: Python<'py>, row: impl FnMut(&'a Leaf) -> T) -> PyResult<Bound<'py, PyAny>> {
        returned(py, self.bytes(0..self.0.leaves.len()), || Ok(Rows(self.0.leaves.iter().map(row))))
    }

    /// An estimate of the memory that the rows of some leaves take.
    fn bytes(&self, leaves: impl IntoIterator<Item = usize>) -> usize {
        let bytes = |leaf: &Leaf| BYTES_OF_A_ROW * leaf.uses.len() + 2 * leaf.path.len();
        leaves.into_iter().fold(0, |sum, leaf| sum.saturating_add(bytes(&self.0.leaves[leaf])))
    }
}

#[pymethods]
impl Norm {
    /// The norm of a network that is no tree of modules. It takes one row for each use of each weight array:
    /// (path, kind, shape of one copy, copies, blocks of one copy, unit, mass of one copy, sensitivity after it, shared row or None).
    #[staticmethod]
    fn of_rows(rows: Listed<UseRow>) -> PyResult<Norm> {
        let rows = rows.0.into_iter().map(
            |(path, kind, shape, copies, (geometry, count, height, cols), unit, mass, after, shares)| -> PyResult<_> {
                let (path, kind) = (path.0, kind.0);
                let found = Geometry::ALL.into_iter().find(|each| each.name() == geometry);
                let geometry = found.ok_or_else(|| PyValueError::new_err(format!("{path}: there is no geometry called {geometry:?}")))?;
                let blocks = Batch { geometry, count, rows: height, cols };
                Ok(table::Row { path, kind, shape: shape.0, copies, blocks, unit, mass, after, shares })
            },
        );
        let rows = guarded(|| {
            let mut found = memory::room(rows.len());
            for row in rows {
                interrupt::count(1);
                memory::push(&mut found, row?);
            }
            memory::expect(found.len() * BYTES_OF_A_ROW);
            Ok(found)
        })?;
        built(|| table::norm(rows)).map(Norm)
    }

    /// One row (path, kind, shape, copies, mass) for each weight array.
    fn leaves<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.rows(py, |leaf| (&leaf.path, &*self.0.lead(leaf).kind, self.0.shape(leaf), leaf.copies, leaf.mass))
    }

    /// One row (path, kind, shape, mass, target, copy) for each atom in the order of the data, with a row for every copy of a power.
    fn targets<'py>(&self, py: Python<'py>, target_norm: f64) -> PyResult<Bound<'py, PyAny>> {
        let atoms = built(|| self.0.listed_atoms())?;
        let longest = self.0.leaves.iter().map(|leaf| leaf.path.len()).max().unwrap_or(0);
        let bytes = atoms.saturating_mul(BYTES_OF_A_ROW + 2 * longest);
        returned(py, bytes, || {
            let mut rows: Vec<AtomRow> = Vec::with_capacity(atoms);
            let row = |each: &norm::Use, index: &[u64]| {
                let path = &self.0.leaves[each.leaf].path;
                // Of the weights themselves, without the scale by which the forward pass multiplies them.
                let target = each.target(index, target_norm, path)? / each.scale;
                rows.push((path.clone(), each.kind.to_string(), each.shape.clone(), each.mass, target, index.to_vec()));
                Ok(())
            };
            self.0.for_each_atom(row).map_err(raise)?;
            Ok(Rows(rows))
        })
    }

    /// One row (geometry, count, rows, cols) for each leaf: its array reshapes to `count` blocks of rows x cols.
    fn batches<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.rows(py, |leaf| batch_row(self.0.batch(leaf, self.0.lead(leaf))))
    }

    /// The target of every copy in a leaf's array, at target norm 1.
    fn lead_targets<'py>(&self, py: Python<'py>, leaf: usize) -> PyResult<Bound<'py, PyArray1<f64>>> {
        let count = self.0.leaves.len();
        let leaf = self.0.leaves.get(leaf).ok_or_else(|| PyIndexError::new_err(format!("leaf {leaf} of {count}")))?;
        guarded(|| Copied(&self.0.lead_targets(leaf).map_err(raise)?).into_pyobject(py))
    }

    /// The leading axes of each leaf's array.
    fn stacks<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.rows(py, |leaf| &leaf.stack)
    }

    /// For each leaf, the Python object of the atom that leads it.
    fn objects<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.rows(py, |leaf| object(py, &self.0.lead(leaf).payload))
    }

    /// The norm of the chosen leaves, in this order. Each leaf keeps the target that it has in the whole network.
    fn part(&self, chosen: Listed<usize>) -> PyResult<Norm> {
        let (leaves, chosen) = (self.0.leaves.len(), chosen.0);
        match chosen.iter().find(|&&index| index >= leaves) {
            Some(index) => Err(PyIndexError::new_err(format!("there are {leaves} leaves, none with number {index}"))),
            None => guarded(|| {
                memory::expect(self.bytes(chosen.iter().copied()));
                Ok(Norm(self.0.part(&chosen)))
            }),
        }
    }

    /// The recipe of the map with this name.
    fn recipe(&self, map: &str) -> PyResult<Recipe> {
        let found = Map::ALL.into_iter().find(|each| each.name() == map);
        let map = found.ok_or_else(|| PyValueError::new_err(format!("there is no map called {map:?}")))?;
        built(|| recipe::recipe(&self.0, map)).map(Recipe)
    }

    /// The measures of the norm, or with `dual` of the dual norm.
    fn measures(&self, dual: bool) -> PyResult<Measures> {
        built(|| if dual { recipe::dual_norms(&self.0) } else { recipe::norms(&self.0) }).map(Measures)
    }
}

#[pymethods]
impl Measures {
    /// Rows (leaf, batch, scales). The norm is the largest block norm over scale; the dual norm is the sum of scale times dual norm.
    #[getter]
    fn rows<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        measure_rows(py, &self.0)
    }
}

#[pymethods]
impl Recipe {
    /// One row (leaf, batch, operation, size, scales) for each weight array.
    #[getter]
    fn rows<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let rows = self.0.rows.iter();
        let rows = rows.map(|Row { leaf, batch, op, size, scales }| (*leaf, batch_row(*batch), op.name(), size.name(), Copied(scales)));
        returned(py, self.0.rows.len().saturating_mul(BYTES_OF_A_ROW), || Ok(Rows(rows)))
    }

    /// One row (leaf, batch, scales) for each further use of a shared array, which may only shrink a result.
    #[getter]
    fn bounds<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        measure_rows(py, &self.0.bounds)
    }
}
