// Symmetric matrices of halves that stay in shared memory, and products of commuting ones.
//
// Only 16x16 tiles on and below the diagonal are kept, each as four 8x8 blocks of 128 contiguous bytes, which ldmatrix reads without
// bank conflicts. A tile above the diagonal is its mirror image read with the transposing ldmatrix. At n = 256 three such matrices
// are 204 KB instead of 384, and fit the 227 KB of a block.
//
// Each warp computes up to `ROUNDS` squares of 32x32 on or below the diagonal, held in registers until all warps have finished
// reading, so that a product may overwrite its own operand.
#pragma once
#include "tiles.cuh"

constexpr int HEAD = 512;  // bytes for the scratch of reductions and a few integers
DEVICE constexpr int most(int a, int b) { return a > b ? a : b; }

template <int blocks, int plane_count> struct Packed {
    static constexpr int planes = plane_count;
    static constexpr int edge = 32 * blocks, strips = 2 * blocks;       // strips of 16
    static constexpr int squares = blocks * (blocks + 1) / 2;
    static constexpr int warps = squares == 1 ? 1 : squares <= 4 ? 4 : squares <= 12 ? squares : 12;  // the smallest come by thousands
    static constexpr int threads = 32 * warps;
    static constexpr int rounds = (squares + warps - 1) / warps;
    static constexpr int plane_bytes = strips * (strips + 1) / 2 * 512;
    static constexpr int bytes = planes * plane_bytes;
    // 64 columns of X: 8x8 blocks of 128 bytes, column of blocks after column of blocks, each 16 bytes on in the cycle of the banks from both
    // its neighbours: eight lanes that store a word each to eight blocks, down or across, meet no conflict.
    static constexpr int block_step = 144, column_step = (edge / 8 * block_step + 127) / 128 * 128 + 16;
    static constexpr int panel_plane = CHUNK / 8 * column_step;
    static constexpr int panel_bytes = planes * panel_plane;
    static constexpr int eights = edge * CHUNK / 8;                     // of a panel
    static constexpr int turns = (eights + threads - 1) / threads;      // for each thread
    static constexpr int held = rounds == 3 ? 0 : rounds * planes == 2 ? 1 : turns < 4 ? turns : 4;  // fetched ahead, as far as registers go
    static constexpr int blocks_a_processor = planes == 2 ? 1 : warps == 1 ? 12 : warps == 4 ? 3 : 1;
    static constexpr int pitch = CHUNK + 8;                             // of a panel of floats: stores without bank conflicts
    static constexpr int sums_bytes = edge * pitch * 4;
    // Q, then Z and R, over which lie a panel that comes and goes and the sums of a product with it; or the sums, and then the panels that stay.
    static constexpr int shared = HEAD + bytes + most(2 * bytes, panel_bytes + sums_bytes);
    static constexpr int middle_bytes = most(2 * bytes, sums_bytes);
    static constexpr int most_panels = 24;                              // that stay
};

// Operand fragment for rows 16i.., columns 16k.. of a packed symmetric matrix: blocks (0,0), (8,0), (0,8), (8,8).
DEVICE void load_symmetric(unsigned (&r)[4], unsigned matrix, int i, int k) {
    const int lane = threadIdx.x & 31, block = lane >> 3;
    const bool below = i >= k;
    const int tile = below ? i * (i + 1) / 2 + k : k * (k + 1) / 2 + i;
    const int place = below ? (block & 1) * 2 + (block >> 1) : block;
    const unsigned address = matrix + tile * 512 + place * 128 + (lane & 7) * 16;
    if (below) load_matrices(r, address);
    else load_matrices_transposed(r, address);
}

// The four 8x8 blocks from (row, column) of blocks of a panel on: down, then across; with `across`, across first. Of each the fragment, or that
// of its transpose: a panel whose words run down the columns is stored transposed.
template <class P> DEVICE void load_panel(unsigned (&r)[4], unsigned panel, int row, int column, bool across, bool transposed) {
    const int lane = threadIdx.x & 31, first = lane >> 3 & 1, second = lane >> 4;
    const int down = row + (across ? second : first), right = column + (across ? first : second);
    const unsigned address = panel + right * P::column_step + down * P::block_step + (lane & 7) * 16;
    if (transposed) load_matrices_transposed(r, address);
    else load_matrices(r, address);
}

// One 32x32 square: at[m][n] is the 16x8 fragment of strip m, columns 8n.
struct Square { float at[2][4][4]; };

template <int planes> DEVICE void multiply_square(Square& d, const unsigned (&a)[planes][2][4], const unsigned (&b)[planes][2][4]) {
    // high * low and low * high before high * high, so that they are not lost.
#pragma unroll
    for (int pass = planes == 2 ? 0 : 2; pass < 3; ++pass) {
        const int left = pass == 0, right = pass == 1;
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
            for (int n = 0; n < 4; ++n)
                multiply_add(d.at[m][n], a[left][m], b[right][n >> 1][n & 1], b[right][n >> 1][2 + (n & 1)]);
    }
}

// The squares of one warp and the arithmetic on them.
template <class P> struct Squares {
    Square at[P::rounds];

    DEVICE static int number(int round) { return (threadIdx.x >> 5) + round * P::warps; }

    DEVICE void clear() {
#pragma unroll
        for (int s = 0; s < P::rounds; ++s) at[s] = {};
    }

    // += a b for `strips` steps of 16, operands fetched by load(fragment, plane offset, strip, step).
    template <class A, class B> DEVICE void accumulate(int steps, A load_a, B load_b) {
#pragma unroll
        for (int s = 0; s < P::rounds; ++s) {
            if (number(s) >= P::squares) continue;
            int i, j;
            triangle(number(s), i, j);
#pragma unroll(P::rounds > 1 ? 1 : 2)
            for (int k = 0; k < steps; ++k) {
                unsigned a[P::planes][2][4], b[P::planes][2][4];
#pragma unroll
                for (int plane = 0; plane < P::planes; ++plane)
#pragma unroll
                    for (int half = 0; half < 2; ++half) {
                        load_a(a[plane][half], plane, 2 * i + half, k);
                        load_b(b[plane][half], plane, 2 * j + half, k);
                    }
                multiply_square<P::planes>(at[s], a, b);
            }
        }
    }

    DEVICE void product(unsigned a, unsigned b) {
        clear();
        accumulate(P::strips, [&](unsigned (&r)[4], int plane, int i, int k) { load_symmetric(r, a + plane * P::plane_bytes, i, k); },
                   [&](unsigned (&r)[4], int plane, int i, int k) { load_symmetric(r, b + plane * P::plane_bytes, i, k); });
    }

    // f(x, y, place in halves, distance from the diagonal, block): block is -1 off the diagonal tiles, and there the number of the 8x8 block.
    template <class F> DEVICE void each(F f) {
        const int lane = threadIdx.x & 31, row = lane >> 2, col = 2 * (lane & 3);
#pragma unroll
        for (int s = 0; s < P::rounds; ++s) {
            if (number(s) >= P::squares) continue;
            int i, j;
            triangle(number(s), i, j);
#pragma unroll
            for (int m = 0; m < 2; ++m)
#pragma unroll
                for (int n = 0; n < 4; ++n)
#pragma unroll
                    for (int half = 0; half < 2; ++half) {
                        const int ti = 2 * i + m, tj = 2 * j + (n >> 1), block = half * 2 + (n & 1);
                        if (tj > ti) continue;
                        const int place = (ti * (ti + 1) / 2 + tj) * 256 + block * 64 + row * 8 + col;
                        const int distance = 16 * (ti - tj) + 8 * half + row - 8 * (n & 1) - col;
                        f(at[s].at[m][n][2 * half], at[s].at[m][n][2 * half + 1], place, distance, ti == tj ? block : -1);
                    }
        }
    }

    // f(number, sum) for every sum of this thread.
    template <class F> DEVICE void each_sum(F f) {
#pragma unroll
        for (int s = 0; s < P::rounds; ++s)
#pragma unroll
            for (int k = 0; k < 32; ++k) f(32 * s + k, at[s].at[k >> 4][k >> 2 & 3][k & 3]);
    }
    DEVICE void multiply(float factor) {
        each_sum([&](int, float& x) { x *= factor; });
    }

    DEVICE double trace(double* scratch) {
        double total = 0;
        each([&](float& x, float& y, int, int distance, int) { total += distance == 0 ? x : distance == 1 ? y : 0; });
        return block_reduce<Sum>(total, scratch);
    }

    // Sum of squares over the whole symmetric matrix. In a tile on the diagonal both halves are there, elsewhere one stands for two.
    DEVICE double sum_of_squares(double* scratch) {
        double total = 0;
        each([&](float& x, float& y, int, int, int block) { total += (block < 0 ? 2 : 1) * (double(x) * x + double(y) * y); });
        return block_reduce<Sum>(total, scratch);
    }

    // x <- alpha x + beta c, with c packed in shared memory.
    DEVICE void combine(float alpha, float beta, const float16* c) {
        each([&](float& x, float& y, int place, int, int) {
            float left = 0, right = 0;
#pragma unroll
            for (int plane = 0; plane < P::planes; ++plane) {
                const uint32 pair = *reinterpret_cast<const uint32*>(c + plane * (P::plane_bytes / 2) + place);
                left += half_to_float(uint16(pair)), right += half_to_float(uint16(pair >> 16));
            }
            x = alpha * x + beta * left, y = alpha * y + beta * right;
        });
    }

    // scale x + gamma I into shared memory, symmetric to the last bit (see store_tile): on the diagonal the lower triangle is mirrored.
    DEVICE void store(float16* d, float scale, float gamma) {
        each([&](float& x, float& y, int place, int distance, int block) {
            if (block == 1) return;  // written with block 2
            float left = scale * x + (distance == 0 ? gamma : 0), right = scale * y + (distance == 1 ? gamma : 0);
#pragma unroll
            for (int plane = 0; plane < P::planes; ++plane) {
                uint32 pair = pack_halves(left, right);
                left -= half_to_float(uint16(pair)), right -= half_to_float(uint16(pair >> 16));
                float16* at_place = d + plane * (P::plane_bytes / 2) + place;
                if (block >= 0) {
                    const uint32 turned = transpose_matrix(pair);
                    if (block == 2) *reinterpret_cast<uint32*>(at_place - 64) = turned;
                    else pair = lower_of(pair, turned);
                }
                *reinterpret_cast<uint32*>(at_place) = pair;
            }
        });
    }
};
