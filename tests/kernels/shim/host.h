// The GPU as a program of one thread: the host version of kernels/intrinsics.cuh.
//
// Each CUDA thread is a fiber. A block, or a cluster of blocks, runs its fibers in turn, in an order the caller picks, each until it waits
// at a barrier or for the other lanes of its warp. What the hardware does in the background is put off as long as it may be: asynchronous
// copies land, and warpgroup products read their operands, only when somebody waits for them (in odd orders the copy engine's bytes land at
// once instead). So a missing barrier or wait shows as a wrong result (for some order), not as luck. Shared memory starts as NaN.
//
// Taken on trust: everything about which writes are seen by whom and when (fences between the proxies, release and acquire, within a
// cluster too), since here each write is seen at once; that sums are not touched between a product and its wait; how many registers a
// thread has; what clusters tell each other through device memory, since one runs after the other.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
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
#define KERNEL_CLUSTER(blocks, threads, name, Params) \
    KERNEL(name, Params);                             \
    static const bool name##_known = shim::cluster_sizes().insert({(void*)name, blocks}).second; \
    KERNEL(name, Params)
#define DYNAMIC_SHARED(name) unsigned char* const name = shim::block->shared
#define INLINE inline
#define HOPPER 1

namespace shim {

struct Index { unsigned x, y, z; };
enum State { RUNNABLE, BARRIER, CLUSTER, LANES, POLLING, DONE };
struct CopyAsync { unsigned destination; const void* source; };
struct Product { float* d; unsigned long long a, b; bool transposed; int columns; };
struct Thread {
    Fiber fiber;
    State state = DONE;
    std::vector<CopyAsync> copies;
    std::vector<std::vector<CopyAsync>> copy_groups;
    std::vector<Product> products;
    std::vector<std::vector<Product>> product_groups;
    unsigned vote = 0;  // number of its next one
};
struct Warp { void* argument[32]; int arrived = 0; };
struct CopyBulk { unsigned destination; const void* source; unsigned bytes; };
struct TransactionBarrier {
    int arrivals, left;
    long long bytes = 0;
    unsigned phase = 0;
    std::vector<CopyBulk> copies;
};
constexpr unsigned SHARED_BYTES = 227 * 1024;
struct Block {
    alignas(1024) unsigned char shared[SHARED_BYTES];  // aligned as the hardware's is
    Index index;
    unsigned rank;  // in its cluster
    unsigned running;  // threads that have not ended
    std::map<unsigned, TransactionBarrier> barriers;
    std::map<int, std::vector<unsigned>> groups;  // threads that wait at a barrier of 128
    std::vector<char> votes;                      // whether any thread said yes
};

inline std::vector<std::unique_ptr<Block>> cluster;  // the blocks that run at present
inline std::vector<Thread> threads;                  // of all of them
inline std::vector<Warp> warps;
inline Block* block = nullptr;  // of the thread that runs
inline unsigned current = 0;    // its number in the cluster
inline unsigned shared_bytes = 0, turn_order = 0;
inline std::string failure;

inline std::map<void*, unsigned>& cluster_sizes() {
    static std::map<void*, unsigned> sizes;
    return sizes;
}

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
    if (address + bytes > shared_bytes) fail("shared memory is " + std::to_string(shared_bytes) + " bytes, touched byte " + std::to_string(address + bytes - 1));
    if (address % alignment) fail("misaligned shared address " + std::to_string(address));
    return block->shared + address;
}

}  // namespace shim

inline shim::Index threadIdx, blockIdx, blockDim, gridDim;

inline void __syncthreads() { shim::wait_as(shim::BARRIER); }
inline bool any_thread(bool x) {
    const unsigned vote = shim::threads[shim::current].vote++;
    if (shim::block->votes.size() <= vote) shim::block->votes.resize(vote + 1);
    shim::block->votes[vote] |= x;
    __syncthreads();
    return shim::block->votes[vote];
}
inline void cluster_sync() { shim::wait_as(shim::CLUSTER); }
inline int cluster_rank() { return shim::block->rank; }
inline unsigned load_remote(unsigned address, int rank) {
    unsigned word;
    shim::at(address, 4, 4);
    if (!shim::cluster[rank]->running) shim::fail("a block of the cluster has ended, and its memory is still read");
    memcpy(&word, shim::cluster[rank]->shared + address, 4);
    return word;
}

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
    auto& waiting = shim::block->groups[number];
    waiting.push_back(shim::current);
    if (waiting.size() < 128) return shim::wait_as(shim::LANES);
    for (const unsigned thread : waiting) shim::threads[thread].state = shim::RUNNABLE;
    waiting.clear();
}

inline int opaque(int x) { return x; }

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
