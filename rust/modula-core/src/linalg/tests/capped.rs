//! Caps and changes of the largest singular value, against the prescribed spectra.

use super::super::constants::RISES;
use super::*;

type Map<T> = fn(&mut [Job<'_, T>]);

fn run<T: Real>(x: &[T], rows: usize, cols: usize, scale: f64, map: impl Fn(&mut [Job<'_, T>])) -> Vec<T> {
    let mut out = vec![T::NAN; x.len()];
    let scales = [T::from_f64(scale)];
    map(&mut [Job::new(Matrices::new(x, 1, rows, cols), &scales, &mut out)]);
    out
}

/// The matrix with the singular vectors of `with_spectrum` (of the same seed) and other singular values.
fn pair(rows: usize, cols: usize, spectrum: &[f64], seed: u64, value: impl Fn(f64) -> f64) -> (Vec<f64>, Vec<f64>) {
    let made: Vec<f64> = spectrum.iter().map(|&s| value(s)).collect();
    let build = |spectrum: &[f64]| with_spectrum(rows, cols, spectrum, &mut StdRng::seed_from_u64(seed));
    (build(spectrum), build(&made))
}

fn check<T: Real>(map: Map<T>, scale: f64, tolerance: f64, value: impl Fn(f64) -> f64 + Copy) {
    for (seed, (rows, cols)) in SHAPES.into_iter().enumerate() {
        for (name, spectrum) in spectra(rows.min(cols)) {
            let (x, expected) = pair(rows, cols, &spectrum, seed as u64, value);
            let out = run::<T>(&cast(&x, 1.0), rows, cols, scale, map);
            let worst = out.iter().zip(&expected).map(|(a, b)| (a.to_f64() - b).abs()).fold(0.0, f64::max);
            assert!(worst < tolerance, "{rows} x {cols}, {name}: off by {worst:e}");
        }
    }
}

#[test]
fn the_hard_cap_cuts_singular_values() {
    for cap in [0.99, 0.5, 0.07, 0.01] {
        // Singular values close to the cap may be cut by half of what they should be: NEAR^2 * 2e-8 / 2, in units of the cap.
        check::<f64>(hard_cap::<f64>, cap, 1e-6 * cap + 1e-11, |s| s.min(cap));
        check::<f32>(hard_cap::<f32>, cap, 4e-6, |s| s.min(cap));
    }
}

#[test]
fn what_is_within_the_cap_stays_bit_for_bit() {
    for (rows, cols) in SHAPES {
        let x: Vec<f32> = cast(&with_spectrum(rows, cols, &vec![1.0; rows.min(cols)], &mut StdRng::seed_from_u64(3)), 1.0);
        assert_eq!(run(&x, rows, cols, 1.0, hard_cap::<f32>), x);
        let cut = run(&x, rows, cols, 0.6, hard_cap::<f32>);
        assert_eq!(run(&cut, rows, cols, 0.6, hard_cap::<f32>), cut, "{rows} x {cols}");
    }
}

#[test]
fn the_soft_cap_bends_singular_values() {
    for scale in [1.8, 3.0, 10.0] {
        // All spectra are within the rise of the polynomial.
        check::<f64>(soft_cap::<f64>, scale, 1e-12, |s| scale * bent(s / scale));
        check::<f32>(soft_cap::<f32>, scale, 2e-6, |s| scale * bent(s / scale));
    }
    // Beyond it the matrix is scaled down first, by an estimate of its norm that may be low by a quarter.
    let x: Vec<f32> = cast(&with_spectrum(17, 31, &spectra(17)[0].1, &mut StdRng::seed_from_u64(4)), 1e6);
    let largest = RowSpace::new(&run(&x, 17, 31, 2.0, soft_cap::<f32>), 31).singular_values().into_iter().fold(0.0, f64::max);
    assert!(largest < 2.0 * 0.45 && largest > 2.0 * bent(RISES) * 0.9, "{largest}");
}

#[test]
fn one_singular_value_changes_alone() {
    for (rows, cols) in SHAPES {
        let n = rows.min(cols);
        // The next singular value is at 0.6, so the vector is off by about (0.36 / 1)^8 of what Lanczos leaves.
        let spectrum: Vec<f64> = (0..n).map(|i| if i == 0 { 1.0 } else { 0.6 - 0.5 * i as f64 / n as f64 }).collect();
        for (top, scale, wanted) in [(Top::Set, 0.8, 0.8), (Top::Times, 0.3, 0.3), (Top::Set, 2.5, 2.5)] {
            let (x, expected) = pair(rows, cols, &spectrum, 5, |s| if s == 1.0 { wanted } else { s });
            for factor in [1.0, 1e-20, 1e20] {
                let scale = if top == Top::Set { scale * factor } else { scale };
                let out = run::<f32>(&cast(&x, factor), rows, cols, scale, |jobs| change_top(jobs, top));
                let worst = out.iter().zip(&expected).map(|(a, b)| (a.to_f64() / factor - b).abs()).fold(0.0, f64::max);
                assert!(worst < 1e-5, "{rows} x {cols} {top:?}: off by {worst:e}");
            }
        }
    }
}

#[test]
fn zeros_stay_and_nan_spreads() {
    let change = |top| move |jobs: &mut [Job<'_, f32>]| change_top(jobs, top);
    type Cap<'a> = &'a dyn Fn(&mut [Job<'_, f32>]);
    let maps: [Cap<'_>; 4] = [&hard_cap::<f32>, &soft_cap::<f32>, &change(Top::Set), &change(Top::Times)];
    for map in maps {
        assert_eq!(run(&[0.0; 300], 12, 25, 1.0, map), [0.0; 300]);
        let mut x = gaussian::<f32>(300, 1);
        x[7] = f32::NAN;
        assert!(run(&x, 12, 25, 1.0, map).iter().all(|x| x.is_nan()));
    }
    // An infinite scale caps nothing.
    let x = gaussian::<f32>(300, 2);
    assert_eq!(run(&x, 12, 25, f64::INFINITY, hard_cap::<f32>), x);
    assert_eq!(run(&x, 12, 25, f64::INFINITY, soft_cap::<f32>), x);
}
