//! What a tree costs: building it, inferring from it, flattening it, by size.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use modula_core::atom::{Atom, AtomKind};
use modula_core::bond::Bond;
use modula_core::flatten::flatten;
use modula_core::module::Module;

fn linear() -> Module {
    Module::atom(Atom::new(AtomKind::Linear { fanout: 64, fanin: 64 }, 1.0, None).expect("a valid atom"), None)
}

fn chain(length: usize) -> Module {
    let relu = Module::bond(Bond::builtin("ReLU", None).expect("a known bond"), None);
    (1..length).fold(linear(), |inner, _| {
        let inner = relu.compose(&inner).expect("features fit");
        linear().compose(&inner).expect("features fit")
    })
}

fn construction(c: &mut Criterion) {
    let mut group = c.benchmark_group("construct a chain");
    for length in [10, 1_000, 100_000] {
        group.bench_with_input(BenchmarkId::from_parameter(length), &length, |b, &length| b.iter(|| chain(black_box(length))));
    }
    group.finish();
    let block = chain(4);
    c.bench_function("power of a million, everything inferred", |b| {
        b.iter(|| {
            let module = block.power(black_box(1_000_000)).expect("features fit");
            let (norm, _) = flatten(&module).expect("a valid tree");
            (module.mass(), module.sensitivity(), module.sharpness().expect("a valid tree"), norm.leaves.len())
        });
    });
}

fn propagation(c: &mut Criterion) {
    let mut group = c.benchmark_group("targets of every atom");
    for length in [10, 1_000, 100_000] {
        let module = chain(length);
        group.bench_with_input(BenchmarkId::from_parameter(length), &module, |b, module| {
            b.iter(|| {
                let (norm, _) = flatten(black_box(module)).expect("a valid tree");
                let mut total = 0.0;
                norm.for_each_atom(|each, index| {
                    total += each.target(index, 1.0, "")?;
                    Ok(())
                })
                .expect("finite targets");
                total
            });
        });
    }
    group.finish();
    let module = chain(1_000);
    c.bench_function("sharpness of a chain of 1000", |b| b.iter(|| black_box(&module).sharpness().expect("a valid tree")));
}

criterion_group!(benches, construction, propagation);
criterion_main!(benches);
