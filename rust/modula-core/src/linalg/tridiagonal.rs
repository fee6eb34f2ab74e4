//! The largest eigenpair of a small symmetric positive semi-definite tridiagonal matrix.

/// Relative width of the bracket around the largest eigenvalue at which bisection stops and inverse iteration takes over.
const BRACKET: f64 = 1e-4;

/// The largest eigenvalue and its unit eigenvector: bisection on Sturm counts, then inverse iteration from just above and its Rayleigh
/// quotient.
///
/// If other eigenvalues lie within [`BRACKET`] of the largest, the vector may mix their eigenvectors, and the quotient then lies between
/// the eigenvalues. The side of the matrix is at most `MOST`; entries of the vector beyond it mean nothing.
pub(super) fn largest_eigenpair<const MOST: usize>(diagonal: &[f64], off_diagonal: &[f64]) -> (f64, [f64; MOST]) {
    let n = diagonal.len();
    let beside = |i: usize| {
        if i == 0 { 0.0 } else { off_diagonal[i - 1].abs() }
    };
    let after = |i: usize| off_diagonal.get(i).map_or(0.0, |x| x.abs());
    // Gershgorin's discs bound the eigenvalue from above, the largest diagonal entry from below.
    let mut low = diagonal.iter().copied().fold(f64::MIN, f64::max);
    let mut high = (0..n).map(|i| diagonal[i] + beside(i) + after(i)).fold(f64::MIN, f64::max);
    let above = |x: f64| {
        let mut pivot = 1.0;
        (0..n).any(|i| {
            pivot = diagonal[i] - x - if i == 0 { 0.0 } else { beside(i).powi(2) / pivot };
            pivot >= 0.0
        })
    };
    while high - low > BRACKET * high.abs() {
        let middle = 0.5 * (low + high);
        if middle <= low || middle >= high {
            break;
        }
        if above(middle) { low = middle } else { high = middle }
    }
    // Just above the largest eigenvalue every pivot of the elimination is negative, so it needs no interchange.
    let shift = high * (1.0 + 4.0 * f64::EPSILON) + f64::MIN_POSITIVE;
    let mut room = [1.0; MOST];
    let vector = &mut room[..n];
    for _ in 0..3 {
        solve::<MOST>(diagonal, off_diagonal, shift, vector);
        let largest = vector.iter().fold(0.0_f64, |a, x| a.max(x.abs()));
        vector.iter_mut().for_each(|x| *x /= largest);
        let length = vector.iter().map(|x| x * x).sum::<f64>().sqrt();
        vector.iter_mut().for_each(|x| *x /= length);
    }
    let squares: f64 = diagonal.iter().zip(&*vector).map(|(d, x)| d * x * x).sum();
    let products: f64 = off_diagonal.iter().zip(vector.windows(2)).map(|(o, x)| o * x[0] * x[1]).sum();
    (squares + 2.0 * products, room)
}

/// `x = (T - shift I)^-1 x`
fn solve<const MOST: usize>(diagonal: &[f64], off_diagonal: &[f64], shift: f64, x: &mut [f64]) {
    let n = x.len();
    let floor = -f64::EPSILON * shift.abs() - f64::MIN_POSITIVE;
    let mut pivots = [0.0; MOST];
    for i in 0..n {
        pivots[i] = diagonal[i] - shift;
        if i > 0 {
            let factor = off_diagonal[i - 1] / pivots[i - 1];
            pivots[i] -= factor * off_diagonal[i - 1];
            x[i] -= factor * x[i - 1];
        }
        pivots[i] = pivots[i].min(floor);
    }
    for i in (0..n).rev() {
        if i + 1 < n {
            x[i] -= off_diagonal[i] * x[i + 1];
        }
        x[i] /= pivots[i];
    }
}
