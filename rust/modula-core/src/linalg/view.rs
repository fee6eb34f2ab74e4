//! Matrices inside longer slices: the factors and the result of a [product](super::product).

use super::Real;

/// A row-major matrix inside a longer slice.
#[derive(Clone, Copy, Debug)]
pub(super) struct View<'a, T> {
    pub data: &'a [T],
    /// Distance between rows.
    pub stride: usize,
}

impl<'a, T> View<'a, T> {
    pub fn new(data: &'a [T], stride: usize) -> Self {
        Self { data, stride }
    }
}

/// The left factor.
#[derive(Clone, Copy, Debug)]
pub(super) enum Left<'a, T> {
    /// `a`, a row for every term of the sum.
    Columns(View<'a, T>),
    /// `a^T`, a row for every row of the result.
    Rows(View<'a, T>),
    /// A packed copy of as many columns as a tile has rows, term after term; missing columns are zeros.
    Strip(&'a [T]),
}

/// Which factor is triangular: tiles skip its zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Zeros {
    /// No factor is triangular.
    None,
    /// `a^T` is lower triangular.
    Left,
    /// `b` is lower triangular.
    Right,
}

/// A block of a row-major matrix to write to.
#[derive(Debug)]
pub(super) struct Block<'a, T> {
    pub data: &'a mut [T],
    /// Distance between rows.
    pub stride: usize,
    pub rows: usize,
    pub cols: usize,
}

impl<T: Real> Left<'_, T> {
    /// The factor from a term and a row on.
    #[inline(always)]
    pub fn from(self, term: usize, row: usize) -> Self {
        match self {
            Self::Columns(v) => Self::Columns(View { data: &v.data[term * v.stride + row..], ..v }),
            Self::Rows(v) => Self::Rows(View { data: &v.data[row * v.stride + term..], ..v }),
            Self::Strip(_) => self,
        }
    }
}
