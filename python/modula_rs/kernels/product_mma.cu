// Batched products of halves on the tensor cores of any GPU since compute capability 8.0.
//
//     product_symmetric: d = alpha a b^T + beta c + gamma I, where the result is symmetric. Only the tiles on and below the diagonal are
//                        computed, and each is stored twice. Half the flops of a general product: m m k (1 + 128 / m) a matrix.
//     product_apply:     d = alpha a b, with 2 m n k flops.
//     product_result:    d = alpha a b, stored into the caller's array.
// Suffix 1: halves are multiplied and added as floats. Suffix 2: split float16, two planes and three products, 22 bits, with three times
// the flops.
//
// Bytes, with operands in the second-level cache: each block reads (128 + 128) k halves a plane and writes 128 x 128 (twice off the
// diagonal). A block has 8 warps, each with 64 x 32 of the tile, and three stages of cp.async.
#include "epilogue.cuh"

constexpr int THREADS = 256, STAGE_BYTES = 2 * TILE_BYTES;  // a tile of a, then one of b
constexpr int STAGES = 3;                                   // 96 KB: two blocks share an SM of compute capability 8.0

// The sums of a warp, 64 x 32.
struct WarpSums {
    float at[4][4][4];
    template <class F> DEVICE void each(F f) {
        const int thread = opaque(threadIdx.x), warp = thread >> 5, lane = thread & 31;
        const int row = lane >> 2, col = (warp & 3) * 32 + 2 * (lane & 3);
#pragma unroll
        for (int m = 0; m < 4; ++m) {
#pragma unroll
            for (int n = 0; n < 4; ++n) {
                f(row + 16 * m, col + 8 * n, at[m][n][0], at[m][n][1]);
                f(row + 16 * m + 8, col + 8 * n, at[m][n][2], at[m][n][3]);
            }
        }
    }
};

template <int planes, bool transposed>
DEVICE void load_stage(const Operands<planes, transposed>& operands, int step, int chunks, unsigned stage) {
    const Step<planes> s(step, chunks);
    const float16* a = operands.of_a(s);
#pragma unroll
    for (int word = threadIdx.x; word < TILE_BYTES / 16; word += THREADS) copy_async(stage + word * 16, a + word * 8);
#pragma unroll
    for (int panel = 0; panel < 2; ++panel)
#pragma unroll
        for (int word = threadIdx.x; word < PANEL_BYTES / 16; word += THREADS)
            copy_async(stage + TILE_BYTES + panel * PANEL_BYTES + word * 16, operands.of_b(s, panel) + word * 8);
}

// The swizzle is an exclusive or with the last three bits of the row, so a step of k (or of n) is one more exclusive or. That takes two
// registers of addresses for each operand, instead of one for every load.
template <bool transposed> DEVICE void multiply_stage(WarpSums& sums, unsigned stage) {
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, col = (warp & 3) * 32;
    const int quarter = lane >> 3, eighth = lane & 7, high = quarter >> 1, odd = quarter & 1;
    const unsigned a_row = stage + 128 * ((warp >> 2) * PIECE + (lane & 15)), a_chunk = (high ^ eighth) << 4;
    const unsigned b_stage = stage + TILE_BYTES;
    const unsigned b_row = transposed ? b_stage + (col >> 6) * PANEL_BYTES + 128 * (8 * odd + eighth)
                                      : b_stage + 128 * (col + 8 * high + eighth);
    const unsigned b_chunk = transposed ? (((col & 63) >> 3) + high ^ eighth) << 4 : (odd ^ eighth) << 4;
#pragma unroll
    for (int k = 0; k < CHUNK; k += 16) {
        unsigned b[2][4];
#pragma unroll
        for (int n = 0; n < 2; ++n) {
            if (transposed) load_matrices_transposed(b[n], b_row + 128 * k + (b_chunk ^ 32 * n));
            else load_matrices(b[n], b_row + 2048 * n + (b_chunk ^ 2 * k));
        }
#pragma unroll
        for (int m = 0; m < 4; ++m) {
            unsigned a[4];
            load_matrices(a, a_row + 2048 * m + (a_chunk ^ 2 * k));
#pragma unroll
            for (int n = 0; n < 4; ++n)
                multiply_add(sums.at[m][n], a, b[n >> 1][2 * (n & 1)], b[n >> 1][2 * (n & 1) + 1]);
        }
    }
}

template <Purpose purpose, int planes> DEVICE void product(const Product& p) {
    DYNAMIC_SHARED(shared);
    constexpr bool transposed = purpose != SYMMETRIC;
    const Which which(p, blockIdx.y);
    Piece at{which, 0, 0, int(threadIdx.x >> 7)};
    tile_of<purpose>(p, blockIdx.x, at.i, at.j);
    const Operands<planes, transposed> operands(p, which, at.i, at.j);
    const unsigned base = shared_address(shared);
    const int steps = p.chunks * (planes == 2 ? 3 : 1);
    WarpSums sums = {};
#pragma unroll
    for (int s = 0; s < STAGES - 1; ++s) {
        if (s < steps) load_stage(operands, s, p.chunks, base + s * STAGE_BYTES);
        copy_commit();
    }
    for (int step = 0; step < steps; ++step) {
        copy_wait<STAGES - 2>();
        __syncthreads();  // the copies of this stage are complete, and all threads have read the stage that is filled next
        const int next = step + STAGES - 1;
        if (next < steps) load_stage(operands, next, p.chunks, base + next % STAGES * STAGE_BYTES);
        copy_commit();
        multiply_stage<transposed>(sums, base + step % STAGES * STAGE_BYTES);
    }
    copy_wait<0>();
    __syncthreads();
    finish_piece<purpose, planes, 2>(sums, p, at, shared + (threadIdx.x >> 7) * 2 * IMAGE_BYTES);
}

// How many blocks share an SM. Two blocks leave 128 registers a thread; with two planes, and for sm_100, the assembler needs more.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
#define SHARING(planes) 1
#else
#define SHARING(planes) (3 - planes)
#endif

#define FOR_PLANES(planes)                                                                                      \
    KERNEL_BOUNDS_MIN(256, SHARING(planes), product_symmetric_##planes, Product) { product<SYMMETRIC, planes>(p); } \
    KERNEL_BOUNDS_MIN(256, SHARING(planes), product_apply_##planes, Product) { product<APPLY, planes>(p); }         \
    KERNEL_BOUNDS_MIN(256, SHARING(planes), product_result_##planes, Product) { product<RESULT, planes>(p); }
FOR_PLANES(1)
FOR_PLANES(2)
