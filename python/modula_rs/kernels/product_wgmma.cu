// The products of product_mma.cu on a Hopper GPU: wgmma, fed by the copy engine. Flops and bytes are the same.
//
// Two warpgroups, each 64 x 128 of the tile, sums in 64 registers a thread; both operands are read from shared memory. One
// thread starts the copies, which complete on a barrier per stage. Two blocks share an SM, so that one's epilogue hides behind
// the other's products.
#include "epilogue.cuh"

#if defined(HOPPER) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

struct GroupSums {
    float at[64];
    template <class F> DEVICE void each(F f) {
        const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
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

template <int planes, bool transposed>
DEVICE void load_stage(const Operands<planes, transposed>& operands, int step, int chunks, unsigned stage, unsigned barrier) {
    const Step<planes> s(step, chunks);
    barrier_expect(barrier, STAGE_BYTES);
    copy_bulk(stage, operands.of_a(s), TILE_BYTES, barrier);
    copy_bulk(stage + TILE_BYTES, operands.of_b(s, 0), TILE_BYTES / 2, barrier);
    copy_bulk(stage + TILE_BYTES + TILE_BYTES / 2, operands.of_b(s, 1), TILE_BYTES / 2, barrier);
}

template <bool transposed> DEVICE void multiply_stage(GroupSums& sums, unsigned stage) {
    const unsigned a = stage + (threadIdx.x >> 7) * (TILE_BYTES / 2), b = stage + TILE_BYTES;
    warpgroup_fence();
#pragma unroll
    for (int k = 0; k < CHUNK; k += 16) {
        // Columns of b contiguous: 8 rows are 1024 bytes, k walks within the 128 bytes of a row. Rows contiguous: 8 steps of k are
        // 1024 bytes, the second 64 columns are the second panel.
        const uint64 rows = descriptor(a + 2 * k, 16, 1024);
        const uint64 cols = transposed ? descriptor(b + k * 128, TILE_BYTES / 2, 1024) : descriptor(b + 2 * k, 16, 1024);
        warpgroup_multiply_add<transposed>(sums.at, rows, cols);
    }
    warpgroup_commit();
}

template <Purpose purpose, int planes> DEVICE void product(const Product& p) {
    DYNAMIC_SHARED(shared);
    constexpr bool transposed = purpose != SYMMETRIC;
    int i, j;
    tile_of_block<purpose>(p, i, j);
    const Operands<planes, transposed> operands(p, blockIdx.y, i, j);
    const unsigned base = shared_address(shared), barriers = base + PRODUCT_SHARED;
    const int steps = p.chunks * (planes == 2 ? 3 : 1);
    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; ++s) barrier_init(barriers + 8 * s, 1);
        fence_async();
        for (int s = 0; s < STAGES - 1 && s < steps; ++s)
            load_stage(operands, s, p.chunks, base + s * STAGE_BYTES, barriers + 8 * s);
    }
    __syncthreads();
    GroupSums sums = {};
    for (int step = 0; step < steps; ++step) {
        const int stage = step % STAGES;
        barrier_wait(barriers + 8 * stage, step / STAGES & 1);
        multiply_stage<transposed>(sums, base + stage * STAGE_BYTES);
        warpgroup_wait<1>(sums.at);
        __syncthreads();  // all are done with the previous stage, which is filled next
        const int next = step + STAGES - 1;
        if (threadIdx.x == 0 && next < steps)
            load_stage(operands, next, p.chunks, base + next % STAGES * STAGE_BYTES, barriers + 8 * (next % STAGES));
    }
    warpgroup_wait<0>(sums.at);
    __syncthreads();
    finish_tile<purpose, planes>(sums, p, i, j, shared);
}

// Two planes and a mirror image take more than 128 registers: one block an SM, whose products are three times as many anyway.
#define FOR_PLANES(planes)                                                                                            \
    KERNEL_BOUNDS_MIN(256, 3 - planes, product_symmetric_##planes, Product) { product<SYMMETRIC, planes>(p); } \
    KERNEL_BOUNDS_MIN(256, 2, product_apply_##planes, Product) { product<APPLY, planes>(p); }         \
    KERNEL_BOUNDS_MIN(256, 2, product_result_##planes, Product) { product<RESULT, planes>(p); }
FOR_PLANES(1)
FOR_PLANES(2)
#endif
