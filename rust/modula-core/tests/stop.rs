//! A computation ends when it is interrupted, wherever it is, and the threads it ran on work on.

#![allow(missing_docs)]

use std::borrow::Cow;
use std::time::Duration;

use modula_core::atom::Geometry;
use modula_core::blocks::{self, Item, Op};
use modula_core::interrupt::{self, Interrupt};
use modula_core::linalg::Accuracy;
use modula_core::norm::Batch;
use modula_core::pool;
use modula_core::stop::{Stopped, catch};
use modula_core::tensor::{Tensor, TensorMut};

/// A matrix of rank 3 whose rows are all different: a polar factor to rounding takes rotations, minutes of them at this size.
fn low_rank(side: usize) -> Vec<f32> {
    let wave = |i: usize, j: usize| (1..4).map(|k| ((i * k) as f32).sin() * ((j * k) as f32 * 0.7).cos()).sum();
    (0..side * side).map(|at| wave(at / side, at % side)).collect()
}

fn polar(input: &[f32], count: usize, side: usize, op: Op) {
    let batch = Batch { geometry: Geometry::Spectral, count, rows: side, cols: side };
    let mut output = vec![0.0; input.len()];
    let scales = Cow::Owned(vec![1.0; count]);
    let item = Item { batch, op, input: Tensor::F32(input), output: TensorMut::F32(&mut output), scales, vectors: None };
    blocks::apply(vec![item], Accuracy::Standard);
}

/// Interrupts work that would otherwise last for minutes.
fn interrupted(work: impl FnOnce() + Send) -> Result<(), Stopped> {
    let interrupt = Interrupt::default();
    std::thread::scope(|scope| {
        let raiser = interrupt.clone();
        scope.spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            raiser.raise();
        });
        let pool = pool::get().unwrap();
        catch(|| pool.install(|| interrupt.run(work)))
    })
}

#[test]
fn one_matrix_is_left_in_the_middle() {
    let matrix = low_rank(1500);
    assert_eq!(interrupted(|| polar(&matrix, 1, 1500, Op::Exact)), Err(Stopped::Interrupted));
    assert_eq!(interrupted(|| drop(blocks::dual_norms(&[(square(1500), Tensor::F32(&matrix))]))), Err(Stopped::Interrupted));
}

#[test]
fn products_of_one_matrix_are_left_in_the_middle() {
    let matrix = low_rank(4096);
    assert_eq!(interrupted(|| (0..1000).for_each(|_| polar(&matrix, 1, 4096, Op::Direction))), Err(Stopped::Interrupted));
}

#[test]
fn many_small_matrices_are_left_in_the_middle() {
    let matrices = low_rank(1024);
    assert_eq!(interrupted(|| (0..100_000).for_each(|_| polar(&matrices, 4096, 16, Op::Exact))), Err(Stopped::Interrupted));
}

#[test]
fn what_runs_under_no_flag_is_not_interrupted() {
    let interrupt = Interrupt::default();
    interrupt.raise();
    let small = low_rank(8);
    assert_eq!(catch(|| interrupt.run(|| polar(&small, 1, 8, Op::Direction))), Err(Stopped::Interrupted));
    assert_eq!(catch(|| polar(&small, 1, 8, Op::Direction)), Ok(()));
    let nested = catch(|| Interrupt::default().run(|| interrupt::without(|| polar(&small, 1, 8, Op::Direction))));
    assert_eq!(nested, Ok(()));
}

#[test]
fn a_panic_is_not_taken_for_a_stop() {
    let panic = std::panic::catch_unwind(|| catch(|| std::panic::resume_unwind(Box::new("a defect"))));
    assert_eq!(panic.unwrap_err().downcast_ref::<&str>(), Some(&"a defect"));
}

fn square(side: usize) -> Batch {
    Batch { geometry: Geometry::Spectral, count: 1, rows: side, cols: side }
}
