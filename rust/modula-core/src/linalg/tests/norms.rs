//! How close spectral and nuclear norms are to their true values.

use super::*;

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
                    // Orthonormalisation may have kept a thousandth of a later vector, and so amplified rounding a thousandfold.
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

/// A running average of Gaussian matrices, of which each step renews a tenth, as optimizers average gradients: the estimate lies below the
/// norm, and above the bound that one power step from any single vector gives.
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
                // A dropped direction had at most a thousandth of its squared length outside the others.
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
