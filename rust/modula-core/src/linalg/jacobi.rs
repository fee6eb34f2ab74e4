//! Singular values by one-sided Jacobi rotations in double precision: slow, and accurate to rounding for any matrix.

use super::Real;
use super::scaling::{largest_entry, unit_scale};
use crate::{interrupt, memory};

/// A matrix `X` (transposed if tall) as `X = rotation^T rows`, with orthogonal `rotation` and mutually orthogonal `rows`, whose lengths are
/// the singular values.
///
/// Demmel and Veselic, "Jacobi's method is more accurate than QR", 1992.
#[derive(Debug)]
pub(super) struct RowSpace {
    rows: Vec<f64>,
    rotation: Vec<f64>,
    n: usize,
    m: usize,
    transposed: bool,
    unit: f64,
}

/// Sweeps after which the rows of any matrix are orthogonal to rounding; for most matrices ten sweeps suffice.
const SWEEPS: usize = 60;

impl RowSpace {
    /// Rotates the rows of a finite matrix until they are orthogonal.
    pub fn new<T: Real>(entries: &[T], cols: usize) -> Self {
        let total_rows = entries.len() / cols;
        let transposed = total_rows > cols;
        let (n, m) = if transposed { (cols, total_rows) } else { (total_rows, cols) };
        let mut rows: Vec<f64> = memory::room(entries.len());
        if transposed {
            rows.extend((0..n).flat_map(|i| entries.iter().skip(i).step_by(cols).map(|x| x.to_f64())));
        } else {
            rows.extend(entries.iter().map(|x| x.to_f64()));
        }
        let unit = unit_scale(largest_entry(&rows).unwrap_or(1.0));
        rows.iter_mut().for_each(|x| *x *= unit);
        let mut rotation = memory::filled(0.0, n * n);
        for i in 0..n {
            rotation[i * n + i] = 1.0;
        }
        let mut space = Self { rows, rotation, n, m, transposed, unit };
        for _ in 0..SWEEPS {
            if !space.sweep() {
                break;
            }
        }
        space
    }

    /// Rotates every pair of rows once. Returns whether some pair was not orthogonal to rounding before.
    fn sweep(&mut self) -> bool {
        let tolerance = f64::EPSILON * (self.m as f64).sqrt();
        let mut rotated = false;
        for i in 0..self.n {
            for j in i + 1..self.n {
                // Only for every sixteenth pair, because rows may be as short as one number.
                if j % 16 == 0 {
                    interrupt::check();
                }
                let (a, b) = pair(&mut self.rows, self.m, i, j);
                let (aa, bb, ab) = (dot(a, a), dot(b, b), dot(a, b));
                // Longest rows first: sorts the singular values, and converges faster (de Rijk 1989).
                let swap = aa < bb;
                if !swap && ab.abs() <= tolerance * (aa * bb).sqrt() {
                    continue;
                }
                rotated |= ab.abs() > tolerance * (aa * bb).sqrt();
                let (mut cosine, mut sine) = (1.0, 0.0);
                if ab != 0.0 {
                    let zeta = (bb - aa) / (2.0 * ab);
                    let tangent = zeta.signum() / (zeta.abs() + zeta.hypot(1.0));
                    cosine = tangent.hypot(1.0).recip();
                    sine = cosine * tangent;
                }
                for (data, width) in [(&mut self.rows, self.m), (&mut self.rotation, self.n)] {
                    let (a, b) = pair(data, width, i, j);
                    for (a, b) in a.iter_mut().zip(b) {
                        let (x, y) = (cosine * *a - sine * *b, sine * *a + cosine * *b);
                        (*a, *b) = if swap { (y, -x) } else { (x, y) };
                    }
                }
            }
        }
        rotated
    }

    /// The singular values of the matrix divided by `unit`.
    fn lengths(&self) -> Vec<f64> {
        memory::collected(self.rows.chunks_exact(self.m).map(|row| dot(row, row).sqrt()))
    }

    /// The singular values.
    pub fn singular_values(&self) -> Vec<f64> {
        memory::collected(self.lengths().into_iter().map(|s| s / self.unit))
    }

    /// The orthogonal polar factor; singular values below `epsilon * m` of the largest become 0.
    pub fn polar<T: Real>(&self) -> Vec<f64> {
        let largest = self.lengths().into_iter().fold(0.0, f64::max);
        let cutoff = T::EPSILON.to_f64() * self.m as f64 * largest;
        self.with_lengths(|length| if length <= cutoff { 0.0 } else { 1.0 })
    }

    /// The matrix with each singular value replaced by a function of it.
    pub fn with_values(&self, value: impl Fn(f64) -> f64) -> Vec<f64> {
        self.with_lengths(|length| value(length / self.unit))
    }

    fn with_lengths(&self, value: impl Fn(f64) -> f64) -> Vec<f64> {
        let mut made = memory::filled(0.0, self.n * self.m);
        let parts = self.rows.chunks_exact(self.m).zip(self.rotation.chunks_exact(self.n));
        for ((row, turn), length) in parts.zip(self.lengths()) {
            let value = if length == 0.0 { 0.0 } else { value(length) };
            if value == 0.0 {
                continue;
            }
            interrupt::check();
            for (out, &t) in made.chunks_exact_mut(self.m).zip(turn) {
                for (out, &x) in out.iter_mut().zip(row) {
                    *out += t / length * value * x;
                }
            }
        }
        if !self.transposed {
            return made;
        }
        let mut tall = memory::room(made.len());
        tall.extend((0..self.m).flat_map(|j| made.iter().copied().skip(j).step_by(self.m)));
        tall
    }
}

fn pair(data: &mut [f64], width: usize, i: usize, j: usize) -> (&mut [f64], &mut [f64]) {
    let (head, tail) = data.split_at_mut(j * width);
    (&mut head[i * width..(i + 1) * width], &mut tail[..width])
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    let (a_chunks, a_rest) = a.as_chunks::<8>();
    let (b_chunks, b_rest) = b.as_chunks::<8>();
    let mut sums = [0.0; 8];
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for ((s, a), b) in sums.iter_mut().zip(a).zip(b) {
            *s += a * b;
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f64>() + rest
}
