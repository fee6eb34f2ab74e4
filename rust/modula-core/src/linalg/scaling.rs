//! Scaling by powers of two, so that no number overflows or loses digits.

use pulp::{Simd, WithSimd};

use super::{Real, machine};

/// The largest absolute entry, or `None` if some entry is infinite or NaN.
pub(crate) fn largest_entry<T: Real>(entries: &[T]) -> Option<T> {
    machine::arch().dispatch(Scan { entries })
}

struct Scan<'a, T> {
    entries: &'a [T],
}

impl<T: Real> WithSimd for Scan<'_, T> {
    type Output = Option<T>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Option<T> {
        // Independent accumulators, enough of them to hide the latency of an addition.
        const AT_ONCE: usize = 4;
        let zero = T::splat(simd, T::ZERO);
        let mut largest = [zero; AT_ONCE];
        // x * 0 is NaN if x is infinite or NaN, and zero otherwise.
        let mut poison = [zero; AT_ONCE];
        let registers = T::registers::<S>(self.entries);
        let (chunks, more) = registers.as_chunks::<AT_ONCE>();
        for chunk in chunks {
            for ((l, p), &x) in largest.iter_mut().zip(&mut poison).zip(chunk) {
                *l = T::larger_abs(simd, *l, x);
                *p = T::mul_add(simd, x, zero, *p);
            }
        }
        for ((l, p), &x) in largest.iter_mut().zip(&mut poison).zip(more) {
            *l = T::larger_abs(simd, *l, x);
            *p = T::mul_add(simd, x, zero, *p);
        }
        let rest = &self.entries[registers.len() * T::lanes::<S>()..];
        let mut undefined: T = rest.iter().map(|&x| x * T::ZERO).sum();
        for poison in poison {
            undefined += T::sum_lanes(simd, poison);
        }
        let larger = |a: T, b: T| if b > a { b } else { a };
        let mut result = rest.iter().map(|x| x.abs()).fold(T::ZERO, larger);
        for largest in largest {
            result = larger(result, T::largest_lane(simd, largest));
        }
        (undefined == T::ZERO).then_some(result)
    }
}

/// The power of two that brings a largest entry into `[1, 2)`, or as near to it as a power of two can that is a normal number and has a
/// normal inverse. (Subnormal numbers count as zero on threads that flush them, as XLA's threads do.)
pub(crate) fn unit_scale<T: Real>(largest: T) -> T {
    let scale = T::ONE / largest.exponent();
    if scale < T::SMALLEST_SCALE {
        T::SMALLEST_SCALE
    } else if scale < T::LARGEST_SCALE {
        scale
    } else {
        T::LARGEST_SCALE
    }
}

/// Splits a power of two into two factors that are powers of two near its square root.
pub(super) fn halves<T: Real>(power: T) -> (T, T) {
    let first = T::from_f64((0.5 * power.to_f64().log2()).floor().exp2());
    (first, power / first)
}

/// A norm, stored as `scaled / unit`, because the norm itself may be outside the range of `T`, or so small that it would lose digits.
#[derive(Clone, Copy)]
pub(crate) struct Norm<T> {
    pub scaled: T,
    pub unit: T,
}

impl<T: Real> Norm<T> {
    pub fn value(self) -> T {
        self.scaled / self.unit
    }

    /// Two factors that take a matrix of this norm to norm `scale` when it is multiplied by the first and then by the second. The first
    /// brings the entries near 1, so that the intermediate product neither overflows nor underflows. A matrix of zeros has a second factor
    /// of zero.
    pub fn factors(self, scale: T) -> [T; 2] {
        [self.unit, if self.scaled == T::ZERO { T::ZERO } else { scale / self.scaled }]
    }
}
