// Symmetric matrices of halves in shared memory, and products of symmetric matrices that commute, which are symmetric again.
//
// Only the 16x16 tiles on and below the diagonal are stored, each as four 8x8 blocks of 128 contiguous bytes, which ldmatrix reads without
// bank conflicts. A tile above the diagonal is read from its mirror image by the transposing ldmatrix. At n = 256 three such matrices take
// 204 KB instead of 384, and fit the 227 KB of a block.
//
// Each warp computes up to `rounds` squares of 32x32 on or below the diagonal. It holds them in registers until all warps have finished
// reading, so that a product may overwrite its own operand.
#pragma once
#include "tiles.cuh"

constexpr int HEAD = 512;  // bytes of shared memory for the scratch of reductions and a few integers
DEVICE constexpr int larger_of(int a, int b) { return a > b ? a : b; }

template <int blocks, int plane_count> struct Packed {
    static constexpr int planes = plane_count;
    static constexpr int edge = 32 * blocks, strips = 2 * blocks;       // a strip is 16 rows
    static constexpr int squares = blocks * (blocks + 1) / 2;
    // The smallest matrices get a single warp, because they come by the thousand.
    static constexpr int warps = squares == 1 ? 1 : squares <= 4 ? 4 : squares <= 12 ? squares : 12;
    static constexpr int threads = 32 * warps;
    static constexpr int rounds = (squares + warps - 1) / warps;
    static constexpr int plane_bytes = strips * (strips + 1) / 2 * 512;
    static constexpr int bytes = planes * plane_bytes;
    // A panel is 64 columns of X: 8x8 blocks of 128 bytes, one column of blocks after the other. Neighbouring blocks, down or across, begin
    // 16 bytes apart modulo the 128 bytes of all banks. So eight lanes that store a word each to eight neighbouring blocks meet no bank
    // conflict.
    static constexpr int block_step = 144, column_step = (edge / 8 * block_step + 127) / 128 * 128 + 16;
    static constexpr int panel_plane = CHUNK / 8 * column_step;
    static constexpr int panel_bytes = planes * panel_plane;
    static constexpr int eights = edge * CHUNK / 8;                     // groups of eight neighbours in a panel
    static constexpr int loads = (eights + threads - 1) / threads;      // such groups for each thread
    // Of those, how many are prefetched: as many as registers allow.
    static constexpr int prefetched = rounds == 3 ? 0 : rounds * planes == 2 ? 1 : loads < 4 ? loads : 4;
    static constexpr int blocks_per_processor = planes == 2 ? 1 : warps == 1 ? 12 : warps == 4 ? 3 : 1;
    static constexpr int pitch = CHUNK + 8;                             // row length of a panel of floats: no bank conflicts in stores
    static constexpr int sums_bytes = edge * pitch * 4;
    // The layout of shared memory after HEAD: Q, then Z and R. A streamed panel and the sums of a product with it take the place of Z and
    // R. Where panels are resident, the sums take the place of Z and R, and the panels come after.
    static constexpr int shared = HEAD + bytes + larger_of(2 * bytes, panel_bytes + sums_bytes);
    static constexpr int middle_bytes = larger_of(2 * bytes, sums_bytes);
    static constexpr int most_panels = 24;                              // resident panels of a block
};

// Loads the operand fragment at row 16 i, column 16 k of a packed symmetric matrix: blocks (0,0), (8,0), (0,8), (8,8).
DEVICE void load_symmetric(unsigned (&r)[4], unsigned matrix, int i, int k) {
    const int lane = threadIdx.x & 31, block = lane >> 3;
    const bool below = i >= k;
    const int tile = below ? i * (i + 1) / 2 + k : k * (k + 1) / 2 + i;
    const int place = below ? (block & 1) * 2 + (block >> 1) : block;
    const unsigned address = matrix + tile * 512 + place * 128 + (lane & 7) * 16;
    if (below) load_matrices(r, address);
    else load_matrices_transposed(r, address);
}

// Loads four 8x8 blocks of a panel from block (row, column) on, in the order down, then across; with `across`, across first. `transposed`
// loads the transpose of each block: a panel whose words run down the columns is stored transposed.
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
    // The small products, high * low and low * high, are added before high * high, so that they are not lost.
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

// The 32x32 squares of one warp, in registers, and arithmetic on them.
template <class P> struct Squares {
    Square at[P::rounds];

    DEVICE static int number(int round) { return (threadIdx.x >> 5) + round * P::warps; }

    DEVICE void clear() {
#pragma unroll
        for (int s = 0; s < P::rounds; ++s) at[s] = {};
    }

    // += a b, summed over `steps` steps of 16. load_a and load_b(fragment, plane, strip, step) load the operands.
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

    // Calls f(x, y, place in halves, distance from the diagonal, block) for the two neighbours of each 8x8 block. `block` is the number of
    // the block within a tile on the diagonal, and -1 in the other tiles.
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

    // Calls f(number, sum) for every sum of this thread.
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

    // The sum of squares of the whole symmetric matrix. A tile on the diagonal is stored whole; every other tile also counts for its mirror
    // image.
    DEVICE double sum_of_squares(double* scratch) {
        double total = 0;
        each([&](float& x, float& y, int, int, int block) { total += (block < 0 ? 2 : 1) * (double(x) * x + double(y) * y); });
        return block_reduce<Sum>(total, scratch);
    }

    // x <- alpha x + beta c, where c is packed in shared memory.
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

    // Stores scale x + gamma I into shared memory. The lower triangle of a tile on the diagonal is mirrored, so that the result is
    // symmetric to the last bit (store_piece in epilogue.cuh says why).
    DEVICE void store(float16* d, float scale, float gamma) {
        each([&](float& x, float& y, int place, int distance, int block) {
            if (block == 1) return;  // stored as the transpose of block 2
            float left = scale * x + (distance == 0 ? gamma : 0), right = scale * y + (distance == 1 ? gamma : 0);
#pragma unroll
            for (int plane = 0; plane < P::planes; ++plane) {
                uint32 pair = pack_halves(left, right);
                left -= half_to_float(uint16(pair)), right -= half_to_float(uint16(pair >> 16));
                float16* at_place = d + plane * (P::plane_bytes / 2) + place;
                if (block >= 0) {
                    const uint32 transposed = transpose_matrix(pair);
                    if (block == 2) *reinterpret_cast<uint32*>(at_place - 64) = transposed;
                    else pair = lower_of(pair, transposed);
                }
                *reinterpret_cast<uint32*>(at_place) = pair;
            }
        });
    }
};
