//! The vectors that power iterations start from: the same on every machine, and unrelated to any matrix.

use super::Real;

/// Entry `index` of the start vector of a power iteration: uniform in `[-1/2, 1/2)`, by the finaliser of MurmurHash3.
pub(super) fn start_entry<T: Real>(index: usize) -> T {
    let mut h = index as u32 + 1;
    h = (h ^ (h >> 16)).wrapping_mul(0x85eb_ca6b);
    h = (h ^ (h >> 13)).wrapping_mul(0xc2b2_ae35);
    h ^= h >> 16;
    T::from_f64(f64::from(h) / 4_294_967_296.0 - 0.5)
}

/// Unit vectors to find what the first estimate does not, in the places after it.
pub(super) fn accompany<T: Real>(u: &mut [T], cols: usize) {
    u.chunks_exact_mut(cols).enumerate().skip(1).for_each(|(j, u)| restart(j, u));
}

/// A unit vector unrelated to any matrix, and to those of other places.
pub(super) fn restart<T: Real>(place: usize, u: &mut [T]) {
    let first = place * u.len();
    let square = u.iter_mut().enumerate().fold(T::ZERO, |sum, (index, u)| {
        *u = start_entry(first + index);
        sum + *u * *u
    });
    let length = square.sqrt();
    u.iter_mut().for_each(|x| *x = *x / length);
}
