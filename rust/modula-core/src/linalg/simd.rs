//! Vector registers of either floating-point type, for whatever instruction set the processor has.

use pulp::{Simd, WithSimd};

use super::zip;

/// What [`Real`](super::Real) numbers can do in vector registers.
pub trait Vectorized: Copy {
    /// A vector register.
    type Register<S: Simd>: Copy;

    /// Numbers in a register.
    fn lanes<S: Simd>() -> usize;
    /// The same number in every lane.
    fn splat<S: Simd>(simd: S, x: Self) -> Self::Register<S>;
    /// `a * b + c`, fused where that is an instruction.
    fn mul_add<S: Simd>(simd: S, a: Self::Register<S>, b: Self::Register<S>, c: Self::Register<S>) -> Self::Register<S>;
    /// `a * b`
    fn times<S: Simd>(simd: S, a: Self::Register<S>, b: Self::Register<S>) -> Self::Register<S>;
    /// The larger of `a` and the absolute value of `b`, lane by lane; if one of them is NaN, either.
    fn larger_abs<S: Simd>(simd: S, a: Self::Register<S>, b: Self::Register<S>) -> Self::Register<S>;
    /// The largest of the lanes.
    fn largest_lane<S: Simd>(simd: S, a: Self::Register<S>) -> Self;
    /// Interleaves two registers: their first halves in the first result, their second halves in the second. None if no instruction does
    /// it.
    fn zip<S: Simd>(simd: S, a: Self::Register<S>, b: Self::Register<S>) -> Option<[Self::Register<S>; 2]>;
    /// The sum of the lanes.
    fn sum_lanes<S: Simd>(simd: S, a: Self::Register<S>) -> Self;
    /// The slice as whole registers; numbers that do not fill the last are left out.
    fn registers<S: Simd>(slice: &[Self]) -> &[Self::Register<S>];
    /// The slice as whole registers to write to; numbers that do not fill the last are left out.
    fn registers_mut<S: Simd>(slice: &mut [Self]) -> &mut [Self::Register<S>];
    /// Loads a slice that may be shorter than a register; the lanes past its end are arbitrary.
    fn load<S: Simd>(simd: S, slice: &[Self]) -> Self::Register<S>;
    /// Stores the first lanes, as many as the slice has numbers.
    fn store<S: Simd>(simd: S, slice: &mut [Self], x: Self::Register<S>);
}

/// Compiles an expression for the instruction set of the processor. The functions that it calls must be `#[inline(always)]`: others are
/// not.
macro_rules! vectorized {
    ($arch:expr, $work:expr) => {
        $arch.dispatch($crate::linalg::simd::Work(
            #[inline(always)]
            || $work,
        ))
    };
}
pub(super) use vectorized;

/// A closure that inherits the instruction set. (A plain `FnOnce` goes through a shim that does not: it ran at a tenth of the speed.)
pub(super) struct Work<F>(pub F);

impl<R, F: FnMut() -> R> WithSimd for Work<F> {
    type Output = R;

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, _: S) -> R {
        (self.0)()
    }
}

/// Prefetches the cache line of the first number.
#[inline(always)]
pub(super) fn prefetch<T>(numbers: &[T]) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, which reads nothing and faults at no address; every x86-64 processor has it.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(numbers.as_ptr().cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = numbers;
}

macro_rules! implement {
    (
        $t:ty, $register:ident, $lanes:ident, $splat:ident, $mul_add:ident, $mul:ident, $abs:ident, $max:ident, $largest:ident, $sum:ident,
        $as:ident, $as_mut:ident, $load:ident, $store:ident
    ) => {
        impl Vectorized for $t {
            type Register<S: Simd> = S::$register;

            #[inline(always)]
            fn lanes<S: Simd>() -> usize {
                S::$lanes
            }
            #[inline(always)]
            fn splat<S: Simd>(simd: S, x: Self) -> S::$register {
                simd.$splat(x)
            }
            #[inline(always)]
            fn mul_add<S: Simd>(simd: S, a: S::$register, b: S::$register, c: S::$register) -> S::$register {
                simd.$mul_add(a, b, c)
            }
            #[inline(always)]
            fn times<S: Simd>(simd: S, a: S::$register, b: S::$register) -> S::$register {
                simd.$mul(a, b)
            }
            #[inline(always)]
            fn larger_abs<S: Simd>(simd: S, a: S::$register, b: S::$register) -> S::$register {
                simd.$max(a, simd.$abs(b))
            }
            #[inline(always)]
            fn largest_lane<S: Simd>(simd: S, a: S::$register) -> Self {
                simd.$largest(a)
            }
            #[inline(always)]
            fn zip<S: Simd>(simd: S, a: S::$register, b: S::$register) -> Option<[S::$register; 2]> {
                zip::$register(simd, a, b)
            }
            #[inline(always)]
            fn sum_lanes<S: Simd>(simd: S, a: S::$register) -> Self {
                simd.$sum(a)
            }
            #[inline(always)]
            fn registers<S: Simd>(slice: &[Self]) -> &[S::$register] {
                S::$as(slice).0
            }
            #[inline(always)]
            fn registers_mut<S: Simd>(slice: &mut [Self]) -> &mut [S::$register] {
                S::$as_mut(slice).0
            }
            #[inline(always)]
            fn load<S: Simd>(simd: S, slice: &[Self]) -> S::$register {
                simd.$load(slice)
            }
            #[inline(always)]
            fn store<S: Simd>(simd: S, slice: &mut [Self], x: S::$register) {
                simd.$store(slice, x)
            }
        }
    };
}

implement!(
    f32,
    f32s,
    F32_LANES,
    splat_f32s,
    mul_add_e_f32s,
    mul_f32s,
    abs_f32s,
    max_f32s,
    reduce_max_f32s,
    reduce_sum_f32s,
    as_simd_f32s,
    as_mut_simd_f32s,
    partial_load_f32s,
    partial_store_f32s
);
implement!(
    f64,
    f64s,
    F64_LANES,
    splat_f64s,
    mul_add_e_f64s,
    mul_f64s,
    abs_f64s,
    max_f64s,
    reduce_max_f64s,
    reduce_sum_f64s,
    as_simd_f64s,
    as_mut_simd_f64s,
    partial_load_f64s,
    partial_store_f64s
);
