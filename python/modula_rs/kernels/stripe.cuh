// One pass over a stripe of rows of W for K vectors v: computes y = W v and the sums W^T y, and reads each row from device memory once.
//
// Each thread owns some columns. It copies its own 16-byte packs of a row to shared memory with cp.async, two stages of four rows ahead,
// and no other thread reads them, so that the copies need no barrier. Its part of the vectors and of the sums stays in registers. Threads
// exchange one number for each row and vector. A matrix with more columns than the registers of a block can hold is cut into tiles of
// columns. Then rows are read twice: once for the dot products y (phase DOTS) and, when y is known from all tiles, once for the sums (phase
// SUMS).
//
// Arithmetic is float32 whatever the size of the entries: the vectors are multiplied by 2^shift before the first product, and y by 2^shift
// before the second. The shift depends on the largest entry so far in coarse steps, so that it hardly ever changes. Powers of two are
// exact, so entries of 1e-44 and of 1e38 give the same digits.
#pragma once
#include "common.cuh"

constexpr int VECTORS = MODULA_VECTORS;  // estimates for each matrix; compile.py defines every name that begins with MODULA_
constexpr int STAGE_ROWS = 4, STAGES = 3;
constexpr int MOST_WARPS = 16;
constexpr int ZERO_EXPONENT = -2000;  // the exponent of a stripe of zeros

// One instruction each. fmaxf ignores a NaN, but the NaN shows in the sums.
DEVICE float larger(float a, float b) { return fmaxf(a, fabsf(b)); }

// The smallest e with x < 2^e. An infinity has the exponent of the largest double, and shows in the sums anyway.
DEVICE int exponent_above(double x) {
    if (!(x > 0)) return ZERO_EXPONENT;
    const int e = ilogb(x);
    return e > 1023 ? 1024 : e + 1;
}
// The shift for entries below 2^exponent: their products are multiplied by 2^shift twice.
DEVICE int shift_for(int exponent) {
    constexpr int step = 32, limit = 100;
    const int level = exponent > 0 ? (exponent + step - 1) / step * step : -(-exponent / step * step);
    return -level > limit ? limit : -level < -limit ? -limit : -level;
}

// Sums `count` numbers over the lanes of a warp; lane i gets the sum of number i / (32 / count). Each step halves how many lanes share a
// number, and how many numbers a lane holds.
template <int count, int step = 16, class V, int size> DEVICE V lane_sums(V (&x)[size]) {
    if constexpr (step == 0) {
        return x[0];
    } else if constexpr (count == 1) {
        x[0] += shuffle_xor(x[0], step);
        return lane_sums<1, step / 2>(x);
    } else {
        const bool upper = threadIdx.x & step;
#pragma unroll
        for (int i = 0; i < count / 2; ++i) {
            const V low = x[i], high = x[i + count / 2];
            x[i] = (upper ? high : low) + shuffle_xor(upper ? low : high, step);
        }
        return lane_sums<count / 2, step / 2>(x);
    }
}

enum Phase { BOTH, DOTS, SUMS };

template <class T, int K> struct Stripe {
    static constexpr int packs = sizeof(T) == 4 ? 2 : 1, size = Pack<T>::size, width = packs * size, count = STAGE_ROWS * K;
    // Packs of each thread in shared memory. One of them is unused, so that the packs of neighbouring threads begin in different banks.
    static constexpr int slots = STAGES * STAGE_ROWS * packs + 1;

    // Shared memory of the threads of a block: partial results of each warp, and results of each team.
    struct Exchange {
        float parts[MOST_WARPS][count], largest[MOST_WARPS];
        struct alignas(16) Team { float dots[count], top; } teams[MOST_WARPS];
    };

    // The tile: columns [first, first + cols) of rows that have `pitch` columns.
    const T* const w;
    const long long pitch;
    const int cols;
    const bool aligned;
    Pack<T>* const packs_of_thread;  // in shared memory
    Exchange& exchange;
    typename Exchange::Team& team;
    const int thread, threads;  // number within the team that shares the stripe, and size of the team: whole warps
    float v[K][width], sums[K][width];
    double squares = 0;  // in thread i K + j: the sum over the rows of y_i y_j, times 4^shift
    int exponent, shift;
    float ceiling, unit;  // 2^exponent, which is above all entries so far; and 2^shift

    // `exponent`: entries are known to be below 2^exponent, or ZERO_EXPONENT if nothing is known. `number`: of the team in its block.
    DEVICE Stripe(
        const T* w, const float* vectors, long long pitch, int first, int cols, int exponent, unsigned char* shared, Exchange& exchange,
        int threads, int number
    )
        : w(w + first), pitch(pitch), cols(cols), aligned((((uint64)(w + first)) | (uint64)(pitch * sizeof(T))) % 16 == 0),
          packs_of_thread(reinterpret_cast<Pack<T>*>(shared) + threadIdx.x * slots), exchange(exchange), team(exchange.teams[number]),
          thread(threadIdx.x - number * threads), threads(threads), sums(), exponent(exponent) {
        update_shift();
#pragma unroll
        for (int k = 0; k < K; ++k)
#pragma unroll
            for (int i = 0; i < width; ++i) {
                const int c = column(i / size) + i % size;
                v[k][i] = c < cols ? vectors[k * pitch + first + c] * unit : 0;
            }
    }

    DEVICE int column(int pack) const { return (pack * threads + thread) * size; }
    DEVICE Pack<T>* stage_at(int stage) const { return packs_of_thread + stage * STAGE_ROWS * packs; }

    // Copies four rows from `row` on to shared memory. Rows from `last` on, and columns past the tile, are filled with zeros.
    DEVICE void fill(Pack<T>* to, int row, int last) {
        const T* x = w + row * pitch + column(0);
        const int between = threads * size;
        if (aligned && row + STAGE_ROWS <= last && column(packs - 1) + size <= cols) {
            const unsigned at = shared_address(to);
#pragma unroll
            for (int r = 0; r < STAGE_ROWS; ++r, x += pitch)
#pragma unroll
                for (int i = 0; i < packs; ++i) copy_async(at + 16 * (r * packs + i), x + i * between);
            return;
        }
#pragma unroll 1
        for (int r = 0; r < STAGE_ROWS; ++r, x += pitch, to += packs)
#pragma unroll
            for (int i = 0; i < packs; ++i) to[i] = partial_pack(x + i * between, row + r < last ? cols - column(i) : 0);
    }
    static DEVICE Pack<T> partial_pack(const T* x, int count) {
        Pack<T> pack = {};
#pragma unroll
        for (int j = 0; j < size; ++j)
            if (j < count) pack.at[j] = x[j];
        return pack;
    }

    // Computes team.dots = W v for four rows, and team.top, their largest entry.
    DEVICE void dot(const Pack<T>* at) {
        float y[count] = {}, top = 0;
#pragma unroll
        for (int r = 0; r < STAGE_ROWS; ++r)
#pragma unroll
            for (int i = 0; i < packs; ++i) {
                const Pack<T> pack = at[r * packs + i];
#pragma unroll
                for (int j = 0; j < size; ++j) {
                    const float x = to_float(pack.at[j]);
                    top = larger(top, x);
#pragma unroll
                    for (int k = 0; k < K; ++k) y[r * K + k] += x * v[k][i * size + j];
                }
            }
        const float part = lane_sums<count>(y);
        for (int step = 16; step; step /= 2) top = larger(top, shuffle_xor(top, step));
        const int warp = threadIdx.x >> 5, lane = thread & 31, first = warp - (thread >> 5), end = first + (threads >> 5);
        if (lane % (32 / count) == 0) exchange.parts[warp][lane / (32 / count)] = part;
        if (lane == 0) exchange.largest[warp] = top;
        __syncthreads();
        float total = 0;
        if (thread < count)
            for (int i = first; i < end; ++i) total += exchange.parts[i][thread];
        if (thread == count)
            for (int i = first; i < end; ++i) total = larger(total, exchange.largest[i]);
        if (thread < count) team.dots[thread] = total;
        if (thread == count) team.top = total;
        __syncthreads();
    }

    DEVICE void update_shift() {
        shift = shift_for(exponent);
        ceiling = float(ldexp(1.0, exponent)), unit = float(ldexp(1.0, shift));
    }
    // Raises the exponent, and with it the shift, if four rows brought a larger entry than before. Returns whether the shift has changed,
    // which makes team.dots stale.
    DEVICE bool raise_exponent() {
        if (team.top < ceiling) return false;
        const int above = exponent_above(team.top), before = shift;
        if (above <= exponent) return false;
        exponent = above;
        update_shift();
        if (shift == before) return false;
        const double root = ldexp(1.0, (shift - before) / 2), ratio = root * root;  // ratio^2 may underflow even as a double
        squares = squares * ratio * ratio;
        // Single precision is exact here: powers of two, below 1, so that what underflows on the way underflows at the end as well.
        const float less = float(root), smaller = float(ratio);
#pragma unroll
        for (int k = 0; k < K; ++k)
#pragma unroll
            for (int i = 0; i < width; ++i) v[k][i] = v[k][i] * less * less, sums[k][i] = sums[k][i] * smaller * smaller;
        return true;
    }

    // Adds W^T y of four rows to the sums.
    DEVICE void add(const Pack<T>* at) {
#pragma unroll
        for (int r = 0; r < STAGE_ROWS; ++r) {
            float y[K];
#pragma unroll
            for (int k = 0; k < K; ++k) y[k] = team.dots[r * K + k] * unit;
#pragma unroll
            for (int i = 0; i < packs; ++i) {
                const Pack<T> pack = at[r * packs + i];
#pragma unroll
                for (int j = 0; j < size; ++j)
#pragma unroll
                    for (int k = 0; k < K; ++k) sums[k][i * size + j] += float(to_float(pack.at[j])) * y[k];
            }
        }
    }

    // Runs one phase on rows [row, last). `steps`: the number of four-row steps, which is the same for all teams of a block, because they
    // share barriers. `dots`, [tiles][rows][K] with `stride` numbers from tile to tile: W v of each tile, which DOTS stores and SUMS adds
    // up.
    DEVICE void run(Phase phase, int row, int last, int steps, double* dots, long long stride, int tiles) {
#pragma unroll
        for (int s = 0; s < STAGES - 1; ++s) {
            fill(stage_at(s), row + s * STAGE_ROWS, last);
            copy_commit();
        }
        for (int stage = 0; steps > 0; --steps, row += STAGE_ROWS, stage = stage + 1 == STAGES ? 0 : stage + 1) {
            const Pack<T>* at = stage_at(stage);
            copy_wait<STAGES - 2>();
            // Refills the stage that was read in the step before.
            fill(stage_at(stage == 0 ? STAGES - 1 : stage - 1), row + (STAGES - 1) * STAGE_ROWS, last);
            copy_commit();
            const long long number = (long long)row * K + thread;
            if (phase != SUMS) {
                do dot(at);
                while (raise_exponent());
                if (phase == DOTS) {
                    if (thread < count && number < (long long)last * K) dots[number] = double(team.dots[thread]) / unit;
                    continue;
                }
            } else {
                __syncthreads();
                double total = 0;
                if (thread < count && number < (long long)last * K)
                    for (int tile = 0; tile < tiles; ++tile) total += dots[tile * stride + number];
                if (thread < count) team.dots[thread] = float(total * double(unit));
                __syncthreads();
            }
            if (thread < K * K) {
#pragma unroll
                for (int r = 0; r < STAGE_ROWS; ++r)
                    squares += double(team.dots[r * K + thread / K]) * team.dots[r * K + thread % K];
            }
            add(at);
        }
        copy_wait<0>();
    }
};
