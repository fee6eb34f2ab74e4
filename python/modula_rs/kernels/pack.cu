// pack: divides the caller's matrices by their Frobenius norms and stores them as tiles of halves in the workspace. combine: elementwise
// sums of such matrices.
//
// Bytes: pack reads each element once and writes 2 bytes a plane; combine reads 2 or 4 bytes a plane and element, and writes 2 or 4. Flops:
// 1 an element for pack, 2 for combine.
//
// Every matrix is stored with its short edge first: pack transposes a tall matrix, and reads it along the caller's rows all the same, so
// that reads are coalesced.
#include "eights.cuh"
#include "tiles.cuh"

struct Packing {
    const Entry* entries;
    const uint64* table;
    const double* frobenius;  // [matrices]
    float16* out;
    long long stride;         // elements from one matrix to the next
    int rows, cols, tall;     // shape of the caller's matrix; `tall`: it has more rows than columns
    int chunks;               // tiles a row of the packed matrix
    double size;              // the Frobenius norm of the packed matrix
};

struct Combining {
    const float16 *a, *b;
    float16* d;                // d = alpha a + beta b + gamma I
    float16* more;             // if set: d + shift I
    const double *a_squares, *b_squares;  // if set: a = R and b = sqrt(n) R^2 / ||R||_F^2, see first_step
    float* factor;             // if those are set: receives (k, sqrt k) of each matrix
    long long stride;
    int chunks, squares_count;
    float alpha, beta, gamma, shift, root;  // root: sqrt(n)
};

// The first step of the iteration divides the matrix by its Schatten-8 norm: with k = 1 / ||R^2||_F^(1/2), the largest eigenvalue of k R is
// between n^(-1/4) and 1. So the polynomial of this step is alpha k R + beta (k R)^2.
DEVICE void first_step(const Combining& p, float& alpha, float& beta) {
    if (!p.a_squares) return;
    const int lane = threadIdx.x & 31;
    double a = 0, b = 0;
    for (int i = lane; i < p.squares_count; i += 32) {
        a += p.a_squares[(long long)blockIdx.y * p.squares_count + i];
        b += p.b_squares[(long long)blockIdx.y * p.squares_count + i];
    }
    a = warp_reduce<Sum>(a), b = warp_reduce<Sum>(b);
    const double unit = a / p.root;  // R^2 = unit * b
    const double k = divide_or_zero(1, sqrt(sqrt(b) * unit));
    alpha *= float(k), beta *= float(k * k * unit);
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        p.factor[2 * blockIdx.y] = float(k);
        p.factor[2 * blockIdx.y + 1] = float(sqrt(k));
    }
}

DEVICE Word* word_at(float16* place) { return reinterpret_cast<Word*>(place); }

template <int planes> DEVICE void load_planes(float (&values)[8], const float16* place, long long plane_stride) {
#pragma unroll
    for (int n = 0; n < 8; ++n) values[n] = 0;
#pragma unroll
    for (int plane = 0; plane < planes; ++plane) {
        const Word word = *reinterpret_cast<const Word*>(place + plane * plane_stride);
#pragma unroll
        for (int n = 0; n < 4; ++n) {
            values[2 * n] += half_to_float(uint16(word.at[n]));
            values[2 * n + 1] += half_to_float(uint16(word.at[n] >> 16));
        }
    }
}

template <int type, int planes> DEVICE void pack(const Packing& p) {
    const Entry e = p.entries[blockIdx.y];
    const char* x = reinterpret_cast<const char*>(p.table[e.source]) + e.offset * bytes_of(type);
    const bool whole = whole_words(x, p.cols, type);
    // The reciprocal of the norm may be out of the range of a float, so it is split into a power of two and a factor.
    const double norm = p.frobenius[blockIdx.y];
    const int exponent = norm > 0 ? ilogb(norm) : 0;
    const Shift shift(exponent);
    const float factor = float(divide_or_zero(p.size * UNIT<planes>, scalbn(norm, -exponent)));
    const int first_row = blockIdx.x / p.chunks * TILE, first_col = blockIdx.x % p.chunks * CHUNK;
    float16* out = p.out + blockIdx.y * p.stride + (long long)blockIdx.x * TILE_HALVES;
#pragma unroll 2
    for (int k = threadIdx.x; k < TILE_HALVES / 8; k += blockDim.x) {
        const int row = p.tall ? k % TILE : k / 8, col = (p.tall ? k / TILE : k % 8) * 8;
        const int r = first_row + row, c = first_col + col;
        float values[8];
        if (p.tall) {
            // Neighbouring lanes read neighbouring entries. Each lane reads its eight one by one, because they lie in eight rows.
#pragma unroll
            for (int n = 0; n < 8; ++n) values[n] = r < p.cols && c + n < p.rows ? float_at(x, type, (long long)(c + n) * p.cols + r) : 0;
        } else {
            Eight eight;
            load_eight(eight, x, type, (long long)r * p.cols + c, r < p.rows ? p.cols - c : 0, whole);
            floats_of(values, eight, type);
        }
#pragma unroll
        for (int n = 0; n < 8; ++n) values[n] = shift(values[n]) * factor;
        store_planes<planes>(values, [&](int plane) { return word_at(out + in_tile(row, col) + plane * (p.stride / planes)); });
    }
}

template <int planes> DEVICE void combine(const Combining& p) {
    float alpha = p.alpha, beta = p.beta;
    first_step(p, alpha, beta);
    const int tile_row = blockIdx.x / p.chunks, chunk = blockIdx.x % p.chunks;
    const long long base = blockIdx.y * p.stride + (long long)blockIdx.x * TILE_HALVES;
    const long long plane = p.stride / planes;
    for (int k = threadIdx.x; k < TILE_HALVES / 8; k += blockDim.x) {
        const int row = k / 8, col = k % 8 * 8;
        const long long place = base + in_tile(row, col);
        float values[8], more[8];
        load_planes<planes>(values, p.a + place, plane);
        if (p.b) load_planes<planes>(more, p.b + place, plane);
#pragma unroll
        for (int n = 0; n < 8; ++n) {
            values[n] = alpha * values[n] + (p.b ? beta * more[n] : 0);
            if (tile_row * TILE + row == chunk * CHUNK + col + n) values[n] += p.gamma * UNIT<planes>;
        }
        if (p.more) {
#pragma unroll
            for (int n = 0; n < 8; ++n) {
                const bool diagonal = tile_row * TILE + row == chunk * CHUNK + col + n;
                more[n] = values[n] + (diagonal ? p.shift * UNIT<planes> : 0);
            }
            store_planes<planes>(more, [&](int which) { return word_at(p.more + place + which * plane); });
        }
        store_planes<planes>(values, [&](int which) { return word_at(p.d + place + which * plane); });
    }
}

KERNEL_BOUNDS(256, pack_float32_1, Packing) { pack<FLOAT32, 1>(p); }
KERNEL_BOUNDS(256, pack_float32_2, Packing) { pack<FLOAT32, 2>(p); }
KERNEL_BOUNDS(256, pack_float16_1, Packing) { pack<FLOAT16, 1>(p); }
KERNEL_BOUNDS(256, pack_float16_2, Packing) { pack<FLOAT16, 2>(p); }
KERNEL_BOUNDS(256, pack_bfloat16_1, Packing) { pack<BFLOAT16, 1>(p); }
KERNEL_BOUNDS(256, pack_bfloat16_2, Packing) { pack<BFLOAT16, 2>(p); }
KERNEL_BOUNDS(256, combine_1, Combining) { combine<1>(p); }
KERNEL_BOUNDS(256, combine_2, Combining) { combine<2>(p); }
