//! How close to 1 orthogonalisation brings the singular values.

use proptest::prelude::*;

use super::*;

/// Checks the singular values of the result, which one-sided Jacobi rotations find, and, by its inner product with the input, that it has
/// the input's singular vectors.
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
                // <W, out>, the sum of sigma f(sigma), is near the nuclear norm only if the singular vectors are those of W.
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

/// In f32 the Gram matrix is off by about 3e-7, next to the smallest square of 1e-6 plus the pole of 7e-6: 0.05 is added to the tolerance.
#[test]
fn fast_keeps_its_promise() {
    check_orthogonalize::<f32>(0.22 + 0.05, Accuracy::Fast);
    check_orthogonalize::<f64>(0.22, Accuracy::Fast);
}

/// In f32 the Gram matrix is off by about 3e-7. The pole of the one stage is 5.4e-5, so the result, at most 1.59, moves by at most
/// 1.59 * 3e-7 / 5.4e-5 < 0.01.
#[test]
fn coarse_keeps_its_promise() {
    check_orthogonalize::<f32>(0.59 + 0.01, Accuracy::Coarse);
    check_orthogonalize::<f64>(0.59, Accuracy::Coarse);
}

#[test]
fn users_choose_levels_by_name() {
    for level in Accuracy::LEVELS {
        assert_eq!(Accuracy::named(level.name()), Some(level));
    }
    assert_eq!(Accuracy::LEVELS.map(Accuracy::name), ["standard", "fast", "coarse"]);
    assert_eq!(Accuracy::named(Accuracy::Exact.name()), None);
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

#[test]
fn extreme_input_is_harmless() {
    let accuracies = [Accuracy::Standard, Accuracy::Fast, Accuracy::Exact];
    for (rows, cols) in [(0, 0), (0, 3), (3, 0), (1, 1), (4, 6)] {
        for value in [0.0, f64::MIN_POSITIVE * 1e-10, 5e-324, 1e-300, 1e300, f64::MAX, f64::INFINITY, f64::NAN] {
            let x = vec![value; rows * cols];
            let expected = if value == 0.0 { 0.0 } else { 1.0 / ((rows * cols) as f64).sqrt() };
            for accuracy in accuracies {
                let tolerance = if accuracy == Accuracy::Fast { 0.22 } else { 3e-3 };
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
        let x = gaussian::<f32>(count * rows * cols, seed);
        let scales: Vec<f32> = (0..count).map(|i| i as f32 + 1.0).collect();
        let mut out = vec![f32::NAN; x.len()];
        orthogonalize(&mut [Job::new(Matrices::new(&x, count, rows, cols), &scales, &mut out)], Accuracy::Standard);
        let size = rows * cols;
        for (i, &scale) in scales.iter().enumerate() {
            let entries = i * size..(i + 1) * size;
            let alone = ortho(&x[entries.clone()], rows, cols, scale, Accuracy::Standard);
            prop_assert_eq!(&out[entries], &alone[..]);
        }
    }
}
