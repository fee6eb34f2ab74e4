//! Interleaving of two registers, the one shuffle that a transposition needs: the first result interleaves their first halves, the second
//! their second halves.
//!
//! The functions return `None` on processors for which they know no such instruction; the choice is made at compile time.

use pulp::Simd;
use pulp::bytemuck::Pod;

/// Zips two registers of f32.
#[inline(always)]
pub(super) fn f32s<S: Simd, R: Pod>(simd: S, a: R, b: R) -> Option<[R; 2]> {
    #[cfg(target_arch = "x86_64")]
    {
        use pulp::bytemuck::try_cast;
        use pulp::x86::{V3, V4};
        use std::any::Any;
        use std::arch::x86_64::{__m256, __m512, __m512i};
        let simd: &dyn Any = &simd;
        if let Some(simd) = simd.downcast_ref::<V4>() {
            const FIRST: [u32; 16] = [0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23];
            const SECOND: [u32; 16] = [8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31];
            let (a, b): (__m512, __m512) = (try_cast(a).ok()?, try_cast(b).ok()?);
            let (first, second): (__m512i, __m512i) = (try_cast(FIRST).ok()?, try_cast(SECOND).ok()?);
            let zipped = [simd.avx512f._mm512_permutex2var_ps(a, first, b), simd.avx512f._mm512_permutex2var_ps(a, second, b)];
            return try_cast(zipped).ok();
        }
        if let Some(simd) = simd.downcast_ref::<V3>() {
            let (a, b): (__m256, __m256) = (try_cast(a).ok()?, try_cast(b).ok()?);
            let (low, high) = (simd.avx._mm256_unpacklo_ps(a, b), simd.avx._mm256_unpackhi_ps(a, b));
            let zipped = [simd.avx._mm256_permute2f128_ps::<0x20>(low, high), simd.avx._mm256_permute2f128_ps::<0x31>(low, high)];
            return try_cast(zipped).ok();
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (simd, a, b);
    None
}

/// Zips two registers of f64.
#[inline(always)]
pub(super) fn f64s<S: Simd, R: Pod>(simd: S, a: R, b: R) -> Option<[R; 2]> {
    #[cfg(target_arch = "x86_64")]
    {
        use pulp::bytemuck::try_cast;
        use pulp::x86::{V3, V4};
        use std::any::Any;
        use std::arch::x86_64::{__m256d, __m512d, __m512i};
        let simd: &dyn Any = &simd;
        if let Some(simd) = simd.downcast_ref::<V4>() {
            const FIRST: [u64; 8] = [0, 8, 1, 9, 2, 10, 3, 11];
            const SECOND: [u64; 8] = [4, 12, 5, 13, 6, 14, 7, 15];
            let (a, b): (__m512d, __m512d) = (try_cast(a).ok()?, try_cast(b).ok()?);
            let (first, second): (__m512i, __m512i) = (try_cast(FIRST).ok()?, try_cast(SECOND).ok()?);
            let zipped = [simd.avx512f._mm512_permutex2var_pd(a, first, b), simd.avx512f._mm512_permutex2var_pd(a, second, b)];
            return try_cast(zipped).ok();
        }
        if let Some(simd) = simd.downcast_ref::<V3>() {
            let (a, b): (__m256d, __m256d) = (try_cast(a).ok()?, try_cast(b).ok()?);
            let (low, high) = (simd.avx._mm256_unpacklo_pd(a, b), simd.avx._mm256_unpackhi_pd(a, b));
            let zipped = [simd.avx._mm256_permute2f128_pd::<0x20>(low, high), simd.avx._mm256_permute2f128_pd::<0x31>(low, high)];
            return try_cast(zipped).ok();
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (simd, a, b);
    None
}
