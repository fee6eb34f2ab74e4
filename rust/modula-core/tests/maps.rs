//! The maps on whole models: the identities that define them, for every dtype.

use half::{bf16, f16};
use modula_core::atom::{Atom, AtomKind};
use modula_core::execute::{self, MapError, NonFinite, Options, execute};
use modula_core::flatten::flatten;
use modula_core::linalg::VECTORS;
use modula_core::module::Module;
use modula_core::norm::Norm;
use modula_core::recipe::{self, Map, recipe};
use modula_core::tensor::{Tensor, TensorMut, WorkingMut};
use rand::{Rng, SeedableRng, rngs::StdRng};
use rand_distr::StandardNormal;

fn model() -> Norm {
    let atom = |kind, mass| Module::atom(Atom::new(kind, mass, None).unwrap(), None);
    let layers = [
        atom(AtomKind::Embed { d_embed: 6, num_embed: 11 }, 0.5),
        atom(AtomKind::Conv2D { out_channels: 6, in_channels: 6, kernel: [3, 2] }, 1.0),
        atom(AtomKind::Linear { fanout: 6, fanin: 6 }, 2.0).power(3).unwrap(),
        atom(AtomKind::Bias { d: 6 }, 1.0),
        atom(AtomKind::Scale { d: 6 }, 1.0),
        atom(AtomKind::Linear { fanout: 3, fanin: 6 }, 1.0),
    ];
    let [first, rest @ ..] = layers;
    let module = rest.iter().fold(first, |inner, outer| outer.compose(&inner).unwrap());
    flatten(&module.scaled(0.5, None).unwrap()).unwrap().0
}

fn size(norm: &Norm, leaf: usize) -> usize {
    norm.shape(&norm.leaves[leaf]).iter().product()
}

fn gradients(norm: &Norm, scale: f64) -> Vec<Vec<f64>> {
    let mut rng = StdRng::seed_from_u64(1);
    let draw = |n| (0..n).map(|_| scale * rng.sample::<f64, _>(StandardNormal)).collect();
    (0..norm.leaves.len()).map(|leaf| size(norm, leaf)).map(draw).collect()
}

fn apply(norm: &Norm, map: Map, inputs: &[Tensor<'_>], mut outputs: Vec<TensorMut<'_>>, options: Options) -> Result<(), MapError> {
    let mut vectors: Vec<_> = inputs.iter().map(|_| None).collect();
    execute(norm, &recipe(norm, map).unwrap(), inputs, &mut outputs, &mut vectors, options)
}

fn run(norm: &Norm, inputs: &[Vec<f64>], map: Map, options: Options) -> Result<Vec<Vec<f64>>, MapError> {
    let mut outputs: Vec<Vec<f64>> = inputs.iter().map(|x| vec![0.0; x.len()]).collect();
    let places = outputs.iter_mut().map(|x| TensorMut::F64(x)).collect();
    let views: Vec<_> = inputs.iter().map(|x| Tensor::F64(x)).collect();
    apply(norm, map, &views, places, options)?;
    Ok(outputs)
}

fn norms(norm: &Norm, views: &[Tensor<'_>]) -> Vec<f64> {
    execute::norms(&recipe::norms(norm).unwrap(), views)
}

fn largest(norm: &Norm, weights: &[Vec<f64>]) -> f64 {
    let views: Vec<_> = weights.iter().map(|x| Tensor::F64(x)).collect();
    norms(norm, &views).into_iter().fold(0.0, f64::max)
}

const DEFAULT: fn() -> Options = Options::default;

#[test]
fn dualizing_attains_the_dual_norm_at_any_scale() {
    let norm = model();
    for scale in [1.0, 1e-30, 1e30, 1e-150] {
        let g = gradients(&norm, scale);
        let d = run(&norm, &g, Map::Dualize, DEFAULT()).unwrap();
        let gained: f64 = g.iter().flatten().zip(d.iter().flatten()).map(|(g, d)| g * d).sum();
        let views: Vec<_> = g.iter().map(|x| Tensor::F64(x)).collect();
        let dual: f64 = execute::dual_norms(&recipe::dual_norms(&norm).unwrap(), &views).iter().sum();
        // Directions are within 0.01 of orthogonal, so the inner product is within 0.01 of the sum of singular values.
        assert!((gained / dual - 1.0).abs() < 0.01, "{scale}: {gained} {dual}");
        assert!((largest(&norm, &d) - 1.0).abs() < 0.02);
    }
}

#[test]
fn normalising_fills_every_target() {
    let norm = model();
    for target_norm in [1.0, 0.25] {
        let update = run(&norm, &gradients(&norm, 3.0), Map::Normalize, Options { amount: target_norm, ..DEFAULT() }).unwrap();
        let views: Vec<_> = update.iter().map(|x| Tensor::F64(x)).collect();
        for value in norms(&norm, &views) {
            assert!((value / target_norm - 1.0).abs() < 0.02, "{value}");
        }
    }
}

#[test]
fn zeros_give_zeros_and_projections_are_idempotent() {
    let norm = model();
    let zeros: Vec<Vec<f64>> = gradients(&norm, 1.0).into_iter().map(|x| vec![0.0; x.len()]).collect();
    for map in Map::ALL {
        assert_eq!(run(&norm, &zeros, map, DEFAULT()).unwrap(), zeros);
    }
    let once = run(&norm, &gradients(&norm, 1.0), Map::Project, DEFAULT()).unwrap();
    let twice = run(&norm, &once, Map::Project, DEFAULT()).unwrap();
    for (a, b) in once.iter().flatten().zip(twice.iter().flatten()) {
        assert!((a - b).abs() < 1e-10);
    }
}

#[test]
fn what_is_not_finite_is_refused_skipped_or_let_through() {
    let norm = model();
    let mut g = gradients(&norm, 1.0);
    let linear = 2; // three copies of 6 x 6
    g[linear][36] = f64::NAN;
    g[linear][40] = f64::INFINITY;
    let message = run(&norm, &g, Map::Dualize, DEFAULT()).unwrap_err().to_string();
    assert!(message.starts_with("linear: 2 of 108 numbers are not finite"), "{message}");
    let skipped = run(&norm, &g, Map::Dualize, Options { nonfinite: NonFinite::Zero, ..DEFAULT() }).unwrap();
    assert!(skipped.iter().flatten().all(|x| x.is_finite()));
    let copy = |i: usize| skipped[linear][36 * i..36 * (i + 1)].iter().map(|x| x.abs()).sum::<f64>();
    assert!(copy(0) > 0.0 && copy(1) == 0.0 && copy(2) > 0.0);
    let through = run(&norm, &g, Map::Dualize, Options { nonfinite: NonFinite::Propagate, ..DEFAULT() }).unwrap();
    assert!(through[linear].iter().any(|x| x.is_nan()) && through[0].iter().all(|x| x.is_finite()));
}

#[test]
fn half_precision_is_computed_in_single_and_rounded_once() {
    let norm = model();
    let singles: Vec<Vec<f32>> = gradients(&norm, 1.0).iter().map(|x| x.iter().map(|&x| f16::from_f64(x).to_f32()).collect()).collect();
    let mut expected: Vec<Vec<f32>> = singles.iter().map(|x| vec![0.0; x.len()]).collect();
    let views: Vec<_> = singles.iter().map(|x| Tensor::F32(x)).collect();
    apply(&norm, Map::Dualize, &views, expected.iter_mut().map(|x| TensorMut::F32(x)).collect(), DEFAULT()).unwrap();

    let halves: Vec<Vec<f16>> = singles.iter().map(|x| x.iter().map(|&x| f16::from_f32(x)).collect()).collect();
    let mut got: Vec<Vec<f16>> = halves.iter().map(|x| vec![f16::ZERO; x.len()]).collect();
    let views: Vec<_> = halves.iter().map(|x| Tensor::F16(x)).collect();
    apply(&norm, Map::Dualize, &views, got.iter_mut().map(|x| TensorMut::F16(x)).collect(), DEFAULT()).unwrap();
    for (a, b) in got.iter().flatten().zip(expected.iter().flatten()) {
        assert_eq!(*a, f16::from_f32(*b));
    }

    let brains: Vec<Vec<bf16>> = singles.iter().map(|x| x.iter().map(|&x| bf16::from_f32(x)).collect()).collect();
    let views: Vec<_> = brains.iter().map(|x| Tensor::BF16(x)).collect();
    let mut got: Vec<Vec<bf16>> = brains.iter().map(|x| vec![bf16::ZERO; x.len()]).collect();
    apply(&norm, Map::Dualize, &views, got.iter_mut().map(|x| TensorMut::BF16(x)).collect(), DEFAULT()).unwrap();
    let views: Vec<_> = got.iter().map(|x| Tensor::BF16(x)).collect();
    // bfloat16 keeps 8 bits: the norm of the rounded update is within 2^-8 sqrt(n)-ish of 1.
    let norm = norms(&norm, &views).into_iter().fold(0.0, f64::max);
    assert!((norm - 1.0).abs() < 0.03, "{norm}");
}

#[test]
fn the_radius_is_the_norm_at_initialisation_and_keeps_directions() {
    let norm = model();
    let weights = gradients(&norm, 7.0);
    let back = run(&norm, &weights, Map::Radius, DEFAULT()).unwrap();
    for (leaf, (before, after)) in norm.leaves.iter().zip(weights.iter().zip(&back)) {
        let lead = norm.lead(leaf);
        if matches!(&*lead.kind, "Bias" | "Scale") {
            assert_eq!(before, after);
            continue;
        }
        let batch = norm.batch(leaf, lead);
        let found = modula_core::blocks::norms(&[(batch, Tensor::F64(after))]).remove(0);
        // The norm that divides is within 1 % of the true one, and so is the one that measures.
        assert!(found.iter().all(|value| (value / lead.unit - 1.0).abs() < 0.02), "{}: {found:?}", leaf.path);
        let each = if &*lead.kind == "Embed" { batch.cols } else { batch.rows * batch.cols };
        for (before, after) in before.chunks(each).zip(after.chunks(each)) {
            let along: f64 = before.iter().zip(after).map(|(a, b)| a * b).sum();
            let lengths = before.iter().map(|x| x * x).sum::<f64>() * after.iter().map(|x| x * x).sum::<f64>();
            assert!(along > 0.0 && (along * along / lengths - 1.0).abs() < 1e-12);
        }
    }
}

#[test]
fn estimates_replace_the_search_from_cold() {
    let norm = model();
    let g = gradients(&norm, 1.0);
    let cold = run(&norm, &g, Map::Normalize, DEFAULT()).unwrap();
    let halves: Vec<Vec<bf16>> = g.iter().map(|x| x.iter().map(|&x| bf16::from_f64(x)).collect()).collect();
    let mut vectors: Vec<Option<Vec<f32>>> = (norm.leaves.iter())
        .map(|leaf| norm.batch(leaf, norm.lead(leaf)))
        .map(|batch| (batch.geometry == modula_core::atom::Geometry::Spectral).then(|| vec![0.0; batch.count * VECTORS * batch.cols]))
        .collect();
    let views: Vec<_> = halves.iter().map(|x| Tensor::BF16(x)).collect();
    for _ in 0..2 {
        let mut warm: Vec<Vec<bf16>> = halves.iter().map(|x| vec![bf16::ZERO; x.len()]).collect();
        let mut outputs: Vec<_> = warm.iter_mut().map(|x| TensorMut::BF16(x)).collect();
        let mut places: Vec<_> = vectors.iter_mut().map(|v| v.as_mut().map(|v| WorkingMut::Single(v))).collect();
        execute(&norm, &recipe(&norm, Map::Normalize).unwrap(), &views, &mut outputs, &mut places, DEFAULT()).unwrap();
        for (a, b) in warm.iter().flatten().zip(cold.iter().flatten()) {
            // 1 % for the norm, and two roundings to eight bits.
            assert!((a.to_f64() - b).abs() <= 0.02 * b.abs() + 1e-30, "{a} {b}");
        }
        assert!(vectors.iter().flatten().flatten().any(|&x| x != 0.0));
    }
}

#[test]
fn a_target_norm_that_no_update_can_have_is_refused() {
    let norm = model();
    let refused = run(&norm, &gradients(&norm, 1.0), Map::Dualize, Options { amount: f64::INFINITY, ..DEFAULT() });
    assert!(matches!(refused, Err(MapError::Amount { .. })));
}
