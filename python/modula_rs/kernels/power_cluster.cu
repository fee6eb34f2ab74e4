// The pass of power.cu for matrices of 2 to 8 tiles of columns, on Hopper: the blocks of a cluster take a tile each of the same rows, and add their
// parts of y through each other's shared memory, so that each element is read from device memory once. Bytes and flops: as in power.cu; between
// blocks 68 bytes for every four rows.
#include "power_step.cuh"

#define FOR_TYPE(T, name)                                                                                            \
    KERNEL_CLUSTER(2, 384, power_cluster_##name##_2, Power) { power_step<T, 2>(p); }                                 \
    KERNEL_CLUSTER(4, 384, power_cluster_##name##_4, Power) { power_step<T, 4>(p); }                                 \
    KERNEL_CLUSTER(8, 384, power_cluster_##name##_8, Power) { power_step<T, 8>(p); }
FOR_TYPE(float, float32)
FOR_TYPE(float16, float16)
FOR_TYPE(bfloat16, bfloat16)
