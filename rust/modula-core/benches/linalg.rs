//! Orthogonalisation and norms by shape and batch, against three plain products a Newton-Schulz step in the same run.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use modula_core::linalg::{Accuracy, Job, Matrices, VECTORS, Vectors, normalize, nuclear_norms, orthogonalize, spectral_norms};
use rand::{Rng, SeedableRng, rngs::StdRng};
use rand_distr::StandardNormal;

/// (count, rows, cols)
const SHAPES: [(usize, usize, usize); 8] =
    [(1000, 16, 16), (400, 64, 64), (32, 128, 128), (8, 512, 128), (8, 256, 256), (4, 768, 768), (2, 3072, 768), (1, 1024, 1024)];

fn gaussian(len: usize) -> Vec<f32> {
    let mut rng = StdRng::seed_from_u64(0);
    (0..len).map(|_| rng.sample(StandardNormal)).collect()
}

/// `c = a b`, the right factor or the left one transposed by strides.
fn product(c: &mut [f32], (a, a_strides): (&[f32], (isize, isize)), (b, b_strides): (&[f32], (isize, isize)), [m, k, n]: [usize; 3]) {
    assert!(a.len() >= m * k && b.len() >= k * n && c.len() >= m * n);
    // SAFETY: the slices hold the three row-major or transposed matrices of these shapes, as just asserted.
    unsafe {
        matrixmultiply::sgemm(
            m,
            k,
            n,
            1.0,
            a.as_ptr(),
            a_strides.0,
            a_strides.1,
            b.as_ptr(),
            b_strides.0,
            b_strides.1,
            0.0,
            c.as_mut_ptr(),
            n as isize,
            1,
        );
    }
}

/// Five Newton-Schulz steps (Jordan 2024) of three plain products each, on one matrix at a time.
fn plain_newton_schulz(x: &[f32], out: &mut [f32], rows: usize, cols: usize) {
    let n = rows.min(cols);
    let (wide, along) = (rows <= cols, cols as isize);
    let (mut r, mut z, mut next) = (vec![0.0; n * n], vec![0.0; n * n], vec![0.0; rows * cols]);
    for (x, out) in x.chunks_exact(rows * cols).zip(out.chunks_exact_mut(rows * cols)) {
        let norm = x.iter().map(|x| x * x).sum::<f32>().sqrt();
        out.iter_mut().zip(x).for_each(|(o, x)| *o = x / norm);
        for _ in 0..5 {
            let (plain, transposed) = ((&*out, (along, 1)), (&*out, (1, along)));
            if wide {
                product(&mut r, plain, transposed, [n, cols, n])
            } else {
                product(&mut r, transposed, plain, [n, rows, n])
            }
            let side = n as isize;
            product(&mut z, (&r, (side, 1)), (&r, (side, 1)), [n, n, n]);
            z.iter_mut().zip(&r).for_each(|(z, r)| *z = 2.0315 * *z - 4.775 * r);
            let factor = (&*z, (side, 1));
            if wide {
                product(&mut next, factor, plain, [n, n, cols])
            } else {
                product(&mut next, plain, factor, [rows, n, n])
            }
            out.iter_mut().zip(&next).for_each(|(o, y)| *o = 3.4445 * *o + y);
        }
    }
}

fn orthogonalization(c: &mut Criterion) {
    let mut group = c.benchmark_group("orthogonalize");
    group.sample_size(20);
    for (count, rows, cols) in SHAPES {
        let x = gaussian(count * rows * cols);
        let (scales, mut out) = (vec![1.0; count], vec![0.0; x.len()]);
        let name = format!("{count}x{rows}x{cols}");
        for accuracy in [Accuracy::Standard, Accuracy::Fast] {
            group.bench_function(BenchmarkId::new(accuracy.name(), &name), |b| {
                b.iter(|| orthogonalize(&mut [Job::new(Matrices::new(&x, count, rows, cols), &scales, &mut out)], accuracy));
            });
        }
        group.bench_function(BenchmarkId::new("three plain products", &name), |b| b.iter(|| plain_newton_schulz(&x, &mut out, rows, cols)));
    }
}

fn norms(c: &mut Criterion) {
    let mut group = c.benchmark_group("norms");
    group.sample_size(20);
    for (count, rows, cols) in SHAPES {
        let x = gaussian(count * rows * cols);
        let batch = Matrices::new(&x, count, rows, cols);
        let (scales, mut out, mut u) = (vec![1.0; count], vec![0.0; x.len()], gaussian(count * VECTORS * cols));
        let name = format!("{count}x{rows}x{cols}");
        group.throughput(Throughput::Bytes((x.len() * size_of::<f32>()) as u64));
        group.bench_function(BenchmarkId::new("power step", &name), |b| {
            b.iter(|| black_box(spectral_norms(&[batch], &mut [Vectors::Refine(&mut u)])));
        });
        group.bench_function(BenchmarkId::new("normalize", &name), |b| {
            b.iter(|| black_box(normalize(&mut [Job::new(batch, &scales, &mut out)], &mut [Vectors::Refine(&mut u)])));
        });
        group.bench_function(BenchmarkId::new("cold start", &name), |b| {
            b.iter(|| black_box(spectral_norms(&[batch], &mut [Vectors::Discard])));
        });
        if count * rows * cols <= 1 << 20 {
            group.bench_function(BenchmarkId::new("nuclear", &name), |b| b.iter(|| black_box(nuclear_norms(&[batch]))));
        }
    }
}

criterion_group!(benches, orthogonalization, norms);
criterion_main!(benches);
