// Background copies, each put off until it is waited for.
#pragma once

INLINE void copy_async(unsigned destination, const void* source) {
    shim::at(destination, 16, 16);
    if (reinterpret_cast<uintptr_t>(source) % 16) shim::fail("copy_async from a misaligned address");
    shim::threads[shim::current].copies.push_back({destination, source});
}
INLINE void copy_commit() {
    shim::Thread& thread = shim::threads[shim::current];
    thread.copy_groups.push_back(std::move(thread.copies));
    thread.copies.clear();
}
template <int pending> INLINE void copy_wait() {
    auto& groups = shim::threads[shim::current].copy_groups;
    while (groups.size() > pending) {
        for (const auto& copy : groups.front()) memcpy(shim::at(copy.destination, 16, 16), copy.source, 16);
        groups.erase(groups.begin());
    }
}

INLINE void barrier_init(unsigned barrier, unsigned arrivals) {
    shim::at(barrier, 8, 8);
    shim::barriers[barrier] = {int(arrivals), int(arrivals)};
}
INLINE shim::TransactionBarrier& barrier_at(unsigned barrier) {
    const auto found = shim::barriers.find(barrier);
    if (found == shim::barriers.end()) shim::fail("a transaction barrier that was never initialised");
    return found->second;
}
INLINE void barrier_expect(unsigned barrier, unsigned bytes) {
    auto& state = barrier_at(barrier);
    state.bytes += bytes;
    if (--state.left < 0) shim::fail("more arrivals than the transaction barrier counts");
}
INLINE void copy_bulk(unsigned destination, const void* source, unsigned bytes, unsigned barrier) {
    shim::at(destination, bytes, 16);
    if (bytes % 16 || reinterpret_cast<uintptr_t>(source) % 16) shim::fail("copy_bulk wants multiples of 16 bytes");
    barrier_at(barrier).copies.push_back({destination, source, bytes});
}
INLINE void barrier_wait(unsigned barrier, unsigned phase) {
    for (;;) {
        auto& state = barrier_at(barrier);
        if ((state.phase & 1) != phase) return;
        if (state.left == 0) {
            for (const auto& copy : state.copies) {
                memcpy(shim::at(copy.destination, copy.bytes, 16), copy.source, copy.bytes);
                state.bytes -= copy.bytes;
            }
            state.copies.clear();
            if (state.bytes == 0) {
                state.phase ^= 1;
                state.left = state.arrivals;
                return;
            }
            shim::fail("the transaction barrier expects " + std::to_string(state.bytes) + " bytes that nobody copies");
        }
        shim::wait_as(shim::POLLING);
    }
}
INLINE void fence_async() {}
