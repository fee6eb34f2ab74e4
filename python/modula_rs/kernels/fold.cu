// Reduces one number for each row to one number for each matrix: norms, dual norms, Frobenius norms.
// Bytes: 8 a row. Flops: 2 a row.
#include "common.cuh"

enum Fold { FOLD_MAX, FOLD_SUM, FOLD_ROOT };

struct Folding {
    const double* partial;  // [matrices][count]
    const Entry* entries;
    const uint64* table;
    double* total;          // [matrices]; if null, the numbers go to the caller's arrays
    int count;
    int fold;
    double weight;          // FOLD_SUM gives weight * sum, FOLD_ROOT gives sqrt(weight * sum of squares)
};

KERNEL_BOUNDS(256, fold_rows, Folding) {
    __shared__ double scratch[33];
    const double* x = p.partial + (long long)blockIdx.x * p.count;
    double value = 0;
    for (int i = threadIdx.x; i < p.count; i += blockDim.x) {
        if (p.fold == FOLD_MAX) value = Max::of(x[i], value);
        else value += p.fold == FOLD_ROOT ? x[i] * x[i] : x[i];
    }
    if (p.fold == FOLD_MAX) value = block_reduce<Max>(value, scratch);
    else value = p.weight * block_reduce<Sum>(value, scratch);
    if (p.fold == FOLD_ROOT) value = sqrt(value);
    if (threadIdx.x) return;
    if (p.total) {
        p.total[blockIdx.x] = value;
    } else {
        const Entry e = p.entries[blockIdx.x];
        reinterpret_cast<float*>(p.table[e.result])[e.index] = float(value);
    }
}
