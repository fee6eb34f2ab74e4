// Types, loads and reductions that every kernel shares.
//
// A kernel takes one struct by value, whose bytes `params.py` describes, so that CuPy and the host shim of the tests launch kernels in the
// same way. No CUDA header is included, because NVRTC ships none.
#pragma once
#include "intrinsics.cuh"

typedef unsigned char uint8;
typedef unsigned short uint16;
typedef unsigned int uint32;
typedef unsigned long long uint64;

#define DEVICE __device__ __forceinline__

struct float16 { uint16 bits; };
struct bfloat16 { uint16 bits; };

DEVICE float to_float(float x) { return x; }
DEVICE float to_float(float16 x) { return half_to_float(x.bits); }
DEVICE float to_float(bfloat16 x) { return bits_to_float(uint32(x.bits) << 16); }

template <class T> DEVICE T from_float(double x) { return T(x); }
template <> DEVICE float16 from_float<float16>(double x) { return {float_to_half(float(x))}; }
template <> DEVICE bfloat16 from_float<bfloat16>(double x) { return {float_to_bfloat(float(x))}; }

// Where one matrix of a launch lies in the caller's arrays. The kernels' `table` maps slots to addresses, so that a captured graph serves
// arrays that move between calls.
struct Entry {
    int source, result, other, scale;  // slots of the table; `other`: slot of a second operand, or -1
    long long offset;                  // elements from the start of the leaf to this matrix
    int index;                         // number of the matrix within its leaf, and of its scale and its norm in their arrays
    int float_scale;                   // 1: scales are float32 in an array on the device; 0: float64, uploaded from the host
};

template <class T> DEVICE const T* source_of(const Entry& e, const uint64* table) {
    return reinterpret_cast<const T*>(table[e.source]) + e.offset;
}
template <class T> DEVICE T* result_of(const Entry& e, const uint64* table) {
    return reinterpret_cast<T*>(table[e.result]) + e.offset;
}
template <class T> DEVICE const T* other_of(const Entry& e, const uint64* table) {
    return e.other < 0 ? nullptr : reinterpret_cast<const T*>(table[e.other]) + e.offset;
}
DEVICE double scale_of(const Entry& e, const uint64* table) {
    if (e.float_scale) return reinterpret_cast<const float*>(table[e.scale])[e.index];
    return reinterpret_cast<const double*>(table[e.scale])[e.index];
}

// Sixteen bytes that are loaded or stored at once. The addresses must be multiples of sixteen, see `packable`.
template <class T> struct alignas(16) Pack {
    static constexpr int size = 16 / sizeof(T);
    T at[size];
};
template <class T> DEVICE bool packable(const T* a, const T* b, long long count) {
    return (((uint64)a | (uint64)b | (uint64)(count * sizeof(T))) & 15) == 0;
}

// Sums and maxima are taken in a fixed order, so that equal inputs give equal bits.
struct Sum { DEVICE static double of(double a, double b) { return a + b; } };
// Not fmax, because fmax drops a NaN.
struct Max { DEVICE static double of(double a, double b) { return a != a || a > b ? a : b; } };

template <class Op> DEVICE double warp_reduce(double x) {
    for (int step = 16; step; step >>= 1) x = Op::of(x, shuffle_xor(x, step));
    return x;
}

// Reduces over the block and gives all its threads the result; `scratch` holds 33 doubles.
template <class Op> DEVICE double block_reduce(double x, double* scratch) {
    x = warp_reduce<Op>(x);
    const int warp = threadIdx.x >> 5, warps = (blockDim.x + 31) >> 5;
    if ((threadIdx.x & 31) == 0) scratch[warp] = x;
    __syncthreads();
    if (threadIdx.x == 0) {
        double total = scratch[0];
        for (int i = 1; i < warps; ++i) total = Op::of(total, scratch[i]);
        scratch[32] = total;
    }
    __syncthreads();
    const double total = scratch[32];
    __syncthreads();
    return total;
}


DEVICE double divide_or_zero(double a, double b) { return b == 0 ? 0 : a / b; }
