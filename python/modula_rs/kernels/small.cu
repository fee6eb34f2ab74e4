// Orthogonalisation and spectral norm of matrices whose short edge n is at most 256, one block a matrix, in one launch.
//
// The Gram matrix R = X X^T and the iterates Q and Z stay in shared memory from the first step to the last. X (n x m) is streamed in panels
// of 64 columns: once for R, and once more for the restart X1 = Q X (from the second-level cache, if the matrices of all SMs fit).
// X1 is written as halves, read for its Gram matrix, and read again for the result. Bytes for an element of float32: 4 + 4 + 2 + 2 + 2 + 4
// = 18, of halves 12; five plain steps in half precision move some 50. While the tensor cores multiply one panel, the next is loaded.
// Flops, with symmetry: n n m (Gram) + 2 n n m (application), each twice; 3 to 4 products of n^3 a step for T steps.
//
// No pass finds the size of X first: X is stored relative to its largest entry so far, and normalised by the trace of R.
//
// small_n_1 multiplies halves, small_n_2 split float16 (two planes, three products). A norm takes seven squarings of R on chip, and
// normalize then rescales X.
#include "fused.cuh"

template <int blocks, int planes> DEVICE void small(const Small& p) {
    DYNAMIC_SHARED(shared);
    Fused<Packed<blocks, planes>, 1>(p, shared).run();
}

#define SHAPE(edge, planes) Packed<edge / 32, planes>
#define FOR_EDGE(edge, planes)                                                                                                       \
    KERNEL_BOUNDS_MIN((SHAPE(edge, planes)::threads), (SHAPE(edge, planes)::blocks_per_processor), small_##edge##_##planes, Small) { \
        small<edge / 32, planes>(p);                                                                                                 \
    }
FOR_EDGE(32, 1)
FOR_EDGE(64, 1)
FOR_EDGE(128, 1)
FOR_EDGE(192, 1)
FOR_EDGE(256, 1)
FOR_EDGE(32, 2)
FOR_EDGE(64, 2)
FOR_EDGE(128, 2)
