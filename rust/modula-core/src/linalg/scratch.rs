//! Memory that a thread keeps from one matrix to the next.

use std::cell::RefCell;
use std::thread::LocalKey;

use crate::memory;

/// Buffers of one thread. They grow to the size that the largest matrix needs; their contents mean nothing from one matrix to the next.
#[derive(Debug, Default)]
pub struct Scratch<T> {
    /// Gram matrix, then its inverse Cholesky factor.
    pub gram: Vec<T>,
    /// The symmetric factor applied to the matrix.
    pub factor: Vec<T>,
    /// The upper half of a Gram matrix, which is inverted more than once.
    pub kept: Vec<T>,
    /// Temporary blocks of the inversion.
    pub temporary: Vec<T>,
    /// A copy of some rows or columns of a matrix.
    pub panel: Vec<T>,
    /// Packed parts of the factors of a product.
    pub slab: Vec<T>,
    /// Vectors of power iterations and of the Lanczos method.
    pub vectors: Vec<T>,
}

/// Bytes in a cache line, and in the longest register. A register that spans two lines takes two accesses.
pub(super) const LINE: usize = 64;

/// `len` numbers of a buffer, from a cache line on; the buffer grows if it has fewer.
pub(super) fn grow<T: Copy + Default>(buffer: &mut Vec<T>, len: usize) -> &mut [T] {
    let spare = LINE / size_of::<T>();
    if buffer.len() < len + spare {
        memory::reserve(buffer, len + spare - buffer.len());
        buffer.resize(len + spare, T::default());
    }
    let start = buffer.as_ptr().align_offset(LINE).min(spare);
    &mut buffer[start..start + len]
}

/// Runs `work` with the buffers of this thread. A nested call, on the same thread, gets buffers of its own.
pub(super) fn with_scratch<T: Default, R>(key: &'static LocalKey<RefCell<Scratch<T>>>, work: impl FnOnce(&mut Scratch<T>) -> R) -> R {
    let mut scratch = key.take();
    let result = work(&mut scratch);
    key.replace(scratch);
    result
}
