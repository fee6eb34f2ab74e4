// Spectral norms from a cold start, and the rescale by them.
//
// norm_from_powers: takes the Frobenius norms of R, R^2, R^4, ..., R^128, where R = X X^T / ||X||_F^2, and brackets the largest singular
// value. With seven squarings the bracket is narrower than 0.9 % for every spectrum up to a short edge of 8192. The method needs neither a
// random start vector nor a gap between singular values.
//
// rescale: multiplies W by scale / norm. It reads 4 bytes an element and writes 4, with 2 flops.
#include "common.cuh"

struct Powers {
    const double* squares;    // [levels][matrices][count]: partial sums of squares of R^(2^level), normalised at each squaring
    const double* frobenius;  // [matrices]: Frobenius norms of the matrices themselves
    double* norms;            // [matrices]
    int levels, matrices, count, unused;
    double root;              // sqrt(n): each squaring computes root * A^2 / ||A||_F^2
    double size;              // the Frobenius norm of the packed matrix
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
    // For A at the last level but one, (tr A^4 / tr A^2)^(1/2) <= largest <= (tr A^4)^(1/4). The result is the geometric mean of the
    // bounds.
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

// Multiplies by scale / norm, which may be 1e44 and no float. So it is split into two floats: a power of two near its square root, which is
// exact, and the rest. Converting every entry to a double would take as long as reading it from memory.
struct Factor {
    float power, rest;
    DEVICE Factor(double scale, double norm) : power(1), rest(float(divide_or_zero(scale, norm))) {
        if (scale == 0 || norm == 0 || scale - scale != 0 || norm - norm != 0) return;
        const double root = ldexp(1.0, (ilogb(scale) - ilogb(norm)) / 2);
        power = float(root), rest = float(scale / root / norm);
    }
    DEVICE float of(float x) const { return x * power * rest; }
};

constexpr int AT_ONCE = 4;  // number of sixteen-byte loads that a thread has in flight

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

// Writes the norms into the caller's array.
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
