// From the caller's arrays into the workspace's tiles of halves, divided by the Frobenius norm; and elementwise sums of tiles.
//
// pack_*: reads each element once, writes 2 bytes a plane. combine_*: reads 2 or 4 bytes a plane and element, writes 2 or 4.
// Flops: 1 and 2 an element.
//
// Every matrix is stored with its short edge first, so that a tall one is transposed here; its reads are coalesced along the other edge.
#include "workspace.cuh"

struct alignas(16) Eight { uint16 at[8]; };

// Splits the unit multiples in `values` into planes of halves at `place`.
template <int planes> DEVICE void store_eight(float (&values)[8], float16* place, long long plane_stride) {
#pragma unroll
    for (int plane = 0; plane < planes; ++plane) {
        Eight word;
#pragma unroll
        for (int k = 0; k < 8; ++k) {
            word.at[k] = float_to_half(values[k]);
            values[k] -= half_to_float(word.at[k]);
        }
        *reinterpret_cast<Eight*>(place + plane * plane_stride) = word;
    }
}

template <int planes> DEVICE void load_eight(float (&values)[8], const float16* place, long long plane_stride) {
#pragma unroll
    for (int k = 0; k < 8; ++k) values[k] = 0;
#pragma unroll
    for (int plane = 0; plane < planes; ++plane) {
        const Eight word = *reinterpret_cast<const Eight*>(place + plane * plane_stride);
#pragma unroll
        for (int k = 0; k < 8; ++k) values[k] += half_to_float(word.at[k]);
    }
}

template <class T, int planes> DEVICE void pack(const Packing& p) {
    const Entry e = p.entries[blockIdx.y];
    const T* x = source_of<T>(e, p.table);
    const double factor = divide_or_zero(p.size * UNIT<planes>, p.frobenius[blockIdx.y]);
    const int first_row = blockIdx.x / p.chunks * TILE, first_col = blockIdx.x % p.chunks * CHUNK;
    float16* out = p.out + blockIdx.y * p.stride + (long long)blockIdx.x * TILE_HALVES;
    const int height = p.tall ? p.cols : p.rows, width = p.tall ? p.rows : p.cols;
    for (int k = threadIdx.x; k < TILE_HALVES / 8; k += blockDim.x) {
        const int row = p.tall ? k % TILE : k / 8, col = (p.tall ? k / TILE : k % 8) * 8;
        const int r = first_row + row, c = first_col + col;
        float values[8];
#pragma unroll
        for (int n = 0; n < 8; ++n) {
            const bool inside = r < height && c + n < width;
            const long long place = p.tall ? (long long)(c + n) * p.cols + r : (long long)r * p.cols + c + n;
            values[n] = inside ? float(double(to_float(x[place])) * factor) : 0;
        }
        store_eight<planes>(values, out + in_tile(row, col), p.stride / planes);
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
        load_eight<planes>(values, p.a + place, plane);
        if (p.b) load_eight<planes>(more, p.b + place, plane);
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
            store_eight<planes>(more, p.more + place, plane);
        }
        store_eight<planes>(values, p.d + place, plane);
    }
}

KERNEL_BOUNDS(256, pack_float32_1, Packing) { pack<float, 1>(p); }
KERNEL_BOUNDS(256, pack_float32_2, Packing) { pack<float, 2>(p); }
KERNEL_BOUNDS(256, pack_float16_1, Packing) { pack<float16, 1>(p); }
KERNEL_BOUNDS(256, pack_float16_2, Packing) { pack<float16, 2>(p); }
KERNEL_BOUNDS(256, pack_bfloat16_1, Packing) { pack<bfloat16, 1>(p); }
KERNEL_BOUNDS(256, pack_bfloat16_2, Packing) { pack<bfloat16, 2>(p); }
KERNEL_BOUNDS(256, combine_1, Combining) { combine<1>(p); }
KERNEL_BOUNDS(256, combine_2, Combining) { combine<2>(p); }
