// From the caller's arrays into the workspace's tiles of halves, divided by the Frobenius norm; and elementwise sums of tiles.
//
// pack_*: reads each element once, writes 2 bytes a plane. combine_*: reads 2 or 4 bytes a plane and element, writes 2 or 4.
// Flops: 1 and 2 an element.
//
// Every matrix is stored with its short edge first, so that a tall one is transposed here; its reads are coalesced along the other edge.
#include "eights.cuh"
#include "workspace.cuh"

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
    // The reciprocal of the norm may be out of range.
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
            // Neighbouring lanes read neighbours; one by one, since eight of a column of X lie in eight rows.
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
