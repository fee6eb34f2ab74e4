// What the wgmma kernels share: sums as a warpgroup holds them, descriptors of operands in shared memory, one step of products.
#pragma once
#include "epilogue.cuh"

// A warpgroup's 64 x 128 sums, 64 a thread: each warp has 16 rows.
struct GroupSums {
    float (&at)[64];
    template <class F> DEVICE void each(F f) {
        const int thread = forgotten(threadIdx.x), warp = thread >> 5 & 3, lane = thread & 31;
        const int row = warp * 16 + (lane >> 2), col = 2 * (lane & 3);
#pragma unroll
        for (int n = 0; n < 16; ++n) {
            f(row, col + 8 * n, at[4 * n], at[4 * n + 1]);
            f(row + 8, col + 8 * n, at[4 * n + 2], at[4 * n + 3]);
        }
    }
};

// Address, then the two strides between 8x8 cores (all in units of 16 bytes), then the code of the 128-byte swizzle.
DEVICE uint64 descriptor(unsigned address, unsigned leading, unsigned stride) {
    return uint64((address & 0x3ffff) >> 4) | uint64(leading >> 4) << 16 | uint64(stride >> 4) << 32 | uint64(1) << 62;
}

// sums += a b for 64 rows at a, 64 steps of the sum, and as many columns at b as the sums have: 128 or, as float[2][64], 256.
template <bool transposed, class Sums> DEVICE void multiply_chunk(Sums& sums, unsigned a, unsigned b) {
    warpgroup_fence();
#pragma unroll
    for (int k = 0; k < CHUNK; k += 16) {
        // Columns of b contiguous: 8 of them are 1024 bytes, k walks within the 128 bytes of one. Rows contiguous: 8 steps of k are
        // 1024 bytes, the next 64 columns are the next panel.
        const uint64 rows = descriptor(a + 2 * k, 16, 1024);
        const uint64 cols = transposed ? descriptor(b + k * 128, PANEL_BYTES, 1024) : descriptor(b + 2 * k, 16, 1024);
        warpgroup_multiply_add<transposed>(sums, rows, cols);
    }
    warpgroup_commit();
}
