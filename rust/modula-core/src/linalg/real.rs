//! The two floating-point types the kernels run in.

use std::cell::RefCell;
use std::fmt::Debug;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Div, Mul, MulAssign, Neg, Sub, SubAssign};
use std::thread::LocalKey;

use super::scratch::Scratch;
use super::simd::Vectorized;

/// The part of [`Real`] that only this module needs.
pub trait Internal: Vectorized {
    /// The buffers of this thread.
    fn scratch() -> &'static LocalKey<RefCell<Scratch<Self>>>;
}

/// `f32` or `f64`.
pub trait Real:
    Internal
    + Copy
    + Debug
    + Default
    + PartialOrd
    + Send
    + Sync
    + 'static
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + SubAssign
    + MulAssign
    + Sum
{
    /// Zero.
    const ZERO: Self;
    /// One.
    const ONE: Self;
    /// The spacing of the numbers just above one.
    const EPSILON: Self;
    /// Not a number.
    const NAN: Self;
    /// The largest power of two whose inverse is a normal number: the largest scale factor.
    const LARGEST_SCALE: Self;
    /// The smallest power of two that is a normal number: the smallest scale factor.
    const SMALLEST_SCALE: Self;
    /// Quantities within `[1 / SAFE, SAFE]` can be multiplied twice and summed without overflow or harmful underflow.
    const SAFE: Self;

    /// Nearest value of this type.
    fn from_f64(x: f64) -> Self;
    /// The same value in double precision.
    fn to_f64(self) -> f64;
    /// Absolute value.
    fn abs(self) -> Self;
    /// Square root.
    fn sqrt(self) -> Self;
    /// Neither infinite nor NaN.
    fn is_finite(self) -> bool;
    /// The largest power of two that is not above a positive normal number: the number with its mantissa bits cleared.
    fn exponent(self) -> Self;
}

macro_rules! real {
    ($t:ty, $safe:expr, $mantissa:expr) => {
        impl Internal for $t {
            fn scratch() -> &'static LocalKey<RefCell<Scratch<Self>>> {
                thread_local!(static SCRATCH: RefCell<Scratch<$t>> = RefCell::default());
                &SCRATCH
            }
        }

        impl Real for $t {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            const EPSILON: Self = <$t>::EPSILON;
            const NAN: Self = <$t>::NAN;
            const LARGEST_SCALE: Self = 1.0 / (2.0 * <$t>::MIN_POSITIVE) * 0.5;
            const SMALLEST_SCALE: Self = <$t>::MIN_POSITIVE;
            const SAFE: Self = $safe;

            #[inline(always)]
            fn from_f64(x: f64) -> Self {
                x as $t
            }
            #[inline(always)]
            fn to_f64(self) -> f64 {
                f64::from(self)
            }
            #[inline(always)]
            fn abs(self) -> Self {
                <$t>::abs(self)
            }
            #[inline(always)]
            fn sqrt(self) -> Self {
                <$t>::sqrt(self)
            }
            #[inline(always)]
            fn is_finite(self) -> bool {
                <$t>::is_finite(self)
            }
            #[inline(always)]
            fn exponent(self) -> Self {
                <$t>::from_bits(self.to_bits() & !$mantissa)
            }
        }
    };
}

real!(f32, 1e9, 0x007f_ffff);
real!(f64, 1e75, 0x000f_ffff_ffff_ffff);
