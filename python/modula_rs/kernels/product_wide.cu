// The products of product_mma.cu for large matrices on a Hopper GPU. Flops are as in product_mma.cu.
//
// A cluster of two blocks on neighbouring SMs computes 256 x 256 of the result, each block 128 x 256 of it. A block loads its own 128 rows
// of a, and half of the columns of b for both blocks: the copy engine writes these to the shared memory of both at once. So for 64 steps of
// the sum the second-level cache delivers 32 KB to each SM, while its tensor cores take 1024 cycles: half of what product_wgmma.cu needs.
// Bytes, with operands in the second-level cache: (128 + 128) k halves for 128 x 256 of the result.
//
// A block has two consumer warpgroups, which multiply 64 x 256 each, and one producer warp, whose first lane starts the copies. There are
// four stages of 48 KB. A stage is `full` when its bytes have arrived, and `empty` when the warps of both blocks have finished with it,
// because the copies of both blocks write it. Clusters are persistent, they run for the whole launch, so that the producer loads the next
// tile while the consumers finish the last one.
//
// Tiles seldom divide evenly among the clusters: 4096^2 has 136 tiles for 66 clusters. So the last one to two rounds of tiles are Stream-K
// (Osama et al., "Stream-K: Work-centric Parallel Decomposition for Dense Matrix-Matrix Multiplication on the GPU", 2023): each cluster
// gets an equal number of steps. The cluster with the first steps of a tile finishes it; the clusters with later steps store partial sums
// in `parts`, 128 KB a block.
//
// There is no version for two planes, because the sums, their low halves and the mirror image would take too many registers.
//
// A test without a GPU cannot show three things: that an arrival at the other block's barrier, or a raised flag, makes earlier writes
// visible (release and acquire); that the copy engine sees the barriers initialised; and how fast the kernel is.
#include "warpgroup.cuh"

#if defined(HOPPER) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

constexpr int WIDE_STAGES = 4;
constexpr int WIDE_STAGE_BYTES = 3 * TILE_BYTES;
constexpr int WIDE_IMAGES = WIDE_STAGES * WIDE_STAGE_BYTES;   // offset of the images, one for each warpgroup
constexpr int WIDE_BARRIERS = WIDE_IMAGES + 2 * IMAGE_BYTES;  // offset of the barriers: all `full`, then all `empty`
constexpr int CONSUMERS = 256;                                // threads that multiply; the next thread is the producer
constexpr int PART_WORDS = 64 * 256 / 4;                      // words of four floats in the partial sums of a warpgroup

struct alignas(16) Floats { float at[4]; };

// The work of this cluster: one range of steps of one tile after the other. Both blocks and all their warps see the same work.
// Split tiles are assigned in reverse cluster order, so that a cluster only ever waits for a cluster with a lower index, which has started
// already: no deadlock.
struct Work {
    int whole, split;      // number of tiles that one cluster computes whole, and of tiles whose steps are split among clusters
    int tile, first, end;  // the present tile, and the range of its steps
    int next, last;        // the remaining range of this cluster in the steps of all split tiles, numbered consecutively

    DEVICE Work(const Product& p, int tiles) : whole(tiles), tile(cluster() - clusters()) {
        const int over = tiles % clusters();
        if (p.parts && over) whole = tiles < clusters() ? 0 : tiles - over - clusters();
        split = tiles - whole;
        next = begin(p, rank()), last = begin(p, rank() + 1);
    }
    static DEVICE int clusters() { return gridDim.x >> 1; }
    static DEVICE int cluster() { return blockIdx.x >> 1; }
    static DEVICE int rank() { return clusters() - 1 - cluster(); }
    DEVICE int begin(const Product& p, int r) const { return split * p.chunks * r / clusters(); }
    // Moves on to the next tile; false if there is none.
    DEVICE bool advance(const Product& p) {
        tile = tile + clusters() < whole ? tile + clusters() : whole;
        first = 0, end = p.chunks;
        if (tile < whole) return true;
        if (next >= last) return false;
        tile += next / p.chunks, first = next % p.chunks;
        if (first + last - next < end) end = first + last - next;
        next += end - first;
        return true;
    }
};

// The matrix and the position of a tile of 256 x 256; (i, j) is the position of its first tile of 128 x 128.
template <Purpose purpose> struct Place {
    Which which;
    int i, j;
    static DEVICE int count(const Product& p) {
        const int m = p.tiles_m / 2, n = p.tiles_n / 2;
        return purpose == SYMMETRIC ? n * (n + 1) / 2 : m * n;
    }
    DEVICE Place(const Product& p, int tile) : which(p, tile / count(p)) {
        const int number = tile % count(p), n = p.tiles_n / 2;
        if (purpose == SYMMETRIC) triangle(number, i, j);
        else i = number / n, j = number % n;
        i *= 2, j *= 2;
    }
};

// The ring of stages: the present slot, and the phase of its barriers, which is the parity of the round.
struct Ring {
    unsigned slot = 0, phase = 0;
    DEVICE void next() {
        if (++slot == WIDE_STAGES) slot = 0, phase ^= 1;
    }
};

template <Purpose purpose> DEVICE void producer(const Product& p, unsigned base, int block) {
    Work work(p, Place<purpose>::count(p) * p.matrices);
    const unsigned full = base + WIDE_BARRIERS, empty = full + 8 * WIDE_STAGES;
    Ring ring;
    while (work.advance(p)) {
        const Place<purpose> place(p, work.tile);
        const Operands<1, purpose != SYMMETRIC> operands(p, place.which, place.i + block, place.j + block);
        for (int step = work.first; step < work.end; ++step, ring.next()) {
            const Step<1> s(step, p.chunks);
            const unsigned stage = base + ring.slot * WIDE_STAGE_BYTES, b = stage + (1 + block) * TILE_BYTES;
            const unsigned barrier = full + 8 * ring.slot;
            barrier_wait_cluster(empty + 8 * ring.slot, ring.phase ^ 1);  // returns at once in the first round
            // The copies of the other block may arrive first. The barrier's count of pending bytes is negative until this call.
            barrier_expect(barrier, WIDE_STAGE_BYTES);
            copy_bulk(stage, operands.of_a(s), TILE_BYTES, barrier);
            for (int panel = 0; panel < 2; ++panel)
                copy_bulk_to_both(b + panel * PANEL_BYTES, operands.of_b(s, panel), PANEL_BYTES, barrier);
        }
    }
}

// Each warp releases a stage for itself, in both blocks, because its wait for its own products says nothing of the other warps.
DEVICE void release_stage(unsigned empty, unsigned slot) {
    if (threadIdx.x & 31) return;
    barrier_arrive(empty + 8 * slot, 0);
    barrier_arrive(empty + 8 * slot, 1);
}

// The index of a warpgroup's partial sums in `parts`, and of the flag in `ready` that says they are stored.
DEVICE int part_of(int cluster, int block) { return (cluster * 2 + block) * 2 + (threadIdx.x >> 7); }

DEVICE void store_partial_sums(const float (&sums)[2][64], const Product& p, int part) {
    Floats* to = reinterpret_cast<Floats*>(p.parts) + (long long)part * PART_WORDS + (threadIdx.x & 127);
#pragma unroll
    for (int k = 0; k < 32; ++k) {
        const float* from = &sums[k >> 4][4 * (k & 15)];
        to[k * 128] = {from[0], from[1], from[2], from[3]};
    }
    piece_sync();
    if ((threadIdx.x & 127) == 0) raise_flag(p.ready + part);
}

// Partial sums are always added in the same order, so that equal inputs give equal bits. The cluster that has waited for a flag lowers it
// for the next launch.
DEVICE void add_partial_sums(float (&sums)[2][64], const Product& p, int part) {
    if ((threadIdx.x & 127) == 0) {
        wait_for_flag(p.ready + part);
        p.ready[part] = 0;
    }
    piece_sync();
    const Floats* from = reinterpret_cast<const Floats*>(p.parts) + (long long)part * PART_WORDS + (threadIdx.x & 127);
#pragma unroll
    for (int k = 0; k < 32; ++k) {
        const Floats more = from[k * 128];
#pragma unroll
        for (int n = 0; n < 4; ++n) sums[k >> 4][4 * (k & 15) + n] += more.at[n];
    }
}

template <Purpose purpose> DEVICE void consumer(const Product& p, unsigned char* shared, int block) {
    Work work(p, Place<purpose>::count(p) * p.matrices);
    const unsigned base = shared_address(shared), full = base + WIDE_BARRIERS, empty = full + 8 * WIDE_STAGES;
    const int group = threadIdx.x >> 7;
    Ring ring;
    while (work.advance(p)) {
        const Place<purpose> place(p, work.tile);
        float sums[2][64] = {};
        unsigned before = 0;
        for (int step = work.first; step < work.end; ++step, ring.next()) {
            const unsigned stage = base + ring.slot * WIDE_STAGE_BYTES;
            barrier_wait_cluster(full + 8 * ring.slot, ring.phase);
            multiply_chunk<purpose != SYMMETRIC>(sums, stage + group * PANEL_BYTES, stage + TILE_BYTES);
            warpgroup_wait<1>(sums);
            if (step > work.first) release_stage(empty, before);
            before = ring.slot;
        }
        warpgroup_wait<0>(sums);
        release_stage(empty, before);
        if (work.first > 0) {
            store_partial_sums(sums, p, part_of(work.cluster(), block));
            continue;
        }
        if (work.end < p.chunks)
            for (int r = work.rank() + 1; work.begin(p, r) < (work.tile - work.whole + 1) * p.chunks; ++r)
                if (work.begin(p, r) < work.begin(p, r + 1)) add_partial_sums(sums, p, part_of(work.clusters() - 1 - r, block));
#pragma unroll
        for (int side = 0; side < 2; ++side) {
            const Piece at{place.which, place.i + block, place.j + side, group};
            if (purpose == SYMMETRIC && at.j > at.i) continue;  // above the diagonal: a mirror image that the other block stores
            GroupSums piece{sums[side]};
            finish_piece<purpose, 1, 1>(piece, p, at, shared + WIDE_IMAGES + group * IMAGE_BYTES);
        }
    }
}

template <Purpose purpose> DEVICE void product(const Product& p) {
    DYNAMIC_SHARED(shared);
    const unsigned base = shared_address(shared);
    const int block = cluster_rank();
    if (threadIdx.x == 0) {
        for (int s = 0; s < WIDE_STAGES; ++s) {
            barrier_init(base + WIDE_BARRIERS + 8 * s, 1);
            barrier_init(base + WIDE_BARRIERS + 8 * (WIDE_STAGES + s), 2 * CONSUMERS / 32);
        }
        fence_async();
    }
    cluster_sync();  // each block's barriers are initialised before the other block copies or arrives
    // Each of the 384 threads starts with 168 registers. The producer's warpgroup gives registers to the consumers.
    static_assert(2 * 224 + 56 == 3 * 168, "registers of the three warpgroups");
    if (threadIdx.x < CONSUMERS) {
        increase_registers<224>();
        consumer<purpose>(p, shared, block);
    } else {
        decrease_registers<56>();
        if (threadIdx.x == CONSUMERS) producer<purpose>(p, base, block);
    }
    cluster_sync();  // a block must not end while the other may still copy to its shared memory or arrive at its barriers
}

KERNEL_CLUSTER(2, 384, product_symmetric_wide_1, Product) { product<SYMMETRIC>(p); }
KERNEL_CLUSTER(2, 384, product_apply_wide_1, Product) { product<APPLY>(p); }
KERNEL_CLUSTER(2, 384, product_result_wide_1, Product) { product<RESULT>(p); }
#endif
