// Spectral norms from estimates: one step of block power iteration on four estimates V of the right singular vectors of each matrix W.
//
// The method and its constants are modula-core's (linalg/subspace.rs). With Y = W V the method needs only G = Y^T Y and S = W^T Y. Both are
// sums over rows: power_step computes them in one pass over stripes of rows, power_fold adds the stripes in a fixed order, and power_finish
// computes the norm and the next estimates.
//
// Bytes (float32): 4 an element, read once, or twice for a matrix wider than a tile. For each stripe, 16 bytes a column are written and
// read; for each matrix, 80 bytes a column more. Flops: 16 an element.
#include "power_step.cuh"

// A block of power_fold adds the stripes of 32 columns. Each of its eight warps adds every eighth stripe, since a tall matrix has hundreds.
constexpr int FOLDED = 32, WARPS = 8;
static_assert(VECTORS == 4, "power_fold packs ten products and four squares into sixteen numbers");

// Stores S of each matrix, over 4^exponent, in doubles; and for each 32 columns ten inner products of the rows of S, then the four squares
// of the rows of V.
KERNEL_BOUNDS(256, power_fold, Power) {
    __shared__ double scratch[33];
    __shared__ double units[MOST_STRIPES];
    __shared__ double parts[WARPS][VECTORS][FOLDED];
    const int exponent = exponent_of(p, blockIdx.y, scratch);
    for (int s = threadIdx.x; s < p.stripes; s += blockDim.x) units[s] = unit_of(p, blockIdx.y, s, exponent);
    __syncthreads();
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, c = blockIdx.x * FOLDED + lane;
    const long long size = (long long)VECTORS * p.cols;
    double total[VECTORS] = {};
    if (c < p.cols) {
        const float* sums = p.sums + blockIdx.y * p.stripes * size + c;
#pragma unroll 4
        for (int s = warp; s < p.stripes; s += WARPS)
#pragma unroll
            for (int i = 0; i < VECTORS; ++i) total[i] += sums[s * size + (long long)i * p.cols] * units[s];
    }
#pragma unroll
    for (int i = 0; i < VECTORS; ++i) parts[warp][i][lane] = total[i];
    __syncthreads();
    if (warp > 0) return;
    double found[16] = {};
#pragma unroll
    for (int i = 0; i < VECTORS; ++i) {
        for (int other = 1; other < WARPS; ++other) total[i] += parts[other][i][lane];
        if (c < p.cols) {
            const double x = estimates_of(p.entries[blockIdx.y], p)[(long long)i * p.cols + c];
            found[10 + i] = x * x;
            p.image[blockIdx.y * size + (long long)i * p.cols + c] = total[i];
        }
#pragma unroll
        for (int j = 0; j <= i; ++j) found[i * (i + 1) / 2 + j] = total[i] * total[j];
    }
    const double sum = lane_sums<16>(found);
    if (lane % 2 == 0) p.inner[((long long)blockIdx.y * gridDim.x + blockIdx.x) * 16 + lane / 2] = sum;
}

// Finds the norm of W on the space of Y, and the next estimates, which are a basis of the image of that space. Every block repeats the
// arithmetic of 4 x 4 matrices, and writes 256 columns of the estimates. Where there are no estimates, or they are stale, it sets `wanted`,
// which asks for a cold start.
KERNEL_BOUNDS(256, power_finish, Power) {
    __shared__ double scratch[33];
    __shared__ double parts[2][16][16];
    __shared__ double inner[16], seen[16];
    __shared__ double basis[VECTORS][VECTORS];
    __shared__ bool wanted;
    const int matrix = blockIdx.y, c = blockIdx.x * blockDim.x + threadIdx.x;
    const int exponent = exponent_of(p, matrix, scratch);
    const int folds = (p.cols + FOLDED - 1) / FOLDED, value = threadIdx.x % 16, group = threadIdx.x / 16;
    double totals[2] = {};
    for (int i = group; i < folds; i += 16) totals[0] += p.inner[((long long)matrix * folds + i) * 16 + value];
    for (int s = group; s < p.stripes; s += 16)
        totals[1] += p.squares[((long long)matrix * p.stripes + s) * 16 + value] * unit_of(p, matrix, s, exponent);
    parts[0][group][value] = totals[0], parts[1][group][value] = totals[1];
    __syncthreads();
    if (threadIdx.x < 32) {
        double total = 0;
        for (int i = 0; i < 16; ++i) total += parts[threadIdx.x / 16][i][value];
        (threadIdx.x < 16 ? inner : seen)[value] = total;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        Square products, gram;
        for_each_entry([&](int i, int j) {
            products.at[i][j] = i < j ? inner[j * (j + 1) / 2 + i] : inner[i * (i + 1) / 2 + j];
            gram.at[i][j] = seen[i * VECTORS + j];
        });
        double before = 0;
#pragma unroll
        for (int j = 0; j < VECTORS; ++j) before = fmax(before, divide_or_zero(gram.at[j][j], inner[10 + j]));
        // C makes Y C orthonormal. The largest singular value of W^T Y C is the norm of W on the space of Y, and its columns span the next
        // V.
        const Square combined = orthonormalizer(gram), reached = multiply(multiply(combined, products), transposed(combined));
        const double square = largest_eigenvalue(reached);
        const Square rows = multiply(orthonormalizer(reached), combined);
        for_each_entry([&](int i, int j) { basis[i][j] = rows.at[i][j]; });
        // A matrix of zeros needs no cold start: its norm is 0, and it has no estimates.
        wanted = exponent != ZERO_EXPONENT && (!(before > STALE_SHARE * square) || !(square > 0));
        if (blockIdx.x == 0) p.wanted[matrix] = wanted, p.norms[matrix] = ldexp(sqrt(square), exponent);
    }
    __syncthreads();
    if (wanted) return;  // the cold start gives norm and estimates
    float* next = estimates_of(p.entries[matrix], p, p.vectors);
    if (c < p.cols) {
        double image[VECTORS];
#pragma unroll
        for (int k = 0; k < VECTORS; ++k) image[k] = p.image[((long long)matrix * VECTORS + k) * p.cols + c];
#pragma unroll
        for (int j = 0; j < VECTORS; ++j) {
            double x = 0;
#pragma unroll
            for (int k = 0; k < VECTORS; ++k) x += basis[j][k] * image[k];
            next[(long long)j * p.cols + c] = float(x);
        }
    }
    for (int j = 0; j < VECTORS; ++j) {
        if (basis[j][j] != 0 || exponent == ZERO_EXPONENT) continue;  // the rest of the loop replaces a dropped direction
        const double length = restart_length(j, p.cols, scratch);
        if (c < p.cols) next[(long long)j * p.cols + c] = float(restart_entry(j, p.cols, c) / length);
    }
}

KERNEL_BOUNDS(512, power_step_float32, Power) { power_step<float>(p); }
KERNEL_BOUNDS(512, power_step_float16, Power) { power_step<float16>(p); }
KERNEL_BOUNDS(512, power_step_bfloat16, Power) { power_step<bfloat16>(p); }
