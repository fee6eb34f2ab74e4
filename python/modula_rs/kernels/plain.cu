// The simple version of every step on matrices with a short edge above 256, in double precision: the mode for float64 arrays, and the
// reference for the fast ones. Flops as in product_mma.cu; operands are staged in shared memory, 64 x 16 at a time.
//
// The workspace holds plain row-major matrices of doubles, padded as the tiles are; the structs are those of the fast kernels.
#include "workspace.cuh"

DEVICE const double* doubles(const float16* x) { return reinterpret_cast<const double*>(x); }
DEVICE double* doubles(float16* x) { return reinterpret_cast<double*>(x); }

template <class T> DEVICE void pack_plain(const Packing& p) {
    const Entry e = p.entries[blockIdx.y];
    const T* x = source_of<T>(e, p.table);
    const int height = p.tall ? p.cols : p.rows, width = p.tall ? p.rows : p.cols, pitch = p.chunks * CHUNK;
    double* out = doubles(p.out) + blockIdx.y * p.stride;
    for (int k = threadIdx.x; k < TILE_HALVES; k += blockDim.x) {
        const int row = blockIdx.x / p.chunks * TILE + k / CHUNK, col = blockIdx.x % p.chunks * CHUNK + k % CHUNK;
        const bool inside = row < height && col < width;
        const long long place = p.tall ? (long long)col * p.cols + row : (long long)row * p.cols + col;
        // Divide first: the reciprocal of a norm of 1e-310 is out of range.
        out[(long long)row * pitch + col] =
            inside ? divide_or_zero(double(to_float(x[place])), p.frobenius[blockIdx.y]) * p.size : 0;
    }
}

KERNEL_BOUNDS(256, combine_plain, Combining) {
    float alpha = p.alpha, beta = p.beta;
    first_step(p, alpha, beta);
    const int pitch = p.chunks * CHUNK;
    for (int k = threadIdx.x; k < TILE_HALVES; k += blockDim.x) {
        const int row = blockIdx.x / p.chunks * TILE + k / CHUNK, col = blockIdx.x % p.chunks * CHUNK + k % CHUNK;
        const long long place = blockIdx.y * p.stride + (long long)row * pitch + col;
        double value = alpha * doubles(p.a)[place] + (row == col ? p.gamma : 0);
        if (p.b) value += beta * doubles(p.b)[place];
        doubles(p.d)[place] = value;
        if (p.more) doubles(p.more)[place] = value + (row == col ? p.shift : 0);
    }
}

enum Purpose { SYMMETRIC, APPLY, RESULT };

template <class T> DEVICE void store_one(const Product& p, const Entry& e, long long place, double value) {
    if (e.other >= 0) value += double(p.keep) * to_float(other_of<T>(e, p.table)[place]);
    result_of<T>(e, p.table)[place] = from_float<T>(value);
}

DEVICE void store_result(const Product& p, int row, int col, double value) {
    if (p.tall) { const int t = row; row = col, col = t; }
    if (row >= p.rows || col >= p.cols) return;
    const Entry e = p.entries[blockIdx.y];
    const long long place = (long long)row * p.cols + col;
    value *= scale_of(e, p.table);
    if (p.dtype == 0) store_one<float>(p, e, place, value);
    else if (p.dtype == 1) store_one<float16>(p, e, place, value);
    else if (p.dtype == 2) store_one<bfloat16>(p, e, place, value);
    else store_one<double>(p, e, place, value);
}

// The quarter (row, col).. of a tile, 64 x 64: each thread 4 x 4, 16 apart.
template <Purpose purpose> DEVICE double quarter(const Product& p, int row, int col, double alpha, double beta) {
    __shared__ double left[16][65], right[16][65];
    const Which which(p, blockIdx.y);
    const int x = threadIdx.x % 16, y = threadIdx.x / 16;
    const int depth = p.chunks * CHUNK, width = p.tiles_n * TILE;
    const double* a = doubles(p.a) + which.offset(p.a_stride, 0);
    const double* b = doubles(p.b) + which.offset(p.b_stride, p.b_jump);
    double sums[4][4] = {};
    for (int k = 0; k < depth; k += 16) {
        __syncthreads();
        for (int n = threadIdx.x; n < 1024; n += blockDim.x) {
            left[n % 16][n / 16] = a[(long long)(row + n / 16) * depth + k + n % 16];
            if (purpose == SYMMETRIC) right[n % 16][n / 16] = b[(long long)(col + n / 16) * depth + k + n % 16];
            else right[n / 64][n % 64] = b[(long long)(k + n / 64) * width + col + n % 64];
        }
        __syncthreads();
        for (int n = 0; n < 16; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j) sums[i][j] += left[n][y + 16 * i] * right[n][x + 16 * j];
    }
    double squares = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const int r = row + y + 16 * i, c = col + x + 16 * j;
            double value = alpha * sums[i][j] + (r == c ? p.gamma : 0);
            if (p.c) value += beta * doubles(p.c)[which.offset(p.c_stride, p.b_jump) + (long long)r * width + c];
            // A symmetric result is the lower triangle and its mirror image.
            if (purpose == SYMMETRIC && r < c) continue;
            squares += (purpose == SYMMETRIC && r > c ? 2 : 1) * value * value;
            if (purpose == RESULT) {
                store_result(p, r, c, value);
            } else if (p.d) {
                double* d = doubles(p.d) + which.offset(p.d_stride, p.d_jump);
                d[(long long)r * width + c] = value;
                if (purpose == SYMMETRIC) d[(long long)c * width + r] = value;
            }
        }
    return squares;
}

template <Purpose purpose> DEVICE void product(const Product& p) {
    __shared__ double scratch[33];
    int i, j;
    if (purpose == SYMMETRIC) triangle(blockIdx.x, i, j);
    else i = blockIdx.x / p.tiles_n, j = blockIdx.x % p.tiles_n;
    double alpha = p.alpha, beta = p.beta;
    if (p.squares) {
        double total = 0;
        for (int n = threadIdx.x & 31; n < p.squares_count; n += 32) total += p.squares[(long long)blockIdx.y * p.squares_count + n];
        alpha = divide_or_zero(alpha, warp_reduce<Sum>(total));
    }
    if (p.factor) {
        const double factor = p.factor[2 * blockIdx.y + (p.factor_power == 2 ? 0 : 1)];
        alpha *= factor, beta *= factor;
    }
    for (int half = 0; half < 2; ++half) {
        double squares = quarter<purpose>(p, i * TILE + half * PIECE, j * TILE, alpha, beta);
        squares += quarter<purpose>(p, i * TILE + half * PIECE, j * TILE + 64, alpha, beta);
        if (!p.partial) continue;
        squares = block_reduce<Sum>(squares, scratch);
        if (threadIdx.x == 0) p.partial[2 * ((long long)blockIdx.y * gridDim.x + blockIdx.x) + half] = squares;
    }
}

KERNEL_BOUNDS(256, product_symmetric_plain, Product) { product<SYMMETRIC>(p); }
KERNEL_BOUNDS(256, product_apply_plain, Product) { product<APPLY>(p); }
KERNEL_BOUNDS(256, product_result_plain, Product) { product<RESULT>(p); }
KERNEL_BOUNDS(256, pack_float32_plain, Packing) { pack_plain<float>(p); }
KERNEL_BOUNDS(256, pack_float64_plain, Packing) { pack_plain<double>(p); }
KERNEL_BOUNDS(256, pack_float16_plain, Packing) { pack_plain<float16>(p); }
KERNEL_BOUNDS(256, pack_bfloat16_plain, Packing) { pack_plain<bfloat16>(p); }
