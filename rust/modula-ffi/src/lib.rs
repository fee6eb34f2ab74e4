//! The maps inside compiled JAX programs on the CPU. They are handlers of XLA's custom calls: one call takes all leaves of a model, without
//! copies and without Python.
//!
//! An array has the shape (..., rows, cols). The leading axes together count its blocks, so `vmap` only adds one more leading axis. For a
//! model of n leaves:
//!
//! | handler | arguments | results |
//! |---|---|---|
//! | `apply` | n arrays, n arrays of scales | n arrays |
//! | `factors` | n arrays, n arrays of scales, and perhaps estimates | n arrays of factors, then the new estimates |
//! | `norms`, `dual_norms` | n arrays | n arrays of one number for each block |
//!
//! An array of scales has one number for each block. `factors` is normalize without its last multiplication, see [`modula_core::factors`]:
//! an array of factors has two numbers for each matrix, and for each row of any other block. Estimates, given for a warm start, are one
//! array (..., cols) for each leaf of matrices.
//!
//! All attributes are arrays of int32. `geometry` has one index into [`GEOMETRIES`] for each leaf. For `apply`, `operation` has one index
//! into [`OPERATIONS`], and `accuracy` one index into [`ACCURACIES`].

pub mod abi;
mod call;

use std::borrow::Cow;

use modula_core::atom::Geometry;
use modula_core::blocks::{self, Item, Op};
use modula_core::factors::{self, Measured};
use modula_core::linalg::{Accuracy, VECTORS};
use modula_core::norm::Batch;
use modula_core::pool::{self, Effort};
use modula_core::tensor::{Tensor, TensorMut, WorkingMut};
use modula_core::{interrupt, memory};

use self::abi::{CallFrame, Handler};
use self::call::{Buffer, Call, ResultBuffer, answer};

/// What the attribute `geometry` indexes.
pub const GEOMETRIES: [Geometry; 4] = Geometry::ALL;
/// What the attribute `operation` indexes.
pub const OPERATIONS: [Op; Op::ON_BATCHES.len()] = Op::ON_BATCHES;
/// What the attribute `accuracy` indexes.
pub const ACCURACIES: [Accuracy; 3] = Accuracy::LEVELS;

macro_rules! handler {
    ($name:ident, $body:expr) => {
        /// A handler of the type [`abi::Handler`].
        ///
        /// # Safety
        /// Only XLA may call it.
        unsafe extern "C" fn $name(frame: *mut CallFrame) -> *mut abi::Error {
            // SAFETY: XLA calls a handler with a valid frame, which no other thread uses.
            unsafe { answer(frame, $body) }
        }
    };
}

handler!(normalize_factors, factors_of);
handler!(apply, apply_to);
handler!(norms, |call| measure(call, blocks::norms, Effort::Reads));
handler!(dual_norms, |call| measure(call, blocks::dual_norms, Effort::Products));

/// Every handler with the name under which Python registers it.
pub const HANDLERS: [(&str, Handler); 4] = [("factors", normalize_factors), ("apply", apply), ("norms", norms), ("dual_norms", dual_norms)];

/// The entry of `table` whose index is the one number of an attribute.
fn chosen<T: Copy>(call: &Call<'_>, attribute: &str, table: &[T]) -> Result<T, String> {
    let indices = call.integers(attribute)?;
    let found = if let &[index] = indices { usize::try_from(index).ok().and_then(|index| table.get(index)) } else { None };
    found.copied().ok_or_else(|| format!("attribute {attribute} must be one index below {}, got {indices:?}", table.len()))
}

fn batches(call: &Call<'_>) -> Result<Vec<Batch>, String> {
    let geometries = call.integers("geometry")?;
    if geometries.len() > call.args.len() {
        return Err(format!("{} leaves, but {} arguments", geometries.len(), call.args.len()));
    }
    let batch = |(&index, array): (&i32, &Buffer<'_>)| {
        let geometry = usize::try_from(index).ok().and_then(|index| GEOMETRIES.get(index));
        let &geometry = geometry.ok_or_else(|| format!("no geometry has index {index}"))?;
        let [lead @ .., rows, cols] = array.dims else {
            return Err(format!("arrays must have at least two axes, got shape {:?}", array.dims));
        };
        // The product of all dims fits a usize. The product of the leading dims need not if rows or cols is 0.
        let count = if array.len == 0 { 0 } else { lead.iter().map(|&dim| dim as usize).product() };
        Ok(Batch { geometry, count, rows: *rows as usize, cols: *cols as usize })
    };
    geometries.iter().zip(&call.args).map(batch).collect()
}

/// A function that measures every block of every leaf.
type Measure = fn(&[(Batch, Tensor<'_>)]) -> Vec<Vec<f64>>;

fn measure(call: Call<'_>, norms: Measure, effort: Effort) -> Result<(), String> {
    let batches = batches(&call)?;
    expect("arguments", call.args.len(), batches.len())?;
    expect("results", call.rets.len(), batches.len())?;
    let tensors = call.args.iter().map(Buffer::tensor).collect::<Result<Vec<_>, _>>()?;
    let leaves: Vec<_> = batches.iter().copied().zip(tensors).collect();
    let found = on_threads(&batches, effort, || norms(&leaves));
    for (result, norms) in call.rets.into_iter().zip(found) {
        // The result may have entries for blocks without numbers, which the core does not count: their norm is 0.
        let value = |index: usize| norms.get(index).copied().unwrap_or(0.0);
        match result.into_tensor()? {
            TensorMut::F32(out) => out.iter_mut().enumerate().for_each(|(index, out)| *out = value(index) as f32),
            TensorMut::F64(out) => out.iter_mut().enumerate().for_each(|(index, out)| *out = value(index)),
            _ => return Err("norms must be of float32 or float64".to_owned()),
        }
    }
    Ok(())
}

fn apply_to(call: Call<'_>) -> Result<(), String> {
    let op = chosen(&call, "operation", &OPERATIONS)?;
    let accuracy = chosen(&call, "accuracy", &ACCURACIES)?;
    let batches = batches(&call)?;
    let leaves = batches.len();
    expect("arguments", call.args.len(), 2 * leaves)?;
    expect("results", call.rets.len(), leaves)?;
    let mut items = Vec::with_capacity(leaves);
    for (((&batch, array), numbers), output) in batches.iter().zip(&call.args).zip(&call.args[leaves..]).zip(call.rets) {
        expect("numbers in a result", output.len(), array.len)?;
        let (input, output, scales) = (array.tensor()?, output.into_tensor()?, scales(numbers, batch, array)?);
        if !output.fits(input) {
            return Err("a result must have the dtype of its array".to_owned());
        }
        if array.len > 0 {
            items.push(Item { batch, op, input, output, scales, vectors: None });
        }
    }
    on_threads(&batches, op.effort(), || blocks::apply(items, accuracy));
    Ok(())
}

fn factors_of(call: Call<'_>) -> Result<(), String> {
    let batches = batches(&call)?;
    let leaves = batches.len();
    let spectral = batches.iter().filter(|batch| batch.geometry == Geometry::Spectral).count();
    let warm = call.args.len() > 2 * leaves;
    expect("arguments", call.args.len(), 2 * leaves + if warm { spectral } else { 0 })?;
    expect("results", call.rets.len(), leaves + spectral)?;

    let mut results = call.rets.into_iter();
    let outputs: Vec<_> = results.by_ref().take(leaves).collect();
    let given = &call.args[2 * leaves..];
    let mut estimates = results.enumerate().map(|(index, result)| (given.get(index), result));
    let mut measured = Vec::with_capacity(leaves);
    for (((&batch, array), numbers), output) in batches.iter().zip(&call.args).zip(&call.args[leaves..]).zip(outputs) {
        let (input, scales) = (array.tensor()?, scales(numbers, batch, array)?);
        let wide = matches!(input, Tensor::F64(_));
        let each = if batch.geometry == Geometry::Spectral { 1 } else { batch.rows };
        expect("numbers in the factors of a leaf", output.len(), if array.len == 0 { output.len() } else { 2 * batch.count * each })?;
        let factors = working(output, wide)?;
        let place = if batch.geometry == Geometry::Spectral { estimates.next() } else { None };
        let vectors = place.map(|(given, result)| start(given, result, batch, wide)).transpose()?;
        if array.len > 0 {
            measured.push(Measured { batch, input, scales, vectors, factors });
        }
    }
    on_threads(&batches, Effort::Reads, || factors::factors(measured));
    Ok(())
}

/// The scales of a leaf, one for each block. For an array without numbers any count of scales is accepted.
fn scales<'a>(numbers: &Buffer<'a>, batch: Batch, array: &Buffer<'_>) -> Result<Cow<'a, [f64]>, String> {
    expect("scales", numbers.len, if array.len == 0 { numbers.len } else { batch.count })?;
    match numbers.tensor()? {
        Tensor::F32(scales) => Ok(memory::collected(scales.iter().map(|&scale| f64::from(scale))).into()),
        Tensor::F64(scales) => Ok(Cow::Borrowed(scales)),
        _ => Err("scales must be of float32 or float64".to_owned()),
    }
}

/// A result in the working precision of its leaf.
fn working(result: ResultBuffer<'_>, wide: bool) -> Result<WorkingMut<'_>, String> {
    match result.into_tensor()? {
        TensorMut::F32(numbers) if !wide => Ok(WorkingMut::Single(numbers)),
        TensorMut::F64(numbers) if wide => Ok(WorkingMut::Double(numbers)),
        _ => Err("factors and vectors must be of float64 for leaves of float64, else of float32".to_owned()),
    }
}

/// The estimates that the call refines in place: a copy of the given ones, or zeros for a cold start.
fn start<'a>(given: Option<&Buffer<'_>>, result: ResultBuffer<'a>, batch: Batch, wide: bool) -> Result<WorkingMut<'a>, String> {
    if batch.count > 0 {
        expect("numbers in the vectors of a leaf", result.len(), batch.count * VECTORS * batch.cols)?;
    }
    // A result is all zeros at first.
    let mut vectors = working(result, wide)?;
    match (given.map(Buffer::tensor).transpose()?, &mut vectors) {
        (Some(Tensor::F32(from)), WorkingMut::Single(to)) if from.len() == to.len() => to.copy_from_slice(from),
        (Some(Tensor::F64(from)), WorkingMut::Double(to)) if from.len() == to.len() => to.copy_from_slice(from),
        (None, _) => {}
        _ => return Err("vectors must have one shape and dtype before and after".to_owned()),
    }
    Ok(vectors)
}

/// Runs a map on the pool of threads that all calls share, or on the calling thread if the map is small.
fn on_threads<R: Send>(batches: &[Batch], effort: Effort, map: impl FnOnce() -> R + Send) -> R {
    if pool::is_small(batches.iter().copied(), effort) {
        return interrupt::without(map);
    }
    match pool::get() {
        Some(pool) => pool.install(|| interrupt::without(map)),
        None => pool::alone(|| interrupt::without(map)),
    }
}

fn expect(what: &str, found: usize, expected: usize) -> Result<(), String> {
    if found == expected { Ok(()) } else { Err(format!("expected {expected} {what}, got {found}")) }
}
