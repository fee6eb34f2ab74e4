// Orthogonalisation and spectral norm of matrices whose short edge n is at most 256, one block a matrix, in one launch.
//
// The Gram matrix R = X X^T, the iterates Q and Z stay in shared memory from the first step to the last. X (n x m) goes by in panels of 64 columns:
// once for R, once more for the restart X1 = Q X (from the second-level cache, if what all processors work on fits), which is written as halves,
// read for its Gram matrix and read to become the result. Bytes an element of float32: 4 + 4 + 2 + 2 + 2 + 4 = 18, of halves 12, where five plain
// steps in half precision move some 50. The next panel is on its way while the tensor cores work on this one.
// Flops, with symmetry: n n m (Gram) + 2 n n m (application), each twice; 3 to 4 products of n^3 a step for T steps.
//
// No pass looks for the size of X first: it is packed relative to its largest entry so far, and normalised by the trace of R.
//
// small_n_1: halves. small_n_2: two planes, three products. The norm: seven squarings of R on chip, then the rescale.
#include "fused.cuh"

template <int blocks, int planes> DEVICE void small(const Small& p) {
    DYNAMIC_SHARED(shared);
    Fused<Packed<blocks, planes>, 1>(p, shared).run();
}

#define FOR_EDGE(edge, planes) \
    KERNEL_BOUNDS_MIN((Packed<edge / 32, planes>::threads), (Packed<edge / 32, planes>::blocks_a_processor), small_##edge##_##planes, Small) { \
        small<edge / 32, planes>(p);                                                                                                          \
    }
FOR_EDGE(32, 1)
FOR_EDGE(64, 1)
FOR_EDGE(128, 1)
FOR_EDGE(192, 1)
FOR_EDGE(256, 1)
FOR_EDGE(32, 2)
FOR_EDGE(64, 2)
FOR_EDGE(128, 2)
