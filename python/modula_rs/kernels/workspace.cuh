// Parameters of the kernels that move matrices into the workspace and combine them there.
#pragma once
#include "tiles.cuh"

struct Packing {
    const Entry* entries;
    const uint64* table;
    const double* frobenius;  // [matrices]
    float16* out;
    long long stride;         // elements from one matrix to the next
    int rows, cols, tall;     // of the caller's matrix
    int chunks;               // tiles a row of the packed matrix
    double size;              // the Frobenius norm that the packed matrix gets
};

struct Combining {
    const float16 *a, *b;
    float16* d;                // d = alpha a + beta b + gamma I
    float16* more;             // if set: d + shift I
    const double *a_squares, *b_squares;  // if set: a = R and b = sqrt(n) R^2 / ||R||_F^2, see below
    float* factor;             // then (k, sqrt k) of each matrix goes here
    long long stride;
    int chunks, squares_count;
    float alpha, beta, gamma, shift, root;  // root: sqrt(n)
};

// The first step of the iteration. With k = 1 / ||R^2||_F^(1/2), the largest eigenvalue of k R is between n^(-1/4) and 1 (Schatten-8 norm of
// the matrix), so this step's polynomial is one in k R: alpha k R + beta (k R)^2.
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
