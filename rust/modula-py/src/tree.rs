//! The module tree as Python sees it.

use std::sync::Arc;

use modula_core::atom::{Atom, AtomKind};
use modula_core::bond::{Bond, Curvature};
use modula_core::certificate::Certificate;
use modula_core::feature::Signature;
use modula_core::flatten::flatten;
use modula_core::memory;
use modula_core::module::{Module, Payload, TEXTS_OF_A_NAME};
use modula_core::sharpness::{Bounds, Sharpness};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::guard::{built, guarded};
use crate::lists::{Listed, Made, Rows, Text};
use crate::norm::Norm;
use crate::program::Program;

fn payload(object: Option<Py<PyAny>>) -> Payload {
    object.map(|object| Arc::new(object) as Arc<dyn std::any::Any + Send + Sync>)
}

fn shared(name: Option<Text>) -> Option<Arc<str>> {
    name.map(|name| {
        memory::expect(name.0.len().saturating_mul(TEXTS_OF_A_NAME));
        name.0.into()
    })
}

fn sharpness((alpha, beta, gamma): (f64, f64, f64)) -> PyResult<Sharpness> {
    built(|| Sharpness::new(alpha, beta, gamma))
}

/// What a user's own class declares of itself.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct Declared {
    sensitivity: f64,
    sharpness: Option<(f64, f64, f64)>,
    in_features: Option<usize>,
    out_features: Option<usize>,
    at_zero: f64,
}

/// Bounds, the RMS of the output, (path, arrival) of each atom, the largest arrival, where the certificate ends, and the first part
/// without bounded derivatives.
type CertificateRow = ((f64, f64, f64, f64, f64), f64, Rows<Vec<(String, f64)>>, f64, Vec<String>, Option<String>);

/// An immutable module tree.
#[pyclass(frozen, module = "modula_rs._core")]
pub struct Tree(pub(crate) Module);

#[pymethods]
impl Tree {
    /// An atom of the library by its class name.
    #[staticmethod]
    #[pyo3(signature = (kind, shape, mass, share=None, object=None, scale=1.0))]
    fn atom(kind: &str, shape: Listed<usize>, mass: f64, share: Option<Text>, object: Option<Py<PyAny>>, scale: f64) -> PyResult<Tree> {
        let shape = shape.0;
        guarded(|| {
            let kind = match (kind, shape.as_slice()) {
                ("Linear", &[fanout, fanin]) => AtomKind::Linear { fanout, fanin },
                ("Embed", &[num_embed, d_embed]) => AtomKind::Embed { d_embed, num_embed },
                ("Unembed", &[num_embed, d_embed]) => AtomKind::Unembed { d_embed, num_embed },
                ("Conv2D", &[kh, kw, out_channels, in_channels]) => AtomKind::Conv2D { out_channels, in_channels, kernel: [kh, kw] },
                ("Bias", &[d]) => AtomKind::Bias { d },
                ("Scale", &[d]) => AtomKind::Scale { d },
                _ => return Err(PyValueError::new_err(format!("no atom {kind} has weights of shape {shape:?}"))),
            };
            let atom = built(|| Atom::new(kind, mass, shared(share))?.scaled(scale))?;
            Ok(Tree(Module::atom(atom, payload(object))))
        })
    }

    /// A user's own atom.
    #[staticmethod]
    fn custom_atom(
        name: &str,
        shape: Listed<usize>,
        mass: f64,
        share: Option<Text>,
        declared: Declared,
        object: Py<PyAny>,
    ) -> PyResult<Tree> {
        let kind = AtomKind::Custom {
            name: name.into(),
            shape: shape.0,
            signature: Signature::sizes(declared.in_features, declared.out_features),
            sensitivity: declared.sensitivity,
            sharpness: declared.sharpness.map_or(Ok(Sharpness::BILINEAR), sharpness)?,
            at_zero: declared.at_zero,
        };
        let atom = built(|| Atom::new(kind, mass, shared(share)))?;
        Ok(Tree(Module::atom(atom, payload(Some(object)))))
    }

    /// A bond of the library by its name in the catalogue.
    #[staticmethod]
    #[pyo3(signature = (name, argument=None, sensitivity=None, bounds=None, object=None))]
    fn bond(
        name: &str,
        argument: Option<f64>,
        sensitivity: Option<f64>,
        bounds: Option<(f64, f64, f64)>,
        object: Option<Py<PyAny>>,
    ) -> PyResult<Tree> {
        let bounds = bounds.map(sharpness).transpose()?;
        let bond = built(|| Bond::builtin(name, argument).and_then(|bond| bond.declared(sensitivity, bounds)))?;
        Ok(Tree(Module::bond(bond, payload(object))))
    }

    /// A user's own bond.
    #[staticmethod]
    fn custom_bond(name: &str, declared: Declared, object: Py<PyAny>) -> PyResult<Tree> {
        let curvature = match declared.sharpness {
            Some(bounds) => Curvature::Bounded(sharpness(bounds)?),
            None => Curvature::Kinked,
        };
        let signature = Signature::sizes(declared.in_features, declared.out_features);
        let bond = built(|| Bond::new(name, declared.sensitivity, curvature, signature, declared.at_zero))?;
        Ok(Tree(Module::bond(bond, payload(Some(object)))))
    }

    /// `self @ inner`.
    fn compose(&self, inner: &Tree) -> PyResult<Tree> {
        built(|| self.0.compose(&inner.0)).map(Tree)
    }

    /// A tuple of members, all of which are applied to the same input.
    #[staticmethod]
    fn tuple(members: Listed<PyRef<'_, Tree>>) -> PyResult<Tree> {
        built(|| Module::tuple(memory::collected(members.0.iter().map(|member| member.0.clone())))).map(Tree)
    }

    /// A composition of `times` copies, each with weights of its own.
    fn power(&self, times: u64) -> PyResult<Tree> {
        built(|| self.0.power(times)).map(Tree)
    }

    /// The tree with all masses rescaled so that their total is `absolute`.
    fn tare_absolute(&self, absolute: f64) -> PyResult<Tree> {
        built(|| self.0.tare_absolute(absolute)).map(Tree)
    }

    /// The tree with all masses multiplied by `relative`.
    fn tare_relative(&self, relative: f64) -> PyResult<Tree> {
        built(|| self.0.tare_relative(relative)).map(Tree)
    }

    /// The same tree under a name.
    fn named(&self, name: &str) -> PyResult<Tree> {
        built(|| self.0.named(name)).map(Tree)
    }

    #[getter]
    fn name(&self) -> Made<Option<&str>> {
        Made(self.0.name())
    }

    #[getter]
    fn mass(&self) -> Made<f64> {
        Made(self.0.mass())
    }

    #[getter]
    fn sensitivity(&self) -> Made<f64> {
        Made(self.0.sensitivity())
    }

    #[getter]
    fn atoms(&self) -> Made<u64> {
        Made(self.0.node().atoms)
    }

    #[getter]
    fn bonds(&self) -> Made<u64> {
        Made(self.0.node().bonds)
    }

    #[getter]
    fn smooth(&self) -> bool {
        self.0.node().smooth
    }

    #[getter]
    fn sharpness(&self) -> PyResult<Made<(f64, f64, f64)>> {
        let Sharpness { alpha, beta, gamma } = built(|| self.0.sharpness())?;
        Ok(Made((alpha, beta, gamma)))
    }

    #[getter]
    fn well_normed(&self) -> PyResult<bool> {
        built(|| self.0.well_normed())
    }

    /// What is proved for weights of this norm in every atom, or of these norms, one for each leaf.
    fn certificate(&self, weight_norm: Listed<f64>) -> PyResult<Made<CertificateRow>> {
        let Certificate { bounds, output, arrivals, reach, ends, unbounded } = built(|| self.0.certificate(&weight_norm.0))?;
        let Bounds { sensitivity, gain, sharpness: Sharpness { alpha, beta, gamma } } = bounds;
        Ok(Made(((sensitivity, gain, alpha, beta, gamma), output, Rows(arrivals), reach, ends, unbounded)))
    }

    #[getter]
    fn in_features(&self) -> Made<Option<usize>> {
        Made(self.0.node().signature.in_features())
    }

    #[getter]
    fn out_features(&self) -> Made<Option<usize>> {
        Made(self.0.node().signature.out_features())
    }

    /// The tree as a table.
    fn table(&self) -> PyResult<Made<String>> {
        built(|| Ok(Made(self.0.table())))
    }

    /// The norm of the tree, and its forward pass.
    fn flatten(&self) -> PyResult<Made<(Norm, Program)>> {
        let (norm, program) = built(|| flatten(&self.0))?;
        Ok(Made((Norm(norm), Program(program))))
    }

    fn __str__(&self) -> Made<String> {
        Made(self.0.to_string())
    }
}
