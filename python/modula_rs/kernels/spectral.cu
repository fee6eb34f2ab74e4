// Spectral norms from a cold start, and the rescale by them.
//
// Cold: norm_from_powers reads the Frobenius norms of R, R^2, R^4, ..., R^128 (R = X X^T / ||X||_F^2) and brackets the largest singular value;
//       with seven squarings the bracket is narrower than 0.9 % for every spectrum up to a short edge of 8192. No random start, no gap needed.
// rescale: W times scale / norm: reads 4 bytes, writes 4; 2 flops an element.
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
};

// x times scale / norm, which may be 1e44 and no float: so as a power of two near its root, which is exact, times the rest. Conversions to
// doubles would take as long as the memory.
struct Factor {
    float power, rest;
    DEVICE Factor(double scale, double norm) : power(1), rest(float(divide_or_zero(scale, norm))) {
        if (scale == 0 || norm == 0 || scale - scale != 0 || norm - norm != 0) return;
        const double root = ldexp(1.0, (ilogb(scale) - ilogb(norm)) / 2);
        power = float(root), rest = float(scale / root / norm);
    }
    DEVICE float of(float x) const { return x * power * rest; }
};

constexpr int AT_ONCE = 4;  // loads of sixteen bytes that a thread has in flight

template <class T> DEVICE void rescale(const Rescale& p) {
    const Entry e = p.entries[blockIdx.y];
    const T* x = source_of<T>(e, p.table);
    T* out = result_of<T>(e, p.table);
    const Factor factor(scale_of(e, p.table), p.norms[blockIdx.y]);
    const long long step = (long long)gridDim.x * blockDim.x, start = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    constexpr int size = Pack<T>::size;
    const long long packs = packable(x, out, p.count) ? p.count / size : 0;
    const auto* xs = reinterpret_cast<const Pack<T>*>(x);
    for (long long i = start; i < packs; i += AT_ONCE * step) {
        Pack<T> a[AT_ONCE] = {};
#pragma unroll
        for (int k = 0; k < AT_ONCE; ++k)
            if (i + k * step < packs) a[k] = xs[i + k * step];
#pragma unroll
        for (int k = 0; k < AT_ONCE; ++k) {
#pragma unroll
            for (int j = 0; j < size; ++j) a[k].at[j] = from_float<T>(factor.of(to_float(a[k].at[j])));
            if (i + k * step < packs) reinterpret_cast<Pack<T>*>(out)[i + k * step] = a[k];
        }
    }
    for (long long i = packs * size + start; i < p.count; i += step) out[i] = from_float<T>(factor.of(to_float(x[i])));
}

// The norms themselves, into the caller's array.
KERNEL_BOUNDS(32, store_norms, Rescale) {
    const Entry e = p.entries[blockIdx.x];
    if (threadIdx.x) return;
    reinterpret_cast<float*>(p.table[e.result])[e.index] = float(p.norms[blockIdx.x]);
}

#define FOR_TYPE(T, name)                                                       \
    KERNEL_BOUNDS(256, rescale_##name, Rescale) { rescale<T>(p); }
FOR_TYPE(float, float32)
FOR_TYPE(float16, float16)
FOR_TYPE(bfloat16, bfloat16)
