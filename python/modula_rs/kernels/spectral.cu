// Spectral norms, cold and warm, and the rescale by them.
//
// Cold: norm_from_powers reads the Frobenius norms of R, R^2, R^4, ..., R^128 (R = X X^T / ||X||_F^2) and brackets the largest singular value;
//       with seven squarings the bracket is narrower than 0.9 % for every spectrum up to a short edge of 8192. No random start, no gap needed.
// Warm: power_step does u = W v and W^T u with each row read from device memory once (the second use finds it in the first-level cache);
//       4 flops and 4 bytes (float32) an element. power_finish adds the stripes' sums.
// rescale: W times scale / norm, optionally added to another array: reads 4 (8) bytes, writes 4; 1 (2) flops an element.
//
// Products are doubles: the square of any float32 is in range, so that no pass looks for the largest entry.
#include "common.cuh"

struct Powers {
    const double* squares;    // [levels][matrices][count] partial sums of squares of R^(2^level), each normalised by the one before
    const double* frobenius;  // [matrices]: of the matrix itself
    double* norms;            // [matrices]
    int levels, matrices, count, unused;
    double root;              // sqrt(n): each squaring computes root * A^2 / ||A||_F^2
    double size;              // the Frobenius norm that the packed matrix had
};

KERNEL_BOUNDS(32, norm_from_powers, Powers) {
    const int matrix = blockIdx.x;
    if (p.frobenius[matrix] == 0) {
        if (threadIdx.x == 0) p.norms[matrix] = 0;
        return;
    }
    double log_sum = 0, weight = 1, last = 0, before = 0;
    for (int level = 0; level < p.levels; ++level) {
        double total = 0;
        const double* x = p.squares + ((long long)level * p.matrices + matrix) * p.count;
        for (int i = threadIdx.x; i < p.count; i += 32) total += x[i];
        before = last;
        last = 0.5 * log(warp_reduce<Sum>(total));  // log ||A||_F at this level
        if (level < p.levels - 2) {
            // largest(A) = sqrt(largest(next) ||A||_F^2 / root)
            weight *= 0.5;
            log_sum += weight * (2 * last - log(p.root));
        }
    }
    // For A at the last level but one: (tr A^4 / tr A^2)^(1/2) <= largest <= (tr A^4)^(1/4). Their geometric mean:
    const double lower = last + before - log(p.root), upper = 0.5 * (last + 2 * before - log(p.root));
    const double largest = log_sum + weight * 0.5 * (lower + upper);
    if (threadIdx.x == 0) p.norms[matrix] = exp(0.5 * largest) * (p.frobenius[matrix] / p.size);
}

struct Power {
    const Entry* entries;  // `other`: slot of the estimates v, (count, cols) float32
    const uint64* table;
    double* sums;          // [matrices][stripes][cols]: W^T u of each stripe
    double* squares;       // [matrices][stripes]: u^T u
    double* norms;         // [matrices]
    int rows, cols, stripes, rows_per_stripe;
    int vectors;           // slots from the estimates to the new ones; 0: in place
    int unused;
};

constexpr int ROWS = 8;  // at once: one a warp

DEVICE const float* vector_of(const Entry& e, const Power& p) {
    return reinterpret_cast<const float*>(p.table[e.other]) + (long long)e.index * p.cols;
}

// A vector of zeros is no estimate: then a fixed one that no structured matrix is likely to be orthogonal to.
DEVICE float arbitrary(int i) { return (uint32(i) * 2654435761u >> 16 & 1023) / 512.f - 1; }

template <class T> DEVICE void power_step(const Power& p) {
    __shared__ double u[ROWS];
    __shared__ double scratch[33];
    const Entry e = p.entries[blockIdx.y];
    const T* w = source_of<T>(e, p.table);
    const float* v = vector_of(e, p);
    double* sums = p.sums + ((long long)blockIdx.y * p.stripes + blockIdx.x) * p.cols;
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    const int first = blockIdx.x * p.rows_per_stripe;
    const int last = first + p.rows_per_stripe < p.rows ? first + p.rows_per_stripe : p.rows;
    double largest = 0;
    for (int c = threadIdx.x; c < p.cols; c += blockDim.x) largest = Max::of(fabs(v[c]), largest);
    const bool blind = block_reduce<Max>(largest, scratch) == 0;
    double squares = 0;
    for (int row = first; row < last; row += ROWS) {
        double dot = 0;
        if (row + warp < last) {
            const T* x = w + (long long)(row + warp) * p.cols;
#pragma unroll 4
            for (int c = lane; c < p.cols; c += 32) dot += double(to_float(x[c])) * (blind ? arbitrary(c) : v[c]);
        }
        dot = warp_reduce<Sum>(dot);
        if (lane == 0) u[warp] = dot;
        __syncthreads();
#pragma unroll
        for (int r = 0; r < ROWS; ++r) squares += u[r] * u[r];
        const int count = last - row < ROWS ? last - row : ROWS;
        for (int c = threadIdx.x; c < p.cols; c += blockDim.x) {
            double total = row == first ? 0 : sums[c];
            const T* x = w + (long long)row * p.cols + c;
            if (count == ROWS) {
#pragma unroll
                for (int r = 0; r < ROWS; ++r) total += u[r] * double(to_float(x[(long long)r * p.cols]));
            } else {
                for (int r = 0; r < count; ++r) total += u[r] * double(to_float(x[(long long)r * p.cols]));
            }
            sums[c] = total;
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) p.squares[blockIdx.y * p.stripes + blockIdx.x] = squares;
}

// ||W^T u|| / ||u|| is the norm; W^T u, made a unit vector, the next estimate.
KERNEL_BOUNDS(1024, power_finish, Power) {
    __shared__ double scratch[33];
    const Entry e = p.entries[blockIdx.x];
    double* sums = p.sums + (long long)blockIdx.x * p.stripes * p.cols;
    double total = 0;
    for (int c = threadIdx.x; c < p.cols; c += blockDim.x) {
        double x = 0;
        for (int s = 0; s < p.stripes; ++s) x += sums[(long long)s * p.cols + c];
        sums[c] = x;
        total += x * x;
    }
    total = sqrt(block_reduce<Sum>(total, scratch));
    double squares = 0;
    for (int s = 0; s < p.stripes; ++s) squares += p.squares[blockIdx.x * p.stripes + s];
    const float* v = vector_of(e, p);
    float* next = reinterpret_cast<float*>(p.table[e.other + p.vectors]) + (long long)e.index * p.cols;
    // A matrix of zeros keeps its estimate.
    for (int c = threadIdx.x; c < p.cols; c += blockDim.x) next[c] = total == 0 ? v[c] : float(sums[c] / total);
    if (threadIdx.x == 0) p.norms[blockIdx.x] = divide_or_zero(total, sqrt(squares));
}

struct Rescale {
    const Entry* entries;
    const uint64* table;
    const double* norms;  // [matrices]
    long long count;      // elements of a matrix
    double keep;          // result = keep * other + scale / norm * source, where there is another array
    int dtype, unused;    // of norms_out: 0 float32, 3 float64
};

template <class T> DEVICE void rescale(const Rescale& p) {
    const Entry e = p.entries[blockIdx.y];
    const T *x = source_of<T>(e, p.table), *other = other_of<T>(e, p.table);
    T* out = result_of<T>(e, p.table);
    const double factor = divide_or_zero(scale_of(e, p.table), p.norms[blockIdx.y]);
    const long long step = (long long)gridDim.x * blockDim.x, start = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    constexpr int size = Pack<T>::size;
    const bool packed = packable(x, out, p.count) && (!other || packable(other, out, p.count));
    const long long packs = packed ? p.count / size : 0;
    for (long long i = start; i < packs; i += step) {
        Pack<T> a = reinterpret_cast<const Pack<T>*>(x)[i];
        Pack<T> b = a;
        if (other) b = reinterpret_cast<const Pack<T>*>(other)[i];
#pragma unroll
        for (int j = 0; j < size; ++j)
            a.at[j] = from_float<T>(to_float(a.at[j]) * factor + (other ? p.keep * to_float(b.at[j]) : 0));
        reinterpret_cast<Pack<T>*>(out)[i] = a;
    }
    for (long long i = packs * size + start; i < p.count; i += step)
        out[i] = from_float<T>(to_float(x[i]) * factor + (other ? p.keep * to_float(other[i]) : 0));
}

// The norms themselves, into the caller's array.
KERNEL_BOUNDS(32, store_norms, Rescale) {
    const Entry e = p.entries[blockIdx.x];
    if (threadIdx.x) return;
    if (p.dtype == 0) reinterpret_cast<float*>(p.table[e.result])[e.index] = float(p.norms[blockIdx.x]);
    else reinterpret_cast<double*>(p.table[e.result])[e.index] = p.norms[blockIdx.x];
}

#define FOR_TYPE(T, name)                                                       \
    KERNEL_BOUNDS(256, power_step_##name, Power) { power_step<T>(p); }          \
    KERNEL_BOUNDS(256, rescale_##name, Rescale) { rescale<T>(p); }
FOR_TYPE(float, float32)
FOR_TYPE(double, float64)
FOR_TYPE(float16, float16)
FOR_TYPE(bfloat16, bfloat16)
