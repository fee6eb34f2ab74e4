// The products of product_mma.cu for large matrices on a Hopper GPU. Flops are the same.
//
// Two blocks on neighbouring processors (a cluster) compute 256 x 256 of the result, each 128 x 256 of it: a block brings its own 128 rows
// of a, and half of the columns of b for both, which the copy engine writes to either's shared memory at once. So for 64 steps of the
// sum the second-level cache gives each processor 32 KB, while its tensor cores take 1024 cycles: half of what product_wgmma.cu asks.
// Bytes, with operands in the second-level cache: (128 + 128) k halves for 128 x 256 of the result.
//
// A block: two warpgroups of products, each 64 x 256, and one warp whose first lane starts the copies. Four stages of 48 KB; a stage is
// `full` when its bytes have come, and `empty` when the warps of both blocks are done with it, since both blocks' copies write it.
// Clusters stay for the whole launch, and copies run ahead into the next tile while the last one is being finished.
//
// Tiles seldom divide evenly among the clusters: 4096^2 has 136 of them for 66. So the last one to two rounds are Stream-K (Osama et al. 2023):
// each cluster gets an equal number of steps. The cluster with the first steps of a tile finishes it; those with later steps store partial
// sums in `parts`: 128 KB a block.
//
// One plane only: with two the sums, their second halves and the mirror image take more registers than there are.
//
// What no test without a GPU can see: that arrivals at the other block's barriers and the flags of parts carry what was done before them
// (release and acquire), that the barriers' first state reaches the copy engine, and how fast all this is.
#include "warpgroup.cuh"

#if defined(HOPPER) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

constexpr int WIDE_STAGES = 4;
constexpr int WIDE_STAGE_BYTES = 3 * TILE_BYTES;
constexpr int WIDE_IMAGES = WIDE_STAGES * WIDE_STAGE_BYTES;   // where the images start, one for each warpgroup
constexpr int WIDE_BARRIERS = WIDE_IMAGES + 2 * IMAGE_BYTES;  // full, then empty
constexpr int CONSUMERS = 256;                                // threads that multiply; the next is the one that copies
constexpr int PART_WORDS = 64 * 256 / 4;                      // four floats each: the sums of a warpgroup

struct alignas(16) Floats { float at[4]; };

// The work of this cluster, one stretch of steps of one tile after the other: the same for both blocks and all their warps.
// Split tiles are assigned in reverse cluster order, so a cluster only ever waits for one with a lower index, which has started already: no
// deadlock.
struct Work {
    int whole, split;      // tiles dealt out as wholes, and the rest
    int tile, first, end;  // the stretch at hand
    int next, last;        // steps of the tiles that are split, counted through: what is left for this cluster

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

// Which 256 x 256 of which matrix a tile is; (i, j): its first tile of 128 x 128.
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

// The stages in turn; `phase` is the parity of the round.
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
            const unsigned stage = base + ring.slot * WIDE_STAGE_BYTES, b = stage + (1 + block) * TILE_BYTES, barrier = full + 8 * ring.slot;
            barrier_wait_cluster(empty + 8 * ring.slot, ring.phase ^ 1);  // in the first round nothing is to be waited for
            // The other block's copies may arrive first: the barrier's count of pending bytes is then negative until this.
            barrier_expect(barrier, WIDE_STAGE_BYTES);
            copy_bulk(stage, operands.of_a(s), TILE_BYTES, barrier);
            for (int panel = 0; panel < 2; ++panel)
                copy_bulk_to_both(b + panel * PANEL_BYTES, operands.of_b(s, panel), PANEL_BYTES, barrier);
        }
    }
}

// Each warp releases a stage for itself, in both blocks: its own wait says nothing of the other warps' products.
DEVICE void release_stage(unsigned empty, unsigned slot) {
    if (threadIdx.x & 31) return;
    barrier_arrive(empty + 8 * slot, 0);
    barrier_arrive(empty + 8 * slot, 1);
}

// The place of a warpgroup's partial sums, and of the flag that says they are stored.
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

// Always in the same order, so that equal input gives equal bits. Who waits for a flag lowers it again: ready for the next launch.
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
            if (purpose == SYMMETRIC && at.j > at.i) continue;  // above the diagonal: the mirror image of what the other block has
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
    cluster_sync();  // either block's barriers are there before the other's copies and arrivals
    // Each of 384 threads starts with 168 registers. Those that multiply take what they need from those that do not.
    static_assert(2 * 224 + 56 == 3 * 168, "registers of the three warpgroups");
    if (threadIdx.x < CONSUMERS) {
        take_registers<224>();
        consumer<purpose>(p, shared, block);
    } else {
        leave_registers<56>();
        if (threadIdx.x == CONSUMERS) producer<purpose>(p, base, block);
    }
    cluster_sync();  // a block's memory must outlive what the other still sends to it
}

KERNEL_CLUSTER(2, 384, product_symmetric_wide_1, Product) { product<SYMMETRIC>(p); }
KERNEL_CLUSTER(2, 384, product_apply_wide_1, Product) { product<APPLY>(p); }
KERNEL_CLUSTER(2, 384, product_result_wide_1, Product) { product<RESULT>(p); }
#endif
