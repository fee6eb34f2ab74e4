// One launch: every block, or cluster of blocks, in turn, its threads as fibers.
#pragma once

namespace shim {

inline void (*kernel)(const void*) = nullptr;
inline const void* params = nullptr;

inline void body() {
    kernel(params);
    threads[current].state = DONE;
    --block->running;
    Fiber::leave();
}

// A permutation of the threads for each pass: order 0 forward, 1 backward, others pseudo-random strides.
inline unsigned place(unsigned i, unsigned count, unsigned order) {
    constexpr unsigned strides[] = {7, 11, 13, 17};  // primes that divide no number of threads in use
    if (order == 0) return i;
    if (order == 1) return count - 1 - i;
    return (i * strides[order % 4] + order) % count;
}

// Lets all of those threads go on if every one that is not done waits in this state.
inline bool all_wait(State state, unsigned first, unsigned end) {
    bool any = false;
    for (unsigned i = first; i < end; ++i) {
        if (threads[i].state != DONE && threads[i].state != state) return false;
        any |= threads[i].state == state;
    }
    for (unsigned i = first; i < end; ++i)
        if (threads[i].state == state) threads[i].state = RUNNABLE;
    return any;
}

inline bool run_cluster(unsigned count) {
    const unsigned all = count * cluster.size();
    for (auto& each : cluster) {
        memset(each->shared, 0xff, shared_bytes);
        each->barriers.clear(), each->groups.clear(), each->votes.clear();
        each->running = count;
    }
    for (auto& warp : warps) warp.arrived = 0;
    for (unsigned i = 0; i < all; ++i) {
        threads[i].fiber.start(body);
        threads[i].state = RUNNABLE, threads[i].vote = 0;
        threads[i].copies.clear(), threads[i].copy_groups.clear();
        threads[i].products.clear(), threads[i].product_groups.clear();
    }
    for (unsigned idle = 0;;) {
        bool ran = false, alive = false;
        for (unsigned i = 0; i < all; ++i) {
            current = place(i, all, turn_order);
            Thread& thread = threads[current];
            if (thread.state == POLLING && idle < 2) thread.state = RUNNABLE;
            if (thread.state != RUNNABLE) continue;
            block = cluster[current / count].get();
            threadIdx = {current % count, 0, 0}, blockIdx = block->index;
            thread.fiber.enter();
            if (!failure.empty()) return false;
            ran |= thread.state != POLLING;
        }
        for (unsigned i = 0; i < all; ++i) alive |= threads[i].state != DONE;
        if (!alive) break;
        for (unsigned first = 0; first < all; first += count) ran |= all_wait(BARRIER, first, first + count);
        ran |= all_wait(CLUSTER, 0, all);
        idle = ran ? 0 : idle + 1;
        if (idle > 2) return failure = "deadlock: threads wait for each other", false;
    }
    for (unsigned i = 0; i < all; ++i)
        if (!threads[i].copies.empty() || !threads[i].products.empty() || !threads[i].product_groups.empty())
            return failure = "a thread ended with background work that nobody waited for", false;
    for (auto& each : cluster)
        for (const auto& barrier : each->barriers)
            if (!barrier.second.copies.empty() || barrier.second.bytes) return failure = "a block ended with a copy in flight", false;
    return true;
}

}  // namespace shim

// Null, or what went wrong. The grid is (x, y, z) blocks of `count` threads.
extern "C" const char* shim_launch(void (*kernel)(const void*), const void* params, unsigned x, unsigned y, unsigned z,
                                   unsigned count, unsigned shared_bytes, unsigned order) {
    using namespace shim;
    failure.clear();
    const auto found = cluster_sizes().find((void*)kernel);
    const unsigned size = found == cluster_sizes().end() ? 1 : found->second;
    if (count % 32 || shared_bytes > SHARED_BYTES || x % size) return "a launch the hardware would refuse";
    shim::kernel = kernel, shim::params = params, shim::shared_bytes = shared_bytes, turn_order = order;
    if (threads.size() < count * size) threads.resize(count * size), warps.resize(count * size / 32);
    cluster.resize(size);
    for (unsigned i = 0; i < size; ++i)
        if (!cluster[i]) cluster[i] = std::make_unique<Block>();
    blockDim = {count, 1, 1}, gridDim = {x, y, z};
    for (unsigned k = 0; k < z; ++k)
        for (unsigned j = 0; j < y; ++j)
            for (unsigned i = 0; i < x; i += size) {
                for (unsigned rank = 0; rank < size; ++rank) cluster[rank]->index = {i + rank, j, k}, cluster[rank]->rank = rank;
                if (!run_cluster(count)) {
                    failure += " (block " + std::to_string(i) + ", " + std::to_string(j) + ", " + std::to_string(k) + ")";
                    return failure.c_str();
                }
            }
    return nullptr;
}
