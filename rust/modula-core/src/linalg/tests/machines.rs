//! Whether results depend on the instruction set or on the number of threads.

use pulp::Arch;

use crate::linalg::accuracy::stages;
use crate::linalg::batch::Task;
use crate::linalg::machine::{self, Machine};
use crate::linalg::rational::rational;
use crate::linalg::scratch::Scratch;
use crate::linalg::transpose::Mirror;

use super::*;

/// Each instruction set that this processor has.
fn instruction_sets() -> Vec<Arch> {
    machine::instruction_sets().into_iter().map(|(_, arch)| arch).collect()
}

#[test]
fn an_instruction_set_is_chosen_by_name() {
    for (name, arch) in machine::instruction_sets() {
        let found = machine::named(Some(name)).map(|(_, arch)| format!("{arch:?}"));
        assert_eq!(found, Ok(format!("{arch:?}")), "{name}");
    }
    let best = machine::instruction_sets()[0].0;
    assert_eq!(machine::named(None).unwrap().0, best);
    let refused = machine::named(Some("avx2")).unwrap_err().to_string();
    let expected = "the environment variable MODULA_RS_INSTRUCTION_SET must be AVX-512, AVX2, Neon or baseline, whichever this processor \
                    has, got \"avx2\"";
    assert_eq!(refused, expected);
}

/// Every instruction set gives the same result, on one thread and on several that share the matrix.
fn check_instruction_sets<T: Real>(tolerance: f64) {
    let machines = instruction_sets();
    // The last shape is large enough for the left factor to be packed, in two blocks.
    for (rows, cols) in [(1, 1), (7, 50), (50, 7), (90, 90), (83, 200), (200, 83), (205, 300)] {
        let x = gaussian::<T>(rows * cols, 5);
        let mut outs = machines.iter().flat_map(|&arch| [1, 3].map(|threads| Machine { arch, threads })).map(|machine| {
            let mut out = vec![T::NAN; x.len()];
            let mut task = Task { input: &x, rows, cols, scale: T::ONE, output: &mut out };
            rational(&mut task, T::ONE, stages(Accuracy::Standard).unwrap(), machine, &mut Scratch::default());
            out
        });
        let first = outs.next().unwrap();
        if rows < cols {
            // Every singular value of these Gaussian matrices is above a thousandth of the largest, so rows are orthonormal within twice
            // 0.0055.
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

/// Gaussian matrices have condition numbers of a few hundred, which amplify rounding.
#[test]
fn instruction_sets_agree() {
    check_instruction_sets::<f32>(1e-3);
    check_instruction_sets::<f64>(1e-12);
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
        assert!(outs == alone, "{threads} threads: orthogonalisation adds the same numbers in the same order");
        assert!(run(threads).1 == norms, "{threads} threads: norms differ from run to run");
        for (a, b) in norms.iter().flatten().zip(norms_alone.iter().flatten()) {
            assert!((a / b - 1.0).abs() < 1e-5, "{threads} threads: norm {a}, alone {b}");
        }
    }
}

/// The lower triangle mirrors the upper one, in both precisions and on every instruction set.
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
