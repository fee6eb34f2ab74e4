// How the workspace stores a matrix of float16 numbers (halves), and the parameters of a batched product.
//
// A matrix is cut into tiles of 128 rows by 64 columns, 16 KB each. A tile is contiguous, and stored in the 128-byte swizzle that ldmatrix
// and wgmma read without bank conflicts. So loading a tile is a plain copy of contiguous bytes: coalesced for cp.async, one instruction for
// the copy engine, and without a tensor map, which would need a driver call.
//
// A tile of 128 x 128 of a result is finished in two pieces of 64 rows, each by the 128 threads (a warpgroup) that hold its sums.
//
// Matrices are padded with zeros to whole tiles. A matrix has one or two planes of halves. Two planes are split float16 (Ootomo and Yokota
// 2022): plane 0 holds the high half and plane 1 the low half of every number v, where high + low = 128 v. That keeps 22 bits and values up
// to 500, enough for the float32-accurate mode.
#pragma once
#include "common.cuh"

constexpr int TILE = 128;                        // edge of an output tile
constexpr int CHUNK = 64;                        // columns of a stored tile: 128 bytes of halves
constexpr int TILE_HALVES = TILE * CHUNK;
constexpr int TILE_BYTES = TILE_HALVES * 2;
constexpr int PIECE = 64;                        // rows of an output tile that 128 threads finish together
constexpr int PANEL_HALVES = PIECE * CHUNK;      // 64 x 64: the part of a stored tile that belongs to one piece, contiguous
constexpr int PANEL_BYTES = PANEL_HALVES * 2;

// What the numbers of a matrix are multiplied by before they are stored.
template <int planes> constexpr float UNIT = planes == 2 ? 128.f : 1.f;

struct Product {
    const float16 *a, *b, *c;  // a (m, k); b (n, k), or (k, n) for APPLY and RESULT; c (m, n)
    float16* d;                // (m, n)
    long long a_stride, b_stride, c_stride, d_stride;  // halves from one matrix to the next
    long long b_jump, d_jump;  // halves from b and c, and from d, to the b and c, and the d, of a second product with the same a
    const double* squares;     // if set, alpha is divided by ||a||_F^2, the sum of `squares_count` partial sums
    const float* factor;       // if set, (k, sqrt k) of each matrix
    double* partial;           // if set, sum of squares of each piece of a symmetric result
    const Entry* entries;      // for RESULT: where the matrices lie in the caller's arrays
    const uint64* table;
    float* parts;              // if set, partial sums of the tiles that several clusters share (product_wide.cu)
    int* ready;                // flags that say which partial sums are stored, all zero between launches
    int tiles_m, tiles_n, chunks;  // output tiles, chunks of the sum
    int matrices;                  // number of matrices, of both products together
    int pair;                      // if set, the number of matrices of the first product; the rest belong to the second
    int squares_count;
    int factor_power;          // 2: multiply by k, 1: by sqrt k
    float alpha, beta, gamma;  // d = alpha a b^T + beta c + gamma I, where the factor multiplies alpha and beta
    int rows, cols;            // true shape of the caller's matrix
    int dtype;                 // 0 float32, 1 float16, 2 bfloat16
    int tall;                  // the workspace holds the transpose of the caller's matrix
};

// Identifies matrix `number` of a launch: its number within its product, and whether that is the second product.
struct Which {
    int matrix;
    bool second;
    DEVICE Which(const Product& p, int number) : matrix(number), second(p.pair && number >= p.pair) {
        if (second) matrix -= p.pair;
    }
    DEVICE long long offset(long long stride, long long jump) const { return matrix * stride + (second ? jump : 0); }
};

// Offset of (row, col) within a tile, in halves.
DEVICE int in_tile(int row, int col) { return row * CHUNK + (((col >> 3) ^ (row & 7)) << 3) + (col & 7); }

// Numbers the entries of the lower triangle row by row: 0 -> (0, 0), 1 -> (1, 0), 2 -> (1, 1), ...
DEVICE void triangle(int index, int& i, int& j) {
    i = int((sqrt(8.0 * index + 1) - 1) * 0.5);
    while ((i + 1) * (i + 2) / 2 <= index) ++i;
    while (i * (i + 1) / 2 > index) --i;
    j = index - i * (i + 1) / 2;
}

// Makes an 8x8 block on the diagonal symmetric: takes the lower triangle from the block and the upper one from its transpose. Each lane
// holds two halves of either.
DEVICE uint32 lower_of(uint32 pair, uint32 transposed) {
    const int lane = threadIdx.x & 31, row = lane >> 2, col = 2 * (lane & 3);
    return (row >= col ? pair & 0xffff : transposed & 0xffff) | (row >= col + 1 ? pair & 0xffff0000 : transposed & 0xffff0000);
}

// The chunk and the planes that step `step` of the sum multiplies. The small terms, low times high, come first, so that they are not lost.
template <int planes> struct Step {
    int chunk, plane_a, plane_b;
    DEVICE Step(int step, int chunks) {
        const int segment = planes == 1 ? 0 : step / chunks;
        chunk = step - segment * chunks;
        plane_a = planes == 2 && segment == 0;
        plane_b = planes == 2 && segment == 1;
    }
};

// The addresses of the contiguous operands of a step: 16 KB of a, and two panels of 8 KB of b.
template <int planes, bool transposed> struct Operands {
    const float16 *a, *b;
    long long a_plane, b_plane;
    int b_chunks, tile_j;

    DEVICE Operands(const Product& p, const Which& which, int i, int j)
        : a(p.a + which.offset(p.a_stride, 0) + (long long)i * p.chunks * TILE_HALVES),
          b(p.b + which.offset(p.b_stride, p.b_jump) + (transposed ? 0 : (long long)j * p.chunks * TILE_HALVES)),
          a_plane(p.a_stride / planes), b_plane(p.b_stride / planes), b_chunks(2 * p.tiles_n), tile_j(j) {}

    DEVICE const float16* of_a(const Step<planes>& s) const {
        return a + s.plane_a * a_plane + (long long)s.chunk * TILE_HALVES;
    }
    // panel 0 or 1: the first or the second 8 KB of the 16 KB of b.
    DEVICE const float16* of_b(const Step<planes>& s, int panel) const {
        const float16* plane = b + s.plane_b * b_plane;
        if (!transposed) return plane + (long long)s.chunk * TILE_HALVES + panel * PANEL_HALVES;
        return plane + (long long)((s.chunk >> 1) * b_chunks + 2 * tile_j + panel) * TILE_HALVES +
               (s.chunk & 1) * PANEL_HALVES;
    }
};
