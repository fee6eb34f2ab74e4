//! The maps on whole models: the identities that define them, for every dtype.

use half::{bf16, f16};
use modula_core::atom::{Atom, AtomKind};
use modula_core::linalg::Accuracy;
use modula_core::maps::{self, Map, MapError, NonFinite};
use modula_core::module::Module;
use modula_core::plan::Plan;
use modula_core::tensor::{Tensor, TensorMut};
use rand::{Rng, SeedableRng, rngs::StdRng};
use rand_distr::StandardNormal;

const ACCURATE: Map = Map::Dualize { target_norm: 1.0, accuracy: Accuracy::Standard };

fn model() -> Plan {
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
    Plan::new(&module.scaled(0.5, None).unwrap()).unwrap()
}

fn size(plan: &Plan, leaf: usize) -> usize {
    let leaf = &plan.leaves[leaf];
    leaf.stack.iter().chain(&plan.lead(leaf).kind.shape()).product()
}

fn gradients(plan: &Plan, scale: f64) -> Vec<Vec<f64>> {
    let mut rng = StdRng::seed_from_u64(1);
    let draw = |n| (0..n).map(|_| scale * rng.sample::<f64, _>(StandardNormal)).collect();
    (0..plan.leaves.len()).map(|leaf| size(plan, leaf)).map(draw).collect()
}

fn run(plan: &Plan, inputs: &[Vec<f64>], map: Map, nonfinite: NonFinite) -> Result<Vec<Vec<f64>>, MapError> {
    let mut outputs: Vec<Vec<f64>> = inputs.iter().map(|x| vec![0.0; x.len()]).collect();
    let places = outputs.iter_mut().map(|x| TensorMut::F64(x)).collect();
    let views: Vec<_> = inputs.iter().map(|x| Tensor::F64(x)).collect();
    maps::apply(plan, &views, places, map, nonfinite)?;
    Ok(outputs)
}

fn norm(plan: &Plan, weights: &[Vec<f64>]) -> f64 {
    let views: Vec<_> = weights.iter().map(|x| Tensor::F64(x)).collect();
    maps::norms(plan, &views).unwrap().into_iter().fold(0.0, f64::max)
}

#[test]
fn dualizing_attains_the_dual_norm_at_any_scale() {
    let plan = model();
    for scale in [1.0, 1e-30, 1e30, 1e-150] {
        let g = gradients(&plan, scale);
        let d = run(&plan, &g, ACCURATE, NonFinite::Raise).unwrap();
        let gained: f64 = g.iter().flatten().zip(d.iter().flatten()).map(|(g, d)| g * d).sum();
        let views: Vec<_> = g.iter().map(|x| Tensor::F64(x)).collect();
        let dual: f64 = maps::dual_norms(&plan, &views).unwrap().iter().sum();
        // Directions are within 0.01 of orthogonal, so the inner product is within 0.01 of the sum of singular values.
        assert!((gained / dual - 1.0).abs() < 0.01, "{scale}: {gained} {dual}");
        assert!((norm(&plan, &d) - 1.0).abs() < 0.02);
    }
}

#[test]
fn normalising_fills_every_target() {
    let plan = model();
    for target_norm in [1.0, 0.25] {
        let update = run(&plan, &gradients(&plan, 3.0), Map::Normalize { target_norm }, NonFinite::Raise).unwrap();
        let views: Vec<_> = update.iter().map(|x| Tensor::F64(x)).collect();
        for value in maps::norms(&plan, &views).unwrap() {
            assert!((value / target_norm - 1.0).abs() < 0.02, "{value}");
        }
    }
}

#[test]
fn zeros_give_zeros_and_projections_are_idempotent() {
    let plan = model();
    let zeros: Vec<Vec<f64>> = gradients(&plan, 1.0).into_iter().map(|x| vec![0.0; x.len()]).collect();
    for map in [ACCURATE, Map::Normalize { target_norm: 1.0 }, Map::Project, Map::Regularize { strength: 0.1 }] {
        assert_eq!(run(&plan, &zeros, map, NonFinite::Raise).unwrap(), zeros);
    }
    let once = run(&plan, &gradients(&plan, 1.0), Map::Project, NonFinite::Raise).unwrap();
    let twice = run(&plan, &once, Map::Project, NonFinite::Raise).unwrap();
    for (a, b) in once.iter().flatten().zip(twice.iter().flatten()) {
        assert!((a - b).abs() < 1e-10);
    }
}

#[test]
fn what_is_not_finite_is_refused_skipped_or_let_through() {
    let plan = model();
    let mut g = gradients(&plan, 1.0);
    let linear = 2; // three copies of 6 x 6
    g[linear][36] = f64::NAN;
    g[linear][40] = f64::INFINITY;
    let message = run(&plan, &g, ACCURATE, NonFinite::Raise).unwrap_err().to_string();
    assert!(message.starts_with("linear: 2 of 108 numbers are not finite"), "{message}");
    let skipped = run(&plan, &g, ACCURATE, NonFinite::Zero).unwrap();
    assert!(skipped.iter().flatten().all(|x| x.is_finite()));
    let copy = |i: usize| skipped[linear][36 * i..36 * (i + 1)].iter().map(|x| x.abs()).sum::<f64>();
    assert!(copy(0) > 0.0 && copy(1) == 0.0 && copy(2) > 0.0);
    let through = run(&plan, &g, ACCURATE, NonFinite::Propagate).unwrap();
    assert!(through[linear].iter().any(|x| x.is_nan()) && through[0].iter().all(|x| x.is_finite()));
}

#[test]
fn half_precision_is_computed_in_single_and_rounded_once() {
    let plan = model();
    let singles: Vec<Vec<f32>> = gradients(&plan, 1.0).iter().map(|x| x.iter().map(|&x| f16::from_f64(x).to_f32()).collect()).collect();
    let mut expected: Vec<Vec<f32>> = singles.iter().map(|x| vec![0.0; x.len()]).collect();
    let views: Vec<_> = singles.iter().map(|x| Tensor::F32(x)).collect();
    maps::apply(&plan, &views, expected.iter_mut().map(|x| TensorMut::F32(x)).collect(), ACCURATE, NonFinite::Raise).unwrap();

    let halves: Vec<Vec<f16>> = singles.iter().map(|x| x.iter().map(|&x| f16::from_f32(x)).collect()).collect();
    let mut got: Vec<Vec<f16>> = halves.iter().map(|x| vec![f16::ZERO; x.len()]).collect();
    let views: Vec<_> = halves.iter().map(|x| Tensor::F16(x)).collect();
    maps::apply(&plan, &views, got.iter_mut().map(|x| TensorMut::F16(x)).collect(), ACCURATE, NonFinite::Raise).unwrap();
    for (a, b) in got.iter().flatten().zip(expected.iter().flatten()) {
        assert_eq!(*a, f16::from_f32(*b));
    }

    let brains: Vec<Vec<bf16>> = singles.iter().map(|x| x.iter().map(|&x| bf16::from_f32(x)).collect()).collect();
    let views: Vec<_> = brains.iter().map(|x| Tensor::BF16(x)).collect();
    let mut got: Vec<Vec<bf16>> = brains.iter().map(|x| vec![bf16::ZERO; x.len()]).collect();
    maps::apply(&plan, &views, got.iter_mut().map(|x| TensorMut::BF16(x)).collect(), ACCURATE, NonFinite::Raise).unwrap();
    let views: Vec<_> = got.iter().map(|x| Tensor::BF16(x)).collect();
    // bfloat16 keeps 8 bits: the norm of the rounded update is within 2^-8 sqrt(n)-ish of 1.
    let norm = maps::norms(&plan, &views).unwrap().into_iter().fold(0.0, f64::max);
    assert!((norm - 1.0).abs() < 0.03, "{norm}");
}
