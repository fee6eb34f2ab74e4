// The products of product_mma.cu on a Hopper GPU, by wgmma on operands that the copy engine loads. Flops and bytes are as in
// product_mma.cu.
//
// Each warpgroup has 64 x 128 of the tile, with its sums in 64 registers a thread, and wgmma reads both operands from shared memory. One
// thread starts the copies; a barrier for each stage says when they are complete. Two blocks share an SM, so that the epilogue of one block
// overlaps with the products of the other.
#include "warpgroup.cuh"

#if defined(HOPPER) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

constexpr int STAGE_BYTES = 2 * TILE_BYTES;  // a tile of a, then one of b
constexpr int STAGES = 3;                    // 96 KB, so that two blocks share an SM

template <int planes, bool transposed>
DEVICE void load_stage(const Operands<planes, transposed>& operands, int step, int chunks, unsigned stage, unsigned barrier) {
    const Step<planes> s(step, chunks);
    barrier_expect(barrier, STAGE_BYTES);
    copy_bulk(stage, operands.of_a(s), TILE_BYTES, barrier);
    copy_bulk(stage + TILE_BYTES, operands.of_b(s, 0), PANEL_BYTES, barrier);
    copy_bulk(stage + TILE_BYTES + PANEL_BYTES, operands.of_b(s, 1), PANEL_BYTES, barrier);
}

template <Purpose purpose, int planes> DEVICE void product(const Product& p) {
    constexpr bool transposed = purpose != SYMMETRIC;
    DYNAMIC_SHARED(shared);
    const Which which(p, blockIdx.y);
    const int group = threadIdx.x >> 7;
    Piece at{which, 0, 0, group};
    tile_of<purpose>(p, blockIdx.x, at.i, at.j);
    const Operands<planes, transposed> operands(p, which, at.i, at.j);
    const unsigned base = shared_address(shared), barriers = base + STAGES * STAGE_BYTES;
    const int steps = p.chunks * (planes == 2 ? 3 : 1);
    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; ++s) barrier_init(barriers + 8 * s, 1);
        fence_async();
        for (int s = 0; s < STAGES - 1 && s < steps; ++s)
            load_stage(operands, s, p.chunks, base + s * STAGE_BYTES, barriers + 8 * s);
    }
    __syncthreads();
    float sums[64] = {};
    for (int step = 0; step < steps; ++step) {
        const int stage = step % STAGES;
        const unsigned a = base + stage * STAGE_BYTES;
        barrier_wait(barriers + 8 * stage, step / STAGES & 1);
        multiply_chunk<transposed>(sums, a + group * PANEL_BYTES, a + TILE_BYTES);
        warpgroup_wait<1>(sums);
        __syncthreads();  // all threads have finished with the previous stage, which is filled next
        const int next = step + STAGES - 1;
        if (threadIdx.x == 0 && next < steps)
            load_stage(operands, next, p.chunks, base + next % STAGES * STAGE_BYTES, barriers + 8 * (next % STAGES));
    }
    warpgroup_wait<0>(sums);
    __syncthreads();
    GroupSums piece{sums};
    finish_piece<purpose, planes, 2>(piece, p, at, shared + group * 2 * IMAGE_BYTES);
}

// With two planes a thread needs more than 128 registers, so one block runs on an SM; it has three times as many products to overlap with.
#define FOR_PLANES(planes)                                                                                \
    KERNEL_BOUNDS_MIN(256, 3 - planes, product_symmetric_##planes, Product) { product<SYMMETRIC, planes>(p); } \
    KERNEL_BOUNDS_MIN(256, 3 - planes, product_apply_##planes, Product) { product<APPLY, planes>(p); }         \
    KERNEL_BOUNDS_MIN(256, 3 - planes, product_result_##planes, Product) { product<RESULT, planes>(p); }
FOR_PLANES(1)
FOR_PLANES(2)
#endif
