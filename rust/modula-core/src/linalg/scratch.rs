//! Memory that a thread keeps from one matrix to the next.

use std::cell::RefCell;
use std::thread::LocalKey;

use crate::memory;

/// Buffers of one thread. They grow to what the largest matrix needs, and hold no meaning between matrices.
#[derive(Debug, Default)]
pub struct Scratch<T> {
    /// Gram matrix, then its inverse Cholesky factor.
    pub gram: Vec<T>,
    /// The symmetric factor applied to the matrix.
    pub factor: Vec<T>,
    /// Half of a Gram matrix that is needed again.
    pub kept: Vec<T>,
    /// Temporary blocks of the inversion.
    pub temporary: Vec<T>,
    /// A copy of some rows or columns of a matrix.
    pub panel: Vec<T>,
    /// A few registers' width of a right factor.
    pub slab: Vec<T>,
    /// Vectors of the power iteration.
    pub vectors: Vec<T>,
}

/// Bytes in a line of the cache, and in the longest register: one that lies in two lines is read and written twice.
const LINE: usize = 64;

/// A buffer of at least `len` numbers, which begins with a line of the cache.
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
