// The pass over a matrix in a step of block power iteration: one block for each stripe of rows and, in a wide matrix, each tile of columns.
#pragma once
#include "power.cuh"

constexpr int EXCHANGE = 6144;  // bytes of shared memory before the stages

template <class T> DEVICE void power_step(const Power& p) {
    DYNAMIC_SHARED(shared);
    typedef Stripe<T, VECTORS> Pass;
    static_assert(sizeof(typename Pass::Exchange) <= EXCHANGE, "power.py reserves EXCHANGE bytes");
    typename Pass::Exchange& exchange = *reinterpret_cast<typename Pass::Exchange*>(shared);
    const Entry e = p.entries[blockIdx.y];
    const int stripe = blockIdx.x / p.tiles, tile = blockIdx.x % p.tiles, part = blockIdx.y * p.stripes + stripe;
    const int first = tile * p.tile_cols, cols = first + p.tile_cols < p.cols ? p.tile_cols : p.cols - first;
    const int row = stripe * p.rows_per_stripe, last = row + p.rows_per_stripe < p.rows ? row + p.rows_per_stripe : p.rows;
    int exponent = ZERO_EXPONENT;
    if (p.phase == SUMS)
        for (int t = 0; t < p.tiles; ++t) {
            const int found = p.exponents[part * p.tiles + t];
            exponent = found > exponent ? found : exponent;
        }
    Pass pass(source_of<T>(e, p.table), estimates_of(e, p), p.cols, first, cols, exponent, shared + EXCHANGE, exchange, blockDim.x, 0);
    const long long stride = (long long)p.rows * VECTORS;
    double* dots = p.dots ? p.dots + blockIdx.y * stride * p.tiles : nullptr;
    const int steps = (last - row + STAGE_ROWS - 1) / STAGE_ROWS;
    pass.run(Phase(p.phase), row, last, steps, p.phase == DOTS ? dots + tile * stride : dots, stride, p.tiles);
    if (p.phase != SUMS && threadIdx.x == 0) p.exponents[part * p.tiles + tile] = pass.exponent;
    if (p.phase == DOTS) return;
    if (tile == 0 && threadIdx.x < VECTORS * VECTORS) p.squares[part * VECTORS * VECTORS + threadIdx.x] = pass.squares;
    float* sums = reinterpret_cast<float*>(p.sums) + (long long)part * VECTORS * p.cols + first;
    constexpr int size = Pack<float>::size;
#pragma unroll
    for (int k = 0; k < VECTORS; ++k)
#pragma unroll
        for (int i = 0; i < pass.width; i += size) {
            const int c = pass.column(i / pass.size) + i % pass.size;
            Pack<float> pack;
#pragma unroll
            for (int j = 0; j < size; ++j) pack.at[j] = pass.sums[k][i + j];
            float* to = sums + (long long)k * p.cols + c;
            if (p.cols % size == 0 && c + size <= cols) *reinterpret_cast<Pack<float>*>(to) = pack;
            else
#pragma unroll
                for (int j = 0; j < size; ++j)
                    if (c + j < cols) to[j] = pack.at[j];
        }
}
