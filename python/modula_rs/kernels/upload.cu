// Writes the data of a call to the device: the addresses of its arrays, and scales from the host. The data are passed as a kernel
// parameter, so that no memory of the host has to stay alive until the device has read it. Bytes: the size of the data, at most 3840 a
// launch.
#include "common.cuh"

struct Upload {
    uint64* destination;
    int count, unused;
    uint64 words[480];
};

KERNEL_BOUNDS(512, upload, Upload) {
    if (int(threadIdx.x) < p.count) p.destination[threadIdx.x] = p.words[threadIdx.x];
}
