//! The maps inside compiled JAX programs on the CPU: handlers of XLA's custom calls, all leaves of a model in one call, no copies, no Python.
//!
//! Arrays come as (..., rows, cols): whatever leads counts blocks, so that `vmap` is one more leading axis. With n leaves the arguments are n
//! arrays, then (maps) n arrays of one scale for each block, then (warm normalize) one array (..., cols) for each spectral leaf. The results of
//! a map are n arrays, then (normalize) the new estimates; those of a measure n arrays of one number for each block. Attributes: `geometry`,
//! one index into [`GEOMETRIES`] for each leaf; for dualize, `steps`: empty for the standard accuracy, or one number.

mod abi;
mod call;

use std::borrow::Cow;

use modula_core::atom::Geometry;
use modula_core::blocks::{self, Group, Item, Update, VectorsMut};
use modula_core::linalg::Accuracy;
use modula_core::linalg::VECTORS;
use modula_core::tensor::{Tensor, TensorMut};
use pyo3::prelude::*;

use self::abi::{CallFrame, Handler};
use self::call::{Buffer, Call, ResultBuffer, answer};
use crate::threads;

/// What the attribute `geometry` indexes; Python reads their names from [`ffi_geometries`].
const GEOMETRIES: [Geometry; 4] = [Geometry::Spectral, Geometry::RowRms, Geometry::Rms, Geometry::MaxAbs];

macro_rules! handler {
    ($name:ident, $body:expr) => {
        /// A handler: see [`abi::Handler`].
        ///
        /// # Safety
        /// To be called by XLA alone.
        unsafe extern "C" fn $name(frame: *mut CallFrame) -> *mut abi::Error {
            // SAFETY: XLA calls handlers with valid frames, one thread to a frame.
            unsafe { answer(frame, $body) }
        }
    };
}

handler!(normalize, |call| update(call, |_| Ok(Update::Normalize)));
handler!(dualize, |call| update(call, |call| Ok(Update::Dualize(accuracy(call.integers("steps")?)?))));
handler!(project, |call| update(call, |_| Ok(Update::Dualize(Accuracy::Exact))));
handler!(norms, |call| measure(call, blocks::norms));
handler!(dual_norms, |call| measure(call, blocks::dual_norms));

/// Name and address of each handler. An address stays valid as long as the process lives.
#[pyfunction]
pub fn ffi_handlers() -> [(&'static str, usize); 5] {
    let handlers: [(&str, Handler); 5] =
        [("normalize", normalize), ("dualize", dualize), ("project", project), ("norms", norms), ("dual_norms", dual_norms)];
    handlers.map(|(name, handler)| (name, handler as usize))
}

/// The geometries by the index that the attribute `geometry` gives them.
#[pyfunction]
pub fn ffi_geometries() -> [&'static str; 4] {
    GEOMETRIES.map(Geometry::name)
}

fn accuracy(steps: &[i32]) -> Result<Accuracy, String> {
    match steps {
        [] => Ok(Accuracy::Standard),
        &[steps] => u32::try_from(steps).map(Accuracy::Steps).map_err(|_| format!("steps must be positive, got {steps}")),
        _ => Err(format!("one number of steps at most, got {steps:?}")),
    }
}

fn groups(call: &Call<'_>) -> Result<Vec<Group>, String> {
    let geometries = call.integers("geometry")?;
    if geometries.len() > call.args.len() {
        return Err(format!("{} leaves, but {} arguments", geometries.len(), call.args.len()));
    }
    let group = |(&index, array): (&i32, &Buffer<'_>)| {
        let geometry = usize::try_from(index).ok().and_then(|index| GEOMETRIES.get(index));
        let &geometry = geometry.ok_or_else(|| format!("no geometry has index {index}"))?;
        let [lead @ .., rows, cols] = array.dims else {
            return Err(format!("arrays must have at least two axes, got shape {:?}", array.dims));
        };
        // The product of all dims fits, but that of the leading ones need not if there is a 0 behind them.
        let count = if array.len == 0 { 0 } else { lead.iter().map(|&dim| dim as usize).product() };
        Ok(Group { geometry, count, rows: *rows as usize, cols: *cols as usize })
    };
    geometries.iter().zip(&call.args).map(group).collect()
}

/// One number for each block of each leaf.
type Measure = fn(&[(Group, Tensor<'_>)]) -> Vec<Vec<f64>>;

fn measure(call: Call<'_>, norms: Measure) -> Result<(), String> {
    let groups = groups(&call)?;
    expect("arguments", call.args.len(), groups.len())?;
    expect("results", call.rets.len(), groups.len())?;
    let tensors = call.args.iter().map(Buffer::tensor).collect::<Result<Vec<_>, _>>()?;
    let leaves: Vec<_> = groups.into_iter().zip(tensors).collect();
    let found = threads::run(|| norms(&leaves));
    for (result, norms) in call.rets.into_iter().zip(found) {
        // Of empty blocks there may be some all the same, each of norm 0.
        let value = |index: usize| norms.get(index).copied().unwrap_or(0.0);
        match result.into_tensor()? {
            TensorMut::F32(out) => out.iter_mut().enumerate().for_each(|(index, out)| *out = value(index) as f32),
            TensorMut::F64(out) => out.iter_mut().enumerate().for_each(|(index, out)| *out = value(index)),
            _ => return Err("norms must be of float32 or float64".to_owned()),
        }
    }
    Ok(())
}

fn update(call: Call<'_>, which: impl FnOnce(&Call<'_>) -> Result<Update, String>) -> Result<(), String> {
    let which = which(&call)?;
    let groups = groups(&call)?;
    let leaves = groups.len();
    let spectral = groups.iter().filter(|group| group.geometry == Geometry::Spectral).count();
    let estimated = if which == Update::Normalize { spectral } else { 0 };
    let warm = call.args.len() > 2 * leaves;
    expect("arguments", call.args.len(), 2 * leaves + if warm { estimated } else { 0 })?;
    expect("results", call.rets.len(), leaves + estimated)?;

    let mut results = call.rets.into_iter();
    let outputs: Vec<_> = results.by_ref().take(leaves).collect();
    let given = &call.args[2 * leaves..];
    let mut estimates = results.enumerate().map(|(index, result)| (given.get(index), result));
    let mut items = Vec::with_capacity(leaves);
    for (((group, array), scales), output) in groups.into_iter().zip(&call.args).zip(&call.args[leaves..]).zip(outputs) {
        let input = array.tensor()?;
        expect("numbers in a result", output.len(), array.len)?;
        expect("scales", scales.len, if array.len == 0 { scales.len } else { group.count })?;
        let output = output.into_tensor()?;
        let same = matches!(
            (&input, &output),
            (Tensor::F32(_), TensorMut::F32(_))
                | (Tensor::F64(_), TensorMut::F64(_))
                | (Tensor::F16(_), TensorMut::F16(_))
                | (Tensor::BF16(_), TensorMut::BF16(_))
        );
        if !same {
            return Err("a result must have the dtype of its array".to_owned());
        }
        let scales = match scales.tensor()? {
            Tensor::F32(scales) => scales.iter().map(|&scale| f64::from(scale)).collect(),
            Tensor::F64(scales) => Cow::Borrowed(scales),
            _ => return Err("scales must be of float32 or float64".to_owned()),
        };
        let wide = matches!(input, Tensor::F64(_));
        let place = if estimated > 0 && group.geometry == Geometry::Spectral { estimates.next() } else { None };
        let vectors = place.map(|(given, result)| start(given, result, group, wide)).transpose()?;
        if array.len > 0 {
            items.push(Item { group, input, output, scales, vectors });
        }
    }
    threads::run(|| blocks::update(items, which));
    Ok(())
}

/// The estimates to refine in place: those given, or zeros, which stand for a cold start.
fn start<'a>(given: Option<&Buffer<'_>>, result: ResultBuffer<'a>, group: Group, wide: bool) -> Result<VectorsMut<'a>, String> {
    if group.count > 0 {
        expect("numbers in the vectors of a leaf", result.len(), group.count * VECTORS * group.cols)?;
    }
    let given = given.map(Buffer::tensor).transpose()?;
    match (given, result.into_tensor()?) {
        (Some(Tensor::F32(from)), TensorMut::F32(to)) if !wide && from.len() == to.len() => {
            to.copy_from_slice(from);
            Ok(VectorsMut::Single(to))
        }
        (Some(Tensor::F64(from)), TensorMut::F64(to)) if wide && from.len() == to.len() => {
            to.copy_from_slice(from);
            Ok(VectorsMut::Double(to))
        }
        (None, TensorMut::F32(to)) if !wide => {
            to.fill(0.0);
            Ok(VectorsMut::Single(to))
        }
        (None, TensorMut::F64(to)) if wide => {
            to.fill(0.0);
            Ok(VectorsMut::Double(to))
        }
        _ => Err("vectors must have one shape, and float64 for leaves of float64, else float32".to_owned()),
    }
}

fn expect(what: &str, found: usize, expected: usize) -> Result<(), String> {
    if found == expected { Ok(()) } else { Err(format!("expected {expected} {what}, got {found}")) }
}
