// Spectral norms from a cold start, and the rescale by them.
//
// Cold: norm_from_powers reads the Frobenius norms of R, R^2, R^4, ..., R^128 (R = X X^T / ||X||_F^2) and brackets the largest singular value;
//       with seven squarings the bracket is narrower than 0.9 % for every spectrum up to a short edge of 8192. No random start, no gap needed.
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
    KERNEL_BOUNDS(256, rescale_##name, Rescale) { rescale<T>(p); }
FOR_TYPE(float, float32)
FOR_TYPE(double, float64)
FOR_TYPE(float16, float16)
FOR_TYPE(bfloat16, bfloat16)
