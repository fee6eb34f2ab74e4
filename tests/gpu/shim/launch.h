// One launch: every block in turn, its threads as fibers.
#pragma once

namespace shim {

inline void (*kernel)(const void*) = nullptr;
inline const void* params = nullptr;

inline void body() {
    kernel(params);
    threads[current].state = DONE;
    Fiber::leave();
}

// A permutation of the threads for each pass: order 0 forward, 1 backward, others pseudo-random strides.
inline unsigned place(unsigned i, unsigned count, unsigned order) {
    if (order == 0) return i;
    if (order == 1) return count - 1 - i;
    return (i * (2 * order + 1) + order) % count;  // count is a multiple of 32, the stride odd
}

inline bool run_block(unsigned count, unsigned order) {
    memset(shared.data, 0xff, shared.size);
    barriers.clear(), groups.clear();
    for (auto& warp : warps) warp.arrived = 0;
    for (unsigned i = 0; i < count; ++i) {
        threads[i].fiber.start(body);
        threads[i].state = RUNNABLE;
        threads[i].copies.clear(), threads[i].copy_groups.clear();
        threads[i].products.clear(), threads[i].product_groups.clear();
    }
    for (unsigned idle = 0;;) {
        bool ran = false, waiting = false, alive = false;
        for (unsigned i = 0; i < count; ++i) {
            current = place(i, count, order);
            Thread& thread = threads[current];
            if (thread.state == POLLING && idle < 2) thread.state = RUNNABLE;
            if (thread.state != RUNNABLE) continue;
            threadIdx = {current, 0, 0};
            thread.fiber.enter();
            if (!failure.empty()) return false;
            ran |= thread.state != POLLING;
        }
        for (unsigned i = 0; i < count; ++i) {
            alive |= threads[i].state != DONE;
            waiting |= threads[i].state != DONE && threads[i].state != BARRIER;
        }
        if (!alive) break;
        if (!waiting) {
            for (unsigned i = 0; i < count; ++i)
                if (threads[i].state == BARRIER) threads[i].state = RUNNABLE;
            ran = true;
        }
        idle = ran ? 0 : idle + 1;
        if (idle > 2) return failure = "deadlock: threads wait for each other", false;
    }
    for (unsigned i = 0; i < count; ++i)
        if (!threads[i].copies.empty() || !threads[i].products.empty() || !threads[i].product_groups.empty())
            return failure = "a thread ended with background work that nobody waited for", false;
    for (const auto& barrier : barriers)
        if (!barrier.second.copies.empty()) return failure = "a block ended with a copy in flight", false;
    return true;
}

}  // namespace shim

// Null, or what went wrong. The grid is (x, y, z) blocks of `count` threads.
extern "C" const char* shim_launch(void (*kernel)(const void*), const void* params, unsigned x, unsigned y, unsigned z,
                                   unsigned count, unsigned shared_bytes, unsigned order) {
    using namespace shim;
    failure.clear();
    if (count % 32 || shared_bytes > sizeof shared.data) return "a launch the hardware would refuse";
    shim::kernel = kernel, shim::params = params, shared.size = shared_bytes;
    if (threads.size() < count) threads.resize(count), warps.resize(count / 32);
    blockDim = {count, 1, 1}, gridDim = {x, y, z};
    for (unsigned k = 0; k < z; ++k)
        for (unsigned j = 0; j < y; ++j)
            for (unsigned i = 0; i < x; ++i) {
                blockIdx = {i, j, k};
                if (!run_block(count, order)) {
                    failure += " (block " + std::to_string(i) + ", " + std::to_string(j) + ", " + std::to_string(k) + ")";
                    return failure.c_str();
                }
            }
    return nullptr;
}
