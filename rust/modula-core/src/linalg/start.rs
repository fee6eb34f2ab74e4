//! The vectors that every power iteration starts from: the same on every machine, and unrelated to any matrix.

use super::Real;
use crate::{interrupt, memory};

/// Entry `index` of the start vector: uniform in `[-1/2, 1/2)`, by the finaliser of MurmurHash3, and rounded once.
pub(super) fn start_entry<T: Real>(index: usize) -> T {
    let mut h = (index as u32).wrapping_add(1);
    h = (h ^ (h >> 16)).wrapping_mul(0x85eb_ca6b);
    h = (h ^ (h >> 13)).wrapping_mul(0xc2b2_ae35);
    h ^= h >> 16;
    T::from_f64(f64::from(h) / 4_294_967_296.0 - 0.5)
}

/// The first `length` entries of the start vector, for comparison with the versions in `jax.numpy` and CUDA.
pub fn start_vector<T: Real>(length: usize) -> Vec<T> {
    memory::collected((0..length).map(start_entry).inspect(|_| interrupt::count(1)))
}

/// Fills `u` with the unit vector for one place among the estimates of a matrix. Each place has its own section of the start vector.
pub(super) fn restart<T: Real>(place: usize, u: &mut [T]) {
    let first = place * u.len();
    let square = u.iter_mut().enumerate().fold(T::ZERO, |sum, (index, u)| {
        *u = start_entry(first + index);
        sum + *u * *u
    });
    let length = square.sqrt();
    u.iter_mut().for_each(|x| *x = *x / length);
}

/// Restarts every estimate but the first, so that the next warm start can find singular vectors other than that one.
pub(super) fn restart_others<T: Real>(u: &mut [T], cols: usize) {
    u.chunks_exact_mut(cols).enumerate().skip(1).for_each(|(j, u)| restart(j, u));
}
