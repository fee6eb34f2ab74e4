// Shared by the step of block power iteration and the cold start: their parameters, the start vectors, and arithmetic of 4 x 4 matrices.
#pragma once
#include "stripe.cuh"

// modula-core's linalg/constants.rs gives the reasons for these numbers. Drop a direction if, after removing the earlier ones, at most this
// share of its squared length remains.
constexpr double DROP_SHARE = MODULA_DROP_SHARE;
// The estimates are stale, and the search starts cold, if before the step they reached at most this share of the squared norm after it.
constexpr double STALE_SHARE = MODULA_STALE_SHARE;
constexpr int SQUARINGS = MODULA_SQUARINGS;
constexpr int MOST_STRIPES = 1024;

struct Power {
    const Entry* entries;  // `other`: slot of the estimates v, (count, 4, cols), float32
    const uint64* table;
    float* sums;           // [matrices][stripes][4][cols]: W^T W v of each stripe, times 4^shift for the exponent of the stripe
    double* squares;       // [matrices][stripes][4][4]: (W v)^T W v, times 4^shift
    double* dots;          // [matrices][tiles][rows][4]: W v, where there are several tiles
    double* image;         // [matrices][4][cols]: the sums of all stripes
    double* inner;         // [matrices][cols / 32][16]: inner products of the image, and squares of the estimates
    double* norms;         // [matrices]
    float* basis;          // [blocks of the cold start][MODULA_LANCZOS_MOST + 1 + teams][cols]: Lanczos vectors, then sums of the teams
    int* exponents;        // [matrices][stripes][tiles]: all entries of the tile are below 2^exponent
    int* wanted;           // [matrices]: 1 if the cold start has to find the norm
    int rows, cols, stripes, rows_per_stripe, tiles, tile_cols;
    int phase;
    int vectors;           // slots of the table from the old estimates to the new ones
    int matrices;
    int teams;             // number of teams of threads in a block of the cold start
};

// The address of a matrix's estimates. `slots`: 0 for the old estimates, `p.vectors` for the new ones.
DEVICE float* estimates_of(const Entry& e, const Power& p, int slots = 0) {
    return reinterpret_cast<float*>(p.table[e.other + slots]) + (long long)e.index * VECTORS * p.cols;
}

// The smallest known exponent e with all entries of the matrix below 2^e.
DEVICE int exponent_of(const Power& p, int matrix, double* scratch) {
    double largest = ZERO_EXPONENT;
    const int count = p.stripes * p.tiles;
    for (int i = threadIdx.x; i < count; i += blockDim.x) largest = Max::of(p.exponents[(long long)matrix * count + i], largest);
    return int(block_reduce<Max>(largest, scratch));
}

// The factor that converts the sums of a stripe, which are scaled by its own exponent, to the sums of W / 2^exponent.
DEVICE double unit_of(const Power& p, int matrix, int stripe, int exponent) {
    int own = ZERO_EXPONENT;
    for (int t = 0; t < p.tiles; ++t) {
        const int found = p.exponents[((long long)matrix * p.stripes + stripe) * p.tiles + t];
        own = found > own ? found : own;
    }
    return own == ZERO_EXPONENT ? 0 : ldexp(1.0, -2 * (shift_for(own) + exponent));
}

// Entry `index` of the pseudo-random vectors that every search starts from, in [-1/2, 1/2): the finaliser of MurmurHash3 of the index.
DEVICE double start_entry(uint32 index) {
    uint32 h = index + 1;
    h = (h ^ h >> 16) * 0x85ebca6bu;
    h = (h ^ h >> 13) * 0xc2b2ae35u;
    h ^= h >> 16;
    return h / 4294967296.0 - 0.5;
}

// A unit vector that depends on no matrix, and is different for each `place`, has the entries restart_entry over restart_length.
DEVICE double restart_entry(int place, int cols, int c) { return start_entry(uint32(place) * cols + c); }
DEVICE double restart_length(int place, int cols, double* scratch) {
    double total = 0;
    for (int c = threadIdx.x; c < cols; c += blockDim.x) total += restart_entry(place, cols, c) * restart_entry(place, cols, c);
    return sqrt(block_reduce<Sum>(total, scratch));
}

struct Square { double at[VECTORS][VECTORS]; };

template <class F> DEVICE void for_each_entry(F f) {
#pragma unroll
    for (int i = 0; i < VECTORS; ++i)
#pragma unroll
        for (int j = 0; j < VECTORS; ++j) f(i, j);
}
DEVICE Square multiply(const Square& a, const Square& b) {
    Square c = {};
    for_each_entry([&](int i, int j) {
#pragma unroll
        for (int k = 0; k < VECTORS; ++k) c.at[i][j] += a.at[i][k] * b.at[k][j];
    });
    return c;
}
DEVICE Square transposed(const Square& a) {
    Square b;
    for_each_entry([&](int i, int j) { b.at[i][j] = a.at[j][i]; });
    return b;
}

// a_i^T M b_j
DEVICE double form(const Square& a, int i, const Square& m, const Square& b, int j) {
    double total = 0;
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) {
        double inner = 0;
#pragma unroll
        for (int l = 0; l < VECTORS; ++l) inner += m.at[k][l] * b.at[j][l];
        total += a.at[i][k] * inner;
    }
    return total;
}

// Gram-Schmidt: rows c_i with c_i^T G c_j = 1 for i = j and 0 otherwise, where c_i combines the first i + 1 directions only. The row of a
// dropped direction is zero.
DEVICE Square orthonormalizer(const Square& gram) {
    Square rows = {};
#pragma unroll
    for (int j = 0; j < VECTORS; ++j) {
        rows.at[j][j] = 1;
#pragma unroll
        for (int known = 0; known < j; ++known) {
            const double overlap = form(rows, known, gram, rows, j);
#pragma unroll
            for (int k = 0; k < VECTORS; ++k) rows.at[j][k] -= overlap * rows.at[known][k];
        }
        const double square = form(rows, j, gram, rows, j), unit = square > DROP_SHARE * gram.at[j][j] ? 1 / sqrt(square) : 0;
#pragma unroll
        for (int k = 0; k < VECTORS; ++k) rows.at[j][k] *= unit;
    }
    return rows;
}

// The largest eigenvalue of a positive semi-definite matrix: the Rayleigh quotient of the largest row after repeated squaring.
DEVICE double largest_eigenvalue(const Square& matrix) {
    Square power = matrix;
#pragma unroll 1
    for (int squaring = 0; squaring < SQUARINGS; ++squaring) {
        // The largest entry of a positive semi-definite matrix is on its diagonal.
        double largest = 0;
#pragma unroll
        for (int i = 0; i < VECTORS; ++i) largest = fmax(largest, power.at[i][i]);
        const double unit = divide_or_zero(1, largest);
        for_each_entry([&](int i, int j) { power.at[i][j] *= unit; });
        power = multiply(power, power);
    }
    // Choose the row with the largest diagonal entry.
    Square row = {};
    double largest = -1;
#pragma unroll
    for (int i = 0; i < VECTORS; ++i) {
        const bool better = !(power.at[i][i] <= largest);
        largest = better ? power.at[i][i] : largest;
#pragma unroll
        for (int k = 0; k < VECTORS; ++k) row.at[0][k] = better ? power.at[i][k] : row.at[0][k];
    }
    double length = 0;
#pragma unroll
    for (int k = 0; k < VECTORS; ++k) length += row.at[0][k] * row.at[0][k];
    return divide_or_zero(form(row, 0, matrix, row, 0), length);
}
