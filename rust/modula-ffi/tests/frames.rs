//! The handlers on call frames made by hand. Under Miri this also shows reads of memory that nobody has written, and pointers out of
//! bounds.

#![allow(missing_docs)]

mod frame;

use std::ffi::c_int;
use std::ptr;

use frame::{Array, Call, Failure};
use half::{bf16, f16};
use modula_core::atom::Geometry;
use modula_core::blocks::{self, Op};
use modula_core::linalg::{Accuracy, VECTORS};
use modula_core::norm::Batch;
use modula_core::tensor::{Tensor, TensorMut};
use modula_ffi::abi::{self, Handler, dtype};
use modula_ffi::{GEOMETRIES, HANDLERS, OPERATIONS};

fn handler(name: &str) -> Handler {
    HANDLERS.into_iter().find(|&(found, _)| found == name).unwrap().1
}

/// Three leaves of 2 x 3 x 4 numbers: matrices, tables and vectors of one row less.
const SHAPES: [(i32, [i64; 3]); 3] = [(0, [2, 3, 4]), (1, [2, 3, 4]), (3, [2, 1, 4])];

fn numbers(len: i64) -> Vec<f32> {
    (0..len).map(|index| ((index * 37 + 11) % 101) as f32 / 50.0 - 1.0).collect()
}

fn geometry() -> (&'static str, Vec<i32>) {
    ("geometry", SHAPES.iter().map(|&(geometry, _)| geometry).collect())
}

/// Arrays, with a scale of 1.5 for each block, in the dtype whose bits `bits` makes.
fn updating<T: Copy>(dtype: c_int, from: fn(f32) -> T) -> Call {
    let input = |dims: &[i64; 3]| Array::of(dtype, dims, &numbers(dims.iter().product()).into_iter().map(from).collect::<Vec<_>>());
    let args = SHAPES.iter().map(|(_, dims)| input(dims)).chain(SHAPES.iter().map(|(_, dims)| scales(dims[0])));
    let rets = SHAPES.iter().map(|(_, dims)| Array::new(dtype, dims));
    Call { args: args.collect(), rets: rets.collect(), attrs: vec![("operation", vec![1]), ("accuracy", vec![0]), geometry()] }
}

fn scales(count: i64) -> Array {
    Array::of(dtype::F32, &[count], &vec![1.5_f32; count as usize])
}

fn batch((geometry, [count, rows, cols]): (i32, [i64; 3])) -> Batch {
    Batch { geometry: GEOMETRIES[geometry as usize], count: count as usize, rows: rows as usize, cols: cols as usize }
}

/// What the core makes of the same leaves.
fn expected<T: Copy + Default>(
    from: fn(f32) -> T,
    tensor: fn(&[T]) -> Tensor<'_>,
    room: fn(&mut [T]) -> TensorMut<'_>,
    op: Op,
) -> Vec<Vec<T>> {
    let leaf = |&(geometry, dims): &(i32, [i64; 3])| {
        let input: Vec<T> = numbers(dims.iter().product()).into_iter().map(from).collect();
        let mut output = vec![T::default(); input.len()];
        let batch = batch((geometry, dims));
        let scales = vec![1.5; batch.count].into();
        let item = blocks::Item { batch, op, input: tensor(&input), output: room(&mut output), scales, vectors: None };
        blocks::apply(vec![item], Accuracy::Standard);
        output
    };
    SHAPES.iter().map(leaf).collect()
}

fn assert_updates<T: Copy + Default + PartialEq + std::fmt::Debug>(
    dtype: c_int,
    from: fn(f32) -> T,
    tensor: fn(&[T]) -> Tensor<'_>,
    room: fn(&mut [T]) -> TensorMut<'_>,
) {
    for (index, op) in OPERATIONS.into_iter().enumerate() {
        let mut call = updating(dtype, from);
        call.attrs[0].1 = vec![index as i32];
        call.run(handler("apply")).unwrap();
        let found: Vec<Vec<T>> = call.rets.iter().map(Array::numbers).collect();
        assert_eq!(found, expected(from, tensor, room, op), "{op:?}");
    }
}

#[test]
fn updates_are_those_of_the_core_in_every_dtype() {
    assert_updates(dtype::F32, |x| x, |x| Tensor::F32(x), |x| TensorMut::F32(x));
    assert_updates(dtype::F64, f64::from, |x| Tensor::F64(x), |x| TensorMut::F64(x));
    assert_updates(dtype::F16, f16::from_f32, |x| Tensor::F16(x), |x| TensorMut::F16(x));
    assert_updates(dtype::BF16, bf16::from_f32, |x| Tensor::BF16(x), |x| TensorMut::BF16(x));
}

#[test]
fn measures_are_those_of_the_core() {
    for (name, measure) in [("norms", blocks::norms as fn(&[(Batch, Tensor<'_>)]) -> Vec<Vec<f64>>), ("dual_norms", blocks::dual_norms)] {
        let mut call = updating(dtype::F32, |x| x);
        call.args.truncate(SHAPES.len());
        call.rets = SHAPES.iter().map(|(_, dims)| Array::new(dtype::F32, &dims[..1])).collect();
        call.run(handler(name)).unwrap();
        for (&shape, found) in SHAPES.iter().zip(&call.rets) {
            let numbers = numbers(shape.1.iter().product());
            let norms = measure(&[(batch(shape), Tensor::F32(&numbers))]).remove(0);
            assert_eq!(found.numbers::<f32>(), norms.into_iter().map(|norm| norm as f32).collect::<Vec<_>>(), "{name}");
        }
    }
}

#[test]
fn factors_multiply_to_the_normalized_update_cold_and_warm() {
    let factored = |vectors: Option<Array>| {
        let mut call = updating(dtype::F32, |x| x);
        let pairs =
            |&(geometry, [count, rows, _]): &(i32, [i64; 3])| Array::new(dtype::F32, &[count, if geometry == 0 { 1 } else { rows }, 2]);
        call.rets = SHAPES.iter().map(pairs).collect();
        call.rets.push(Array::new(dtype::F32, &[2, VECTORS as i64, 4]));
        call.args.extend(vectors);
        call.run(handler("factors")).unwrap();
        call
    };
    let cold = factored(None);
    let warm = factored(Some(Array::of(dtype::F32, &[2, VECTORS as i64, 4], &cold.rets[3].numbers::<f32>())));
    let expected = expected(|x| x, |x: &[f32]| Tensor::F32(x), |x| TensorMut::F32(x), Op::Unit);
    for (call, tolerance) in [(cold, 1e-6), (warm, 1e-2)] {
        for ((&(geometry, [_, rows, cols]), pairs), expected) in SHAPES.iter().zip(&call.rets).zip(&expected) {
            let each = if geometry == 0 { rows * cols } else { cols } as usize;
            let pairs = pairs.numbers::<f32>();
            for (index, &x) in numbers(expected.len() as i64).iter().enumerate() {
                let found = x * pairs[2 * (index / each)] * pairs[2 * (index / each) + 1];
                assert!((found - expected[index]).abs() <= tolerance * 2.0, "{found} {}", expected[index]);
            }
        }
    }
}

#[test]
fn the_question_about_the_version_is_answered() {
    let version = |size| abi::ApiVersion { struct_size: size, extension_start: ptr::null_mut(), major: 7, minor: 7 };
    let mut metadata =
        abi::Metadata { struct_size: size_of::<abi::Metadata>(), api_version: version(size_of::<abi::ApiVersion>()), traits: 7 };
    let base = abi::Extension { struct_size: size_of::<abi::MetadataExtension>(), kind: abi::METADATA, next: ptr::null_mut() };
    let mut question = abi::MetadataExtension { base, metadata: &mut metadata };
    let asked = Call::default().distorted(handler("apply"), |frame| frame.extension_start = ptr::from_mut(&mut question).cast());
    assert_eq!(asked, Ok(()));
    assert_eq!((metadata.api_version.major, metadata.api_version.minor, metadata.traits), (0, 1, 0));
}

#[test]
fn stages_before_the_execution_have_nothing_to_do() {
    assert_eq!(Call::default().distorted(handler("apply"), |frame| frame.stage = 0), Ok(()));
}

/// Fails with the code for a bad argument and a message that holds a text.
fn refused(failure: Result<(), Failure>, text: &str) {
    let (code, message) = failure.unwrap_err();
    assert!(code == abi::INVALID_ARGUMENT && message.contains(text), "{code}: {message}");
}

#[test]
fn frames_of_another_layout_are_refused() {
    let call = || updating(dtype::F32, |x| x);
    let apply = handler("apply");
    refused(call().distorted(apply, |frame| frame.struct_size -= 1), "call frames");
    refused(call().distorted(apply, |frame| frame.args.struct_size += 8), "arguments, results and attributes");
    refused(call().distorted(apply, |frame| frame.rets.struct_size -= 8), "arguments, results and attributes");
    refused(call().distorted(apply, |frame| frame.attrs.struct_size += 8), "arguments, results and attributes");
    refused(call().distorted(apply, |frame| frame.args.types = [7; 6].as_ptr()), "must be a buffer, got kind 7");
    refused(call().distorted(apply, |frame| frame.args.size = -1), "leaves");
}

/// Changes the first buffer of the arguments or the results.
fn with_buffer(buffers: fn(&abi::CallFrame) -> &abi::Values, change: impl FnOnce(&mut abi::Buffer)) -> impl FnOnce(&mut abi::CallFrame) {
    move |frame| {
        // SAFETY: the frames made here point to buffers that nobody else refers to.
        change(unsafe { &mut *(*buffers(frame).values).cast::<abi::Buffer>() });
    }
}

#[test]
fn buffers_that_are_none_are_refused() {
    let call = || updating(dtype::F32, |x| x);
    let apply = handler("apply");
    for buffers in [(|frame| &frame.args) as fn(&abi::CallFrame) -> &abi::Values, |frame| &frame.rets] {
        refused(call().distorted(apply, with_buffer(buffers, |buffer| buffer.struct_size = 8)), "is a buffer of 8 bytes");
        refused(call().distorted(apply, with_buffer(buffers, |buffer| buffer.dtype = 99)), "got XLA type 99");
        refused(call().distorted(apply, with_buffer(buffers, |buffer| buffer.data = ptr::null_mut())), "lies at 0x0");
        refused(call().distorted(apply, with_buffer(buffers, |buffer| buffer.data = buffer.data.wrapping_byte_add(1))), "numbers lies at");
        refused(call().distorted(apply, with_buffer(buffers, |buffer| buffer.dims = ptr::null())), "lies at 0x0");
        refused(call().distorted(apply, with_buffer(buffers, |buffer| buffer.dims = [-1, 3, 4].as_ptr())), "has no size");
        refused(call().distorted(apply, with_buffer(buffers, |buffer| buffer.dims = [i64::MAX; 3].as_ptr())), "has no size");
    }
}

#[test]
fn calls_that_do_not_fit_together_are_refused() {
    let apply = handler("apply");
    let changed = |change: fn(&mut Call)| {
        let mut call = updating(dtype::F32, |x| x);
        change(&mut call);
        call.run(apply)
    };
    refused(changed(|call| drop(call.args.pop())), "expected 6 arguments, got 5");
    refused(changed(|call| drop(call.rets.pop())), "expected 3 results, got 2");
    refused(changed(|call| drop(call.attrs.pop())), "attribute geometry is missing");
    refused(changed(|call| call.attrs[2].1[0] = 4), "no geometry has index 4");
    refused(changed(|call| call.attrs[2].1[0] = -1), "no geometry has index -1");
    let operations = modula_core::blocks::Op::ON_BATCHES.len();
    let message = format!("operation must be one index below {operations}");
    refused(changed(|call| call.attrs[0].1 = vec![modula_core::blocks::Op::ON_BATCHES.len() as i32]), &message);
    refused(changed(|call| call.attrs[1].1 = vec![-1]), "accuracy must be one index below 3");
    refused(changed(|call| call.attrs[1].1 = vec![1, 2]), "got [1, 2]");
    refused(changed(|call| call.args[0] = scales(24)), "at least two axes");
    refused(changed(|call| call.args[3] = scales(3)), "expected 2 scales, got 3");
    refused(changed(|call| call.rets[0] = Array::new(dtype::F32, &[2, 3, 3])), "numbers in a result");
    refused(changed(|call| call.rets[0] = Array::new(dtype::F64, &[2, 3, 4])), "dtype of its array");
}

#[test]
fn arrays_without_numbers_are_served_whatever_their_other_axes() {
    for (index, dims) in [(1, [1 << 40, 1 << 20, 0]), (2, [0, 1 << 40, 1 << 20]), (0, [1 << 40, 0, 7])] {
        let args = vec![Array::new(dtype::F32, &dims), scales(5)];
        let mut call = Call { args, rets: vec![Array::new(dtype::F32, &dims)], attrs: vec![] };
        call.attrs = vec![("operation", vec![index]), ("accuracy", vec![0]), ("geometry", vec![0])];
        assert_eq!(call.run(handler("apply")), Ok(()));
    }
}

#[test]
fn frames_drawn_at_random_end_without_a_panic() {
    let mut state = 1_u64;
    let mut draw = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let (mut answered, mut refused) = (0, 0);
    for _ in 0..if cfg!(miri) { 100 } else { 20_000 } {
        let (_, handler) = HANDLERS[draw(4) as usize];
        let leaves = draw(3) as usize;
        let mut array = |numbers: bool| {
            let dims: Vec<i64> = (0..draw(4)).map(|_| draw(4) as i64).collect();
            let dtype = [dtype::F32, dtype::F32, dtype::F32, dtype::F64, dtype::F16, dtype::BF16, dtype::S32, 0][draw(8) as usize];
            if numbers {
                Array::of(dtype, &dims, &vec![0x3c00_3f80_3f00_u64; dims.iter().product::<i64>() as usize])
            } else {
                Array::new(dtype, &dims)
            }
        };
        let mut args: Vec<_> = (0..leaves).map(|_| array(true)).collect();
        let mut rets = args.clone();
        // Half of the calls come with what a map or a measure of these arrays takes.
        let fits = args.iter().all(|array| array.dims.len() == 3);
        if fits {
            args.extend(rets.clone().iter().map(|array| scales(array.dims[0])));
        } else {
            args.extend((0..leaves).map(|_| array(true)));
            rets = (0..leaves).map(|_| array(false)).collect();
        }
        let index = |index: u64| vec![index as i32];
        let geometry = (0..leaves).map(|_| draw(5) as i32).collect();
        let attrs = vec![("operation", index(draw(4))), ("accuracy", index(draw(4))), ("geometry", geometry)];
        match (Call { args, rets, attrs }).run(handler) {
            Ok(()) => answered += 1,
            Err((code, message)) => {
                assert_eq!(code, abi::INVALID_ARGUMENT, "{message}");
                refused += 1;
            }
        }
    }
    assert!(answered > 10 && refused > 10, "{answered} answered, {refused} refused");
    assert_eq!(GEOMETRIES[0], Geometry::Spectral);
}
