//! Every kernel against singular values from one-sided Jacobi rotations in double precision, on prescribed spectra.

use proptest::prelude::*;
use pulp::Arch;
use rand::{Rng, SeedableRng, rngs::StdRng};
use rand_distr::StandardNormal;

use super::batch::Task;
use super::blocks::Mirror;
use super::jacobi::RowSpace;
use super::polar::rational;
use super::product::Machine;
use super::schedule::stages;
use super::scratch::Scratch;
use super::*;

/// A matrix whose rows (or columns, if tall) are orthonormal, times the given singular values, times another orthogonal matrix.
fn with_spectrum(rows: usize, cols: usize, spectrum: &[f64], rng: &mut StdRng) -> Vec<f64> {
    let orthogonal = |r: usize, c: usize, rng: &mut StdRng| {
        let gaussian: Vec<f64> = (0..r * c).map(|_| rng.sample(StandardNormal)).collect();
        RowSpace::new(&gaussian, c).polar::<f64>()
    };
    let n = rows.min(cols);
    let (left, right) = (orthogonal(rows, n, rng), orthogonal(n, cols, rng));
    let mut out = vec![0.0; rows * cols];
    for i in 0..rows {
        for k in 0..n {
            for j in 0..cols {
                out[i * cols + j] += left[i * n + k] * spectrum[k] * right[k * cols + j];
            }
        }
    }
    out
}

/// Spectra with largest value 1.
fn spectra(n: usize) -> Vec<(&'static str, Vec<f64>)> {
    let t = |k: usize| {
        if n == 1 { 0.0 } else { k as f64 / (n - 1) as f64 }
    };
    let by = |f: &dyn Fn(usize) -> f64| (0..n).map(f).collect::<Vec<_>>();
    vec![
        ("log-spaced to 1e-3", by(&|k| 10f64.powf(-3.0 * t(k)))),
        ("log-spaced to 1e-6", by(&|k| 10f64.powf(-6.0 * t(k)))),
        ("flat", by(&|_| 1.0)),
        ("clustered", by(&|k| 1.0 - 0.02 * t(k))),
        ("all at 1 but one at 1e-3", by(&|k| if k + 1 == n && n > 1 { 1e-3 } else { 1.0 })),
        ("one at 1, the rest at 1e-3", by(&|k| if k == 0 { 1.0 } else { 1e-3 })),
        ("one at 1, the rest at 0.97", by(&|k| if k == 0 { 1.0 } else { 0.97 })),
        ("rank one", by(&|k| if k == 0 { 1.0 } else { 0.0 })),
        ("linear", by(&|k| 1.0 - 0.999 * t(k))),
    ]
}

const SHAPES: [(usize, usize); 9] = [(1, 1), (1, 7), (5, 1), (3, 3), (17, 31), (64, 16), (40, 40), (13, 130), (97, 53)];

fn ortho<T: Real>(x: &[T], rows: usize, cols: usize, scale: T, accuracy: Accuracy) -> Vec<T> {
    let mut out = vec![T::NAN; x.len()];
    let scales = [scale];
    orthogonalize(&mut [Job::new(Matrices::new(x, 1, rows, cols), &scales, &mut out)], accuracy);
    out
}

fn cast<T: Real>(x: &[f64], factor: f64) -> Vec<T> {
    x.iter().map(|&x| T::from_f64(x * factor)).collect()
}

/// `U^T out V` has the new singular values on its diagonal; `W = U S V^T` gives it as `W^T out` without a decomposition: compared in that form,
/// the error of a direction is weighted by its singular value, so instead the singular values of `out` are counted.
fn check_orthogonalize<T: Real>(tolerance: f64, accuracy: Accuracy) {
    let mut rng = StdRng::seed_from_u64(1);
    for (rows, cols) in SHAPES {
        let n = rows.min(cols);
        for (name, spectrum) in spectra(n) {
            let x = with_spectrum(rows, cols, &spectrum, &mut rng);
            for factor in [1.0, 1e-30, 1e30] {
                let out = ortho::<T>(&cast(&x, factor), rows, cols, T::from_f64(2.0), accuracy);
                let mut values = RowSpace::new(&out, cols).singular_values();
                values.sort_by(|a, b| b.total_cmp(a));
                let wanted = spectrum.iter().filter(|&&s| s >= 1e-3).count();
                for &s in &values[..wanted] {
                    assert!((s / 2.0 - 1.0).abs() < tolerance, "{rows} x {cols} {name} x {factor:e}: singular value {}", s / 2.0);
                }
                for &s in &values {
                    assert!(s / 2.0 < 1.0 + tolerance, "{rows} x {cols} {name}: singular value {} above 1", s / 2.0);
                }
                // <W, out> = sum sigma f(sigma) is the nuclear norm only if the singular vectors are kept.
                let inner: f64 = x.iter().zip(&out).map(|(x, o)| x * o.to_f64() / 2.0).sum();
                let nuclear: f64 = spectrum.iter().sum();
                assert!(
                    (inner / nuclear - 1.0).abs() < tolerance.max(n as f64 * 1e-3),
                    "{rows} x {cols} {name}: <W, out> = {inner}, nuclear norm {nuclear}"
                );
            }
        }
    }
}

#[test]
fn standard_keeps_its_promise() {
    check_orthogonalize::<f32>(6e-3, Accuracy::Standard);
    check_orthogonalize::<f64>(0.0049, Accuracy::Standard);
}

/// In f32 the Gram matrix is off by some 3e-7, against the smallest square, 1e-6, plus the pole, 7e-6.
#[test]
fn five_steps_are_as_close_as_newton_schulz() {
    check_orthogonalize::<f32>(0.22 + 0.05, Accuracy::Steps(5));
    check_orthogonalize::<f64>(0.22, Accuracy::Steps(5));
}

#[test]
fn exact_is_exact() {
    check_orthogonalize::<f32>(1e-5, Accuracy::Exact);
    check_orthogonalize::<f64>(1e-12, Accuracy::Exact);
}

#[test]
fn exact_leaves_zero_singular_values() {
    let mut rng = StdRng::seed_from_u64(2);
    let spectrum = [1.0, 0.5, 0.1, 0.0, 0.0];
    let x = with_spectrum(5, 9, &spectrum, &mut rng);
    let mut values = RowSpace::new(&ortho::<f64>(&x, 5, 9, 1.0, Accuracy::Exact), 9).singular_values();
    values.sort_by(|a, b| b.total_cmp(a));
    assert!(values[..3].iter().all(|s| (s - 1.0).abs() < 1e-12) && values[3..].iter().all(|&s| s < 1e-12), "{values:?}");
}

fn check_norms<T: Real>(nuclear_tolerance: f64) {
    let mut rng = StdRng::seed_from_u64(3);
    for (rows, cols) in SHAPES {
        for (name, spectrum) in spectra(rows.min(cols)) {
            for factor in [1.0, 1e-30, 1e30] {
                let x = cast::<T>(&with_spectrum(rows, cols, &spectrum, &mut rng), factor);
                let batch = Matrices::new(&x, 1, rows, cols);
                let mut u = vec![T::NAN; VECTORS * cols];
                let cold = spectral_norms(&[batch], &mut [Vectors::Fill(&mut u)])[0][0].to_f64() / factor;
                assert!((cold - 1.0).abs() < 0.01, "{rows} x {cols} {name} x {factor:e}: cold {cold}");
                let warm = spectral_norms(&[batch], &mut [Vectors::Refine(&mut u)])[0][0].to_f64() / factor;
                assert!((warm - 1.0).abs() < 0.01, "{rows} x {cols} {name} x {factor:e}: warm {warm}");
                for (place, u) in u.chunks_exact(cols).enumerate() {
                    let length: f64 = u.iter().map(|u| u.to_f64().powi(2)).sum();
                    // A thousandth may be left of a later one beside the first, so that rounding shows a thousand times larger.
                    let tolerance = if place == 0 { 1e-5 } else { 1e4 * T::EPSILON.to_f64() };
                    assert!((length - 1.0).abs() < tolerance, "{rows} x {cols} {name} x {factor:e}: unit vectors, not {length}");
                }
                let nuclear = nuclear_norms(&[batch])[0][0].to_f64() / factor;
                let wanted: f64 = spectrum.iter().sum();
                assert!((nuclear / wanted - 1.0).abs() < nuclear_tolerance, "{rows} x {cols} {name}: nuclear {nuclear} {wanted}");
            }
        }
    }
}

#[test]
fn norms_are_right() {
    check_norms::<f32>(1e-5);
    check_norms::<f64>(1e-10);
}

#[test]
fn normalize_rescales() {
    let mut rng = StdRng::seed_from_u64(4);
    let x: Vec<f32> = (0..3 * 20 * 30).map(|i| if i < 600 { 0.0 } else { rng.sample(StandardNormal) }).collect();
    let mut out = vec![f32::NAN; x.len()];
    let scales = [1.0, 2.0, 3.0];
    let norms = normalize(&mut [Job::new(Matrices::new(&x, 3, 20, 30), &scales, &mut out)], &mut [Vectors::Discard]);
    assert!(norms[0][0] == 0.0 && out[..600].iter().all(|&x| x == 0.0));
    for i in 1..3 {
        let s = RowSpace::new(&out[i * 600..(i + 1) * 600], 30).singular_values().into_iter().fold(0.0, f64::max);
        assert!((s / f64::from(scales[i]) - 1.0).abs() < 0.01, "norm {s}");
    }
}

#[test]
fn extreme_input_is_harmless() {
    let accuracies = [Accuracy::Standard, Accuracy::Steps(5), Accuracy::Exact];
    for (rows, cols) in [(0, 0), (0, 3), (3, 0), (1, 1), (4, 6)] {
        for value in [0.0, f64::MIN_POSITIVE * 1e-10, 5e-324, 1e-300, 1e300, f64::MAX, f64::INFINITY, f64::NAN] {
            let x = vec![value; rows * cols];
            let expected = if value == 0.0 { 0.0 } else { 1.0 / ((rows * cols) as f64).sqrt() };
            for accuracy in accuracies {
                let tolerance = if accuracy == Accuracy::Steps(5) { 0.22 } else { 3e-3 };
                for o in ortho(&x, rows, cols, 1.0, accuracy) {
                    assert!(
                        (o - expected).abs() <= tolerance * expected || !value.is_finite(),
                        "{rows} x {cols} {value:e} {accuracy:?}: {o}"
                    );
                }
            }
            let batch = Matrices::new(&x, 1, rows, cols);
            let norms = [spectral_norms(&[batch], &mut [Vectors::Discard])[0][0], nuclear_norms(&[batch])[0][0]];
            for norm in norms {
                assert!(norm.is_nan() != (value.is_finite() || x.is_empty()), "{rows} x {cols} {value:e}: norm {norm}");
            }
        }
        let x = vec![1e-45_f32; rows * cols];
        assert!(ortho(&x, rows, cols, 1.0, Accuracy::Standard).iter().all(|o| o.is_finite() && *o > 0.0));
    }
}

fn gaussian<T: Real>(len: usize, seed: u64) -> Vec<T> {
    let mut rng = StdRng::seed_from_u64(seed);
    (0..len).map(|_| T::from_f64(rng.sample(StandardNormal))).collect()
}

/// The portable path, and each instruction set that this processor has.
fn instruction_sets() -> Vec<Arch> {
    let mut all = vec![Arch::Scalar, Arch::new()];
    #[cfg(target_arch = "x86_64")]
    all.extend(pulp::x86::V3::try_new().map(Arch::V3));
    all
}

/// Every instruction set, with and without sharing the matrix.
fn check_instruction_sets<T: Real>(tolerance: f64) {
    let machines = instruction_sets();
    // The last is wide enough for copies of the left factor, in two blocks.
    for (rows, cols) in [(1, 1), (7, 50), (50, 7), (90, 90), (83, 200), (200, 83), (205, 300)] {
        let x = gaussian::<T>(rows * cols, 5);
        let mut outs = machines.iter().flat_map(|&arch| [1, 3].map(|threads| Machine { arch, threads })).map(|machine| {
            let mut out = vec![T::NAN; x.len()];
            let mut task = Task { input: &x, rows, cols, scale: T::ONE, output: &mut out };
            rational(&mut task, T::ONE, stages(Accuracy::Standard), machine, &mut Scratch::default());
            out
        });
        let first = outs.next().unwrap();
        if rows < cols {
            // Gaussian: every singular value is above a thousandth of the largest, so that rows are orthonormal within twice 0.0055.
            for (i, a) in first.chunks(cols).enumerate() {
                for (j, b) in first.chunks(cols).enumerate() {
                    let product: f64 = a.iter().zip(b).map(|(a, b)| a.to_f64() * b.to_f64()).sum();
                    assert!((product - f64::from(i == j)).abs() < 0.011, "{rows} x {cols}: rows {i} and {j} have product {product}");
                }
            }
        }
        for out in outs {
            let worst = first.iter().zip(&out).map(|(&a, &b)| (a - b).abs().to_f64()).fold(0.0, f64::max);
            assert!(worst < tolerance, "{rows} x {cols}: {worst:e} apart");
        }
    }
}

/// Gaussian matrices have condition numbers of some hundred, which rounding is amplified by.
#[test]
fn instruction_sets_agree() {
    check_instruction_sets::<f32>(1e-3);
    check_instruction_sets::<f64>(1e-12);
}

/// Gaussian matrices averaged as gradients are, each a tenth new: the estimate is below the norm, and above what one step from any vector gives.
fn check_warm<T: Real>() {
    for (rows, cols) in [(40, 60), (60, 40), (3, 9), (9, 3), (1, 7), (7, 1)] {
        let mut average = gaussian::<f64>(rows * cols, 8);
        let mut u = vec![T::ZERO; VECTORS * cols];
        for step in 0..30 {
            for (a, x) in average.iter_mut().zip(gaussian::<f64>(rows * cols, 100 + step)) {
                *a = 0.9 * *a + 0.1 * x;
            }
            let x = cast::<T>(&average, 1.0);
            let before: Vec<f64> = u.iter().map(|x| x.to_f64()).collect();
            let norm = spectral_norms(&[Matrices::new(&x, 1, rows, cols)], &mut [Vectors::Refine(&mut u)])[0][0].to_f64();
            let exact = RowSpace::new(&average, cols).singular_values().into_iter().fold(0.0, f64::max);
            assert!(norm <= exact * (1.0 + 1e-4), "{rows} x {cols} step {step}: {norm} of {exact}");
            for u in before.chunks_exact(cols).filter(|u| u.iter().any(|&x| x != 0.0)) {
                let image: Vec<f64> = average.chunks_exact(cols).map(|row| row.iter().zip(u).map(|(a, b)| a * b).sum()).collect();
                let length = image.iter().map(|x| x * x).sum::<f64>().sqrt();
                let back = |j: usize| average.chunks_exact(cols).zip(&image).map(|(row, y)| row[j] * y).sum::<f64>().powi(2);
                let single = (0..cols).map(back).sum::<f64>().sqrt() / length;
                // A direction that counts as lost had a thousandth of its square beside the others.
                assert!(norm >= single * (1.0 - 1e-2), "{rows} x {cols} step {step}: {norm}, of one vector {single}");
            }
        }
    }
}

#[test]
fn warm_norms_lie_between_one_power_step_and_the_truth() {
    check_warm::<f32>();
    check_warm::<f64>();
}

#[test]
fn threads_do_not_change_the_answer() {
    let shapes = [(1, 300, 300), (1, 260, 400), (3, 20, 30), (1, 410, 250)];
    let inputs: Vec<Vec<f32>> = shapes.iter().map(|&(count, rows, cols)| gaussian(count * rows * cols, 6)).collect();
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let mut outs: Vec<Vec<f32>> = inputs.iter().map(|x| vec![f32::NAN; x.len()]).collect();
        let scales = [1.0; 3];
        let jobs = shapes.iter().zip(&inputs).zip(&mut outs);
        let mut jobs: Vec<_> =
            jobs.map(|((&(count, rows, cols), x), out)| Job::new(Matrices::new(x, count, rows, cols), &scales[..count], out)).collect();
        pool.install(|| orthogonalize(&mut jobs, Accuracy::Standard));
        let batches: Vec<_> = shapes.iter().zip(&inputs).map(|(&(count, rows, cols), x)| Matrices::new(x, count, rows, cols)).collect();
        let mut vectors: Vec<_> = batches.iter().map(|_| Vectors::Discard).collect();
        let norms = pool.install(|| spectral_norms(&batches, &mut vectors));
        (outs, norms)
    };
    let (alone, norms_alone) = run(1);
    for threads in [2, 3] {
        let (outs, norms) = run(threads);
        assert!(outs == alone, "{threads} threads: the sums are the same, in the same order");
        assert!(run(threads).1 == norms, "{threads} threads: not the same twice");
        for (a, b) in norms.iter().flatten().zip(norms_alone.iter().flatten()) {
            assert!((a / b - 1.0).abs() < 1e-5, "{threads} threads: norm {a}, alone {b}");
        }
    }
}

#[test]
fn matrices_of_full_rank_need_no_rotations() {
    let x = gaussian::<f64>(120 * 200, 7);
    let exact = ortho(&x, 120, 200, 1.0, Accuracy::Exact);
    let rotated = RowSpace::new(&x, 200).polar::<f64>();
    assert!(exact.iter().zip(&rotated).all(|(a, b)| (a - b).abs() < 1e-12));
    let nuclear = nuclear_norms(&[Matrices::new(&x, 1, 120, 200)])[0][0];
    let wanted: f64 = RowSpace::new(&x, 200).singular_values().into_iter().sum();
    assert!((nuclear / wanted - 1.0).abs() < 1e-12);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn batches_equal_single_matrices(count in 0usize..4, rows in 0usize..24, cols in 0usize..24, seed: u64) {
        let mut rng = StdRng::seed_from_u64(seed);
        let x: Vec<f32> = (0..count * rows * cols).map(|_| rng.sample(StandardNormal)).collect();
        let scales: Vec<f32> = (0..count).map(|i| i as f32 + 1.0).collect();
        let mut out = vec![f32::NAN; x.len()];
        orthogonalize(&mut [Job::new(Matrices::new(&x, count, rows, cols), &scales, &mut out)], Accuracy::Standard);
        let size = rows * cols;
        for i in 0..count {
            prop_assert_eq!(&out[i * size..(i + 1) * size], &ortho(&x[i * size..(i + 1) * size], rows, cols, scales[i], Accuracy::Standard)[..]);
        }
    }
}

/// Mirroring by registers, in both precisions and on every instruction set.
#[test]
fn halves_are_mirrored() {
    fn check<T: Real>(arch: Arch) {
        for side in [16, 48] {
            let stride = side + 16;
            let entry = |i: usize, j: usize| T::from_f64((i.min(j) * 100 + i.max(j)) as f64);
            let mut a = vec![T::NAN; side * stride];
            for (i, j) in (0..side).flat_map(|i| (i..side).map(move |j| (i, j))) {
                a[i * stride + j] = entry(i, j);
            }
            arch.dispatch(Mirror { a: &mut a, stride, side });
            for (i, j) in (0..side).flat_map(|i| (0..side).map(move |j| (i, j))) {
                assert_eq!(a[i * stride + j], entry(i, j), "{side}: {i}, {j}");
            }
        }
    }
    for arch in instruction_sets() {
        check::<f32>(arch);
        check::<f64>(arch);
    }
}
