//! Batches of equal row-major matrices, and maps on them.

use super::Real;

/// `count` equal `rows x cols` matrices, row-major, one after the other. Any dimension may be 0.
#[derive(Clone, Copy, Debug)]
pub struct Matrices<'a, T> {
    data: &'a [T],
    count: usize,
    rows: usize,
    cols: usize,
}

impl<'a, T: Real> Matrices<'a, T> {
    /// Views `data` as `count` matrices.
    ///
    /// # Panics
    /// If `data` does not hold exactly `count * rows * cols` numbers.
    pub fn new(data: &'a [T], count: usize, rows: usize, cols: usize) -> Self {
        assert_eq!(data.len(), count * rows * cols, "{count} matrices of {rows} x {cols}");
        Self { data, count, rows, cols }
    }

    /// Number of matrices.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Rows of each matrix.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns of each matrix.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Number of entries of one matrix.
    pub fn size(&self) -> usize {
        self.rows * self.cols
    }

    /// The entries of matrix `index`.
    pub fn matrix(&self, index: usize) -> &'a [T] {
        &self.data[index * self.size()..(index + 1) * self.size()]
    }
}

/// A map over a batch: `output[i] = scales[i] * direction(input[i])`. The function that is called decides what the direction is.
#[derive(Debug)]
pub struct Job<'a, T> {
    pub(super) input: Matrices<'a, T>,
    pub(super) scales: &'a [T],
    pub(super) output: &'a mut [T],
}

impl<'a, T: Real> Job<'a, T> {
    /// Pairs a batch with one scale for each matrix and with room for the result.
    ///
    /// # Panics
    /// If there is not one scale per matrix, or `output` is not as long as the input.
    pub fn new(input: Matrices<'a, T>, scales: &'a [T], output: &'a mut [T]) -> Self {
        assert_eq!(scales.len(), input.count, "one scale per matrix");
        assert_eq!(output.len(), input.data.len(), "an output of the size of the input");
        Self { input, scales, output }
    }
}

impl<T: Real> Job<'_, T> {
    /// The matrices of the job, each with its scale and output. Empty matrices, for which there is nothing to do, are left out.
    pub(super) fn tasks(&mut self) -> impl Iterator<Item = Task<'_, T>> {
        let Matrices { data, rows, cols, .. } = self.input;
        let size = (rows * cols).max(1);
        let matrices = data.chunks_exact(size).zip(self.output.chunks_exact_mut(size));
        matrices.zip(self.scales).map(move |((input, output), &scale)| Task { input, rows, cols, scale, output })
    }
}

/// One matrix of a [`Job`]: the unit of work handed to a thread.
#[derive(Debug)]
pub(super) struct Task<'a, T> {
    pub input: &'a [T],
    pub rows: usize,
    pub cols: usize,
    pub scale: T,
    pub output: &'a mut [T],
}

impl<T> Task<'_, T> {
    /// The work that the task takes, up to a constant factor.
    pub fn work(&self) -> usize {
        let (short, long) = (self.rows.min(self.cols), self.rows.max(self.cols));
        short * short * (6 * long + 3 * short)
    }
}
