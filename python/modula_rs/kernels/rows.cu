// Row, vector and whole-matrix norms, and the rescale of each row by its own norm.
//
// Bytes: row_norms reads each element once and writes 8 bytes a row; row_normalize reads each element once, reads it again from the
// first-level cache, and writes it once. Flops: 2 an element for the norm, 1 for the rescale. Memory bounds both kernels.
//
// Sums of squares are doubles. The square of every float32, from 1e-45 to 3e38, is in the range of a double, so that no pass has to find
// the largest entry first. One double fused multiply-add per 4 bytes read is less than any data-centre chip with double units can do.
#include "common.cuh"

enum Mode { SQUARES, LARGEST, ABSOLUTE, INNER, SIGN };

struct Rows {
    const Entry* entries;
    const uint64* table;
    double* partial;  // [matrices][rows]
    int rows, cols;
    int mode;
    int team;  // number of threads that share a row: 32 or the whole block
};

template <class T> DEVICE double term(T x, T y, int mode) {
    const double a = to_float(x);
    switch (mode) {
        case SQUARES: return a * a;
        case INNER: return a * to_float(y);
        default: return a < 0 ? -a : a;
    }
}

template <class Op, class T>
DEVICE double row_total(const T* x, const T* y, int cols, int lane, int team, int mode) {
    double total = 0;
    if (packable(x, y, cols)) {
        constexpr int size = Pack<T>::size;
#pragma unroll 2
        for (int i = lane * size; i < cols; i += team * size) {
            const Pack<T> a = *reinterpret_cast<const Pack<T>*>(x + i);
            Pack<T> b = a;
            if (y) b = *reinterpret_cast<const Pack<T>*>(y + i);
#pragma unroll
            for (int j = 0; j < size; ++j) total = Op::of(total, term(a.at[j], b.at[j], mode));
        }
    } else {
#pragma unroll 1
        for (int i = lane; i < cols; i += team) total = Op::of(total, term(x[i], y ? y[i] : x[i], mode));
    }
    return total;
}

template <class T>
DEVICE double team_total(const T* x, const T* y, const Rows& p, int lane, int mode, double* scratch) {
    double total = mode == LARGEST ? row_total<Max>(x, y, p.cols, lane, p.team, mode)
                                   : row_total<Sum>(x, y, p.cols, lane, p.team, mode);
    if (p.team == 32) return mode == LARGEST ? warp_reduce<Max>(total) : warp_reduce<Sum>(total);
    return mode == LARGEST ? block_reduce<Max>(total, scratch) : block_reduce<Sum>(total, scratch);
}

// The root mean square of a row.
template <class T> DEVICE double row_rms(const T* x, const Rows& p, int lane, double* scratch) {
    return sqrt(team_total(x, (const T*)nullptr, p, lane, SQUARES, scratch) / p.cols);
}

template <class T> DEVICE void row_norms(const Rows& p) {
    __shared__ double scratch[33];
    const int lane = threadIdx.x % p.team;
    const int row = blockIdx.x * (blockDim.x / p.team) + threadIdx.x / p.team;
    if (row >= p.rows) return;  // all threads of a team return together, so that reductions within a team are safe
    const Entry e = p.entries[blockIdx.y];
    const T* x = source_of<T>(e, p.table) + (long long)row * p.cols;
    const T* y = other_of<T>(e, p.table);
    if (y) y += (long long)row * p.cols;
    const double value = p.mode == SQUARES ? row_rms(x, p, lane, scratch) : team_total(x, y, p, lane, p.mode, scratch);
    if (lane == 0) p.partial[(long long)blockIdx.y * p.rows + row] = value;
}

template <class T> DEVICE void row_normalize(const Rows& p) {
    __shared__ double scratch[33];
    const int lane = threadIdx.x % p.team;
    const int row = blockIdx.x * (blockDim.x / p.team) + threadIdx.x / p.team;
    if (row >= p.rows) return;
    const Entry e = p.entries[blockIdx.y];
    const T* x = source_of<T>(e, p.table) + (long long)row * p.cols;
    T* out = result_of<T>(e, p.table) + (long long)row * p.cols;
    const double scale = scale_of(e, p.table);
    double size = 1;
    if (p.mode == SQUARES) size = row_rms(x, p, lane, scratch);
    else if (p.mode != SIGN) size = team_total(x, (const T*)nullptr, p, lane, p.mode, scratch);
    const double factor = divide_or_zero(scale, size);  // rows of zeros give zeros
    auto result = [&](T given) {
        const double a = to_float(given);
        return from_float<T>(p.mode == SIGN && a * a > 0 ? (a > 0 ? scale : -scale) : a * factor);  // a NaN stays NaN
    };
    if (packable(x, out, p.cols)) {
        constexpr int width = Pack<T>::size;
#pragma unroll 1
        for (int i = lane * width; i < p.cols; i += p.team * width) {
            Pack<T> a = *reinterpret_cast<const Pack<T>*>(x + i);
#pragma unroll
            for (int j = 0; j < width; ++j) a.at[j] = result(a.at[j]);
            *reinterpret_cast<Pack<T>*>(out + i) = a;
        }
    } else {
#pragma unroll 1
        for (int i = lane; i < p.cols; i += p.team) out[i] = result(x[i]);
    }
}

#define FOR_TYPE(T, name)                                                             \
    KERNEL_BOUNDS(256, row_norms_##name, Rows) { row_norms<T>(p); }                   \
    KERNEL_BOUNDS(256, row_normalize_##name, Rows) { row_normalize<T>(p); }
FOR_TYPE(float, float32)
FOR_TYPE(float16, float16)
FOR_TYPE(bfloat16, bfloat16)
