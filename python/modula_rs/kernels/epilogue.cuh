// What happens to a tile of sums before it leaves the chip: alpha, beta, diagonal, mirror image, sum of squares.
//
// `Sums` is any object whose each(f) calls f(row, col, x, y) for every 8x8 block of the warp, with x and y the lane's two
// neighbours (row, col), (row, col + 1): the fragment layout that mma and wgmma have in common.
#pragma once
#include "tiles.cuh"

DEVICE float add_up(const double* values, int count) {
    double total = 0;
    for (int i = threadIdx.x & 31; i < count; i += 32) total += values[i];
    return float(warp_reduce<Sum>(total));
}

// x <- unit * (alpha x / unit^2 + beta c + gamma [row == col])
template <int planes, class Sums> DEVICE void finish_sums(Sums& sums, const Product& p, int matrix, int i, int j) {
    float alpha = p.alpha, beta = p.beta;
    if (p.squares) {
        const float total = add_up(p.squares + (long long)matrix * p.squares_count, p.squares_count);
        alpha = total > 0 ? alpha / total : 0;
    }
    if (p.factor) {
        const float factor = p.factor[2 * matrix + (p.factor_power == 2 ? 0 : 1)];
        alpha *= factor, beta *= factor;
    }
    alpha /= UNIT<planes>;
    const float gamma = p.gamma * UNIT<planes>;
    const float16* c = p.c ? p.c + matrix * p.c_stride + (long long)(i * p.tiles_n + j) * (2 * TILE_HALVES) : nullptr;
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
        x = alpha * x + beta * left + (i == j && row == col ? gamma : 0);
        y = alpha * y + beta * right + (i == j && row == col + 1 ? gamma : 0);
    });
}

// Sum of squares of the tile, weighted by how often it occurs, into partial[matrix][tile].
template <int planes, class Sums>
DEVICE void store_squares(Sums& sums, const Product& p, int matrix, int tile, int tiles, bool twice, double* scratch) {
    double total = 0;
    sums.each([&](int, int, float& x, float& y) { total += double(x) * x + double(y) * y; });
    total = block_reduce<Sum>(total, scratch);
    if (threadIdx.x == 0) {
        const double unit = UNIT<planes>;
        p.partial[(long long)matrix * tiles + tile] = (twice ? 2 : 1) * total / (unit * unit);
    }
}

// Sixteen bytes a thread from an image in shared memory to its place in the workspace.
DEVICE void copy_out(const unsigned char* image, float16* destination) {
    struct alignas(16) Word { uint32 at[4]; };
    for (int k = threadIdx.x; k < STAGE_BYTES / 16; k += PRODUCT_THREADS)
        reinterpret_cast<Word*>(destination)[k] = reinterpret_cast<const Word*>(image)[k];
}

// The tile, and with `mirror` its transpose on the other side of the diagonal, also within a tile on the diagonal: the result is symmetric
// to the last bit. It has to be: products read b by rows, and with an antisymmetric part in b the iteration amplifies rounding a thousandfold
// (float32 mode, Gaussian 270 x 300: 0.03 instead of 6e-5). Called when no copy is in flight: the images
// (two of 32 KB) reuse the pipeline's shared memory.
template <int planes, bool mirror, class Sums>
DEVICE void store_tile(Sums& sums, const Product& p, int matrix, int i, int j, unsigned char* shared) {
    float16* image = reinterpret_cast<float16*>(shared);
    float16* mirrored = image + 2 * TILE_HALVES;
    const int chunks = 2 * p.tiles_n;
    float16* d = p.d + matrix * p.d_stride;
    for (int plane = 0; plane < planes; ++plane) {
        __syncthreads();
        sums.each([&](int row, int col, float& x, float& y) {
            const int across = (row >> 3) - (col >> 3);  // 8x8 blocks below the diagonal, where i == j
            if (mirror && i == j && across < 0) return;  // its mirror image is written instead
            uint32 pair = pack_halves(x, y);
            if (mirror) {
                const uint32 turned = transpose_matrix(pair);
                if (i == j && across == 0) {
                    pair = lower_of(pair, turned);
                } else {
                    // This lane's place in the transposed block: row of the block <-> column of the block.
                    const int r = (col & ~7) + (row & 7), c = (row & ~7) + (col & 7);
                    float16* image_of_mirror = i == j ? image : mirrored;
                    *reinterpret_cast<uint32*>(image_of_mirror + (c >> 6) * TILE_HALVES + in_tile(r, c & 63)) = turned;
                }
            }
            *reinterpret_cast<uint32*>(image + (col >> 6) * TILE_HALVES + in_tile(row, col & 63)) = pair;
            if (plane + 1 < planes) x -= half_to_float(uint16(pair)), y -= half_to_float(uint16(pair >> 16));
        });
        __syncthreads();
        const long long offset = plane * (p.d_stride / planes);
        copy_out(shared, d + offset + (long long)(i * chunks + 2 * j) * TILE_HALVES);
        if (mirror && i != j)
            copy_out(shared + STAGE_BYTES, d + offset + (long long)(j * chunks + 2 * i) * TILE_HALVES);
    }
}

template <class T> DEVICE void store_one(const Product& p, const Entry& e, long long place, double value) {
    if (e.other >= 0) value += double(p.keep) * to_float(other_of<T>(e, p.table)[place]);
    result_of<T>(e, p.table)[place] = from_float<T>(value);
}

// The tile into the caller's array, in its type, times the caller's scale, and added to another array where one is given: the last
// pass of an optimizer's update costs nothing extra. By way of floats in shared memory, so that neighbouring lanes write neighbours.
template <int planes, class Sums> DEVICE void store_result(Sums& sums, const Product& p, int matrix, int i, int j, unsigned char* shared) {
    constexpr int pitch = TILE + 8;
    float* image = reinterpret_cast<float*>(shared);
    __syncthreads();
    sums.each([&](int row, int col, float& x, float& y) {
        image[row * pitch + col] = x;
        image[row * pitch + col + 1] = y;
    });
    __syncthreads();
    const Entry e = p.entries[matrix];
    const double scale = scale_of(e, p.table) / UNIT<planes>;
#pragma unroll 1
    for (int k = threadIdx.x; k < TILE * TILE; k += PRODUCT_THREADS) {
        const int r = p.tall ? k % TILE : k / TILE, c = p.tall ? k / TILE : k % TILE;
        const int row = p.tall ? j * TILE + c : i * TILE + r, col = p.tall ? i * TILE + r : j * TILE + c;
        if (row >= p.rows || col >= p.cols) continue;
        const long long place = (long long)row * p.cols + col;
        const double value = image[r * pitch + c] * scale;
        if (p.dtype == 0) store_one<float>(p, e, place, value);
        else if (p.dtype == 1) store_one<float16>(p, e, place, value);
        else store_one<bfloat16>(p, e, place, value);
    }
}

enum Purpose { SYMMETRIC, APPLY, RESULT };

// Everything after the sum, for the tile (i, j) of one matrix.
template <Purpose purpose, int planes, class Sums>
DEVICE void finish_tile(Sums& sums, const Product& p, int i, int j, unsigned char* shared) {
    const int matrix = blockIdx.y;
    finish_sums<planes>(sums, p, matrix, i, j);
    if (p.partial) {
        __syncthreads();
        store_squares<planes>(sums, p, matrix, blockIdx.x, gridDim.x, purpose == SYMMETRIC && i != j,
                              reinterpret_cast<double*>(shared));
    }
    if (purpose == RESULT) store_result<planes>(sums, p, matrix, i, j, shared);
    else if (p.d) store_tile<planes, purpose == SYMMETRIC>(sums, p, matrix, i, j, shared);
}

template <Purpose purpose> DEVICE void tile_of_block(const Product& p, int& i, int& j) {
    if (purpose == SYMMETRIC) triangle(blockIdx.x, i, j);
    else i = blockIdx.x / p.tiles_n, j = blockIdx.x % p.tiles_n;
}
