//! Vectors measured entry by entry: rows of a table, biases, scales.

use rayon::prelude::*;

use crate::linalg::constants::RISES;
use crate::linalg::{Real, bent, unit_scale};
use crate::tensor::WORTH_A_THREAD;
use crate::{interrupt, memory};

/// How a vector is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Measure {
    /// Root mean square.
    Rms,
    /// Largest absolute entry.
    MaxAbs,
}

/// Rows are handed to threads in pieces of about this many numbers: few enough to balance the threads, enough to outweigh the cost of
/// handing over.
const PIECE: usize = 1 << 14;

fn largest<T: Real>(row: &[T]) -> T {
    // A comparison with NaN is false, so this form lets a NaN replace the largest entry so far, and then keeps the NaN.
    row.iter().fold(T::ZERO, |top, &x| if x.abs() <= top || !top.is_finite() { top } else { x.abs() })
}

/// The measure of one row; NaN if an entry is not finite.
pub(crate) fn measure<T: Real>(row: &[T], by: Measure) -> T {
    let top = largest(row);
    if top == T::ZERO {
        return T::ZERO;
    }
    if !top.is_finite() {
        return T::NAN;
    }
    match by {
        Measure::MaxAbs => top,
        Measure::Rms => {
            let scale = unit_scale(top);
            let sum: f64 = row.iter().map(|&x| (x * scale).to_f64()).map(|x| x * x).sum();
            T::from_f64((sum / row.len() as f64).sqrt()) / scale
        }
    }
}

/// The dual of the measure: sqrt(d) times the 2-norm, or the sum of absolute values.
pub(crate) fn dual_measure<T: Real>(row: &[T], by: Measure) -> f64 {
    match by {
        Measure::MaxAbs => row.iter().map(|x| x.abs().to_f64()).sum(),
        Measure::Rms => measure(row, by).to_f64() * row.len() as f64,
    }
}

/// Applies a function to each row of `cols` numbers and returns the values.
pub(crate) fn each<T: Real>(rows: &[T], cols: usize, number: impl Fn(&[T]) -> f64 + Send + Sync) -> Vec<f64> {
    let cols = cols.max(1);
    if rows.len() < WORTH_A_THREAD {
        return memory::collected(rows.chunks(cols).map(number));
    }
    let mut numbers = memory::filled(0.0, rows.len().div_ceil(cols));
    let watch = interrupt::current();
    rows.par_chunks(cols).zip(&mut numbers).with_min_len((PIECE / cols).max(1)).for_each(|(row, place)| {
        watch.check();
        *place = number(row);
    });
    numbers
}

/// The direction that replaces a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// The row divided by its measure.
    Unit,
    /// The sign of every entry.
    Sign,
    /// The row cut down to the scale: by its measure, or each of its entries where they are measured by the largest.
    HardCap,
    /// The row whose measure is bent, or whose entries are bent, by the polynomial of [`linalg::soft_cap`](crate::linalg::soft_cap).
    SoftCap,
    /// The row as it is.
    Same,
}

/// Writes `scale * direction` for every row of `cols` numbers; rows of zeros stay zero, rows with an entry that is not finite become NaN.
/// Each row takes the scale of its block; a block has `rows` rows.
pub(crate) fn update<T: Real>(input: &[T], output: &mut [T], shape: (usize, usize), scales: &[T], by: Measure, direction: Direction) {
    let (rows, cols) = shape;
    if input.is_empty() {
        return;
    }
    let batch = (PIECE / cols).max(1);
    let watch = interrupt::current();
    let work = |(piece, (input, output)): (usize, (&[T], &mut [T]))| {
        watch.check();
        let rows_here = input.chunks_exact(cols).zip(output.chunks_exact_mut(cols)).enumerate();
        for (offset, (row, out)) in rows_here {
            let scale = scales[(piece * batch + offset) / rows];
            update_row(row, out, scale, by, direction);
        }
    };
    if input.len() < WORTH_A_THREAD {
        return work((0, (input, output)));
    }
    input.par_chunks(batch * cols).zip(output.par_chunks_mut(batch * cols)).enumerate().for_each(work);
}

/// Writes two factors for each row of `cols` numbers: the row times the first, times the second, is `scale` times its direction.
pub(crate) fn factors<T: Real>(input: &[T], (rows, cols): (usize, usize), scales: &[T], by: Measure, factors: &mut [T]) {
    let watch = interrupt::current();
    let write = |(index, (row, pair)): (usize, (&[T], &mut [T]))| {
        watch.check();
        pair.copy_from_slice(&row_factors(measure(row, by), scales[index / rows]));
    };
    if input.len() < WORTH_A_THREAD {
        return input.chunks(cols.max(1)).zip(factors.chunks_mut(2)).enumerate().for_each(write);
    }
    let pieces = input.par_chunks(cols).zip(factors.par_chunks_mut(2)).enumerate();
    pieces.with_min_len((PIECE / cols).max(1)).for_each(write);
}

/// The two factors of a row. The first brings its entries near 1, so that the intermediate product neither overflows nor underflows. The
/// second is zero for a row of zeros, and NaN for a row that is not finite.
fn row_factors<T: Real>(norm: T, scale: T) -> [T; 2] {
    if norm == T::ZERO || scale == T::ZERO {
        return [T::ONE, T::ZERO];
    }
    if !norm.is_finite() {
        return [T::ONE, T::NAN];
    }
    let unit = unit_scale(norm);
    [unit, scale / (norm * unit)]
}

fn update_row<T: Real>(row: &[T], out: &mut [T], scale: T, by: Measure, direction: Direction) {
    let norm = measure(row, by);
    if norm == T::ZERO || scale == T::ZERO {
        return out.fill(T::ZERO);
    }
    if !norm.is_finite() {
        return out.fill(T::NAN);
    }
    if matches!(direction, Direction::HardCap | Direction::SoftCap) {
        return cap_row(row, out, scale, by, direction, norm);
    }
    let [unit, rest] = row_factors(norm, scale);
    for (out, &x) in out.iter_mut().zip(row) {
        *out = match direction {
            Direction::Unit => x * unit * rest,
            Direction::Sign if x > T::ZERO => scale,
            Direction::Sign if x < T::ZERO => -scale,
            Direction::Sign => x * T::ZERO,
            Direction::Same => x * scale,
            Direction::HardCap | Direction::SoftCap => unreachable!("caps have returned"),
        };
    }
}

/// A row of this measure with its size, or the sizes of its entries, bent or cut.
fn cap_row<T: Real>(row: &[T], out: &mut [T], scale: T, by: Measure, direction: Direction, norm: T) {
    let (cap, largest) = (scale.to_f64(), norm.to_f64());
    if cap == f64::INFINITY || (direction == Direction::HardCap && largest <= cap) {
        return out.copy_from_slice(row);
    }
    // Sizes beyond the rise of the polynomial are scaled down to it.
    let shrunk = if direction == Direction::SoftCap { (RISES * cap / largest).min(1.0) } else { 1.0 };
    let size = |x: f64| if direction == Direction::HardCap { x.min(cap) } else { cap * bent(x * shrunk / cap) };
    let factor = size(largest) / largest;
    for (out, &x) in out.iter_mut().zip(row) {
        let x = x.to_f64();
        *out = T::from_f64(match by {
            Measure::Rms => x * factor,
            Measure::MaxAbs => size(x.abs()).copysign(x),
        });
    }
}
