// The epilogue of a product: scales a piece of sums by alpha, adds beta c and gamma I, and stores it, its mirror image and its sum of
// squares.
//
// A piece is 64 x 128, the upper or the lower half of a tile. The 128 threads that hold it finish it without waiting for other threads.
// `Sums` is any object whose each(f) calls f(row, col, x, y) for every 8x8 block of the warp. x and y are the lane's two entries, at
// (row, col) and (row, col + 1) of the piece: the fragment layout that mma and wgmma have in common.
#pragma once
#include "eights.cuh"
#include "tiles.cuh"

enum Purpose { SYMMETRIC, APPLY, RESULT };

struct Piece { Which which; int i, j, half; };  // 64 rows of the tile (i, j), from row 64 half on

// Shared memory for each piece: all its entries as halves, or half of them as floats.
constexpr int IMAGE_BYTES = 2 * PANEL_BYTES;

DEVICE void piece_sync() { group_sync(1 + (threadIdx.x >> 7)); }

DEVICE float add_up(const double* values, int count) {
    double total = 0;
    for (int i = threadIdx.x & 31; i < count; i += 32) total += values[i];
    return float(warp_reduce<Sum>(total));
}

// x <- unit * (alpha x / unit^2 + beta c + gamma [row == col])
template <int planes, class Sums> DEVICE void finish_sums(Sums& sums, const Product& p, const Piece& at) {
    float alpha = p.alpha, beta = p.beta;
    if (p.squares) {
        const float total = add_up(p.squares + (long long)at.which.matrix * p.squares_count, p.squares_count);
        alpha = total > 0 ? alpha / total : 0;
    }
    if (p.factor) {
        const float factor = p.factor[2 * at.which.matrix + (p.factor_power == 2 ? 0 : 1)];
        alpha *= factor, beta *= factor;
    }
    alpha /= UNIT<planes>;
    const float gamma = at.i == at.j ? p.gamma * UNIT<planes> : 0;
    const int diagonal = PIECE * at.half;  // col - row on the diagonal of the tile
    const long long first = (long long)(at.i * p.tiles_n + at.j) * (2 * TILE_HALVES) + at.half * PANEL_HALVES;
    const float16* c = p.c ? p.c + at.which.offset(p.c_stride, p.b_jump) + first : nullptr;
    const long long c_plane = p.c_stride / planes;
    sums.each([&](int row, int col, float& x, float& y) {
        float left = 0, right = 0;
        if (c) {
            const int place = (col >> 6) * TILE_HALVES + in_tile(row, col & 63);
#pragma unroll
            for (int plane = 0; plane < planes; ++plane) {
                const uint32 pair = *reinterpret_cast<const uint32*>(c + plane * c_plane + place);
                left += half_to_float(uint16(pair)), right += half_to_float(uint16(pair >> 16));
            }
        }
        x = alpha * x + beta * left + (col - row == diagonal ? gamma : 0);
        y = alpha * y + beta * right + (col + 1 - row == diagonal ? gamma : 0);
    });
}

// Stores the sum of squares of the piece into partial[matrix][tile of the triangle][half]; doubled off the diagonal, for the mirror image.
template <int planes, class Sums> DEVICE void store_squares(Sums& sums, const Product& p, const Piece& at, double* scratch) {
    double total = 0;
    sums.each([&](int, int, float& x, float& y) { total += double(x) * x + double(y) * y; });
    total = warp_reduce<Sum>(total);
    piece_sync();
    if ((threadIdx.x & 31) == 0) scratch[threadIdx.x >> 5 & 3] = total;
    piece_sync();
    if ((threadIdx.x & 127) == 0) {
        const double unit = UNIT<planes>, times = at.i == at.j ? 1 : 2;
        const int tiles = p.tiles_m * (p.tiles_m + 1) / 2, tile = at.i * (at.i + 1) / 2 + at.j;
        p.partial[2 * ((long long)at.which.matrix * tiles + tile) + at.half] =
            times * (scratch[0] + scratch[1] + scratch[2] + scratch[3]) / (unit * unit);
    }
}

// Copies an image from shared memory to the workspace, sixteen bytes at a time in each thread.
DEVICE void copy_out(const float16* image, float16* destination, int panels) {
    for (int k = threadIdx.x & 127; k < panels * (PANEL_BYTES / 16); k += 128)
        reinterpret_cast<Word*>(destination)[k] = reinterpret_cast<const Word*>(image)[k];
}

// Converts each lane's two neighbours to two halves in each plane, in place: the register of x then holds the pair of plane 0, and the
// register of y the pair of plane 1.
template <int planes, class Sums> DEVICE void split_sums(Sums& sums) {
    sums.each([&](int, int, float& x, float& y) {
        const uint32 high = pack_halves(x, y);
        if (planes == 2) y = bits_to_float(pack_halves(x - half_to_float(uint16(high)), y - half_to_float(uint16(high >> 16))));
        x = bits_to_float(high);
    });
}

// Stores the piece, and with `mirror` its transpose on the other side of the diagonal, where the transpose is one chunk of a tile. On a
// diagonal tile the mirror image of the lower triangle replaces the upper triangle: within the 64 x 64 blocks on the diagonal, and from the
// lower piece to the upper one. So the result is symmetric to the last bit. It has to be, because products read b by rows, and an
// antisymmetric part of b makes the iteration amplify rounding a thousandfold (float32 mode, Gaussian 270 x 300: 0.03 instead of 6e-5).
template <int planes, bool mirror, class Sums>
DEVICE void store_piece(Sums& sums, const Product& p, const Piece& at, float16* image) {
    const bool diagonal = mirror && at.i == at.j;
    const int panels = diagonal ? 1 + at.half : 2, mirrored = diagonal ? at.half : 2, chunks = 2 * p.tiles_n;
    split_sums<planes>(sums);
#pragma unroll
    for (int plane = 0; plane < planes; ++plane) {
        float16* d = p.d + at.which.offset(p.d_stride, p.d_jump) + plane * (p.d_stride / planes);
        piece_sync();
        sums.each([&](int row, int col, float& x, float& y) {
            const int below = (row >> 3) + 8 * at.half - (col >> 3);  // distance from the diagonal, in 8x8 blocks
            if (diagonal && below < 0) return;
            uint32 pair = float_to_bits(plane ? y : x);
            if (diagonal && col >> 6 == at.half) {
                const uint32 transposed = transpose_matrix(pair);
                const int place = at.half * PANEL_HALVES + in_tile((col & 56) + (row & 7), (row & 56) + (col & 7));
                if (below == 0) pair = lower_of(pair, transposed);
                else *reinterpret_cast<uint32*>(image + place) = transposed;
            }
            *reinterpret_cast<uint32*>(image + (col >> 6) * PANEL_HALVES + in_tile(row, col & 63)) = pair;
        });
        piece_sync();
        for (int panel = 0; panel < panels; ++panel)
            copy_out(image + panel * PANEL_HALVES,
                     d + (long long)(at.i * chunks + 2 * at.j + panel) * TILE_HALVES + at.half * PANEL_HALVES, 1);
        if (mirror && mirrored) {
            piece_sync();
            sums.each([&](int row, int col, float& x, float& y) {
                if (diagonal && col >= PIECE) return;
                const uint32 transposed = transpose_matrix(float_to_bits(plane ? y : x));
                // transpose_matrix has transposed within each 8x8 block; this address swaps the rows and columns of blocks.
                *reinterpret_cast<uint32*>(image + in_tile((col & ~7) + (row & 7), (row & ~7) + (col & 7))) = transposed;
            });
            piece_sync();
            copy_out(image, d + (long long)(at.j * chunks + 2 * at.i + at.half) * TILE_HALVES, mirrored);
        }
    }
}

// Stores the piece, times the caller's scale, into the caller's array in the type of that array. The floats go through shared memory,
// `at_once` times 64 columns at a time, so that neighbouring lanes write neighbouring entries. There columns are permuted by row, so that
// neighbouring rows lie in different banks.
template <int planes, int at_once, class Sums> DEVICE void store_result(Sums& sums, const Product& p, const Piece& at, float* image) {
    const int first_row = at.i * TILE + at.half * PIECE;
#pragma unroll 1
    for (int first = 0; first < 2; first += at_once) {
        piece_sync();
        sums.each([&](int row, int col, float& x, float& y) {
            const int panel = (col >> 6) - first;
            if (at_once == 1 && panel) return;
            float* place = image + panel * PANEL_HALVES + row * 64 + ((col & 63) ^ (row & 7) << 3);
            place[0] = x, place[1] = y;
        });
        piece_sync();
        const Entry e = p.entries[at.which.matrix];
        char* result = place_of(e, p.table, e.result, p.dtype);
        const bool whole = whole_words(result, p.cols, p.dtype);
        const float scale = float(scale_of(e, p.table) / UNIT<planes>);
#pragma unroll 1
        for (int number = threadIdx.x & 127; number < at_once * PANEL_HALVES / 8; number += 128) {
            // Eight neighbours in a row of the caller's array. For a tall matrix they are a column of the piece, and neighbouring lanes
            // take neighbouring columns.
            const int panel = number / (PANEL_HALVES / 8), k = number % (PANEL_HALVES / 8);
            const int r = p.tall ? k >> 6 << 3 : k >> 3, c = p.tall ? k & 63 : (k & 7) << 3;
            const int along = at.j * TILE + (first + panel) * 64 + c;
            const int row = p.tall ? along : first_row + r, col = p.tall ? first_row + r : along;
            if (row >= p.rows || col >= p.cols) continue;
            const float* from = image + panel * PANEL_HALVES;
            auto value = [&](int n) {
                return scale * (p.tall ? from[(r + n) * 64 + (c ^ n << 3)] : from[r * 64 + (c ^ (r & 7) << 3) + n]);
            };
            finish_eight(value, result, p.dtype, (long long)row * p.cols + col, p.cols - col, whole);
        }
    }
}

// The whole epilogue of a piece. `image` is shared memory of `images` times IMAGE_BYTES that only these 128 threads use, and that no copy
// in flight writes.
template <Purpose purpose, int planes, int images, class Sums>
DEVICE void finish_piece(Sums& sums, const Product& p, const Piece& at, unsigned char* image) {
    finish_sums<planes>(sums, p, at);
    if (purpose == SYMMETRIC && p.partial) store_squares<planes>(sums, p, at, reinterpret_cast<double*>(image));
    if (purpose == RESULT) store_result<planes, images>(sums, p, at, reinterpret_cast<float*>(image));
    else if (p.d) store_piece<planes, purpose == SYMMETRIC>(sums, p, at, reinterpret_cast<float16*>(image));
}

// The tile (i, j) with this number. Tiles are numbered row by row, in the lower triangle of a symmetric result or in the whole result.
template <Purpose purpose> DEVICE void tile_of(const Product& p, int number, int& i, int& j) {
    if (purpose == SYMMETRIC) triangle(number, i, j);
    else i = number / p.tiles_n, j = number % p.tiles_n;
}
