// One number for each matrix out of one number for each row: norms, dual norms, Frobenius norms.
// Bytes: 8 a row. Flops: 2 a row.
#include "common.cuh"

enum Fold { FOLD_MAX, FOLD_SUM, FOLD_ROOT };

struct Folding {
    const double* partial;  // [matrices][count]
    const Entry* entries;
    const uint64* table;
    double* total;          // [matrices], or null
    int count;
    int fold;
    int dtype;              // of the caller's array: 0 float32, 3 float64, -1 none
    int unused;
    double weight;          // sum: weight * sum; root: sqrt(weight * sum of squares)
};

KERNEL_BOUNDS(256, fold_rows, Folding) {
    __shared__ double scratch[33];
    const double* x = p.partial + (long long)blockIdx.x * p.count;
    double largest = 0;
    for (int i = threadIdx.x; i < p.count; i += blockDim.x) largest = Max::of(x[i], largest);
    largest = block_reduce<Max>(largest, scratch);
    double value = largest;
    if (p.fold != FOLD_MAX) {
        // A square of the norm of a float64 row may be out of range: divide by the largest first.
        const double unit = p.fold == FOLD_ROOT && largest > 0 ? largest : 1;
        double total = 0;
        for (int i = threadIdx.x; i < p.count; i += blockDim.x) {
            const double a = x[i] / unit;
            total += p.fold == FOLD_ROOT ? a * a : a;
        }
        total = block_reduce<Sum>(total, scratch);
        value = p.fold == FOLD_ROOT ? unit * sqrt(p.weight * total) : p.weight * total;
    }
    if (threadIdx.x) return;
    if (p.total) p.total[blockIdx.x] = value;
    if (p.dtype < 0) return;
    const Entry e = p.entries[blockIdx.x];
    if (p.dtype == 0) reinterpret_cast<float*>(p.table[e.result])[e.index] = float(value);
    else reinterpret_cast<double*>(p.table[e.result])[e.index] = value;
}
