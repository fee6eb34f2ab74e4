// One pass over a stripe of rows for K vectors: y = W v and the sums W^T y, each row brought from device memory once.
//
// Threads own columns: each brings its own 16-byte packs to shared memory with cp.async, two stages of four rows ahead, and is the only one
// to read them, so that data need no barrier; its part of the vectors and of the sums stays in registers. What is exchanged between
// threads is one number for each row and vector. A matrix wider than the registers of a block is cut into tiles of columns: rows are then
// read twice, once for y (DOTS) and, when y is known from all tiles, once for the sums (SUMS).
//
// Arithmetic is float32 whatever the size of the entries: the vectors are multiplied by 2^shift before the
// first product and y by 2^shift before the second, where shift follows the largest entry so far in coarse steps, so that it hardly ever
// changes. Powers of two are exact, so entries of 1e-44 and of 1e38 give the same digits.
#pragma once
#include "common.cuh"

constexpr int VECTORS = MODULA_VECTORS;  // estimates carried for each matrix; compile.py defines what begins with MODULA_
constexpr int STAGE_ROWS = 4, STAGES = 3;
constexpr int MOST_WARPS = 16;
constexpr int NOTHING = -2000;  // exponent of a stripe of zeros

// One instruction each. A NaN is passed over: it shows in the sums.
DEVICE float larger(float a, float b) { return fmaxf(a, fabsf(b)); }

// Smallest e with x < 2^e. Of an infinity that of the largest number: it shows in the sums anyway.
DEVICE int exponent_above(double x) {
    if (!(x > 0)) return NOTHING;
    const int e = ilogb(x);
    return e > 1023 ? 1024 : e + 1;
}
// Entries below 2^exponent are multiplied by 2^shift, twice.
DEVICE int shift_for(int exponent) {
    constexpr int step = 32, limit = 100;
    const int level = exponent > 0 ? (exponent + step - 1) / step * step : -(-exponent / step * step);
    return -level > limit ? limit : -level < -limit ? -limit : -level;
}

// Sums over the lanes of a warp of `count` numbers each: lane i gets that of number i / (32 / count). Each turn halves the lanes that share a
// number and the numbers that a lane holds.
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
    // Of each thread in shared memory, one after the other; one is left out, so that neighbours begin in other banks.
    static constexpr int slots = STAGES * STAGE_ROWS * packs + 1;

    // What the threads of a block share, or the threads of a team.
    struct Exchange {
        float parts[MOST_WARPS][count], largest[MOST_WARPS];
        struct alignas(16) Team { float dots[count], top; } teams[MOST_WARPS];
    };

    // A tile: columns [first, first + cols) of rows of `pitch`.
    const T* const w;
    const long long pitch;
    const int cols;
    const bool aligned;
    Pack<T>* const room;  // this thread's slots
    Exchange& exchange;
    typename Exchange::Team& team;
    const int thread, threads;  // of the team that shares the stripe: whole warps
    float v[K][width], sums[K][width];
    double squares = 0;  // thread i K + j: sum over the rows of y_i y_j, times 4^shift
    int exponent, shift;
    float ceiling, unit;  // powers of two: above all entries so far, and what y is multiplied by

    // exponent: what is known of the entries already, else NOTHING. `number`: of the team in its block.
    DEVICE Stripe(
        const T* w, const float* vectors, long long pitch, int first, int cols, int exponent, unsigned char* shared, Exchange& exchange,
        int threads, int number
    )
        : w(w + first), pitch(pitch), cols(cols), aligned((((uint64)(w + first)) | (uint64)(pitch * sizeof(T))) % 16 == 0),
          room(reinterpret_cast<Pack<T>*>(shared) + threadIdx.x * slots), exchange(exchange), team(exchange.teams[number]),
          thread(threadIdx.x - number * threads), threads(threads), sums(), exponent(exponent) {
        follow_exponent();
#pragma unroll
        for (int k = 0; k < K; ++k)
#pragma unroll
            for (int i = 0; i < width; ++i) {
                const int c = column(i / size) + i % size;
                v[k][i] = c < cols ? vectors[k * pitch + first + c] * unit : 0;
            }
    }

    DEVICE int column(int pack) const { return (pack * threads + thread) * size; }
    DEVICE Pack<T>* stage_at(int stage) const { return room + stage * STAGE_ROWS * packs; }

    // Rows from `row` on, zeros from row `last` and past the last column.
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
            for (int i = 0; i < packs; ++i) to[i] = partly(x + i * between, row + r < last ? cols - column(i) : 0);
    }
    static DEVICE Pack<T> partly(const T* x, int count) {
        Pack<T> pack = {};
#pragma unroll
        for (int j = 0; j < size; ++j)
            if (j < count) pack.at[j] = x[j];
        return pack;
    }

    // team.dots = W v for four rows, and team.top, the largest entry.
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

    DEVICE void follow_exponent() {
        shift = shift_for(exponent);
        ceiling = float(ldexp(1.0, exponent)), unit = float(ldexp(1.0, shift));
    }
    // Makes the shift that of the largest entry; false if nothing has changed.
    DEVICE bool follow() {
        if (team.top < ceiling) return false;
        const int above = exponent_above(team.top), before = shift;
        if (above <= exponent) return false;
        exponent = above;
        follow_exponent();
        if (shift == before) return false;
        const double root = ldexp(1.0, (shift - before) / 2), ratio = root * root;  // of doubles the ratio alone would vanish
        squares = squares * ratio * ratio;
#pragma unroll
        for (int k = 0; k < K; ++k)
#pragma unroll
            for (int i = 0; i < width; ++i) v[k][i] = float(v[k][i] * root * root), sums[k][i] = float(sums[k][i] * ratio * ratio);
        return true;
    }

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

    // Rows [row, last), in so many turns as all teams of the block take. dots: [tiles][rows][K], W v of each tile, which DOTS leaves and SUMS
    // adds; `stride` numbers from tile to tile.
    DEVICE void run(Phase phase, int row, int last, int turns, double* dots, long long stride, int tiles) {
#pragma unroll
        for (int s = 0; s < STAGES - 1; ++s) {
            fill(stage_at(s), row + s * STAGE_ROWS, last);
            copy_commit();
        }
        for (int stage = 0; turns > 0; --turns, row += STAGE_ROWS, stage = stage + 1 == STAGES ? 0 : stage + 1) {
            const Pack<T>* at = stage_at(stage);
            copy_wait<STAGES - 2>();
            // The stage read in the turn before.
            fill(stage_at(stage == 0 ? STAGES - 1 : stage - 1), row + (STAGES - 1) * STAGE_ROWS, last);
            copy_commit();
            const long long number = (long long)row * K + thread;
            if (phase != SUMS) {
                do dot(at);
                while (follow());
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
