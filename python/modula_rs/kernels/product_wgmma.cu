// The products of product_mma.cu on a Hopper GPU: wgmma, fed by the copy engine. Flops and bytes are the same.
//
// Each warpgroup has 64 x 128 of the tile, sums in 64 registers a thread; both operands are read from shared memory. One thread starts
// the copies, which complete on a barrier per stage. Two blocks share an SM, so that one's epilogue hides behind the other's products.
// product_*_half_*: one warpgroup a block and one block an SM, with eight stages to hide the latency that a second block would.
#include "warpgroup.cuh"

#if defined(HOPPER) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

// `pieces` of a tile, 1 or 2, that a block computes.
template <int pieces> struct Block {
    static constexpr int a_bytes = pieces * PANEL_BYTES;  // of one chunk
    static constexpr int stage_bytes = a_bytes + TILE_BYTES;
    static constexpr int stages = pieces == 2 ? 3 : 8;  // 96 KB, so that two blocks share an SM; or 192 KB
};

template <int pieces, int planes, bool transposed>
DEVICE void load_stage(const Operands<planes, transposed>& operands, int step, int chunks, unsigned stage, unsigned barrier) {
    using B = Block<pieces>;
    const Step<planes> s(step, chunks);
    barrier_expect(barrier, B::stage_bytes);
    copy_bulk(stage, operands.of_a(s), B::a_bytes, barrier);
    copy_bulk(stage + B::a_bytes, operands.of_b(s, 0), PANEL_BYTES, barrier);
    copy_bulk(stage + B::a_bytes + PANEL_BYTES, operands.of_b(s, 1), PANEL_BYTES, barrier);
}

template <Purpose purpose, int planes, int pieces> DEVICE void product(const Product& p) {
    using B = Block<pieces>;
    constexpr int stages = B::stages;
    constexpr bool transposed = purpose != SYMMETRIC;
    DYNAMIC_SHARED(shared);
    const Which which(p, blockIdx.y);
    const int group = threadIdx.x >> 7;
    Piece at{which, 0, 0, pieces == 2 ? group : int(blockIdx.x & 1)};
    tile_of<purpose>(p, pieces == 2 ? blockIdx.x : blockIdx.x >> 1, at.i, at.j);
    const Operands<planes, transposed> operands(p, which, at.i, at.j, pieces == 2 ? 0 : at.half);
    const unsigned base = shared_address(shared), barriers = base + stages * B::stage_bytes;
    const int steps = p.chunks * (planes == 2 ? 3 : 1);
    if (threadIdx.x == 0) {
        for (int s = 0; s < stages; ++s) barrier_init(barriers + 8 * s, 1);
        fence_async();
        for (int s = 0; s < stages - 1 && s < steps; ++s)
            load_stage<pieces>(operands, s, p.chunks, base + s * B::stage_bytes, barriers + 8 * s);
    }
    __syncthreads();
    float sums[64] = {};
    for (int step = 0; step < steps; ++step) {
        const int stage = step % stages;
        const unsigned a = base + stage * B::stage_bytes;
        barrier_wait(barriers + 8 * stage, step / stages & 1);
        multiply_chunk<transposed>(sums, a + group * PANEL_BYTES, a + B::a_bytes);
        warpgroup_wait<1>(sums);
        __syncthreads();  // all are done with the previous stage, which is filled next
        const int next = step + stages - 1;
        if (threadIdx.x == 0 && next < steps)
            load_stage<pieces>(operands, next, p.chunks, base + next % stages * B::stage_bytes, barriers + 8 * (next % stages));
    }
    warpgroup_wait<0>(sums);
    __syncthreads();
    GroupSums piece{sums};
    finish_piece<purpose, planes, 2>(piece, p, at, shared + group * 2 * IMAGE_BYTES);
}

// Two planes take more than 128 registers: one block an SM, whose products are three times as many anyway.
#define FOR_PLANES(planes)                                                                                             \
    KERNEL_BOUNDS_MIN(256, 3 - planes, product_symmetric_##planes, Product) { product<SYMMETRIC, planes, 2>(p); }      \
    KERNEL_BOUNDS_MIN(256, 3 - planes, product_apply_##planes, Product) { product<APPLY, planes, 2>(p); }              \
    KERNEL_BOUNDS_MIN(256, 3 - planes, product_result_##planes, Product) { product<RESULT, planes, 2>(p); }            \
    KERNEL_BOUNDS(128, product_symmetric_half_##planes, Product) { product<SYMMETRIC, planes, 1>(p); }                 \
    KERNEL_BOUNDS(128, product_apply_half_##planes, Product) { product<APPLY, planes, 1>(p); }                         \
    KERNEL_BOUNDS(128, product_result_half_##planes, Product) { product<RESULT, planes, 1>(p); }
FOR_PLANES(1)
FOR_PLANES(2)
#endif
