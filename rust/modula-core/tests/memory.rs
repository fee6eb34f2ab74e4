//! What the maps allocate: no more than a small multiple of the largest batch of equal matrices, and nothing for each matrix. Memory that
//! is refused stops the map, not the process.

#![allow(missing_docs)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::borrow::Cow;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use half::bf16;
use modula_core::atom::Geometry;
use modula_core::blocks::{self, Item, Op};
use modula_core::factors::{Measured, factors};
use modula_core::linalg::{Accuracy, VECTORS};
use modula_core::norm::Batch;
use modula_core::stop::{Stopped, catch};
use modula_core::tensor::{Tensor, TensorMut, WorkingMut};

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
static CALLS: AtomicUsize = AtomicUsize::new(0);
/// Requests of more bytes are refused.
static LARGEST: AtomicUsize = AtomicUsize::new(usize::MAX);

struct Counting;

// SAFETY: every call goes to the system's allocator as it came, or is refused.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.size() > LARGEST.load(Relaxed) {
            return std::ptr::null_mut();
        }
        CALLS.fetch_add(1, Relaxed);
        PEAK.fetch_max(LIVE.fetch_add(layout.size(), Relaxed) + layout.size(), Relaxed);
        // SAFETY: the caller's contract is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's contract is the same.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Tests of one process share the counters.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The most bytes alive during some work beyond those before it, and how often it asked for memory.
fn watch(work: impl FnOnce() + Send) -> (usize, usize) {
    let (before, calls) = (LIVE.load(Relaxed), CALLS.load(Relaxed));
    PEAK.store(before, Relaxed);
    work();
    (PEAK.load(Relaxed) - before, CALLS.load(Relaxed) - calls)
}

fn numbers(len: usize) -> Vec<f32> {
    let mut state = 1_u64;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    })
    .take(len)
    .collect()
}

/// A model of three leaves; the first is the largest batch.
fn model() -> Vec<Batch> {
    let spectral = |count, rows, cols| Batch { geometry: Geometry::Spectral, count, rows, cols };
    let table = Batch { geometry: Geometry::RowRms, count: 1, rows: 4000, cols: 256 };
    vec![spectral(32, 256, 256), spectral(8, 512, 256), table]
}

/// Updates a model and returns the peak over the bytes of its largest batch.
fn share<T: Copy + Send + Sync>(from: fn(f32) -> T, tensor: fn(&[T]) -> Tensor<'_>, room: fn(&mut [T]) -> TensorMut<'_>, op: Op) -> f64 {
    let batches = model();
    let inputs: Vec<Vec<T>> =
        batches.iter().map(|batch| numbers(batch.count * batch.rows * batch.cols).into_iter().map(from).collect()).collect();
    let mut outputs = inputs.clone();
    let scales: Vec<Vec<f64>> = batches.iter().map(|batch| vec![1.0; batch.count]).collect();
    let items: Vec<_> = batches
        .iter()
        .zip(inputs.iter().zip(&mut outputs))
        .zip(&scales)
        .map(|((&batch, (input, output)), scales)| {
            let (input, output) = (tensor(input), room(output));
            Item { batch, op, input, output, scales: Cow::Borrowed(scales), vectors: None }
        })
        .collect();
    // Buffers are kept by thread: new threads have none.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    let (peak, _) = watch(|| pool.install(|| blocks::apply(items, Accuracy::Standard)));
    peak as f64 / size_of_val(inputs[0].as_slice()) as f64
}

#[test]
fn operations_take_less_than_three_times_the_largest_group() {
    let _alone = alone();
    for op in [Op::Unit, Op::Direction] {
        let single = share(|x| x, |x| Tensor::F32(x), |x| TensorMut::F32(x), op);
        let double = share(f64::from, |x| Tensor::F64(x), |x| TensorMut::F64(x), op);
        let half = share(bf16::from_f32, |x| Tensor::BF16(x), |x| TensorMut::BF16(x), op);
        assert!(single < 1.0 && double < 1.0 && half < 3.0, "{op:?}: {single:.2} in f32, {double:.2} in f64, {half:.2} in bf16");
    }
}

#[test]
fn norms_of_half_precision_widen_one_leaf_at_a_time() {
    let _alone = alone();
    let batches = model();
    let inputs: Vec<Vec<bf16>> =
        batches.iter().map(|batch| numbers(batch.count * batch.rows * batch.cols).into_iter().map(bf16::from_f32).collect()).collect();
    let leaves: Vec<_> = batches.iter().zip(&inputs).map(|(&batch, input)| (batch, Tensor::BF16(input))).collect();
    let (peak, _) = watch(|| drop(blocks::norms(&leaves)));
    let share = peak as f64 / size_of_val(inputs[0].as_slice()) as f64;
    assert!(share < 3.0, "{share:.2} of the largest batch");
}

#[test]
fn small_matrices_are_not_allocated_for_one_by_one() {
    let _alone = alone();
    let batch = Batch { geometry: Geometry::Spectral, count: 2000, rows: 16, cols: 16 };
    let input = numbers(batch.count * 16 * 16);
    let (mut output, mut vectors) = (input.clone(), numbers(batch.count * VECTORS * 16));
    let scales = vec![1.0; batch.count];
    for op in [Op::Unit, Op::Direction] {
        let mut call = || {
            let (input, output) = (Tensor::F32(&input), TensorMut::F32(&mut output));
            blocks::apply(vec![Item { batch, op, input, output, scales: Cow::Borrowed(&scales), vectors: None }], Accuracy::Standard);
        };
        call();
        let (_, calls) = watch(call);
        assert!(calls < 100, "{op:?}: {calls} allocations for {} matrices", batch.count);
    }
    let mut pairs = vec![0.0; 2 * batch.count];
    let mut call = || {
        let (vectors, factors_out) = (Some(WorkingMut::Single(&mut vectors)), WorkingMut::Single(&mut pairs));
        let input = Tensor::F32(&input);
        factors(vec![Measured { batch, input, scales: Cow::Borrowed(&scales), vectors, factors: factors_out }]);
    };
    call();
    let (_, calls) = watch(call);
    assert!(calls < 100, "factors: {calls} allocations for {} matrices", batch.count);
}

/// What `work` gives with an allocator that refuses larger requests, on threads that have no buffers yet.
fn within<R: Send>(largest: usize, work: impl FnOnce() -> R + Send) -> Result<R, Stopped> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    // What the pool keeps for itself is asked for when it is first used.
    pool.install(|| rayon::join(|| (), || ()));
    LARGEST.store(largest, Relaxed);
    let result = catch(|| pool.install(work));
    LARGEST.store(usize::MAX, Relaxed);
    result
}

/// A model whose lists with an entry for each matrix, buffers for one matrix and rows of a table are all of some size.
fn varied() -> Vec<(Batch, Vec<f32>)> {
    let batch = |geometry, count, rows, cols| Batch { geometry, count, rows, cols };
    let batchs = [
        batch(Geometry::Spectral, 4000, 2, 2),
        batch(Geometry::Spectral, 2, 96, 80),
        batch(Geometry::Spectral, 1, 64, 40),
        batch(Geometry::RowRms, 2, 4000, 3),
        batch(Geometry::MaxAbs, 5000, 1, 4),
    ];
    let mut model: Vec<_> = batchs.into_iter().map(|batch| (batch, numbers(batch.count * batch.rows * batch.cols))).collect();
    // Of rank 1: the exact maps take rotations.
    model[2].1 = model[2].1[..40].repeat(64);
    model
}

/// Bounds from one that refuses almost every list to one that refuses nothing.
const BOUNDS: [usize; 7] = [1 << 14, 1 << 15, 1 << 16, 1 << 17, 1 << 18, 1 << 20, 1 << 24];

/// Holds a map, given a bound, to its answer without one or to word of a request beyond it; both must occur.
fn assert_stops<R: PartialEq>(what: &str, map: impl Fn(usize) -> Result<R, Stopped>) {
    let expected = map(usize::MAX).ok();
    let stopped = BOUNDS.map(|bound| match map(bound) {
        Ok(result) => {
            assert!(Some(result) == expected, "{what}: another answer within {bound} bytes");
            false
        }
        Err(stopped) => {
            let Stopped::OutOfMemory { bytes } = stopped else { panic!("{what}: {stopped}") };
            assert!(bytes > bound, "{what}: {bytes} bytes were refused within {bound}");
            true
        }
    });
    assert!(stopped[0] && !stopped[BOUNDS.len() - 1], "{what}: {stopped:?}");
}

fn assert_all_stop<T: Copy + Send + Sync + PartialEq>(
    from: fn(f32) -> T,
    tensor: fn(&[T]) -> Tensor<'_>,
    room: fn(&mut [T]) -> TensorMut<'_>,
) {
    let model: Vec<(Batch, Vec<T>)> =
        varied().into_iter().map(|(batch, numbers)| (batch, numbers.into_iter().map(from).collect())).collect();
    let leaves: Vec<_> = model.iter().map(|(batch, numbers)| (*batch, tensor(numbers))).collect();
    assert_stops("norms", |bound| within(bound, || blocks::norms(&leaves)));
    assert_stops("dual norms", |bound| within(bound, || blocks::dual_norms(&leaves)));
    for op in [Op::Unit, Op::Direction, Op::Exact] {
        assert_stops(&format!("{op:?}"), |bound| {
            let mut outputs: Vec<Vec<T>> = model.iter().map(|(_, numbers)| numbers.clone()).collect();
            let scales = |batch: &Batch| Cow::Owned(vec![1.0; batch.count]);
            let items = leaves.iter().zip(&mut outputs);
            let items = items.map(|((batch, input), output)| Item {
                batch: *batch,
                op,
                input: *input,
                output: room(output),
                scales: scales(batch),
                vectors: None,
            });
            let items: Vec<_> = items.collect();
            within(bound, || blocks::apply(items, Accuracy::Standard)).map(|()| outputs)
        });
    }
}

#[test]
fn memory_that_is_refused_stops_the_map_and_not_the_process() {
    let _alone = alone();
    assert_all_stop(|x| x, |x| Tensor::F32(x), |x| TensorMut::F32(x));
    assert_all_stop(f64::from, |x| Tensor::F64(x), |x| TensorMut::F64(x));
    assert_all_stop(bf16::from_f32, |x| Tensor::BF16(x), |x| TensorMut::BF16(x));
}
