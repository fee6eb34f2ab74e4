// The GPU as a program of one thread: the host version of kernels/intrinsics.cuh.
//
// Each CUDA thread is a fiber. A block runs its fibers in turn, in an order the caller picks, each until it waits at a
// barrier or for the other lanes of its warp. What the hardware does in the background is put off as long as it may be: asynchronous
// copies land, and warpgroup products read their operands, only when somebody waits for them. So a missing
// barrier or wait shows as a wrong result (for some order), not as luck. Shared memory starts as NaN.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "fiber.h"

#define __global__
#define __device__
#define __forceinline__ inline
#define __restrict__
#define __shared__ static
#define __launch_bounds__(...)
#define KERNEL(name, Params) extern "C" void name(const Params& p)
#define KERNEL_BOUNDS(threads, name, Params) KERNEL(name, Params)
#define KERNEL_BOUNDS_MIN(threads, blocks, name, Params) KERNEL(name, Params)
#define DYNAMIC_SHARED(name) unsigned char* const name = shim::shared.data
#define INLINE inline
#define HOPPER 1

namespace shim {

struct Index { unsigned x, y, z; };
enum State { RUNNABLE, BARRIER, LANES, POLLING, DONE };
struct CopyAsync { unsigned destination; const void* source; };
struct Product { float* d; unsigned long long a, b; bool transposed; };
struct Thread {
    Fiber fiber;
    State state = DONE;
    std::vector<CopyAsync> copies;
    std::vector<std::vector<CopyAsync>> copy_groups;
    std::vector<Product> products;
    std::vector<std::vector<Product>> product_groups;
};
struct Warp { void* argument[32]; int arrived = 0; };
struct CopyBulk { unsigned destination; const void* source; unsigned bytes; };
struct TransactionBarrier {
    int arrivals, left;
    long long bytes = 0;
    unsigned phase = 0;
    std::vector<CopyBulk> copies;
};
// Aligned as the hardware's shared memory is.
struct Shared { alignas(1024) unsigned char data[228 * 1024]; unsigned size = 0; };

inline Shared shared;
inline std::vector<Thread> threads;
inline std::vector<Warp> warps;
inline std::map<unsigned, TransactionBarrier> barriers;
inline std::map<int, std::vector<unsigned>> groups;  // threads that wait at a barrier of 128
inline unsigned current = 0;
inline std::string failure;

[[noreturn]] inline void fail(const std::string& what) {
    failure = what;
    Fiber::leave();
    abort();
}
inline void wait_as(State state) {
    threads[current].state = state;
    Fiber::leave();
}
inline unsigned char* at(unsigned address, unsigned bytes, unsigned alignment) {
    if (address + bytes > shared.size) fail("shared memory is " + std::to_string(shared.size) + " bytes, touched byte " + std::to_string(address + bytes - 1));
    if (address % alignment) fail("misaligned shared address " + std::to_string(address));
    return shared.data + address;
}

}  // namespace shim

inline shim::Index threadIdx, blockIdx, blockDim, gridDim;

inline void __syncthreads() { shim::wait_as(shim::BARRIER); }

// Runs `operation` on the arguments of all 32 lanes once the last of them has come.
template <class Argument, class Operation> inline void with_lanes(Argument& argument, Operation operation) {
    shim::Warp& warp = shim::warps[shim::current / 32];
    const unsigned first = shim::current & ~31u;
    warp.argument[shim::current & 31] = &argument;
    if (++warp.arrived < 32) return shim::wait_as(shim::LANES);
    warp.arrived = 0;
    Argument* lanes[32];
    for (int i = 0; i < 32; ++i) lanes[i] = static_cast<Argument*>(warp.argument[i]);
    operation(lanes);
    for (unsigned i = first; i < first + 32; ++i) shim::threads[i].state = shim::RUNNABLE;
}
inline void __syncwarp() {
    int nothing = 0;
    with_lanes(nothing, [](int**) {});
}

inline void group_sync(int number) {
    auto& waiting = shim::groups[number];
    waiting.push_back(shim::current);
    if (waiting.size() < 128) return shim::wait_as(shim::LANES);
    for (const unsigned thread : waiting) shim::threads[thread].state = shim::RUNNABLE;
    waiting.clear();
}

inline int forgotten(int x) { return x; }

template <class T> inline T shuffle_xor(T x, int mask) {
    struct Argument { T value; int mask; } argument{x, mask};
    with_lanes(argument, [](Argument** lanes) {
        T values[32];
        for (int i = 0; i < 32; ++i) values[i] = lanes[i ^ lanes[i]->mask]->value;
        for (int i = 0; i < 32; ++i) lanes[i]->value = values[i];
    });
    return argument.value;
}

#include "numbers.h"
#include "tensor.h"
#include "copies.h"
#include "launch.h"
