// Shared by the wgmma kernels: the layout of a warpgroup's sums, descriptors of operands in shared memory, and the products of one step.
#pragma once
#include "epilogue.cuh"

// The 64 x 128 sums of a warpgroup. Each warp has 16 rows, each thread 64 sums.
struct GroupSums {
    float (&at)[64];
    template <class F> DEVICE void each(F f) {
        const int thread = opaque(threadIdx.x), warp = thread >> 5 & 3, lane = thread & 31;
        const int row = warp * 16 + (lane >> 2), col = 2 * (lane & 3);
#pragma unroll
        for (int n = 0; n < 16; ++n) {
            f(row, col + 8 * n, at[4 * n], at[4 * n + 1]);
            f(row + 8, col + 8 * n, at[4 * n + 2], at[4 * n + 3]);
        }
    }
};

// The descriptor that wgmma takes for an operand: its address, the two strides between 8x8 cores (all in units of 16 bytes), and the code
// of the 128-byte swizzle.
DEVICE uint64 descriptor(unsigned address, unsigned leading, unsigned stride) {
    return uint64((address & 0x3ffff) >> 4) | uint64(leading >> 4) << 16 | uint64(stride >> 4) << 32 | uint64(1) << 62;
}

// sums += a b, where a has 64 rows, the sum runs over 64 products, and b has as many columns as the sums: 128, or 256 for float[2][64].
template <bool transposed, class Sums> DEVICE void multiply_chunk(Sums& sums, unsigned a, unsigned b) {
    warpgroup_fence();
#pragma unroll
    for (int k = 0; k < CHUNK; k += 16) {
        // If the columns of b are contiguous, 8 columns are 1024 bytes, and k runs within the 128 bytes of one column. If its rows are
        // contiguous (`transposed`), 8 steps of k are 1024 bytes, and the next 64 columns are the next panel.
        const uint64 rows = descriptor(a + 2 * k, 16, 1024);
        const uint64 cols = transposed ? descriptor(b + k * 128, PANEL_BYTES, 1024) : descriptor(b + 2 * k, 16, 1024);
        warpgroup_multiply_add<transposed>(sums, rows, cols);
    }
    warpgroup_commit();
}
