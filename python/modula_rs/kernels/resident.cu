// The kernel of small.cu for matrices whose X stays on chip, on Hopper. The blocks of a cluster share one matrix, and each holds some of
// its panels, as halves, in its own shared memory from the first step to the last. The blocks add their parts of the Gram matrix through
// each other's shared memory, and then all carry out the same steps.
//
// Bytes for an element of float32: 4 + 4 = 8, of halves 4. X is read once and the result is written once, which is the minimum. Flops: as
// in small.cu, except that each block of the cluster repeats the products of n^3.
//
// resident_<edge>_<planes>x<blocks of the cluster>.
#include "fused.cuh"

template <int blocks, int cluster> DEVICE void resident(const Small& p) {
    DYNAMIC_SHARED(shared);
    Fused<Packed<blocks, 1>, cluster>(p, shared).run();
}

#define FOR_CLUSTER(edge, cluster) \
    KERNEL_CLUSTER(cluster, (Packed<edge / 32, 1>::threads), resident_##edge##_1x##cluster, Small) { resident<edge / 32, cluster>(p); }
FOR_CLUSTER(64, 2)
FOR_CLUSTER(64, 4)
FOR_CLUSTER(128, 2)
FOR_CLUSTER(128, 4)
