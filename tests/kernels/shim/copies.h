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
    shim::block->barriers[barrier] = {int(arrivals), int(arrivals)};
}

namespace shim {
inline TransactionBarrier& barrier_at(Block& owner, unsigned barrier) {
    if (!owner.running) fail("a block of the cluster has ended, and its memory is still in use");
    const auto found = owner.barriers.find(barrier);
    if (found == owner.barriers.end()) fail("a transaction barrier that was never initialised");
    return found->second;
}
// Next phase, if all have arrived and all bytes are there.
inline bool complete(TransactionBarrier& barrier) {
    if (barrier.left || barrier.bytes || !barrier.copies.empty()) return false;
    barrier.phase ^= 1;
    barrier.left = barrier.arrivals;
    return true;
}
inline void arrive(TransactionBarrier& barrier) {
    complete(barrier);
    if (--barrier.left < 0) fail("more arrivals than the transaction barrier counts");
}
inline void land(Block& owner, TransactionBarrier& barrier) {
    for (const auto& copy : barrier.copies) {
        memcpy(owner.shared + copy.destination, copy.source, copy.bytes);
        barrier.bytes -= copy.bytes;
    }
    barrier.copies.clear();
}
inline void copy_to(Block& owner, const CopyBulk& copy, unsigned barrier) {
    at(copy.destination, copy.bytes, 16);
    if (copy.bytes % 16 || reinterpret_cast<uintptr_t>(copy.source) % 16) fail("copy_bulk wants multiples of 16 bytes");
    auto& state = barrier_at(owner, barrier);
    state.copies.push_back(copy);
    if (turn_order & 1) land(owner, state);
}
}  // namespace shim

INLINE void barrier_expect(unsigned barrier, unsigned bytes) {
    auto& state = shim::barrier_at(*shim::block, barrier);
    shim::arrive(state);
    state.bytes += bytes;
}
INLINE void barrier_arrive(unsigned barrier, int rank) { shim::arrive(shim::barrier_at(*shim::cluster[rank], barrier)); }
INLINE void copy_bulk(unsigned destination, const void* source, unsigned bytes, unsigned barrier) {
    shim::copy_to(*shim::block, {destination, source, bytes}, barrier);
}
INLINE void copy_bulk_to_both(unsigned destination, const void* source, unsigned bytes, unsigned barrier) {
    for (auto& owner : shim::cluster) shim::copy_to(*owner, {destination, source, bytes}, barrier);
}
INLINE void barrier_wait(unsigned barrier, unsigned phase) {
    for (;;) {
        auto& state = shim::barrier_at(*shim::block, barrier);
        if ((state.phase & 1) != phase) return;
        if (state.left == 0) shim::land(*shim::block, state);
        if (!shim::complete(state)) shim::wait_as(shim::POLLING);
    }
}
INLINE void barrier_wait_cluster(unsigned barrier, unsigned phase) { barrier_wait(barrier, phase); }
INLINE void fence_async() {}

INLINE void raise_flag(int* flag) { *flag = 1; }
INLINE void wait_for_flag(const int* flag) {
    while (!*flag) shim::wait_as(shim::POLLING);
}
